//! Inline `jwks`: a JWK set (RFC 7517) of which only public keys are kept.
//!
//! Private parameters and symmetric keys are dropped here, with a warning, so that they can reach neither a proxy's
//! configuration nor a log. It fetches nothing and verifies nothing.

use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use serde_json::{Map, Value};

/// The public part of a set.
#[derive(Debug)]
pub struct PublicKeys {
    /// A JWK set in canonical form.
    pub text: String,
    pub warnings: Vec<String>,
}

/// Members that only private or symmetric keys have (RFC 7518 §6.2.2, §6.3.2, §6.4; RFC 8037 §2).
const PRIVATE: [&str; 8] = ["d", "p", "q", "dp", "dq", "qi", "oth", "k"];

/// Keeps the keys of a JWK set that Envoy can verify signatures with, and of them what is public.
///
/// # Errors
/// Not a JWK set, or none of its keys can verify anything. Messages never hold key material.
pub fn public(text: &str) -> Result<PublicKeys, String> {
    let set: Value = serde_json::from_str(text)
        .map_err(|e| format!("not JSON (line {}, column {} of the text)", e.line(), e.column()))?;
    let Some(Value::Array(keys)) = set.get("keys") else {
        return Err("not a JWK set: it has no list `keys`".into());
    };
    let mut warnings = Vec::new();
    let mut public = Vec::new();
    for (i, key) in keys.iter().enumerate() {
        let mut key = match key {
            Value::Object(key) => key.clone(),
            _ => return Err(format!("keys[{i}] is not an object")),
        };
        let before = key.len();
        key.retain(|member, _| !PRIVATE.contains(&member.as_str()));
        if key.len() < before {
            warnings.push(format!(
                "keys[{i}] holds private or symmetric key material, which does not belong here and is not used: replace that key"
            ));
        }
        match usable(&key) {
            Ok(()) => public.push(Value::Object(key)),
            Err(why) => warnings.push(format!("keys[{i}] is not used: {why}")),
        }
    }
    if public.is_empty() {
        let reasons = if warnings.is_empty() { String::new() } else { format!(" ({})", warnings.join("; ")) };
        return Err(format!("no usable public key{reasons}"));
    }
    let text = Value::Object(Map::from_iter([("keys".to_owned(), Value::Array(public))])).to_string();
    Ok(PublicKeys { text, warnings })
}

/// Whether Envoy takes the key: one key set without any that it takes makes it refuse the whole filter. These are its
/// rules (`jwt_verify_lib` over BoringSSL), as seen on 1.36.2, 1.39.3 and 1.40.0.
fn usable(key: &Map<String, Value>) -> Result<(), String> {
    let text = |member: &str| key.get(member).and_then(Value::as_str);
    let bytes = |member: &str| {
        let decoded = URL_SAFE_NO_PAD.decode(text(member).unwrap_or_default().trim_end_matches('='));
        let decoded = decoded.map_err(|_| format!("`{member}` is not base64url"))?;
        let start = decoded.iter().position(|byte| *byte != 0).unwrap_or(decoded.len());
        Ok::<_, String>(decoded[start..].to_vec())
    };
    let algorithm = text("alg");
    match (text("kty").unwrap_or_default(), text("crv")) {
        ("RSA", _) => {
            if algorithm.is_some_and(|alg| !alg.starts_with("RS") && !alg.starts_with("PS")) {
                return Err("its `alg` is not one of RSA".into());
            }
            usable_rsa(&bytes("n")?, &bytes("e")?)
        }
        ("EC", curve) => usable_ec(curve.unwrap_or("P-256"), algorithm, &bytes("x")?, &bytes("y")?),
        ("OKP", Some("Ed25519")) => {
            if algorithm.is_some_and(|alg| alg != "EdDSA") {
                return Err("its `alg` is not EdDSA".into());
            }
            let point = URL_SAFE_NO_PAD.decode(text("x").unwrap_or_default().trim_end_matches('='));
            if point.is_ok_and(|point| point.len() == 32) {
                Ok(())
            } else {
                Err("`x` is not 32 bytes long".into())
            }
        }
        ("oct", _) => Err("it is a symmetric key".into()),
        (other, _) => Err(format!("key type `{other}` is not supported")),
    }
}

fn usable_rsa(modulus: &[u8], exponent: &[u8]) -> Result<(), String> {
    // 512 to 16384 bits.
    if !(64..=2048).contains(&modulus.len()) || modulus.last().is_none_or(|last| last % 2 == 0) {
        return Err("`n` is not a modulus of 512 to 16384 bits".into());
    }
    if exponent == [3] || exponent == [1, 0, 1] { Ok(()) } else { Err("`e` is neither 3 nor 65537".into()) }
}

fn usable_ec(curve: &str, algorithm: Option<&str>, x: &[u8], y: &[u8]) -> Result<(), String> {
    use aws_lc_rs::signature::{
        ECDSA_P256_SHA256_FIXED, ECDSA_P384_SHA384_FIXED, ECDSA_P521_SHA512_FIXED, ParsedPublicKey,
    };
    let (size, named, verify) = match curve {
        "P-256" => (32, "ES256", &ECDSA_P256_SHA256_FIXED),
        "P-384" => (48, "ES384", &ECDSA_P384_SHA384_FIXED),
        "P-521" => (66, "ES512", &ECDSA_P521_SHA512_FIXED),
        other => return Err(format!("curve `{other}` is not supported")),
    };
    if algorithm.is_some_and(|alg| alg != named) {
        return Err(format!("its `alg` is not {named}, as its curve asks for"));
    }
    if x.len() > size || y.len() > size {
        return Err("its point is too long".into());
    }
    // SEC 1 §2.3.3, uncompressed.
    let mut point = vec![4; 1 + 2 * size];
    point[1..].fill(0);
    point[1 + size - x.len()..=size].copy_from_slice(x);
    point[1 + 2 * size - y.len()..].copy_from_slice(y);
    ParsedPublicKey::new(verify, point).map(drop).map_err(|_| "its point is not on the curve".into())
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Not a key: 256 bytes of nothing in base64url.
    fn modulus() -> String {
        URL_SAFE_NO_PAD.encode([0xa5; 256])
    }

    fn point(size: usize) -> String {
        URL_SAFE_NO_PAD.encode(vec![7; size])
    }

    /// A fresh key's coordinates.
    fn coordinates(algorithm: &'static aws_lc_rs::signature::EcdsaSigningAlgorithm) -> (String, String) {
        use aws_lc_rs::signature::{EcdsaKeyPair, KeyPair as _};
        let pair = EcdsaKeyPair::generate(algorithm).unwrap();
        let (x, y) = pair.public_key().as_ref()[1..].split_at(pair.public_key().as_ref().len() / 2);
        (URL_SAFE_NO_PAD.encode(x), URL_SAFE_NO_PAD.encode(y))
    }

    #[test]
    fn keeps_public_keys() {
        use aws_lc_rs::signature as s;
        let (n, p) = (modulus(), point(32));
        let ec = |curve: &str, rest: &str, algorithm| {
            let (x, y) = coordinates(algorithm);
            format!(r#"{{"kty":"EC"{curve},"x":"{x}","y":"{y}"{rest}}}"#)
        };
        for key in [
            format!(r#"{{"kty":"RSA","n":"{n}","e":"AQAB","kid":"a","use":"sig","alg":"RS256"}}"#),
            format!(r#"{{"kty":"RSA","n":"{n}==","e":"Aw","alg":"PS512"}}"#),
            ec(r#","crv":"P-256""#, "", &s::ECDSA_P256_SHA256_FIXED_SIGNING),
            ec("", r#","alg":"ES256""#, &s::ECDSA_P256_SHA256_FIXED_SIGNING),
            ec(r#","crv":"P-384""#, r#","alg":"ES384""#, &s::ECDSA_P384_SHA384_FIXED_SIGNING),
            ec(r#","crv":"P-521""#, "", &s::ECDSA_P521_SHA512_FIXED_SIGNING),
            format!(r#"{{"kty":"OKP","crv":"Ed25519","x":"{p}"}}"#),
        ] {
            let set = format!(r#"{{"keys":[{key}]}}"#);
            let found = public(&set).unwrap_or_else(|why| panic!("{set}: {why}"));
            let reparsed: Value = serde_json::from_str(&found.text).unwrap();
            assert_eq!(reparsed, serde_json::from_str::<Value>(&set).unwrap());
            assert_eq!(found.warnings, [""; 0]);
        }
    }

    #[test]
    fn strips_what_is_private() {
        let n = modulus();
        let set = format!(
            r#"{{"keys":[{{"kty":"RSA","n":"{n}","e":"AQAB","d":"c2VjcmV0","p":"c2VjcmV0","k":"c2VjcmV0"}},
                         {{"kty":"oct","k":"c2VjcmV0"}}]}}"#
        );
        let found = public(&set).unwrap();
        assert!(!found.text.contains("c2VjcmV0") && !found.text.contains("oct"), "{}", found.text);
        assert_eq!(found.warnings.len(), 3, "{:?}", found.warnings);
        assert!(!found.warnings.join(" ").contains("c2VjcmV0"));
    }

    #[test]
    fn refuses_what_verifies_nothing() {
        let (n, p, long) = (modulus(), point(32), point(33));
        let (small, large, even) = (
            URL_SAFE_NO_PAD.encode([0xa5; 63]),
            URL_SAFE_NO_PAD.encode([0xa5; 2049]),
            URL_SAFE_NO_PAD.encode([0xa4; 256]),
        );
        let (x, y) = coordinates(&aws_lc_rs::signature::ECDSA_P256_SHA256_FIXED_SIGNING);
        for set in ["", "{}", "[]", r#"{"keys":{}}"#, r#"{"keys":[]}"#, r#"{"keys":["x"]}"#] {
            assert!(public(set).is_err(), "{set}");
        }
        for key in [
            r#""kty":"oct","k":"AAAA""#.to_owned(),
            format!(r#""n":"{n}","e":"AQAB""#),
            r#""kty":"RSA","n":"","e":"AQAB""#.into(),
            r#""kty":"RSA","n":"!!","e":"AQAB""#.into(),
            format!(r#""kty":"RSA","n":"{small}","e":"AQAB""#),
            format!(r#""kty":"RSA","n":"{large}","e":"AQAB""#),
            format!(r#""kty":"RSA","n":"{even}","e":"AQAB""#),
            format!(r#""kty":"RSA","n":"{n}","e":"AQ""#),
            format!(r#""kty":"RSA","n":"{n}","e":"AQAB","alg":"HS256""#),
            r#""kty":"EC","crv":"secp256k1","x":"AAAA","y":"AAAA""#.into(),
            // Not on the curve, although everything else is right.
            format!(r#""kty":"EC","crv":"P-256","x":"{p}","y":"{p}""#),
            format!(r#""kty":"EC","crv":"P-256","x":"{long}","y":"{p}""#),
            format!(r#""kty":"EC","crv":"P-384","x":"{x}","y":"{y}""#),
            format!(r#""kty":"EC","crv":"P-256","x":"{x}","y":"{y}","alg":"RS256""#),
            r#""kty":"OKP","crv":"X25519","x":"AAAA""#.into(),
            format!(r#""kty":"OKP","crv":"Ed25519","x":"{long}""#),
            format!(r#""kty":"OKP","crv":"Ed25519","x":"{p}","alg":"ES256""#),
        ] {
            let set = format!(r#"{{"keys":[{{{key}}}]}}"#);
            assert!(public(&set).is_err(), "{set}");
            // Beside a good one it is left out, as Envoy does.
            let beside = format!(r#"{{"keys":[{{{key}}},{{"kty":"RSA","n":"{n}","e":"AQAB"}}]}}"#);
            let found = public(&beside).unwrap();
            assert!(!found.warnings.is_empty() && found.text.matches("kty").count() == 1, "{beside}");
        }
    }
}
