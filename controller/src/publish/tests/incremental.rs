//! The law of design decision 1: whatever the order and the batches of changes, what is published is what a fresh
//! start over the final state would publish, and nothing is sent without a difference.

use super::*;
use crate::fixtures::slice;
use mesh::{ClientTls, TargetPort, WorkloadKind};
use proptest::prelude::*;

/// One step of a random history.
#[derive(Clone, Debug)]
enum Step {
    Apply(Object),
    Delete(usize),
    Mesh(MeshConfig),
    Commit,
}

fn namespace() -> impl Strategy<Value = &'static str> {
    prop::sample::select(vec!["istio-system", "a", "b"])
}

fn app() -> impl Strategy<Value = &'static str> {
    prop::sample::select(vec!["x", "y"])
}

fn workload() -> impl Strategy<Value = Object> {
    (namespace(), app(), 1..3_u8, 1..5_u8, any::<[bool; 3]>()).prop_map(
        |(ns, app, number, address, [tls, ready, entry])| {
            let mut pod = pod(ns, &format!("{app}-{number}"), app, &format!("10.0.0.{address}"));
            pod.mutual_tls = tls;
            pod.ready = ready;
            if entry {
                pod.kind = WorkloadKind::WorkloadEntry;
                pod.service_account = "vm".into();
            }
            Object::Workload(pod)
        },
    )
}

fn services() -> impl Strategy<Value = Object> {
    (namespace(), app(), 80..82_u16, 8080..8082_u16, any::<bool>(), prop::option::of(export_to())).prop_map(
        |(ns, app, port, target, tcp, export_to)| {
            let mut service = service(ns, app, port);
            service.export_to = export_to;
            service.ports[0].target = TargetPort::Number(target);
            if tcp {
                service.ports[0].protocol = mesh::Protocol::Tcp;
            }
            Object::Service(service)
        },
    )
}

fn sidecars() -> impl Strategy<Value = Object> {
    let hosts = prop::sample::subsequence(
        vec!["*/*", "a/*", "b/x.b.svc.cluster.local", "*/*.a.svc.cluster.local"],
        0..=2,
    );
    let entry =
        (prop::option::of(80..82_u16), hosts).prop_map(|(port, hosts)| crate::fixtures::egress(port, &hosts));
    let egress = prop::option::of(prop::collection::vec(entry, 0..3));
    (namespace(), app(), egress, any::<[bool; 3]>(), prop::option::of(any::<bool>())).prop_map(
        |(ns, app, egress, [all, old, ingress], allow_any)| {
            let name = format!("{app}-{all}");
            let mut sidecar = crate::fixtures::sidecar(ns, &name, (!all).then_some(app), egress);
            sidecar.created = old.into();
            Arc::make_mut(&mut sidecar.scope).allow_any = allow_any;
            if !ingress {
                sidecar.ingress.clear();
            }
            Object::Sidecar(sidecar)
        },
    )
}

fn export_to() -> impl Strategy<Value = mesh::ExportTo> {
    prop_oneof![
        2 => Just(mesh::ExportTo::All),
        1 => (any::<bool>(), prop::sample::subsequence(vec!["a", "b"], 0..=1)).prop_map(|(own, namespaces)| {
            mesh::ExportTo::Some { own, namespaces: namespaces.into_iter().map(Into::into).collect() }
        }),
    ]
}

fn policies() -> impl Strategy<Value = Object> {
    let peer = (namespace(), app(), any::<bool>(), 0..3_u8).prop_map(|(ns, app, all, mode)| {
        let mode = [MtlsMode::Disable, MtlsMode::Permissive, MtlsMode::Strict][usize::from(mode)];
        Object::PeerAuthentication(peer(ns, if all { "all" } else { app }, (!all).then_some(app), mode))
    });
    let authorization =
        (namespace(), app(), app(), any::<[bool; 2]>()).prop_map(|(ns, app, caller, [all, deny])| {
            let action = if deny { Action::Deny } else { Action::Allow };
            let name = format!("{app}-{deny}");
            Object::AuthorizationPolicy(authorization(ns, &name, (!all).then_some(app), action, caller))
        });
    prop_oneof![peer, authorization]
}

fn destination_rules() -> impl Strategy<Value = Object> {
    let host = prop::sample::select(vec!["x.a", "y.a", "x.b", "*.a", "*"]);
    (namespace(), app(), host, app(), 0..4_u8, any::<[bool; 3]>(), 0..3_i64).prop_map(
        |(ns, name, host, selected, mode, [private, selecting, port], created)| {
            let tls = match mode {
                0 => ClientTls::Disable,
                1 => ClientTls::Refuse,
                2 => ClientTls::Originate(mesh::Originate { verify: true, ..Default::default() }),
                _ => ClientTls::IstioMutual { sni: String::new(), subject_alt_names: Vec::new() },
            };
            let ports = if port { [(80, Some(tls.clone())), (81, None)].into() } else { BTreeMap::new() };
            let suffix = if host == "*" { "" } else { ".svc.cluster.local" };
            Object::DestinationRule(mesh::DestinationRule {
                namespace: ns.into(),
                name: name.into(),
                created,
                host: format!("{host}{suffix}").into(),
                export_to: private.then(|| [ns.into()].into()),
                selector: selecting.then(|| [("app".to_owned(), selected.to_owned())].into()),
                policy: Some(mesh::TrafficPolicy { tls: (!port).then_some(tls), ports }),
                subsets: Vec::new(),
            })
        },
    )
}

fn telemetries() -> impl Strategy<Value = Object> {
    let provider = prop::sample::select(vec!["envoy", "own", "als", "nobody"]);
    (namespace(), app(), any::<[bool; 3]>(), provider).prop_map(
        |(ns, app, [all, disabled, server], provider)| {
            let labels = [("app".to_owned(), app.to_owned())].into();
            Object::Telemetry(mesh::Telemetry {
                namespace: ns.into(),
                name: if all { "all".into() } else { app.into() },
                created: 0,
                reach: if all { mesh::Reach::Namespace } else { mesh::Reach::Labels(labels) },
                access_logging: vec![mesh::AccessLogging {
                    mode: if server { mesh::LogMode::Server } else { mesh::LogMode::Both },
                    providers: vec![provider.into()],
                    disabled,
                    filter: None,
                }],
            })
        },
    )
}

fn meshes() -> impl Strategy<Value = MeshConfig> {
    (any::<[bool; 4]>(), export_to()).prop_map(|([auto, alias, root, opa], export_to)| MeshConfig {
        enable_auto_mtls: auto,
        trust_domain_aliases: if alias { vec!["old.example".into()] } else { Vec::new() },
        root_namespace: if root { "a".into() } else { "istio-system".into() },
        log_providers: logs(),
        default_service_export_to: export_to,
        extension_providers: if opa {
            vec![crate::fixtures::provider("a/x.a.svc.cluster.local")]
        } else {
            Vec::new()
        },
        ..MeshConfig::default()
    })
}

fn step() -> impl Strategy<Value = Step> {
    prop_oneof![
        3 => workload().prop_map(Step::Apply),
        2 => services().prop_map(Step::Apply),
        1 => (namespace(), app(), 1..5_u8)
            .prop_map(|(ns, app, ip)| Step::Apply(Object::EndpointSlice(slice(ns, app, &format!("10.0.0.{ip}"))))),
        2 => sidecars().prop_map(Step::Apply),
        5 => policies().prop_map(Step::Apply),
        3 => destination_rules().prop_map(Step::Apply),
        2 => telemetries().prop_map(Step::Apply),
        3 => any::<prop::sample::Index>().prop_map(|index| Step::Delete(index.index(1000))),
        1 => meshes().prop_map(Step::Mesh),
        3 => Just(Step::Commit),
    ]
}

fn keys() -> Vec<SlotKey> {
    let identified = |ns: &str, name: &str, sa: &str| SlotKey {
        identity: Some(format!("spiffe://cluster.local/ns/{ns}/sa/{sa}").into()),
        claimed: None,
        ..plain(ns, name, captured())
    };
    vec![
        plain("a", "x-1", captured()),
        plain("a", "x-2", captured()),
        plain("a", "y-1", uncaptured()),
        plain("b", "x-1", ProxyShape { inline_policy: true, ..captured() }),
        plain("istio-system", "y-2", captured()),
        identified("a", "x-1", "x"),
        identified("b", "y-1", "vm"),
    ]
}

/// Type, name and bytes of each resource.
type Contents = Vec<(ResourceType, Arc<str>, bytes::Bytes)>;

/// Every resource of a snapshot: what the proxy would have.
fn contents(snapshot: &Snapshot) -> Contents {
    let each = |kind| snapshot.of(kind).iter().map(move |r| (kind, r.name.clone(), r.any.clone()));
    ResourceType::ALL.into_iter().flat_map(each).collect()
}

/// What a fresh start over these objects publishes to `key`.
fn from_scratch(objects: &BTreeMap<ObjectRef, Object>, mesh: &MeshConfig, key: &SlotKey) -> Option<Contents> {
    let mut fresh = Publisher::default();
    fresh.store.set_mesh(mesh.clone());
    for object in objects.values() {
        fresh.store.apply(object.clone());
    }
    fresh.pending = Affected::all(&fresh.store);
    fresh.commit();
    fresh.subscribe(key).ok().map(|receiver| contents(&receiver.borrow()))
}

struct World {
    publisher: Publisher,
    objects: BTreeMap<ObjectRef, Object>,
    mesh: MeshConfig,
    receivers: HashMap<SlotKey, (Receiver<Arc<Snapshot>>, Contents)>,
}

impl World {
    fn new() -> Self {
        Self {
            publisher: publisher([]),
            objects: BTreeMap::new(),
            mesh: MeshConfig::default(),
            receivers: HashMap::new(),
        }
    }

    fn take(&mut self, step: Step) {
        match step {
            Step::Apply(object) => {
                self.objects.insert(object.object_ref(), object.clone());
                apply(&mut self.publisher, object);
            }
            Step::Delete(index) => {
                let Some(reference) = self.objects.keys().nth(index % self.objects.len().max(1)).cloned()
                else {
                    return;
                };
                self.objects.remove(&reference);
                let edit = self.publisher.store.remove(&reference);
                self.publisher.edited(&edit);
            }
            Step::Mesh(mesh) => {
                self.mesh = mesh.clone();
                let edit = self.publisher.store.set_mesh(mesh);
                self.publisher.edited(&edit);
            }
            Step::Commit => self.commit(),
        }
    }

    fn commit(&mut self) {
        self.publisher.commit();
        for key in keys() {
            let expected = from_scratch(&self.objects, &self.mesh, &key);
            // A session that was ended comes back, as a proxy would.
            let ended = self.receivers.get(&key).is_none_or(|(receiver, _)| receiver.has_changed().is_err());
            if ended {
                self.receivers.remove(&key);
                match self.publisher.subscribe(&key) {
                    Ok(mut receiver) => {
                        let now = contents(&receiver.borrow_and_update());
                        self.receivers.insert(key.clone(), (receiver, now));
                    }
                    Err(refusal) => assert_eq!(expected, None, "{refusal}"),
                }
            }
            let Some((receiver, before)) = self.receivers.get_mut(&key) else { continue };
            let sent = receiver.has_changed().unwrap();
            let now = contents(&receiver.borrow_and_update());
            assert_eq!(sent, now != *before, "sent exactly if something differs");
            assert!(Some(&now) == expected.as_ref(), "{:?} differs from a fresh start", key.workload);
            *before = now;
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 64, max_shrink_iters: 400, ..ProptestConfig::default() })]
    #[test]
    fn incremental_equals_from_scratch(steps in prop::collection::vec(step(), 1..40)) {
        let mut world = World::new();
        for step in steps {
            world.take(step);
        }
        world.commit();
    }
}
