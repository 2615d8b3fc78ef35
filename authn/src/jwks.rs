//! Other people's signing keys: fetches JWK sets (RFC 7517) by URI or by OpenID Connect discovery, and keeps them.
//!
//! Every location has a task of its own, so that a slow or broken one harms no other. A fetch that fails, or that brings
//! something which is no usable key set, changes nothing: the last good keys stay until they are older than the staleness
//! budget. Then, as before the first fetch, there are no keys, and whoever asked has to refuse the tokens; never is there
//! a stand-in key. Verifies no token and knows no policy.

mod counters;
mod fetch;
mod guard;

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::{Duration, Instant};

use rand::Rng as _;
use tokio::sync::{mpsc, watch};
use tokio_util::task::AbortOnDropHandle;

pub use counters::{Counters, Summary};
pub use fetch::{Client, FetchError, UnusableClient};
pub use guard::Guard;

/// Where a key set is.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Location {
    /// The set itself.
    Uri(Arc<str>),
    /// The metadata of this issuer name it (OpenID Connect Discovery 1.0 §4).
    Issuer(Arc<str>),
}

impl std::fmt::Display for Location {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Uri(uri) => f.write_str(uri),
            Self::Issuer(issuer) => write!(f, "the discovery document of {issuer}"),
        }
    }
}

/// Every location that is wanted, with the time that one fetch of it may take.
pub type Wanted = BTreeMap<Location, Duration>;

/// When to fetch.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Schedule {
    /// Between a success and the next fetch (semantics §5.3).
    pub refresh: Duration,
    /// First pause after a failure; doubled up to `retry_max`.
    pub retry: Duration,
    pub retry_max: Duration,
    /// Keys whose last successful fetch is longer ago are given up.
    pub staleness: Duration,
}

impl Default for Schedule {
    fn default() -> Self {
        Self {
            refresh: Duration::from_secs(20 * 60),
            retry: Duration::from_secs(1),
            retry_max: Duration::from_secs(60),
            staleness: Duration::from_secs(24 * 3600),
        }
    }
}

/// What is known of one location, told whenever it changes.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Update {
    pub location: Location,
    /// Public keys as a JWK set; `None`: refuse.
    pub keys: Option<Arc<str>>,
    /// Why the last fetch failed, for people; `None` if it did not.
    pub error: Option<String>,
}

/// Checks what was fetched and keeps what is public of it: the key set, or why it is none.
pub type Check = fn(&str) -> Result<String, String>;

/// Keeps the keys of every location in `wanted`, and tells `updates`. Returns when either side is gone.
pub async fn keep(
    client: Client,
    schedule: Schedule,
    check: Check,
    mut wanted: watch::Receiver<Wanted>,
    updates: mpsc::Sender<Update>,
    counters: Arc<Counters>,
) {
    let mut running: BTreeMap<Location, (watch::Sender<Duration>, AbortOnDropHandle<()>)> = BTreeMap::new();
    loop {
        let now = wanted.borrow_and_update().clone();
        counters.wanted(now.keys());
        running.retain(|location, _| now.contains_key(location));
        for (location, timeout) in now {
            match running.get(&location) {
                // Another patience is no reason to forget what is known.
                Some((patience, _)) => drop(patience.send_replace(timeout)),
                None => {
                    let (patience, timeout) = watch::channel(timeout);
                    let keeper = Keeper {
                        location: location.clone(),
                        timeout,
                        client: client.clone(),
                        schedule,
                        check,
                        counters: counters.clone(),
                    };
                    let keeping = AbortOnDropHandle::new(tokio::spawn(keeper.run(updates.clone())));
                    running.insert(location, (patience, keeping));
                }
            }
        }
        tokio::select! {
            changed = wanted.changed() => if changed.is_err() { return },
            () = updates.closed() => return,
        }
    }
}

/// One location.
#[derive(Debug)]
struct Keeper {
    location: Location,
    timeout: watch::Receiver<Duration>,
    client: Client,
    schedule: Schedule,
    check: Check,
    counters: Arc<Counters>,
}

impl Keeper {
    async fn run(self, updates: mpsc::Sender<Update>) {
        let Self { location, timeout, client, schedule, check, counters } = self;
        let mut memory = Memory::default();
        let mut told = None;
        loop {
            let patience = *timeout.borrow();
            let outcome = client.fetch(&location, patience).await.map_err(|error| error.to_string());
            let outcome = outcome.and_then(|text| check(&text));
            let now = Instant::now();
            memory.learn(outcome, now);
            let update = memory.update(&location, &schedule, now);
            let fetched = memory.good.as_ref().map(|(_, at)| *at).filter(|_| update.keys.is_some());
            counters.learnt(&location, fetched, update.error.is_some());
            if let Some(error) = &update.error {
                tracing::warn!(%location, %error, kept = update.keys.is_some(), "key set not fetched");
            }
            if told.as_ref() != Some(&update) {
                if updates.send(update.clone()).await.is_err() {
                    return;
                }
                told = Some(update);
            }
            // Neither all replicas nor all locations at once.
            let share = rand::rng().random_range(0.9..=1.0);
            tokio::time::sleep(memory.pause(&schedule, now).mul_f64(share)).await;
        }
    }
}

/// What one location has brought so far. Pure.
#[derive(Debug, Default)]
struct Memory {
    /// The last good keys and when they were fetched.
    good: Option<(Arc<str>, Instant)>,
    /// Failures since then, and the last one's reason.
    failures: u32,
    error: Option<String>,
}

impl Memory {
    fn learn(&mut self, outcome: Result<String, String>, now: Instant) {
        match outcome {
            Ok(keys) => {
                let keys = match &self.good {
                    Some((old, _)) if **old == *keys => old.clone(),
                    _ => keys.into(),
                };
                *self = Self { good: Some((keys, now)), failures: 0, error: None };
            }
            Err(error) => {
                self.failures = self.failures.saturating_add(1);
                self.error = Some(error);
            }
        }
    }

    fn update(&self, location: &Location, schedule: &Schedule, now: Instant) -> Update {
        let fresh = |at: &Instant| now.saturating_duration_since(*at) <= schedule.staleness;
        let keys = self.good.as_ref().filter(|(_, at)| fresh(at)).map(|(keys, _)| keys.clone());
        Update { location: location.clone(), keys, error: self.error.clone() }
    }

    /// Until the next fetch; not beyond the moment at which the keys are to be given up.
    fn pause(&self, schedule: &Schedule, now: Instant) -> Duration {
        let Schedule { refresh, retry, retry_max, staleness } = *schedule;
        if self.failures == 0 {
            return refresh;
        }
        let doubled = retry.saturating_mul(1u32.checked_shl(self.failures - 1).unwrap_or(u32::MAX));
        let pause = doubled.min(retry_max);
        match &self.good {
            Some((_, at)) if now < *at + staleness => {
                pause.min((*at + staleness).saturating_duration_since(now) + Duration::from_millis(1))
            }
            _ => pause,
        }
    }
}

#[cfg(test)]
mod tests;
