//! Which replica writes: a `coordination.k8s.io` Lease, held by one at a time. Knows nothing of what is written.
//!
//! No clock of another machine counts. A holder is trusted for the Lease's duration after this process saw it change last,
//! by this process's own monotonic clock. The holder itself stops well before that: its term is counted from before the
//! request that renewed it, so nobody can have begun to wait earlier. Who holds it must ask [`Leadership::until`] before
//! each write and not let a write last longer.

use std::time::Duration;

use k8s_openapi::api::coordination::v1::{Lease, LeaseSpec};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::{MicroTime, ObjectMeta};
use k8s_openapi::jiff::Timestamp;
use kube::api::{Api, PostParams};
use kube::{Client, Error};
use tokio::sync::watch;
use tokio::time::{Instant, timeout};

/// The Lease of the one replica that writes status.
pub const LEADER: &str = "countersign-leader";

/// How long what takes how long. `term` < `duration`, whole seconds.
#[derive(Clone, Copy, Debug)]
pub struct Timing {
    /// After so long without a change others take over.
    pub duration: Duration,
    /// The holder writes for so long after a renewal.
    pub term: Duration,
    /// Between renewals, on average.
    pub renew: Duration,
    /// Between looks at what another one holds, on average.
    pub look: Duration,
    /// After missing rights.
    pub patience: Duration,
}

impl Default for Timing {
    fn default() -> Self {
        Self {
            duration: Duration::from_secs(4),
            term: Duration::from_secs(3),
            renew: Duration::from_secs(1),
            look: Duration::from_millis(400),
            patience: Duration::from_secs(10),
        }
    }
}

/// Whether this process holds the Lease.
#[derive(Clone, Debug)]
pub struct Leadership(watch::Receiver<Option<Instant>>);

impl Leadership {
    /// One that is held for ever, for a process that is alone.
    pub fn sole() -> Self {
        let for_ever = Instant::now() + Duration::from_secs(30 * 365 * 86400);
        Self(watch::channel(Some(for_ever)).1)
    }

    /// What is written must be done by then; `None`: write nothing.
    pub fn until(&self) -> Option<Instant> {
        self.0.borrow().filter(|until| Instant::now() < *until)
    }

    /// Waits until it is held.
    pub async fn gained(&mut self) {
        while self.until().is_none() {
            if self.0.changed().await.is_err() {
                std::future::pending::<()>().await;
            }
        }
    }

    /// Waits until it is not held.
    pub async fn lost(&mut self) {
        while let Some(until) = self.until() {
            tokio::select! {
                () = tokio::time::sleep_until(until) => {}
                changed = self.0.changed() => if changed.is_err() {
                    tokio::time::sleep_until(until).await;
                },
            }
        }
    }
}

/// The Lease as somebody wrote it last.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Written {
    /// `None` or empty: nobody.
    holder: Option<String>,
    renewed: Option<String>,
    duration: Option<i32>,
}

impl From<&Lease> for Written {
    fn from(lease: &Lease) -> Self {
        let spec = lease.spec.clone().unwrap_or_default();
        Self {
            holder: spec.holder_identity.filter(|holder| !holder.is_empty()),
            renewed: spec.renew_time.map(|time| time.0.to_string()),
            duration: spec.lease_duration_seconds,
        }
    }
}

/// What to do with a Lease.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Step {
    Renew,
    TakeOver,
    Wait,
}

/// Who has seen what, and since when. Pure but for the instants passed in.
#[derive(Debug)]
struct Observer {
    identity: String,
    longest: Duration,
    seen: Option<(Written, Instant)>,
}

impl Observer {
    fn step(&mut self, lease: &Lease, now: Instant) -> Step {
        let written = Written::from(lease);
        if self.seen.as_ref().is_none_or(|(seen, _)| *seen != written) {
            self.seen = Some((written, now));
        }
        let Some((Written { holder, renewed: _, duration }, since)) = &self.seen else { return Step::Wait };
        // A holder of another version may want longer, but not for ever.
        let wanted = duration.and_then(|seconds| u64::try_from(seconds).ok()).map(Duration::from_secs);
        let duration = wanted.unwrap_or(self.longest).clamp(Duration::from_secs(1), 4 * self.longest);
        match holder {
            None => Step::TakeOver,
            Some(holder) if *holder == self.identity => Step::Renew,
            Some(_) if now.saturating_duration_since(*since) > duration => Step::TakeOver,
            Some(_) => Step::Wait,
        }
    }
}

/// Takes part in the election for the Lease `name`.
#[derive(Debug)]
pub struct Election {
    leases: Api<Lease>,
    name: String,
    timing: Timing,
    observer: Observer,
    held: watch::Sender<Option<Instant>>,
    /// Said already: it is not said again until something else happens.
    complained: Option<String>,
}

impl Election {
    /// `identity` must be no other process's, also not of an earlier one in the same place.
    pub fn new(
        client: Client,
        namespace: &str,
        name: &str,
        identity: &str,
        timing: Timing,
    ) -> (Self, Leadership) {
        let (held, leadership) = watch::channel(None);
        let election = Self {
            leases: Api::namespaced(client, namespace),
            name: name.to_owned(),
            timing,
            observer: Observer { identity: identity.to_owned(), longest: timing.duration, seen: None },
            held,
            complained: None,
        };
        (election, Leadership(leadership))
    }

    /// Takes part until `stop`, then lets go of the Lease.
    pub async fn run(mut self, stop: impl Future<Output = ()>) {
        tokio::pin!(stop);
        loop {
            let wait = self.turn().await;
            // Between 75 and 125 %, so that replicas do not stay in step.
            let wait = wait.mul_f64(0.75 + rand::random::<f64>() / 2.0);
            tokio::select! {
                () = tokio::time::sleep(wait) => {}
                () = &mut stop => break,
            }
        }
        let held = self.held.send_replace(None).is_some();
        if held {
            self.release().await;
        }
    }

    /// One look and, where it is due, one write; how long to wait then.
    async fn turn(&mut self) -> Duration {
        let Timing { duration: _, term, renew, look, patience } = self.timing;
        let start = Instant::now();
        match timeout(renew, self.attempt(start)).await {
            Ok(Ok(true)) => {
                if self.held.send_replace(Some(start + term)).is_none() {
                    tracing::info!(lease = self.name, "this replica writes status now");
                }
                self.complained = None;
                renew
            }
            Ok(Ok(false)) => {
                if self.held.send_replace(None).is_some() {
                    tracing::warn!(lease = self.name, "another replica writes status now");
                }
                self.complained = None;
                look
            }
            Ok(Err(Error::Api(error))) if error.code == 409 => Duration::from_millis(20),
            Ok(Err(Error::Api(error))) if matches!(error.code, 403 | 404) => {
                self.complain(&error.message);
                patience
            }
            Ok(Err(error)) => self.failed(&error.to_string()),
            Err(_) => self.failed("no answer"),
        }
    }

    fn failed(&mut self, error: &str) -> Duration {
        self.complain(error);
        // While it is still held, the sooner the better.
        if self.held.borrow().is_some_and(|until| Instant::now() < until) {
            return Duration::from_millis(200);
        }
        self.held.send_replace(None);
        self.timing.look
    }

    fn complain(&mut self, error: &str) {
        if self.complained.as_deref() != Some(error) {
            tracing::warn!(lease = self.name, ?error, "cannot take part in choosing who writes status");
            self.complained = Some(error.to_owned());
        }
    }

    /// Whether the Lease is this replica's after it.
    async fn attempt(&mut self, now: Instant) -> Result<bool, Error> {
        let Some(lease) = self.leases.get_opt(&self.name).await? else {
            let metadata = ObjectMeta { name: Some(self.name.clone()), ..ObjectMeta::default() };
            let lease = Lease { metadata, spec: Some(self.spec(None)) };
            self.leases.create(&PostParams::default(), &lease).await?;
            return Ok(true);
        };
        match self.observer.step(&lease, now) {
            Step::Wait => Ok(false),
            Step::Renew | Step::TakeOver => {
                let spec = Some(self.spec(lease.spec));
                // The version goes along, so of several who try one succeeds.
                let lease = Lease { metadata: lease.metadata, spec };
                self.leases.replace(&self.name, &PostParams::default(), &lease).await?;
                Ok(true)
            }
        }
    }

    fn spec(&self, before: Option<LeaseSpec>) -> LeaseSpec {
        let before = before.unwrap_or_default();
        let identity = &self.observer.identity;
        let now = MicroTime(Timestamp::now());
        let mine = before.holder_identity.as_ref() == Some(identity);
        LeaseSpec {
            holder_identity: Some(identity.clone()),
            lease_duration_seconds: i32::try_from(self.timing.duration.as_secs()).ok(),
            renew_time: Some(now.clone()),
            acquire_time: if mine { before.acquire_time } else { Some(now) },
            lease_transitions: Some(before.lease_transitions.unwrap_or(0).saturating_add(i32::from(!mine))),
            ..LeaseSpec::default()
        }
    }

    /// So that the next one need not wait.
    async fn release(&self) {
        let release = async {
            let lease = self.leases.get(&self.name).await?;
            if Written::from(&lease).holder.as_ref() != Some(&self.observer.identity) {
                return Ok(());
            }
            let spec = LeaseSpec { holder_identity: None, ..self.spec(lease.spec) };
            let lease = Lease { metadata: lease.metadata, spec: Some(spec) };
            self.leases.replace(&self.name, &PostParams::default(), &lease).await.map(drop)
        };
        match timeout(Duration::from_secs(2), release).await {
            Ok(Ok(())) => tracing::info!(lease = self.name, "released"),
            Ok(Err(error)) => tracing::info!(lease = self.name, %error, "not released"),
            Err(_) => tracing::info!(lease = self.name, "not released in time"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn lease(holder: &str, renewed: i64, duration: i32) -> Lease {
        let spec = LeaseSpec {
            holder_identity: Some(holder.to_owned()),
            lease_duration_seconds: Some(duration),
            renew_time: Some(MicroTime(Timestamp::from_second(renewed).unwrap())),
            ..LeaseSpec::default()
        };
        Lease { spec: Some(spec), ..Lease::default() }
    }

    fn observer() -> Observer {
        Observer { identity: "me".to_owned(), longest: Duration::from_secs(4), seen: None }
    }

    #[test]
    fn a_holder_is_trusted_from_when_it_was_seen_to_change_whatever_its_clock_says() {
        let mut observer = observer();
        let start = Instant::now();
        let at = |seconds: u64| start + Duration::from_millis(seconds * 1000);
        let mut step = |renewed, seconds| observer.step(&lease("other", renewed, 4), at(seconds));
        assert_eq!(step(0, 0), Step::Wait, "its clock is decades late");
        assert_eq!(step(0, 4), Step::Wait);
        assert_eq!(step(4_000_000_000, 4), Step::Wait, "now it is decades early");
        assert_eq!(step(4_000_000_000, 8), Step::Wait);
        assert_eq!(step(4_000_000_000, 9), Step::TakeOver);
    }

    #[test]
    fn what_is_free_or_ones_own_is_taken_at_once() {
        let now = Instant::now();
        assert_eq!(observer().step(&lease("", 0, 4), now), Step::TakeOver);
        assert_eq!(observer().step(&lease("me", 0, 4), now), Step::Renew);
        assert_eq!(observer().step(&Lease::default(), now), Step::TakeOver);
    }

    #[test]
    fn a_holder_cannot_ask_for_ever() {
        let mut observer = observer();
        let start = Instant::now();
        assert_eq!(observer.step(&lease("other", 0, i32::MAX), start), Step::Wait);
        assert_eq!(
            observer.step(&lease("other", 0, i32::MAX), start + Duration::from_secs(17)),
            Step::TakeOver
        );
        assert_eq!(observer.step(&lease("third", 0, -5), start), Step::Wait);
    }

    #[tokio::test]
    async fn a_term_ends_by_itself() {
        const TERM: Duration = Duration::from_millis(30);
        let (sender, receiver) = watch::channel(None);
        let mut leadership = Leadership(receiver);
        assert_eq!(leadership.until(), None);
        let start = Instant::now();
        sender.send_replace(Some(start + TERM));
        leadership.gained().await;
        leadership.lost().await;
        assert!(start.elapsed() >= TERM);
        assert_eq!(leadership.until(), None);
    }
}
