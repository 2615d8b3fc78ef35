//! The policies whose every change must also drain connections (design decision 3), and what counts as a change.
//! Drains nothing itself: the list becomes part of the filter chains.

use std::hash::{DefaultHasher, Hash, Hasher};

use super::mtls::Winners;
use crate::model::{AuthorizationPolicy, ObjectName, PeerAuthentication, RequestAuthentication};

/// Attached policies with `countersign.io/on-revoke: drain` and a digest of what they say, by name.
pub(super) fn list(
    peers: &Winners<'_>,
    requests: &[&RequestAuthentication],
    authorizations: &[&AuthorizationPolicy],
) -> Vec<(ObjectName, u64)> {
    let peers = peers.iter().filter(|p| p.meta.drain_on_revoke).map(|p| (p.meta.id.clone(), peer(p)));
    let requests =
        requests.iter().filter(|p| p.meta.drain_on_revoke).map(|p| (p.meta.id.clone(), request(p)));
    // A dry run decides nothing, so no connection is worth a cut.
    let authorizations = authorizations.iter().filter(|p| p.meta.drain_on_revoke && !p.meta.dry_run);
    let authorizations = authorizations.map(|p| (p.meta.id.clone(), authorization(p)));
    let mut all: Vec<_> = peers.chain(requests).chain(authorizations).collect();
    all.sort();
    all
}

fn peer(policy: &PeerAuthentication) -> u64 {
    let PeerAuthentication { meta: _, attachment: _, mode, ports } = policy;
    digest(&("PeerAuthentication", mode, ports))
}

fn request(policy: &RequestAuthentication) -> u64 {
    let RequestAuthentication { meta: _, attachment: _, rules } = policy;
    digest(&("RequestAuthentication", rules))
}

fn authorization(policy: &AuthorizationPolicy) -> u64 {
    let AuthorizationPolicy { meta: _, attachment: _, action, rules } = policy;
    digest(&("AuthorizationPolicy", action, rules))
}

/// The hasher's keys are fixed, so every replica of one build computes the same.
fn digest(content: &impl Hash) -> u64 {
    let mut hasher = DefaultHasher::new();
    content.hash(&mut hasher);
    hasher.finish()
}

#[cfg(test)]
mod tests;
