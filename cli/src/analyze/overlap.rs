//! Rules that change nothing because of others: of the same policy, or of another one that applies wherever theirs does,
//! whatever workloads there are. What is said holds (`policy::covers` is sound); not everything is found.

use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;

use policy::{
    Action, ActionRules, Attachment, AuthorizationPolicy, EffectivePolicy, EffectiveRule, PolicySet,
    RequestAuthentication, WorkloadKey, covers, never_matches, resolve,
};

use super::code::Code;
use super::tokens;

/// Rules of one action in one place that are compared with one another.
const RULES: usize = 400;

/// What applies wherever a policy does, by what the policy is attached to.
#[derive(Debug, Default)]
pub(super) struct Overlaps(HashMap<WorkloadKey, Arc<EffectivePolicy>>);

impl Overlaps {
    /// What becomes of the rules of `policy`.
    pub(super) fn rules(&mut self, set: &PolicySet, policy: &AuthorizationPolicy) -> Vec<(Code, String)> {
        let id = &policy.meta.id;
        let named = set.namespace(&id.namespace).and_then(|all| all.authorization.get(&id.name));
        // Of two objects of one name only the last is in force.
        if named.is_none_or(|known| **known != *policy) {
            return Vec::new();
        }
        let Some(here) = self.around(set, &id.namespace, &policy.attachment) else { return Vec::new() };
        let EffectivePolicy { mtls: _, jwt: _, custom, audit, deny, allow, drain: _ } = &*here;
        let denied = (policy.action == Action::Allow).then_some(deny);
        let same = match &policy.action {
            Action::Allow => allow,
            Action::Deny => deny,
            Action::Audit => audit,
            // Without its provider it denies.
            Action::Custom { provider } => custom.get(provider).unwrap_or(deny),
        };
        of(policy, same, denied)
    }

    /// What becomes of the tokens that `policy` requires.
    pub(super) fn tokens(&mut self, set: &PolicySet, policy: &RequestAuthentication) -> Vec<(Code, String)> {
        let here = self.around(set, &policy.meta.id.namespace, &policy.attachment);
        here.map_or_else(Vec::new, |here| tokens::look(policy, &here.jwt))
    }

    /// A workload that has just what the selector asks for has just the policies that all selected ones have.
    fn around(
        &mut self,
        set: &PolicySet,
        namespace: &Arc<str>,
        attachment: &Attachment,
    ) -> Option<Arc<EffectivePolicy>> {
        let labels = match attachment {
            Attachment::Namespace => BTreeMap::new(),
            Attachment::Labels(labels) => labels.clone(),
            Attachment::Targets(_) => return None,
        };
        // What the root namespace's policies select is anywhere; only its own are there for sure.
        let root = *namespace == set.scope.root_namespace;
        let namespace = if root { "".into() } else { namespace.clone() };
        let key = WorkloadKey { namespace, labels: Arc::new(labels) };
        Some(self.0.entry(key.clone()).or_insert_with(|| Arc::new(resolve(set, &key))).clone())
    }
}

fn of(policy: &AuthorizationPolicy, same: &ActionRules, denied: Option<&ActionRules>) -> Vec<(Code, String)> {
    let dry = policy.meta.dry_run;
    let enforced = same.enforced.iter().flatten();
    let others: Vec<&EffectiveRule> =
        enforced.chain(same.shadow.iter().flatten().filter(|_| dry)).take(RULES).collect();
    let denied: Vec<&EffectiveRule> =
        denied.and_then(|rules| rules.enforced.as_ref()).into_iter().flatten().take(RULES).collect();
    let one = |(at, rule): (usize, &&EffectiveRule)| {
        let index = rule.index;
        // One that could not be read never matches either, and that was said.
        if policy.rules.get(index).is_some_and(|written| !written.never) && never_matches(rule) {
            let text = format!("rules[{index}] matches no request: what it asks for excludes itself");
            return Some((Code::NeverMatches, text));
        }
        if let Some(by) = denied.iter().find(|by| covers(by, rule)) {
            let by = named(policy, by);
            let text = format!("rules[{index}] allows nothing: {by} denies all that it matches");
            return Some((Code::Denied, text));
        }
        let wider = |(other, wide): &(usize, &&EffectiveRule)| {
            *other != at && covers(wide, rule) && (*other < at || !covers(rule, wide))
        };
        let (_, wide) = others.iter().enumerate().find(wider)?;
        let by = named(policy, wide);
        Some(if covers(rule, wide) {
            (Code::Duplicate, format!("rules[{index}] is the same as {by}"))
        } else {
            (Code::Shadowed, format!("rules[{index}] changes nothing: {by} matches all that it does"))
        })
    };
    let own = |(_, rule): &(usize, &&EffectiveRule)| rule.policy == policy.meta.id;
    others.iter().enumerate().filter(own).filter_map(one).collect()
}

/// `rules[N]` of the same policy, `NAMESPACE/NAME[N]` of another.
fn named(policy: &AuthorizationPolicy, rule: &EffectiveRule) -> String {
    if rule.policy == policy.meta.id {
        return format!("rules[{}]", rule.index);
    }
    format!("{}[{}]", rule.policy, rule.index)
}
