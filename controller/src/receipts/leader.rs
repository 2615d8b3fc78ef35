//! The one replica that writes status: listens to all, sums up, writes what changed and tells events. What it does not hold
//! the Lease for it does not write, and it stops before the Lease ends.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::{Duration, Instant};

use crds::ObjectRef;
use source::kubernetes::events::{About, Events, Reason};
use source::kubernetes::lease::Leadership;
use source::kubernetes::replicas::Replicas;
use source::kubernetes::status::{Outcome, Status, WriteError, Writer};
use tokio::sync::{mpsc, watch};
use tokio::task::{AbortHandle, JoinSet};
use tokio::time::timeout_at;

use crate::Handle;
use crate::actor::Registry;
use crate::metrics::{Metrics, ResultLabel};

use super::aggregate::Aggregate;
use super::book::Reader;
use super::evaluate::Verdict;
use super::facts::{All, Fact};
use super::follow::{Dialer, Heard, follow};
use super::schedule::{Schedule, conditions, find};

/// Writes at the same time.
const WRITES: usize = 16;
/// What happens within this time is looked at together.
const BATCH: Duration = Duration::from_millis(1);
/// At the beginning of a term: how long to wait for replicas that have said nothing yet.
const HEARING: Duration = Duration::from_millis(1500);
/// An announcement that was not renewed for so long is that of a replica where nobody is expected any more.
const ABSENT: Duration = Duration::from_secs(30);
/// Messages of other replicas that may wait.
const HEARD: usize = 256;
/// How often it is looked which announcements were not renewed.
const LOOK: Duration = Duration::from_secs(1);

/// What the writing replica needs of its surroundings.
#[derive(Debug)]
pub struct Cluster {
    /// This replica's name among [`Self::replicas`].
    pub me: Arc<str>,
    pub leadership: Leadership,
    /// All that are announced, this one among them or not.
    pub replicas: watch::Receiver<Replicas>,
    pub dialer: Dialer,
    pub writer: Writer,
    pub events: Events,
}

/// Writes status whenever this replica holds the Lease, until dropped. Waits for the first readiness.
pub async fn lead(handle: Handle, cluster: Cluster) {
    handle.wait_ready().await;
    let Cluster { me, mut leadership, replicas, dialer, writer, events } = cluster;
    let mut complained = false;
    loop {
        leadership.gained().await;
        let mut ends = leadership.clone();
        let until = leadership.until().unwrap_or_else(tokio::time::Instant::now);
        let present = match timeout_at(until, writer.present()).await {
            Ok(Ok(present)) => present,
            Ok(Err(error)) => {
                if !std::mem::replace(&mut complained, true) {
                    tracing::warn!(%error, "status cannot be read, so it is not written; tried again, and not said again");
                }
                tokio::time::sleep(Duration::from_secs(2)).await;
                continue;
            }
            Err(_) => continue,
        };
        complained = false;
        let term =
            Term::new(&handle, me.clone(), &leadership, replicas.clone(), &dialer, &writer, &events, present);
        handle.metrics.status_leader.set(1);
        tokio::select! {
            () = term.run() => return,
            () = ends.lost() => tracing::info!("this replica writes no status any more"),
        }
        handle.metrics.status_leader.set(0);
        handle.metrics.replicas_unreachable.set(0);
    }
}

/// From getting the Lease to losing it. Everything it started ends when it is dropped.
struct Term {
    me: Arc<str>,
    aggregate: Aggregate,
    schedule: Schedule,
    own: Reader,
    facts: watch::Receiver<Arc<All>>,
    registry: watch::Receiver<Arc<Registry>>,
    replicas: watch::Receiver<Replicas>,
    following: HashMap<Arc<str>, (String, AbortHandle)>,
    followers: JoinSet<()>,
    /// Given to every follower.
    ear: mpsc::Sender<(Arc<str>, Heard)>,
    heard: mpsc::Receiver<(Arc<str>, Heard)>,
    /// Replicas that have not been heard yet, and until when that is waited for.
    unheard: Vec<Arc<str>>,
    hearing_ends: Option<Instant>,
    writes: JoinSet<(ObjectRef, Status, Result<Outcome, WriteError>)>,
    leadership: Leadership,
    dialer: Dialer,
    writer: Writer,
    events: Events,
    metrics: Metrics,
    /// Said already.
    forbidden: bool,
}

impl Term {
    #[allow(
        clippy::too_many_arguments,
        reason = "made in one place, of parts that have nothing else in common"
    )]
    fn new(
        handle: &Handle,
        me: Arc<str>,
        leadership: &Leadership,
        replicas: watch::Receiver<Replicas>,
        dialer: &Dialer,
        writer: &Writer,
        events: &Events,
        present: HashMap<ObjectRef, Status>,
    ) -> Self {
        let (facts, registry) = (handle.facts.clone(), handle.registry.clone());
        let (ear, heard) = mpsc::channel(HEARD);
        Self {
            me,
            aggregate: Aggregate::default(),
            schedule: Schedule::new(present),
            own: handle.book.reader(),
            facts,
            registry,
            replicas,
            following: HashMap::new(),
            followers: JoinSet::new(),
            ear,
            heard,
            unheard: Vec::new(),
            hearing_ends: Some(Instant::now() + HEARING),
            writes: JoinSet::new(),
            leadership: leadership.clone(),
            dialer: dialer.clone(),
            writer: writer.clone(),
            events: events.clone(),
            metrics: handle.metrics.clone(),
            forbidden: false,
        }
    }

    /// Ends when the controller does.
    async fn run(mut self) {
        self.facts.mark_changed();
        self.registry.mark_changed();
        self.meet();
        let mut look = tokio::time::interval(LOOK);
        let mut spent = Duration::ZERO;
        loop {
            let due = self.next();
            let sleep = async {
                match due {
                    Some(due) => tokio::time::sleep_until(due.into()).await,
                    None => std::future::pending().await,
                }
            };
            tokio::select! {
                more = self.own.changed() => if !more { return },
                changed = self.facts.changed() => if changed.is_err() { return },
                changed = self.registry.changed() => if changed.is_err() { return },
                Ok(()) = self.replicas.changed() => self.meet(),
                Some((name, heard)) = self.heard.recv() => self.hear(&name, heard),
                Some(done) = self.writes.join_next() => self.wrote(done),
                () = sleep => {}
                _ = look.tick() => self.miss(),
            }
            // No more than half of the time goes into this, however much happens.
            tokio::time::sleep(BATCH.max(spent)).await;
            let start = Instant::now();
            self.take_in();
            self.write();
            spent = start.elapsed();
        }
    }

    /// When something is to be written, or the waiting at the beginning ends.
    fn next(&self) -> Option<Instant> {
        match self.hearing_ends {
            Some(ends) => Some(ends),
            None if self.schedule.under_way() < WRITES => self.schedule.next(),
            None => None,
        }
    }

    /// Takes in everything that is there to be taken in.
    fn take_in(&mut self) {
        self.aggregate.said(&self.me, self.own.read());
        while let Ok((name, heard)) = self.heard.try_recv() {
            self.hear(&name, heard);
        }
        while let Some(done) = self.writes.try_join_next() {
            self.wrote(done);
        }
        let registry = self.registry.borrow_and_update().clone();
        self.aggregate.workloads(&registry.workloads);
        let facts = self.facts.borrow_and_update().clone();
        for object in self.aggregate.facts(&facts) {
            self.schedule.forget(&object);
        }
        let now = Instant::now();
        // That this replica sees its own announcement shows that it sees all.
        let heard = self.unheard.is_empty() && self.replicas.borrow().contains_key(&self.me);
        if self.hearing_ends.is_some_and(|ends| ends <= now || heard) {
            self.hearing_ends = None;
        }
        self.metrics.replicas_unreachable.set(self.aggregate.unreachable() as i64);
        for (fact, verdicts) in self.aggregate.take() {
            self.conclude(&fact, verdicts, now);
        }
    }

    fn conclude(&mut self, fact: &Fact, verdicts: Vec<Verdict>, now: Instant) {
        let Some(version) = &fact.version else { return };
        let conditions = conditions(verdicts);
        let status = Status { uid: version.uid.clone(), generation: version.generation, conditions };
        self.schedule.want(&fact.object, status, now);
    }

    /// Starts the writes that are due.
    fn write(&mut self) {
        let (Some(deadline), None) = (self.leadership.until(), self.hearing_ends) else { return };
        let room = WRITES - self.schedule.under_way().min(WRITES);
        for (object, status) in self.schedule.due(Instant::now(), room) {
            self.tell(&object, &status);
            let writer = self.writer.clone();
            self.writes.spawn(async move {
                let outcome = writer.write(&object, &status, deadline).await;
                (object, status, outcome)
            });
        }
    }

    fn wrote(
        &mut self,
        done: Result<(ObjectRef, Status, Result<Outcome, WriteError>), tokio::task::JoinError>,
    ) {
        let (object, status, outcome) = match done {
            Ok(done) => done,
            Err(error) => std::panic::resume_unwind(error.into_panic()),
        };
        let result = match &outcome {
            Ok(Outcome::Written) => "written",
            Ok(Outcome::Equal) => "equal",
            Ok(Outcome::Gone) => "gone",
            Err(WriteError::Forbidden(_)) => "forbidden",
            Err(_) => "failed",
        };
        self.metrics.status_writes.get_or_create(&ResultLabel { result }).inc();
        let outcome = match outcome {
            Ok(outcome) => Some(outcome),
            Err(WriteError::Forbidden(error)) => {
                if !std::mem::replace(&mut self.forbidden, true) {
                    tracing::warn!(
                        ?error,
                        "no right to write status; tried again when it changes, and not said again"
                    );
                }
                // As if it were there: there is no use in trying until something changes.
                Some(Outcome::Equal)
            }
            Err(error) => {
                tracing::warn!(object = %object, %error, "a status could not be written");
                None
            }
        };
        self.schedule.done(object, status, outcome, Instant::now());
    }

    /// Events for what a status that is to be written newly says.
    fn tell(&self, object: &ObjectRef, status: &Status) {
        let before = self.schedule.written(object).filter(|before| before.generation == status.generation);
        let newly = |kind: &str, wanted: &str| {
            let is = |status: &Status| {
                find(status, kind).is_some_and(|c| c.status == wanted || c.reason == wanted)
            };
            (is(status) && !before.is_some_and(is)).then(|| find(status, kind)).flatten()
        };
        let told = [
            (newly("Accepted", "False"), Reason::PolicyRejected),
            (newly("Programmed", "Rejected"), Reason::ProxyNack),
            (newly("ResolvedRefs", "JwksNotFetched"), Reason::KeysNotFetched),
            (newly("Enforced", "True"), Reason::PolicyEnforced),
        ];
        for (condition, reason) in told {
            if let Some(condition) = condition {
                let note = format!("generation {}: {}", status.generation, condition.message);
                self.events.tell(About::policy(object, &status.uid), reason, &note);
            }
        }
    }

    /// Follows those that are announced, and forgets those that took their announcement back.
    fn meet(&mut self) {
        let replicas = self.replicas.borrow_and_update().clone();
        for (name, replica) in &replicas {
            if *name == self.me {
                continue;
            }
            self.aggregate.announced(name);
            let known = self.following.get(name).is_some_and(|(address, _)| *address == replica.address);
            if !known {
                let task = self.followers.spawn(follow(
                    self.dialer.clone(),
                    self.me.clone(),
                    name.clone(),
                    replica.address.clone(),
                    self.ear.clone(),
                ));
                self.unheard.push(name.clone());
                if let Some((_, before)) =
                    self.following.insert(name.clone(), (replica.address.clone(), task))
                {
                    before.abort();
                }
            }
        }
        let left: Vec<Arc<str>> =
            self.following.keys().filter(|name| !replicas.contains_key(*name)).cloned().collect();
        for name in left {
            if let Some((_, task)) = self.following.remove(&name) {
                task.abort();
            }
            self.unheard.retain(|unheard| *unheard != name);
            self.aggregate.left(&name);
        }
        while self.followers.try_join_next().is_some() {}
    }

    fn hear(&mut self, name: &Arc<str>, heard: Heard) {
        // What a replica said before it left may still be on the way.
        if !self.following.contains_key(name) {
            return;
        }
        // Who refuses a connection need not be waited for.
        self.unheard.retain(|unheard| unheard != name);
        match heard {
            Heard::Said(delta) => self.aggregate.said(name, delta),
            Heard::Lost => self.aggregate.lost(name),
        }
    }

    /// Replicas that did not renew their announcement for long.
    fn miss(&mut self) {
        let now = tokio::time::Instant::now();
        for (name, replica) in &*self.replicas.borrow() {
            if *name != self.me && now.saturating_duration_since(replica.renewed) > ABSENT {
                self.aggregate.absent(name);
            }
        }
    }
}
