//! A look at a JSON web token's claims WITHOUT verifying it: whether it is worth the API server's time.

use base64::{Engine, engine::general_purpose::URL_SAFE_NO_PAD};
use serde::Deserialize;
use time::OffsetDateTime;

use super::TokenError;

#[derive(Deserialize)]
struct Claims {
    aud: Option<Audience>,
    /// Seconds since the epoch; may be fractional (RFC 7519 §2).
    exp: Option<serde_json::Number>,
}

#[derive(Deserialize)]
#[serde(untagged)]
enum Audience {
    One(String),
    Many(Vec<String>),
}

/// The end that the token names, if its claims are such that the API server could accept it for `audience`.
pub(super) fn plausible(
    token: &str,
    audience: &str,
    now: OffsetDateTime,
) -> Result<OffsetDateTime, TokenError> {
    let mut parts = token.split('.');
    let (Some(_), Some(payload), Some(_), None) = (parts.next(), parts.next(), parts.next(), parts.next())
    else {
        return Err(TokenError::Malformed);
    };
    let json = URL_SAFE_NO_PAD.decode(payload).map_err(|_| TokenError::Malformed)?;
    let Claims { aud, exp } = serde_json::from_slice(&json).map_err(|_| TokenError::Malformed)?;
    let ours = match aud {
        None => false,
        Some(Audience::One(one)) => one == audience,
        Some(Audience::Many(many)) => many.iter().any(|one| one == audience),
    };
    if !ours {
        return Err(TokenError::Audience);
    }
    // A token without end (a legacy one) never counts: nobody could take it back.
    let seconds = exp.and_then(|exp| exp.as_i64().or_else(|| exp.as_f64().map(|exp| exp as i64)));
    let expires = seconds.and_then(|seconds| OffsetDateTime::from_unix_timestamp(seconds).ok());
    expires.filter(|expires| now < *expires).ok_or(TokenError::Expired)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn token(claims: &str) -> String {
        format!("e30.{}.c2ln", URL_SAFE_NO_PAD.encode(claims))
    }

    #[test]
    fn only_what_the_api_server_could_accept_is_worth_asking() {
        let now = OffsetDateTime::from_unix_timestamp(1_000).unwrap();
        let judge = |token: &str| plausible(token, "istio-ca", now).map(OffsetDateTime::unix_timestamp);
        let good = token(r#"{"aud":["other","istio-ca"],"exp":2000,"sub":"x"}"#);
        for (text, expected) in [
            (good.clone(), Ok(2000)),
            (token(r#"{"aud":"istio-ca","exp":2000.5}"#), Ok(2000)),
            (token(r#"{"aud":"istio-c","exp":2000}"#), Err(TokenError::Audience)),
            (token(r#"{"aud":[],"exp":2000}"#), Err(TokenError::Audience)),
            (token(r#"{"exp":2000}"#), Err(TokenError::Audience)),
            (token(r#"{"aud":"istio-ca"}"#), Err(TokenError::Expired)),
            (token(r#"{"aud":"istio-ca","exp":1000}"#), Err(TokenError::Expired)),
            (token(r#"{"aud":"istio-ca","exp":1e300}"#), Err(TokenError::Expired)),
            (token(r#"{"aud":7,"exp":2000}"#), Err(TokenError::Malformed)),
            (token("[]"), Err(TokenError::Malformed)),
            (format!("{good}.more"), Err(TokenError::Malformed)),
            ("a.!.b".to_owned(), Err(TokenError::Malformed)),
            (String::new(), Err(TokenError::Malformed)),
        ] {
            assert_eq!(judge(&text), expected, "{text}");
        }
    }
}
