//! What the owner of the state writes into the audit trail: every change of policy that it took over, what that means,
//! and who made it. Decides nothing.

use std::collections::HashMap;

use crds::{Finding, Object, ObjectRef, Severity};
use runtime::audit::{Event, PolicyState, Trail, digest};
use source::{Change, Version};

/// The trail, and what was last told of the source.
#[derive(Debug, Default)]
pub(crate) struct Audit {
    trail: Trail,
    /// The first list is complete: what comes now was changed now.
    listed: bool,
    frozen: bool,
    /// What was last written of each policy, and of the mesh configuration: a change of status is none of policy.
    written: HashMap<Option<ObjectRef>, Event>,
}

impl Audit {
    pub(crate) fn new(trail: Trail) -> Self {
        Self { trail, ..Self::default() }
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
                self.written.remove(&Some(object.clone()));
                self.trail.append(Event::PolicyDeleted { object: object.to_string() });
            }
            Change::Mesh(mesh) => {
                let event = Event::MeshChanged {
                    compiled: digest(mesh),
                    trust_domain: mesh.trust_domain.to_string(),
                    root_namespace: mesh.root_namespace.to_string(),
                };
                self.once(None, event);
            }
            Change::Synced => self.listed = true,
            Change::Frozen(reason) => self.frozen(reason.as_deref()),
            Change::Delete(_) | Change::Unreadable { .. } | Change::Unimplemented(_) => {}
        }
    }

    fn policy(
        &mut self,
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
        let event = Event::PolicyChanged {
            object: object.to_string(),
            origin: origin.to_owned(),
            state,
            uid: version.map(|version| version.uid.to_string()),
            generation: version.map(|version| version.generation),
            manager: version.and_then(|version| version.manager.as_deref()).map(str::to_owned),
            compiled,
            findings: findings.iter().map(ToString::to_string).collect(),
            at_start: !self.listed,
        };
        self.once(Some(object.clone()), event);
    }

    /// Writes `event` unless it says what was written of its subject last.
    fn once(&mut self, subject: Option<ObjectRef>, event: Event) {
        let told = |event: &Event| match event.clone() {
            Event::PolicyChanged {
                object,
                origin,
                state,
                uid,
                generation,
                manager: _,
                compiled,
                findings,
                at_start: _,
            } => Event::PolicyChanged {
                object,
                origin,
                state,
                uid,
                generation,
                manager: None,
                compiled,
                findings,
                at_start: false,
            },
            other => other,
        };
        let new = told(&event);
        if self.written.get(&subject) != Some(&new) {
            self.trail.append(event);
            self.written.insert(subject, new);
        }
    }

    fn frozen(&mut self, reason: Option<&str>) {
        // Before the first list nothing is in force that could be frozen.
        match reason.filter(|_| self.listed) {
            Some(reason) => self.trail.append(Event::SourceFrozen { reason: reason.to_owned() }),
            None if self.frozen => self.trail.append(Event::SourceRestored {}),
            None => {}
        }
        self.frozen = self.listed && reason.is_some();
    }
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
        | Object::Sidecar(_)
        | Object::EndpointSlice(_)
        | Object::DestinationRule(_)
        | Object::Telemetry(_) => return None,
    }
    Some(digest(&object))
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use policy::MtlsMode;
    use runtime::audit::Options;

    use super::*;
    use crate::fixtures::peer;

    fn apply(mode: MtlsMode, generation: i64, manager: &str) -> Change {
        let version = Version { uid: "u".into(), generation, manager: Some(manager.into()) };
        Change::Apply {
            object: Box::new(Object::PeerAuthentication(peer("a", "p", None, mode))),
            origin: "kubernetes".to_owned(),
            version: Some(version),
            findings: Vec::new(),
        }
    }

    /// One line per change of policy: none for a status, none for a mesh configuration that is the same.
    #[test]
    fn every_change_is_written_once() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("audit");
        let trail = Trail::open(&path, Options::default()).unwrap();
        let mut audit = Audit::new(trail.clone());
        let mesh = || Change::Mesh(Box::default());
        for change in [
            Change::Frozen(Some("not listed yet".to_owned())),
            mesh(),
            apply(MtlsMode::Strict, 1, "kubectl"),
            Change::Frozen(None),
            Change::Synced,
            apply(MtlsMode::Strict, 1, "status-writer"),
            mesh(),
            apply(MtlsMode::Disable, 2, "kubectl"),
            Change::Frozen(Some("gone".to_owned())),
            Change::Frozen(None),
            Change::Delete(Object::PeerAuthentication(peer("a", "p", None, MtlsMode::Strict)).object_ref()),
            apply(MtlsMode::Disable, 2, "kubectl"),
        ] {
            audit.change(&change);
        }
        assert!(trail.flush(Duration::from_secs(10)));
        let text = std::fs::read_to_string(&path).unwrap();
        let lines = text.lines().map(|line| serde_json::from_str::<serde_json::Value>(line).unwrap());
        let kinds: Vec<String> = lines
            .map(|line| match line["generation"].as_i64() {
                Some(generation) => {
                    format!("{} {generation} {}", line["kind"].as_str().unwrap(), line["atStart"])
                }
                None => line["kind"].as_str().unwrap().to_owned(),
            })
            .collect();
        let expect = [
            "Genesis",
            "MeshChanged",
            "PolicyChanged 1 true",
            "PolicyChanged 2 false",
            "SourceFrozen",
            "SourceRestored",
            "PolicyDeleted",
            "PolicyChanged 2 false",
        ];
        assert_eq!(kinds, expect);
    }

    #[test]
    fn age_is_not_meaning() {
        let mut old = peer("a", "p", None, MtlsMode::Strict);
        let young = compiled(&Object::PeerAuthentication(old.clone()));
        old.meta.created = 7;
        assert_eq!(compiled(&Object::PeerAuthentication(old.clone())), young);
        old.mode = Some(MtlsMode::Disable);
        assert_ne!(compiled(&Object::PeerAuthentication(old)), young);
    }
}
