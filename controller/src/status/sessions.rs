//! The connected proxies and what they said to what they were sent. Only reports: the sessions themselves are
//! `xds::ads`'s.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::SystemTime;

use policy::ObjectName;
use tokio::sync::watch;
use xds::{ResourceType, Snapshot};

use crate::publish::{Publisher, SlotKey};

use super::{ProxyStatus, RejectedStatus, TypeStatus, timestamp};

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
    /// The culprits where the session could tell them.
    pub(crate) resources: Vec<Arc<str>>,
    pub(crate) error: String,
}

#[derive(Debug)]
pub(crate) struct Session {
    pub(crate) key: SlotKey,
    pub(crate) proxy: Connected,
    pub(crate) since: SystemTime,
    pub(crate) snapshots: watch::Receiver<Arc<Snapshot>>,
    /// The generation that last changed each type for it; brought up to date by [`Sessions::refresh`].
    changed: [u64; 5],
    acked: [Option<u64>; 5],
    /// The latest refusal of each type that no later acknowledgement has healed.
    nacks: [Option<Nack>; 5],
}

impl Session {
    pub(crate) fn new(key: SlotKey, proxy: Connected, snapshots: watch::Receiver<Arc<Snapshot>>) -> Self {
        let since = SystemTime::now();
        Self { key, proxy, since, snapshots, changed: [0; 5], acked: [None; 5], nacks: Default::default() }
    }

    pub(crate) fn acked(&mut self, kind: ResourceType, generation: u64) {
        let index = kind as usize;
        self.acked[index] = Some(self.acked[index].unwrap_or(0).max(generation));
        self.nacks[index] = None;
    }

    pub(crate) fn nacked(&mut self, kind: ResourceType, nack: Nack) {
        self.nacks[kind as usize] = Some(nack);
    }

    pub(crate) fn nacks(&self) -> impl Iterator<Item = (ResourceType, &Nack)> {
        ResourceType::ALL.into_iter().filter_map(|kind| Some((kind, self.nacks[kind as usize].as_ref()?)))
    }

    /// Whether it has acknowledged all that is published for it. A type that it has not asked for and that would hold
    /// nothing for it does not count; listeners it must always have asked for.
    pub(crate) fn synced(&self) -> bool {
        let snapshot = self.snapshots.borrow();
        ResourceType::ALL.into_iter().all(|kind| {
            let index = kind as usize;
            match self.acked[index] {
                Some(acked) => acked >= self.changed[index] && self.nacks[index].is_none(),
                None => kind != ResourceType::Listener && snapshot.of(kind).iter().next().is_none(),
            }
        })
    }

    pub(crate) fn status(&self, registered: bool) -> ProxyStatus {
        let Connected { node, workload, peer, secure, identity, envoy_version, agent_version: _ } =
            &self.proxy;
        let snapshot = self.snapshots.borrow().clone();
        let types = ResourceType::ALL.into_iter().map(|kind| TypeStatus {
            kind: kind.short().to_owned(),
            published: self.changed[kind as usize],
            acked: self.acked[kind as usize],
            resources: snapshot.of(kind).iter().count(),
            rejected: self.nacks[kind as usize].iter().map(rejected).collect(),
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
            synced: self.synced(),
            types: types.collect(),
            warnings,
        }
    }
}

fn rejected(nack: &Nack) -> RejectedStatus {
    RejectedStatus {
        resources: nack.resources.iter().map(ToString::to_string).collect(),
        error: nack.error.clone(),
    }
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

    pub(crate) fn get_mut(&mut self, id: SessionId) -> Option<&mut Session> {
        self.open.get_mut(&id)
    }

    pub(crate) fn iter(&self) -> impl Iterator<Item = &Session> {
        self.open.values()
    }

    /// Learns what is published for each session.
    pub(crate) fn refresh(&mut self, publisher: &Publisher) {
        for session in self.open.values_mut() {
            if let Some(changed) = publisher.changed(&session.key) {
                session.changed = changed;
            }
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
