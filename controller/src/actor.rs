//! The one task that owns all state: takes changes in batches, answers subscriptions, remembers what proxies said, and
//! tells readiness. Everything it computes is synchronous; nobody else ever holds a lock on it.

mod command;

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use authn::jwks::Update;
use crds::{Kind, Object};
use mesh::{MeshConfig, Workload};
use policy::ObjectName;
use runtime::http::Reasons;
use source::{Change, Version};
use tokio::sync::{mpsc, watch};
use tokio::time::timeout_at;

use crate::audit::Audit;
use crate::keys::{Keys, Resolved};
use crate::metrics::{KindLabel, Metrics, TypeLabel, VersionLabel, version_label};
use crate::publish::{Publisher, Refusal, SlotKey};
use crate::receipts::{Key, ProxyRow, Receipts};
use crate::report;
use crate::status::{
    Concerned, Connected, Journal, KeysOf, Objects, Report, Session, SessionId, Sessions, VersionFloor,
};
use crate::store::Edit;

pub(crate) use command::{Command, Denied, Opened, Subscribe};

/// A batch ends when nothing came for so long ..
const QUIET: Duration = Duration::from_millis(1);
/// .. or after so long, whatever comes.
const LONGEST: Duration = Duration::from_millis(5);
/// Changes taken over at once.
const BATCH: usize = 4096;

/// When the last batch that changed something arrived, and the generation it led to.
pub(crate) type Arrived = Arc<Mutex<(u64, Instant)>>;

/// What the certificate authority needs to know of the registry.
#[derive(Clone, Debug, Default)]
pub(crate) struct Registry {
    pub(crate) workloads: Arc<BTreeMap<ObjectName, Arc<Workload>>>,
    pub(crate) mesh: Arc<MeshConfig>,
    /// `false` before the first list: a workload may still come, and an entry may turn out to be hidden by a Pod.
    pub(crate) complete: bool,
}

/// The source's end of the channel is gone: nothing would ever be learnt again.
#[derive(Debug, thiserror::Error)]
#[error("the source of objects ended")]
pub struct SourceEnded;

#[derive(Debug)]
pub(crate) struct Actor {
    publisher: Publisher,
    objects: Objects,
    sessions: Sessions,
    /// Sessions whose proxies said something.
    said: mpsc::UnboundedReceiver<SessionId>,
    pub(crate) receipts: Receipts,
    concerned: Concerned,
    keys: Keys,
    learnt: mpsc::Receiver<Update>,
    metrics: Metrics,
    audit: Audit,
    /// The first list is complete.
    synced: bool,
    /// Was ready once, so that what is in force is complete; a later problem freezes or degrades, but serves on.
    served: bool,
    frozen: Option<String>,
    arrived: Arrived,
    ready: watch::Sender<Result<(), Reasons>>,
    registry: watch::Sender<Arc<Registry>>,
}

impl Actor {
    pub(crate) fn new(
        metrics: Metrics,
        arrived: Arrived,
        ready: watch::Sender<Result<(), Reasons>>,
        registry: watch::Sender<Arc<Registry>>,
        (keys, learnt): (Keys, mpsc::Receiver<Update>),
    ) -> Self {
        let (sender, said) = mpsc::unbounded_channel();
        Self {
            publisher: Publisher::default(),
            objects: Objects::default(),
            sessions: Sessions::new(sender),
            said,
            receipts: Receipts::new(),
            concerned: Concerned::default(),
            keys,
            learnt,
            metrics,
            audit: Audit::default(),
            synced: false,
            served: false,
            frozen: None,
            arrived,
            ready,
            registry,
        }
    }

    /// With its changes written down.
    pub(crate) fn audited(self, trail: runtime::audit::Trail) -> Self {
        Self { audit: Audit::new(trail), ..self }
    }

    /// Runs until nobody holds a handle any more.
    ///
    /// # Errors
    /// [`SourceEnded`] if the source goes away first.
    pub(crate) async fn run(
        mut self,
        mut changes: mpsc::Receiver<Change>,
        mut commands: mpsc::Receiver<Command>,
        mut closed: mpsc::UnboundedReceiver<SessionId>,
    ) -> Result<(), SourceEnded> {
        self.settle();
        let mut batch = Vec::new();
        loop {
            let due = self.sessions.next();
            tokio::select! {
                received = changes.recv_many(&mut batch, BATCH) => {
                    if received == 0 {
                        return Err(SourceEnded);
                    }
                    collect(&mut changes, &mut batch).await;
                    self.take(batch.drain(..));
                }
                command = commands.recv() => match command {
                    Some(command) => self.obey(command),
                    None => return Ok(()),
                },
                Some(id) = closed.recv() => {
                    let more = std::iter::from_fn(|| closed.try_recv().ok());
                    self.close(std::iter::once(id).chain(more));
                }
                Some(id) = self.said.recv() => {
                    let more = std::iter::from_fn(|| self.said.try_recv().ok());
                    let ids: Vec<SessionId> = std::iter::once(id).chain(more).collect();
                    self.advance(ids);
                }
                Some(update) = self.learnt.recv() => self.learn(update),
                () = until(due) => self.advance([]),
            }
        }
    }

    /// Takes over one batch and publishes what it changes.
    fn take(&mut self, batch: impl Iterator<Item = Change>) {
        let start = Instant::now();
        let mut registered = false;
        for change in batch {
            let edit = self.change(change);
            self.concerned.edited(&edit);
            registered |= matches!(edit, Edit::Workload { .. } | Edit::Mesh);
            if let Some(trigger) = trigger(&edit) {
                self.metrics.push_triggers.get_or_create(&TypeLabel { r#type: trigger }).inc();
            }
            if self.synced {
                self.publisher.edited(&edit);
            }
        }
        let proxies = self.commit(start);
        self.tell(proxies);
        if registered || self.registry.borrow().complete != self.synced {
            self.publish_registry();
        }
        self.settle();
    }

    /// Publishes what the edits so far affect; what is to be told of the proxies then.
    fn commit(&mut self, start: Instant) -> Vec<ProxyRow> {
        if !self.synced {
            return Vec::new();
        }
        let before = self.publisher.generation;
        let published = self.publisher.commit();
        if self.publisher.generation != before {
            *self.arrived.lock().unwrap_or_else(PoisonError::into_inner) = (self.publisher.generation, start);
            let took = start.elapsed();
            self.metrics.commit.observe(took.as_secs_f64());
            self.metrics.published.inc_by(published as u64);
            tracing::debug!(generation = self.publisher.generation, published, ?took, "committed");
            let concerned = std::mem::take(&mut self.concerned);
            return self.sessions.published(&self.publisher, &concerned);
        }
        Vec::new()
    }

    /// Takes over what these proxies said, and what passed with time.
    fn advance(&mut self, ids: impl IntoIterator<Item = SessionId>) {
        let proxies = self.sessions.advance(ids, &self.publisher);
        self.tell(proxies);
    }

    /// Tells what is new of policies and of these proxies.
    fn tell(&mut self, proxies: Vec<ProxyRow>) {
        let ready = self.reasons().is_empty();
        let Self { receipts, objects, publisher, synced, .. } = self;
        receipts.publish(*synced, ready, objects, publisher, proxies);
    }

    fn change(&mut self, change: Change) -> Edit {
        let update = |kind| self.metrics.inbound_updates.get_or_create(&TypeLabel { r#type: kind }).inc();
        self.audit.change(&change);
        match change {
            Change::Apply { object, origin, version, findings } => {
                update("config");
                self.apply(*object, origin, version, findings)
            }
            Change::Delete(object) => {
                update("config");
                tracing::info!(object = %object, "deleted");
                self.objects.deleted(&object);
                if object.kind == Kind::RequestAuthentication {
                    self.keys.forget(&object.id);
                }
                let edit = self.publisher.store.remove(&object);
                self.receipts.touched(&object, &edit);
                edit
            }
            Change::Kept { object, origin, version, findings } => {
                tracing::warn!(object = %object, %origin, "cannot be read; its last good version stays in force");
                self.receipts.touched(&object, &Edit::Nothing);
                self.objects.kept(object, origin, version, findings);
                Edit::Nothing
            }
            Change::Unreadable { origin, finding, blocks_ready } => {
                self.objects.unreadable(origin, finding, blocks_ready);
                Edit::Nothing
            }
            Change::Mesh(mesh) => self.publisher.store.set_mesh(*mesh),
            Change::Synced => {
                if !self.synced {
                    self.synced = true;
                    self.publisher.first_list();
                }
                Edit::Nothing
            }
            Change::Frozen(reason) => {
                self.freeze(reason);
                Edit::Nothing
            }
            Change::Unimplemented(objects) => {
                self.objects.unimplemented(objects);
                Edit::Nothing
            }
        }
    }

    fn apply(
        &mut self,
        object: Object,
        origin: String,
        version: Option<Version>,
        findings: Vec<crds::Finding>,
    ) -> Edit {
        let (object, keys) = match object {
            Object::RequestAuthentication(policy) => {
                let Resolved { policy, missing, stale } = self.keys.resolve(policy);
                (Object::RequestAuthentication(policy), KeysOf { missing, stale })
            }
            other => (other, KeysOf::default()),
        };
        let reference = object.object_ref();
        self.objects.applied(reference.clone(), origin, version, findings, keys);
        let edit = self.publisher.store.apply(object);
        self.receipts.touched(&reference, &edit);
        edit
    }

    /// Takes over what came of fetching keys, and publishes what it changes.
    fn learn(&mut self, update: Update) {
        let start = Instant::now();
        for Resolved { policy, missing, stale } in self.keys.learn(update) {
            let object = Object::RequestAuthentication(policy);
            let reference = object.object_ref();
            self.objects.keys(&reference, KeysOf { missing, stale });
            let edit = self.publisher.store.apply(object);
            self.receipts.touched(&reference, &edit);
            if self.synced {
                self.publisher.edited(&edit);
            }
        }
        let proxies = self.commit(start);
        self.tell(proxies);
    }

    fn freeze(&mut self, reason: Option<String>) {
        match (&self.frozen, &reason) {
            (_, Some(reason)) => {
                tracing::error!(%reason, "the source is lost; what is in force stays in force");
            }
            (Some(_), None) => tracing::info!("the source is back"),
            (None, None) => {}
        }
        self.frozen = reason;
    }

    /// Brings readiness and gauges up to date.
    fn settle(&mut self) {
        let reasons = self.reasons();
        let ready = if reasons.is_empty() { Ok(()) } else { Err(reasons) };
        self.served |= ready.is_ok();
        self.ready.send_if_modified(|current| {
            let changed = *current != ready;
            if changed {
                match &ready {
                    Ok(()) => tracing::info!("ready"),
                    Err(reasons) => tracing::warn!(?reasons, "not ready"),
                }
                current.clone_from(&ready);
            }
            changed
        });
        let Metrics { services, objects, objects_with_errors, ready: is_ready, frozen, failures, .. } =
            &self.metrics;
        for (kind, count) in self.publisher.store.counts() {
            objects.get_or_create(&KindLabel { kind: kind.as_str() }).set(count as i64);
        }
        services.set(self.publisher.store.services.len() as i64);
        objects_with_errors
            .set(self.objects.known.values().filter(|known| known.has_errors()).count() as i64);
        is_ready.set(i64::from(ready.is_ok()));
        frozen.set(i64::from(self.frozen.is_some()));
        failures.set(self.publisher.failures.iter().count() as i64);
    }

    fn reasons(&self) -> Reasons {
        let mut reasons = Vec::new();
        if !self.synced {
            reasons.push("the first list of objects is not complete".to_owned());
        }
        reasons.extend(self.objects.blocking());
        reasons.extend(self.frozen.clone());
        reasons
    }

    fn publish_registry(&self) {
        let store = &self.publisher.store;
        let workloads = store.workloads().map(|w| (crate::store::workload_name(w), w.clone())).collect();
        let registry =
            Registry { workloads: Arc::new(workloads), mesh: store.mesh.clone(), complete: self.synced };
        self.registry.send_replace(Arc::new(registry));
    }

    fn obey(&mut self, command: Command) {
        match command {
            Command::Subscribe(subscribe) => {
                let Subscribe { key, proxy, journal, reply } = *subscribe;
                let answer = self.subscribe(&key, proxy, journal);
                let opened = answer.as_ref().ok().map(|opened| opened.id);
                // A caller that has gone away meanwhile gets no session.
                if let (Err(_), Some(id)) = (reply.send(answer), opened) {
                    self.close([id]);
                }
            }
            Command::Advise { object, reply } if !reply.is_closed() => {
                let advice = crate::admission::advice::advise(&mut self.publisher, &object);
                let _ = reply.send(advice);
            }
            Command::Advise { .. } => {}
            Command::Report(reply) => {
                let _ = reply.send(self.report());
            }
        }
    }

    fn subscribe(
        &mut self,
        key: &SlotKey,
        proxy: Connected,
        journal: Arc<Mutex<Journal>>,
    ) -> Result<Opened, Denied> {
        if !self.served {
            return Err(Denied::NotReady(self.reasons()));
        }
        let snapshots = self.publisher.subscribe(key).map_err(|refusal| {
            if matches!(refusal, Refusal::Unregistered(_)) {
                // It waits for its registration; refused only if none comes.
                return Denied::Refused(refusal);
            }
            self.metrics.refused.inc();
            tracing::warn!(node = ?proxy.node, peer = %proxy.peer, refusal = ?refusal.to_string(), "stream refused");
            Denied::Refused(refusal)
        })?;
        if let Some(warning) = VersionFloor::warning(proxy.envoy_version) {
            tracing::warn!(node = ?proxy.node, "{warning}");
        }
        self.count(&proxy, 1);
        let pod_uid = self.publisher.store.workload(&key.workload).and_then(|workload| workload.uid.clone());
        let changed = self.publisher.changed(key).unwrap_or([self.publisher.generation; 5]);
        let session = Session::new(key.clone(), proxy, pod_uid, snapshots.clone(), journal, changed);
        let id = self.sessions.open(session);
        Ok(Opened { id, snapshots })
    }

    /// Ends these sessions and forgets what only they used.
    fn close(&mut self, ids: impl IntoIterator<Item = SessionId>) {
        let mut gone = Vec::new();
        for id in ids {
            if let Some(session) = self.sessions.close(id) {
                self.count(&session.proxy, -1);
                gone.push(Key::Proxy(id.0));
            }
        }
        self.receipts.book.write(self.reasons().is_empty(), [], gone);
        self.publisher.sweep();
    }

    /// Counts a proxy that came or went.
    fn count(&self, proxy: &Connected, change: i64) {
        let label = VersionLabel { version: version_label(&proxy.agent_version) };
        let left = self.metrics.xds.get_or_create(&label).inc_by(change) + change;
        if left == 0 {
            // Labels stay as many as versions are connected.
            self.metrics.xds.remove(&label);
        }
        if VersionFloor::warning(proxy.envoy_version).is_some() {
            self.metrics.below_floor.inc_by(change);
        }
    }

    fn report(&mut self) -> Report {
        let reasons = self.reasons();
        // What was said just now counts.
        let said = std::iter::from_fn(|| self.said.try_recv().ok()).collect::<Vec<_>>();
        self.advance(said);
        let Self { publisher, objects, sessions, receipts, .. } = self;
        report::report(reasons, publisher, objects, sessions, receipts)
    }
}

/// Waits for `due`; for ever if there is nothing due.
async fn until(due: Option<Instant>) {
    match due {
        Some(due) => tokio::time::sleep_until(due.into()).await,
        None => std::future::pending().await,
    }
}

/// Adds what comes within a moment, so that the documents of one file are one step for the proxies.
async fn collect(changes: &mut mpsc::Receiver<Change>, batch: &mut Vec<Change>) {
    let end = tokio::time::Instant::now() + LONGEST;
    loop {
        let quiet = (tokio::time::Instant::now() + QUIET).min(end);
        match timeout_at(quiet, changes.recv_many(batch, BATCH)).await {
            Ok(received) if received > 0 && tokio::time::Instant::now() < end => {}
            _ => return,
        }
    }
}

/// Istio's name for what led to a push (semantics §8).
fn trigger(edit: &Edit) -> Option<&'static str> {
    match edit {
        Edit::Nothing => None,
        Edit::Policy { .. } | Edit::DestinationRule { .. } | Edit::Telemetry(_) | Edit::Sidecar(_) => {
            Some("config")
        }
        Edit::Service(_) => Some("service"),
        Edit::Workload { .. } | Edit::Slice(_) => Some("endpoint"),
        Edit::Mesh => Some("global"),
    }
}
