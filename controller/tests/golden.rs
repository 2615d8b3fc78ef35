//! From YAML to effective policy to Envoy resources, as text: `golden/CASE/in.yaml` (and `mesh.yaml`) against
//! `effective.yaml` and, where a case has it, `envoy.yaml` (the resources of each kind of proxy are `xds`'s golden cases) or
//! `callers.yaml` (how each workload calls each service).
//! `BLESS=1 cargo test -p controller --test golden` writes them anew; then read the diff.

use std::collections::BTreeMap;
use std::path::Path;

use controller::offline::{Offline, describe};
use crds::{Content, Object};
use mesh::MeshConfig;
use serde_json::{Value, json};
use xds::build::{Capture, ProxyShape, json::resource};

#[track_caller]
fn check(case: &str) {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/golden").join(case);
    let text = std::fs::read_to_string(folder.join("in.yaml")).expect("a golden case");
    let mesh = std::fs::read_to_string(folder.join("mesh.yaml"));
    let mesh = mesh.map_or_else(
        |_| MeshConfig::default(),
        |text| crds::mesh_config::read(&text).expect("a golden case").0,
    );
    let mut offline = Offline::new(mesh, objects(&text));
    if offline.workloads().is_empty() {
        offline.register("default", BTreeMap::new());
    }
    let (mut effective, mut envoy) = (Vec::new(), Vec::new());
    // Whoever calls alike is listed once.
    let mut callers: Vec<(Vec<String>, Vec<Value>)> = Vec::new();
    for workload in offline.workloads() {
        let name = format!("{}/{}", workload.namespace, workload.name);
        let policy = offline.effective(&workload).expect("a golden case");
        effective.push(json!({"workload": name, "policy": describe(&policy)}));
        let shape = ProxyShape { capture: Capture::Nft, inline_policy: false, ipv6: false };
        let mut types: BTreeMap<&str, Vec<Value>> = BTreeMap::new();
        for (kind, one) in offline.resources(&workload, shape).expect("a golden case") {
            types.entry(kind.short()).or_default().push(resource(&one).expect("a golden case"));
        }
        let outbound: Vec<Value> = types.values().flatten().filter(|one| outbound(one)).cloned().collect();
        match callers.iter_mut().find(|(_, same)| *same == outbound) {
            Some((names, _)) => names.push(name.clone()),
            None => callers.push((vec![name.clone()], outbound)),
        }
        envoy.push(json!({"workload": name, "resources": types}));
    }
    compare(&folder.join("effective.yaml"), &serde_yaml::to_string(&effective).expect("a golden case"));
    let callers =
        callers.into_iter().map(|(workloads, all)| json!({"workloads": workloads, "resources": all}));
    let callers = callers.collect::<Vec<_>>();
    for (file, content) in [("envoy.yaml", envoy), ("callers.yaml", callers)] {
        let file = folder.join(file);
        if file.exists() {
            compare(&file, &serde_yaml::to_string(&content).expect("a golden case"));
        }
    }
}

/// A cluster or load assignment of a service.
fn outbound(resource: &Value) -> bool {
    let name = resource.get("name").or(resource.get("cluster_name")).and_then(Value::as_str);
    name.is_some_and(|name| name.starts_with("outbound|"))
}

fn objects(text: &str) -> Vec<Object> {
    let of = |document: crds::Document| match document.content {
        Content::Object(object) => Some(*object),
        Content::Invalid { closed, .. } => closed.map(|closed| *closed.object),
        Content::Unreadable | Content::Unsupported => panic!("{}: {:?}", document.origin, document.findings),
    };
    crds::read(text, "in.yaml").into_iter().filter_map(of).collect()
}

#[track_caller]
fn compare(file: &Path, got: &str) {
    if std::env::var_os("BLESS").is_some() {
        return std::fs::write(file, got).expect("a golden case");
    }
    let expected = std::fs::read_to_string(file).unwrap_or_default();
    let differs = expected.lines().zip(got.lines()).position(|(a, b)| a != b);
    let line = differs.unwrap_or(expected.lines().count().min(got.lines().count()));
    let around =
        |text: &str| text.lines().skip(line.saturating_sub(3)).take(8).collect::<Vec<_>>().join("\n");
    assert!(
        expected == got,
        "{} differs from line {}:\n--- expected\n{}\n--- got\n{}\n(BLESS=1 accepts it)",
        file.display(),
        line + 1,
        around(&expected),
        around(got)
    );
}

/// The two objects of the first issue, byte for byte.
#[test]
fn orders_two_objects() {
    check("orders-two-objects");
}

#[test]
fn a_permissive_port_and_raw_tcp() {
    check("permissive-port-and-tcp");
}

#[test]
fn tokens_and_an_external_authorizer() {
    check("jwt-and-custom");
}

#[test]
fn dry_run_audit_and_deny() {
    check("dry-run-audit-deny");
}

/// A row of semantics §3.5 each; one client is told something else than the other.
#[test]
fn callers() {
    check("callers");
}
