//! What a proxy holds of one type: a pointer to the shared tables it last acknowledged, plus exceptions, so that a
//! session costs next to nothing when its proxy is up to date.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use crate::resource::{Layers, Resource};
use crate::table::Table;

/// What a proxy holds under one name.
#[derive(Clone, Debug)]
pub(super) enum Holding {
    Nothing,
    Has(Resource),
    /// This (or nothing), or what was sent and refused together with other things: Envoy may have taken a part.
    Maybe(Option<Resource>),
    /// Something whose content we do not know (from before this stream), or nothing, or something it has to be told again.
    Unknown,
}

#[derive(Debug, Default)]
pub(super) struct Held {
    /// Acknowledged as a whole. Says nothing about names that are not subscribed to.
    base: Layers,
    /// Where the proxy differs from `base`.
    exceptions: BTreeMap<Arc<str>, Holding>,
    /// Exceptions as they were when the unanswered response was sent; younger ones go to `exceptions`.
    before: BTreeMap<Arc<str>, Holding>,
}

impl Held {
    pub(super) fn get(&self, name: &str) -> Holding {
        match self.exceptions.get(name).or_else(|| self.before.get(name)) {
            Some(holding) => holding.clone(),
            None => self.base.get(name).cloned().map_or(Holding::Nothing, Holding::Has),
        }
    }

    /// The workload's own table of what was last acknowledged as a whole.
    pub(super) fn own(&self) -> &Arc<Table> {
        &self.base.own
    }

    pub(super) fn set(&mut self, name: Arc<str>, holding: Holding) {
        self.exceptions.insert(name, holding);
    }

    /// Nobody asks for `name` any more.
    pub(super) fn forget(&mut self, name: &str) {
        self.exceptions.remove(name);
    }

    /// Everything is asked for anew; of `names` it may hold something.
    pub(super) fn restart<'a>(&mut self, names: impl Iterator<Item = &'a Arc<str>>) {
        *self =
            Self { exceptions: names.map(|n| (n.clone(), Holding::Unknown)).collect(), ..Self::default() };
    }

    /// A response leaves.
    pub(super) fn begin(&mut self) {
        let younger = std::mem::take(&mut self.exceptions);
        self.before.extend(younger);
    }

    /// The response was acknowledged and was not the whole difference.
    pub(super) fn applied(&mut self, sent: impl Iterator<Item = (Arc<str>, Option<Resource>)>) {
        let younger = std::mem::take(&mut self.exceptions);
        self.exceptions = std::mem::take(&mut self.before);
        for (name, resource) in sent {
            self.exceptions.insert(name, resource.map_or(Holding::Nothing, Holding::Has));
        }
        self.exceptions.extend(younger);
    }

    /// The response was acknowledged and made the proxy equal to `target`.
    pub(super) fn replaced(&mut self, target: Layers) {
        self.before.clear();
        self.base = target;
    }

    /// The response was refused: as before.
    pub(super) fn abandoned(&mut self) {
        self.applied(std::iter::empty());
    }

    /// Nothing differs from `target`: point to it.
    pub(super) fn settle(&mut self, target: Layers) {
        self.exceptions.clear();
        self.before.clear();
        self.base = target;
    }

    /// Names under which something may differ from `wanted`. Tables that are the very same are not looked into.
    pub(super) fn candidates(&self, wanted: &Layers) -> BTreeSet<Arc<str>> {
        let mut names: BTreeSet<Arc<str>> =
            self.exceptions.keys().chain(self.before.keys()).cloned().collect();
        differing(&self.base.shared, &wanted.shared, &mut names);
        differing(&self.base.own, &wanted.own, &mut names);
        names
    }

    /// Every name that is held or wanted.
    pub(super) fn names(&self, wanted: &Layers) -> BTreeSet<Arc<str>> {
        let held = self.base.iter().map(|r| r.name.clone()).chain(self.exceptions.keys().cloned());
        held.chain(self.before.keys().cloned()).chain(wanted.iter().map(|r| r.name.clone())).collect()
    }

    /// How many names cost memory of their own.
    #[cfg(test)]
    pub(super) fn exceptions(&self) -> usize {
        self.exceptions.len() + self.before.len()
    }
}

fn differing(old: &Arc<Table>, new: &Arc<Table>, names: &mut BTreeSet<Arc<str>>) {
    if !Arc::ptr_eq(old, new) {
        old.compare(new, |name| {
            names.insert(name.clone());
        });
    }
}
