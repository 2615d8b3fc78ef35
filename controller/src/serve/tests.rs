//! Who may connect, who waits, and who may know what: the secure port from outside.

use std::sync::Arc;
use std::time::Duration;

use crds::{Kind, Object, ObjectRef};
use envoy_types::pb::envoy::admin::v3::ListenersConfigDump;
use envoy_types::pb::envoy::config::core::v3::Node;
use envoy_types::pb::envoy::service::status::v3::{ClientConfig, ConfigStatus};
use envoy_types::pb::google::protobuf::Any;
use mesh::Workload;
use prost::Message;
use source::Change;
use xds::ResourceType;
use xds::ads::facts;
use xds::ads::node::NodeId;
use xds::ads::server::{Fact, Peer, PodBinding, Proxy, Question, Refused, Snapshots};
use xds::ads::session::Event;

use crate::fixtures::{captured, id, pod};
use crate::serve::hold::{Holding, Limits};
use crate::tests::{Started, first_list, object, start};

const Z: &str = "spiffe://cluster.local/ns/a/sa/z";

fn peer(identity: Option<&str>) -> Peer {
    let identity = identity.map(|id| id.parse().expect("a SPIFFE ID"));
    Peer { identity, token: false, pod: None, address: None, secure: true }
}

fn token(identity: &str, pod: Option<(&str, &str)>) -> Peer {
    let pod = pod.map(|(name, uid)| PodBinding { name: name.into(), uid: uid.into() });
    Peer { token: true, pod, ..peer(Some(identity)) }
}

fn proxy(namespace: &str, name: &str, peer: Peer) -> Proxy {
    let node = Node { id: format!("sidecar~10.0.0.9~{name}.{namespace}~x.svc"), ..Node::default() };
    let id = NodeId::parse(&node).expect("a node id");
    Proxy { id, shape: captured(), peer, envoy_version: None, node: Arc::new(node), delta: true }
}

fn with_uid(name: &str, app: &str, uid: &str) -> Change {
    let workload = Workload { uid: Some(uid.into()), ..pod("a", name, app, "10.0.0.9") };
    object(Object::Workload(workload))
}

fn gone(name: &str) -> Change {
    Change::Delete(ObjectRef { kind: Kind::Pod, id: id("a", name) })
}

async fn ready() -> Started {
    let started = start();
    started.tell(first_list()).await;
    started.handle.wait_ready().await;
    started
}

/// Lets everything run that can.
async fn settle() {
    for _ in 0..50 {
        tokio::task::yield_now().await;
    }
}

#[tokio::test]
async fn a_verified_stream_waits_for_its_registration() {
    let started = ready().await;
    let handle = started.handle.clone();
    let held = tokio::spawn(async move { handle.subscribe(proxy("a", "z-1", peer(Some(Z)))).await });
    while started.handle.metrics.held.get() == 0 {
        tokio::task::yield_now().await;
    }
    settle().await;
    assert!(!held.is_finished(), "answered before it is registered");
    // Others of the namespace are no registration.
    started.tell([object(Object::Workload(pod("a", "z-2", "z", "10.0.0.8")))]).await;
    settle().await;
    assert!(!held.is_finished());
    started.tell([object(Object::Workload(pod("a", "z-1", "z", "10.0.0.9")))]).await;
    held.await.expect("no panic").expect("served");
    assert_eq!(started.handle.metrics.held.get(), 0);
}

#[tokio::test]
async fn who_waited_is_judged_as_everybody() {
    let started = ready().await;
    let handle = started.handle.clone();
    let held = tokio::spawn(async move { handle.subscribe(proxy("a", "z-1", peer(Some(Z)))).await });
    while started.handle.metrics.held.get() == 0 {
        tokio::task::yield_now().await;
    }
    started.tell([object(Object::Workload(pod("a", "z-1", "other", "10.0.0.9")))]).await;
    let refused = held.await.expect("no panic").expect_err("another account's");
    assert!(matches!(refused, Refused::PermissionDenied(_)), "{refused}");
}

#[tokio::test]
async fn a_stream_that_ends_gives_its_place_back() {
    let started = ready().await;
    let handle = started.handle.clone();
    let held = tokio::spawn(async move { handle.subscribe(proxy("a", "z-1", peer(Some(Z)))).await });
    while started.handle.metrics.held.get() == 0 {
        tokio::task::yield_now().await;
    }
    held.abort();
    assert!(held.await.expect_err("cancelled").is_cancelled());
    assert_eq!(started.handle.metrics.held.get(), 0);
}

#[tokio::test]
async fn only_so_many_wait_and_only_so_long() {
    let mut started = ready().await;
    let limits = Limits { streams: 3, of_one_identity: 2, time: Duration::from_millis(20) };
    started.handle.holding = Holding::new(limits, started.handle.metrics.clone());
    let place = |identity: &str| started.handle.holding.enter(&identity.into());
    let places = [place("one").expect("first"), place("one").expect("second")];
    assert!(matches!(place("one"), Err(Refused::Busy(_))));
    let third = place("two").expect("another identity");
    assert!(matches!(place("three"), Err(Refused::Busy(_))));
    drop((places, third));
    let late = started.handle.subscribe(proxy("a", "z-1", peer(Some(Z)))).await.expect_err("nobody came");
    assert!(matches!(late, Refused::NotReady(_)), "so that the proxy comes again: {late}");
    assert_eq!(started.handle.metrics.held.get(), 0);
}

#[tokio::test]
async fn what_can_never_be_registered_is_refused_at_once() {
    let started = ready().await;
    let elsewhere = "spiffe://cluster.local/ns/b/sa/x";
    for (what, peer) in [
        ("namespace A with the node of namespace B", peer(Some(elsewhere))),
        ("the same by a token", token(elsewhere, Some(("x-1", "u")))),
        ("the same, unregistered", token(elsewhere, Some(("z-1", "u")))),
        ("an agent's identity", peer(Some("spiffe://cluster.local/countersign/agent/a/x-1"))),
        ("another pod's token", token(Z, Some(("z-2", "u")))),
        ("a token of no pod", token(Z, None)),
    ] {
        let name = if what.contains("unregistered") || what.contains("token of") { "z-1" } else { "x-1" };
        let asked = started.handle.subscribe(proxy("a", name, peer));
        let refused = tokio::time::timeout(Duration::from_secs(5), asked).await.expect(what);
        assert!(matches!(refused, Err(Refused::PermissionDenied(_))), "{what}: {refused:?}");
    }
    let nobody = started.handle.subscribe(proxy("a", "x-1", peer(None))).await.expect_err("no identity");
    assert_eq!(nobody, Refused::Unauthenticated);
}

#[tokio::test]
async fn a_token_serves_its_own_pod_as_long_as_that_lives() {
    let started = ready().await;
    started.tell([with_uid("z-1", "z", "first")]).await;
    let mut own = {
        let asked = started.handle.subscribe(proxy("a", "z-1", token(Z, Some(("z-1", "first")))));
        asked.await.expect("its own pod")
    };
    let stale = started.handle.subscribe(proxy("a", "z-1", token(Z, Some(("z-1", "older"))))).await;
    assert!(matches!(stale, Err(Refused::PermissionDenied(_))), "{stale:?}");
    let unknown = token("spiffe://cluster.local/ns/a/sa/x", Some(("x-1", "first")));
    let unknown = started.handle.subscribe(proxy("a", "x-1", unknown)).await;
    assert!(matches!(unknown, Err(Refused::PermissionDenied(_))), "a registration without UID: {unknown:?}");
    // A StatefulSet's pod comes again under the same name, and nobody saw the deletion between.
    started.tell([with_uid("z-1", "z", "second")]).await;
    while own.snapshots.changed().await.is_ok() {}
    let stale = started.handle.subscribe(proxy("a", "z-1", token(Z, Some(("z-1", "first"))))).await;
    assert!(matches!(stale, Err(Refused::PermissionDenied(_))), "{stale:?}");
    started
        .handle
        .subscribe(proxy("a", "z-1", token(Z, Some(("z-1", "second")))))
        .await
        .expect("the new pod");
}

#[tokio::test]
async fn a_deleted_pod_ends_its_stream_and_the_next_waits() {
    let started = ready().await;
    started.tell([with_uid("z-1", "z", "first")]).await;
    let mut own = started.handle.subscribe(proxy("a", "z-1", peer(Some(Z)))).await.expect("registered");
    started.tell([gone("z-1")]).await;
    while own.snapshots.changed().await.is_ok() {}
    let handle = started.handle.clone();
    let again = tokio::spawn(async move { handle.subscribe(proxy("a", "z-1", peer(Some(Z)))).await });
    while started.handle.metrics.held.get() == 0 {
        tokio::task::yield_now().await;
    }
    started.tell([with_uid("z-1", "z", "second")]).await;
    again.await.expect("no panic").expect("the new pod");
}

#[tokio::test]
async fn nobody_is_refused_on_the_plaintext_port() {
    let started = ready().await;
    let plain = Peer { secure: false, ..peer(None) };
    // Registered as another account, unknown, without a version.
    for name in ["x-1", "nobody"] {
        started.handle.subscribe(proxy("a", name, plain.clone())).await.expect(name);
    }
}

async fn ask(started: &Started, peer: Peer, kind: &str, names: &[&str]) -> Result<Vec<Fact>, Refused> {
    let names = names.iter().map(|name| (*name).to_owned()).collect();
    started.handle.debug(Question { peer, type_url: kind.to_owned(), names }).await
}

fn names(facts: &[Fact]) -> Vec<&str> {
    facts.iter().map(|fact| fact.name.as_str()).collect()
}

#[tokio::test]
async fn tools_are_told_of_their_own_namespace_and_the_root_namespace_of_all() {
    let started = ready().await;
    let x = peer(Some("spiffe://cluster.local/ns/a/sa/x"));
    let mut sessions = Vec::new();
    for (namespace, peer) in [("a", x.clone()), ("b", peer(Some("spiffe://cluster.local/ns/b/sa/x")))] {
        sessions.push(started.handle.subscribe(proxy(namespace, "x-1", peer)).await.expect("registered"));
    }
    let root = peer(Some("spiffe://cluster.local/ns/istio-system/sa/default"));
    let all = ask(&started, root.clone(), facts::SYNCZ, &[]).await.expect("may");
    assert_eq!(names(&all), ["x-1.a", "x-1.b"]);
    assert_eq!(names(&ask(&started, x.clone(), facts::SYNCZ, &[]).await.expect("may")), ["x-1.a"]);
    let stranger = peer(Some("spiffe://cluster.local/ns/c/sa/x"));
    assert_eq!(ask(&started, stranger.clone(), facts::SYNCZ, &[]).await.expect("may"), []);
    // One cannot tell a proxy of another namespace from one that does not exist.
    for (who, of) in [(&stranger, "x-1.a"), (&x, "x-1.b"), (&root, "nobody.a")] {
        let told = ask(&started, who.clone(), facts::CONFIG_DUMP, &[of]).await.expect("may ask");
        assert_eq!(told, facts::not_connected(), "{of}");
    }
    for who in [&x, &root] {
        let dump = ask(&started, who.clone(), facts::CONFIG_DUMP, &["x-1.a"]).await.expect("may");
        let listeners = Any::decode(&*dump[1].any).expect("an Any");
        let listeners = ListenersConfigDump::decode(&*listeners.value).expect("listeners");
        assert!(listeners.dynamic_listeners.iter().any(|l| l.name == "virtualInbound"));
    }
    sessions.clear();
    assert_eq!(ask(&started, root, facts::SYNCZ, &[]).await.expect("may"), []);
}

#[tokio::test]
async fn who_may_not_ask_is_told_nothing() {
    let started = ready().await;
    for (peer, refused) in [
        (peer(None), Refused::Unauthenticated),
        (Peer { secure: false, ..peer(None) }, Refused::PermissionDenied(String::new())),
        (peer(Some("spiffe://elsewhere/ns/istio-system/sa/x")), Refused::PermissionDenied(String::new())),
        (
            peer(Some("spiffe://cluster.local/countersign/agent/a/x")),
            Refused::PermissionDenied(String::new()),
        ),
    ] {
        let told = ask(&started, peer.clone(), facts::SYNCZ, &[]).await.expect_err("refused");
        assert_eq!(std::mem::discriminant(&told), std::mem::discriminant(&refused), "{peer:?}: {told}");
    }
    let root = peer(Some("spiffe://cluster.local/ns/istio-system/sa/x"));
    for (kind, names) in
        [("istio.io/debug/configz", &[][..]), (facts::CONFIG_DUMP, &[]), (facts::CONFIG_DUMP, &["a", "b"])]
    {
        let told = ask(&started, root.clone(), kind, names).await;
        assert!(matches!(told, Err(Refused::Invalid(_))), "{kind}: {told:?}");
    }
}

#[tokio::test]
async fn tools_see_how_far_a_proxy_is() {
    let started = ready().await;
    let peer = peer(Some("spiffe://cluster.local/ns/a/sa/x"));
    let mut session = started.handle.subscribe(proxy("a", "x-1", peer.clone())).await.expect("registered");
    let mut told = async |events: Vec<Event>| {
        events.into_iter().for_each(|event| session.events.event(event));
        let facts = ask(&started, peer.clone(), facts::SYNCZ, &[]).await.expect("may");
        let any = Any::decode(&*facts[0].any).expect("an Any");
        let config = ClientConfig::decode(&*any.value).expect("a ClientConfig");
        let state = |kind: ResourceType| {
            let of = config.generic_xds_configs.iter().find(|c| c.type_url == kind.type_url());
            of.map(|c| (c.config_status(), c.error_state.as_ref().map(|e| e.details.clone())))
        };
        (state(ResourceType::Cluster), state(ResourceType::Route))
    };
    let kind = ResourceType::Cluster;
    let sent = || Event::Sent { kind, resources: 1, bytes: 1 };
    let some = |status, error: Option<&str>| Some((status, error.map(str::to_owned)));
    assert_eq!(told(vec![]).await, (some(ConfigStatus::NotSent, None), None));
    assert_eq!(told(vec![sent()]).await.0, some(ConfigStatus::Stale, None));
    let acked = Event::Acked { kind, generation: 1 };
    assert_eq!(told(vec![acked.clone()]).await.0, some(ConfigStatus::Synced, None));
    let rejected = Event::Rejected { kind, resource: None, message: "no".to_owned() };
    assert_eq!(told(vec![sent(), rejected]).await.0, some(ConfigStatus::Error, Some("no")));
    assert_eq!(told(vec![sent(), acked]).await.0, some(ConfigStatus::Synced, None));
}
