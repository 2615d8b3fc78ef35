//! What dry-run policies would do, each on its own and all together. Never part of a verdict.

use serde::Serialize;

use super::{By, find};
use crate::effective::{ActionRules, EffectivePolicy, EffectiveRule};
use crate::evaluate::{Deciding, Decision, Request, Verdict, evaluate};
use crate::model::ObjectName;

#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Shadow {
    /// In the order of the effective policy, DENY first.
    pub policies: Vec<ShadowPolicy>,
    /// The decision if none of them were a dry run any more.
    pub if_enforced: IfEnforced,
}

/// One dry-run policy.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct ShadowPolicy {
    pub namespace: std::sync::Arc<str>,
    pub name: std::sync::Arc<str>,
    /// `ALLOW` or `DENY`.
    pub action: &'static str,
    /// The rule of it that matches the request.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub rule: Option<usize>,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct IfEnforced {
    pub verdict: Verdict,
    /// Whether that is another verdict than today's.
    pub changes: bool,
    pub reason: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub by: Option<By>,
}

pub(super) fn shadow(policy: &EffectivePolicy, request: &Request, decision: &Decision) -> Option<Shadow> {
    // Of connections and tokens no dry run has anything to say.
    if matches!(decision.deciding, Deciding::Mtls(_) | Deciding::Token(_)) {
        return None;
    }
    let EffectivePolicy { mtls: _, jwt: _, custom: _, audit: _, deny, allow, drain: _ } = policy;
    if deny.shadow.is_none() && allow.shadow.is_none() {
        return None;
    }
    let alone = |rules: &[EffectiveRule], deny: bool| {
        let rules = ActionRules { enforced: Some(rules.to_vec()), shadow: None };
        let bare = EffectivePolicy {
            mtls: policy.mtls.clone(),
            jwt: policy.jwt.clone(),
            ..EffectivePolicy::default()
        };
        let alone = match deny {
            true => EffectivePolicy { deny: rules, ..bare },
            false => EffectivePolicy { allow: rules, ..bare },
        };
        match evaluate(&alone, request).deciding {
            Deciding::Deny(rule) | Deciding::Allow(rule) => Some(rule),
            _ => None,
        }
    };
    let mut policies = Vec::new();
    for (action, rules) in [("DENY", &deny.shadow), ("ALLOW", &allow.shadow)] {
        for (id, rules) in by_policy(rules.as_deref().unwrap_or_default()) {
            let matched = alone(&rules, action == "DENY");
            let rule = matched.and_then(|name| find(Some(&rules), &name).map(|rule| rule.index));
            policies.push(ShadowPolicy { namespace: id.namespace, name: id.name, action, rule });
        }
    }
    Some(Shadow { policies, if_enforced: if_enforced(policy, request, decision.verdict) })
}

/// The rules of each policy, which stand together.
fn by_policy(rules: &[EffectiveRule]) -> Vec<(ObjectName, Vec<EffectiveRule>)> {
    let chunks = rules.chunk_by(|a, b| a.policy == b.policy);
    chunks.filter_map(|rules| Some((rules.first()?.policy.clone(), rules.to_vec()))).collect()
}

fn if_enforced(policy: &EffectivePolicy, request: &Request, today: Verdict) -> IfEnforced {
    let together = |rules: &ActionRules| {
        let ActionRules { enforced, shadow } = rules;
        let enforced = match (enforced.clone(), shadow.clone()) {
            (Some(enforced), Some(shadow)) => Some([enforced, shadow].concat()),
            (enforced, shadow) => enforced.or(shadow),
        };
        ActionRules { enforced, shadow: None }
    };
    let enforced =
        EffectivePolicy { deny: together(&policy.deny), allow: together(&policy.allow), ..policy.clone() };
    let decision = evaluate(&enforced, request);
    let by = match &decision.deciding {
        Deciding::Deny(name) => find(enforced.deny.enforced.as_deref(), name).map(By::rule),
        Deciding::Allow(name) => find(enforced.allow.enforced.as_deref(), name).map(By::rule),
        _ => None,
    };
    let verdict = decision.verdict;
    IfEnforced { verdict, changes: verdict != today, reason: decision.to_string(), by }
}
