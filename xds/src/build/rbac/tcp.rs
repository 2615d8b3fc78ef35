//! What of a policy a TCP chain can enforce (semantics §4.4).

use policy::effective::{ActionRules, Clause, EffectivePolicy, EffectiveRule};

/// The policy as a TCP chain sees it: an ALLOW rule that needs an HTTP attribute is gone (narrower), any other rule
/// loses the fields that need one (so it matches more). No tokens are looked at.
pub(crate) fn tcp_view(policy: &EffectivePolicy) -> EffectivePolicy {
    let EffectivePolicy { mtls, jwt: _, custom, audit, deny, allow, drain } = policy;
    EffectivePolicy {
        mtls: mtls.clone(),
        jwt: Vec::new(),
        custom: custom.iter().map(|(name, rules)| (name.clone(), view(rules, widen))).collect(),
        audit: view(audit, widen),
        deny: view(deny, widen),
        allow: view(allow, narrow),
        drain: drain.clone(),
    }
}

fn view(rules: &ActionRules, edit: impl Fn(&EffectiveRule) -> Option<EffectiveRule>) -> ActionRules {
    let ActionRules { enforced, shadow } = rules;
    let each = |rules: &Option<Vec<EffectiveRule>>| {
        rules.as_ref().map(|rules| rules.iter().filter_map(&edit).collect())
    };
    ActionRules { enforced: each(enforced), shadow: each(shadow) }
}

fn http_only(clause: &Clause) -> bool {
    clause.any.iter().chain(&clause.none).any(policy::Atom::http_only)
}

fn narrow(rule: &EffectiveRule) -> Option<EffectiveRule> {
    let mut clauses = rule.permissions.iter().chain(&rule.principals).flatten();
    (!clauses.any(http_only)).then(|| rule.clone())
}

#[expect(clippy::unnecessary_wraps, reason = "same shape as narrow")]
fn widen(rule: &EffectiveRule) -> Option<EffectiveRule> {
    let mut rule = rule.clone();
    for branch in rule.permissions.iter_mut().chain(&mut rule.principals) {
        branch.retain(|clause| !http_only(clause));
    }
    Some(rule)
}
