//! The stages that a request goes through, one line each. Tells what was decided; decides nothing.

use serde::Serialize;

use super::Stage;
use crate::effective::{ActionRules, EffectivePolicy};
use crate::evaluate::{Deciding, Decision, Protocol, Request};
use crate::model::{MtlsMode, ObjectName};

#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Step {
    pub stage: Stage,
    pub outcome: Outcome,
    /// In words, for people.
    pub detail: String,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub enum Outcome {
    Passed,
    Decided,
    /// It was decided before.
    NotReached,
}

/// Every stage up to the end, whether it was reached or not.
pub(super) fn steps(
    policy: &EffectivePolicy,
    request: &Request,
    decision: &Decision,
    decided: Stage,
) -> Vec<Step> {
    let chain = match request.protocol {
        Protocol::Http => policy.clone(),
        Protocol::Tcp => policy.tcp(),
    };
    let all =
        [Stage::Mtls, Stage::Custom, Stage::Jwt, Stage::Audit, Stage::Deny, Stage::Allow, Stage::Default];
    let step = |stage: Stage| {
        let outcome = match stage.cmp(&decided) {
            std::cmp::Ordering::Less => Outcome::Passed,
            std::cmp::Ordering::Equal => Outcome::Decided,
            std::cmp::Ordering::Greater => Outcome::NotReached,
        };
        Step { stage, outcome, detail: detail(stage, outcome, policy, &chain, request, decision) }
    };
    all.into_iter().map(step).collect()
}

fn detail(
    stage: Stage,
    outcome: Outcome,
    written: &EffectivePolicy,
    chain: &EffectivePolicy,
    request: &Request,
    decision: &Decision,
) -> String {
    if outcome == Outcome::NotReached {
        return "not reached".to_owned();
    }
    match stage {
        Stage::Handshake => String::new(),
        Stage::Mtls => mtls(chain, request),
        Stage::Custom => custom(chain, decision),
        Stage::Jwt => jwt(chain, request, decision),
        Stage::Audit => match decision.audited.len() {
            0 => rules(&written.audit, &chain.audit, "AUDIT", None),
            flagged => format!("flagged by {flagged} rules"),
        },
        Stage::Deny => {
            let matched = match &decision.deciding {
                Deciding::Deny(rule) => Some(rule.as_str()),
                _ => None,
            };
            rules(&written.deny, &chain.deny, "DENY", matched)
        }
        Stage::Allow => {
            let matched = match &decision.deciding {
                Deciding::Allow(rule) => Some(rule.as_str()),
                _ => None,
            };
            rules(&written.allow, &chain.allow, "ALLOW", matched)
        }
        Stage::Default => match decision.deciding {
            Deciding::DefaultDeny => "an ALLOW policy applies: what none of them allows is denied".to_owned(),
            _ => "no ALLOW policy applies: what nothing denies is allowed".to_owned(),
        },
    }
}

fn mtls(policy: &EffectivePolicy, request: &Request) -> String {
    let port = request.destination_port;
    let by =
        if policy.mtls.ports.contains_key(&port) { &policy.mtls.ports_set_by } else { &policy.mtls.set_by };
    let mode = match policy.mtls.port(port) {
        MtlsMode::Disable => "DISABLE",
        MtlsMode::Permissive => "PERMISSIVE",
        MtlsMode::Strict => "STRICT",
    };
    let by = by.as_ref().map_or("mesh default".to_owned(), ObjectName::to_string);
    let peer = match (policy.mtls.port(port), request.peer.is_empty()) {
        (MtlsMode::Disable, _) => "nobody has an identity here",
        (_, true) => "the peer has no verified identity",
        (_, false) => "the peer has a verified identity",
    };
    format!("{mode} ({by}), {peer}")
}

fn custom(policy: &EffectivePolicy, decision: &Decision) -> String {
    match (policy.custom.is_empty(), decision.consulted.is_empty()) {
        (true, _) => "no CUSTOM policy".to_owned(),
        (false, true) => "no rule matches: nobody is asked".to_owned(),
        (false, false) => format!("asks {}, taken to agree", decision.consulted.join(", ")),
    }
}

fn jwt(policy: &EffectivePolicy, request: &Request, decision: &Decision) -> String {
    match (&decision.deciding, &request.claims) {
        (Deciding::Token(refusal), _) => refusal.to_string(),
        _ if request.protocol == Protocol::Tcp => "tokens do not exist on TCP".to_owned(),
        (_, _) if policy.jwt.is_empty() => "no RequestAuthentication: no token is looked at".to_owned(),
        (_, None) => "no token: the request passes without one".to_owned(),
        (_, Some(_)) => "the token is accepted".to_owned(),
    }
}

fn rules(written: &ActionRules, chain: &ActionRules, action: &str, matched: Option<&str>) -> String {
    let Some(rules) = &chain.enforced else { return format!("no {action} policy") };
    if let Some(rule) = matched {
        return format!("{rule} matches");
    }
    let all = written.enforced.as_ref().map_or(0, Vec::len);
    let dropped = match all.saturating_sub(rules.len()) {
        0 => String::new(),
        dropped => format!(", {dropped} need HTTP"),
    };
    match all {
        1 => format!("1 rule{dropped}, it does not match"),
        all => format!("{all} rules{dropped}, none matches"),
    }
}
