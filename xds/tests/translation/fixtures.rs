//! Workloads, policies and shapes for tests.

use std::collections::BTreeMap;
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;

use envoy_types::pb::envoy::config::core::v3::{address, socket_address};
use envoy_types::pb::envoy::config::listener::v3::Listener;
use envoy_types::pb::google::protobuf::Any;
use mesh::{InboundPort, Protocol, Workload, WorkloadKind};
use policy::{Atom, Clause, EffectiveRule, ObjectName};
use prost::Message;
use xds::build::{AppAddress, Capture, ProxyShape};
use xds::{Resource, ResourceType};

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
        uid: None,
    }
}

/// Without redirection: each of the ports is served by one application.
pub(crate) fn bound(ports: &[InboundPort], app: SocketAddr, inline_policy: bool) -> ProxyShape {
    let address = AppAddress::Tcp { host: app.ip().to_string().into(), port: app.port() };
    let apps = ports.iter().map(|p| (p.port, address.clone())).collect();
    ProxyShape { capture: Capture::None { apps, upstreams: BTreeMap::new() }, inline_policy, ipv6: false }
}

pub(crate) fn ports(ports: &[(u16, Protocol)]) -> Vec<InboundPort> {
    ports.iter().map(|(port, protocol)| InboundPort { port: *port, protocol: *protocol, app: None }).collect()
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

/// The same resources with the listeners that really bind a wildcard port moved to free ports of `address`.
pub(crate) fn elsewhere(resources: Resources, address: IpAddr) -> Resources {
    move_listeners(resources, address, |listener| listener.bind_to_port.as_ref().is_none_or(|b| b.value)).0
}

/// The same resources with the listeners that only take over redirected connections made to bind a port of `address`, and
/// where each of them then is.
pub(crate) fn bound_for_real(
    resources: Resources,
    address: IpAddr,
) -> (Resources, BTreeMap<String, SocketAddr>) {
    move_listeners(resources, address, |listener| listener.bind_to_port.take().is_some_and(|b| !b.value))
}

fn move_listeners(
    resources: Resources,
    address: IpAddr,
    wanted: impl Fn(&mut Listener) -> bool,
) -> (Resources, BTreeMap<String, SocketAddr>) {
    let mut moved = BTreeMap::new();
    let mut port = 20000;
    let mut edit = |(kind, resource): (ResourceType, Resource)| {
        if kind != ResourceType::Listener {
            return (kind, resource);
        }
        let any = Any::decode(&*resource.any).unwrap();
        let mut listener = Listener::decode(&*any.value).unwrap();
        if !wanted(&mut listener) {
            return (kind, resource);
        }
        let others = listener.additional_addresses.iter_mut().filter_map(|a| a.address.as_mut());
        for at in listener.address.as_mut().into_iter().chain(others) {
            if let Some(address::Address::SocketAddress(socket)) = &mut at.address {
                socket.address = address.to_string();
                socket.port_specifier = Some(socket_address::PortSpecifier::PortValue(port.into()));
                moved.entry(listener.name.clone()).or_insert(SocketAddr::new(address, port));
                port += 1;
            }
        }
        let any = Any { type_url: any.type_url, value: listener.encode_to_vec() };
        (kind, Resource::new(resource.name, any.encode_to_vec().into()))
    };
    let resources = resources.into_iter().map(&mut edit).collect();
    (resources, moved)
}
