use super::*;
use crate::fixtures::{authorization, captured, id, peer, pod, service, uncaptured, world};
use crds::{Kind, Object, ObjectRef};
use policy::{Action, MtlsMode};
use tokio::sync::watch::Receiver;

mod incremental;
mod visibility;

pub(super) fn publisher(objects: impl IntoIterator<Item = Object>) -> Publisher {
    let mut publisher = Publisher::default();
    for object in objects {
        apply(&mut publisher, object);
    }
    publisher.pending = Affected::all(&publisher.store);
    publisher.commit();
    publisher
}

pub(super) fn apply(publisher: &mut Publisher, object: Object) {
    let edit = publisher.store.apply(object);
    publisher.edited(&edit);
}

pub(super) fn plain(namespace: &str, name: &str, shape: ProxyShape) -> SlotKey {
    let workload = id(namespace, name);
    SlotKey { workload, shape, identity: None, pod_uid: None, claimed: Some([10, 9, 9, 9].into()) }
}

fn own(receiver: &Receiver<Arc<Snapshot>>, kind: ResourceType) -> Arc<xds::Table> {
    receiver.borrow().of(kind).own.clone()
}

#[test]
fn pods_with_equal_inputs_share_their_tables() {
    let mut publisher = publisher(world());
    apply(&mut publisher, Object::Workload(pod("a", "x-2", "x", "10.0.0.3")));
    publisher.commit();
    let receive = |p: &mut Publisher, name| p.subscribe(&plain("a", name, captured())).unwrap();
    let (x1, x2, y1) =
        (receive(&mut publisher, "x-1"), receive(&mut publisher, "x-2"), receive(&mut publisher, "y-1"));
    assert!(Arc::ptr_eq(&own(&x1, ResourceType::Listener), &own(&x2, ResourceType::Listener)));
    assert!(!Arc::ptr_eq(&own(&x1, ResourceType::Listener), &own(&y1, ResourceType::Listener)));
    assert_eq!(publisher.groups.len(), 2);
    let shared = |r: &Receiver<Arc<Snapshot>>| r.borrow().of(ResourceType::Cluster).shared.clone();
    assert!(Arc::ptr_eq(&shared(&x1), &shared(&y1)));
}

/// Names of the resources that differ.
fn changed(before: &Snapshot, after: &Snapshot) -> Vec<String> {
    let of = |kind: ResourceType| {
        let differs = move |r: &&xds::Resource| before.of(kind).get(&r.name) != Some(r);
        after.of(kind).iter().filter(differs).map(|r| r.name.to_string())
    };
    ResourceType::ALL.into_iter().flat_map(of).collect()
}

#[test]
fn a_policy_reaches_only_whom_it_selects_and_an_edit_of_its_http_part_only_its_slot() {
    let mut publisher = publisher(world());
    let mut x = publisher.subscribe(&plain("a", "x-1", captured())).unwrap();
    let y = publisher.subscribe(&plain("a", "y-1", captured())).unwrap();
    let before = x.borrow_and_update().clone();
    let mut policy = authorization("a", "p", Some("x"), Action::Deny, "y");
    apply(&mut publisher, Object::AuthorizationPolicy(policy.clone()));
    assert_eq!(publisher.commit(), 1);
    assert!(x.has_changed().unwrap() && !y.has_changed().unwrap());
    let first = x.borrow_and_update().clone();
    // Its identities count for TCP as well, and TCP policy lives in the listener's chains.
    assert_eq!(changed(&before, &first), ["inbound.rbac.deny", "virtualInbound"]);
    let method = policy::Atom::Method(policy::StringMatch::parse("GET"));
    let methods = policy::Match { any: vec![method], none: Vec::new() };
    policy.rules[0].to = vec![policy::Operation { methods, ..Default::default() }];
    apply(&mut publisher, Object::AuthorizationPolicy(policy));
    assert_eq!(publisher.commit(), 1);
    let second = x.borrow_and_update().clone();
    assert_eq!(changed(&first, &second), ["inbound.rbac.deny"]);
    assert!(!y.has_changed().unwrap());
}

#[test]
fn a_change_that_leaves_every_byte_equal_sends_nothing() {
    let mut publisher = publisher(world());
    let x = publisher.subscribe(&plain("a", "x-1", captured())).unwrap();
    // A policy for nobody; a label that no selector names; a policy of another namespace.
    apply(
        &mut publisher,
        Object::AuthorizationPolicy(authorization("a", "p", Some("none"), Action::Deny, "y")),
    );
    let mut labelled = pod("a", "x-1", "x", "10.0.0.1");
    labelled.labels = Arc::new(crate::fixtures::labels(&[("app", "x"), ("color", "blue")]));
    apply(&mut publisher, Object::Workload(labelled));
    apply(&mut publisher, Object::AuthorizationPolicy(authorization("b", "p", None, Action::Deny, "y")));
    assert_eq!(publisher.commit(), 0);
    assert!(!x.has_changed().unwrap());
}

#[test]
fn endpoints_speak_mtls_unless_their_own_peer_authentication_says_disable() {
    let mut publisher = publisher(world());
    let mut x = publisher.subscribe(&plain("b", "x-1", captured())).unwrap();
    let endpoints = |x: &mut Receiver<Arc<Snapshot>>| {
        x.borrow_and_update()
            .of(ResourceType::Endpoint)
            .get("outbound|80||x.a.svc.cluster.local")
            .cloned()
            .unwrap()
    };
    let before = endpoints(&mut x);
    apply(&mut publisher, Object::PeerAuthentication(peer("a", "off", Some("x"), MtlsMode::Disable)));
    assert_eq!(publisher.commit(), 1);
    assert_ne!(endpoints(&mut x), before);
    publisher.store.remove(&ObjectRef { kind: Kind::PeerAuthentication, id: id("a", "off") });
    publisher.edited(&Edit::Policy { namespace: "a".into(), mtls: true });
    publisher.commit();
    assert_eq!(endpoints(&mut x), before);
}

#[test]
fn an_identity_speaks_only_for_the_workload_registered_to_it() {
    let mut publisher = publisher(world());
    let key = |name: &str, identity: &str| SlotKey {
        identity: Some(identity.into()),
        claimed: None,
        ..plain("a", name, captured())
    };
    let right = key("x-1", "spiffe://cluster.local/ns/a/sa/x");
    let receiver = publisher.subscribe(&right).unwrap();
    for (name, identity) in [
        ("x-1", "spiffe://cluster.local/ns/a/sa/y"),
        ("x-1", "spiffe://cluster.local/ns/b/sa/x"),
        ("x-1", "spiffe://elsewhere/ns/a/sa/x"),
        ("x-1", "spiffe://cluster.local/ns/a/sa/x/more"),
    ] {
        let refusal = publisher.subscribe(&key(name, identity)).unwrap_err();
        assert!(matches!(refusal, Refusal::Identity { .. }), "{identity}: {refusal}");
    }
    let unknown = publisher.subscribe(&key("nobody", "spiffe://cluster.local/ns/a/sa/x")).unwrap_err();
    assert_eq!(unknown, Refusal::Unregistered(id("a", "nobody")));
    // The registration changes: the session ends, and what the proxy has stays with it.
    let mut moved = pod("a", "x-1", "x", "10.0.0.1");
    moved.service_account = "other".into();
    apply(&mut publisher, Object::Workload(moved));
    publisher.commit();
    assert!(receiver.has_changed().is_err(), "the sender must be gone");
    assert!(publisher.subscribe(&right).is_err());
}

#[test]
fn a_stranger_on_the_plaintext_port_admits_nobody_until_it_is_registered() {
    let mut publisher = publisher(world());
    apply(&mut publisher, Object::AuthorizationPolicy(authorization("a", "p", Some("z"), Action::Deny, "y")));
    publisher.commit();
    let mut receiver = publisher.subscribe(&plain("a", "z-1", captured())).unwrap();
    let key = plain("a", "z-1", captured());
    let policy = &publisher.slots[&key].group.inputs.policy;
    assert_eq!(policy.mtls.mode, MtlsMode::Strict);
    assert_eq!(policy.allow.enforced.as_deref(), Some(&[][..]));
    receiver.mark_unchanged();
    apply(&mut publisher, Object::Workload(pod("a", "z-1", "z", "10.0.0.5")));
    publisher.commit();
    assert!(receiver.has_changed().unwrap());
    let policy = &publisher.slots[&key].group.inputs.policy;
    assert_eq!(policy.allow.enforced, None);
    assert_eq!(policy.mtls.mode, MtlsMode::Permissive);
}

/// Real translation, but a bug hits one workload account or one service.
fn own_with_a_bug(inbound: &Inbound<'_>) -> Encoded {
    assert!(&*inbound.workload.service_account != "y", "a bug with y");
    build::own(inbound)
}

fn service_with_a_bug(
    mesh: &MeshConfig,
    logs: &[Log],
    service: &OutboundService,
    shape: SharedShape,
) -> Encoded {
    assert!(service.service.ports[0].port != 81, "a bug with port 81");
    build::service(mesh, logs, service, shape)
}

#[test]
fn a_bug_that_one_workload_sets_off_leaves_it_what_it_had_and_the_others_alone() {
    let mut publisher = publisher(world());
    let x = publisher.subscribe(&plain("a", "x-1", captured())).unwrap();
    let y = publisher.subscribe(&plain("a", "y-1", captured())).unwrap();
    let before = y.borrow().clone();
    publisher.builders.own = own_with_a_bug;
    apply(&mut publisher, Object::AuthorizationPolicy(authorization("a", "p", None, Action::Deny, "z")));
    assert_eq!(publisher.commit(), 1);
    assert!(x.has_changed().unwrap());
    assert_eq!(changed(&before, &y.borrow()), Vec::<String>::new());
    let failures: Vec<_> = publisher.failures.iter().map(|(f, m)| (f.clone(), m.to_owned())).collect();
    assert_eq!(failures, [(Failure::Workload(id("a", "y-1")), "a bug with y".to_owned())]);
    // Who has nothing yet gets nothing: there is no good version of it.
    let other_shape = ProxyShape { ipv6: true, ..captured() };
    let refusal = publisher.subscribe(&plain("a", "y-1", other_shape)).unwrap_err();
    assert_eq!(refusal, Refusal::Failed(id("a", "y-1")));
    // Mended: it catches up with what it has missed.
    publisher.builders = Builders::default();
    apply(&mut publisher, Object::AuthorizationPolicy(authorization("a", "q", None, Action::Deny, "w")));
    publisher.commit();
    assert!(!changed(&before, &y.borrow()).is_empty());
    assert_eq!(publisher.failures.iter().count(), 0);
}

#[test]
fn a_bug_that_one_service_sets_off_leaves_it_what_it_had_and_the_others_alone() {
    let mut publisher = publisher(world());
    let x = publisher.subscribe(&plain("b", "x-1", captured())).unwrap();
    let cluster = |name: &str| x.borrow().of(ResourceType::Cluster).get(name).is_some();
    publisher.builders.service = service_with_a_bug;
    apply(&mut publisher, Object::Service(service("a", "x", 81)));
    apply(&mut publisher, Object::Service(service("b", "x", 82)));
    publisher.commit();
    assert!(cluster("outbound|80||x.a.svc.cluster.local") && !cluster("outbound|81||x.a.svc.cluster.local"));
    assert!(cluster("outbound|82||x.b.svc.cluster.local"));
    assert_eq!(
        publisher.failures.iter().map(|(f, _)| f.clone()).collect::<Vec<_>>(),
        [Failure::Service(id("a", "x"))]
    );
    publisher.store.remove(&ObjectRef { kind: Kind::Service, id: id("a", "x") });
    publisher.edited(&Edit::Service(id("a", "x")));
    publisher.commit();
    assert_eq!(publisher.failures.iter().count(), 0);
    assert!(!cluster("outbound|80||x.a.svc.cluster.local"));
}

#[test]
fn what_nobody_uses_is_forgotten() {
    let mut publisher = publisher(world());
    let captured_one = publisher.subscribe(&plain("a", "x-1", captured())).unwrap();
    let other = publisher.subscribe(&plain("a", "y-1", uncaptured())).unwrap();
    assert_eq!(publisher.slots.len(), 2);
    drop(other);
    publisher.sweep();
    assert_eq!((publisher.slots.len(), publisher.groups.len()), (1, 1));
    drop(captured_one);
    publisher.sweep();
    assert_eq!((publisher.slots.len(), publisher.groups.len()), (0, 0));
}

#[test]
fn an_ext_authz_provider_exists_while_its_service_and_port_do() {
    let mut publisher = publisher(world());
    let provider = mesh::ExtensionProvider {
        name: "opa".into(),
        ext_authz: Some(mesh::ExtAuthz {
            kind: mesh::ExtAuthzKind::Grpc,
            service: "a/opa.a.svc.cluster.local".into(),
            port: 80,
            timeout_ms: 1000,
            fail_open: false,
            status_on_error: None,
            include_body: None,
        }),
    };
    let mesh = MeshConfig { extension_providers: vec![provider], ..MeshConfig::default() };
    let edit = publisher.store.set_mesh(mesh);
    publisher.edited(&edit);
    publisher.commit();
    assert!(publisher.store.policies.scope.providers.is_empty());
    apply(&mut publisher, Object::Service(service("a", "opa", 80)));
    publisher.commit();
    assert_eq!(publisher.store.policies.scope.providers, ["opa".into()]);
    assert_eq!(&*publisher.providers["opa"].cluster, "outbound|80||opa.a.svc.cluster.local");
    publisher.store.remove(&ObjectRef { kind: Kind::Service, id: id("a", "opa") });
    publisher.edited(&Edit::Service(id("a", "opa")));
    publisher.commit();
    assert!(publisher.providers.is_empty() && publisher.store.policies.scope.providers.is_empty());
}

/// A file, and a service of logs that exists while the service `a/x` has port 80.
fn logs() -> BTreeMap<Arc<str>, Sink> {
    let file = Sink::File { path: "/own".into(), format: mesh::LogFormat::Text(String::new()) };
    let als = Sink::Service {
        kind: mesh::LogService::Http,
        service: "a/x.a.svc.cluster.local".into(),
        port: 80,
        log_name: "log".into(),
        body: String::new(),
    };
    [("own".into(), file), ("als".into(), als)].into()
}

fn telemetry(namespace: &str, app: Option<&str>, mode: mesh::LogMode, provider: &str) -> Object {
    let labels = |app: &str| mesh::Reach::Labels([("app".to_owned(), app.to_owned())].into());
    Object::Telemetry(mesh::Telemetry {
        namespace: namespace.into(),
        name: app.unwrap_or("all").into(),
        created: 0,
        reach: app.map_or(mesh::Reach::Namespace, labels),
        access_logging: vec![mesh::AccessLogging {
            mode,
            providers: vec![provider.into()],
            disabled: false,
            filter: None,
        }],
    })
}

/// Whose lines go where is each workload's own; what proxies share, they go on sharing.
#[test]
fn logs_change_the_listeners_of_those_they_are_about() {
    let mut publisher = publisher(world());
    let edit = publisher.store.set_mesh(MeshConfig { log_providers: logs(), ..MeshConfig::default() });
    publisher.edited(&edit);
    let mut tcp = service("a", "x", 80);
    tcp.ports[0].protocol = mesh::Protocol::Tcp;
    apply(&mut publisher, Object::Service(tcp));
    publisher.commit();
    let mut x = publisher.subscribe(&plain("a", "x-1", captured())).unwrap();
    let mut y = publisher.subscribe(&plain("a", "y-1", captured())).unwrap();
    let shared = |r: &Receiver<Arc<Snapshot>>| r.borrow().of(ResourceType::Listener).shared.clone();
    let (before, of_y) = (x.borrow_and_update().clone(), y.borrow_and_update().clone());
    assert!(Arc::ptr_eq(&shared(&x), &shared(&y)));
    apply(&mut publisher, telemetry("a", Some("x"), mesh::LogMode::Server, "own"));
    assert_eq!(publisher.commit(), 1);
    assert_eq!(changed(&before, &x.borrow_and_update()), ["virtualInbound"]);
    assert!(Arc::ptr_eq(&shared(&x), &shared(&y)) && !y.has_changed().unwrap());
    // The other side: also the listeners of services, which are shared by those that log alike.
    apply(&mut publisher, telemetry("a", Some("x"), mesh::LogMode::Both, "als"));
    assert_eq!(publisher.commit(), 1);
    let after = changed(&before, &x.borrow_and_update());
    assert!(after.len() > 2 && after.contains(&"virtualInbound".to_owned()), "{after:?}");
    assert!(after.contains(&"virtualOutbound".to_owned()), "{after:?}");
    assert!(!y.has_changed().unwrap() && !Arc::ptr_eq(&shared(&x), &shared(&y)));
    apply(&mut publisher, telemetry("a", None, mesh::LogMode::Both, "als"));
    publisher.commit();
    assert_ne!(changed(&of_y, &y.borrow_and_update()), Vec::<String>::new());
    assert!(Arc::ptr_eq(&shared(&x), &shared(&y)));
    // Nothing is sent to a service that is gone: as if it had not been named.
    apply(&mut publisher, Object::Service(service("a", "x", 81)));
    publisher.commit();
    let log = |r: &Receiver<Arc<Snapshot>>| {
        let snapshot = r.borrow();
        let listener = snapshot.of(ResourceType::Listener).get("virtualInbound").unwrap().any.clone();
        String::from_utf8_lossy(&listener).contains("access_loggers")
    };
    assert!(!log(&y) && !log(&x));
}
