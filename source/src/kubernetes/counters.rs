//! What the watches count. It registers nothing: the process does.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

use crds::Kind;

use crate::UnimplementedObjects;

/// A number that only grows.
#[derive(Debug, Default)]
pub struct Count(AtomicU64);

impl Count {
    pub(super) fn inc(&self) {
        self.0.fetch_add(1, Ordering::Relaxed);
    }

    /// The number.
    pub fn get(&self) -> u64 {
        self.0.load(Ordering::Relaxed)
    }
}

/// Numbers by group and kind.
type ByKind = BTreeMap<(Arc<str>, Arc<str>), usize>;

/// Shared by all watches of a process.
#[derive(Debug, Default)]
pub struct Counters {
    /// Full lists after the first one.
    pub relists: Count,
    /// Lists and watches that failed.
    pub watch_errors: Count,
    /// Definitions that went away while their objects were in force.
    pub definitions_lost: Count,
    /// Objects kept although the API server has them no more, as their definition was uninstalled: a number that also
    /// shrinks.
    pub orphans: Count,
    events: [[Count; 3]; Kind::ALL.len()],
    unimplemented: Mutex<ByKind>,
}

/// What happened to an object, in the words of Istio's metric `pilot_k8s_cfg_events`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Happened {
    Add,
    Update,
    Delete,
}

impl Happened {
    const ALL: [Self; 3] = [Self::Add, Self::Update, Self::Delete];

    /// The value of the label `event`.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Add => "add",
            Self::Update => "update",
            Self::Delete => "delete",
        }
    }
}

impl Counters {
    pub(super) fn happened(&self, kind: Kind, what: Happened) {
        let row = Kind::ALL.iter().position(|k| *k == kind).expect("ALL holds every kind");
        self.events[row][what as usize].inc();
    }

    pub(super) fn set_orphans(&self, count: usize) {
        self.orphans.0.store(count as u64, Ordering::Relaxed);
    }

    pub(super) fn set_unimplemented(&self, objects: &UnimplementedObjects) {
        let UnimplementedObjects { group, kind, count, names: _, error: _ } = objects;
        let mut all = self.unimplemented.lock().unwrap_or_else(PoisonError::into_inner);
        all.insert((group.clone(), kind.clone()), *count);
    }

    /// Objects that have no effect here: group, kind, number.
    pub fn unimplemented(&self) -> Vec<(Arc<str>, Arc<str>, usize)> {
        let all = self.unimplemented.lock().unwrap_or_else(PoisonError::into_inner);
        all.iter().map(|((group, kind), count)| (group.clone(), kind.clone(), *count)).collect()
    }

    /// Changes taken over, by kind and by what happened.
    pub fn events(&self) -> impl Iterator<Item = (Kind, Happened, u64)> + '_ {
        Kind::ALL.iter().zip(&self.events).flat_map(|(kind, row)| {
            Happened::ALL.iter().zip(row).map(|(what, count)| (*kind, *what, count.get()))
        })
    }
}
