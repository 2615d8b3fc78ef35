//! How many streams and requests are let in. Counters only; no peer is remembered once its streams are gone.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Instant;

use super::{Failure, Limits, Peer};

/// A token bucket; refilled by the clock that is passed in.
#[derive(Debug)]
pub(super) struct Bucket {
    per_second: f64,
    burst: f64,
    level: f64,
    at: Instant,
}

impl Bucket {
    pub(super) fn new(per_second: u32, burst: u32, now: Instant) -> Self {
        Self { per_second: per_second.into(), burst: burst.into(), level: burst.into(), at: now }
    }

    /// Takes one token if there is one.
    pub(super) fn take(&mut self, now: Instant) -> bool {
        let passed = now.saturating_duration_since(self.at).as_secs_f64();
        self.level = (self.level + passed * self.per_second).min(self.burst);
        self.at = now;
        if self.level < 1.0 {
            return false;
        }
        self.level -= 1.0;
        true
    }
}

/// Counts streams; shared by all of a process's ADS ports.
#[derive(Clone, Debug)]
pub(super) struct Admission(Arc<Mutex<Counts>>);

#[derive(Debug)]
struct Counts {
    limits: Limits,
    bucket: Bucket,
    total: usize,
    peers: HashMap<String, usize>,
    /// Questions of tools.
    questions: Bucket,
    /// Streams of tools, by peer.
    tools: HashMap<String, usize>,
}

/// A tool's stream; gives its place back when dropped.
#[derive(Debug)]
pub(super) struct ToolPlace(Place);

impl Drop for ToolPlace {
    fn drop(&mut self) {
        let Place { counts, peer } = &self.0;
        let mut counts = counts.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(count) = counts.tools.get_mut(peer) {
            *count -= 1;
            if *count == 0 {
                counts.tools.remove(peer);
            }
        }
    }
}

/// One admitted stream; gives its place back when dropped.
#[derive(Debug)]
pub(super) struct Place {
    counts: Arc<Mutex<Counts>>,
    peer: String,
}

impl Admission {
    pub(super) fn new(limits: Limits) -> Self {
        let bucket = Bucket::new(limits.new_streams_per_second, limits.burst, Instant::now());
        let questions = Bucket::new(limits.questions_per_second, limits.question_burst, Instant::now());
        let counts =
            Counts { limits, bucket, total: 0, peers: HashMap::new(), questions, tools: HashMap::new() };
        Self(Arc::new(Mutex::new(counts)))
    }

    /// Makes an admitted stream one of a tool.
    pub(super) fn admit_tool(&self, place: Place) -> Result<ToolPlace, Failure> {
        let mut counts = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let Limits { tools, tools_per_peer, .. } = counts.limits;
        let own = counts.tools.get(&place.peer).copied().unwrap_or(0);
        if counts.tools.values().sum::<usize>() >= tools || own >= tools_per_peer {
            drop(counts);
            return Err(Failure::Busy("too many tools ask at once"));
        }
        counts.tools.insert(place.peer.clone(), own + 1);
        Ok(ToolPlace(place))
    }

    /// One question of a tool.
    pub(super) fn question(&self) -> Result<(), Failure> {
        let mut counts = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let taken = counts.questions.take(Instant::now());
        taken.then_some(()).ok_or(Failure::Busy("too many questions at once; try again"))
    }

    pub(super) fn admit(&self, peer: &Peer) -> Result<Place, Failure> {
        let address = || peer.address.map(|a| a.ip().to_string()).unwrap_or_default();
        let peer = peer.identity.as_ref().map_or_else(address, ToString::to_string);
        let mut counts = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if counts.total >= counts.limits.streams {
            return Err(Failure::Busy("too many streams"));
        }
        if counts.peers.get(&peer).is_some_and(|n| *n >= counts.limits.streams_per_peer) {
            return Err(Failure::Busy("too many streams of this peer"));
        }
        if !counts.bucket.take(Instant::now()) {
            return Err(Failure::Busy("too many new streams at once; try again"));
        }
        counts.total += 1;
        *counts.peers.entry(peer.clone()).or_default() += 1;
        Ok(Place { counts: self.0.clone(), peer })
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        let mut counts = self.counts.lock().unwrap_or_else(PoisonError::into_inner);
        counts.total -= 1;
        if let Some(left) = counts.peers.get_mut(&self.peer) {
            *left -= 1;
            if *left == 0 {
                counts.peers.remove(&self.peer);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    #[test]
    fn a_bucket_refills_with_time() {
        let start = Instant::now();
        let mut bucket = Bucket::new(10, 2, start);
        assert!(bucket.take(start) && bucket.take(start) && !bucket.take(start));
        assert!(bucket.take(start + Duration::from_millis(100)));
        assert!(!bucket.take(start + Duration::from_millis(150)));
    }

    #[test]
    fn places_are_given_back() {
        let admission = Admission::new(Limits { streams: 3, streams_per_peer: 2, ..Limits::default() });
        let at =
            |port: u16, host: u8| Peer { address: Some(([127, 0, 0, host], port).into()), ..Peer::default() };
        let first = admission.admit(&at(1, 1)).ok().expect("first");
        let _second = admission.admit(&at(2, 1)).ok().expect("second");
        assert!(admission.admit(&at(3, 1)).is_err(), "two per peer");
        let _third = admission.admit(&at(1, 2)).ok().expect("another peer");
        assert!(admission.admit(&at(1, 3)).is_err(), "three in all");
        drop(first);
        assert!(admission.admit(&at(4, 1)).is_ok());
    }
}
