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

/// Why a request is refused before any policy sees it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Refusal {
    /// No rule takes tokens of this issuer, or its keys cannot be had.
    Issuer(String),
    /// The issuer is known, but the token is for somebody else.
    Audience { issuer: String },
    /// `presence: REQUIRED`, and there is no token of this issuer.
    Missing { issuer: String },
    /// A registered claim is of a type that it must not be, so that Envoy reads no token at all.
    Malformed { claim: &'static str },
}

impl Refusal {
    /// The HTTP status that Envoy answers.
    pub fn status(&self) -> u16 {
        match self {
            Self::Issuer(_) | Self::Missing { .. } | Self::Malformed { .. } => 401,
            Self::Audience { .. } => 403,
        }
    }
}

impl std::fmt::Display for Refusal {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Issuer(issuer) => write!(f, "no RequestAuthentication accepts tokens of {issuer:?}"),
            Self::Audience { issuer } => write!(f, "the token of {issuer:?} is for another audience"),
            Self::Missing { issuer } => write!(f, "a token of {issuer:?} is required"),
            Self::Malformed { claim } => write!(f, "the claim `{claim}` of the token is of a wrong type"),
        }
    }
}

/// `Ok(None)` is a request without token, or one whose token nobody looks at.
pub(super) fn authenticate(rules: &[JwtRule], request: &Request) -> Result<Option<Token>, Refusal> {
    if rules.is_empty() || request.protocol == Protocol::Tcp || cors_preflight(request) {
        return Ok(None);
    }
    let claims = request.claims.as_ref();
    if let Some(claim) = claims.and_then(malformed) {
        return Err(Refusal::Malformed { claim });
    }
    let mut accepting: Option<&JwtRule> = None;
    for rule in rules.iter().filter(|rule| rule.presence == Presence::Required) {
        let missing = || Refusal::Missing { issuer: rule.issuer.clone() };
        // Who verifies a token takes it away, so that the next one finds none.
        let left = claims.filter(|_| accepting.is_none_or(|before| !takes(before, request)));
        match check(rule, left.ok_or_else(missing)?) {
            // All of them verify, and the last one writes last.
            Ok(()) => accepting = Some(rule),
            Err(Refusal::Issuer(_)) => return Err(missing()),
            Err(refusal) => return Err(refusal),
        }
    }
    let Some(claims) = claims else { return Ok(None) };
    let rule = accepting.map_or_else(|| first(rules, claims), Ok)?;
    Ok(Some(Token { claims: normalise(rule, claims), taken: taken(rule, request) }))
}

/// The first registered claim that `jwt_verify_lib` would not read: RFC 7519 §4.1 says what type each has.
fn malformed(claims: &Map<String, Value>) -> Option<&'static str> {
    let strings = |value: &Value| match value {
        Value::Array(list) => list.iter().all(Value::is_string),
        one => one.is_string(),
    };
    let time = |value: &Value| value.as_f64().is_some_and(|seconds| seconds >= 0.0);
    let wrong = |name: &&str| match (*name, claims.get(*name)) {
        (_, None) => false,
        ("aud", Some(value)) => !strings(value),
        ("iat" | "nbf" | "exp", Some(value)) => !time(value),
        (_, Some(value)) => !value.is_string(),
    };
    ["iss", "sub", "iat", "nbf", "exp", "jti", "aud"].into_iter().find(wrong)
}

/// Alternatives stop at the first rule that accepts.
fn first<'r>(rules: &'r [JwtRule], claims: &Map<String, Value>) -> Result<&'r JwtRule, Refusal> {
    let mut refusal = Refusal::Issuer(issuer(claims).to_owned());
    for rule in rules {
        match check(rule, claims) {
            Ok(()) => return Ok(rule),
            // Says more than that other issuers are not this one.
            Err(audience @ Refusal::Audience { .. }) => refusal = audience,
            Err(_) => {}
        }
    }
    Err(refusal)
}

fn issuer(claims: &Map<String, Value>) -> &str {
    claims.get("iss").and_then(Value::as_str).unwrap_or_default()
}

fn check(rule: &JwtRule, claims: &Map<String, Value>) -> Result<(), Refusal> {
    let unknown = || Refusal::Issuer(issuer(claims).to_owned());
    if !rule.issuer.is_empty() && rule.issuer != issuer(claims) {
        return Err(unknown());
    }
    let ours =
        |value: &Value| value.as_str().is_some_and(|a| rule.audiences.iter().any(|b| bare(a) == bare(b)));
    let for_us = match claims.get("aud") {
        _ if rule.audiences.is_empty() => true,
        Some(Value::Array(list)) => list.iter().any(ours),
        Some(one) => ours(one),
        None => false,
    };
    if !for_us {
        return Err(Refusal::Audience { issuer: issuer(claims).to_owned() });
    }
    if rule.jwks == Jwks::RefuseAll { Err(unknown()) } else { Ok(()) }
}

/// Envoy compares audiences without scheme and trailing slash.
fn bare(audience: &str) -> &str {
    let rest =
        audience.strip_prefix("https://").or_else(|| audience.strip_prefix("http://")).unwrap_or(audience);
    rest.strip_suffix('/').unwrap_or(rest)
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
            // Without any word in it Envoy leaves the text as it is.
            Value::String(text) if is_list(name) && text.contains(|c| c != ' ') => words(text),
            other => other.clone(),
        };
        (name.clone(), value)
    };
    claims.iter().map(each).collect()
}

/// Whether the token is gone once `rule` has verified it. In a cookie it stays (seen on 1.39.3).
fn takes(rule: &JwtRule, request: &Request) -> bool {
    !rule.forward_original_token && (rule.from_cookies.is_empty() || !taken(rule, request).is_empty())
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
