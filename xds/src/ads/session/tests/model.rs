//! A proxy that behaves like Envoy, under random changes, subscriptions, refusals, lost streams and changes while it is
//! away: in the end it holds the subscribed part of the last snapshot (what it refused excepted), no cluster is left
//! aside without its endpoints, and on the way its policy slots never admitted a request that every version of the
//! policy in question refuses.

mod proxy;

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use bytes::Bytes;
use proptest::prelude::*;

use super::slots::{self, Policy};
use crate::ads::session::{Response, Session, Variant};
use crate::resource::{Layers, Resource, ResourceType, Snapshot};
use crate::table::Table;
use proxy::Proxy;

/// Content of a listener that the proxy refuses.
const BAD: u8 = 3;

#[derive(Clone, Debug)]
enum Step {
    /// New content of one listener, cluster or endpoint set: name, content (`None`: gone).
    Change(ResourceType, usize, Option<u8>),
    /// All policy slots.
    Policy(Policy),
    /// The proxy takes in the oldest response and answers it.
    Answer,
    /// The proxy asks for a slot once more, as if it had forgotten it.
    Again(usize),
    /// The stream breaks after the proxy has taken in so many more responses; things change; it comes back.
    Reconnect(usize, Option<Policy>, Option<(ResourceType, usize, Option<u8>)>),
}

fn change() -> impl Strategy<Value = (ResourceType, usize, Option<u8>)> {
    use ResourceType::{Cluster, Endpoint, Listener};
    let kind = prop_oneof![Just(Cluster), Just(Endpoint), Just(Listener)];
    (kind, 0..4usize, proptest::option::weighted(0.8, 0..5u8))
}

fn steps() -> impl Strategy<Value = Vec<Step>> {
    let step = prop_oneof![
        3 => change().prop_map(|(k, n, c)| Step::Change(k, n, c)),
        3 => slots::policies().prop_map(Step::Policy),
        6 => Just(Step::Answer),
        1 => (0..3usize).prop_map(Step::Again),
        1 => (0..4usize, proptest::option::of(slots::policies()), proptest::option::of(change()))
            .prop_map(|(taken, policy, change)| Step::Reconnect(taken, policy, change)),
    ];
    proptest::collection::vec(step, 1..60)
}

/// What a snapshot has, by type and name.
type World = BTreeMap<ResourceType, BTreeMap<String, Resource>>;

struct Model {
    session: Session,
    generation: u64,
    wanted: World,
    policy: Policy,
    proxy: Proxy,
    /// The versions of the policy since the proxy last held one of them completely.
    in_question: Vec<Policy>,
}

impl Model {
    fn new(variant: Variant) -> Self {
        let policy = Policy::default();
        let mut model = Self {
            session: Session::new(variant, Arc::new(Snapshot::new(0))),
            generation: 0,
            wanted: World::new(),
            proxy: Proxy::new(variant),
            in_question: Vec::new(),
            policy: policy.clone(),
        };
        model.want_policy(policy);
        model.publish();
        model.connect();
        model
    }

    fn want_policy(&mut self, policy: Policy) {
        self.wanted.insert(ResourceType::Extension, policy.slots());
        self.in_question.push(policy.clone());
        self.policy = policy;
    }

    fn want(&mut self, kind: ResourceType, name: usize, content: Option<u8>) {
        let resources = self.wanted.entry(kind).or_default();
        let name = name.to_string();
        match content {
            Some(content) => {
                resources.insert(name.clone(), Resource::new(name, Bytes::copy_from_slice(&[content])))
            }
            None => resources.remove(&name),
        };
    }

    fn snapshot(&mut self) -> Arc<Snapshot> {
        self.generation += 1;
        let mut snapshot = Snapshot::new(self.generation);
        for (kind, resources) in &self.wanted {
            let table: Table = resources.values().cloned().collect();
            *snapshot.of_mut(*kind) = Layers { own: Arc::new(table), ..Layers::default() };
        }
        Arc::new(snapshot)
    }

    fn publish(&mut self) {
        let snapshot = self.snapshot();
        let responses = self.session.update(snapshot);
        self.proxy.receive(responses);
    }

    /// A new stream. Returns what came of the first requests.
    fn connect(&mut self) -> Vec<Response> {
        let snapshot = self.snapshot();
        self.session = Session::new(self.proxy.variant, snapshot);
        self.proxy.connected();
        let session = &mut self.session;
        let responses: Vec<Response> =
            self.proxy.first_requests().into_iter().flat_map(|r| r.send(session)).collect();
        self.proxy.receive(responses.clone());
        responses
    }

    fn answer(&mut self) {
        let policies = &self.in_question;
        let requests = self.proxy.take_in(&mut |slots| slots::check(slots, policies));
        let session = &mut self.session;
        let responses: Vec<Response> = requests.into_iter().flat_map(|r| r.send(session)).collect();
        self.proxy.receive(responses);
        let all = self.proxy.slots() == self.wanted.get(&ResourceType::Extension);
        if all && !self.proxy.expects(ResourceType::Extension) {
            self.in_question = vec![self.policy.clone()];
        }
    }

    fn step(&mut self, step: Step) {
        match step {
            Step::Change(kind, name, content) => {
                self.want(kind, name, content);
                self.publish();
            }
            Step::Policy(policy) => {
                self.want_policy(policy);
                self.publish();
            }
            Step::Answer => self.answer(),
            Step::Again(slot) => {
                let request = self.proxy.ask_again(slots::NAMES[slot]);
                let responses = request.send(&mut self.session);
                self.proxy.receive(responses);
            }
            Step::Reconnect(taken, policy, change) => {
                // After a refusal Envoy reports versions that are older than what it uses, until it accepts another; no
                // control plane can know that when it comes back.
                if self.proxy.doubtful() {
                    self.settle();
                }
                if self.proxy.doubtful() {
                    return;
                }
                for _ in 0..taken {
                    if self.proxy.will_refuse() {
                        break;
                    }
                    let policies = &self.in_question;
                    self.proxy.take_in(&mut |slots| slots::check(slots, policies));
                }
                if let Some(policy) = policy {
                    self.want_policy(policy);
                }
                if let Some((kind, name, content)) = change {
                    self.want(kind, name, content);
                }
                self.connect();
            }
        }
    }

    fn settle(&mut self) {
        for _ in 0..2000 {
            if self.proxy.idle() {
                return;
            }
            self.answer();
        }
        panic!("the session never stops sending");
    }

    fn check(&mut self) {
        let part = |world: &World, kind| world.get(&kind).cloned().unwrap_or_default();
        let clusters = part(&self.wanted, ResourceType::Cluster);
        assert_eq!(part(&self.proxy.held, ResourceType::Cluster), clusters);
        let mut endpoints = part(&self.wanted, ResourceType::Endpoint);
        endpoints.retain(|name, _| clusters.contains_key(name));
        for name in &self.proxy.warming {
            assert!(!endpoints.contains_key(name), "cluster {name} waits for endpoints that exist");
        }
        let held = part(&self.proxy.held, ResourceType::Endpoint);
        for (name, content) in &endpoints {
            assert_eq!(held.get(name), Some(content), "endpoints {name}");
        }
        if !self.policy.refused() {
            assert_eq!(self.proxy.slots(), self.wanted.get(&ResourceType::Extension));
        }
        let (held, wanted) =
            (part(&self.proxy.held, ResourceType::Listener), part(&self.wanted, ResourceType::Listener));
        for (name, content) in wanted.iter().filter(|(_, content)| !bad(content)) {
            assert_eq!(held.get(name), Some(content), "listener {name}");
        }
        let known: BTreeSet<&String> = wanted.keys().collect();
        assert!(held.keys().all(|name| known.contains(name)), "{held:?} has more than {wanted:?}");
    }

    /// Nothing is sent again to a proxy that has it all.
    fn check_silence(&mut self) {
        let same = self.session.snapshot.clone();
        assert_eq!(self.session.update(same), [], "the same snapshot");
        let anything_bad = |world: &World| world.values().flat_map(BTreeMap::values).any(bad);
        if self.policy.refused() || anything_bad(&self.wanted) || !self.proxy.warming.is_empty() {
            return;
        }
        let again = self.connect();
        match self.proxy.variant {
            Variant::Delta => {
                // A proxy that has nothing cannot say so, nor that it knows of what does not exist.
                assert!(again.iter().all(|r| r.resources.is_empty()), "it had everything, and got {again:?}");
            }
            Variant::Sotw => {
                // What it accepted last may have been a part, if it refused the whole.
                let silent = self.proxy.ever_refused || again.iter().all(|r| !r.kind.wildcard());
                assert!(silent, "it had everything, and got {again:?}");
                self.settle();
                self.check();
            }
        }
    }
}

fn bad(resource: &Resource) -> bool {
    resource.any[..] == [BAD]
}

/// More with `PROPTEST_CASES`.
fn cases() -> u32 {
    std::env::var("PROPTEST_CASES").ok().and_then(|cases| cases.parse().ok()).unwrap_or(1000)
}

proptest! {
    #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::with_cases(cases()) })]
    #[test]
    fn a_proxy_ends_with_what_is_wanted(steps in steps(), delta in any::<bool>()) {
        let mut model = Model::new(if delta { Variant::Delta } else { Variant::Sotw });
        steps.into_iter().for_each(|step| model.step(step));
        model.settle();
        model.check();
        model.check_silence();
    }
}
