//! End users' tokens and the keys they verify against, made at run time.

use std::fmt;

use anyhow::Result;
use base64::Engine;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use jsonwebtoken::{Algorithm, EncodingKey, Header};
use rcgen::KeyPair;
use serde_json::{Value, json};
use time::OffsetDateTime;

/// An issuer with one ES256 key.
pub struct Signer {
    pub issuer: String,
    key: KeyPair,
}

impl fmt::Debug for Signer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Signer").field("issuer", &self.issuer).finish_non_exhaustive()
    }
}

impl Signer {
    /// # Errors
    /// If a key cannot be made.
    pub fn new(issuer: &str) -> Result<Self> {
        Ok(Self { issuer: issuer.to_owned(), key: KeyPair::generate()? })
    }

    /// The public key as a JSON Web Key Set (RFC 7517, RFC 7518 §6.2).
    pub fn jwks(&self) -> String {
        // An uncompressed P-256 point: 4, then x and y of 32 bytes each.
        let point = self.key.public_key_raw();
        let coordinate = |range: std::ops::Range<usize>| URL_SAFE_NO_PAD.encode(&point[range]);
        json!({ "keys": [{ "kty": "EC", "crv": "P-256", "alg": "ES256", "use": "sig", "kid": "lab",
            "x": coordinate(1..33), "y": coordinate(33..65) }] })
        .to_string()
    }

    /// A token with these claims, over those it needs: it is valid for an hour unless `claims` say otherwise.
    ///
    /// # Errors
    /// If it cannot be signed.
    pub fn token(&self, claims: &Value) -> Result<String> {
        let mut all = json!({ "iss": self.issuer, "sub": "alice", "exp": in_seconds(3600) });
        for (name, value) in claims.as_object().into_iter().flatten() {
            all[name] = value.clone();
        }
        self.sign(&all)
    }

    /// A token with exactly these claims.
    ///
    /// # Errors
    /// If it cannot be signed.
    pub fn sign(&self, claims: &Value) -> Result<String> {
        let mut header = Header::new(Algorithm::ES256);
        header.kid = Some("lab".to_owned());
        Ok(jsonwebtoken::encode(&header, claims, &EncodingKey::from_ec_der(&self.key.serialize_der()))?)
    }
}

/// A time relative to now, as claims have it.
pub fn in_seconds(seconds: i64) -> i64 {
    OffsetDateTime::now_utc().unix_timestamp() + seconds
}
