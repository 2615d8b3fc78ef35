//! When which status is written. What people wait for goes out at once; what will most likely be something else in a moment
//! (a proxy that has not answered yet, one that connects again) waits a little, so that a change that works is one write.
//! Pure but for the instants passed in.

use std::collections::{BTreeMap, HashMap, HashSet};
use std::time::{Duration, Instant};

use crds::ObjectRef;
use source::kubernetes::status::{Condition, Outcome, Status};

use super::evaluate::Verdict;

/// How long what may be over in a moment waits: an answer that is on its way ..
const PATIENCE: Duration = Duration::from_millis(150);
/// .. and a proxy that lost its connection, or its replica, and connects again.
const RECONNECTION: Duration = Duration::from_millis(400);
/// Between two writes of one object that are not urgent.
const APART: Duration = Duration::from_millis(500);
/// After a write that failed.
const RETRY: Duration = Duration::from_millis(500);

#[derive(Debug, Default)]
pub(super) struct Schedule {
    /// What is in the API server, as far as is known.
    written: HashMap<ObjectRef, Status>,
    wanted: BTreeMap<ObjectRef, Wanted>,
    under_way: HashSet<ObjectRef>,
    /// The last write of each object that is not long ago.
    last: HashMap<ObjectRef, Instant>,
}

#[derive(Debug)]
struct Wanted {
    status: Status,
    /// When what is written was first found to be wrong.
    since: Instant,
    due: Instant,
}

impl Schedule {
    /// Begins with what is there.
    pub(super) fn new(written: HashMap<ObjectRef, Status>) -> Self {
        Self { written, ..Self::default() }
    }

    /// `object` is to have this status.
    pub(super) fn want(&mut self, object: &ObjectRef, status: Status, now: Instant) {
        let written = self.written.get(object);
        if written == Some(&status) && !self.under_way.contains(object) {
            self.wanted.remove(object);
            return;
        }
        let since = self.wanted.get(object).map_or(now, |wanted| wanted.since);
        let due = if urgent(&status) {
            now
        } else {
            let apart = self.last.get(object).map(|last| *last + APART);
            let waits = since + patience(&status);
            apart.map_or(waits, |apart| waits.max(apart))
        };
        self.wanted.insert(object.clone(), Wanted { status, since, due });
    }

    /// There is nothing to be said of `object` any more.
    pub(super) fn forget(&mut self, object: &ObjectRef) {
        self.wanted.remove(object);
        self.written.remove(object);
        self.last.remove(object);
    }

    /// Up to `room` statuses to be written now; each is under way until [`Self::done`].
    pub(super) fn due(&mut self, now: Instant, room: usize) -> Vec<(ObjectRef, Status)> {
        let ready =
            |(object, wanted): &(&ObjectRef, &Wanted)| wanted.due <= now && !self.under_way.contains(*object);
        let ready: Vec<ObjectRef> =
            self.wanted.iter().filter(ready).take(room).map(|(object, _)| object.clone()).collect();
        let mut due = Vec::with_capacity(ready.len());
        for object in ready {
            if let Some(Wanted { status, .. }) = self.wanted.remove(&object) {
                self.under_way.insert(object.clone());
                due.push((object, status));
            }
        }
        due
    }

    /// When something is due next.
    pub(super) fn next(&self) -> Option<Instant> {
        self.wanted
            .iter()
            .filter(|(object, _)| !self.under_way.contains(*object))
            .map(|(_, wanted)| wanted.due)
            .min()
    }

    pub(super) fn under_way(&self) -> usize {
        self.under_way.len()
    }

    /// A write ended; `None`: it failed and is tried again, unless something else is wanted meanwhile.
    pub(super) fn done(&mut self, object: ObjectRef, status: Status, outcome: Option<Outcome>, now: Instant) {
        self.under_way.remove(&object);
        match outcome {
            Some(Outcome::Written | Outcome::Equal) => {
                if self.wanted.get(&object).is_some_and(|wanted| wanted.status == status) {
                    self.wanted.remove(&object);
                }
                if outcome == Some(Outcome::Written) {
                    if self.last.len() > 4096 {
                        self.last.retain(|_, last| now.saturating_duration_since(*last) < APART);
                    }
                    self.last.insert(object.clone(), now);
                }
                self.written.insert(object, status);
            }
            Some(Outcome::Gone) => {
                self.written.remove(&object);
            }
            None => {
                self.written.remove(&object);
                self.wanted.entry(object).or_insert(Wanted { status, since: now, due: now + RETRY });
            }
        }
    }

    /// What is known to be written.
    pub(super) fn written(&self, object: &ObjectRef) -> Option<&Status> {
        self.written.get(object)
    }
}

/// Whether somebody waits for it, or nothing will change it soon.
fn urgent(status: &Status) -> bool {
    let enforced = find(status, "Enforced");
    enforced.is_none_or(|enforced| {
        enforced.status == "True"
            || matches!(
                &*enforced.reason,
                "Rejected" | "NoTargets" | "DryRun" | "Invalid" | "LastGoodVersionKept" | "Conflicted"
            )
    })
}

fn patience(status: &Status) -> Duration {
    match find(status, "Enforced").map(|enforced| &*enforced.reason) {
        Some("NoProxy" | "ReplicaUnreachable") => RECONNECTION,
        _ => PATIENCE,
    }
}

pub(super) fn find<'a>(status: &'a Status, kind: &str) -> Option<&'a Condition> {
    status.conditions.iter().find(|condition| condition.kind == kind)
}

pub(super) fn conditions(verdicts: Vec<Verdict>) -> Vec<Condition> {
    let condition = |Verdict { kind, status, reason, message }: Verdict| Condition {
        kind: kind.to_owned(),
        status: status.to_owned(),
        reason: reason.to_owned(),
        message,
    };
    verdicts.into_iter().map(condition).collect()
}

#[cfg(test)]
mod tests {
    use crds::Kind;
    use policy::ObjectName;

    use super::*;

    fn object() -> ObjectRef {
        ObjectRef { kind: Kind::AuthorizationPolicy, id: ObjectName::new("a", "p") }
    }

    fn status(generation: i64, status: &'static str, reason: &'static str) -> Status {
        let verdict = Verdict { kind: "Enforced", status, reason, message: String::new() };
        Status { uid: "u".into(), generation, conditions: conditions(vec![verdict]) }
    }

    fn pending() -> Status {
        status(2, "False", "Pending")
    }

    fn enforced(generation: i64) -> Status {
        status(generation, "True", "Enforced")
    }

    #[test]
    fn a_change_that_works_is_one_write() {
        let now = Instant::now();
        let mut schedule = Schedule::new([(object(), enforced(1))].into());
        schedule.want(&object(), pending(), now);
        assert!(schedule.due(now, 9).is_empty());
        assert_eq!(schedule.next(), Some(now + PATIENCE));
        schedule.want(&object(), enforced(2), now + Duration::from_millis(20));
        assert_eq!(schedule.due(now + Duration::from_millis(20), 9), [(object(), enforced(2))]);
        assert!(schedule.due(now + PATIENCE, 9).is_empty());
    }

    #[test]
    fn a_proxy_that_connects_again_is_no_write() {
        let now = Instant::now();
        let mut schedule = Schedule::new([(object(), enforced(2))].into());
        schedule.want(&object(), pending(), now);
        schedule.want(&object(), enforced(2), now + Duration::from_millis(50));
        assert_eq!(schedule.next(), None);
        schedule.want(&object(), pending(), now);
        schedule.want(&object(), pending(), now + Duration::from_millis(100));
        assert_eq!(schedule.due(now + PATIENCE, 9), [(object(), pending())], "counted from the first time");
    }

    #[test]
    fn one_write_at_a_time_and_what_changed_meanwhile_follows() {
        let now = Instant::now();
        let mut schedule = Schedule::new(HashMap::new());
        schedule.want(&object(), enforced(1), now);
        assert_eq!(schedule.due(now, 9).len(), 1);
        schedule.want(&object(), enforced(2), now);
        assert!(schedule.due(now, 9).is_empty());
        schedule.done(object(), enforced(1), Some(Outcome::Written), now);
        assert_eq!(schedule.due(now, 9), [(object(), enforced(2))]);
        schedule.done(object(), enforced(2), None, now);
        assert_eq!(schedule.next(), Some(now + RETRY), "it failed");
        assert_eq!(schedule.due(now + RETRY, 9), [(object(), enforced(2))]);
        schedule.want(&object(), enforced(2), now);
        schedule.done(object(), enforced(2), Some(Outcome::Equal), now);
        assert_eq!(schedule.next(), None, "wanted once more while it was written");
    }

    #[test]
    fn progress_is_told_now_and_then_only() {
        let now = Instant::now();
        let mut schedule = Schedule::new(HashMap::new());
        schedule.want(&object(), pending(), now);
        assert_eq!(schedule.due(now + PATIENCE, 9).len(), 1);
        schedule.done(object(), pending(), Some(Outcome::Written), now + PATIENCE);
        schedule.want(&object(), status(2, "False", "NoProxy"), now + PATIENCE);
        assert_eq!(schedule.next(), Some(now + PATIENCE + APART));
        assert!(schedule.due(now + PATIENCE, 0).is_empty());
    }
}
