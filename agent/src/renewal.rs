//! What is to be done next about the two certificates: join, renew, or wait. Sans I/O: time and chance are passed in, what
//! came of it is told. Wall-clock time, so that a machine that slept finds its certificates due.
//!
//! ```text
//! no agent certificate ─► Join ─► agent certificate ─► RenewAgent (half life) ─┐
//!                                        └─► Workload (half life) ◄────────────┘ a failure of one delays only that one
//! ```

use std::time::Duration;

use time::{Duration as Span, OffsetDateTime};

use authn::schedule::{self, LONGEST_RETRY};

/// How long the control plane may be away without a workload losing its certificate, with the CA's default lifetime of an
/// hour: renewal is never later than the half life.
pub const WORKLOAD_OUTAGE_BUDGET: Duration = Duration::from_secs(30 * 60);
/// How long an agent may be down or cut off and come back without a new join token, with the default lifetime of 7 days.
pub const AGENT_OUTAGE_BUDGET: Duration = Duration::from_secs(84 * 60 * 60);
/// A certificate with less than this part of its lifetime left should have been renewed long ago: an operator must look.
const ALERT_FRACTION: i32 = 3;

/// Which certificate.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Which {
    Agent,
    Workload,
}

/// What to do now.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Step {
    /// Redeem a join token: there is no agent certificate.
    Join,
    RenewAgent,
    Workload,
    /// Nothing, for so long.
    Wait(Duration),
}

/// The validity period of a certificate.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Validity {
    pub(crate) not_before: OffsetDateTime,
    pub(crate) not_after: OffsetDateTime,
}

impl From<&spiffe::Leaf> for Validity {
    fn from(leaf: &spiffe::Leaf) -> Self {
        Self { not_before: leaf.not_before, not_after: leaf.not_after }
    }
}

/// One certificate: until when there is one, and when to ask for the next.
#[derive(Clone, Debug)]
struct Slot {
    held: Option<Validity>,
    /// When to act: renewal, or the next try after failures.
    due: OffsetDateTime,
    /// In a row.
    failures: u32,
}

impl Slot {
    fn empty(now: OffsetDateTime) -> Self {
        Self { held: None, due: now, failures: 0 }
    }

    fn got(&mut self, validity: Validity, now: OffsetDateTime, chance: f64) {
        let due = schedule::renewal(validity.not_before, validity.not_after, chance);
        // A clock that differs from the CA's by half a lifetime would otherwise ask again and again.
        let pause = (validity.not_after - validity.not_before) / 20;
        *self = Self { held: Some(validity), due: due.max(now + pause), failures: 0 };
    }

    fn failed(&mut self, now: OffsetDateTime, chance: f64) {
        self.failures = self.failures.saturating_add(1);
        self.due = now + schedule::retry(self.failures, chance);
    }

    /// How long until it is due; nothing if it is.
    fn wait(&self, now: OffsetDateTime) -> Duration {
        let wait = Duration::try_from(self.due - now).unwrap_or_default();
        // A clock that was set back must not turn a short wait into a long one.
        if self.failures > 0 && wait > LONGEST_RETRY { Duration::ZERO } else { wait }
    }

    /// Takes away what has expired; whether something has.
    fn expire(&mut self, now: OffsetDateTime) -> bool {
        let expired = self.held.is_some_and(|validity| validity.not_after <= now);
        if expired {
            *self = Self { held: None, due: now, failures: self.failures };
        }
        expired
    }

    fn alert(&self, now: OffsetDateTime) -> bool {
        match self.held {
            Some(Validity { not_before, not_after }) => {
                self.failures > 0 && (not_after - now) * ALERT_FRACTION < not_after - not_before
            }
            None => true,
        }
    }
}

/// Both certificates.
#[derive(Clone, Debug)]
pub(crate) struct Renewal {
    agent: Slot,
    workload: Slot,
    /// There is no agent certificate and needs to be none: a token is shown instead.
    by_token: bool,
}

impl Renewal {
    pub(crate) fn new(now: OffsetDateTime) -> Self {
        Self { agent: Slot::empty(now), workload: Slot::empty(now), by_token: false }
    }

    /// For a workload certificate alone.
    pub(crate) fn by_token(now: OffsetDateTime) -> Self {
        Self { by_token: true, ..Self::new(now) }
    }

    /// What to do at `now`.
    pub(crate) fn next(&self, now: OffsetDateTime) -> Step {
        if self.by_token {
            return match self.workload.wait(now) {
                Duration::ZERO => Step::Workload,
                wait => Step::Wait(wait),
            };
        }
        let agent = self.agent.wait(now);
        match self.agent.held {
            None if agent.is_zero() => Step::Join,
            None => Step::Wait(agent),
            Some(_) if agent.is_zero() => Step::RenewAgent,
            Some(_) => match self.workload.wait(now) {
                Duration::ZERO => Step::Workload,
                workload => Step::Wait(agent.min(workload)),
            },
        }
    }

    /// A new certificate came.
    pub(crate) fn got(&mut self, which: Which, validity: Validity, now: OffsetDateTime, chance: f64) {
        self.slot(which).got(validity, now, chance);
    }

    /// None came.
    pub(crate) fn failed(&mut self, which: Which, now: OffsetDateTime, chance: f64) {
        self.slot(which).failed(now, chance);
    }

    /// Both certificates are wanted anew soon (`within`, spread by `chance`): the roots have changed.
    pub(crate) fn hurry(&mut self, now: OffsetDateTime, within: Duration, chance: f64) {
        let soon = now + within.mul_f64(chance.clamp(0.0, 1.0));
        for slot in [&mut self.agent, &mut self.workload] {
            slot.due = slot.due.min(soon);
        }
    }

    /// Whether `which` has expired since the last call.
    pub(crate) fn expire(&mut self, which: Which, now: OffsetDateTime) -> bool {
        self.slot(which).expire(now)
    }

    /// How long `which` is still good for; `None` without one.
    pub(crate) fn left(&self, which: Which, now: OffsetDateTime) -> Option<Span> {
        let slot = match which {
            Which::Agent => &self.agent,
            Which::Workload => &self.workload,
        };
        slot.held.map(|validity| validity.not_after - now)
    }

    /// Failures in a row.
    pub(crate) fn failures(&self, which: Which) -> u32 {
        match which {
            Which::Agent => self.agent.failures,
            Which::Workload => self.workload.failures,
        }
    }

    /// Whether somebody must look: there is no certificate, or less than a third of its life is left and renewal fails.
    pub(crate) fn alert(&self, now: OffsetDateTime) -> bool {
        (!self.by_token && self.agent.alert(now)) || self.workload.alert(now)
    }

    fn slot(&mut self, which: Which) -> &mut Slot {
        match which {
            Which::Agent => &mut self.agent,
            Which::Workload => &mut self.workload,
        }
    }
}

#[cfg(test)]
mod tests;
