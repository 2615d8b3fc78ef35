//! The objects as their source told them: where they come from and what is wrong with them. Holds no meaning of theirs.

use std::collections::BTreeMap;
use std::time::SystemTime;

use crds::{Finding, ObjectRef, Severity};
use policy::{Jwks, RequestAuthentication};

/// One object's story.
#[derive(Clone, Debug)]
pub(crate) struct Known {
    pub(crate) origin: String,
    pub(crate) findings: Vec<Finding>,
    /// The latest version could not be read, and the one before it is in force.
    pub(crate) kept: bool,
    /// Issuers (RequestAuthentication) whose keys would have to be fetched, which is not done yet: their tokens are
    /// refused.
    pub(crate) unfetched: Vec<String>,
    /// When a condition was first seen with its present status.
    pub(crate) since: BTreeMap<&'static str, (&'static str, SystemTime)>,
}

impl Known {
    pub(crate) fn has_errors(&self) -> bool {
        self.findings.iter().any(|finding| finding.severity == Severity::Error)
    }
}

/// A document that is not an object.
#[derive(Clone, Debug)]
pub(crate) struct Unreadable {
    pub(crate) finding: Finding,
    pub(crate) blocks_ready: bool,
}

#[derive(Debug, Default)]
pub(crate) struct Objects {
    pub(crate) known: BTreeMap<ObjectRef, Known>,
    /// By origin.
    pub(crate) unreadable: BTreeMap<String, Unreadable>,
}

impl Objects {
    pub(crate) fn applied(
        &mut self,
        object: ObjectRef,
        origin: String,
        findings: Vec<Finding>,
        unfetched: Vec<String>,
    ) {
        let since = self.known.remove(&object).map(|known| known.since).unwrap_or_default();
        self.known.insert(object, Known { origin, findings, kept: false, unfetched, since });
    }

    pub(crate) fn kept(&mut self, object: ObjectRef, origin: String, findings: Vec<Finding>) {
        let before = self.known.remove(&object);
        let (unfetched, since) = before.map(|known| (known.unfetched, known.since)).unwrap_or_default();
        self.known.insert(object, Known { origin, findings, kept: true, unfetched, since });
    }

    pub(crate) fn deleted(&mut self, object: &ObjectRef) {
        self.known.remove(object);
    }

    pub(crate) fn unreadable(&mut self, origin: String, finding: Option<Finding>, blocks_ready: bool) {
        match finding {
            Some(finding) => {
                self.unreadable.insert(origin, Unreadable { finding, blocks_ready });
            }
            None => {
                self.unreadable.remove(&origin);
            }
        }
    }

    /// What keeps the process from its first readiness.
    pub(crate) fn blocking(&self) -> impl Iterator<Item = String> + '_ {
        let blocking = self.unreadable.iter().filter(|(_, unreadable)| unreadable.blocks_ready);
        blocking.map(|(origin, unreadable)| format!("{origin}: {}", unreadable.finding.message))
    }
}

/// Until keys are fetched, a rule that needs it refuses its issuer's tokens (design decision 5). The issuers concerned.
pub(crate) fn unfetched(policy: &mut RequestAuthentication) -> Vec<String> {
    let mut issuers = Vec::new();
    for rule in &mut policy.rules {
        match rule.jwks {
            Jwks::Remote(_) => {
                rule.jwks = Jwks::RefuseAll;
                issuers.push(rule.issuer.clone());
            }
            Jwks::Inline(_) | Jwks::RefuseAll => {}
        }
    }
    issuers
}
