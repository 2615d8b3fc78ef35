//! What a proxy holds of one type: a pointer to the shared tables it last acknowledged, plus exceptions, so that a
//! session costs next to nothing when its proxy is up to date.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use crate::resource::{Layers, Resource, Table};

/// What a proxy holds under one name.
#[derive(Clone, Debug)]
pub(super) enum Holding {
    Nothing,
    Has(Resource),
    /// This, or what was sent and refused together with other things: Envoy may have taken a part.
    Maybe(Resource),
    /// Something whose content we do not know (from before this stream).
    Unknown,
}

#[derive(Debug, Default)]
pub(super) struct Held {
    /// Acknowledged as a whole.
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

    pub(super) fn set(&mut self, name: Arc<str>, holding: Holding) {
        self.exceptions.insert(name, holding);
    }

    /// A response leaves.
    pub(super) fn begin(&mut self) {
        let younger = std::mem::take(&mut self.exceptions);
        self.before.extend(younger);
    }

    /// A response with `name` and others was refused.
    pub(super) fn doubt(&mut self, name: &Arc<str>) {
        let doubted = match self.get(name) {
            Holding::Has(resource) | Holding::Maybe(resource) => Holding::Maybe(resource),
            Holding::Nothing | Holding::Unknown => Holding::Unknown,
        };
        self.set(name.clone(), doubted);
    }

    /// The response was acknowledged and was not the whole difference.
    pub(super) fn applied(&mut self, sent: Vec<(Arc<str>, Option<Resource>)>) {
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
        self.applied(Vec::new());
    }

    /// Nothing differs from `target`: point to it. Whether that is news.
    pub(super) fn settle(&mut self, target: Layers) -> bool {
        let news = !self.base.same(&target) || !self.exceptions.is_empty();
        self.exceptions.clear();
        self.before.clear();
        self.base = target;
        news
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
}

fn differing(old: &Arc<Table>, new: &Arc<Table>, names: &mut BTreeSet<Arc<str>>) {
    if Arc::ptr_eq(old, new) {
        return;
    }
    let changed = |(name, resource): &(&Arc<str>, &Resource)| old.0.get(*name) != Some(*resource);
    names.extend(new.0.iter().filter(changed).map(|(name, _)| name.clone()));
    names.extend(old.0.keys().filter(|name| !new.0.contains_key(*name)).cloned());
}
