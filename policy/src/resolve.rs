//! Which policies apply to a workload, and what they amount to (semantics §2, §4.1, §5.1).
//! A pure function of its two arguments: no caching here, nothing remembered.

mod attach;
mod rules;

use std::collections::BTreeMap;
use std::hash::{DefaultHasher, Hash, Hasher};
use std::sync::Arc;

use crate::effective::{ActionRules, EffectiveMtls, EffectivePolicy};
use crate::model::{
    Action, Attachment, AuthorizationPolicy, MtlsMode, PeerAuthentication, RequestAuthentication,
};
use crate::set::{NamespacePolicies, PolicySet, WorkloadKey};

/// Everything in `set` that decides about traffic to `workload`, resolved.
pub fn resolve(set: &PolicySet, workload: &WorkloadKey) -> EffectivePolicy {
    let authorization = authorization_policies(set, workload);
    let mut effective = EffectivePolicy {
        mtls: peer_authentication(set, workload),
        jwt: jwt_rules(set, workload),
        drain: drain(&authorization),
        ..EffectivePolicy::default()
    };
    for policy in authorization {
        add(&mut effective, set, policy);
    }
    effective
}

/// Root namespace first, then the workload's own; the root namespace once if they are the same.
fn searched<'a>(set: &'a PolicySet, workload: &WorkloadKey) -> Vec<&'a NamespacePolicies> {
    let root = &set.scope.root_namespace;
    let own = (workload.namespace != *root).then(|| set.namespace(&workload.namespace)).flatten();
    set.namespace(root).into_iter().chain(own).collect()
}

fn authorization_policies<'a>(
    set: &'a PolicySet,
    workload: &WorkloadKey,
) -> Vec<&'a Arc<AuthorizationPolicy>> {
    let mut attached = Vec::new();
    for namespace in searched(set, workload) {
        let mut here: Vec<_> =
            namespace.authorization.values().filter(|p| p.attaches_to(&set.scope, workload)).collect();
        here.sort_by(|a, b| a.meta.order().cmp(&b.meta.order()));
        attached.extend(here);
    }
    attached
}

/// Adds one attached policy's rules to the action they belong to.
fn add(effective: &mut EffectivePolicy, set: &PolicySet, policy: &AuthorizationPolicy) {
    let dry_run = policy.meta.dry_run;
    let slot: &mut ActionRules = match &policy.action {
        Action::Allow => &mut effective.allow,
        Action::Deny => &mut effective.deny,
        Action::Audit => &mut effective.audit,
        // Admission refuses this pair; enforcing what its author called a dry run would be worse than nothing (§4.5).
        Action::Custom { .. } if dry_run => return,
        Action::Custom { provider } if set.scope.providers.contains(provider) => {
            effective.custom.entry(provider.clone()).or_default()
        }
        // Nobody can be asked: what the policy matches is denied (§4.8).
        Action::Custom { .. } => &mut effective.deny,
    };
    let rules = if dry_run { &mut slot.shadow } else { &mut slot.enforced };
    rules.get_or_insert_default().extend(rules::normalise(&set.scope, policy));
}

/// The content of attached policies that ask for a drain when they change.
fn drain(attached: &[&Arc<AuthorizationPolicy>]) -> Vec<(crate::model::ObjectName, u64)> {
    let digest = |policy: &AuthorizationPolicy| {
        // Fixed keys: the same in every process of one build.
        let mut hasher = DefaultHasher::new();
        policy.action.hash(&mut hasher);
        policy.rules.hash(&mut hasher);
        policy.meta.dry_run.hash(&mut hasher);
        hasher.finish()
    };
    attached.iter().filter(|p| p.meta.drain_on_revoke).map(|p| (p.meta.id.clone(), digest(p))).collect()
}

/// Semantics §2.3: mesh, namespace, workload; the oldest of each scope; UNSET inherits.
fn peer_authentication(set: &PolicySet, workload: &WorkloadKey) -> EffectiveMtls {
    let root = &set.scope.root_namespace;
    let wide = |namespace: &str| {
        let policies = set.namespace(namespace)?.peer.values();
        oldest(policies.filter(|p| p.attachment == Attachment::Namespace))
    };
    // A selector has no effect in the root namespace, not even for the pods that live there (§2.2).
    let own = (workload.namespace != *root).then_some(&workload.namespace);
    let narrow = own.and_then(|namespace| {
        let policies = set.namespace(namespace)?.peer.values();
        let selecting = |p: &&Arc<PeerAuthentication>| {
            p.attachment != Attachment::Namespace && p.attaches_to(&set.scope, workload)
        };
        oldest(policies.filter(selecting))
    });
    let mut mtls = EffectiveMtls::default();
    for policy in [wide(root), own.and_then(|n| wide(n)), narrow].into_iter().flatten() {
        if let Some(mode) = policy.mode {
            mtls.mode = mode;
            mtls.set_by = Some(policy.meta.id.clone());
        }
    }
    if let Some(policy) = narrow {
        mtls.ports = ports(policy, mtls.mode);
        mtls.ports_set_by = (!mtls.ports.is_empty()).then(|| policy.meta.id.clone());
    }
    mtls
}

fn ports(policy: &PeerAuthentication, inherited: MtlsMode) -> BTreeMap<u16, MtlsMode> {
    policy.ports.iter().map(|(port, mode)| (*port, mode.unwrap_or(inherited))).collect()
}

fn oldest<'a>(
    policies: impl Iterator<Item = &'a Arc<PeerAuthentication>>,
) -> Option<&'a Arc<PeerAuthentication>> {
    policies.min_by(|a, b| a.meta.order().cmp(&b.meta.order()))
}

/// Semantics §5.1: the union, sorted by issuer; equal issuers keep the order of their policies.
fn jwt_rules(set: &PolicySet, workload: &WorkloadKey) -> Vec<crate::model::JwtRule> {
    let mut attached: Vec<&Arc<RequestAuthentication>> = Vec::new();
    for namespace in searched(set, workload).into_iter().rev() {
        let mut here: Vec<_> =
            namespace.request.values().filter(|p| p.attaches_to(&set.scope, workload)).collect();
        here.sort_by(|a, b| a.meta.order().cmp(&b.meta.order()));
        attached.extend(here);
    }
    let mut rules: Vec<_> = attached.iter().flat_map(|p| p.rules.iter().cloned()).collect();
    rules.sort_by(|a, b| a.issuer.cmp(&b.issuer));
    rules
}

#[cfg(test)]
mod tests;
