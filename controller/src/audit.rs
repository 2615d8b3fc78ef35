//! What the owner of the state writes into the audit trail: every change of policy that it took over, what that means,
//! and who made it. Decides nothing.

use crds::{Finding, Object, ObjectRef, Severity};
use runtime::audit::{Event, PolicyState, Trail, digest};
use source::{Change, Version};
use xds::ads::server::{Peer, Proxy, Refused};

/// The trail, and what was last told of the source.
#[derive(Debug, Default)]
pub(crate) struct Audit {
    trail: Trail,
    /// The first list is complete: what comes now was changed now.
    listed: bool,
    frozen: bool,
}

impl Audit {
    pub(crate) fn new(trail: Trail) -> Self {
        Self { trail, listed: false, frozen: false }
    }

    /// Writes down what `change` says, if it is about policy.
    pub(crate) fn change(&mut self, change: &Change) {
        if !self.trail.is_enabled() {
            return;
        }
        match change {
            Change::Apply { object, origin, version, findings } => {
                let state = match is_closed(findings) {
                    true => PolicyState::Closed,
                    false => PolicyState::Accepted,
                };
                self.policy(
                    &object.object_ref(),
                    origin,
                    state,
                    version.as_ref(),
                    compiled(object),
                    findings,
                );
            }
            Change::Kept { object, origin, version, findings } => {
                self.policy(object, origin, PolicyState::Kept, version.as_ref(), None, findings);
            }
            Change::Delete(object) if object.kind.is_policy() => {
                self.trail.append(Event::PolicyDeleted { object: object.to_string() });
            }
            Change::Mesh(mesh) => self.trail.append(Event::MeshChanged {
                compiled: digest(mesh),
                trust_domain: mesh.trust_domain.to_string(),
                root_namespace: mesh.root_namespace.to_string(),
            }),
            Change::Synced => self.listed = true,
            Change::Frozen(reason) => self.frozen(reason.as_deref()),
            Change::Delete(_) | Change::Unreadable { .. } | Change::Unimplemented(_) => {}
        }
    }

    fn policy(
        &self,
        object: &ObjectRef,
        origin: &str,
        state: PolicyState,
        version: Option<&Version>,
        compiled: Option<String>,
        findings: &[Finding],
    ) {
        if !object.kind.is_policy() {
            return;
        }
        self.trail.append(Event::PolicyChanged {
            object: object.to_string(),
            origin: origin.to_owned(),
            state,
            uid: version.map(|version| version.uid.to_string()),
            generation: version.map(|version| version.generation),
            manager: version.and_then(|version| version.manager.as_deref()).map(str::to_owned),
            compiled,
            findings: findings.iter().map(ToString::to_string).collect(),
            at_start: !self.listed,
        });
    }

    fn frozen(&mut self, reason: Option<&str>) {
        match reason {
            Some(reason) => self.trail.append(Event::SourceFrozen { reason: reason.to_owned() }),
            None if self.frozen => self.trail.append(Event::SourceRestored {}),
            None => {}
        }
        self.frozen = reason.is_some();
    }
}

/// Writes down that a proxy was not let in. Being too early is no refusal.
pub(crate) fn stream_refused(trail: &Trail, proxy: &Proxy, refused: &Refused) {
    let reason = match refused {
        Refused::NotReady(_) => return,
        refused => refused.to_string(),
    };
    let Peer { address, identity, .. } = &proxy.peer;
    trail.append(Event::StreamRefused {
        peer: address.map(|address| address.to_string()).unwrap_or_default(),
        node: proxy.node.id.clone(),
        identity: identity.as_ref().map(ToString::to_string),
        reason,
    });
}

fn is_closed(findings: &[Finding]) -> bool {
    findings.iter().any(|finding| finding.severity == Severity::Error)
}

/// A digest of what a policy means, its age left out: what admission saw and what was taken over have the same.
pub(crate) fn compiled(object: &Object) -> Option<String> {
    let mut object = object.clone();
    match &mut object {
        Object::PeerAuthentication(policy) => policy.meta.created = 0,
        Object::RequestAuthentication(policy) => policy.meta.created = 0,
        Object::AuthorizationPolicy(policy) => policy.meta.created = 0,
        Object::Namespace { .. }
        | Object::ServiceAccount(_)
        | Object::Service(_)
        | Object::Workload(_)
        | Object::EndpointSlice(_) => return None,
    }
    Some(digest(&object))
}
