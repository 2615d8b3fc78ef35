//! Who sees which services, and what a change costs whom.

use std::cell::Cell;

use mesh::ExportTo;

use super::*;
use crate::fixtures::{egress, provider, sidecar, slice};

/// Names of the clusters of services.
fn clusters(receiver: &Receiver<Arc<Snapshot>>) -> Vec<String> {
    names(receiver, ResourceType::Cluster, "outbound|")
}

fn names(receiver: &Receiver<Arc<Snapshot>>, kind: ResourceType, prefix: &str) -> Vec<String> {
    let snapshot = receiver.borrow();
    let names = snapshot.of(kind).iter().map(|r| r.name.to_string());
    let mut names: Vec<String> = names.filter(|name| name.starts_with(prefix)).collect();
    names.sort();
    names
}

const X_OF_A: &str = "outbound|80||x.a.svc.cluster.local";
const X_OF_B: &str = "outbound|80||x.b.svc.cluster.local";

#[test]
fn export_to_and_sidecars_narrow_everything_that_leads_to_a_service() {
    let mut publisher = publisher(world());
    let a = publisher.subscribe(&plain("a", "x-1", captured())).unwrap();
    let b = publisher.subscribe(&plain("b", "x-1", captured())).unwrap();
    let uncaptured_b = publisher.subscribe(&plain("b", "x-1", uncaptured())).unwrap();
    assert_eq!(clusters(&a), [X_OF_A, X_OF_B]);
    let mut hidden = service("a", "x", 80);
    hidden.ports[0].port = 81;
    hidden.export_to = Some(ExportTo::Some { own: true, namespaces: BTreeSet::new() });
    apply(&mut publisher, Object::Service(hidden.clone()));
    publisher.commit();
    for b in [&b, &uncaptured_b] {
        assert_eq!(clusters(b), [X_OF_B]);
        assert_eq!(names(b, ResourceType::Endpoint, ""), [X_OF_B]);
    }
    assert_eq!(names(&b, ResourceType::Listener, "0.0.0.0_"), ["0.0.0.0_80"]);
    assert_eq!(names(&b, ResourceType::Route, ""), ["80"]);
    assert_eq!(clusters(&a), [X_OF_B, "outbound|81||x.a.svc.cluster.local"]);
    let before = uncaptured_b.borrow().of(ResourceType::Route).get("forward").cloned();
    // A Sidecar for the one namespace takes the other service away from it, and nothing from anybody else.
    let narrow = sidecar("a", "default", None, Some(vec![egress(None, &["a/*"])]));
    apply(&mut publisher, Object::Sidecar(narrow));
    assert_eq!(publisher.commit(), 1);
    assert_eq!(clusters(&a), ["outbound|81||x.a.svc.cluster.local"]);
    assert_eq!(names(&a, ResourceType::Route, ""), ["81"]);
    assert_eq!(uncaptured_b.borrow().of(ResourceType::Route).get("forward").cloned(), before);
    // Removed, everything is back.
    publisher.store.remove(&ObjectRef { kind: Kind::Sidecar, id: id("a", "default") });
    publisher.edited(&Edit::Sidecar("a".into()));
    publisher.commit();
    assert_eq!(clusters(&a), [X_OF_B, "outbound|81||x.a.svc.cluster.local"]);
}

#[test]
fn a_sidecar_of_the_root_namespace_is_for_those_without_one() {
    let mut publisher = publisher(world());
    let a = publisher.subscribe(&plain("a", "x-1", captured())).unwrap();
    let b = publisher.subscribe(&plain("b", "x-1", captured())).unwrap();
    let nothing = || Some(vec![egress(None, &["none/*"])]);
    apply(&mut publisher, Object::Sidecar(sidecar("istio-system", "default", None, nothing())));
    apply(&mut publisher, Object::Sidecar(sidecar("a", "x", Some("x"), Some(vec![egress(None, &["b/*"])]))));
    publisher.commit();
    assert_eq!((clusters(&a), clusters(&b)), (vec![X_OF_B.to_owned()], vec![]));
    // Of a workload whose labels change, another Sidecar may be the one.
    apply(&mut publisher, Object::Workload(pod("a", "x-1", "y", "10.0.0.1")));
    publisher.commit();
    assert_eq!(clusters(&a), Vec::<String>::new());
}

#[test]
fn ingress_replaces_the_ports_of_services() {
    let mut publisher = publisher(world());
    let a = publisher.subscribe(&plain("a", "x-1", captured())).unwrap();
    let inbound = |receiver| names(receiver, ResourceType::Cluster, "inbound|");
    assert_eq!(inbound(&a), ["inbound|8080||"]);
    apply(&mut publisher, Object::Sidecar(sidecar("a", "x", Some("x"), None)));
    publisher.commit();
    assert_eq!(inbound(&a), ["inbound|8081||"]);
    assert_eq!(clusters(&a), [X_OF_A, X_OF_B], "nothing is narrowed");
}

/// The proxy's own filters call it, whatever the application may call.
#[test]
fn clusters_of_ext_authz_providers_are_always_there_and_nothing_leads_to_them() {
    let mut publisher = publisher(world());
    let narrow = sidecar("b", "default", None, Some(vec![egress(None, &["b/*"])]));
    apply(&mut publisher, Object::Sidecar(narrow));
    let mesh = MeshConfig {
        extension_providers: vec![provider("a/x.a.svc.cluster.local")],
        ..MeshConfig::default()
    };
    let edit = publisher.store.set_mesh(mesh);
    publisher.edited(&edit);
    publisher.commit();
    let b = publisher.subscribe(&plain("b", "x-1", captured())).unwrap();
    assert_eq!(clusters(&b), [X_OF_A, X_OF_B]);
    let route = b.borrow().of(ResourceType::Route).get("80").cloned().unwrap();
    assert!(!route.any.windows(7).any(|bytes| bytes == b"x.a.svc"), "no route leads there");
    let edit = publisher.store.set_mesh(MeshConfig::default());
    publisher.edited(&edit);
    publisher.commit();
    assert_eq!(clusters(&b), [X_OF_B]);
}

thread_local! {
    static OUTBOUND: Cell<usize> = const { Cell::new(0) };
    static SERVICES: Cell<usize> = const { Cell::new(0) };
}

fn counted_outbound(outbound: &Outbound<'_>) -> Encoded {
    OUTBOUND.set(OUTBOUND.get() + 1);
    build::outbound(outbound)
}

fn counted_service(
    mesh: &MeshConfig,
    logs: &[Log],
    service: &OutboundService,
    shape: SharedShape,
) -> Encoded {
    SERVICES.set(SERVICES.get() + 1);
    build::service(mesh, logs, service, shape)
}

/// Fifty namespaces of services; each proxy is narrowed to its own, and those of a namespace share everything.
#[test]
fn a_change_costs_those_who_see_it() {
    let mut objects = Vec::new();
    for number in 0..50 {
        let namespace = format!("n{number}");
        objects.push(Object::Sidecar(sidecar(
            &namespace,
            "default",
            None,
            Some(vec![egress(None, &[&format!("{namespace}/*")])]),
        )));
        for name in ["x", "y", "z"] {
            objects.push(Object::Service(service(&namespace, name, 80)));
            objects.push(Object::EndpointSlice(slice(&namespace, name, &format!("10.0.{number}.1"))));
        }
        for pod_number in 0..2 {
            let name = format!("x-{pod_number}");
            let address = format!("10.0.{number}.{}", pod_number + 1);
            objects.push(Object::Workload(pod(&namespace, &name, "x", &address)));
        }
    }
    let mut publisher = publisher(objects);
    publisher.builders.outbound = counted_outbound;
    publisher.builders.service = counted_service;
    let mut proxies: Vec<_> = (0..50)
        .flat_map(|number| {
            (0..2).map(move |pod| plain(&format!("n{number}"), &format!("x-{pod}"), captured()))
        })
        .map(|key| publisher.subscribe(&key).unwrap())
        .collect();
    assert_eq!((publisher.services.len(), OUTBOUND.get(), SERVICES.get()), (50, 50, 150));
    for pair in proxies.chunks_mut(2) {
        assert_eq!(clusters(&pair[0]).len(), 3);
        let shared = |p: &Receiver<Arc<Snapshot>>| p.borrow().of(ResourceType::Cluster).shared.clone();
        assert!(Arc::ptr_eq(&shared(&pair[0]), &shared(&pair[1])));
        pair.iter_mut().for_each(|proxy| proxy.mark_unchanged());
    }
    // A pod gets another address: one service is encoded again, no listener and no route, for two proxies.
    apply(&mut publisher, Object::EndpointSlice(slice("n7", "x", "10.0.7.9")));
    assert_eq!(publisher.commit(), 2);
    assert_eq!((OUTBOUND.get(), SERVICES.get()), (50, 151));
    let changed: Vec<usize> = (0..100).filter(|index| proxies[*index].has_changed().unwrap()).collect();
    assert_eq!(changed, [14, 15]);
    // One that no service selects and no slice mentions costs nobody anything.
    apply(&mut publisher, Object::Workload(pod("n7", "other", "other", "10.9.9.9")));
    assert_eq!(publisher.commit(), 0);
    assert_eq!((OUTBOUND.get(), SERVICES.get()), (50, 151));
    // A port is added: the listeners of those who see it are made anew, once.
    apply(&mut publisher, Object::Service(service("n7", "x", 81)));
    assert_eq!(publisher.commit(), 2);
    assert_eq!((OUTBOUND.get(), SERVICES.get()), (51, 152));
}

/// Without narrowing all namespaces show the same, and their clusters and endpoints stay one table through changes.
#[test]
fn namespaces_that_see_the_same_share_tables() {
    let mut publisher = publisher(world());
    let a = publisher.subscribe(&plain("a", "x-1", captured())).unwrap();
    let b = publisher.subscribe(&plain("b", "x-1", captured())).unwrap();
    let alike = |kind| {
        let of = |p: &Receiver<Arc<Snapshot>>| p.borrow().of(kind).shared.clone();
        Arc::ptr_eq(&of(&a), &of(&b))
    };
    assert!(alike(ResourceType::Cluster) && alike(ResourceType::Endpoint));
    for address in ["10.0.0.8", "10.0.0.9"] {
        apply(&mut publisher, Object::EndpointSlice(slice("a", "x", address)));
        publisher.commit();
        assert!(alike(ResourceType::Cluster) && alike(ResourceType::Endpoint), "{address}");
    }
}
