//! Token buckets per key, in bounded memory.
//!
//! No clock of its own and no waiting: a caller over its rate is told so.

use std::{
    collections::HashMap,
    hash::Hash,
    net::IpAddr,
    time::{Duration, Instant},
};

/// Keys remembered; beyond, those who have been idle longest are forgotten.
const KEYS: usize = 8192;

/// So many at once, and one more every `refill`.
#[derive(Clone, Copy, Debug)]
pub struct Rate {
    pub burst: u32,
    /// How long until there is one more.
    pub refill: Duration,
}

/// A bucket per key.
#[derive(Debug)]
pub struct Limiter<K> {
    rate: Rate,
    /// When the key's bucket will be full again. Whoever is not here has a full bucket.
    full_at: HashMap<K, Instant>,
}

impl<K: Eq + Hash + Clone> Limiter<K> {
    /// All buckets full.
    pub fn new(rate: Rate) -> Self {
        Self { rate, full_at: HashMap::new() }
    }

    /// Whether `key` has one left. Takes nothing.
    pub fn allows(&self, key: &K, now: Instant) -> bool {
        let owed = self.full_at.get(key).map_or(Duration::ZERO, |full| full.saturating_duration_since(now));
        owed + self.rate.refill <= self.rate.refill * self.rate.burst
    }

    /// Takes one from `key`'s bucket, which must not be empty for the answer to be true.
    pub fn take(&mut self, key: &K, now: Instant) -> bool {
        if !self.allows(key, now) {
            return false;
        }
        if self.full_at.len() >= KEYS && !self.full_at.contains_key(key) {
            self.forget(now);
        }
        let full = self.full_at.entry(key.clone()).or_insert(now);
        *full = (*full).max(now) + self.rate.refill;
        true
    }

    /// Full buckets need not be remembered. If all are in use, the fuller half goes: those keys gain least by it.
    fn forget(&mut self, now: Instant) {
        self.full_at.retain(|_, full| *full > now);
        if self.full_at.len() >= KEYS {
            let mut times: Vec<Instant> = self.full_at.values().copied().collect();
            let middle = times.len() / 2;
            let (_, median, _) = times.select_nth_unstable(middle);
            let median = *median;
            self.full_at.retain(|_, full| *full > median);
        }
    }
}

/// Whom an address belongs to: an IPv6 host has a whole /64 to choose from.
pub fn host(address: IpAddr) -> IpAddr {
    match address.to_canonical() {
        IpAddr::V4(v4) => v4.into(),
        IpAddr::V6(v6) => IpAddr::V6((v6.to_bits() & !u128::from(u64::MAX)).into()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const RATE: Rate = Rate { burst: 3, refill: Duration::from_secs(10) };

    #[test]
    fn a_burst_then_one_per_refill_for_each_key() {
        let (mut limiter, start) = (Limiter::new(RATE), Instant::now());
        let taken =
            |limiter: &mut Limiter<&str>, key, after| limiter.take(&key, start + Duration::from_secs(after));
        assert!((0..3).all(|_| taken(&mut limiter, "a", 0)));
        assert!(!taken(&mut limiter, "a", 0) && !taken(&mut limiter, "a", 9));
        assert!(taken(&mut limiter, "b", 9));
        assert!(taken(&mut limiter, "a", 10) && !taken(&mut limiter, "a", 10));
        assert!((0..3).all(|_| taken(&mut limiter, "a", 100)));
        assert!(!taken(&mut limiter, "a", 100));
    }

    #[test]
    fn memory_is_bounded_and_the_worst_are_remembered() {
        let (mut limiter, now) = (Limiter::new(RATE), Instant::now());
        assert!((0..3).all(|_| limiter.take(&u64::MAX, now)));
        for key in 0..3 * KEYS as u64 {
            assert!(limiter.take(&key, now));
        }
        assert!(limiter.full_at.len() <= KEYS);
        assert!(!limiter.take(&u64::MAX, now));
    }

    #[test]
    fn one_ipv6_network_is_one_host() {
        let same = |a: &str, b: &str| host(a.parse().unwrap()) == host(b.parse().unwrap());
        assert!(same("2001:db8::1", "2001:db8::ffff:1") && !same("2001:db8::1", "2001:db8:0:1::1"));
        assert!(same("::ffff:10.0.0.1", "10.0.0.1") && !same("10.0.0.1", "10.0.0.2"));
    }
}
