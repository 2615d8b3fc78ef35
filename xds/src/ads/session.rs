//! One xDS stream as a state machine: requests and snapshots in, responses and events out. No I/O, no clock.
//!
//! For every type it knows what the proxy holds ([`held`]), compares that with what the latest snapshot wants for the names the
//! proxy asked for, and sends the difference, at most one unacknowledged response per type. Snapshots that arrive meanwhile
//! are not queued: only the latest counts.
//!
//! Policy slots (design decision 3): Envoy applies extension configs one by one. A change of the DENY slot together with
//! another slot is sent as DENY = old ∪ new, then the others, then DENY = new, each acknowledged before the next
//! ([`sequence`]). A snapshot that arrives midway starts again from what the proxy then holds.
//!
//! A refused response names no resource, and Envoy stops at the first bad one: its changes are then sent again one by
//! one; the one that is refused alone is not sent again until its content changes, everything else goes on.

mod held;
mod sequence;
#[cfg(test)]
mod tests;

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::sync::Arc;

use envoy_types::pb::envoy::service::discovery::v3::{DeltaDiscoveryRequest, DiscoveryRequest};

use crate::resource::{Layers, Resource, ResourceType, Snapshot};
use held::{Held, Holding};

/// Names one type of one stream may subscribe to.
const MAX_NAMES: usize = 20_000;
/// A longer resource name is refused.
const MAX_NAME_BYTES: usize = 4096;

/// Which of the two variants of the protocol the stream speaks.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Variant {
    /// State of the world.
    Sotw,
    Delta,
}

/// A message to the proxy.
#[derive(Clone, Debug, PartialEq)]
pub struct Response {
    pub kind: ResourceType,
    pub nonce: String,
    /// SotW `version_info`, delta `system_version_info`.
    pub version: String,
    pub resources: Vec<Resource>,
    /// Delta only.
    pub removed: Vec<Arc<str>>,
}

/// What happened, for status, receipts and metrics.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Event {
    Sent {
        kind: ResourceType,
        resources: usize,
        bytes: usize,
    },
    /// The proxy has everything it asked for of that type, as of that snapshot.
    Acked {
        kind: ResourceType,
        generation: u64,
    },
    /// A response was refused; `resource` once it is known which one is to blame.
    Rejected {
        kind: ResourceType,
        resource: Option<(Arc<str>, String)>,
        message: String,
    },
    /// An answer to something older than the last response; ignored.
    StaleNonce {
        kind: ResourceType,
    },
}

/// Why a stream cannot go on.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum SessionError {
    #[error("more than {MAX_NAMES} names of one type")]
    TooManyNames,
    #[error("a resource name of more than {MAX_NAME_BYTES} bytes")]
    NameTooLong,
}

/// Names a proxy asked for.
#[derive(Debug, Default)]
struct Subscription {
    /// Some request of this type came.
    active: bool,
    wildcard: bool,
    names: BTreeSet<Arc<str>>,
}

impl Subscription {
    fn covers(&self, name: &str) -> bool {
        self.wildcard || self.names.contains(name)
    }

    fn check(&self) -> Result<(), SessionError> {
        if self.names.len() > MAX_NAMES { Err(SessionError::TooManyNames) } else { Ok(()) }
    }
}

/// A response that is not answered yet.
#[derive(Debug)]
struct Inflight {
    nonce: String,
    sent: Vec<(Arc<str>, Option<Resource>)>,
    /// The whole difference to `target`: once acknowledged, the proxy holds exactly that.
    complete: Option<(Layers, u64)>,
}

#[derive(Debug, Default)]
struct TypeState {
    subscription: Subscription,
    held: Held,
    inflight: Option<Inflight>,
    /// Answer the next time even if there is nothing to say: Envoy waits for a first answer.
    must_respond: bool,
    /// Content hashes that the proxy refused, by name.
    rejected: BTreeMap<Arc<str>, u64>,
    /// Names of a refused response, still to be tried one by one.
    suspects: VecDeque<Arc<str>>,
    /// The transitional DENY slot that covers a target: (its hash, the target's hash).
    covering: Option<(u64, u64)>,
    /// The generation last reported as acknowledged.
    generation: Option<u64>,
}

/// The state of one stream.
#[derive(Debug)]
pub struct Session {
    variant: Variant,
    snapshot: Arc<Snapshot>,
    types: [TypeState; 5],
    nonces: u64,
    events: Vec<Event>,
}

impl Session {
    /// A stream that has asked for nothing yet, to be served from `snapshot`.
    pub fn new(variant: Variant, snapshot: Arc<Snapshot>) -> Self {
        Self { variant, snapshot, types: Default::default(), nonces: 0, events: Vec::new() }
    }

    /// What happened since the last call.
    pub fn take_events(&mut self) -> Vec<Event> {
        std::mem::take(&mut self.events)
    }

    /// A newer snapshot.
    pub fn update(&mut self, snapshot: Arc<Snapshot>) -> Vec<Response> {
        self.snapshot = snapshot;
        self.flush()
    }

    /// A delta request. Types we do not serve are ignored.
    pub fn delta(&mut self, request: &DeltaDiscoveryRequest) -> Result<Vec<Response>, SessionError> {
        let Some(kind) = ResourceType::from_type_url(&request.type_url) else { return Ok(Vec::new()) };
        let names = request.resource_names_subscribe.iter().chain(&request.resource_names_unsubscribe);
        check_names(names.chain(request.initial_resource_versions.keys()))?;
        let wanted = self.snapshot.of(kind);
        let state = &mut self.types[kind as usize];
        let first = !state.subscription.active;
        state.subscription.active = true;
        if first && kind.wildcard() && request.resource_names_subscribe.is_empty() {
            state.subscription.wildcard = true;
        }
        for (name, version) in &request.initial_resource_versions {
            let current = wanted.get(name).filter(|r| r.version() == *version);
            let name = current.map_or_else(|| name.as_str().into(), |r| r.name.clone());
            // A name that it holds is one it is subscribed to, unless the wildcard covers it.
            if !state.subscription.wildcard {
                state.subscription.names.insert(name.clone());
            }
            state.held.set(name, current.cloned().map_or(Holding::Unknown, Holding::Has));
        }
        for name in &request.resource_names_subscribe {
            let forget = !request.initial_resource_versions.contains_key(name);
            state.subscribe(name, wanted, forget);
            if forget && name != "*" && kind != ResourceType::Extension && wanted.get(name).is_none() {
                // There is no such thing: to be told, as a removal.
                state.held.set(name.as_str().into(), Holding::Unknown);
            }
        }
        for name in &request.resource_names_unsubscribe {
            state.unsubscribe(name);
        }
        state.subscription.check()?;
        let empty_start = request.initial_resource_versions.is_empty();
        state.must_respond |= state.subscription.wildcard && first && empty_start;
        let error = request.error_detail.as_ref().map(|e| e.message.as_str());
        self.answered(kind, &request.response_nonce, error);
        Ok(self.flush())
    }

    /// A state-of-the-world request. Types we do not serve are ignored.
    pub fn sotw(&mut self, request: &DiscoveryRequest) -> Result<Vec<Response>, SessionError> {
        let Some(kind) = ResourceType::from_type_url(&request.type_url) else { return Ok(Vec::new()) };
        check_names(request.resource_names.iter())?;
        let wanted = self.snapshot.of(kind);
        let state = &mut self.types[kind as usize];
        let first = !state.subscription.active;
        state.subscription.active = true;
        state.names(kind, &request.resource_names, wanted);
        state.subscription.check()?;
        if first && state.version(wanted) == request.version_info {
            // A proxy that reconnects with what it is to have.
            state.held.settle(wanted.clone());
        } else if first && !request.version_info.is_empty() {
            // It reconnects with something else, which is in use while we change it.
            for name in state.held.names(wanted) {
                state.held.set(name, Holding::Unknown);
            }
        } else {
            state.must_respond |= first && state.subscription.wildcard;
        }
        let error = request.error_detail.as_ref().map(|e| e.message.as_str());
        self.answered(kind, &request.response_nonce, error);
        Ok(self.flush())
    }

    /// Takes an ACK or NACK into account.
    fn answered(&mut self, kind: ResourceType, nonce: &str, error: Option<&str>) {
        let state = &mut self.types[kind as usize];
        if nonce.is_empty() {
            return;
        }
        let Some(inflight) = state.inflight.take_if(|i| i.nonce == nonce) else {
            // Every later request of a type repeats the last nonce in SotW: only an error there is news.
            if error.is_some() || self.variant == Variant::Delta {
                self.events.push(Event::StaleNonce { kind });
            }
            return;
        };
        match error {
            None => {
                if let Some(generation) = state.acknowledged(inflight) {
                    self.events.push(Event::Acked { kind, generation });
                }
            }
            Some(message) => {
                let resource = state.refused(&inflight);
                let message = message.chars().take(2000).collect();
                self.events.push(Event::Rejected { kind, resource, message });
            }
        }
    }

    /// Sends what can be sent now.
    fn flush(&mut self) -> Vec<Response> {
        let mut responses = Vec::new();
        for kind in ResourceType::ALL {
            if let Some(response) = self.flush_type(kind) {
                responses.push(response);
            }
        }
        responses
    }

    fn flush_type(&mut self, kind: ResourceType) -> Option<Response> {
        let wanted = self.snapshot.of(kind).clone();
        let generation = self.snapshot.generation;
        let state = &self.types[kind as usize];
        if !state.subscription.active || state.inflight.is_some() {
            return None;
        }
        let mut plan = state.plan(kind, &wanted, true);
        let removes = plan.changes.iter().any(|(_, target)| target.is_none());
        if removes && kind == ResourceType::Cluster && !self.others_quiet() {
            plan = state.plan(kind, &wanted, false);
        }
        let Plan { changes, complete } = plan;
        let state = &mut self.types[kind as usize];
        if changes.is_empty() && !state.must_respond {
            if complete {
                state.held.settle(wanted);
                if state.generation.replace(generation) != Some(generation) {
                    self.events.push(Event::Acked { kind, generation });
                }
            }
            return None;
        }
        state.must_respond = false;
        self.nonces += 1;
        let nonce = format!("{:x}", self.nonces);
        let response = state.respond(self.variant, kind, nonce.clone(), &wanted, &changes);
        state.held.begin();
        state.inflight =
            Some(Inflight { nonce, sent: changes, complete: complete.then_some((wanted, generation)) });
        let bytes = response.resources.iter().map(|r| r.any.len()).sum();
        self.events.push(Event::Sent { kind, resources: response.resources.len(), bytes });
        if kind == ResourceType::Cluster {
            // Envoy warms a changed cluster until it is told its endpoints again.
            let endpoints = &mut self.types[ResourceType::Endpoint as usize];
            for name in response.resources.iter().map(|r| &r.name) {
                if endpoints.subscription.covers(name) {
                    endpoints.held.set(name.clone(), Holding::Nothing);
                }
            }
        }
        Some(response)
    }

    /// Nothing but clusters is outstanding or about to be sent: clusters may be removed.
    fn others_quiet(&self) -> bool {
        ResourceType::ALL.into_iter().filter(|kind| *kind != ResourceType::Cluster).all(|kind| {
            let state = &self.types[kind as usize];
            let wanted = self.snapshot.of(kind);
            !state.subscription.active
                || (state.inflight.is_none() && state.plan(kind, wanted, true).changes.is_empty())
        })
    }
}

fn check_names<'a>(mut names: impl Iterator<Item = &'a String>) -> Result<(), SessionError> {
    if names.any(|name| name.len() > MAX_NAME_BYTES) { Err(SessionError::NameTooLong) } else { Ok(()) }
}

/// What to send next: names with the resource they are to become (`None`: to be removed).
struct Plan {
    changes: Vec<(Arc<str>, Option<Resource>)>,
    /// These are all the differences to the snapshot.
    complete: bool,
}

impl TypeState {
    fn subscribe(&mut self, name: &str, wanted: &Layers, forget: bool) {
        if name == "*" {
            self.subscription.wildcard = true;
            return;
        }
        let name: Arc<str> = wanted.get(name).map_or_else(|| name.into(), |r| r.name.clone());
        if forget {
            // Subscribing again means: tell me again, I may have forgotten it. A response that is under way may still
            // reach the new subscription.
            let crossing =
                self.inflight.as_ref().is_some_and(|i| i.sent.iter().any(|(sent, _)| *sent == name));
            self.held.set(name.clone(), if crossing { Holding::Unknown } else { Holding::Nothing });
        }
        self.subscription.names.insert(name);
    }

    fn unsubscribe(&mut self, name: &str) {
        if name == "*" {
            self.subscription.wildcard = false;
            return;
        }
        self.subscription.names.remove(name);
        if !self.subscription.wildcard {
            self.held.set(name.into(), Holding::Nothing);
            self.rejected.remove(name);
        }
    }

    /// SotW: `names` replaces what was asked for before.
    fn names(&mut self, kind: ResourceType, names: &[String], wanted: &Layers) {
        let started = self.subscription.wildcard || !self.subscription.names.is_empty();
        if names.is_empty() {
            self.subscription.wildcard = kind.wildcard() && (self.subscription.wildcard || !started);
            self.subscription.names.clear();
            return;
        }
        self.subscription.wildcard = names.iter().any(|name| name == "*");
        let before = std::mem::take(&mut self.subscription.names);
        for name in names.iter().filter(|name| *name != "*") {
            match before.get(name.as_str()) {
                Some(known) => drop(self.subscription.names.insert(known.clone())),
                None => self.subscribe(name, wanted, true),
            }
        }
        for gone in before.difference(&self.subscription.names) {
            self.held.set(gone.clone(), Holding::Nothing);
        }
    }

    /// What the proxy holds of `name` now.
    fn holds(&self, name: &str) -> Holding {
        self.held.get(name)
    }

    /// All differences between what is held and what is wanted, refused content left out.
    fn differences(&self, wanted: &Layers) -> Vec<(Arc<str>, Option<Resource>)> {
        let mut changes = Vec::new();
        for name in self.held.candidates(wanted) {
            if !self.subscription.covers(&name) {
                continue;
            }
            let target = wanted.get(&name);
            let differs = match (self.holds(&name), target) {
                (Holding::Has(held), Some(target)) => held.hash != target.hash,
                (Holding::Nothing, None) => false,
                _ => true,
            };
            let refused = target.is_some_and(|t| self.rejected.get(&name) == Some(&t.hash));
            if differs && !refused {
                changes.push((name, target.cloned()));
            }
        }
        changes
    }

    fn plan(&self, kind: ResourceType, wanted: &Layers, may_remove: bool) -> Plan {
        let mut changes = self.differences(wanted);
        let all = changes.len();
        // Envoy keeps an extension config that is no longer served; its listener stops using it.
        let removable = |target: &Option<Resource>| target.is_some() || kind != ResourceType::Extension;
        changes.retain(|(_, target)| removable(target) && (may_remove || target.is_some()));
        if let Some(suspect) = self.suspects.iter().find(|s| changes.iter().any(|(name, _)| name == *s)) {
            changes.retain(|(name, _)| name == suspect);
        }
        if kind == ResourceType::Extension {
            changes = sequence::step(changes, |name| self.holds(name), self.covering);
            let refused = |name: &Arc<str>, r: &Resource| self.rejected.get(name) == Some(&r.hash);
            changes.retain(|(name, target)| !target.as_ref().is_some_and(|r| refused(name, r)));
        }
        let complete =
            changes.len() == all && self.rejected.is_empty() && !sequence::transitional(&changes, wanted);
        Plan { changes, complete }
    }

    fn respond(
        &mut self,
        variant: Variant,
        kind: ResourceType,
        nonce: String,
        wanted: &Layers,
        changes: &[(Arc<str>, Option<Resource>)],
    ) -> Response {
        self.covering = sequence::covering(changes, wanted).or(self.covering);
        let full = variant == Variant::Sotw && kind.wildcard();
        let resources: Vec<Resource> = if full {
            self.world(wanted, changes)
        } else {
            changes.iter().filter_map(|(_, target)| target.clone()).collect()
        };
        let removed = changes.iter().filter(|(_, target)| target.is_none()).map(|(name, _)| name.clone());
        let removed = if variant == Variant::Delta { removed.collect() } else { Vec::new() };
        let version = self.version(wanted);
        Response { kind, nonce, version, resources, removed }
    }

    /// SotW, wildcard types: everything the proxy is to have after `changes`, including what is not to change yet.
    fn world(&self, wanted: &Layers, changes: &[(Arc<str>, Option<Resource>)]) -> Vec<Resource> {
        let mut world: BTreeMap<Arc<str>, Resource> = BTreeMap::new();
        for name in self.held.names(wanted) {
            if !self.subscription.covers(&name) {
                continue;
            }
            if let Holding::Has(resource) | Holding::Maybe(resource) = self.holds(&name) {
                world.insert(name, resource);
            }
        }
        for (name, target) in changes {
            match target {
                Some(resource) => drop(world.insert(name.clone(), resource.clone())),
                None => drop(world.remove(name)),
            }
        }
        world.into_values().collect()
    }

    /// A version of the subscribed part of `wanted`: equal content, equal version, in every process.
    fn version(&self, wanted: &Layers) -> String {
        let mut content = Vec::new();
        for resource in wanted.iter().filter(|r| self.subscription.covers(&r.name)) {
            content.extend_from_slice(resource.name.as_bytes());
            content.extend_from_slice(&resource.hash.to_be_bytes());
        }
        format!("{:016x}", twox_hash::XxHash3_64::oneshot(&content))
    }

    /// Returns the generation that is now in force, if all of it is.
    fn acknowledged(&mut self, inflight: Inflight) -> Option<u64> {
        let Inflight { nonce: _, sent, complete } = inflight;
        for (name, _) in &sent {
            self.suspects.retain(|suspect| suspect != name);
            self.rejected.remove(name);
        }
        let Some((target, generation)) = complete else {
            self.held.applied(sent);
            return None;
        };
        self.covering = None;
        self.held.replaced(target);
        self.generation = Some(generation);
        Some(generation)
    }

    /// Returns the resource to blame if it was alone.
    fn refused(&mut self, inflight: &Inflight) -> Option<(Arc<str>, String)> {
        self.held.abandoned();
        if let [(name, target)] = &inflight.sent[..] {
            self.suspects.retain(|suspect| suspect != name);
            let target = target.as_ref()?;
            self.rejected.insert(name.clone(), target.hash);
            return Some((name.clone(), target.version()));
        }
        inflight.sent.iter().for_each(|(name, _)| self.held.doubt(name));
        self.suspects = inflight.sent.iter().map(|(name, _)| name.clone()).collect();
        None
    }
}
