//! Text pairs: `golden/CASE.in.yaml` (objects; the first line names the proxy) and `golden/CASE.out.yaml` (its effective
//! policy and every resource, with the version that other processes must come to as well).
//! `BLESS=1 cargo test -p xds golden` writes them anew; then read the diff.
//! What policies of every kind become is in `controller/tests/golden`; here are the kinds of proxy.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use crds::{Content, Object};
use envoy_types::pb::envoy::config::core::v3::Node;
use envoy_types::pb::google::protobuf::{Struct, Value, value::Kind};
use mesh::{MeshConfig, Service, Workload};
use policy::{MtlsMode, PolicySet, Scope, WorkloadKey};
use serde_json::json;
use xds::build::{Inbound, Outbound, OutboundEndpoint, OutboundPort, OutboundService, ProxyShape};

use super::envoy::Envoy;
use super::pki::Ca;
use super::serve::Resources;
use super::{fixtures, net};

struct Case {
    mesh: MeshConfig,
    set: PolicySet,
    services: Vec<Arc<Service>>,
    workloads: Vec<Arc<Workload>>,
    /// The workload behind the proxy.
    own: Arc<Workload>,
    shape: ProxyShape,
}

impl Case {
    fn read(path: &Path) -> Self {
        let text = std::fs::read_to_string(path).unwrap();
        let header =
            text.lines().next().and_then(|line| line.strip_prefix("# proxy: ")).expect("# proxy: {…}");
        let header: serde_json::Value = serde_json::from_str(header).unwrap();
        let mesh = MeshConfig::default();
        let mut set = PolicySet::new(Scope {
            root_namespace: mesh.root_namespace.clone(),
            trust_domain: mesh.trust_domain.clone(),
            ..Scope::default()
        });
        let (mut services, mut workloads) = (Vec::new(), Vec::new());
        for document in crds::read(&text, "in.yaml") {
            let Content::Object(object) = document.content else { panic!("{:?}", document.findings) };
            match *object {
                Object::Service(service) => services.push(Arc::new(service)),
                Object::Workload(workload) => workloads.push(Arc::new(workload)),
                Object::PeerAuthentication(policy) => set.put_peer(Arc::new(policy)),
                Object::RequestAuthentication(policy) => set.put_request(Arc::new(policy)),
                Object::AuthorizationPolicy(policy) => set.put_authorization(Arc::new(policy)),
                other => panic!("{other:?}"),
            }
        }
        let own =
            workloads.iter().find(|w| *w.name == *header["workload"].as_str().unwrap()).unwrap().clone();
        let Some(Kind::StructValue(metadata)) = proto(&header["metadata"]).kind else { panic!("metadata") };
        let node = Node {
            id: format!("sidecar~{}~a.b~c", own.addresses[0]),
            metadata: Some(metadata),
            ..Default::default()
        };
        Self { mesh, set, services, workloads, own, shape: ProxyShape::from_node(&node).unwrap() }
    }

    fn policy(&self, workload: &Workload) -> policy::EffectivePolicy {
        let key = WorkloadKey { namespace: workload.namespace.clone(), labels: workload.labels.clone() };
        policy::resolve(&self.set, &key)
    }

    fn outbound(&self, service: &Arc<Service>) -> OutboundService {
        let port = |port: &mesh::ServicePort| {
            let found = mesh::endpoints(service, port, &[], &self.workloads, |_| None, |_| None);
            let identity = |e: &mesh::Endpoint| {
                let w = e.workload.as_ref().unwrap();
                format!("spiffe://{}/ns/{}/sa/{}", self.mesh.trust_domain, w.namespace, w.service_account)
            };
            let endpoint = |e: &mesh::Endpoint| OutboundEndpoint {
                address: e.address,
                port: e.port,
                mutual_tls: e
                    .workload
                    .as_ref()
                    .is_some_and(|w| w.mutual_tls && self.policy(w).mtls.port(e.port) != MtlsMode::Disable),
            };
            OutboundPort {
                port: port.clone(),
                endpoints: found.iter().map(endpoint).collect(),
                identities: found.iter().map(identity).collect(),
                tls: Default::default(),
            }
        };
        OutboundService { service: service.clone(), ports: service.ports.iter().map(port).collect() }
    }

    fn resources(&self) -> Resources {
        let Self { mesh, services, own, shape, .. } = self;
        let ports = mesh::inbound_ports(own, services.iter().map(|s| &**s));
        let (policy, providers) = (self.policy(own), BTreeMap::new());
        let logs = mesh::Logs::of_mesh(mesh);
        let inbound = Inbound {
            mesh,
            workload: own,
            ports: &ports,
            policy: &policy,
            shape,
            providers: &providers,
            logs: &logs.server,
        };
        let mut all = xds::build::own(&inbound);
        let services: Vec<OutboundService> = services.iter().map(|s| self.outbound(s)).collect();
        for service in &services {
            all.extend(xds::build::service(mesh, &logs.client, service, shape.shared()));
        }
        let services: Vec<_> = services.iter().collect();
        let (namespace, addresses) = (&*own.namespace, &*own.addresses);
        all.extend(xds::build::outbound(&Outbound {
            mesh,
            namespace,
            addresses,
            services: &services,
            allow_any: mesh.outbound_allow_any,
            shape,
            logs: &logs.client,
        }));
        let table: BTreeMap<_, _> = all.into_iter().map(|(t, r)| ((t, r.name.clone()), r)).collect();
        table.into_iter().map(|((t, _), r)| (t, r)).collect()
    }

    fn text(&self) -> String {
        let mut types: BTreeMap<&str, Vec<serde_json::Value>> = BTreeMap::new();
        let mut seen = BTreeMap::new();
        for (kind, one) in self.resources() {
            let mut content = xds::build::json::resource(&one).unwrap();
            let fields = content.as_object_mut().unwrap();
            fields.values_mut().for_each(|field| shorten(field, &mut seen));
            types
                .entry(kind.short())
                .or_default()
                .push(json!({"version": one.version(), "resource": content}));
        }
        let policy = format!("{:#?}", self.policy(&self.own));
        serde_yaml::to_string(&json!({"effective": policy, "resources": types})).unwrap()
    }
}

/// Writes out a long typed message once and refers to it afterwards, so that a person can read the rest.
fn shorten(tree: &mut serde_json::Value, seen: &mut BTreeMap<String, usize>) {
    match tree {
        serde_json::Value::Array(items) => items.iter_mut().for_each(|item| shorten(item, seen)),
        serde_json::Value::Object(fields) => {
            let text = serde_json::Value::Object(fields.clone()).to_string();
            let long = fields.contains_key("@type") && text.len() > 300;
            if let Some(number) = seen.get(&text) {
                *tree = json!({"as": format!("#{number}")});
                return;
            }
            fields.values_mut().for_each(|field| shorten(field, seen));
            if long {
                let number = seen.len() + 1;
                seen.insert(text, number);
                fields.insert("#".to_owned(), number.into());
            }
        }
        _ => {}
    }
}

fn proto(json: &serde_json::Value) -> Value {
    let kind = match json {
        serde_json::Value::Object(fields) => {
            Kind::StructValue(Struct { fields: fields.iter().map(|(k, v)| (k.clone(), proto(v))).collect() })
        }
        other => Kind::StringValue(other.as_str().unwrap().to_owned()),
    };
    Value { kind: Some(kind) }
}

fn cases() -> Vec<PathBuf> {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/golden");
    let files = std::fs::read_dir(folder).unwrap().map(|f| f.unwrap().path());
    let mut cases: Vec<_> = files.filter(|f| f.to_str().unwrap().ends_with(".in.yaml")).collect();
    cases.sort();
    assert!(cases.len() >= 3);
    cases
}

fn check(case: &Path) -> Result<(), String> {
    let got = Case::read(case).text();
    let file = PathBuf::from(case.to_str().unwrap().replace(".in.yaml", ".out.yaml"));
    if std::env::var_os("BLESS").is_some() {
        std::fs::write(&file, &got).unwrap();
    }
    let expected = std::fs::read_to_string(&file).unwrap_or_default();
    let Some(line) = (0..).zip(expected.lines().zip(got.lines())).find(|(_, (a, b))| a != b) else {
        return if expected == got { Ok(()) } else { Err(format!("{}: different lengths", file.display())) };
    };
    let (number, (old, new)): (usize, _) = line;
    Err(format!("{}:{}\n- {old}\n+ {new}", file.display(), number + 1))
}

#[test]
fn golden() {
    let wrong: Vec<String> = cases().iter().filter_map(|case| check(case).err()).collect();
    assert!(wrong.is_empty(), "BLESS=1 writes them anew\n{}", wrong.join("\n"));
}

#[tokio::test]
async fn envoy_accepts_the_golden_cases() {
    let ca = Ca::new();
    let identity = ca.issue(&["spiffe://cluster.local/ns/shop/sa/orders"]);
    let Some(envoy) = Envoy::start(&identity, &ca.pem).await else { return };
    for case in cases() {
        let resources = fixtures::elsewhere(Case::read(&case).resources(), net::own_address());
        envoy.server.publish(resources).await.unwrap_or_else(|e| panic!("{}: {e:#?}", case.display()));
    }
}
