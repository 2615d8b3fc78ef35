use super::*;
use crate::affected::{Affected, Namespaces, affected};
use crate::fixtures::{authorization, id, peer, pod, service, slice, world};
use policy::{Action, MtlsMode};

fn store() -> Store {
    let mut store = Store::default();
    for object in world() {
        store.apply(object);
    }
    store
}

fn change(store: &mut Store, object: Object) -> Affected {
    let edit = store.apply(object);
    affected(store, &edit)
}

fn some(names: &[&str]) -> Namespaces {
    Namespaces::Some(names.iter().map(|n| Arc::from(*n)).collect())
}

#[test]
fn equal_content_affects_nothing() {
    let mut store = store();
    for object in world() {
        assert!(change(&mut store, object).is_empty());
    }
    let policy = Object::AuthorizationPolicy(authorization("a", "p", None, Action::Deny, "y"));
    assert!(!change(&mut store, policy.clone()).is_empty());
    assert!(change(&mut store, policy).is_empty());
    let labelled = Object::Namespace { name: "a".into(), labels: BTreeMap::new() };
    assert!(change(&mut store, labelled).is_empty());
}

#[test]
fn a_policy_affects_its_namespace_and_the_root_namespace_all() {
    let mut store = store();
    let mut policy = |ns: &str| {
        change(&mut store, Object::AuthorizationPolicy(authorization(ns, "p", None, Action::Deny, "y")))
    };
    let own = policy("a");
    assert_eq!(own, Affected { policies: some(&["a"]), ..Affected::default() });
    assert_eq!(policy("istio-system").policies, Namespaces::All);
}

#[test]
fn a_peer_authentication_also_affects_the_services_of_its_workloads() {
    let mut store = store();
    let mut peer = |ns: &str| {
        change(&mut store, Object::PeerAuthentication(peer(ns, "p", None, MtlsMode::Strict))).services
    };
    assert_eq!(peer("a"), BTreeSet::from([id("a", "x")]));
    assert_eq!(peer("istio-system"), BTreeSet::from([id("a", "x"), id("b", "x")]));
    assert_eq!(peer("c"), BTreeSet::new());
    // A service elsewhere whose slice mentions a workload of `a` is concerned as well.
    store.apply(Object::EndpointSlice(slice("b", "far", "10.0.0.2")));
    store.apply(Object::Service(service("b", "far", 80)));
    let edit = store.remove(&ObjectRef { kind: Kind::PeerAuthentication, id: id("a", "p") });
    assert_eq!(affected(&store, &edit).services, BTreeSet::from([id("a", "x"), id("b", "far")]));
}

#[test]
fn a_pod_hides_a_workload_entry_of_its_name() {
    let mut store = store();
    let mut entry = pod("a", "x-1", "other", "10.0.0.9");
    entry.kind = WorkloadKind::WorkloadEntry;
    store.apply(Object::Workload(entry));
    assert_eq!(&*store.workload(&id("a", "x-1")).unwrap().service_account, "x");
    assert_eq!(store.workloads_in("a").count(), 2);
    assert_eq!(store.workloads().count(), 3);
    store.remove(&ObjectRef { kind: Kind::Pod, id: id("a", "x-1") });
    assert_eq!(&*store.workload(&id("a", "x-1")).unwrap().service_account, "other");
    assert_eq!(store.workloads_in("a").count(), 2);
}

#[test]
fn addresses_follow_their_workloads() {
    let mut store = store();
    let at = |store: &Store, ip: &str| store.workload_at(ip.parse().unwrap()).map(|w| w.name.to_string());
    assert_eq!(at(&store, "10.0.0.1").as_deref(), Some("x-1"));
    store.apply(Object::Workload(pod("a", "x-1", "x", "10.0.0.7")));
    assert_eq!(at(&store, "10.0.0.1"), None);
    assert_eq!(at(&store, "10.0.0.7").as_deref(), Some("x-1"));
    // Of two that claim one address the first by name holds it, whatever the order of arrival.
    store.apply(Object::Workload(pod("a", "a-1", "x", "10.0.0.7")));
    assert_eq!(at(&store, "10.0.0.7").as_deref(), Some("a-1"));
    store.remove(&ObjectRef { kind: Kind::Pod, id: id("a", "a-1") });
    assert_eq!(at(&store, "10.0.0.7").as_deref(), Some("x-1"));
    // The newest Pod has it, and no WorkloadEntry that claims it, too.
    for (name, kind, created) in [
        ("z-1", WorkloadKind::Pod, 2),
        ("b-1", WorkloadKind::Pod, 1),
        ("a-vm", WorkloadKind::WorkloadEntry, 3),
    ] {
        store.apply(Object::Workload(Workload { kind, created, ..pod("a", name, "x", "10.0.0.7") }));
        assert_eq!(at(&store, "10.0.0.7").as_deref(), Some("z-1"), "{name}");
    }
}

#[test]
fn slices_are_found_by_service_and_a_moved_slice_concerns_both() {
    let mut store = store();
    store.apply(Object::EndpointSlice(slice("a", "x", "10.0.0.1")));
    assert_eq!(store.slices_of(&id("a", "x")).len(), 1);
    let mut moved = slice("a", "x", "10.0.0.1");
    moved.service = "z".into();
    let affected = change(&mut store, Object::EndpointSlice(moved));
    assert_eq!(affected.services, BTreeSet::from([id("a", "x"), id("a", "z")]));
    assert!(store.slices_of(&id("a", "x")).is_empty());
    store.remove(&ObjectRef { kind: Kind::EndpointSlice, id: id("a", "x-1") });
    assert!(store.slices_of.is_empty() && store.mentioned.is_empty());
}
