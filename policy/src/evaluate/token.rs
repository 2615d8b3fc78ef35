//! Whether the JWT filter lets a request pass, and what it leaves behind for policies (semantics §5.1, §5.4).
//!
//! Checks issuer and audience of a token that is otherwise good. Where the token was found is not known here; it counts
//! as found by every rule.

use serde_json::{Map, Value};

use super::request::{Protocol, Request};
use crate::model::{Jwks, JwtRule, Presence};

/// Claims that are always lists of words.
const SPACE_DELIMITED: [&str; 2] = ["scope", "permission"];

/// A token that was accepted.
#[derive(Clone, Debug)]
pub(super) struct Token {
    claims: Map<String, Value>,
    /// Headers that were removed with it, in lower case.
    taken: Vec<String>,
}

impl Token {
    pub(super) fn claims(&self) -> &Map<String, Value> {
        &self.claims
    }

    pub(super) fn took(&self, header: &str) -> bool {
        self.taken.iter().any(|taken| taken == header)
    }
}

/// Why a request is answered 401.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Refusal {
    /// No rule takes tokens of this issuer for this audience, or its keys cannot be had.
    NotAccepted { issuer: String },
    /// `presence: REQUIRED`, and there is no token of this issuer.
    Missing { issuer: String },
}

impl std::fmt::Display for Refusal {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::NotAccepted { issuer } => {
                write!(f, "no RequestAuthentication accepts the token of {issuer:?}")
            }
            Self::Missing { issuer } => write!(f, "a token of {issuer:?} is required"),
        }
    }
}

/// `Ok(None)` is a request without token, or one whose token nobody looks at.
pub(super) fn authenticate(rules: &[JwtRule], request: &Request) -> Result<Option<Token>, Refusal> {
    if rules.is_empty() || request.protocol == Protocol::Tcp || cors_preflight(request) {
        return Ok(None);
    }
    let claims = request.claims.as_ref();
    let accepts = |rule: &&JwtRule| claims.is_some_and(|claims| accepts(rule, claims));
    let required = || rules.iter().filter(|rule| rule.presence == Presence::Required);
    if let Some(rule) = required().find(|rule| !accepts(rule)) {
        return Err(Refusal::Missing { issuer: rule.issuer.clone() });
    }
    let Some(claims) = claims else { return Ok(None) };
    // Alternatives stop at the first that verifies; of required rules all do, and the last one writes last.
    match required().next_back().or_else(|| rules.iter().find(accepts)) {
        Some(rule) => Ok(Some(Token { claims: normalise(rule, claims), taken: taken(rule, request) })),
        None => Err(Refusal::NotAccepted { issuer: issuer(claims).to_owned() }),
    }
}

fn issuer(claims: &Map<String, Value>) -> &str {
    claims.get("iss").and_then(Value::as_str).unwrap_or_default()
}

fn accepts(rule: &JwtRule, claims: &Map<String, Value>) -> bool {
    let audience = |value: &Value| value.as_str().is_some_and(|a| rule.audiences.iter().any(|b| a == b));
    let for_us = match claims.get("aud") {
        _ if rule.audiences.is_empty() => true,
        Some(Value::Array(list)) => list.iter().any(audience),
        Some(one) => audience(one),
        None => false,
    };
    rule.jwks != Jwks::RefuseAll && (rule.issuer.is_empty() || rule.issuer == issuer(claims)) && for_us
}

/// A browser's question before the request carries no token, and is let through to be answered.
fn cors_preflight(request: &Request) -> bool {
    let has = |name: &str| {
        request.headers.iter().any(|(n, value)| n.eq_ignore_ascii_case(name) && !value.is_empty())
    };
    request.method == "OPTIONS" && has("origin") && has("access-control-request-method")
}

fn normalise(rule: &JwtRule, claims: &Map<String, Value>) -> Map<String, Value> {
    let is_list = |name: &str| {
        SPACE_DELIMITED.contains(&name) || rule.space_delimited_claims.iter().any(|claim| claim == name)
    };
    let words =
        |text: &str| Value::Array(text.split(' ').filter(|w| !w.is_empty()).map(Value::from).collect());
    let each = |(name, value): (&String, &Value)| {
        let value = match value {
            Value::String(text) if is_list(name) => words(text),
            other => other.clone(),
        };
        (name.clone(), value)
    };
    claims.iter().map(each).collect()
}

/// The headers that held the token, unless they are to be forwarded.
fn taken(rule: &JwtRule, request: &Request) -> Vec<String> {
    if rule.forward_original_token {
        return Vec::new();
    }
    let default = rule.from_headers.is_empty() && rule.from_params.is_empty() && rule.from_cookies.is_empty();
    let places = rule.from_headers.iter().map(|h| (h.name.as_str(), h.prefix.as_str()));
    let places = places.chain(default.then_some(("authorization", "Bearer ")));
    let holds = |(name, prefix): &(&str, &str)| {
        request.headers.iter().any(|(n, value)| n.eq_ignore_ascii_case(name) && value.starts_with(prefix))
    };
    places.filter(holds).map(|(name, _)| name.to_ascii_lowercase()).collect()
}
