//! Inline `jwks`: a JWK set (RFC 7517) of which only public keys are kept.
//!
//! Private parameters and symmetric keys are dropped here, with a warning, so that they can reach neither a proxy's
//! configuration nor a log. It fetches nothing and verifies nothing.

use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use serde_json::{Map, Value};

/// The public part of a set.
#[derive(Debug)]
pub(crate) struct PublicKeys {
    /// A JWK set in canonical form.
    pub(crate) text: String,
    pub(crate) warnings: Vec<String>,
}

/// Members that only private or symmetric keys have (RFC 7518 §6.2.2, §6.3.2, §6.4; RFC 8037 §2).
const PRIVATE: [&str; 8] = ["d", "p", "q", "dp", "dq", "qi", "oth", "k"];

/// `Err`: not a JWK set, or none of its keys can verify anything. Messages never hold key material.
pub(crate) fn public(text: &str) -> Result<PublicKeys, String> {
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

/// Whether Envoy can verify a signature with it (its `jwt_verify_lib`: RSA, EC on the NIST curves, Ed25519).
fn usable(key: &Map<String, Value>) -> Result<(), String> {
    let text = |member: &str| key.get(member).and_then(Value::as_str).unwrap_or_default();
    let bytes = |member: &str| {
        let decoded = URL_SAFE_NO_PAD.decode(text(member).trim_end_matches('=')).unwrap_or_default();
        if decoded.is_empty() {
            Err(format!("`{member}` is missing or not base64url"))
        } else {
            Ok(decoded.len())
        }
    };
    match text("kty") {
        "RSA" => bytes("n").and(bytes("e")).map(drop),
        "EC" => {
            let size = match text("crv") {
                "P-256" => 32,
                "P-384" => 48,
                "P-521" => 66,
                other => return Err(format!("curve `{other}` is not supported")),
            };
            if bytes("x")? > size || bytes("y")? > size {
                Err("its point is too long".into())
            } else {
                Ok(())
            }
        }
        "OKP" if text("crv") == "Ed25519" => match bytes("x")? {
            32 => Ok(()),
            _ => Err("its point is not 32 bytes long".into()),
        },
        "oct" => Err("it is a symmetric key".into()),
        other => Err(format!("key type `{other}` is not supported")),
    }
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

    #[test]
    fn keeps_public_keys() {
        let (n, p) = (modulus(), point(32));
        for key in [
            format!(r#"{{"kty":"RSA","n":"{n}","e":"AQAB","kid":"a","use":"sig","alg":"RS256"}}"#),
            format!(r#"{{"kty":"EC","crv":"P-256","x":"{p}","y":"{p}"}}"#),
            format!(r#"{{"kty":"OKP","crv":"Ed25519","x":"{p}"}}"#),
        ] {
            let set = format!(r#"{{"keys":[{key}]}}"#);
            let found = public(&set).unwrap();
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
        let p = point(33);
        for set in [
            "".to_owned(),
            "{}".into(),
            "[]".into(),
            r#"{"keys":{}}"#.into(),
            r#"{"keys":[]}"#.into(),
            r#"{"keys":["x"]}"#.into(),
            r#"{"keys":[{"kty":"oct","k":"AAAA"}]}"#.into(),
            r#"{"keys":[{"kty":"RSA","n":"","e":"AQAB"}]}"#.into(),
            r#"{"keys":[{"kty":"RSA","n":"!!","e":"AQAB"}]}"#.into(),
            r#"{"keys":[{"kty":"EC","crv":"secp256k1","x":"AAAA","y":"AAAA"}]}"#.into(),
            format!(r#"{{"keys":[{{"kty":"EC","crv":"P-256","x":"{p}","y":"AAAA"}}]}}"#),
            r#"{"keys":[{"kty":"OKP","crv":"X25519","x":"AAAA"}]}"#.into(),
        ] {
            assert!(public(&set).is_err(), "{set}");
        }
    }
}
