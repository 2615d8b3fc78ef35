//! An effective policy as a value that people can read and that golden tests compare. Lossless enough to tell any two
//! policies apart whose enforcement differs; nothing reads it back.

use std::sync::Arc;

use policy::{
    ActionRules, Atom, Clause, EffectiveMtls, EffectivePolicy, EffectiveRule, Jwks, JwtRule, PathMatch,
    Presence, RequestPrincipal, StringMatch, TrustDomainMatch,
};
use serde_json::{Map, Value, json};

/// `policy` in the words of the API. Absent keys mean "nothing of the kind is attached".
pub fn describe(policy: &EffectivePolicy) -> Value {
    let EffectivePolicy { mtls, jwt, custom, audit, deny, allow, drain } = policy;
    let mut text = Map::new();
    text.insert("mtls".to_owned(), describe_mtls(mtls));
    let mut add = |key: &str, value: Option<Value>| {
        if let Some(value) = value {
            text.insert(key.to_owned(), value);
        }
    };
    add("jwt", (!jwt.is_empty()).then(|| jwt.iter().map(describe_jwt).collect()));
    let custom: Map<String, Value> =
        custom.iter().filter_map(|(name, rules)| Some((name.to_string(), describe_action(rules)?))).collect();
    add("custom", (!custom.is_empty()).then_some(Value::Object(custom)));
    add("audit", describe_action(audit));
    add("deny", describe_action(deny));
    add("allow", describe_action(allow));
    let drain: Vec<String> = drain.iter().map(|(name, _)| name.to_string()).collect();
    add("drain", (!drain.is_empty()).then(|| json!(drain)));
    Value::Object(text)
}

fn describe_mtls(mtls: &EffectiveMtls) -> Value {
    let EffectiveMtls { mode, ports, set_by, ports_set_by } = mtls;
    let by = |name: &Option<policy::ObjectName>| name.as_ref().map(ToString::to_string);
    let mut text = Map::from_iter([
        ("mode".to_owned(), json!(mode)),
        ("setBy".to_owned(), json!(by(set_by).unwrap_or_else(|| "mesh default".to_owned()))),
    ]);
    if !ports.is_empty() {
        let ports: Map<String, Value> =
            ports.iter().map(|(port, mode)| (port.to_string(), json!(mode))).collect();
        text.insert("ports".to_owned(), Value::Object(ports));
        text.insert("portsSetBy".to_owned(), json!(by(ports_set_by)));
    }
    Value::Object(text)
}

fn describe_jwt(rule: &JwtRule) -> Value {
    let JwtRule {
        issuer,
        audiences,
        jwks,
        from_headers,
        from_params,
        from_cookies,
        output_payload_to_header,
        forward_original_token,
        output_claim_to_headers,
        space_delimited_claims,
        timeout_ms,
        presence,
    } = rule;
    let keys = match jwks {
        Jwks::Inline(keys) => json!({"inline": &**keys}),
        Jwks::Remote(uri) => json!({"fetched": uri}),
        Jwks::RefuseAll => json!("none: every token of this issuer is refused"),
    };
    let mut text = Map::from_iter([("issuer".to_owned(), json!(issuer)), ("keys".to_owned(), keys)]);
    let mut add = |key: &str, value: Value| {
        let nothing = value.as_array().is_some_and(Vec::is_empty) || value.is_null() || value == json!(false);
        if !nothing {
            text.insert(key.to_owned(), value);
        }
    };
    let headers: Vec<String> = from_headers.iter().map(|h| format!("{}: {}", h.name, h.prefix)).collect();
    let claims: Vec<String> =
        output_claim_to_headers.iter().map(|c| format!("{} <- {}", c.header, c.claim)).collect();
    add("audiences", json!(audiences));
    add("fromHeaders", json!(headers));
    add("fromParams", json!(from_params));
    add("fromCookies", json!(from_cookies));
    add("outputPayloadToHeader", json!(output_payload_to_header));
    add("forwardOriginalToken", json!(forward_original_token));
    add("outputClaimToHeaders", json!(claims));
    add("spaceDelimitedClaims", json!(space_delimited_claims));
    add("required", json!(*presence == Presence::Required));
    if matches!(jwks, Jwks::Remote(_)) {
        add("timeoutMs", json!(timeout_ms));
    }
    Value::Object(text)
}

/// `None` if no policy of the action is attached.
fn describe_action(rules: &ActionRules) -> Option<Value> {
    let ActionRules { enforced, shadow } = rules;
    let describe = |rules: &Vec<EffectiveRule>| -> Value { rules.iter().map(describe_rule).collect() };
    let parts = [("rules", enforced), ("dryRun", shadow)];
    let text: Map<String, Value> = parts
        .into_iter()
        .filter_map(|(key, rules)| Some((key.to_owned(), describe(rules.as_ref()?))))
        .collect();
    (!text.is_empty()).then_some(Value::Object(text))
}

fn describe_rule(rule: &EffectiveRule) -> Value {
    let EffectiveRule { policy: _, index: _, permissions, principals } = rule;
    json!({
        "name": rule.name(),
        "to": describe_side(permissions),
        "from": describe_side(principals),
    })
}

/// One side of a rule: OR of branches, each an AND of fields.
fn describe_side(branches: &[Vec<Clause>]) -> Value {
    match branches {
        [] => json!("nothing"),
        _ if branches.iter().any(Vec::is_empty) => json!("anything"),
        _ => branches.iter().map(|branch| branch.iter().map(describe_clause).collect::<Value>()).collect(),
    }
}

fn describe_clause(clause: &Clause) -> Value {
    let Clause { field, any, none } = clause;
    let values =
        |atoms: &[Atom]| -> Value { atoms.iter().map(|atom| Value::String(describe_atom(atom))).collect() };
    let mut text = Map::from_iter([("field".to_owned(), json!(&**field))]);
    if !any.is_empty() {
        text.insert("oneOf".to_owned(), values(any));
    }
    if !none.is_empty() {
        text.insert("noneOf".to_owned(), values(none));
    }
    Value::Object(text)
}

fn describe_atom(atom: &Atom) -> String {
    match atom {
        Atom::Principal(value)
        | Atom::Audience(value)
        | Atom::Presenter(value)
        | Atom::Host(value)
        | Atom::Method(value)
        | Atom::Sni(value)
        | Atom::Path(PathMatch::Plain(value)) => value.to_string(),
        Atom::Path(PathMatch::Template(template)) => template.to_string(),
        Atom::Namespace(glob) => glob.to_string(),
        Atom::ServiceAccount { namespace, name } => format!("{namespace}/{name}"),
        Atom::TrustDomain(TrustDomainMatch::Any) => "*".to_owned(),
        Atom::TrustDomain(TrustDomainMatch::Exact(domain) | TrustDomainMatch::Wildcard(domain)) => {
            domain.to_string()
        }
        Atom::SourceIp(net) | Atom::RemoteIp(net) | Atom::DestinationIp(net) => net.to_string(),
        Atom::RequestPrincipal(RequestPrincipal { issuer, subject }) => {
            let part = |part: &Option<StringMatch>| part.as_ref().map_or("*".to_owned(), ToString::to_string);
            format!("{}/{}", part(issuer), part(subject))
        }
        Atom::Claim { path, value } => format!("{} = {value}", names(path)),
        Atom::Header { name, value } => format!("{name} = {value}"),
        Atom::Port(port) => port.to_string(),
        Atom::Metadata { filter, key, value, list } => {
            let contains = if *list { " contains " } else { " = " };
            format!("{filter}[{key}]{contains}{value}")
        }
    }
}

fn names(path: &[Arc<str>]) -> String {
    path.iter().map(|name| &**name).collect::<Vec<_>>().join(".")
}
