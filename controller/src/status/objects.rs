//! The objects as their source told them: where they come from and what is wrong with them. Holds no meaning of theirs.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::SystemTime;

use crds::{Finding, ObjectRef, Severity};
use source::{UnimplementedObjects, Version};

use crate::receipts::MAX_COMMITS;

/// How the keys of a RequestAuthentication stand.
#[derive(Clone, Debug, Default)]
pub(crate) struct KeysOf {
    /// Issuers whose tokens are refused because their keys are not there, each with the reason.
    pub(crate) missing: Vec<String>,
    /// Issuers whose keys are earlier ones, each with the reason.
    pub(crate) stale: Vec<String>,
}

/// One object's story.
#[derive(Clone, Debug)]
pub(crate) struct Known {
    pub(crate) origin: String,
    /// `None` for objects from files.
    pub(crate) version: Option<Version>,
    /// Commits that changed what is published of it, ascending; the last few.
    pub(crate) commits: Vec<u64>,
    pub(crate) findings: Vec<Finding>,
    /// The latest version could not be read, and the one before it is in force.
    pub(crate) kept: bool,
    /// Of a RequestAuthentication.
    pub(crate) keys: KeysOf,
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
    /// Kinds that have no effect here and of which there are objects, or may be, by group and kind.
    pub(crate) unimplemented: BTreeMap<(Arc<str>, Arc<str>), UnimplementedObjects>,
}

impl Objects {
    pub(crate) fn applied(
        &mut self,
        object: ObjectRef,
        origin: String,
        version: Option<Version>,
        findings: Vec<Finding>,
        keys: KeysOf,
    ) {
        let known = self.known.remove(&object);
        let (commits, since) = known.map(|known| (known.commits, known.since)).unwrap_or_default();
        let known = Known { origin, version, commits, findings, kept: false, keys, since };
        self.known.insert(object, known);
    }

    pub(crate) fn kept(
        &mut self,
        object: ObjectRef,
        origin: String,
        version: Option<Version>,
        findings: Vec<Finding>,
    ) {
        let before = self.known.remove(&object);
        let (commits, keys, since) =
            before.map(|known| (known.commits, known.keys, known.since)).unwrap_or_default();
        let known = Known { origin, version, commits, findings, kept: true, keys, since };
        self.known.insert(object, known);
    }

    /// How a RequestAuthentication's keys stand now.
    pub(crate) fn keys(&mut self, object: &ObjectRef, keys: KeysOf) {
        if let Some(known) = self.known.get_mut(object) {
            known.keys = keys;
        }
    }

    /// `commit` brought the object's present content.
    pub(crate) fn committed(&mut self, object: &ObjectRef, commit: u64) {
        let Some(known) = self.known.get_mut(object) else { return };
        if known.commits.last() != Some(&commit) {
            known.commits.push(commit);
        }
        let old = known.commits.len().saturating_sub(MAX_COMMITS);
        known.commits.drain(..old);
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

    pub(crate) fn unimplemented(&mut self, objects: UnimplementedObjects) {
        let key = (objects.group.clone(), objects.kind.clone());
        if objects.count == 0 && objects.error.is_none() {
            self.unimplemented.remove(&key);
        } else {
            let UnimplementedObjects { group, kind, count, names, error } = &objects;
            tracing::warn!(%group, %kind, count, ?names, ?error, "objects of this kind have no effect here");
            self.unimplemented.insert(key, objects);
        }
    }

    /// What keeps the process from its first readiness.
    pub(crate) fn blocking(&self) -> impl Iterator<Item = String> + '_ {
        let blocking = self.unreadable.iter().filter(|(_, unreadable)| unreadable.blocks_ready);
        blocking.map(|(origin, unreadable)| format!("{origin}: {}", unreadable.finding.message))
    }
}
