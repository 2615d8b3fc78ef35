//! What callers without a sidecar show: certificates good and bad, and end users' tokens. All made at run time.

use std::fmt;
use std::path::Path;
use std::sync::Arc;

use anyhow::{Context, Result};
use base64::Engine;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use jsonwebtoken::{Algorithm, EncodingKey, Header};
use rcgen::{BasicConstraints, CertificateParams, IsCa, Issuer, KeyPair, KeyUsagePurpose, SanType};
use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::crypto::{CryptoProvider, aws_lc_rs, verify_tls12_signature, verify_tls13_signature};
use rustls::pki_types::{CertificateDer, PrivatePkcs8KeyDer, ServerName, UnixTime};
use rustls::{ClientConfig, DigitallySignedStruct, SignatureScheme};
use serde_json::{Value, json};
use time::{Duration, OffsetDateTime};

/// The identity that `orders-policy` lets in.
pub(super) const PAYMENT: &str = "spiffe://cluster.local/ns/default/sa/payment-service";
const ISSUER: &str = "https://login.shop.example";

/// Signs end users' tokens.
pub(super) struct Login {
    key: KeyPair,
}

/// A token as a caller shows it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Token {
    Valid,
    Expired,
    /// Signed by a key that is not the issuer's.
    Forged,
}

impl fmt::Debug for Login {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Login").finish_non_exhaustive()
    }
}

impl Login {
    pub(super) fn new() -> Result<Self> {
        Ok(Self { key: KeyPair::generate()? })
    }

    /// The public key as a JSON Web Key Set (RFC 7517, RFC 7518 §6.2).
    pub(super) fn jwks(&self) -> String {
        // An uncompressed P-256 point: 4, then x and y of 32 bytes each.
        let point = self.key.public_key_raw();
        let coordinate = |range: std::ops::Range<usize>| URL_SAFE_NO_PAD.encode(&point[range]);
        json!({ "keys": [{ "kty": "EC", "crv": "P-256", "alg": "ES256", "use": "sig", "kid": "login",
            "x": coordinate(1..33), "y": coordinate(33..65) }] })
        .to_string()
    }

    /// A cashier's token.
    pub(super) fn token(&self, which: Token) -> Result<String> {
        let forger;
        let key = if which == Token::Forged {
            forger = KeyPair::generate()?;
            &forger
        } else {
            &self.key
        };
        let mut header = Header::new(Algorithm::ES256);
        header.kid = Some("login".to_owned());
        let key = EncodingKey::from_ec_der(&key.serialize_der());
        Ok(jsonwebtoken::encode(&header, &claims(which), &key)?)
    }
}

/// What a token of this kind says: a cashier's, for the shop.
pub(super) fn claims(which: Token) -> Value {
    let now = OffsetDateTime::now_utc().unix_timestamp();
    let expires = if which == Token::Expired { now - 3600 } else { now + 3600 };
    json!({ "iss": ISSUER, "sub": "alice", "aud": "shop", "role": "cashier", "iat": now - 7200, "exp": expires })
}

/// Which certificate a caller without a sidecar shows.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Certificate {
    None,
    /// The payment service's identity, signed by the mesh's CA.
    Payment,
    /// The same, but its time is over.
    Expired,
    /// The same name, signed by somebody else.
    Foreign,
    /// The same account in another trust domain, signed by the mesh's CA.
    OtherDomain,
}

/// Mints with the CA key of the demo's own control plane, which lies in the demo's own folder.
pub(super) struct Mint {
    mesh: Issuer<'static, KeyPair>,
    foreign: Issuer<'static, KeyPair>,
}

impl fmt::Debug for Mint {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Mint").finish_non_exhaustive()
    }
}

impl Mint {
    pub(super) fn new(state: &Path) -> Result<Self> {
        let read = |name: &str| std::fs::read_to_string(state.join(name)).with_context(|| name.to_owned());
        let key = KeyPair::from_pem(&read("ca-key.pem")?)?;
        let mesh = Issuer::from_ca_cert_pem(&read("root-cert.pem")?, key)?;
        let mut params = CertificateParams::new(Vec::new())?;
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        params.key_usages = vec![KeyUsagePurpose::KeyCertSign];
        Ok(Self { mesh, foreign: Issuer::new(params, KeyPair::generate()?) })
    }

    /// A TLS client that shows `which`, offers HTTP/1.1 as a sidecar does, and does not care who answers: it plays
    /// the attacker.
    pub(super) fn client(&self, which: Certificate) -> Result<ClientConfig> {
        let provider = Arc::new(aws_lc_rs::default_provider());
        let builder = ClientConfig::builder_with_provider(provider.clone())
            // In TLS 1.3 a client is done before the server has looked at its certificate, and may then see a reset instead of
            // the alert; in 1.2 a refusal is always seen as one. The Envoys among themselves speak 1.3.
            .with_protocol_versions(&[&rustls::version::TLS12])?
            .dangerous()
            .with_custom_certificate_verifier(Arc::new(AnyServer(provider)));
        let mut config = if which == Certificate::None {
            builder.with_no_client_auth()
        } else {
            let (certificate, key) = self.mint(which)?;
            builder.with_client_auth_cert(
                vec![certificate],
                PrivatePkcs8KeyDer::from(key.serialize_der()).into(),
            )?
        };
        config.alpn_protocols =
            ["istio-http/1.1", "istio", "http/1.1"].map(|name| name.as_bytes().to_vec()).into();
        Ok(config)
    }

    fn mint(&self, which: Certificate) -> Result<(CertificateDer<'static>, KeyPair)> {
        let uri = if which == Certificate::OtherDomain {
            PAYMENT.replace("cluster.local", "other.example")
        } else {
            PAYMENT.to_owned()
        };
        let mut params = CertificateParams::new(Vec::new())?;
        params.subject_alt_names.push(SanType::URI(uri.as_str().try_into()?));
        params.distinguished_name = rcgen::DistinguishedName::new();
        params.is_ca = IsCa::ExplicitNoCa;
        params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
        params.extended_key_usages = vec![rcgen::ExtendedKeyUsagePurpose::ClientAuth];
        let now = OffsetDateTime::now_utc();
        params.not_before = now - Duration::HOUR;
        params.not_after =
            if which == Certificate::Expired { now - Duration::MINUTE } else { now + Duration::HOUR };
        let key = KeyPair::generate()?;
        let issuer = if which == Certificate::Foreign { &self.foreign } else { &self.mesh };
        Ok((params.signed_by(&key, issuer)?.der().clone(), key))
    }
}

#[derive(Debug)]
struct AnyServer(Arc<CryptoProvider>);

impl ServerCertVerifier for AnyServer {
    fn verify_server_cert(
        &self,
        _: &CertificateDer<'_>,
        _: &[CertificateDer<'_>],
        _: &ServerName<'_>,
        _: &[u8],
        _: UnixTime,
    ) -> Result<ServerCertVerified, rustls::Error> {
        Ok(ServerCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signed: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        verify_tls12_signature(message, certificate, signed, &self.0.signature_verification_algorithms)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signed: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        verify_tls13_signature(message, certificate, signed, &self.0.signature_verification_algorithms)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.0.signature_verification_algorithms.supported_schemes()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tokens_verify_against_the_published_key_unless_expired_or_forged() {
        let login = Login::new().unwrap();
        let keys: jsonwebtoken::jwk::JwkSet = serde_json::from_str(&login.jwks()).unwrap();
        let key = jsonwebtoken::DecodingKey::from_jwk(&keys.keys[0]).unwrap();
        let mut wanted = jsonwebtoken::Validation::new(Algorithm::ES256);
        wanted.set_audience(&["shop"]);
        wanted.set_issuer(&[ISSUER]);
        for (which, good) in [(Token::Valid, true), (Token::Expired, false), (Token::Forged, false)] {
            let verified = jsonwebtoken::decode::<Value>(login.token(which).unwrap(), &key, &wanted);
            assert_eq!(verified.is_ok(), good, "{which:?}: {verified:?}");
        }
    }
}
