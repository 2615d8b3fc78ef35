//! Small objects for tests.

use std::collections::BTreeMap;
use std::net::IpAddr;
use std::sync::Arc;

use crds::Object;
use mesh::{
    EndpointSlice, Protocol, Service, ServicePort, SliceEndpoint, TargetPort, Workload, WorkloadKind,
};
use policy::{
    Action, Atom, Attachment, AuthorizationPolicy, Match, Meta, MtlsMode, ObjectName, PeerAuthentication,
    Rule, Source, StringMatch,
};
use xds::build::{Capture, ProxyShape};

pub(crate) fn id(namespace: &str, name: &str) -> ObjectName {
    ObjectName::new(namespace, name)
}

pub(crate) fn labels(pairs: &[(&str, &str)]) -> BTreeMap<String, String> {
    pairs.iter().map(|(k, v)| ((*k).to_owned(), (*v).to_owned())).collect()
}

pub(crate) fn pod(namespace: &str, name: &str, app: &str, address: &str) -> Workload {
    Workload {
        namespace: namespace.into(),
        name: name.into(),
        kind: WorkloadKind::Pod,
        labels: Arc::new(labels(&[("app", app), ("pod-template-hash", name)])),
        service_account: app.into(),
        addresses: vec![address.parse::<IpAddr>().unwrap()],
        named_ports: BTreeMap::new(),
        mutual_tls: true,
        ready: true,
        created: 0,
        uid: None,
    }
}

pub(crate) fn service(namespace: &str, name: &str, port: u16) -> Service {
    Service {
        namespace: namespace.into(),
        name: name.into(),
        hostname: format!("{name}.{namespace}.svc.cluster.local").into(),
        cluster_ips: Vec::new(),
        ports: vec![ServicePort {
            name: "http".into(),
            port,
            target: TargetPort::Number(8080),
            protocol: Protocol::Http,
        }],
        selector: Some(labels(&[("app", name)])),
        created: 0,
        export_to: None,
    }
}

/// An entry of `egress`: each host as `NAMESPACE/HOST`.
pub(crate) fn egress(port: Option<u16>, hosts: &[&str]) -> mesh::Egress {
    let rule = |text: &&str| {
        let (namespace, host) = text.split_once('/').unwrap();
        let namespace = (namespace != "*").then(|| namespace.into());
        mesh::HostRule { namespace, host: mesh::HostMatch::parse(host) }
    };
    mesh::Egress { port, hosts: hosts.iter().map(rule).collect() }
}

/// With a port 8081 of its own.
pub(crate) fn sidecar(
    namespace: &str,
    name: &str,
    app: Option<&str>,
    egress: Option<Vec<mesh::Egress>>,
) -> mesh::Sidecar {
    mesh::Sidecar {
        namespace: namespace.into(),
        name: name.into(),
        created: 0,
        selector: app.map(|app| labels(&[("app", app)])),
        scope: Arc::new(mesh::Scope { egress, allow_any: None }),
        ingress: vec![mesh::Ingress { port: 8081, protocol: Protocol::Http, app: None }],
    }
}

/// An ext_authz provider `opa` at port 80 of a service.
pub(crate) fn provider(service: &str) -> mesh::ExtensionProvider {
    mesh::ExtensionProvider {
        name: "opa".into(),
        ext_authz: Some(mesh::ExtAuthz {
            kind: mesh::ExtAuthzKind::Grpc,
            service: service.into(),
            port: 80,
            timeout_ms: 1000,
            fail_open: false,
            status_on_error: None,
            include_body: None,
        }),
    }
}

pub(crate) fn slice(namespace: &str, service: &str, address: &str) -> EndpointSlice {
    EndpointSlice {
        namespace: namespace.into(),
        name: format!("{service}-1").into(),
        service: service.into(),
        ports: vec![mesh::EndpointPort { name: "http".into(), port: 8080 }],
        endpoints: vec![SliceEndpoint {
            addresses: vec![address.parse().unwrap()],
            ready: true,
            workload: None,
        }],
    }
}

pub(crate) fn selecting(app: Option<&str>) -> Attachment {
    app.map_or(Attachment::Namespace, |app| Attachment::Labels(labels(&[("app", app)])))
}

pub(crate) fn peer(namespace: &str, name: &str, app: Option<&str>, mode: MtlsMode) -> PeerAuthentication {
    PeerAuthentication {
        meta: Meta::new(id(namespace, name)),
        attachment: selecting(app),
        mode: Some(mode),
        ports: BTreeMap::new(),
    }
}

/// A policy with one rule about one caller.
pub(crate) fn authorization(
    namespace: &str,
    name: &str,
    app: Option<&str>,
    action: Action,
    caller: &str,
) -> AuthorizationPolicy {
    let atom = Atom::Principal(StringMatch::Exact(format!("cluster.local/ns/a/sa/{caller}").into()));
    let source = Source { principals: Match { any: vec![atom], none: Vec::new() }, ..Source::default() };
    AuthorizationPolicy {
        meta: Meta::new(id(namespace, name)),
        attachment: selecting(app),
        action,
        rules: vec![Rule { from: vec![source], ..Rule::default() }],
    }
}

pub(crate) fn captured() -> ProxyShape {
    ProxyShape { capture: Capture::Nft, inline_policy: false, ipv6: false }
}

pub(crate) fn uncaptured() -> ProxyShape {
    let capture = Capture::None { apps: BTreeMap::new(), upstreams: BTreeMap::new() };
    ProxyShape { capture, inline_policy: false, ipv6: false }
}

/// Two workloads of `a` (one behind the service `x`), one of `b`.
pub(crate) fn world() -> Vec<Object> {
    vec![
        Object::Workload(pod("a", "x-1", "x", "10.0.0.1")),
        Object::Workload(pod("a", "y-1", "y", "10.0.0.2")),
        Object::Workload(pod("b", "x-1", "x", "10.0.1.1")),
        Object::Service(service("a", "x", 80)),
        Object::Service(service("b", "x", 80)),
    ]
}
