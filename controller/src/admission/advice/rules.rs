//! Advice on the rules of an AuthorizationPolicy: what they ask for and the ports and mTLS of those they apply to.

use mesh::Protocol;
use policy::{Action, AuthorizationPolicy, MtlsMode, Rule};

use super::fields::{self, Field};
use super::{Advice, Code, Selected, name, unserved};
use crate::store::Store;

/// Rules that are looked at: the warnings of more would not fit anyway.
const RULES: usize = 64;

pub(super) fn advise(
    store: &Store,
    policy: &AuthorizationPolicy,
    selected: &[Selected],
    advice: &mut Vec<Advice>,
) {
    for (index, rule) in policy.rules.iter().enumerate().take(RULES) {
        let at = format!("rules[{index}]");
        let identity = identity(&policy.action, rule, selected);
        advice.extend(identity.map(|text| Code::PlaintextIdentity.says(format!("{at} {text}"))));
        let http = http(&policy.action, rule, selected);
        advice.extend(http.map(|text| Code::HttpOnTcp.says(format!("{at} {text}"))));
        let mut ports = fields::ports(rule).unwrap_or_default();
        ports.sort_unstable();
        ports.dedup();
        let unserved = ports.into_iter().filter_map(|port| unserved(store, port, selected));
        advice.extend(unserved.map(|text| Code::UnservedPort.says(format!("{at} ports: {text}"))));
    }
}

/// What plaintext callers meet: they have no identity, so a field matches none of them and its `not` twin all
/// (semantics §12.5).
fn identity(action: &Action, rule: &Rule, selected: &[Selected]) -> Option<String> {
    let (field, plaintext_matches) = asks_for_identity(rule)?;
    let ports = fields::ports(rule);
    let mode = |selected: &Selected| {
        let mtls = &selected.policy.mtls;
        let own: Vec<u16> = match &ports {
            Some(ports) => ports.clone(),
            None => selected.ports.iter().map(|port| port.port).collect(),
        };
        let modes: Vec<MtlsMode> =
            if own.is_empty() { vec![mtls.mode] } else { own.iter().map(|port| mtls.port(*port)).collect() };
        modes.into_iter().min()
    };
    let found = selected.iter().find_map(|selected| {
        mode(selected).filter(|mode| *mode != MtlsMode::Strict).map(|mode| (name(&selected.workload), mode))
    });
    let (name, mode) = found?;
    let mode = match mode {
        MtlsMode::Disable => "DISABLE",
        MtlsMode::Permissive | MtlsMode::Strict => "PERMISSIVE",
    };
    let meaning = match (action, plaintext_matches) {
        (Action::Allow, false) => "plaintext callers are never allowed by it",
        (Action::Allow, true) => "EVERY plaintext caller is allowed",
        (Action::Deny, false) => "plaintext callers are NOT denied",
        (Action::Deny, true) => "every plaintext caller is denied",
        (Action::Audit, false) => "plaintext callers are not audited",
        (Action::Audit, true) => "every plaintext caller is audited",
        // Refused: CUSTOM takes no identities.
        (Action::Custom { .. }, _) => return None,
    };
    Some(format!("{field}: {name} is {mode}: {meaning}; STRICT lets none in"))
}

/// The first field that only mTLS tells, and whether a caller without identity can match the rule.
fn asks_for_identity(rule: &Rule) -> Option<(String, bool)> {
    let conditions = fields::of_conditions(rule);
    let sources: Vec<Vec<Field<'_>>> = rule.from.iter().map(fields::of_source).collect();
    let everywhere: Vec<&Field<'_>> = conditions.iter().filter(|field| field.of_identity()).collect();
    let of = |fields: &[Field<'_>]| -> Option<(String, bool)> {
        let mut asked: Vec<&Field<'_>> = fields.iter().filter(|field| field.of_identity()).collect();
        asked.extend(&everywhere);
        // One field that wants an identity is enough to keep plaintext callers out.
        match asked.iter().find(|field| !field.values.any.is_empty()) {
            Some(field) => Some((field.name.to_owned(), false)),
            None => asked.first().map(|field| (negated(field.name), true)),
        }
    };
    if sources.is_empty() {
        return of(&[]);
    }
    // The widest of the sources decides what plaintext callers meet.
    let found: Option<Vec<(String, bool)>> = sources.iter().map(|source| of(source)).collect();
    let found = found?;
    found.iter().find(|(_, matches)| *matches).or(found.first()).cloned()
}

/// `notPrincipals` for `principals`; a condition's key stays what it is, with the list it is about.
fn negated(field: &str) -> String {
    if field.contains('.') {
        return format!("{field} notValues");
    }
    let mut letters = field.chars();
    let first = letters.next().map(|letter| letter.to_ascii_uppercase());
    format!("not{}{}", first.map(String::from).unwrap_or_default(), letters.as_str())
}

/// What a rule with HTTP fields means on a port that is not HTTP (semantics §4.4).
fn http(action: &Action, rule: &Rule, selected: &[Selected]) -> Option<String> {
    let asked = fields::of_rule(rule);
    let field = asked.iter().find(|field| field.of_http())?;
    let limited = fields::ports(rule);
    let concerned = |port: u16| limited.as_ref().is_none_or(|ports| ports.contains(&port));
    let of = |wanted: Protocol| {
        let mut ports = selected.iter().flat_map(|s| s.ports.iter().map(move |port| (s, port)));
        ports.find(|(_, port)| port.protocol == wanted && concerned(port.port))
    };
    let ((selected, port), kind) = match (of(Protocol::Tcp), of(Protocol::Auto)) {
        (Some(found), _) => (found, "is TCP"),
        (None, Some(found)) => (found, "declares no protocol, so for what is not HTTP"),
        (None, None) => return None,
    };
    let only_http = asked.iter().all(Field::of_http);
    let meaning = match action {
        Action::Allow => "the rule allows nothing",
        Action::Deny if only_http => "the rule denies everything",
        Action::Deny => "it denies more: HTTP fields are left out",
        Action::Audit => "it audits more: HTTP fields are left out",
        Action::Custom { .. } => "it asks about more: HTTP fields are left out",
    };
    let there = if kind == "is TCP" { ": there " } else { " " };
    Some(format!("{}: port {} of {} {kind}{there}{meaning}", field.name, port.port, name(&selected.workload)))
}
