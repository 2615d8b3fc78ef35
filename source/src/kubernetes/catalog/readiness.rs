//! Whether the first list is complete, and whether what is known is being kept up to date. A watch that was lost and came
//! back within a moment is not worth a word; one that stays lost is, with its name and the reason.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use crds::Kind;
use tokio::time::Instant;

use crate::Change;

/// How long a watch may be lost without being called so.
const GRACE: Duration = Duration::from_secs(2);
/// How long a reason that has been told stands before another one is told.
const STEADY: Duration = Duration::from_secs(5);

/// Something that must be complete before anything is served, and that must not be lost afterwards.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(in crate::kubernetes) enum Feed {
    /// The CustomResourceDefinitions.
    Definitions,
    Mesh,
    Kind(Kind),
}

/// Those that every API server has.
const BUILT_IN: [Feed; 6] = [
    Feed::Definitions,
    Feed::Kind(Kind::Namespace),
    Feed::Kind(Kind::ServiceAccount),
    Feed::Kind(Kind::Service),
    Feed::Kind(Kind::Pod),
    Feed::Kind(Kind::EndpointSlice),
];

impl Feed {
    fn all() -> impl Iterator<Item = Self> {
        [Self::Definitions, Self::Mesh].into_iter().chain(Kind::ALL.into_iter().map(Self::Kind))
    }

    fn name(self) -> &'static str {
        match self {
            Self::Definitions => "CustomResourceDefinition",
            Self::Mesh => "the mesh configuration",
            Self::Kind(kind) => kind.as_str(),
        }
    }
}

#[derive(Debug)]
struct Trouble {
    reason: String,
    /// When it is to be told.
    due: Instant,
}

#[derive(Debug)]
pub(super) struct Readiness {
    /// What has not been complete yet.
    missing: BTreeSet<Feed>,
    /// Kinds without a definition: why.
    undefined: BTreeMap<Feed, String>,
    lost: BTreeMap<Feed, Trouble>,
    synced: bool,
    /// The reason as told, and until when it stands.
    told: Option<(String, Instant)>,
    /// When something is due that was not at the last look.
    due: Option<Instant>,
}

impl Readiness {
    pub(super) fn new() -> Self {
        Self {
            missing: Feed::all().collect(),
            undefined: BTreeMap::new(),
            lost: BTreeMap::new(),
            synced: false,
            told: None,
            due: None,
        }
    }

    pub(super) fn complete(&mut self, feed: Feed) {
        self.missing.remove(&feed);
        self.undefined.remove(&feed);
    }

    pub(super) fn live(&mut self, feed: Feed) {
        self.lost.remove(&feed);
    }

    pub(super) fn lost(&mut self, feed: Feed, reason: String, now: Instant) {
        self.lost.entry(feed).or_insert(Trouble { reason: String::new(), due: now + GRACE }).reason = reason;
    }

    pub(super) fn undefined(&mut self, feed: Feed, reason: String) {
        self.lost.remove(&feed);
        self.undefined.insert(feed, reason);
    }

    /// When to [`settle`](Self::settle) even if nothing happens.
    pub(super) fn due(&self) -> Option<Instant> {
        self.due
    }

    /// What is to be told now.
    pub(super) fn settle(&mut self, now: Instant) -> Vec<Change> {
        let mut changes = Vec::new();
        if !self.synced && self.missing.is_empty() {
            self.synced = true;
            changes.push(Change::Synced);
        }
        let reason = self.reason(now);
        self.due = self.lost.values().map(|trouble| trouble.due).filter(|due| *due > now).min();
        match (&self.told, reason) {
            (None, None) => {}
            // One that is lost since a moment would only have it told again.
            (Some(_), None) if !self.lost.is_empty() => {}
            (Some(_), None) => {
                self.told = None;
                changes.push(Change::Frozen(None));
            }
            (Some((told, _)), Some(reason)) if *told == reason => {}
            (Some((_, until)), Some(_)) if now < *until => {
                self.due = Some(self.due.map_or(*until, |due| due.min(*until)));
            }
            (_, Some(reason)) => {
                self.told = Some((reason.clone(), now + STEADY));
                changes.push(Change::Frozen(Some(reason)));
            }
        }
        changes
    }

    /// Why nothing can be learnt at the moment, with the kinds by reason.
    fn reason(&self, now: Instant) -> Option<String> {
        let mut by_reason: BTreeMap<&str, Vec<Feed>> = BTreeMap::new();
        // Those that were lost a moment later are of the same story.
        let due = self.lost.values().any(|trouble| trouble.due <= now);
        let lost = self.lost.iter().filter(|_| due);
        for (feed, reason) in lost.map(|(feed, trouble)| (feed, &trouble.reason)).chain(self.undefined.iter())
        {
            by_reason.entry(reason).or_default().push(*feed);
        }
        let reasons = by_reason.into_iter().map(|(reason, feeds)| {
            if BUILT_IN.iter().all(|feed| feeds.contains(feed)) {
                return format!("the API server cannot be watched: {reason}");
            }
            let names: Vec<&str> = feeds.into_iter().map(Feed::name).collect();
            format!("{} cannot be watched: {reason}", names.join(", "))
        });
        let reasons: Vec<String> = reasons.collect();
        (!reasons.is_empty()).then(|| reasons.join("; "))
    }
}

#[cfg(test)]
mod tests;
