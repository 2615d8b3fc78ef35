//! How far one proxy is: which commits it has in force, and which of them its old connections may still escape. Pure but
//! for the clock, which is passed in.
//!
//! An acknowledgement means accepted, not in force. A proxy has a commit in force when it has acknowledged, of every
//! type, at least what that commit left it with, and no inbound listener of it waits for something it does not have.
//! A listener that is replaced drains: connections it accepted before may live on under its old filter chains for as
//! long as the proxy's drain time, so whatever came by that commit is not wholly enforced before. The listeners of a
//! proxy that comes up replace none.

use std::collections::VecDeque;
use std::time::{Duration, Instant};

use xds::ResourceType;

use super::journal::Journal;

/// Commits that one proxy may be behind by and still be told apart.
const MAX_STEPS: usize = 64;
/// Drains that are told apart.
const MAX_DRAINS: usize = 64;
/// Stands for every commit.
pub(crate) const EVERY: u64 = 0;

/// A commit that changed something for the proxy.
#[derive(Clone, Debug, PartialEq)]
struct Step {
    commit: u64,
    /// The commits that last changed each type, as of this one.
    changed: [u64; 5],
    /// Listeners that the proxy may have had were changed.
    drains: bool,
}

/// One proxy's.
#[derive(Debug)]
pub(crate) struct Progress {
    /// Not in force yet, ascending.
    steps: VecDeque<Step>,
    /// Commits in force whose predecessors' connections may still live, and until when.
    draining: Vec<(u64, Instant)>,
    drain_time: Duration,
    /// Nothing was in force yet on this connection.
    first: bool,
}

impl Progress {
    /// A connection to which `changed` is published, the commits that last changed each type.
    pub(crate) fn new(changed: [u64; 5], drain_time: Duration) -> Self {
        let step = Step { commit: 1, changed, drains: false };
        Self { steps: VecDeque::from([step]), draining: Vec::new(), drain_time, first: true }
    }

    /// `commit` was published.
    pub(crate) fn published(&mut self, commit: u64, changed: [u64; 5], journal: &Journal) {
        if !changed.contains(&commit) {
            return;
        }
        let listener = ResourceType::Listener as usize;
        let drains = changed[listener] == commit && journal.asked[listener];
        self.steps.push_back(Step { commit, changed, drains });
        if self.steps.len() > MAX_STEPS {
            // Two become one that begins with the first and ends with the second.
            let (first, second) = (self.steps.remove(MAX_STEPS - 1), self.steps.pop_back());
            if let (Some(first), Some(second)) = (first, second) {
                let drains = first.drains || second.drains;
                self.steps.push_back(Step { commit: first.commit, changed: second.changed, drains });
            }
        }
    }

    /// Takes over what the proxy said, and the time.
    pub(crate) fn advance(&mut self, journal: &Journal, now: Instant) {
        self.draining.retain(|(_, until)| *until > now);
        while let Some(step) = self.steps.pop_front_if(|step| journal.has(&step.changed)) {
            let replaced = std::mem::take(&mut self.first) && journal.replacing;
            let commit = if replaced { EVERY } else { step.commit };
            if (step.drains || replaced) && !self.drain_time.is_zero() {
                self.draining.push((commit, now + self.drain_time));
            }
        }
        if self.draining.len() > MAX_DRAINS {
            let last = self.draining.iter().map(|(_, until)| *until).max();
            self.draining = last.map(|until| (EVERY, until)).into_iter().collect();
        }
    }

    /// The first commit that is not in force; `None` if all are.
    pub(crate) fn behind(&self) -> Option<u64> {
        self.steps.front().map(|step| step.commit)
    }

    /// Commits in force from before which connections may still live; [`EVERY`] among them stands for all.
    pub(crate) fn draining(&self) -> Vec<u64> {
        self.draining.iter().map(|(commit, _)| *commit).collect()
    }

    /// When time alone changes something.
    pub(crate) fn next(&self) -> Option<Instant> {
        self.draining.iter().map(|(_, until)| *until).min()
    }
}

#[cfg(test)]
mod tests {
    use ResourceType::{Cluster, Endpoint, Extension, Listener, Route};

    use super::super::journal::Nack;
    use super::*;

    const DRAIN: Duration = Duration::from_secs(45);

    #[derive(Clone, Copy)]
    enum Say {
        /// Sent and acknowledged.
        Ack(ResourceType, u64),
        Sent(ResourceType),
        Nack(ResourceType),
        Waiting(bool),
        Replacing,
        /// A commit, and the types it changes for the proxy.
        Commit(u64, &'static [ResourceType]),
        /// Seconds go by.
        Later(u64),
    }
    use Say::{Ack, Commit, Later, Replacing, Sent, Waiting};

    const UP: [Say; 5] =
        [Ack(Cluster, 3), Ack(Endpoint, 3), Ack(Extension, 3), Ack(Listener, 3), Ack(Route, 3)];

    /// What is behind and draining after `story`, told to a proxy that connected at commit 3.
    fn told(story: &[Say]) -> (Option<u64>, Vec<u64>) {
        let mut changed = [3; 5];
        let mut now = Instant::now();
        let mut journal = Journal::default();
        let mut progress = Progress::new(changed, DRAIN);
        for say in story {
            match *say {
                Ack(kind, generation) => {
                    journal.sent(kind);
                    journal.acked(kind, generation);
                }
                Sent(kind) => journal.sent(kind),
                Say::Nack(kind) => journal.nacked(kind, Nack::new(None, "no".to_owned())),
                Waiting(waiting) => journal.waiting(waiting),
                Replacing => journal.replacing(),
                Commit(commit, kinds) => {
                    kinds.iter().for_each(|kind| changed[*kind as usize] = commit);
                    progress.published(commit, changed, &journal);
                }
                Later(seconds) => now += Duration::from_secs(seconds),
            }
            progress.advance(&journal, now);
        }
        (progress.behind(), progress.draining())
    }

    fn up_and(more: &[Say]) -> (Option<u64>, Vec<u64>) {
        told(&[&UP, more].concat())
    }

    #[test]
    fn a_commit_is_in_force_when_all_of_it_is_acknowledged() {
        assert_eq!(told(&[]), (Some(1), vec![]), "nothing was said");
        assert_eq!(told(&UP[..4]), (None, vec![]), "routes are not asked for");
        assert_eq!(told(&UP[..3]), (Some(1), vec![]), "listeners always are");
        assert_eq!(told(&[&UP[..4], &[Sent(Route)]].concat()), (None, vec![]), "what was in force stays");
        assert_eq!(told(&[&[Sent(Extension)], &UP[..2], &UP[3..]].concat()), (Some(1), vec![]));
        assert_eq!(up_and(&[Commit(5, &[Extension])]), (Some(5), vec![]));
        assert_eq!(up_and(&[Commit(5, &[Extension]), Ack(Cluster, 5)]), (Some(5), vec![]), "another type");
        assert_eq!(up_and(&[Commit(5, &[Extension]), Ack(Extension, 5)]), (None, vec![]));
        assert_eq!(up_and(&[Commit(5, &[])]), (None, vec![]), "nothing new for this proxy");
    }

    #[test]
    fn commits_are_told_apart() {
        let both = [Commit(5, &[Extension]), Commit(6, &[Endpoint])];
        assert_eq!(up_and(&both), (Some(5), vec![]));
        assert_eq!(up_and(&[&both[..], &[Ack(Extension, 5)]].concat()), (Some(6), vec![]));
        assert_eq!(up_and(&[&both[..], &[Ack(Endpoint, 6)]].concat()), (Some(5), vec![]));
        let slots = [Commit(5, &[Extension]), Commit(6, &[Extension]), Ack(Extension, 5)];
        assert_eq!(up_and(&slots), (Some(6), vec![]), "an older acknowledgement");
        assert_eq!(up_and(&[Commit(5, &[Extension]), Say::Nack(Extension)]), (Some(5), vec![]));
    }

    #[test]
    fn a_listener_that_waits_enforces_nothing_new() {
        let first = [&[Waiting(true)], &UP[..2], &UP[3..4]].concat();
        assert_eq!(told(&first), (Some(1), vec![]), "acknowledged, and not asked for its slots yet");
        assert_eq!(told(&[&first[..], &[Ack(Extension, 3), Waiting(false)]].concat()), (None, vec![]));
        let provider =
            [Commit(5, &[Extension, Listener]), Ack(Extension, 5), Waiting(true), Ack(Listener, 5)];
        assert_eq!(up_and(&provider), (Some(5), vec![]));
        assert_eq!(up_and(&[&provider[..], &[Waiting(false)]].concat()), (None, vec![5]));
    }

    #[test]
    fn a_replaced_listener_drains_after_its_acknowledgement() {
        let acked = [Commit(5, &[Listener]), Later(30), Ack(Listener, 5)];
        assert_eq!(up_and(&acked[..2]), (Some(5), vec![]));
        assert_eq!(up_and(&acked), (None, vec![5]), "counted from the acknowledgement");
        assert_eq!(up_and(&[&acked[..], &[Later(44)]].concat()), (None, vec![5]));
        assert_eq!(up_and(&[&acked[..], &[Later(45)]].concat()), (None, vec![]));
        assert_eq!(
            up_and(&[&acked[..], &[Commit(6, &[Extension]), Ack(Extension, 6)]].concat()),
            (None, vec![5])
        );
        let first = [&[Commit(4, &[Listener])], &[Ack(Listener, 4)], &UP[..3]].concat();
        assert_eq!(told(&first), (None, vec![]), "it had no listener");
        assert_eq!(told(&[&[Replacing][..], &UP].concat()), (None, vec![EVERY]), "it came with other ones");
    }

    #[test]
    fn a_proxy_that_never_answers_costs_little_and_is_never_ahead() {
        let mut progress = Progress::new([3; 5], DRAIN);
        let mut journal = Journal::default();
        for kind in ResourceType::ALL {
            journal.acked(kind, 3);
        }
        for commit in 4..500 {
            progress.published(commit, [3, 3, commit, 3, 3], &journal);
        }
        assert!(progress.steps.len() <= MAX_STEPS);
        for acked in 3..500 {
            journal.acked(Extension, acked);
            progress.advance(&journal, Instant::now());
            assert!(progress.behind().is_none_or(|behind| behind <= acked + 1), "{acked}");
            assert_eq!(progress.behind().is_none(), acked == 499);
        }
    }
}
