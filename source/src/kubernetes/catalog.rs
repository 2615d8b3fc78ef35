//! What the API server has told, and what follows from it: the pure half of this source. Given what the watches saw, it
//! answers with the changes. It asks nobody, and the time is what it is given.
//!
//! What it holds on to (design decision 6): an object goes only when its deletion was seen under the definition that it
//! lives under, or when a full list under that same definition lacks it. Objects whose definition was uninstalled stay.

mod mesh_config;
mod readiness;

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use crds::{Content, Finding, Kind, ObjectRef, Parsed};
use tokio::time::Instant;

use super::counters::{Counters, Happened};
use crate::standing::{Standing, Value, first_error};
use crate::{Change, UnimplementedObjects, Version};
use mesh_config::MeshConfigState;
pub(super) use mesh_config::MeshText;
pub(super) use readiness::Feed;
use readiness::Readiness;

/// `origin` of every object from here: its name says the rest.
const ORIGIN: &str = "kubernetes";

/// What a watch saw.
#[derive(Debug)]
pub(super) enum Tell {
    /// A full list of a kind begins.
    Begins(Kind),
    Seen(Box<Seen>),
    /// Its deletion was seen, and its definition is there.
    Deleted(ObjectRef),
    /// The full list is complete, under the definition of that UID (`None` for kinds that are built in).
    Listed {
        kind: Kind,
        definition: Option<Arc<str>>,
    },
    /// There is no definition of the kind, or it is going: why.
    Undefined {
        kind: Kind,
        reason: String,
    },
    Mesh(MeshText),
    /// The first complete list of what is not objects of a kind.
    Complete(Feed),
    Live(Feed),
    Lost(Feed, String),
    Unimplemented(UnimplementedObjects),
}

/// An object as it is now.
#[derive(Debug)]
pub(super) struct Seen {
    pub(super) object: ObjectRef,
    /// Equal content has an equal digest; of two contents, they differ.
    pub(super) digest: u64,
    pub(super) version: Option<Version>,
    pub(super) definition: Option<Arc<str>>,
    /// It is meant for this revision; another one's is not there at all.
    pub(super) ours: bool,
    pub(super) parsed: Parsed,
}

/// An object that has been told of.
#[derive(Debug)]
struct Entry {
    digest: u64,
    version: Option<Version>,
    /// UID of the definition that it was last seen under.
    definition: Option<Arc<str>>,
    /// A good version has been told.
    good: bool,
    /// The API server has it no more, but nobody deleted it.
    orphan: bool,
    /// The report about it, as told, and whether it is one while its namespace is the root namespace.
    reported: bool,
    /// What it applies to is unknown, and there is no good version.
    scope_unknown: Option<Finding>,
}

impl Entry {
    /// Its definition went, and with it the object: nobody has deleted it.
    fn orphan(&mut self, object: &ObjectRef, changes: &mut Vec<Change>) {
        if std::mem::replace(&mut self.orphan, true) {
            return;
        }
        changes.push(Change::Kept {
            object: object.clone(),
            origin: ORIGIN.to_owned(),
            version: self.version.clone(),
            findings: vec![Finding::error(
                "the definition of its kind was uninstalled: it stays in force until it is created again and deleted, or \
                 this process restarts",
            )],
        });
    }
}

/// See the module's documentation.
#[derive(Debug)]
pub(super) struct Catalog {
    mesh: MeshConfigState,
    entries: BTreeMap<Kind, BTreeMap<ObjectRef, Entry>>,
    /// Lists that are under way: what they held so far.
    listing: BTreeMap<Kind, BTreeSet<ObjectRef>>,
    readiness: Readiness,
    counters: Arc<Counters>,
}

impl Catalog {
    /// `mesh`: where the mesh configuration comes from, for people.
    pub(super) fn new(mesh: String, counters: Arc<Counters>) -> Self {
        Self {
            mesh: MeshConfigState::new(mesh),
            entries: BTreeMap::new(),
            listing: BTreeMap::new(),
            readiness: Readiness::new(),
            counters,
        }
    }

    /// Takes over what a watch saw.
    pub(super) fn take(&mut self, tell: Tell, now: Instant, changes: &mut Vec<Change>) {
        match tell {
            Tell::Begins(kind) => drop(self.listing.insert(kind, BTreeSet::new())),
            Tell::Seen(seen) => self.seen(*seen, changes),
            Tell::Deleted(object) => {
                if let Some(listing) = self.listing.get_mut(&object.kind) {
                    listing.remove(&object);
                }
                self.delete(object, changes);
            }
            Tell::Listed { kind, definition } => {
                self.listed(kind, definition.as_deref(), changes);
                self.readiness.complete(Feed::Kind(kind));
            }
            Tell::Undefined { kind, reason } => self.undefined(kind, reason, changes),
            Tell::Mesh(text) => self.mesh(text, changes),
            Tell::Complete(feed) => self.readiness.complete(feed),
            Tell::Live(feed) => self.readiness.live(feed),
            Tell::Lost(feed, error) => {
                if let Feed::Kind(kind) = feed {
                    self.listing.remove(&kind);
                }
                self.readiness.lost(feed, error, now);
            }
            Tell::Unimplemented(objects) => {
                self.counters.set_unimplemented(&objects);
                changes.push(Change::Unimplemented(objects));
            }
        }
        self.tick(now, changes);
    }

    /// Tells what is due.
    pub(super) fn tick(&mut self, now: Instant, changes: &mut Vec<Change>) {
        changes.extend(self.readiness.settle(now));
    }

    /// When to [`tick`](Self::tick) even if nothing is seen.
    pub(super) fn due(&self) -> Option<Instant> {
        self.readiness.due()
    }

    fn seen(&mut self, seen: Seen, changes: &mut Vec<Change>) {
        let Seen { object, digest, version, definition, ours, parsed } = seen;
        if !ours {
            return self.delete(object, changes);
        }
        if let Some(listing) = self.listing.get_mut(&object.kind) {
            listing.insert(object.clone());
        }
        let entries = self.entries.entry(object.kind).or_default();
        let old = entries.get_mut(&object);
        if let Some(old) = old
            && old.digest == digest
            && old.version == version
            && !old.orphan
        {
            old.definition = definition;
            return;
        }
        let old = entries.remove(&object);
        let happened = if old.is_some() { Happened::Update } else { Happened::Add };
        self.counters.happened(object.kind, happened);
        // What was deleted and created again while nobody looked is another object.
        let same = |old: &Entry| old.version.as_ref().map(|v| &v.uid) == version.as_ref().map(|v| &v.uid);
        let good = old.as_ref().is_some_and(|old| old.good && same(old));
        let mut reported = old.as_ref().is_some_and(|old| old.reported);
        let Parsed { content, findings } = parsed;
        let value = match content {
            Content::Object(object) => Value::Good(Arc::new(*object)),
            Content::Invalid { object: _, closed } => Value::Bad(closed),
            Content::Unreadable | Content::Unsupported => Value::Bad(None),
        };
        let unknown = |closed: &crds::Closed| closed.scope_unknown && !good;
        let scope_unknown = match &value {
            Value::Bad(Some(closed)) if unknown(closed) => Some(first_error(&findings)),
            _ => None,
        };
        let blocks = value.blocks(good, &object, self.mesh.root_namespace());
        report(&object, blocks.then(|| first_error(&findings)), &mut reported, changes);
        let origin = ORIGIN.to_owned();
        changes.push(match value.standing(good) {
            Standing::Applied(object) => {
                let object = Box::new(Arc::unwrap_or_clone(object));
                Change::Apply { object, origin, version: version.clone(), findings }
            }
            Standing::Kept => {
                Change::Kept { object: object.clone(), origin, version: version.clone(), findings }
            }
        });
        let good = good || matches!(value, Value::Good(_));
        let entry = Entry { digest, version, definition, good, orphan: false, reported, scope_unknown };
        let orphaned = old.is_some_and(|old| old.orphan);
        self.entries.entry(object.kind).or_default().insert(object, entry);
        if orphaned {
            self.count_orphans();
        }
    }

    fn delete(&mut self, object: ObjectRef, changes: &mut Vec<Change>) {
        let Some(mut old) = self.entries.get_mut(&object.kind).and_then(|entries| entries.remove(&object))
        else {
            return;
        };
        self.counters.happened(object.kind, Happened::Delete);
        report(&object, None, &mut old.reported, changes);
        changes.push(Change::Delete(object));
    }

    /// What the full list does not hold is gone if it lived under the definition of that list.
    fn listed(&mut self, kind: Kind, definition: Option<&str>, changes: &mut Vec<Change>) {
        let Some(listed) = self.listing.remove(&kind) else { return };
        let mut gone = Vec::new();
        for (object, entry) in self.entries.entry(kind).or_default() {
            if listed.contains(object) {
                continue;
            }
            if entry.definition.as_deref() == definition && !entry.orphan {
                gone.push(object.clone());
            } else {
                entry.orphan(object, changes);
            }
        }
        for object in gone {
            self.delete(object, changes);
        }
        self.count_orphans();
    }

    fn count_orphans(&self) {
        let entries = self.entries.values().flat_map(BTreeMap::values);
        self.counters.set_orphans(entries.filter(|entry| entry.orphan).count());
    }

    /// Policies without a definition are not "no policies". WorkloadEntries may well be absent.
    fn undefined(&mut self, kind: Kind, reason: String, changes: &mut Vec<Change>) {
        self.listing.remove(&kind);
        let entries = self.entries.entry(kind).or_default();
        let before = changes.len();
        for (object, entry) in entries.iter_mut() {
            entry.orphan(object, changes);
        }
        if changes.len() > before {
            let kept = entries.len();
            tracing::error!(%kind, kept, %reason, "the definition of the kind is gone; its objects stay in force");
            self.counters.definitions_lost.inc();
            self.count_orphans();
        }
        let feed = Feed::Kind(kind);
        if kind.is_policy() {
            self.readiness.undefined(feed, reason);
        } else {
            self.readiness.complete(feed);
            self.readiness.live(feed);
        }
    }

    fn mesh(&mut self, text: MeshText, changes: &mut Vec<Change>) {
        let before = self.mesh.root_namespace().clone();
        changes.extend(self.mesh.take(text));
        if self.mesh.known() {
            self.readiness.complete(Feed::Mesh);
        }
        let root = self.mesh.root_namespace().clone();
        if root == before {
            return;
        }
        for (object, entry) in self.entries.values_mut().flatten() {
            if let Some(finding) = &entry.scope_unknown {
                let blocks = *object.id.namespace == *root;
                report(object, blocks.then(|| finding.clone()), &mut entry.reported, changes);
            }
        }
    }
}

/// Tells, or takes back, that readiness waits for an object.
fn report(object: &ObjectRef, finding: Option<Finding>, reported: &mut bool, changes: &mut Vec<Change>) {
    let blocks_ready = finding.is_some();
    if blocks_ready || *reported {
        changes.push(Change::Unreadable { origin: format!("{ORIGIN}: {object}"), finding, blocks_ready });
    }
    *reported = blocks_ready;
}

#[cfg(test)]
mod tests;
