//! The proxy's side: what Envoy does with responses, as far as a control plane can see it.

use std::collections::{BTreeMap, BTreeSet, HashMap, VecDeque};

use envoy_types::pb::envoy::service::discovery::v3::{DeltaDiscoveryRequest, DiscoveryRequest};
use envoy_types::pb::google::rpc::Status;

use super::{World, bad};
use crate::ads::session::tests::slots::{self, Slots};
use crate::ads::session::{Response, Session, Variant};
use crate::resource::{Resource, ResourceType};

/// A request of either variant.
pub(super) enum Request {
    Delta(DeltaDiscoveryRequest),
    Sotw(DiscoveryRequest),
}

impl Request {
    pub(super) fn send(self, session: &mut Session) -> Vec<Response> {
        match self {
            Self::Delta(request) => session.delta(&request),
            Self::Sotw(request) => session.sotw(&request),
        }
        .expect("within limits")
    }
}

pub(super) struct Proxy {
    pub(super) variant: Variant,
    pub(super) held: World,
    /// Changed clusters that wait for their endpoints.
    pub(super) warming: BTreeSet<String>,
    incoming: VecDeque<Response>,
    /// Delta: what it says it has.
    versions: BTreeMap<ResourceType, HashMap<String, String>>,
    /// SotW: the version last accepted, and the last nonce.
    accepted: BTreeMap<ResourceType, String>,
    nonces: BTreeMap<ResourceType, String>,
    /// What it took of responses that it refused, and so does not name when it comes back.
    unsaid: BTreeSet<(ResourceType, String)>,
    pub(super) ever_refused: bool,
}

const ORDER: [ResourceType; 4] =
    [ResourceType::Cluster, ResourceType::Endpoint, ResourceType::Listener, ResourceType::Extension];

impl Proxy {
    pub(super) fn new(variant: Variant) -> Self {
        Self {
            variant,
            held: World::new(),
            warming: BTreeSet::new(),
            incoming: VecDeque::new(),
            versions: BTreeMap::new(),
            accepted: BTreeMap::new(),
            nonces: BTreeMap::new(),
            unsaid: BTreeSet::new(),
            ever_refused: false,
        }
    }

    pub(super) fn slots(&self) -> Option<&Slots> {
        self.held.get(&ResourceType::Extension)
    }

    pub(super) fn idle(&self) -> bool {
        self.incoming.is_empty()
    }

    /// A response of that type is under way.
    pub(super) fn expects(&self, kind: ResourceType) -> bool {
        self.incoming.iter().any(|response| response.kind == kind)
    }

    /// What it uses may be younger than what it says.
    pub(super) fn doubtful(&self) -> bool {
        !self.unsaid.is_empty()
    }

    /// The next response.
    pub(super) fn will_refuse(&self) -> bool {
        let refuses = |kind: ResourceType, resource: &Resource| match kind {
            ResourceType::Extension => slots::refused(resource),
            ResourceType::Listener => bad(resource),
            _ => false,
        };
        self.incoming.front().is_some_and(|r| r.resources.iter().any(|one| refuses(r.kind, one)))
    }

    pub(super) fn receive(&mut self, responses: Vec<Response>) {
        self.incoming.extend(responses);
    }

    pub(super) fn connected(&mut self) {
        self.incoming.clear();
        self.nonces.clear();
    }

    fn names(&self, kind: ResourceType) -> Vec<String> {
        match kind {
            ResourceType::Endpoint => {
                self.held.get(&ResourceType::Cluster).into_iter().flat_map(|c| c.keys().cloned()).collect()
            }
            ResourceType::Extension => slots::NAMES.map(str::to_owned).to_vec(),
            _ => Vec::new(),
        }
    }

    pub(super) fn first_requests(&self) -> Vec<Request> {
        let asked = |kind: &ResourceType| kind.wildcard() || !self.names(*kind).is_empty();
        ORDER.into_iter().filter(asked).map(|kind| self.first_request(kind)).collect()
    }

    fn first_request(&self, kind: ResourceType) -> Request {
        let names = self.names(kind);
        if self.variant == Variant::Sotw {
            return self.sotw(kind, String::new(), None);
        }
        let mut versions = self.versions.get(&kind).cloned().unwrap_or_default();
        versions.retain(|name, _| kind.wildcard() || names.contains(name));
        Request::Delta(DeltaDiscoveryRequest {
            type_url: kind.type_url().to_owned(),
            resource_names_subscribe: names,
            initial_resource_versions: versions,
            ..Default::default()
        })
    }

    fn sotw(&self, kind: ResourceType, response_nonce: String, error_detail: Option<Status>) -> Request {
        Request::Sotw(DiscoveryRequest {
            version_info: self.accepted.get(&kind).cloned().unwrap_or_default(),
            type_url: kind.type_url().to_owned(),
            resource_names: self.names(kind),
            response_nonce,
            error_detail,
            ..Default::default()
        })
    }

    pub(super) fn ask_again(&self, slot: &str) -> Request {
        match self.variant {
            Variant::Sotw => {
                let kind = ResourceType::Extension;
                self.sotw(kind, self.nonces.get(&kind).cloned().unwrap_or_default(), None)
            }
            Variant::Delta => Request::Delta(DeltaDiscoveryRequest {
                type_url: ResourceType::Extension.type_url().to_owned(),
                resource_names_subscribe: vec![slot.to_owned()],
                ..Default::default()
            }),
        }
    }

    /// Takes in the oldest response; what it then has to say. `in_force` sees every mixture of policy slots.
    pub(super) fn take_in(&mut self, in_force: &mut dyn FnMut(&Slots)) -> Vec<Request> {
        let Some(response) = self.incoming.pop_front() else { return Vec::new() };
        let named = response.resources.iter().map(|r| (r.name.to_string(), response.version_of(r)));
        let named: HashMap<String, String> = named.collect();
        let Response { kind, nonce, version, resources, removed, transitional: _ } = response;
        let endpoints_before: BTreeSet<String> = self.names(ResourceType::Endpoint).into_iter().collect();
        let refused = match kind {
            ResourceType::Extension => self.take_in_slots(&resources, &removed, in_force),
            _ => self.take_in_resources(kind, &resources, &removed),
        };
        self.nonces.insert(kind, nonce.clone());
        self.ever_refused |= refused;
        let names = named.keys().cloned().chain(removed.iter().map(|name| name.to_string()));
        for name in names.map(|name| (kind, name)) {
            if refused {
                self.unsaid.insert(name)
            } else {
                self.unsaid.remove(&name)
            };
        }
        if !refused {
            self.accepted.insert(kind, version);
            self.versions.entry(kind).or_default().extend(named);
        }
        // Envoy goes on naming the version of what it removed together with something that it refused, which no control
        // plane can know when it comes back.
        let versions = self.versions.entry(kind).or_default();
        removed.iter().for_each(|name| drop(versions.remove(&**name)));
        // Now and then it says what it does not like.
        let says = u64::from_str_radix(&nonce, 16).is_ok_and(|n| n % 2 == 0);
        let culprits = resources.iter().filter(|r| says && kind == ResourceType::Listener && bad(r));
        let message = culprits.map(|r| format!("{}: bad", r.name)).collect::<Vec<_>>().join("; ");
        let error = refused.then(|| Status { message, ..Status::default() });
        let mut requests = vec![match self.variant {
            Variant::Sotw => self.sotw(kind, nonce, error),
            Variant::Delta => Request::Delta(DeltaDiscoveryRequest {
                type_url: kind.type_url().to_owned(),
                response_nonce: nonce,
                error_detail: error,
                ..Default::default()
            }),
        }];
        requests.extend(self.ask_for_endpoints(&endpoints_before));
        requests
    }

    /// The slots change one after the other, in an order that nobody promised.
    fn take_in_slots(
        &mut self,
        resources: &[Resource],
        removed: &[std::sync::Arc<str>],
        in_force: &mut dyn FnMut(&Slots),
    ) -> bool {
        assert!(removed.is_empty(), "a slot is never removed");
        let held = self.held.entry(ResourceType::Extension).or_default();
        let mut resources: Vec<&Resource> = resources.iter().collect();
        // Any order that is not always the same.
        resources.sort_by_key(|r| r.hash);
        for resource in resources {
            if slots::refused(resource) {
                return true;
            }
            held.insert(resource.name.to_string(), resource.clone());
            in_force(held);
        }
        false
    }

    /// Envoy takes what is good of clusters and listeners also when it refuses the response.
    fn take_in_resources(
        &mut self,
        kind: ResourceType,
        resources: &[Resource],
        removed: &[std::sync::Arc<str>],
    ) -> bool {
        let full = self.variant == Variant::Sotw && kind.wildcard();
        let held = self.held.entry(kind).or_default();
        let named: BTreeSet<&str> = resources.iter().map(|r| &*r.name).collect();
        held.retain(|name, _| {
            let gone = removed.iter().any(|r| **r == **name) || (full && !named.contains(name.as_str()));
            !gone
        });
        let refuses = |r: &&Resource| kind == ResourceType::Listener && bad(r);
        for resource in resources.iter().filter(|r| !refuses(r)) {
            let name = resource.name.to_string();
            match kind {
                ResourceType::Cluster => {
                    // An equal one changes nothing.
                    if held.insert(name.clone(), resource.clone()).as_ref() != Some(resource) {
                        self.warming.insert(name);
                    }
                }
                ResourceType::Endpoint => {
                    let content = Resource::new(resource.name.clone(), resource.any.clone());
                    held.insert(name.clone(), content);
                    self.warming.remove(&name);
                }
                _ => drop(held.insert(name, resource.clone())),
            }
        }
        resources.iter().any(|r| refuses(&r))
    }

    /// Clusters come with endpoints to ask for, and go with them.
    fn ask_for_endpoints(&mut self, before: &BTreeSet<String>) -> Option<Request> {
        let kind = ResourceType::Endpoint;
        let now: BTreeSet<String> = self.names(kind).into_iter().collect();
        if now == *before {
            return None;
        }
        let gone: Vec<String> = before.difference(&now).cloned().collect();
        for name in &gone {
            self.warming.remove(name);
            self.held.entry(kind).or_default().remove(name);
            self.versions.entry(kind).or_default().remove(name);
        }
        Some(match self.variant {
            Variant::Sotw => self.sotw(kind, self.nonces.get(&kind).cloned().unwrap_or_default(), None),
            Variant::Delta => Request::Delta(DeltaDiscoveryRequest {
                type_url: kind.type_url().to_owned(),
                resource_names_subscribe: now.difference(before).cloned().collect(),
                resource_names_unsubscribe: gone,
                ..Default::default()
            }),
        })
    }
}
