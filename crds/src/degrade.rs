//! Closed values (design decision 5): what an object that cannot be understood is enforced as while there is no earlier
//! version of it. Whatever its author may have meant, the closed value admits no more.
//!
//! It does not judge what is wrong (the kinds' own modules do) and knows nothing of last good versions (`source` does).

use policy::{
    Action, Attachment, AuthorizationPolicy, Jwks, JwtRule, MtlsMode, PeerAuthentication, Presence,
    RequestAuthentication, Rule, TargetRef,
};

use crate::Reading;
use crate::finding::{Issue, Issues};
use crate::object::Object;
use crate::path::Segment;

/// ALLOW: a rule that was not read completely allows nothing, and neither does any if something outside the rules is
/// wrong, for a misread selector would carry readable rules to workloads they were not meant for. DENY: as converted,
/// that is without what could not be read. CUSTOM: denies what it matches. AUDIT and dry runs: nothing.
/// An unreadable action: denies all it selects.
pub(crate) fn authorization_policy(
    mut policy: AuthorizationPolicy,
    readable: bool,
    issues: &Issues,
) -> Reading {
    let scope_unknown = close_attachment(&mut policy.attachment, readable, issues);
    if !readable || issues.errors_below(&["spec", "action"]) {
        policy.action = Action::Deny;
        policy.rules = vec![Rule::default()];
    }
    match policy.action {
        Action::Allow => close_allow(&mut policy, issues),
        Action::Deny | Action::Custom { .. } => {
            policy.action = Action::Deny;
            // No rules were given, or what was given was no list of rules.
            if policy.rules.is_empty() {
                policy.rules.push(Rule::default());
            }
        }
        Action::Audit => policy.rules.clear(),
    }
    if scope_unknown {
        // Before every other of its kind: where order decides, the object whose place is unknown must not lose.
        policy.meta.created = i64::MIN;
    }
    Reading { object: Object::AuthorizationPolicy(policy), scope_unknown }
}

fn close_allow(policy: &mut AuthorizationPolicy, issues: &Issues) {
    let all = issues.errors().any(|issue| issue.path.index_after(&["spec", "rules"]).is_none());
    for (index, rule) in policy.rules.iter_mut().enumerate() {
        if all || issues.errors().any(|issue| issue.path.index_after(&["spec", "rules"]) == Some(index)) {
            *rule = Rule { never: true, ..Rule::default() };
        }
    }
}

/// STRICT, without exceptions.
pub(crate) fn peer_authentication(
    mut policy: PeerAuthentication,
    readable: bool,
    issues: &Issues,
) -> Reading {
    let scope_unknown = close_attachment(&mut policy.attachment, readable, issues);
    policy.mode = Some(MtlsMode::Strict);
    policy.ports.clear();
    if scope_unknown || issues.errors_below(&["metadata", "creationTimestamp"]) {
        policy.meta.created = i64::MIN;
    }
    Reading { object: Object::PeerAuthentication(policy), scope_unknown }
}

/// The issuers of the rules that were not read completely are refused; all of them if something else is wrong.
pub(crate) fn request_authentication(
    mut policy: RequestAuthentication,
    readable: bool,
    issues: &Issues,
) -> Reading {
    let scope_unknown = close_attachment(&mut policy.attachment, readable, issues);
    let all = issues.errors().any(|issue| issue.path.index_after(&["spec", "jwtRules"]).is_none());
    if all && policy.rules.is_empty() {
        policy.rules.push(refuse_everybody());
    }
    for (index, rule) in policy.rules.iter_mut().enumerate() {
        let broken = |issue: &Issue| issue.path.index_after(&["spec", "jwtRules"]) == Some(index);
        if all || issues.errors().any(broken) {
            rule.jwks = Jwks::RefuseAll;
        }
    }
    Reading { object: Object::RequestAuthentication(policy), scope_unknown }
}

/// Mesh mTLS for the host, whatever else was meant: its callers neither use plaintext nor believe a certificate of
/// somebody else. With an unreadable host that is every host that clients of its namespace call.
pub(crate) fn destination_rule(mut rule: mesh::DestinationRule, issues: &Issues) -> Reading {
    let unknown_host = rule.host.is_empty() || issues.errors_below(&["spec", "host"]);
    if unknown_host {
        rule.host = "*".into();
    }
    if issues.errors_below(&["spec", "exportTo"]) {
        rule.export_to = None;
    }
    // A field that is not known may have been a misspelt one of these.
    let unknown_field = issues.errors().any(|issue| match issue.path.0.as_slice() {
        [Segment::Key(spec), Segment::Key(field)] => {
            spec == "spec" && !DESTINATION_RULE.contains(&field.as_str())
        }
        [Segment::Key(_)] | [] => true,
        _ => false,
    });
    if unknown_field || issues.errors_below(&["spec", "workloadSelector"]) {
        rule.selector = None;
    }
    // Before every other of its kind: where order decides, it must not lose.
    rule.created = i64::MIN;
    let subject_alt_names = match rule.policy.take().and_then(|policy| policy.tls) {
        Some(mesh::ClientTls::IstioMutual { sni: _, subject_alt_names })
            if !issues.errors_below(&["spec", "trafficPolicy", "tls"]) =>
        {
            subject_alt_names
        }
        _ => Vec::new(),
    };
    let tls = mesh::ClientTls::IstioMutual { sni: String::new(), subject_alt_names };
    rule.policy = Some(mesh::TrafficPolicy { tls: Some(tls), ports: std::collections::BTreeMap::new() });
    rule.subsets.clear();
    Reading { object: Object::DestinationRule(rule), scope_unknown: unknown_host }
}

/// The fields of its spec.
const DESTINATION_RULE: [&str; 5] = ["host", "trafficPolicy", "subsets", "exportTo", "workloadSelector"];

/// Refuses every token at the default places, whoever issued it.
fn refuse_everybody() -> JwtRule {
    JwtRule {
        issuer: String::new(),
        audiences: Vec::new(),
        jwks: Jwks::RefuseAll,
        from_headers: Vec::new(),
        from_params: Vec::new(),
        from_cookies: Vec::new(),
        output_payload_to_header: None,
        forward_original_token: false,
        output_claim_to_headers: Vec::new(),
        space_delimited_claims: Vec::new(),
        timeout_ms: crate::request_authentication::DEFAULT_TIMEOUT_MS,
        presence: Presence::Optional,
    }
}

/// An unreadable selector is read as the object's namespace; `true` if that happened. References that cannot be read
/// stay references: a policy that targets something must never fall back to everything (`authorization_policy.proto`).
fn close_attachment(attachment: &mut Attachment, readable: bool, issues: &Issues) -> bool {
    let both = issues.errors().any(|i| i.path.starts_with(&["spec"]) && i.path.0.len() == 1);
    if !readable || both || issues.errors_below(&["spec", "selector"]) {
        *attachment = Attachment::Namespace;
        return true;
    }
    let targets = issues.errors_below(&["spec", "targetRef"]) || issues.errors_below(&["spec", "targetRefs"]);
    match attachment {
        Attachment::Namespace if targets => {
            let unreadable = TargetRef { group: String::new(), kind: String::new(), name: String::new() };
            *attachment = Attachment::Targets(vec![unreadable]);
            false
        }
        // A field that is not known may have been a misspelt selector.
        Attachment::Namespace => issues.errors().any(|i| match i.path.0.as_slice() {
            [Segment::Key(spec), Segment::Key(field)] => {
                spec == "spec" && !KNOWN_FIELDS.contains(&field.as_str())
            }
            _ => false,
        }),
        Attachment::Labels(_) | Attachment::Targets(_) => false,
    }
}

/// The other fields of the three specs.
const KNOWN_FIELDS: [&str; 6] = ["action", "provider", "rules", "mtls", "portLevelMtls", "jwtRules"];

#[cfg(test)]
mod laws;
#[cfg(test)]
mod tests;
