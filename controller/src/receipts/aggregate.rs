//! Sums up what the replicas say: which policies have to be looked at again, and what their conditions are now. No I/O and
//! no clock; whoever drives it says which replicas can be reached.
//!
//! A workload counts where its newest connection is. A replica that is announced and cannot be reached makes unknown what
//! was last seen there, and what is seen nowhere, because it may have gone there since. Nothing is ever counted out on
//! the word of a replica that says nothing.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::sync::Arc;
use std::time::SystemTime;

use crds::ObjectRef;
use mesh::Workload;
use policy::{Attachment, ObjectName};

use super::evaluate::{Seen, Target, Verdict, evaluate};
use super::facts::{All, Fact};
use super::rows::{Delta, Key, PolicyRow, ProxyRow, Row};

/// Workloads by name, as the registry publishes them.
pub(crate) type Workloads = BTreeMap<ObjectName, Arc<Workload>>;

#[derive(Debug, Default)]
pub(crate) struct Aggregate {
    replicas: BTreeMap<Arc<str>, Replica>,
    facts: Arc<All>,
    workloads: Arc<Workloads>,
    /// The workloads that each policy selects, and the other way round.
    targets: HashMap<ObjectRef, BTreeSet<ObjectName>>,
    selected_by: HashMap<ObjectName, BTreeSet<ObjectRef>>,
    /// Connections of each workload: replica and id.
    connections: HashMap<ObjectName, BTreeSet<(Arc<str>, u64)>>,
    stale: BTreeSet<ObjectRef>,
}

#[derive(Debug, Default)]
struct Replica {
    reachable: bool,
    /// It may still serve proxies of which we have not heard.
    present: bool,
    policies: HashMap<ObjectRef, PolicyRow>,
    proxies: HashMap<u64, ProxyRow>,
}

/// What is known of a workload's connections.
struct Newest<'a> {
    at: SystemTime,
    seen: Seen<'a>,
}

impl Aggregate {
    /// A replica is announced, perhaps once more; it counts as unreachable until it says something.
    pub(crate) fn announced(&mut self, name: &Arc<str>) {
        if !self.replicas.get(name).is_some_and(|replica| replica.present) {
            self.replicas.entry(name.clone()).or_default().present = true;
            self.unreachable_changed();
        }
    }

    /// A replica said something.
    pub(crate) fn said(&mut self, name: &Arc<str>, delta: Delta) {
        let Delta { reset, ready: _, set, gone } = delta;
        let replica = self.replicas.entry(name.clone()).or_default();
        replica.present = true;
        if !std::mem::replace(&mut replica.reachable, true) {
            self.unreachable_changed();
        }
        if reset {
            self.forget_rows(name);
        }
        gone.iter().for_each(|key| self.remove(name, key));
        set.iter().for_each(|row| self.set(name, row));
    }

    /// A replica cannot be reached, or says nothing any more.
    pub(crate) fn lost(&mut self, name: &Arc<str>) {
        if let Some(replica) = self.replicas.get_mut(name)
            && std::mem::replace(&mut replica.reachable, false)
        {
            self.unreachable_changed();
        }
    }

    /// A replica that cannot be reached has not been heard of anywhere for so long that nobody can have gone there. What
    /// was last seen there stays unknown.
    pub(crate) fn absent(&mut self, name: &Arc<str>) {
        if let Some(replica) = self.replicas.get_mut(name)
            && std::mem::replace(&mut replica.present, false)
        {
            self.unreachable_changed();
        }
    }

    /// A replica said goodbye: nobody is connected there.
    pub(crate) fn left(&mut self, name: &Arc<str>) {
        self.forget_rows(name);
        if self.replicas.remove(name).is_some() {
            self.unreachable_changed();
        }
    }

    /// Which policies are gone.
    pub(crate) fn facts(&mut self, facts: &Arc<All>) -> Vec<ObjectRef> {
        if Arc::ptr_eq(&self.facts, facts) {
            return Vec::new();
        }
        let before = std::mem::replace(&mut self.facts, facts.clone());
        for (object, fact) in &**facts {
            match before.get(object) {
                Some(old) if Arc::ptr_eq(old, fact) || old == fact => {}
                Some(old) => {
                    if (&old.attachment, old.mesh_wide) != (&fact.attachment, fact.mesh_wide) {
                        self.retarget(fact);
                    }
                    self.stale.insert(object.clone());
                }
                None => {
                    self.retarget(fact);
                    self.stale.insert(object.clone());
                }
            }
        }
        let gone: Vec<ObjectRef> =
            before.keys().filter(|object| !facts.contains_key(*object)).cloned().collect();
        for object in &gone {
            self.untarget(object);
            self.stale.remove(object);
        }
        gone
    }

    pub(crate) fn workloads(&mut self, workloads: &Arc<Workloads>) {
        if Arc::ptr_eq(&self.workloads, workloads) {
            return;
        }
        let before = std::mem::replace(&mut self.workloads, workloads.clone());
        for name in before.keys().filter(|name| !workloads.contains_key(*name)) {
            for object in self.selected_by.remove(name).unwrap_or_default() {
                self.targets.entry(object.clone()).or_default().remove(name);
                self.stale.insert(object);
            }
        }
        let facts = self.facts.clone();
        for (name, workload) in &**workloads {
            if before.get(name).is_some_and(|old| Arc::ptr_eq(old, workload) || *old == *workload) {
                continue;
            }
            let now: BTreeSet<ObjectRef> = facts
                .values()
                .filter(|fact| reaches(fact, workload))
                .map(|fact| fact.object.clone())
                .collect();
            let old = self.selected_by.insert(name.clone(), now.clone()).unwrap_or_default();
            for object in old.difference(&now) {
                self.targets.entry(object.clone()).or_default().remove(name);
            }
            for object in &now {
                self.targets.entry(object.clone()).or_default().insert(name.clone());
            }
            self.stale.extend(old.into_iter().chain(now));
        }
    }

    /// The policies whose conditions may be others than before, with those conditions.
    pub(crate) fn take(&mut self) -> Vec<(Arc<Fact>, Vec<Verdict>)> {
        let stale = std::mem::take(&mut self.stale);
        let known = stale.into_iter().filter_map(|object| self.facts.get(&object).cloned());
        known.map(|fact| (fact.clone(), self.evaluate(&fact))).collect()
    }

    /// Forgets that anything was looked at, so that [`Self::take`] speaks of every policy.
    pub(crate) fn all_stale(&mut self) {
        self.stale = self.facts.keys().cloned().collect();
    }

    /// How many replicas that may serve somebody cannot be reached.
    pub(crate) fn unreachable(&self) -> usize {
        self.replicas.values().filter(|replica| replica.present && !replica.reachable).count()
    }

    fn evaluate(&self, fact: &Fact) -> Vec<Verdict> {
        let names = self.targets.get(&fact.object).into_iter().flatten();
        let maybe = self.replicas.iter().find(|(_, replica)| replica.present && !replica.reachable);
        let maybe = maybe.map(|(name, _)| &**name);
        let workloads = names.filter_map(|name| self.workloads.get(name).map(|workload| (name, workload)));
        let targets: Vec<Target<'_>> = workloads
            .map(|(name, workload)| {
                let nowhere = maybe.map_or(Seen::Nowhere, |replica| Seen::Lost { replica });
                let seen = self.newest(name, workload, &fact.object).map_or(nowhere, |newest| newest.seen);
                Target { workload, seen }
            })
            .collect();
        evaluate(fact, &targets)
    }

    /// Where the workload connected last.
    fn newest(&self, name: &ObjectName, workload: &Workload, object: &ObjectRef) -> Option<Newest<'_>> {
        let mut newest: Option<Newest<'_>> = None;
        for (at, id) in self.connections.get(name)? {
            let Some(replica) = self.replicas.get(at) else { continue };
            let Some((at, replica_name)) = replica.proxies.get(id).zip(self.replicas.get_key_value(at))
            else {
                continue;
            };
            if !at.serves(workload) || newest.as_ref().is_some_and(|newest| newest.at > at.connected) {
                continue;
            }
            let seen = match replica.reachable {
                true => Seen::At { proxy: at, policy: replica.policies.get(object) },
                false => Seen::Lost { replica: replica_name.0 },
            };
            newest = Some(Newest { at: at.connected, seen });
        }
        newest
    }

    fn set(&mut self, name: &Arc<str>, row: &Row) {
        let Some(replica) = self.replicas.get_mut(name) else { return };
        match row {
            Row::Policy(row) => {
                self.stale.insert(row.object.clone());
                replica.policies.insert(row.object.clone(), row.clone());
            }
            Row::Proxy(row) => {
                let before = replica.proxies.insert(row.id, row.clone());
                if let Some(before) = before.filter(|before| before.workload != row.workload) {
                    self.disconnected(name, &before);
                }
                let connections = self.connections.entry(row.workload.clone()).or_default();
                connections.insert((name.clone(), row.id));
                self.workload_changed(&row.workload.clone());
            }
        }
    }

    fn remove(&mut self, name: &Arc<str>, key: &Key) {
        let Some(replica) = self.replicas.get_mut(name) else { return };
        match key {
            Key::Policy(object) => {
                replica.policies.remove(object);
                self.stale.insert(object.clone());
            }
            Key::Proxy(id) => {
                if let Some(row) = replica.proxies.remove(id) {
                    self.disconnected(name, &row);
                }
            }
        }
    }

    fn disconnected(&mut self, name: &Arc<str>, row: &ProxyRow) {
        if let Some(connections) = self.connections.get_mut(&row.workload) {
            connections.remove(&(name.clone(), row.id));
            if connections.is_empty() {
                self.connections.remove(&row.workload);
            }
        }
        self.workload_changed(&row.workload);
    }

    fn forget_rows(&mut self, name: &Arc<str>) {
        let Some(replica) = self.replicas.get_mut(name) else { return };
        let policies = std::mem::take(&mut replica.policies);
        let proxies = std::mem::take(&mut replica.proxies);
        self.stale.extend(policies.into_keys());
        proxies.values().for_each(|row| self.disconnected(name, row));
    }

    fn workload_changed(&mut self, name: &ObjectName) {
        self.stale.extend(self.selected_by.get(name).into_iter().flatten().cloned());
    }

    /// What is seen nowhere may have become unknown everywhere, or known.
    fn unreachable_changed(&mut self) {
        self.all_stale();
    }

    fn retarget(&mut self, fact: &Fact) {
        self.untarget(&fact.object);
        let namespace = &fact.object.id.namespace;
        let first = ObjectName { namespace: namespace.clone(), name: "".into() };
        let workloads = self.workloads.clone();
        let candidates: Box<dyn Iterator<Item = (&ObjectName, &Arc<Workload>)>> = if fact.mesh_wide {
            Box::new(workloads.iter())
        } else {
            Box::new(workloads.range(first..).take_while(|(name, _)| name.namespace == *namespace))
        };
        let selected = candidates.filter(|(_, workload)| reaches(fact, workload));
        let selected: BTreeSet<ObjectName> = selected.map(|(name, _)| name.clone()).collect();
        for name in &selected {
            self.selected_by.entry(name.clone()).or_default().insert(fact.object.clone());
        }
        self.targets.insert(fact.object.clone(), selected);
    }

    fn untarget(&mut self, object: &ObjectRef) {
        for name in self.targets.remove(object).unwrap_or_default() {
            if let Some(policies) = self.selected_by.get_mut(&name) {
                policies.remove(object);
            }
        }
    }
}

fn reaches(fact: &Fact, workload: &Workload) -> bool {
    let here = fact.mesh_wide || workload.namespace == fact.object.id.namespace;
    let selects = |attachment: &Attachment| {
        attachment.selects(&fact.object.id.namespace, &workload.namespace, &workload.labels)
    };
    here && fact.attachment.as_ref().is_some_and(selects)
}

#[cfg(test)]
mod tests;
