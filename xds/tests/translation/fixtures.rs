//! Workloads, policies and shapes for tests.

use std::collections::BTreeMap;
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;

use mesh::{InboundPort, MeshConfig, Protocol, Workload, WorkloadKind};
use policy::{Atom, Clause, EffectivePolicy, EffectiveRule, ObjectName};
use xds::build::{AppAddress, Capture, Inbound, ProxyShape};

use super::serve::Resources;

pub(crate) fn workload(addresses: &[IpAddr]) -> Workload {
    Workload {
        namespace: "foo".into(),
        name: "test".into(),
        kind: WorkloadKind::Pod,
        labels: Arc::default(),
        service_account: "test".into(),
        addresses: addresses.to_vec(),
        named_ports: BTreeMap::new(),
        mutual_tls: true,
        ready: true,
        created: 0,
    }
}

pub(crate) fn redirected() -> ProxyShape {
    ProxyShape { capture: Capture::Nft, inline_policy: false, ipv6: false }
}

/// Without redirection: each of the ports is served by one application.
pub(crate) fn bound(ports: &[InboundPort], app: SocketAddr, inline_policy: bool) -> ProxyShape {
    let address = AppAddress::Tcp { host: app.ip().to_string().into(), port: app.port() };
    let apps = ports.iter().map(|p| (p.port, address.clone())).collect();
    ProxyShape { capture: Capture::None { apps, upstreams: BTreeMap::new() }, inline_policy, ipv6: false }
}

pub(crate) fn ports(ports: &[(u16, Protocol)]) -> Vec<InboundPort> {
    ports.iter().map(|(port, protocol)| InboundPort { port: *port, protocol: *protocol }).collect()
}

/// Own resources, and the outbound ones that every proxy has.
pub(crate) fn own(
    mesh: &MeshConfig,
    workload: &Workload,
    ports: &[InboundPort],
    policy: &EffectivePolicy,
    shape: &ProxyShape,
) -> Resources {
    let providers = BTreeMap::new();
    xds::build::own(&Inbound { mesh, workload, ports, policy, shape, providers: &providers })
}

/// A rule of policy `foo/NAME` that is the AND of clauses with a single atom each.
pub(crate) fn rule(name: &str, permissions: &[Atom], principals: &[Atom]) -> EffectiveRule {
    let branch = |atoms: &[Atom]| {
        let clause = |a: &Atom| Clause { field: "".into(), any: vec![a.clone()], none: vec![] };
        vec![atoms.iter().map(clause).collect()]
    };
    EffectiveRule {
        policy: ObjectName::new("foo", name),
        index: 0,
        permissions: branch(permissions),
        principals: branch(principals),
    }
}
