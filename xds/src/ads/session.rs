//! One xDS stream as a state machine: requests and snapshots in, responses and events out. No I/O, no clock.
//!
//! For every type it knows what the proxy asked for ([`subscription`]) and what it holds ([`held`]), compares that with
//! the latest snapshot and sends the difference ([`state`]), at most one unacknowledged response per type. Snapshots
//! that arrive meanwhile are not queued: only the latest counts.
//!
//! **Order.** Within one turn types go out as clusters, endpoints, extension configs, listeners, routes, so that what is
//! referred to is there first; a cluster is only removed once nothing else is outstanding. Endpoints follow every change
//! of their cluster, because Envoy keeps the changed cluster aside until they come ([`warming`]).
//!
//! **Listeners and policy slots** do not wait for each other's acknowledgement: a change that tightens must never wait
//! behind one that loosens. It need not: a slot that a new listener uses and the proxy does not have yet holds that
//! listener back until it comes; PERMISSIVE → STRICT goes out as the guard in the DENY slot (in force at the next
//! request of any connection) and, behind it, the listener without the plaintext chain; STRICT → PERMISSIVE lifts the
//! guard first, which admits nobody while the plaintext chain is not there. Among the slots themselves a change goes
//! in acknowledged steps ([`sequence`]).
//!
//! **Refusals.** A refused response names no resource, and Envoy stops at the first bad one or takes the others. Its
//! changes are then sent again: those that the proxy's message does not mention together, the others one by one; the one
//! that is refused alone is not sent again until its content changes, everything else goes on. The proxy keeps its last
//! good version.
//!
//! **Coming back.** A delta proxy says which versions it has, and is sent what differs. The version of endpoints also
//! covers their cluster: a proxy that took a cluster and lost the stream before the endpoints came shows an old version
//! and is sent them, instead of keeping that cluster aside for ever. A SotW proxy says one version for a type. If that
//! is the one of all it is to have, clusters and listeners are not sent again; what is asked for by name is, because it
//! may have dropped a name and taken it up again unseen.

mod held;
mod references;
mod sequence;
mod state;
mod subscription;
#[cfg(test)]
mod tests;
mod warming;

use std::collections::BTreeSet;
use std::sync::Arc;

use envoy_types::pb::envoy::service::discovery::v3::{DeltaDiscoveryRequest, DiscoveryRequest};

use crate::resource::{Layers, Resource, ResourceType, Snapshot};
use held::Holding;
use references::References;
use state::TypeState;

/// Names one type of one stream may subscribe to.
const MAX_NAMES: usize = 20_000;
/// A longer resource name is refused.
const MAX_NAME_BYTES: usize = 4096;
/// How versions of what is not to last begin.
const TRANSITIONAL: &str = "~";
/// Characters of a proxy's error message that are kept.
const MAX_ERROR_CHARS: usize = 2000;

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
    /// Holds a step on the way to what the snapshot wants.
    pub(super) transitional: bool,
}

impl Response {
    /// Delta: the version that the proxy is to know `resource` by. It says so if this is only a step on the way: a proxy
    /// that comes back with another version holds none of those.
    pub(super) fn version_of(&self, resource: &Resource) -> String {
        let mark = if self.transitional { TRANSITIONAL } else { "" };
        format!("{mark}{}", resource.version())
    }
}

/// What happened, for status, receipts and metrics.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Event {
    /// `bytes` counts the resources, not their envelope.
    Sent { kind: ResourceType, resources: usize, bytes: usize },
    /// The proxy has everything it asked for of that type, as of that snapshot.
    Acked { kind: ResourceType, generation: u64 },
    /// A response was refused; `resource` (name and version; no version: its removal) once it is known which one is to
    /// blame.
    Rejected { kind: ResourceType, resource: Option<(Arc<str>, String)>, message: String },
    /// An answer to something older than the last response; ignored.
    StaleNonce { kind: ResourceType },
    /// Inbound listeners that the proxy brought along from before this stream are about to be replaced.
    Replacing,
    /// Whether an inbound listener that the proxy has acknowledged waits for an extension config or a route
    /// configuration that it does not have. Comes before an acknowledgement that makes it wait, and after one that ends it.
    Waiting(bool),
}

/// Why a stream cannot go on.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum SessionError {
    #[error("more than {MAX_NAMES} names of one type")]
    TooManyNames,
    #[error("a resource name of more than {MAX_NAME_BYTES} bytes")]
    NameTooLong,
}

/// The state of one stream.
#[derive(Debug)]
pub struct Session {
    variant: Variant,
    snapshot: Arc<Snapshot>,
    /// Indexed by [`ResourceType`].
    types: [TypeState; 5],
    /// The proxy had clusters when it opened the stream.
    resumed: bool,
    /// Endpoints to be told once the proxy asks for them, whatever version it has: their clusters have changed.
    warming: BTreeSet<Arc<str>>,
    /// What the acknowledged inbound listeners refer to.
    references: References,
    /// As last reported.
    waiting: bool,
    nonces: u64,
    events: Vec<Event>,
}

impl Session {
    /// A stream that has asked for nothing yet, to be served from `snapshot`.
    pub fn new(variant: Variant, snapshot: Arc<Snapshot>) -> Self {
        let types = ResourceType::ALL.map(|kind| TypeState::new(variant, kind));
        Self {
            variant,
            snapshot,
            types,
            resumed: false,
            warming: BTreeSet::new(),
            references: References::default(),
            waiting: false,
            nonces: 0,
            events: Vec::new(),
        }
    }

    /// What happened since the last call.
    pub fn take_events(&mut self) -> Vec<Event> {
        let mut events = std::mem::take(&mut self.events);
        match (self.waiting, self.waits()) {
            (false, true) => events.insert(0, Event::Waiting(true)),
            (true, false) => events.push(Event::Waiting(false)),
            _ => {}
        }
        events
    }

    /// Whether an acknowledged inbound listener refers to what the proxy does not have; remembered as reported.
    fn waits(&mut self) -> bool {
        let listeners = self.types[ResourceType::Listener as usize].held.own();
        let types = &self.types;
        let lacks = |(kind, name): &(ResourceType, Arc<str>)| {
            let state = &types[*kind as usize];
            !state.subscription.covers(name) || !matches!(state.held.get(name), Holding::Has(_))
        };
        self.waiting = self.references.of(listeners).iter().any(lacks);
        self.waiting
    }

    /// A newer snapshot.
    pub fn update(&mut self, snapshot: Arc<Snapshot>) -> Vec<Response> {
        self.snapshot = snapshot;
        self.flush()
    }

    /// A delta request. Types we do not serve are ignored.
    ///
    /// # Errors
    /// If it goes beyond the limits; the stream is to end.
    pub fn delta(&mut self, request: &DeltaDiscoveryRequest) -> Result<Vec<Response>, SessionError> {
        let Some(kind) = ResourceType::from_type_url(&request.type_url) else { return Ok(Vec::new()) };
        let (subscribe, unsubscribe) =
            (&request.resource_names_subscribe, &request.resource_names_unsubscribe);
        let initial = &request.initial_resource_versions;
        check_names(subscribe.iter().chain(unsubscribe).chain(initial.keys()))?;
        if initial.len() > MAX_NAMES {
            return Err(SessionError::TooManyNames);
        }
        let error = request.error_detail.as_ref().map(|e| e.message.as_str());
        self.answered(kind, &request.response_nonce, error);

        let wanted = self.snapshot.of(kind).clone();
        let state = &mut self.types[kind as usize];
        let first = state.subscription.begin(kind.wildcard(), !subscribe.is_empty());
        // A name that it holds is one it is subscribed to, unless the wildcard covers it.
        let wild = state.subscription.wildcard || subscribe.iter().any(|name| name == "*");
        let held = initial.keys().filter(|_| first && !wild);
        let added = subscribe.iter().chain(held).map(|name| shared(name, &wanted));
        let dropped = unsubscribe.iter().map(|name| shared(name, &wanted));
        let turn = state.subscription.change(kind.wildcard(), added, dropped);
        if state.subscription.len() > MAX_NAMES {
            return Err(SessionError::TooManyNames);
        }
        state.turn(turn);
        if first {
            state.must_respond = state.subscription.wildcard && initial.is_empty();
            self.resume(kind, initial.iter().map(|(name, version)| (name.as_str(), version.as_str())));
        }
        Ok(self.flush())
    }

    /// What a delta proxy says at first that it has.
    fn resume<'a>(&mut self, kind: ResourceType, versions: impl Iterator<Item = (&'a str, &'a str)>) {
        let warming =
            if kind == ResourceType::Endpoint { std::mem::take(&mut self.warming) } else { BTreeSet::new() };
        for (name, version) in versions {
            self.resumed |= kind == ResourceType::Cluster;
            let current = self.snapshot.of(kind).get(name).cloned();
            let content = version.strip_prefix(TRANSITIONAL).unwrap_or(version);
            let same = |r: &Resource| !warming.contains(name) && self.version(kind, r) == content;
            let other = unknown(kind, name, version);
            let holding = current.filter(same).map_or(other, Holding::Has);
            let name = shared(name, self.snapshot.of(kind));
            self.types[kind as usize].held.set(name, holding);
        }
    }

    /// A state-of-the-world request. Types we do not serve are ignored.
    ///
    /// # Errors
    /// If it goes beyond the limits; the stream is to end.
    pub fn sotw(&mut self, request: &DiscoveryRequest) -> Result<Vec<Response>, SessionError> {
        let Some(kind) = ResourceType::from_type_url(&request.type_url) else { return Ok(Vec::new()) };
        let names = &request.resource_names;
        check_names(names.iter())?;
        let error = request.error_detail.as_ref().map(|e| e.message.as_str());
        self.answered(kind, &request.response_nonce, error);

        let wanted = self.snapshot.of(kind).clone();
        let state = &mut self.types[kind as usize];
        let first = state.subscription.begin(kind.wildcard(), !names.is_empty());
        let turn =
            state.subscription.replace(kind.wildcard(), names.iter().map(|name| shared(name, &wanted)));
        if state.subscription.len() > MAX_NAMES {
            return Err(SessionError::TooManyNames);
        }
        state.turn(turn);
        if first {
            let version = &request.version_info;
            self.resumed |= kind == ResourceType::Cluster && !version.is_empty();
            let current = state.version(&wanted) == *version;
            if kind.wildcard() && current {
                state.held.settle(wanted);
            } else {
                // Also where there is nothing to say: what it has and is not told of has to go.
                state.must_respond = state.subscription.wildcard;
                if !version.is_empty() && !current {
                    // Something is in use while we change it.
                    let names = state.held.names(&wanted);
                    names
                        .into_iter()
                        .for_each(|name| state.held.set(name.clone(), unknown(kind, &name, version)));
                }
            }
        }
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
                let resource = state.refused(inflight, message);
                let message = message.chars().take(MAX_ERROR_CHARS).collect();
                self.events.push(Event::Rejected { kind, resource, message });
            }
        }
    }

    /// Sends what can be sent now.
    fn flush(&mut self) -> Vec<Response> {
        ResourceType::ALL.into_iter().filter_map(|kind| self.flush_type(kind)).collect()
    }

    fn flush_type(&mut self, kind: ResourceType) -> Option<Response> {
        let wanted = self.snapshot.of(kind).clone();
        let generation = self.snapshot.generation;
        let state = &self.types[kind as usize];
        if !state.subscription.active || state.inflight.is_some() {
            return None;
        }
        let mut plan = state.plan(&wanted, true);
        let removes = plan.changes.iter().any(|change| change.resource.is_none());
        if removes && kind == ResourceType::Cluster && !self.others_quiet() {
            plan = state.plan(&wanted, false);
        }
        let state = &mut self.types[kind as usize];
        if plan.changes.is_empty() && !state.must_respond {
            if plan.complete {
                state.held.settle(wanted);
                if state.generation.replace(generation) != Some(generation) {
                    self.events.push(Event::Acked { kind, generation });
                }
            }
            return None;
        }
        if kind == ResourceType::Listener && self.resumed && state.generation.is_none() {
            let own = |change: &sequence::Change| wanted.own.contains(&change.name);
            let held = |change: &sequence::Change| !matches!(state.held.get(&change.name), Holding::Nothing);
            if plan.changes.iter().any(|change| own(change) && held(change)) {
                self.events.push(Event::Replacing);
            }
        }
        self.nonces += 1;
        let mut response = state.send(plan, format!("{:x}", self.nonces), wanted, generation);
        let bytes = response.resources.iter().map(|r| r.any.len()).sum();
        self.events.push(Event::Sent { kind, resources: response.resources.len(), bytes });
        match kind {
            ResourceType::Cluster => self.endpoints_follow(),
            ResourceType::Endpoint if self.variant == Variant::Delta => {
                for resource in &mut response.resources {
                    resource.hash = self.version_hash(kind, resource);
                }
            }
            _ => {}
        }
        Some(response)
    }

    /// The clusters that were just sent wait for their endpoints.
    fn endpoints_follow(&mut self) {
        let active = self.types[ResourceType::Endpoint as usize].subscription.active;
        if !active && !self.resumed {
            // It asks for all of them for the first time.
            return;
        }
        let sent = self.types[ResourceType::Cluster as usize].inflight.iter().flat_map(|i| i.resources());
        let names: Vec<Arc<str>> = sent.filter_map(warming::endpoints_of).collect();
        let endpoints = &mut self.types[ResourceType::Endpoint as usize];
        for name in names {
            if !active {
                self.warming.insert(name);
            } else if endpoints.subscription.covers(&name) {
                endpoints.held.set(name, Holding::Unknown);
            }
        }
    }

    /// Nothing but clusters is outstanding or about to be sent: clusters may be removed.
    fn others_quiet(&self) -> bool {
        ResourceType::ALL.into_iter().filter(|kind| *kind != ResourceType::Cluster).all(|kind| {
            let state = &self.types[kind as usize];
            !state.subscription.active
                || (state.inflight.is_none() && state.plan(self.snapshot.of(kind), true).changes.is_empty())
        })
    }

    /// What a delta proxy is told as the version of `resource`.
    fn version(&self, kind: ResourceType, resource: &Resource) -> String {
        Resource { hash: self.version_hash(kind, resource), ..resource.clone() }.version()
    }

    fn version_hash(&self, kind: ResourceType, resource: &Resource) -> u64 {
        let cluster = || self.types[ResourceType::Cluster as usize].told(&resource.name);
        match kind {
            // Turned, so that equal hashes do not cancel out.
            ResourceType::Endpoint => resource.hash ^ cluster().unwrap_or_default().rotate_left(17),
            _ => resource.hash,
        }
    }
}

/// What a proxy holds that comes back with `version`, which is not the one that it is to have.
fn unknown(kind: ResourceType, name: &str, version: &str) -> Holding {
    let passive =
        kind == ResourceType::Extension && name == sequence::AUDIT_SLOT && !version.starts_with(TRANSITIONAL);
    if passive { Holding::Maybe(None) } else { Holding::Unknown }
}

/// `name`, as one copy for all sessions if there is such a resource.
fn shared(name: &str, wanted: &Layers) -> Arc<str> {
    wanted.get(name).map_or_else(|| name.into(), |r| r.name.clone())
}

fn check_names<'a>(mut names: impl Iterator<Item = &'a String>) -> Result<(), SessionError> {
    if names.any(|name| name.len() > MAX_NAME_BYTES) { Err(SessionError::NameTooLong) } else { Ok(()) }
}
