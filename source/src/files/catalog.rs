//! What every file defines, and what of that has been told: the pure half of the file source. Given what was found in
//! some files, it answers with the changes. It opens no files and knows no time.
//!
//! For each object there is one winner among its definitions (the first by path, then by place in the file), and its
//! last good version, which outlives every definition that cannot be read (design decisions 5 and 6).

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use crds::{Content, Document, Finding, Object, ObjectRef};

use crate::Change;
use crate::standing::{Standing, Value, first_error};

/// What a look at one file found.
#[derive(Debug)]
pub(super) enum Found {
    Documents(Vec<Document>),
    /// It is there and cannot be read.
    Failed(Finding),
    Gone,
}

/// See the module's documentation.
#[derive(Debug)]
pub(super) struct Catalog {
    /// The mesh's root namespace: an object there whose scope is unknown reaches the whole mesh.
    root_namespace: Arc<str>,
    /// Whether the first list is complete; what is unreadable before that blocks readiness.
    started: bool,
    /// By path, in which order the first definition wins.
    files: BTreeMap<PathBuf, File>,
    /// Which files define an object.
    defined_in: BTreeMap<ObjectRef, BTreeSet<PathBuf>>,
    /// Every object that has been told of and not been deleted.
    told: BTreeMap<ObjectRef, Told>,
    /// Files that held something unreadable at start and still do.
    blocking: BTreeSet<PathBuf>,
    /// The reports in force, by the file they are about.
    reports: BTreeMap<PathBuf, Reports>,
}

/// `Change::Unreadable` as told, by origin.
type Reports = BTreeMap<String, (Finding, bool)>;

/// What one file says.
#[derive(Debug, Default)]
struct File {
    definitions: BTreeMap<ObjectRef, Vec<Definition>>,
    /// Documents that are no objects, with their origins; `true` where an object may hide there.
    unreadable: Vec<(String, Finding, bool)>,
}

#[derive(Clone, Debug)]
struct Definition {
    origin: String,
    value: Value,
    findings: Vec<Finding>,
}

/// What has been told of one object.
#[derive(Debug)]
struct Told {
    /// The last good version told, whatever came after it.
    good: Option<Arc<Object>>,
    last: Last,
    /// Reports about other definitions of it and about its scope, by origin.
    reports: Reports,
}

#[derive(Debug, PartialEq)]
enum Last {
    Applied { object: Arc<Object>, path: PathBuf, findings: Vec<Finding> },
    Kept { findings: Vec<Finding> },
}

impl Catalog {
    pub(super) fn new(root_namespace: Arc<str>) -> Self {
        Self {
            root_namespace,
            started: false,
            files: BTreeMap::new(),
            defined_in: BTreeMap::new(),
            told: BTreeMap::new(),
            blocking: BTreeSet::new(),
            reports: BTreeMap::new(),
        }
    }

    /// The first list is complete.
    pub(super) fn start(&mut self) {
        self.started = true;
    }

    /// Whether an empty `path` would mean that something is deleted.
    pub(super) fn defines(&self, path: &Path) -> bool {
        self.files.get(path).is_some_and(|file| !file.definitions.is_empty())
    }

    /// Follows the mesh configuration.
    pub(super) fn set_root_namespace(&mut self, root_namespace: &Arc<str>) -> Vec<Change> {
        if self.root_namespace == *root_namespace {
            return Vec::new();
        }
        self.root_namespace = root_namespace.clone();
        let all: BTreeSet<ObjectRef> = self.defined_in.keys().cloned().collect();
        self.settle_all(all)
    }

    /// Takes in what was found in some files. What comes into force is told before what ends, so that a rename or a
    /// move between files leaves no gap.
    pub(super) fn update(&mut self, found: impl IntoIterator<Item = (PathBuf, Found)>) -> Vec<Change> {
        let mut touched = BTreeSet::new();
        let mut changes = Vec::new();
        for (path, found) in found {
            let old = self.files.remove(&path).unwrap_or_default();
            let new = match found {
                Found::Documents(documents) => File::read(documents, old.definitions.clone()),
                Found::Failed(finding) => File::failed(&path, finding, old.definitions.clone()),
                Found::Gone => File::default(),
            };
            for object in old.definitions.keys() {
                self.defined_in.entry(object.clone()).or_default().remove(&path);
            }
            for object in new.definitions.keys() {
                self.defined_in.entry(object.clone()).or_default().insert(path.clone());
            }
            touched.extend(old.definitions.into_keys().chain(new.definitions.keys().cloned()));
            self.report(&path, &new, &mut changes);
            if !(new.definitions.is_empty() && new.unreadable.is_empty()) {
                self.files.insert(path, new);
            }
        }
        changes.extend(self.settle_all(touched));
        changes
    }

    fn settle_all(&mut self, objects: BTreeSet<ObjectRef>) -> Vec<Change> {
        let mut changes = Vec::new();
        for object in objects {
            self.settle(object, &mut changes);
        }
        // Stable: within both halves the order is kept.
        changes.sort_by_key(|change| matches!(change, Change::Delete(_)));
        changes
    }

    /// Brings what has been told of one object in line with its definitions.
    fn settle(&mut self, object: ObjectRef, changes: &mut Vec<Change>) {
        let paths = self.defined_in.get(&object).into_iter().flatten();
        let mut definitions =
            paths.filter_map(|path| Some((path, &self.files.get(path)?.definitions))).flat_map(
                |(path, definitions)| definitions.get(&object).into_iter().flatten().map(move |d| (path, d)),
            );
        let Some((path, winner)) = definitions.next() else {
            self.defined_in.remove(&object);
            if let Some(told) = self.told.remove(&object) {
                withdraw(told.reports, &BTreeMap::new(), changes);
                changes.push(Change::Delete(object));
            }
            return;
        };
        let mut reports: Reports = definitions
            .map(|(_, other)| {
                let message =
                    format!("{object} is already defined at {}: this one is not used", winner.origin);
                (other.origin.clone(), (at_line_of(Finding::error(message), &other.findings), false))
            })
            .collect();
        let told = self.told.remove(&object);
        let (good, told_last, told_reports) = match told {
            Some(Told { good, last, reports }) => (good, Some(last), reports),
            None => (None, None, Reports::new()),
        };
        if winner.value.blocks(good.is_some(), &object, &self.root_namespace) {
            reports.insert(winner.origin.clone(), (first_error(&winner.findings), true));
        }
        let (good, last) = tell(&object, path, winner, good, told_last.as_ref(), changes);
        tell_reports(told_reports, &reports, changes);
        self.told.insert(object, Told { good, last, reports });
    }

    /// Brings the reports about what is no object in line with the file.
    fn report(&mut self, path: &Path, file: &File, changes: &mut Vec<Change>) {
        if !file.unreadable.iter().any(|(_, _, hides)| *hides) {
            self.blocking.remove(path);
        } else if !self.started {
            self.blocking.insert(path.to_owned());
        }
        let blocks = self.blocking.contains(path);
        let reports: Reports = file
            .unreadable
            .iter()
            .map(|(origin, finding, hides)| (origin.clone(), (finding.clone(), *hides && blocks)))
            .collect();
        tell_reports(self.reports.remove(path).unwrap_or_default(), &reports, changes);
        if !reports.is_empty() {
            self.reports.insert(path.to_owned(), reports);
        }
    }
}

impl File {
    /// `old` are the definitions before: if a part of the file cannot be identified, nobody knows whether what is no
    /// longer seen has been removed, so it stays.
    fn read(documents: Vec<Document>, old: BTreeMap<ObjectRef, Vec<Definition>>) -> Self {
        let mut file = Self::default();
        let mut lost = None;
        for Document { origin, content, findings } in documents {
            let (object, value) = match content {
                Content::Object(object) => (object.object_ref(), Value::Good(Arc::new(*object))),
                Content::Invalid { object, closed } => (object, Value::Bad(closed)),
                Content::Unreadable => {
                    lost.get_or_insert_with(|| origin.clone());
                    file.unreadable.push((origin, first_error(&findings), true));
                    continue;
                }
                // A policy test, of which there is nothing to tell.
                Content::Unsupported if findings.is_empty() => continue,
                Content::Unsupported => {
                    file.unreadable.push((origin, first_error(&findings), false));
                    continue;
                }
            };
            file.definitions.entry(object).or_default().push(Definition { origin, value, findings });
        }
        if let Some(lost) = lost {
            file.keep(
                old,
                &format!("not seen in the file any more, a part of which cannot be read ({lost})"),
            );
        }
        file
    }

    fn failed(path: &Path, finding: Finding, old: BTreeMap<ObjectRef, Vec<Definition>>) -> Self {
        let mut file = Self::default();
        file.keep(old, &format!("the file cannot be read: {}", finding.message));
        file.unreadable.push((path.display().to_string(), finding, true));
        file
    }

    fn keep(&mut self, old: BTreeMap<ObjectRef, Vec<Definition>>, why: &str) {
        for (object, mut definitions) in old {
            if self.definitions.contains_key(&object) || definitions.is_empty() {
                continue;
            }
            let Definition { origin, value, findings: _ } = definitions.swap_remove(0);
            // A good version has been told, or is overshadowed by one that has: that is where it lives on.
            let value = match value {
                Value::Good(_) => Value::Bad(None),
                Value::Bad(closed) => Value::Bad(closed),
            };
            let definition = Definition { origin, value, findings: vec![Finding::error(why)] };
            self.definitions.insert(object, vec![definition]);
        }
    }
}

/// Tells of the winner of one object, if that is news; returns what is now the last good version and the last told.
fn tell(
    object: &ObjectRef,
    path: &Path,
    winner: &Definition,
    good: Option<Arc<Object>>,
    told: Option<&Last>,
    changes: &mut Vec<Change>,
) -> (Option<Arc<Object>>, Last) {
    let Definition { origin, value, findings } = winner;
    let last = match value.standing(good.is_some()) {
        Standing::Applied(object) => {
            Last::Applied { object, path: path.to_owned(), findings: findings.clone() }
        }
        Standing::Kept => Last::Kept { findings: findings.clone() },
    };
    let good = match value {
        Value::Good(object) => Some(object.clone()),
        Value::Bad(_) => good,
    };
    if told != Some(&last) {
        changes.push(match &last {
            Last::Applied { object, path: _, findings } => Change::Apply {
                object: Box::new((**object).clone()),
                origin: origin.clone(),
                version: None,
                findings: findings.clone(),
            },
            Last::Kept { findings } => Change::Kept {
                object: object.clone(),
                origin: origin.clone(),
                version: None,
                findings: findings.clone(),
            },
        });
    }
    (good, last)
}

/// Clears what is no longer so and tells what is new.
fn tell_reports(told: Reports, reports: &Reports, changes: &mut Vec<Change>) {
    for (origin, (finding, blocks_ready)) in reports {
        if told.get(origin) != Some(&(finding.clone(), *blocks_ready)) {
            let (origin, finding) = (origin.clone(), Some(finding.clone()));
            changes.push(Change::Unreadable { origin, finding, blocks_ready: *blocks_ready });
        }
    }
    withdraw(told, reports, changes);
}

fn withdraw(told: Reports, still: &Reports, changes: &mut Vec<Change>) {
    for origin in told.into_keys().filter(|origin| !still.contains_key(origin)) {
        changes.push(Change::Unreadable { origin, finding: None, blocks_ready: false });
    }
}

fn at_line_of(finding: Finding, others: &[Finding]) -> Finding {
    Finding { line: others.first().and_then(|f| f.line), ..finding }
}

#[cfg(test)]
mod tests;
