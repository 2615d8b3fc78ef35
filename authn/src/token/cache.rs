//! Positive answers, by the hash of the token, for a short time and in bounded memory.

use std::{collections::HashMap, sync::Arc, time::Instant};

use sha2::{Digest, Sha256};
use time::OffsetDateTime;

use super::TokenIdentity;

/// SHA-256 of a token: the memory holds nothing that could be used as one.
pub(super) type Key = [u8; 32];

pub(super) fn key(token: &str) -> Key {
    Sha256::digest(token).into()
}

#[derive(Debug)]
struct Entry {
    identity: Arc<TokenIdentity>,
    since: Instant,
    until: Instant,
}

#[derive(Debug)]
pub(super) struct Cache {
    most: usize,
    entries: HashMap<Key, Entry>,
}

impl Cache {
    pub(super) fn new(most: usize) -> Self {
        Self { most, entries: HashMap::new() }
    }

    pub(super) fn get(
        &mut self,
        key: &Key,
        now: Instant,
        clock: OffsetDateTime,
    ) -> Option<Arc<TokenIdentity>> {
        let entry = self.entries.get(key)?;
        if now < entry.until && clock < entry.identity.expires {
            return Some(Arc::clone(&entry.identity));
        }
        self.entries.remove(key);
        None
    }

    /// Only tokens that the API server knows get here, so nobody outside the cluster can fill it.
    pub(super) fn put(&mut self, key: Key, identity: Arc<TokenIdentity>, since: Instant, until: Instant) {
        if self.entries.len() >= self.most {
            self.entries.retain(|_, entry| since < entry.until);
        }
        if self.entries.len() >= self.most {
            let mut ages: Vec<Instant> = self.entries.values().map(|entry| entry.since).collect();
            let middle = ages.len() / 2;
            let (_, median, _) = ages.select_nth_unstable(middle);
            let median = *median;
            self.entries.retain(|_, entry| entry.since > median);
        }
        self.entries.insert(key, Entry { identity, since, until });
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    fn identity(expires: OffsetDateTime) -> Arc<TokenIdentity> {
        let (namespace, service_account) = ("a".into(), "b".into());
        Arc::new(TokenIdentity { namespace, service_account, pod: None, expires })
    }

    #[test]
    fn an_answer_is_believed_neither_too_long_nor_beyond_the_token() {
        let (mut cache, start, clock) = (Cache::new(8), Instant::now(), OffsetDateTime::UNIX_EPOCH);
        let minute = Duration::from_secs(60);
        cache.put(key("a"), identity(clock + 10 * minute), start, start + minute);
        assert!(cache.get(&key("a"), start + minute / 2, clock).is_some());
        assert!(cache.get(&key("b"), start, clock).is_none());
        assert!(cache.get(&key("a"), start + minute, clock).is_none());
        cache.put(key("a"), identity(clock + minute / 2), start, start + minute);
        assert!(cache.get(&key("a"), start, clock + minute / 2).is_none());
        assert!(cache.entries.is_empty());
    }

    #[test]
    fn memory_is_bounded_and_the_newest_stay() {
        let (mut cache, start, clock) = (Cache::new(8), Instant::now(), OffsetDateTime::UNIX_EPOCH);
        for n in 0..100u32 {
            let since = start + Duration::from_millis(n.into());
            let end = since + Duration::from_secs(60);
            cache.put(key(&n.to_string()), identity(clock + Duration::from_secs(60)), since, end);
            assert!(cache.entries.len() <= 8);
            assert!(cache.get(&key(&n.to_string()), since, clock).is_some());
        }
        assert!(cache.get(&key("98"), start + Duration::from_secs(1), clock).is_some());
    }
}
