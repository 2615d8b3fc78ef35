//! Which policies apply to a workload, and what they amount to (semantics §2, §4.1, §5.1).
//!
//! Pure: the same set and workload give the same value, in whatever order the policies came. Nothing is remembered here,
//! no request is judged (that is [`crate::evaluate`]).

mod attach;
mod drain;
mod mtls;
mod rules;

use crate::effective::{ActionRules, EffectivePolicy};
use crate::model::{Action, AuthorizationPolicy, JwtRule, Meta, RequestAuthentication};
use crate::set::{NamespacePolicies, PolicySet, Scope, WorkloadKey};

pub use attach::GATEWAY_LABEL;

/// Everything in `set` that decides about traffic to `workload`, resolved.
pub fn resolve(set: &PolicySet, workload: &WorkloadKey) -> EffectivePolicy {
    let peers = mtls::Winners::of(set, workload);
    let requests = request_authentications(set, workload);
    let authorizations = authorization_policies(set, workload);
    let mut effective = EffectivePolicy {
        mtls: peers.resolve(),
        jwt: jwt_rules(&requests),
        drain: drain::list(&peers, &requests, &authorizations),
        ..EffectivePolicy::default()
    };
    for policy in authorizations {
        add(&mut effective, &set.scope, policy);
    }
    effective
}

/// Root namespace first, then the workload's own; the root namespace once if they are the same.
fn searched<'a>(set: &'a PolicySet, workload: &WorkloadKey) -> Vec<&'a NamespacePolicies> {
    let root = &set.scope.root_namespace;
    let own = (workload.namespace != *root).then(|| set.namespace(&workload.namespace)).flatten();
    set.namespace(root).into_iter().chain(own).collect()
}

fn in_order<'a, P>(policies: impl Iterator<Item = &'a P>, meta: impl Fn(&P) -> &Meta) -> Vec<&'a P> {
    let mut policies: Vec<&P> = policies.collect();
    policies.sort_by(|a, b| meta(a).order().cmp(&meta(b).order()));
    policies
}

/// Those attached, of the root namespace and then of the workload's own.
fn authorization_policies<'a>(set: &'a PolicySet, workload: &WorkloadKey) -> Vec<&'a AuthorizationPolicy> {
    let mut attached = Vec::new();
    for policies in searched(set, workload) {
        let here = policies.authorization.candidates(&workload.labels);
        attached.extend(in_order(here.filter(|p| p.attaches_to(&set.scope, workload)), |p| &p.meta));
    }
    attached
}

/// Those attached, of the workload's own namespace and then of the root namespace (semantics §2.2).
fn request_authentications<'a>(set: &'a PolicySet, workload: &WorkloadKey) -> Vec<&'a RequestAuthentication> {
    let mut attached = Vec::new();
    for policies in searched(set, workload).into_iter().rev() {
        let here = policies.request.candidates(&workload.labels);
        attached.extend(in_order(here.filter(|p| p.attaches_to(&set.scope, workload)), |p| &p.meta));
    }
    attached
}

/// Adds one attached policy's rules to the action they belong to.
fn add(effective: &mut EffectivePolicy, scope: &Scope, policy: &AuthorizationPolicy) {
    let dry_run = policy.meta.dry_run;
    let slot: &mut ActionRules = match &policy.action {
        Action::Allow => &mut effective.allow,
        Action::Deny => &mut effective.deny,
        Action::Audit => &mut effective.audit,
        // Admission refuses this pair; enforcing what its author called a dry run would be worse than nothing (§4.5).
        Action::Custom { .. } if dry_run => return,
        Action::Custom { provider } if scope.providers.contains(provider) => {
            effective.custom.entry(provider.clone()).or_default()
        }
        // Nobody can be asked: what the policy matches is denied (§4.8).
        Action::Custom { .. } => &mut effective.deny,
    };
    let rules = if dry_run { &mut slot.shadow } else { &mut slot.enforced };
    rules.get_or_insert_default().extend(rules::normalise(scope, policy));
}

/// Semantics §5.1: the union, sorted by issuer; equal issuers keep the order of their policies.
fn jwt_rules(attached: &[&RequestAuthentication]) -> Vec<JwtRule> {
    let mut rules: Vec<_> = attached.iter().flat_map(|p| p.rules.iter().cloned()).collect();
    rules.sort_by(|a, b| a.issuer.cmp(&b.issuer));
    rules
}

#[cfg(test)]
mod tests;
