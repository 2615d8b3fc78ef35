//! Decides what to read when, and what a file that is not there means. The rules exist because a directory is edited
//! while it is read (design decision 6: only an explicit delete removes policy):
//!
//! - A file is read when it is complete: closed after writing, renamed into place, or the same at two looks.
//! - A file that is gone is gone only if the directory is still there a moment later (`rm -r` takes the files first),
//!   and a longer moment later if it was the last one or if the directory has just come back.
//! - A file with nothing in it, where there were objects, is a deletion only if it is the same at the next look: many
//!   programs empty a file before they write it.
//! - A directory that is not there, cannot be read, or has been replaced by an empty one (a volume that was unmounted)
//!   freezes everything.
//!
//! It is driven from outside: it has no clock and no task of its own.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, Instant};

use super::catalog::{Catalog, Found};
use super::hints::Hints;
use super::mesh::MeshFile;
use super::tree::{self, Listing, Reading, Root, Stamp};
use crate::Change;

/// How long an unannounced change must stay the same before it counts.
const SETTLE: Duration = Duration::from_millis(50);
/// How long a file that is being written may stay open before it is read as it is.
const WRITING: Duration = Duration::from_secs(60);
/// How long a file that was emptied may take to be filled.
const EMPTY: Duration = Duration::from_millis(200);
/// How long a file must be missing, counted from the last one that went missing, and how long at most.
const GONE: Duration = Duration::from_millis(30);
const GONE_AT_LAST: Duration = Duration::from_secs(1);
const ALL_GONE: Duration = Duration::from_millis(200);
/// The same after the directory has come back, counted from the last file that appeared.
const GONE_AFTER_RETURN: Duration = Duration::from_secs(2);

#[derive(Debug)]
pub(super) struct Look {
    dir: PathBuf,
    mesh: MeshFile,
    catalog: Catalog,
    /// Every file that was read and not given up, with what it was when it was read.
    known: BTreeMap<PathBuf, Known>,
    /// Files to be read later.
    pending: BTreeMap<PathBuf, Pending>,
    /// The directory at the last good listing.
    root: Option<Root>,
    /// Why nothing changes, as told.
    frozen: Option<String>,
    /// When a file was last found to be missing.
    last_missing: Option<Instant>,
    /// The directory has come back and is perhaps still being filled; since when nothing new appeared.
    returning: Option<Instant>,
    /// Directories that could not be listed, as told.
    lost: BTreeMap<PathBuf, String>,
    synced: bool,
}

#[derive(Debug)]
struct Known {
    stamp: Option<Stamp>,
    missing: Option<Missing>,
}

/// Since when, and when that counts as deleted.
#[derive(Clone, Copy, Debug)]
struct Missing {
    since: Instant,
    due: Instant,
}

#[derive(Debug)]
struct Pending {
    due: Instant,
    why: Why,
}

#[derive(Debug, PartialEq)]
enum Why {
    /// Appeared, and may be about to be written.
    Created,
    /// Open for writing.
    Writing,
    /// Seen like this, without being told that it is complete.
    Seen(Stamp),
    /// Seen like this and empty.
    Empty(Stamp),
}

/// How far a listing believes that files it has not been told of are complete.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Trust {
    /// Something was renamed into place: all that came with it is.
    All,
    /// Those that were last written some time ago.
    Old,
    /// None: what differs is looked at again.
    None,
}

impl Look {
    pub(super) fn new(dir: PathBuf, mesh_config: Option<PathBuf>) -> Self {
        Self {
            dir,
            mesh: MeshFile::new(mesh_config),
            catalog: Catalog::new(mesh::MeshConfig::default().root_namespace),
            known: BTreeMap::new(),
            pending: BTreeMap::new(),
            root: None,
            frozen: None,
            last_missing: None,
            returning: None,
            lost: BTreeMap::new(),
            synced: false,
        }
    }

    /// The first look: everything.
    pub(super) fn first(&mut self, now: Instant) -> Vec<Change> {
        let mut changes = self.look_at_mesh();
        self.list(now, Trust::Old, &mut changes);
        self.finish(changes)
    }

    /// A look at what `hints` point to and at what is due.
    pub(super) fn look(&mut self, hints: Hints, now: Instant) -> Vec<Change> {
        let Hints { complete, created, writing, swapped, tree, removed, mesh } = hints;
        let mut changes = if mesh { self.look_at_mesh() } else { Vec::new() };
        for path in created {
            self.pending.entry(path).or_insert(Pending { due: now + SETTLE, why: Why::Created });
        }
        for path in writing {
            self.pending.insert(path, Pending { due: now + WRITING, why: Why::Writing });
        }
        let mut found = Vec::new();
        let mut list = tree || removed || swapped;
        for path in complete {
            self.pending.remove(&path);
            list |= self.read(&path, now, false, &mut found);
        }
        let due: Vec<PathBuf> =
            self.pending.iter().filter(|(_, p)| p.due <= now).map(|(p, _)| p.clone()).collect();
        for path in due {
            list |= self.read_pending(&path, now, &mut found);
        }
        changes.extend(self.catalog.update(found));
        list |= self.known.values().any(|known| known.missing.is_some());
        if list || self.frozen.is_some() {
            self.list(now, if swapped { Trust::All } else { Trust::None }, &mut changes);
        }
        self.finish(changes)
    }

    /// A look at everything, in case notifications are missing.
    pub(super) fn round(&mut self, now: Instant) -> Vec<Change> {
        let mut changes = self.look_at_mesh();
        self.list(now, Trust::None, &mut changes);
        self.finish(changes)
    }

    /// When to look again even if nothing is heard.
    pub(super) fn due(&self) -> Option<Instant> {
        let missing = self.known.values().filter_map(|known| Some(known.missing?.due));
        self.pending.values().map(|pending| pending.due).chain(missing).min()
    }

    /// Whether the directory is gone, so that it must be watched anew when it is back.
    pub(super) fn is_frozen(&self) -> bool {
        self.frozen.is_some()
    }

    /// The directory that is being followed.
    pub(super) fn root(&self) -> Option<Root> {
        self.root
    }

    fn look_at_mesh(&mut self) -> Vec<Change> {
        let mut changes = self.mesh.look();
        if let Some(config) = self.mesh.config() {
            let root_namespace: Arc<str> = config.root_namespace.clone();
            changes.extend(self.catalog.set_root_namespace(&root_namespace));
        }
        changes
    }

    /// `Synced`, once nothing is left to wait for.
    fn finish(&mut self, mut changes: Vec<Change>) -> Vec<Change> {
        let complete = self.frozen.is_none() && self.root.is_some() && self.pending.is_empty();
        if !self.synced && complete && self.mesh.config().is_some() {
            self.synced = true;
            self.catalog.start();
            changes.push(Change::Synced);
        }
        changes
    }

    fn list(&mut self, now: Instant, trust: Trust, changes: &mut Vec<Change>) {
        let listing = match tree::list(&self.dir, self.mesh.path()) {
            Ok(listing) => listing,
            Err(error) => return self.freeze(format!("{}: {error}", self.dir.display()), changes),
        };
        // An unmounted volume leaves an empty directory; a restored one is empty at first. To empty it on purpose, empty it
        // while it is there, or leave a file without objects in it.
        let replaced = self.frozen.is_some() || self.root.is_some_and(|root| root != listing.root);
        if replaced && listing.files.is_empty() && !self.known.is_empty() {
            return self
                .freeze(format!("{} has been replaced by an empty directory", self.dir.display()), changes);
        }
        let Listing { root, files, lost } = listing;
        self.root = Some(root);
        if self.frozen.is_some() {
            self.returning = Some(now);
        }
        let mut found = Vec::new();
        for (path, stamp) in &files {
            self.seen(path, *stamp, now, trust, &mut found);
        }
        self.missing(&files, &lost, now, &mut found);
        changes.extend(self.catalog.update(found));
        self.report_lost(lost, changes);
        if self.frozen.take().is_some() {
            changes.push(Change::Frozen(None));
        }
    }

    fn freeze(&mut self, reason: String, changes: &mut Vec<Change>) {
        if self.frozen.as_ref() != Some(&reason) {
            self.frozen = Some(reason.clone());
            changes.push(Change::Frozen(Some(reason)));
        }
        // Nobody has been seen to delete anything.
        self.known.values_mut().for_each(|known| known.missing = None);
        self.pending.clear();
    }

    /// A file is there.
    fn seen(
        &mut self,
        path: &Path,
        stamp: Stamp,
        now: Instant,
        trust: Trust,
        found: &mut Vec<(PathBuf, Found)>,
    ) {
        let known = self.known.get_mut(path);
        let appeared = known.is_none();
        if let Some(known) = known {
            known.missing = None;
            if known.stamp == Some(stamp) {
                return;
            }
        }
        if appeared && self.returning.is_some() {
            self.returning = Some(now);
        }
        if self.pending.contains_key(path) {
            return;
        }
        let same_file = self.known.get(path).and_then(|k| k.stamp).is_some_and(|old| old.same_file(&stamp));
        let complete = match trust {
            Trust::All => !same_file,
            Trust::Old => stamp.older_than(SETTLE),
            Trust::None => false,
        };
        if complete {
            // Missing or unstable by now: the next listing tells.
            self.read(path, now, false, found);
        } else {
            self.pending.insert(path.to_owned(), Pending { due: now + SETTLE, why: Why::Seen(stamp) });
        }
    }

    /// Files that were there and are not in the listing.
    fn missing(
        &mut self,
        files: &BTreeMap<PathBuf, Stamp>,
        lost: &[(PathBuf, std::io::Error)],
        now: Instant,
        found: &mut Vec<(PathBuf, Found)>,
    ) {
        let hidden = |path: &Path| lost.iter().any(|(directory, _)| path.starts_with(directory));
        let all_gone = self.known.keys().all(|path| !files.contains_key(path));
        let returned = self.returning;
        let there = |path: &Path| files.contains_key(path) || hidden(path);
        // As long as more of them go, it is perhaps all of them that are going.
        if self.known.iter().any(|(path, known)| known.missing.is_none() && !there(path)) {
            self.last_missing = Some(now);
        }
        let last_missing = self.last_missing.unwrap_or(now);
        let mut waiting = false;
        self.known.retain(|path, known| {
            if there(path) {
                return true;
            }
            let since = known.missing.map_or(now, |missing| missing.since);
            let due = match returned {
                Some(last) => since.max(last) + GONE_AFTER_RETURN,
                None if all_gone => last_missing + ALL_GONE,
                None => (last_missing + GONE).min(since + GONE_AT_LAST),
            };
            known.missing = Some(Missing { since, due });
            waiting |= now < due;
            if now >= due {
                found.push((path.clone(), Found::Gone));
            }
            now < due
        });
        if !waiting && self.returning.is_some_and(|last| now >= last + GONE_AFTER_RETURN) {
            self.returning = None;
        }
        // What was only announced and never read leaves nothing behind.
        let known = &self.known;
        self.pending.retain(|path, _| files.contains_key(path) || known.contains_key(path));
    }

    fn read_pending(&mut self, path: &Path, now: Instant, found: &mut Vec<(PathBuf, Found)>) -> bool {
        let Some(Pending { due: _, why }) = self.pending.remove(path) else { return false };
        match why {
            Why::Created | Why::Writing => self.read(path, now, false, found),
            Why::Seen(stamp) | Why::Empty(stamp) => {
                let empty = matches!(why, Why::Empty(_));
                let list = self.read(path, now, empty, found);
                // It changed since: not what was seen twice, so what was read is taken back and seen again.
                let read = self.known.get(path).and_then(|known| known.stamp);
                if !list
                    && read.is_some_and(|read| read != stamp)
                    && found.last().is_some_and(|(p, _)| p == path)
                {
                    found.pop();
                    self.known.get_mut(path).expect("it has just been read").stamp = None;
                    let why = Why::Seen(read.expect("checked above"));
                    self.pending.insert(path.to_owned(), Pending { due: now + SETTLE, why });
                }
                list
            }
        }
    }

    /// Reads a file that is taken to be complete. `true` if it is not there, so that a listing has to tell why.
    fn read(
        &mut self,
        path: &Path,
        now: Instant,
        may_be_empty: bool,
        found: &mut Vec<(PathBuf, Found)>,
    ) -> bool {
        let (stamp, content) = match tree::read(path) {
            Reading::Missing => return true,
            Reading::Unstable => {
                self.pending.insert(path.to_owned(), Pending { due: now + SETTLE, why: Why::Created });
                return false;
            }
            Reading::Failed(stamp, finding) => (stamp, Found::Failed(finding)),
            Reading::Text(stamp, text) => {
                let documents = crds::read(&text, &path.display().to_string());
                if documents.is_empty() && !may_be_empty && self.catalog.defines(path) {
                    self.pending
                        .insert(path.to_owned(), Pending { due: now + EMPTY, why: Why::Empty(stamp) });
                    return false;
                }
                (Some(stamp), Found::Documents(documents))
            }
        };
        self.known.insert(path.to_owned(), Known { stamp, missing: None });
        found.push((path.to_owned(), content));
        false
    }

    /// Subdirectories that could not be listed: what they held stays, and they are named.
    fn report_lost(&mut self, lost: Vec<(PathBuf, std::io::Error)>, changes: &mut Vec<Change>) {
        let lost: BTreeMap<PathBuf, String> =
            lost.into_iter().map(|(p, error)| (p, error.to_string())).collect();
        for (path, error) in &lost {
            if self.lost.get(path) != Some(error) {
                let finding = Some(crds::Finding::error(error.as_str()));
                let origin = path.display().to_string();
                changes.push(Change::Unreadable { origin, finding, blocks_ready: !self.synced });
            }
        }
        for path in self.lost.keys().filter(|path| !lost.contains_key(*path)) {
            let origin = path.display().to_string();
            changes.push(Change::Unreadable { origin, finding: None, blocks_ready: false });
        }
        self.lost = lost;
    }
}
