//! A proxy that applies what it is told, under random changes, subscriptions, lost time and refusals: in the end it holds the
//! subscribed part of the last snapshot, what it refused excepted, and on the way never a mixture of policy slots that was
//! in no snapshot.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::sync::Arc;

use bytes::Bytes;
use envoy_types::pb::envoy::service::discovery::v3::{DeltaDiscoveryRequest, DiscoveryRequest};
use envoy_types::pb::google::rpc::Status;
use proptest::prelude::*;

use crate::ads::session::{Response, Session, Variant};
use crate::resource::{Layers, Resource, ResourceType, Snapshot, Table};

/// Content that the proxy refuses.
const BAD: u8 = 3;
const DENY: &str = "inbound.rbac.deny";
const ALLOW: &str = "inbound.rbac.allow";

#[derive(Clone, Debug)]
enum Step {
    /// New content of one resource: type, name, content (`None`: gone).
    Change(usize, usize, Option<u8>),
    /// Both policy slots at once.
    Policy(u8, u8),
    /// The proxy asks for another set of endpoints.
    Endpoints(Vec<usize>),
    /// The proxy answers the oldest unanswered response.
    Answer,
}

fn steps() -> impl Strategy<Value = Vec<Step>> {
    let step = prop_oneof![
        3 => (0..2usize, 0..4usize, proptest::option::weighted(0.8, 0..5u8)).prop_map(|(k, n, c)| Step::Change(k, n, c)),
        2 => (0..3u8, 0..3u8).prop_map(|(d, a)| Step::Policy(d, a)),
        1 => proptest::collection::vec(0..4usize, 1..4).prop_map(Step::Endpoints),
        4 => Just(Step::Answer),
    ];
    proptest::collection::vec(step, 1..60)
}

type World = BTreeMap<ResourceType, BTreeMap<String, u8>>;

struct Model {
    variant: Variant,
    session: Session,
    generation: u64,
    wanted: World,
    held: World,
    unanswered: VecDeque<Response>,
    endpoints: BTreeSet<String>,
    /// Every pair of policy slots that a snapshot had.
    pairs: BTreeSet<(u8, u8)>,
    last_nonce: BTreeMap<ResourceType, String>,
}

fn content(resource: &Resource) -> Option<u8> {
    // A transitional slot is longer.
    (resource.any.len() == 1).then(|| resource.any[0])
}

impl Model {
    fn new(variant: Variant) -> Self {
        let slots = [(DENY.to_owned(), 0), (ALLOW.to_owned(), 0)];
        let wanted: World = [(ResourceType::Extension, slots.into())].into();
        let session = Session::new(variant, Arc::new(Snapshot::new(0)));
        let mut model = Self {
            variant,
            session,
            generation: 0,
            wanted,
            held: World::new(),
            unanswered: VecDeque::new(),
            endpoints: BTreeSet::new(),
            pairs: [(0, 0)].into(),
            last_nonce: BTreeMap::new(),
        };
        model.publish();
        model.ask(ResourceType::Listener, &[], &[]);
        model.ask(ResourceType::Extension, &[DENY.to_owned(), ALLOW.to_owned()], &[]);
        model
    }

    fn publish(&mut self) {
        self.generation += 1;
        let mut snapshot = Snapshot::new(self.generation);
        for (kind, resources) in &self.wanted {
            let table: Table = resources
                .iter()
                .map(|(n, c)| Resource::new(n.as_str(), Bytes::copy_from_slice(&[*c])))
                .collect();
            *snapshot.of_mut(*kind) = Layers { own: Arc::new(table), ..Layers::default() };
        }
        let responses = self.session.update(Arc::new(snapshot));
        self.unanswered.extend(responses);
    }

    /// A request that is no answer: in SotW with the whole list of names and the last nonce.
    fn ask(&mut self, kind: ResourceType, subscribe: &[String], unsubscribe: &[String]) {
        self.request(kind, subscribe, unsubscribe, String::new(), None);
    }

    fn request(
        &mut self,
        kind: ResourceType,
        subscribe: &[String],
        unsubscribe: &[String],
        nonce: String,
        error: Option<Status>,
    ) {
        let type_url = kind.type_url().to_owned();
        let responses = if self.variant == Variant::Delta {
            self.session.delta(&DeltaDiscoveryRequest {
                type_url,
                resource_names_subscribe: subscribe.to_vec(),
                resource_names_unsubscribe: unsubscribe.to_vec(),
                response_nonce: nonce,
                error_detail: error,
                ..Default::default()
            })
        } else {
            let names: Vec<String> = match kind {
                ResourceType::Listener => Vec::new(),
                ResourceType::Endpoint => self.endpoints.iter().cloned().collect(),
                _ => vec![DENY.to_owned(), ALLOW.to_owned()],
            };
            let nonce = if nonce.is_empty() {
                self.last_nonce.get(&kind).cloned().unwrap_or_default()
            } else {
                nonce
            };
            let request = DiscoveryRequest {
                type_url,
                resource_names: names,
                response_nonce: nonce,
                error_detail: error,
                ..Default::default()
            };
            self.session.sotw(&request)
        };
        self.unanswered.extend(responses.expect("within limits"));
    }

    fn answer(&mut self) {
        let Some(response) = self.unanswered.pop_front() else { return };
        let kind = response.kind;
        self.last_nonce.insert(kind, response.nonce.clone());
        let bad =
            response.resources.iter().any(|r| kind == ResourceType::Listener && content(r) == Some(BAD));
        let held = self.held.entry(kind).or_default();
        if !bad {
            if self.variant == Variant::Sotw && kind == ResourceType::Listener {
                held.clear();
            }
            for name in &response.removed {
                held.remove(&**name);
            }
        }
        // A proxy that refuses may still have taken what came before the culprit.
        for resource in response
            .resources
            .iter()
            .take_while(|r| kind != ResourceType::Listener || content(r) != Some(BAD))
        {
            if kind == ResourceType::Endpoint && !self.endpoints.contains(&*resource.name) {
                continue; // no longer asked for
            }
            held.insert(resource.name.to_string(), content(resource).unwrap_or(u8::MAX));
            if let (ResourceType::Extension, Some(deny), Some(allow)) =
                (kind, held.get(DENY), held.get(ALLOW))
            {
                let mixed = *deny != u8::MAX && !self.pairs.contains(&(*deny, *allow));
                assert!(
                    !mixed,
                    "DENY {deny} with ALLOW {allow} was never asked for; snapshots had {:?}",
                    self.pairs
                );
            }
        }
        let error = bad.then(|| Status { message: "bad".to_owned(), ..Status::default() });
        self.request(kind, &[], &[], response.nonce, error);
    }

    fn step(&mut self, step: Step) {
        match step {
            Step::Change(kind, name, content) => {
                let kind = [ResourceType::Listener, ResourceType::Endpoint][kind];
                let resources = self.wanted.entry(kind).or_default();
                match content {
                    Some(content) => drop(resources.insert(name.to_string(), content)),
                    None => drop(resources.remove(&name.to_string())),
                }
                self.publish();
            }
            Step::Policy(deny, allow) => {
                self.pairs.insert((deny, allow));
                self.wanted.insert(
                    ResourceType::Extension,
                    [(DENY.to_owned(), deny), (ALLOW.to_owned(), allow)].into(),
                );
                self.publish();
            }
            Step::Endpoints(names) => {
                let names: BTreeSet<String> = names.iter().map(ToString::to_string).collect();
                let gone: Vec<String> = self.endpoints.difference(&names).cloned().collect();
                let new: Vec<String> = names.difference(&self.endpoints).cloned().collect();
                let held = self.held.entry(ResourceType::Endpoint).or_default();
                held.retain(|name, _| !gone.contains(name));
                self.endpoints = names;
                self.ask(ResourceType::Endpoint, &new, &gone);
            }
            Step::Answer => self.answer(),
        }
    }

    fn settle(&mut self) {
        for _ in 0..1000 {
            if self.unanswered.is_empty() {
                return;
            }
            self.answer();
        }
        panic!("the session never stops sending");
    }

    fn check(&self) {
        let part = |world: &World, kind| world.get(&kind).cloned().unwrap_or_default();
        let mut endpoints = part(&self.wanted, ResourceType::Endpoint);
        endpoints.retain(|name, _| self.endpoints.contains(name));
        let mut held = part(&self.held, ResourceType::Endpoint);
        held.retain(|name, _| self.endpoints.contains(name));
        if self.variant == Variant::Sotw {
            // SotW has no way to say that a named resource is gone.
            held.retain(|name, _| endpoints.contains_key(name));
        }
        assert_eq!(held, endpoints);
        assert_eq!(part(&self.held, ResourceType::Extension), part(&self.wanted, ResourceType::Extension));
        let listeners = part(&self.held, ResourceType::Listener);
        for (name, content) in part(&self.wanted, ResourceType::Listener) {
            if content != BAD {
                assert_eq!(listeners.get(&name), Some(&content), "listener {name}");
            }
        }
        let wanted = part(&self.wanted, ResourceType::Listener);
        assert!(
            listeners.keys().all(|name| wanted.contains_key(name)),
            "{listeners:?} has more than {wanted:?}"
        );
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(600))]
    #[test]
    fn a_proxy_ends_with_what_is_wanted(steps in steps(), delta in any::<bool>()) {
        let mut model = Model::new(if delta { Variant::Delta } else { Variant::Sotw });
        steps.into_iter().for_each(|step| model.step(step));
        model.settle();
        model.check();
    }
}
