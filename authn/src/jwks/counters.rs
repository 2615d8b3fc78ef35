//! What there is to tell of fetching key sets: how many fetches, and how old what is kept is. Text of locations stays here.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use super::Location;

/// Counts every fetch, and remembers of every location that is wanted how it stands.
#[derive(Debug, Default)]
pub struct Counters {
    fetched: AtomicU64,
    failed: AtomicU64,
    locations: Mutex<BTreeMap<Location, Standing>>,
}

#[derive(Clone, Copy, Debug)]
struct Standing {
    /// When the keys in use were last fetched; `None`: there are none.
    fetched: Option<Instant>,
    /// The last fetch failed.
    failing: bool,
}

/// All of it, at one moment.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Summary {
    /// Fetches that brought a usable key set, and others.
    pub fetched: u64,
    pub failed: u64,
    /// Locations whose last fetch succeeded.
    pub fresh: u64,
    /// Those whose last fetch failed, while earlier keys are in use.
    pub stale: u64,
    /// Those without keys: tokens are refused.
    pub missing: u64,
    /// Since the oldest keys in use were fetched.
    pub oldest: Duration,
}

impl Counters {
    fn locations(&self) -> MutexGuard<'_, BTreeMap<Location, Standing>> {
        self.locations.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// These are wanted now, and no others.
    pub(super) fn wanted<'l>(&self, wanted: impl Iterator<Item = &'l Location>) {
        let mut locations = self.locations();
        let wanted = wanted.map(|location| {
            let standing = locations.get(location).copied();
            (location.clone(), standing.unwrap_or(Standing { fetched: None, failing: false }))
        });
        *locations = wanted.collect();
    }

    /// What came of one fetch: `fetched` is when the keys that are in use now were.
    pub(super) fn learnt(&self, location: &Location, fetched: Option<Instant>, failing: bool) {
        let counter = if failing { &self.failed } else { &self.fetched };
        counter.fetch_add(1, Ordering::Relaxed);
        if let Some(standing) = self.locations().get_mut(location) {
            *standing = Standing { fetched, failing };
        }
    }

    /// As of `now`.
    pub fn summary(&self, now: Instant) -> Summary {
        let mut summary = Summary {
            fetched: self.fetched.load(Ordering::Relaxed),
            failed: self.failed.load(Ordering::Relaxed),
            ..Summary::default()
        };
        for Standing { fetched, failing } in self.locations().values() {
            match (fetched, failing) {
                (None, _) => summary.missing += 1,
                (Some(_), true) => summary.stale += 1,
                (Some(_), false) => summary.fresh += 1,
            }
            let age = fetched.map_or(Duration::ZERO, |at| now.saturating_duration_since(at));
            summary.oldest = summary.oldest.max(age);
        }
        summary
    }
}
