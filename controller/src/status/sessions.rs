//! The connected proxies and what they said to what they were sent. Only reports: the sessions themselves are
//! `xds::ads`'s.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant, SystemTime};

use mesh::Workload;
use policy::ObjectName;
use tokio::sync::{mpsc, watch};
use xds::{ResourceType, Snapshot};

use crate::publish::{Publisher, SlotKey};
use crate::receipts::{Journal, Nack, Progress, ProxyRow, Refusal};
use crate::store::{Edit, workload_name};

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
    /// How long connections of a replaced listener may live on.
    pub(crate) drain_time: Duration,
}

/// One stream of one proxy.
#[derive(Debug)]
pub(crate) struct Session {
    pub(crate) key: SlotKey,
    pub(crate) proxy: Connected,
    since: SystemTime,
    /// Of the pod that it was opened for.
    pod_uid: Option<Arc<str>>,
    snapshots: watch::Receiver<Arc<Snapshot>>,
    journal: Arc<Mutex<Journal>>,
    progress: Progress,
    /// The commit that last changed each type for it.
    changed: [u64; 5],
    /// What it is to have could not be translated, and so it was told others.
    failed: bool,
    /// The commit that last changed which policies apply to it, other than by changing those.
    concerned: u64,
}

impl Session {
    pub(crate) fn new(
        key: SlotKey,
        proxy: Connected,
        pod_uid: Option<Arc<str>>,
        snapshots: watch::Receiver<Arc<Snapshot>>,
        journal: Arc<Mutex<Journal>>,
        changed: [u64; 5],
    ) -> Self {
        let since = SystemTime::now();
        let progress = Progress::new(changed, proxy.drain_time);
        Self {
            key,
            proxy,
            since,
            pod_uid,
            snapshots,
            journal,
            progress,
            changed,
            failed: false,
            concerned: 0,
        }
    }

    fn journal(&self) -> MutexGuard<'_, Journal> {
        self.journal.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// What is published to it may have changed by `commit`.
    fn published(&mut self, commit: u64, changed: [u64; 5]) {
        self.changed = changed;
        let journal = self.journal.lock().unwrap_or_else(PoisonError::into_inner);
        self.progress.published(commit, changed, &journal);
    }

    /// Takes over what the proxy said.
    fn advance(&mut self, now: Instant) {
        let mut journal = self.journal.lock().unwrap_or_else(PoisonError::into_inner);
        journal.read();
        self.progress.advance(&journal, now);
    }

    /// What is said of it to other replicas. With `failed`, what it is to have could not be translated.
    fn row(&mut self, SessionId(id): SessionId, failed: bool) -> ProxyRow {
        self.failed = failed;
        let refusal = |(kind, nack): (ResourceType, &Nack)| {
            let Nack { resource, error, since } = nack.clone();
            Refusal { kind, resource, error, since }
        };
        let refusals = self.journal().nacks().map(refusal).collect();
        ProxyRow {
            id,
            workload: self.key.workload.clone(),
            pod_uid: self.pod_uid.clone(),
            connected: self.since,
            behind: if failed { Some(1) } else { self.progress.behind() },
            draining: self.progress.draining(),
            concerned: self.concerned,
            refusals,
        }
    }

    pub(crate) fn status(&self, registered: bool) -> ProxyStatus {
        let Connected {
            node,
            workload,
            peer,
            secure,
            identity,
            envoy_version,
            agent_version: _,
            drain_time: _,
        } = &self.proxy;
        let snapshot = self.snapshots.borrow().clone();
        let journal = self.journal();
        let types = ResourceType::ALL.into_iter().map(|kind| TypeStatus {
            kind: kind.short().to_owned(),
            published: self.changed[kind as usize],
            acked: journal.acknowledged(kind),
            resources: snapshot.of(kind).iter().count(),
            rejected: journal.nacks().filter(|(of, _)| *of == kind).map(|(_, nack)| rejected(nack)).collect(),
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
            synced: self.progress.behind().is_none() && journal.nacks().next().is_none(),
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

/// Workloads to which other policies may apply than before.
#[derive(Debug, Default)]
pub(crate) struct Concerned {
    pub(crate) all: bool,
    pub(crate) workloads: BTreeSet<ObjectName>,
}

impl Concerned {
    fn has(&self, workload: &ObjectName) -> bool {
        self.all || self.workloads.contains(workload)
    }

    /// An edit of the store took place.
    pub(crate) fn edited(&mut self, edit: &Edit) {
        match edit {
            Edit::Mesh => self.all = true,
            Edit::Workload { old, new } => {
                let same = |a: &Workload, b: &Workload| a.labels == b.labels && a.uid == b.uid;
                if !old.as_ref().zip(new.as_ref()).is_some_and(|(old, new)| same(old, new)) {
                    self.workloads.extend(old.iter().chain(new).map(|workload| workload_name(workload)));
                }
            }
            Edit::Nothing
            | Edit::Policy { .. }
            | Edit::Service(_)
            | Edit::Sidecar(_)
            | Edit::DestinationRule { .. }
            | Edit::Telemetry(_)
            | Edit::Slice(_) => {}
        }
    }
}

/// The open sessions.
#[derive(Debug)]
pub(crate) struct Sessions {
    open: BTreeMap<SessionId, Session>,
    last: u64,
    /// Given to every journal.
    said: mpsc::UnboundedSender<SessionId>,
    /// When time alone changes some session's progress, at the earliest.
    next: Option<Instant>,
}

impl Sessions {
    /// `said` is told which sessions to [`Self::advance`].
    pub(crate) fn new(said: mpsc::UnboundedSender<SessionId>) -> Self {
        Self { open: BTreeMap::new(), last: 0, said, next: None }
    }

    pub(crate) fn open(&mut self, session: Session) -> SessionId {
        self.last += 1;
        let id = SessionId(self.last);
        session.journal().follow(id, self.said.clone());
        self.open.insert(id, session);
        id
    }

    pub(crate) fn close(&mut self, id: SessionId) -> Option<Session> {
        self.open.remove(&id)
    }

    pub(crate) fn iter(&self) -> impl Iterator<Item = &Session> {
        self.open.values()
    }

    /// Learns what the last commit published for each session; what is said of those that it may have concerned.
    /// `concerned` are the workloads for which other policies may apply now.
    pub(crate) fn published(&mut self, publisher: &Publisher, concerned: &Concerned) -> Vec<ProxyRow> {
        let commit = publisher.generation;
        let mut rows = Vec::new();
        for (id, session) in &mut self.open {
            // A slot that is gone ends its sessions.
            let Some(changed) = publisher.changed(&session.key) else { continue };
            session.published(commit, changed);
            let other = concerned.has(&session.key.workload);
            if other {
                session.concerned = commit;
            }
            let failed = publisher.fails(&session.key);
            if changed.contains(&commit) || other || failed != session.failed {
                rows.push(session.row(*id, failed));
            }
        }
        rows
    }

    /// Takes over what the proxies of `ids` said, and what passed with time for all.
    pub(crate) fn advance(
        &mut self,
        ids: impl IntoIterator<Item = SessionId>,
        publisher: &Publisher,
    ) -> Vec<ProxyRow> {
        let now = Instant::now();
        let mut ids: BTreeSet<SessionId> = ids.into_iter().collect();
        if self.next.is_some_and(|next| next <= now) {
            ids.extend(self.open.keys());
            self.next = None;
        }
        let mut rows = Vec::new();
        for id in ids {
            let Some(session) = self.open.get_mut(&id) else { continue };
            session.advance(now);
            self.next = [self.next, session.progress.next()].into_iter().flatten().min();
            rows.push(session.row(id, publisher.fails(&session.key)));
        }
        rows
    }

    /// When [`Self::advance`] is due although nobody said anything.
    pub(crate) fn next(&self) -> Option<Instant> {
        self.next
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
