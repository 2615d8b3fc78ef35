//! Which connections live, and which give way.

use std::{
    collections::{HashMap, VecDeque},
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicU64, Ordering},
    },
};

use tokio_util::sync::CancellationToken;

use super::Limits;
use crate::{PeerIdentity, token::TokenIdentity};

/// What has happened on a listener since it started.
#[derive(Debug, Default)]
pub struct Counters {
    /// TCP connections taken.
    pub accepted: AtomicU64,
    /// Handshakes that failed: garbage, or a certificate that was refused.
    pub failed: AtomicU64,
    /// Handshakes that took too long.
    pub timed_out: AtomicU64,
    /// Handshakes and connections without identity that gave way to newer ones.
    pub displaced: AtomicU64,
    /// Connections with identity that were over a limit.
    pub refused: AtomicU64,
    /// Connections ended because their certificate had.
    pub expired: AtomicU64,
}

impl Counters {
    pub(super) fn add(counter: &AtomicU64) {
        counter.fetch_add(1, Ordering::Relaxed);
    }
}

/// The open connections of one listener.
#[derive(Debug)]
pub(super) struct Table {
    limits: Limits,
    open: Mutex<Open>,
    pub(super) counters: Counters,
}

#[derive(Debug, Default)]
struct Open {
    /// Without identity, oldest first.
    anonymous: VecDeque<(u64, CancellationToken)>,
    /// Number of the next anonymous connection.
    next: u64,
    identified: usize,
    /// Leaf (DER), or a token's caller → its connections; never zero.
    by_caller: HashMap<Arc<[u8]>, usize>,
}

/// A place in the table, left when dropped.
#[derive(Debug)]
pub(crate) struct Place {
    table: Arc<Table>,
    holder: Mutex<Holder>,
}

#[derive(Clone, Debug)]
enum Holder {
    Anonymous(u64, CancellationToken),
    /// By certificate.
    Identified(Arc<PeerIdentity>),
    /// By token, known after the handshake. Does not end with the token: what was asked under it was granted.
    Token(Arc<[u8]>),
}

impl Open {
    /// Counts one more connection of `caller`, if there is room.
    fn take(&mut self, caller: &Arc<[u8]>, limits: &Limits) -> bool {
        let own = self.by_caller.get(caller).copied().unwrap_or_default();
        if own >= limits.per_certificate || self.identified >= limits.identified {
            return false;
        }
        self.identified += 1;
        *self.by_caller.entry(Arc::clone(caller)).or_default() += 1;
        true
    }

    fn leave(&mut self, caller: &Arc<[u8]>) {
        self.identified -= 1;
        if let Some(count) = self.by_caller.get_mut(caller) {
            *count -= 1;
            if *count == 0 {
                self.by_caller.remove(caller);
            }
        }
    }
}

impl Table {
    pub(super) fn new(limits: Limits) -> Arc<Self> {
        Arc::new(Self { limits, open: Mutex::default(), counters: Counters::default() })
    }

    pub(super) fn limits(&self) -> &Limits {
        &self.limits
    }

    /// Takes a place for a finished handshake; `None` if there is none for this identity.
    pub(super) fn enter(self: &Arc<Self>, identity: Option<Arc<PeerIdentity>>) -> Option<Place> {
        let mut open = self.open();
        let holder = match identity {
            None => {
                while open.anonymous.len() >= self.limits.anonymous.max(1) {
                    self.displace(&mut open);
                }
                let (number, evicted) = (open.next, CancellationToken::new());
                open.next += 1;
                open.anonymous.push_back((number, evicted.clone()));
                Holder::Anonymous(number, evicted)
            }
            Some(identity) => {
                if !open.take(&identity.certificate, &self.limits) {
                    Counters::add(&self.counters.refused);
                    return None;
                }
                Holder::Identified(identity)
            }
        };
        Some(Place { table: Arc::clone(self), holder: Mutex::new(holder) })
    }

    /// Makes room when the process has no file descriptor left.
    pub(super) fn displace_oldest(&self) {
        self.displace(&mut self.open());
    }

    fn displace(&self, open: &mut Open) {
        if let Some((_, oldest)) = open.anonymous.pop_front() {
            oldest.cancel();
            Counters::add(&self.counters.displaced);
        }
    }

    /// Nothing under the lock panics half-way, so a poisoned table is still right.
    fn open(&self) -> MutexGuard<'_, Open> {
        self.open.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Place {
    /// Cancelled when the connection has to give way; `None` for connections by certificate, which never do.
    pub(super) fn evicted(&self) -> Option<CancellationToken> {
        match &*self.holder() {
            Holder::Anonymous(_, evicted) => Some(evicted.clone()),
            Holder::Identified(_) | Holder::Token(_) => None,
        }
    }

    /// The peer's certificate, if it presented one.
    pub(super) fn certificate(&self) -> Option<Arc<PeerIdentity>> {
        match &*self.holder() {
            Holder::Anonymous(..) | Holder::Token(_) => None,
            Holder::Identified(identity) => Some(Arc::clone(identity)),
        }
    }

    /// The connection is `caller`'s from now on, as far as it was nobody's. False if `caller` has too many, or if the
    /// connection has been told to give way already.
    pub(crate) fn identify(&self, caller: &TokenIdentity) -> bool {
        let mut holder = self.holder();
        let Holder::Anonymous(number, _) = *holder else { return true };
        let caller = caller.key();
        let mut open = self.table.open();
        let Some(at) = open.anonymous.iter().position(|(other, _)| *other == number) else { return false };
        if !open.take(&caller, &self.table.limits) {
            Counters::add(&self.table.counters.refused);
            return false;
        }
        open.anonymous.remove(at);
        *holder = Holder::Token(caller);
        true
    }

    pub(super) fn counters(&self) -> &Counters {
        &self.table.counters
    }

    /// Taken before the table's lock, never after it.
    fn holder(&self) -> MutexGuard<'_, Holder> {
        self.holder.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        let holder = self.holder().clone();
        let mut open = self.table.open();
        match holder {
            Holder::Anonymous(number, _) => open.anonymous.retain(|(other, _)| *other != number),
            Holder::Identified(identity) => open.leave(&identity.certificate),
            Holder::Token(caller) => open.leave(&caller),
        }
    }
}

#[cfg(test)]
mod tests {
    use time::OffsetDateTime;

    use super::*;

    fn identity(certificate: &[u8]) -> Arc<PeerIdentity> {
        let (id, not_after) = ("spiffe://td/a".parse().unwrap(), OffsetDateTime::UNIX_EPOCH);
        Arc::new(PeerIdentity { id, serial: "01".into(), not_after, certificate: certificate.into() })
    }

    fn table() -> Arc<Table> {
        Table::new(Limits { anonymous: 2, identified: 3, per_certificate: 2, ..Limits::default() })
    }

    #[test]
    fn the_oldest_anonymous_connection_gives_way() {
        let table = table();
        let places: Vec<Place> = (0..4).map(|_| table.enter(None).unwrap()).collect();
        let evicted: Vec<bool> = places.iter().map(|p| p.evicted().unwrap().is_cancelled()).collect();
        assert_eq!(evicted, [true, true, false, false]);
        assert_eq!(table.counters.displaced.load(Ordering::Relaxed), 2);
        drop(places);
        assert!(table.open().anonymous.is_empty());
    }

    #[test]
    fn identified_connections_are_counted_per_certificate_and_never_displaced() {
        let table = table();
        let first = table.enter(Some(identity(b"a"))).unwrap();
        let second = table.enter(Some(identity(b"a"))).unwrap();
        assert!(table.enter(Some(identity(b"a"))).is_none());
        let third = table.enter(Some(identity(b"b"))).unwrap();
        assert!(table.enter(Some(identity(b"c"))).is_none());
        assert!((0..5).all(|_| table.enter(None).is_some()));
        drop(first);
        let again = table.enter(Some(identity(b"a")));
        assert!(again.is_some());
        drop((second, third, again));
        let open = table.open();
        assert!(open.by_caller.is_empty() && open.identified == 0);
    }

    #[test]
    fn who_has_shown_a_token_is_no_longer_displaced_and_is_counted() {
        let table = table();
        let caller = |uid: &str| TokenIdentity {
            namespace: "a".into(),
            service_account: "b".into(),
            pod: Some(crate::token::Pod { name: "p".into(), uid: uid.into() }),
            expires: OffsetDateTime::UNIX_EPOCH,
        };
        let first = table.enter(None).unwrap();
        assert!(first.identify(&caller("1")) && first.identify(&caller("1")));
        assert!((0..5).all(|_| table.enter(None).is_some()));
        assert_eq!(table.counters.displaced.load(Ordering::Relaxed), 0);
        let second = table.enter(None).unwrap();
        assert!(second.identify(&caller("1")));
        let third = table.enter(None).unwrap();
        assert!(!third.identify(&caller("1")) && third.identify(&caller("2")));
        // A certificate counts in the same sum, which is full now.
        assert!(table.enter(Some(identity(b"a"))).is_none());
        let late = table.enter(None).unwrap();
        let (_newer, _newest) = (table.enter(None).unwrap(), table.enter(None).unwrap());
        assert!(!late.identify(&caller("3")), "it has been told to go already");
        drop((first, second, third, late));
        let open = table.open();
        assert!(open.by_caller.is_empty() && open.identified == 0);
    }
}
