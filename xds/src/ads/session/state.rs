//! One type of one stream: what the proxy asked for, what it holds, what is under way and what it refused. Plans the next
//! response and takes its answer; when to send is the session's business.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::sync::Arc;

use super::held::{Held, Holding};
use super::sequence::{self, Change, Difference};
use super::subscription::{Subscription, Turn};
use super::{Response, TRANSITIONAL, Variant};
use crate::resource::{Layers, Resource, ResourceType};

/// A response that is not answered yet.
#[derive(Debug)]
pub(super) struct Inflight {
    pub(super) nonce: String,
    /// By name.
    sent: Vec<Change>,
    /// SotW: what went along because the proxy may have had it before this stream.
    assumed: Vec<Resource>,
    /// The whole difference to `target` of that generation: once acknowledged, the proxy holds exactly that.
    complete: Option<(Layers, u64)>,
}

/// What to send next.
#[derive(Debug)]
pub(super) struct Plan {
    /// By name.
    pub(super) changes: Vec<Change>,
    /// These are all the differences to the snapshot.
    pub(super) complete: bool,
}

#[derive(Debug)]
pub(super) struct TypeState {
    kind: ResourceType,
    variant: Variant,
    pub(super) subscription: Subscription,
    pub(super) held: Held,
    pub(super) inflight: Option<Inflight>,
    /// Answer the next time even if there is nothing to say: Envoy waits for a first answer.
    pub(super) must_respond: bool,
    /// Content hashes (`None`: the removal) that the proxy refused, by name.
    refused: BTreeMap<Arc<str>, Option<u64>>,
    /// Transitional slots that the proxy refused.
    refused_steps: BTreeMap<Arc<str>, u64>,
    /// Names of a refused response, still to be tried: those that the proxy did not complain of together, then each alone.
    suspects: VecDeque<BTreeSet<Arc<str>>>,
    /// The generation last reported as acknowledged.
    pub(super) generation: Option<u64>,
}

impl TypeState {
    pub(super) fn new(variant: Variant, kind: ResourceType) -> Self {
        Self {
            kind,
            variant,
            subscription: Subscription::default(),
            held: Held::default(),
            inflight: None,
            must_respond: false,
            refused: BTreeMap::new(),
            refused_steps: BTreeMap::new(),
            suspects: VecDeque::new(),
            generation: None,
        }
    }

    /// Every response carries everything (SotW, CDS and LDS), so what it leaves out is removed.
    fn full(&self) -> bool {
        self.variant == Variant::Sotw && self.kind.wildcard()
    }

    /// The proxy can be told that something is gone, and should be. SotW has no words for it in the types that are asked
    /// for by name; and a listener goes on waiting for policy that does not exist, rather than do without.
    fn removable(&self) -> bool {
        self.kind != ResourceType::Extension && (self.variant == Variant::Delta || self.kind.wildcard())
    }

    /// What changes of a subscription mean for what is held.
    pub(super) fn turn(&mut self, turn: Turn) {
        let Turn { everything, added, dropped } = turn;
        if everything {
            // What is under way was made for other names.
            if let Some(inflight) = &mut self.inflight {
                inflight.complete = None;
            }
            self.held.restart(self.subscription.names());
        }
        for (name, known) in added {
            // What is under way may reach the old subscription or the new one.
            let crossing = self.inflight.as_ref().and_then(|i| i.find(&name));
            let held = match (known || crossing.is_some(), self.held.get(&name)) {
                _ if crossing.is_some_and(|change| change.on_behalf_of.is_some()) => Holding::Unknown,
                // To be told again: it may have forgotten what it had.
                (true, Holding::Has(resource)) => Holding::Maybe(Some(resource)),
                (true, Holding::Maybe(held)) => Holding::Maybe(held),
                (true, Holding::Unknown) => Holding::Unknown,
                (true, Holding::Nothing) if crossing.is_some() => Holding::Maybe(None),
                // A slot that it never had is in no use.
                _ if self.kind == ResourceType::Extension => Holding::Nothing,
                _ => Holding::Maybe(None),
            };
            self.held.set(name, held);
        }
        for name in dropped {
            if self.subscription.covers(&name) {
                // Envoy waits to be told whether the wildcard stands for it.
                self.held.set(name, Holding::Unknown);
            } else {
                self.held.forget(&name);
                self.refused.remove(&name);
                self.refused_steps.remove(&name);
            }
        }
    }

    /// All that is not as wanted.
    fn differences(&self, wanted: &Layers) -> Vec<Difference> {
        let mut differences = Vec::new();
        for name in self.held.candidates(wanted) {
            if !self.subscription.covers(&name) {
                continue;
            }
            let target = wanted.get(&name);
            let differs = match (self.held.get(&name), target) {
                (Holding::Has(held), Some(target)) => held.hash != target.hash,
                (Holding::Nothing, None) => false,
                (_, None) => self.removable(),
                _ => true,
            };
            if differs {
                let refused = self.refused.get(&name) == Some(&target.map(|t| t.hash));
                differences.push(Difference { name, target: target.cloned(), refused });
            }
        }
        differences
    }

    pub(super) fn plan(&self, wanted: &Layers, may_remove: bool) -> Plan {
        let differences = self.differences(wanted);
        let mut changes: Vec<Change> = if self.kind == ResourceType::Extension {
            sequence::step(&differences, wanted, &|name| self.held.get(name))
        } else {
            differences.iter().filter(|d| !d.refused).map(Change::from).collect()
        };
        changes.retain(|change| match &change.resource {
            None => may_remove,
            Some(resource) => self.refused_steps.get(&change.name) != Some(&resource.hash),
        });
        let tried = |group: &&BTreeSet<Arc<str>>| changes.iter().any(|c| group.contains(&c.name));
        if let Some(group) = self.suspects.iter().find(tried) {
            changes.retain(|change| group.contains(&change.name));
        }
        changes.sort_by(|a, b| a.name.cmp(&b.name));
        let complete = changes.len() == differences.len() && changes.iter().all(|c| c.on_behalf_of.is_none());
        Plan { changes, complete }
    }

    /// Sends `plan`.
    pub(super) fn send(&mut self, plan: Plan, nonce: String, wanted: Layers, generation: u64) -> Response {
        let Plan { changes, complete } = plan;
        self.must_respond = false;
        let mut assumed = Vec::new();
        let resources: Vec<Resource> = if self.full() {
            self.world(&wanted, &changes, &mut assumed)
        } else {
            changes.iter().filter_map(|change| change.resource.clone()).collect()
        };
        let removed = match self.variant {
            Variant::Delta => {
                changes.iter().filter(|c| c.resource.is_none()).map(|c| c.name.clone()).collect()
            }
            Variant::Sotw => Vec::new(),
        };
        let transitional = changes.iter().any(|change| change.on_behalf_of.is_some());
        let version = match self.variant {
            Variant::Delta => generation.to_string(),
            // A proxy that comes back with this version has everything; with any other we do not know what it has.
            Variant::Sotw if complete => self.version(&wanted),
            Variant::Sotw => format!("{TRANSITIONAL}{nonce}-{}", self.version(&wanted)),
        };
        self.held.begin();
        let complete = complete.then_some((wanted, generation));
        self.inflight = Some(Inflight { nonce: nonce.clone(), sent: changes, assumed, complete });
        Response { kind: self.kind, nonce, version, resources, removed, transitional }
    }

    /// SotW, wildcard types: everything the proxy is to have after `changes`, including what is not to change yet.
    fn world(&self, wanted: &Layers, changes: &[Change], assumed: &mut Vec<Resource>) -> Vec<Resource> {
        let mut world: BTreeMap<Arc<str>, Resource> = BTreeMap::new();
        for name in self.held.names(wanted) {
            if !self.subscription.covers(&name) || changes.iter().any(|change| change.name == name) {
                continue;
            }
            match self.held.get(&name) {
                Holding::Has(resource) | Holding::Maybe(Some(resource)) => drop(world.insert(name, resource)),
                // To leave it out would remove what the proxy may have.
                Holding::Unknown => assumed.extend(wanted.get(&name).cloned()),
                Holding::Nothing | Holding::Maybe(None) => {}
            }
        }
        let changed = changes.iter().filter_map(|change| change.resource.as_ref());
        world.extend(changed.chain(&*assumed).map(|r| (r.name.clone(), r.clone())));
        world.into_values().collect()
    }

    /// A version of the subscribed part of `wanted`: equal content, equal version, in every process.
    pub(super) fn version(&self, wanted: &Layers) -> String {
        let subscribed: BTreeMap<&str, u64> =
            wanted.iter().filter(|r| self.subscription.covers(&r.name)).map(|r| (&*r.name, r.hash)).collect();
        let mut content = Vec::new();
        for (name, hash) in subscribed {
            content.extend_from_slice(&(name.len() as u64).to_be_bytes());
            content.extend_from_slice(name.as_bytes());
            content.extend_from_slice(&hash.to_be_bytes());
        }
        format!("{:016x}", twox_hash::XxHash3_64::oneshot(&content))
    }

    /// The hash of what the proxy was last told of `name`, acknowledged or not.
    pub(super) fn told(&self, name: &str) -> Option<u64> {
        if let Some(change) = self.inflight.as_ref().and_then(|i| i.find(name)) {
            return change.resource.as_ref().map(|r| r.hash);
        }
        match self.held.get(name) {
            Holding::Has(resource) | Holding::Maybe(Some(resource)) => Some(resource.hash),
            Holding::Nothing | Holding::Maybe(None) | Holding::Unknown => None,
        }
    }

    /// Returns the generation that is now in force, if all of it is.
    pub(super) fn acknowledged(&mut self, inflight: Inflight) -> Option<u64> {
        let Inflight { nonce: _, sent, assumed, complete } = inflight;
        let assumed = assumed.into_iter().map(|r| (r.name.clone(), Some(r)));
        let applied: Vec<_> = sent.into_iter().map(|c| (c.name, c.resource)).chain(assumed).collect();
        for (name, _) in &applied {
            self.refused.remove(name);
            self.refused_steps.remove(name);
        }
        self.cleared(applied.iter().map(|(name, _)| name));
        let Some((target, generation)) = complete else {
            self.held.applied(applied.into_iter());
            return None;
        };
        self.suspects.clear();
        self.held.replaced(target);
        self.generation = Some(generation);
        Some(generation)
    }

    /// Nothing is to be found out about `names` any more.
    fn cleared<'a>(&mut self, names: impl Iterator<Item = &'a Arc<str>>) {
        for name in names {
            for group in &mut self.suspects {
                group.remove(name);
            }
        }
        self.suspects.retain(|group| !group.is_empty());
    }

    /// Returns the resource to blame (and its version) if it was alone. `message` is the proxy's; it may name culprits.
    pub(super) fn refused(&mut self, inflight: Inflight, message: &str) -> Option<(Arc<str>, String)> {
        let Inflight { nonce: _, sent, assumed, complete: _ } = inflight;
        self.held.abandoned();
        let unknown = |c: &Change| matches!(self.held.get(&c.name), Holding::Unknown);
        if self.full() && (!assumed.is_empty() || sent.iter().any(unknown)) {
            return self.refused_with_unknown(&sent, &assumed);
        }
        self.cleared(sent.iter().map(|change| &change.name));
        if let [change] = &sent[..] {
            return Some(self.blame(change));
        }
        for change in &sent {
            let doubted = match self.held.get(&change.name) {
                Holding::Has(resource) => Holding::Maybe(Some(resource)),
                // A slot that was in no use is still in none.
                Holding::Nothing if self.kind != ResourceType::Extension => Holding::Maybe(None),
                other => other,
            };
            self.held.set(change.name.clone(), doubted);
        }
        let (named, others) = partition(sent.into_iter().map(|c| c.name), message);
        let alone = |names: Vec<Arc<str>>| names.into_iter().map(|name| BTreeSet::from([name]));
        if named.is_empty() {
            self.suspects.extend(alone(others.into_iter().collect()));
        } else {
            self.suspects.push_back(others);
            self.suspects.extend(alone(named));
        }
        None
    }

    /// SotW: what the proxy has from before this stream was in question too. To try one by one would mean to leave out, and
    /// so to remove, what it has; so all of it waits for other content. Envoy takes what is good of clusters and
    /// listeners also when it refuses, so they are in use, most likely.
    fn refused_with_unknown(&mut self, sent: &[Change], assumed: &[Resource]) -> Option<(Arc<str>, String)> {
        let mut blamed = None;
        for change in sent {
            blamed = Some(self.blame(change));
            let now = if change.resource.is_some() { Holding::Unknown } else { Holding::Nothing };
            self.held.set(change.name.clone(), now);
        }
        blamed.filter(|_| sent.len() == 1 && assumed.is_empty())
    }

    /// `change` is not tried again.
    fn blame(&mut self, change: &Change) -> (Arc<str>, String) {
        let Change { name, resource, on_behalf_of } = change;
        if let (Some(target), Some(step)) = (on_behalf_of, resource) {
            self.refused_steps.insert(name.clone(), step.hash);
            self.refused.insert(target.name.clone(), Some(target.hash));
            return (target.name.clone(), target.version());
        }
        self.refused.insert(name.clone(), resource.as_ref().map(|r| r.hash));
        (name.clone(), resource.as_ref().map(Resource::version).unwrap_or_default())
    }
}

/// Which `names` a proxy's error message mentions, and which it does not. Envoy names the listeners and clusters that it
/// refuses; that is a hint, no more.
fn partition(names: impl Iterator<Item = Arc<str>>, message: &str) -> (Vec<Arc<str>>, BTreeSet<Arc<str>>) {
    let (mut named, mut others) = (Vec::new(), BTreeSet::new());
    for name in names {
        if mentions(message, &name) {
            named.push(name);
        } else {
            others.insert(name);
        }
    }
    (named, others)
}

fn mentions(message: &str, name: &str) -> bool {
    let part_of_name = |c: char| c.is_alphanumeric() || "._-|".contains(c);
    message.match_indices(name).any(|(at, _)| {
        let before = message[..at].chars().next_back();
        let after = message[at + name.len()..].chars().next();
        !before.is_some_and(part_of_name) && !after.is_some_and(part_of_name)
    })
}

impl Inflight {
    fn find(&self, name: &str) -> Option<&Change> {
        self.sent.binary_search_by(|change| (*change.name).cmp(name)).ok().map(|at| &self.sent[at])
    }

    /// Clusters that are sent, not those that are removed.
    pub(super) fn resources(&self) -> impl Iterator<Item = &Resource> {
        self.sent.iter().filter_map(|change| change.resource.as_ref())
    }
}
