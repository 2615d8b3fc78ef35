//! The connected proxies and what they said to what they were sent. Only reports: the sessions themselves are
//! `xds::ads`'s.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::SystemTime;

use policy::ObjectName;
use tokio::sync::watch;
use xds::{ResourceType, Snapshot};

use crate::publish::{Publisher, SlotKey};

use super::{ProxyStatus, RejectedStatus, TypeStatus, timestamp};

/// Refusals kept per type.
const MAX_NACKS: usize = 64;

/// Names one stream of one proxy.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(crate) struct SessionId(pub(crate) u64);

/// A proxy as it introduced itself, and as far as that was verified.
#[derive(Clone, Debug)]
pub(crate) struct Connected {
    pub(crate) node: String,
    pub(crate) workload: ObjectName,
    pub(crate) peer: String,
    pub(crate) secure: bool,
    pub(crate) identity: Option<Arc<str>>,
    pub(crate) envoy_version: Option<(u32, u32, u32)>,
    /// `ISTIO_VERSION` of the metadata, for the label of `pilot_xds`.
    pub(crate) agent_version: String,
}

/// A refusal.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Nack {
    /// The culprit where the session could tell it.
    pub(crate) resource: Option<Arc<str>>,
    pub(crate) error: String,
}

/// What a proxy said so far. Written by its stream, read by the state's owner; never held across anything slow.
#[derive(Debug, Default)]
pub(crate) struct Journal {
    acked: [Option<u64>; 5],
    /// Something of the type was sent, so the proxy has asked for it.
    asked: [bool; 5],
    /// The refusals of each type that no later acknowledgement of all of it has healed.
    nacks: [Vec<Nack>; 5],
    /// It came with inbound listeners that are replaced.
    replacing: bool,
    /// A listener that it acknowledged waits for something.
    waiting: bool,
}

impl Journal {
    pub(crate) fn sent(&mut self, kind: ResourceType) {
        self.asked[kind as usize] = true;
    }

    pub(crate) fn acked(&mut self, kind: ResourceType, generation: u64) {
        let index = kind as usize;
        self.acked[index] = Some(self.acked[index].unwrap_or(0).max(generation));
        self.nacks[index].clear();
    }

    /// A refusal whose culprit is known replaces what was said while it was searched for.
    pub(crate) fn nacked(&mut self, kind: ResourceType, nack: Nack) {
        let nacks = &mut self.nacks[kind as usize];
        nacks.retain(|known| known.resource.is_some() && known.resource != nack.resource);
        nacks.truncate(MAX_NACKS);
        nacks.push(nack);
    }

    pub(crate) fn replacing(&mut self) {
        self.replacing = true;
    }

    pub(crate) fn waiting(&mut self, waiting: bool) {
        self.waiting = waiting;
    }

    /// Whether it has acknowledged all that is published for it. What a proxy asks for besides clusters and listeners
    /// follows from those: once they are acknowledged, what it has not asked for it does not use.
    fn synced(&self, changed: &[u64; 5]) -> bool {
        ResourceType::ALL.into_iter().all(|kind| {
            let index = kind as usize;
            match self.acked[index] {
                Some(acked) => acked >= changed[index] && self.nacks[index].is_empty(),
                None => !kind.wildcard() && !self.asked[index],
            }
        })
    }
}

/// One stream of one proxy.
#[derive(Debug)]
pub(crate) struct Session {
    pub(crate) key: SlotKey,
    pub(crate) proxy: Connected,
    since: SystemTime,
    snapshots: watch::Receiver<Arc<Snapshot>>,
    journal: Arc<Mutex<Journal>>,
    /// As of the last [`Sessions::refresh`]: the generation that last changed each type for it ..
    changed: [u64; 5],
    /// .. whether it has that ..
    pub(crate) synced: bool,
    /// .. and what it refused.
    nacks: Vec<(ResourceType, Nack)>,
}

impl Session {
    pub(crate) fn new(
        key: SlotKey,
        proxy: Connected,
        snapshots: watch::Receiver<Arc<Snapshot>>,
        journal: Arc<Mutex<Journal>>,
    ) -> Self {
        let since = SystemTime::now();
        Self { key, proxy, since, snapshots, journal, changed: [0; 5], synced: false, nacks: Vec::new() }
    }

    pub(crate) fn nacks(&self) -> impl Iterator<Item = &(ResourceType, Nack)> {
        self.nacks.iter()
    }

    fn journal(&self) -> MutexGuard<'_, Journal> {
        self.journal.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn refresh(&mut self, changed: [u64; 5]) {
        self.changed = changed;
        let journal = self.journal.lock().unwrap_or_else(PoisonError::into_inner);
        self.synced = journal.synced(&changed);
        let of = |kind| journal.nacks[kind as usize].iter().map(move |nack| (kind, nack.clone()));
        self.nacks = ResourceType::ALL.into_iter().flat_map(of).collect();
    }

    pub(crate) fn status(&self, registered: bool) -> ProxyStatus {
        let Connected { node, workload, peer, secure, identity, envoy_version, agent_version: _ } =
            &self.proxy;
        let snapshot = self.snapshots.borrow().clone();
        let acked = self.journal().acked;
        let types = ResourceType::ALL.into_iter().map(|kind| TypeStatus {
            kind: kind.short().to_owned(),
            published: self.changed[kind as usize],
            acked: acked[kind as usize],
            resources: snapshot.of(kind).iter().count(),
            rejected: self
                .nacks
                .iter()
                .filter(|(of, _)| *of == kind)
                .map(|(_, nack)| rejected(nack))
                .collect(),
        });
        let mut warnings = Vec::new();
        warnings.extend(VersionFloor::warning(*envoy_version));
        if !registered {
            warnings.push(
                "not registered: admits nobody until a Pod or WorkloadEntry of its name exists".to_owned(),
            );
        }
        ProxyStatus {
            node: node.clone(),
            namespace: workload.namespace.to_string(),
            name: workload.name.to_string(),
            peer: peer.clone(),
            secure: *secure,
            identity: identity.as_ref().map(ToString::to_string),
            envoy_version: envoy_version.map(|(major, minor, patch)| format!("{major}.{minor}.{patch}")),
            connected: timestamp(self.since),
            registered,
            synced: self.synced,
            types: types.collect(),
            warnings,
        }
    }
}

fn rejected(nack: &Nack) -> RejectedStatus {
    RejectedStatus { resource: nack.resource.as_ref().map(ToString::to_string), error: nack.error.clone() }
}

/// Older Envoys have publicly known ways around RBAC (see `known-bypasses` in the security documentation).
#[derive(Debug)]
pub(crate) struct VersionFloor;

impl VersionFloor {
    pub(crate) const MINIMUM: (u32, u32, u32) = (1, 39, 1);

    /// What to say about a version; `None` if nothing.
    pub(crate) fn warning(version: Option<(u32, u32, u32)>) -> Option<String> {
        let (major, minor, patch) = Self::MINIMUM;
        match version {
            Some(known) if known >= Self::MINIMUM => None,
            Some((a, b, c)) => Some(format!(
                "Envoy {a}.{b}.{c} has known policy bypasses; use {major}.{minor}.{patch} or newer"
            )),
            None => Some(format!("Envoy of unknown version; use {major}.{minor}.{patch} or newer")),
        }
    }
}

/// The open sessions.
#[derive(Debug, Default)]
pub(crate) struct Sessions {
    open: BTreeMap<SessionId, Session>,
    last: u64,
}

impl Sessions {
    pub(crate) fn open(&mut self, session: Session) -> SessionId {
        self.last += 1;
        let id = SessionId(self.last);
        self.open.insert(id, session);
        id
    }

    pub(crate) fn close(&mut self, id: SessionId) -> Option<Session> {
        self.open.remove(&id)
    }

    pub(crate) fn iter(&self) -> impl Iterator<Item = &Session> {
        self.open.values()
    }

    /// Learns what is published for each session, and what it said to that.
    pub(crate) fn refresh(&mut self, publisher: &Publisher) {
        for session in self.open.values_mut() {
            let changed = publisher.changed(&session.key).unwrap_or(session.changed);
            session.refresh(changed);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_floor_is_a_version_and_unknown_is_below_it() {
        for (version, fine) in [
            (Some((1, 39, 1)), true),
            (Some((1, 39, 3)), true),
            (Some((1, 40, 0)), true),
            (Some((2, 0, 0)), true),
            (Some((1, 39, 0)), false),
            (Some((1, 36, 2)), false),
            (None, false),
        ] {
            assert_eq!(VersionFloor::warning(version).is_none(), fine, "{version:?}");
        }
    }
}
