//! Outbound listeners: for redirected connections, or for a client that addresses its proxy. No policy stands here
//! (semantics §10.17): a client's proxy can be gone round, the server's cannot.

use std::collections::{BTreeMap, BTreeSet};
use std::net::{IpAddr, SocketAddr};

use envoy_types::pb::envoy::extensions::filters::common::set_filter_state::v3::{
    FilterStateValue, filter_state_value,
};
use envoy_types::pb::envoy::extensions::filters::network::set_filter_state::v3::Config as SetFilterState;
use mesh::{ClientTls, Log, MeshConfig, Protocol};

use super::chains::{PLAIN_HTTP, proxy};
use super::encode::any;
use super::listener::{INBOUND_PORT, OUTBOUND_PORT, blackhole, http_inspector, wildcard_ipv6};
use super::pb::hcm::http_connection_manager::RouteSpecifier;
use super::pb::listener::{Filter, FilterChain, FilterChainMatch, Listener};
use super::pb::{bool_value, core, ip_socket, millis, network_filter, socket};
use super::shape::Upstream;
use super::{Outbound, OutboundPort, OutboundService, PortTls, cluster, hcm, route, tls};

/// Route configuration of the forward listener.
pub(crate) const FORWARD: &str = "forward";

/// Takes every redirected connection and hands it to the listener of its destination, or lets it pass.
pub(crate) fn virtual_outbound(outbound: &Outbound<'_>) -> Listener {
    let rest = if outbound.allow_any { cluster::PASSTHROUGH } else { cluster::BLACKHOLE };
    Listener {
        name: "virtualOutbound".to_owned(),
        address: Some(socket("0.0.0.0", OUTBOUND_PORT)),
        additional_addresses: wildcard_ipv6(outbound.shape.ipv6, OUTBOUND_PORT),
        use_original_dst: bool_value(true),
        filter_chains: vec![
            blackhole(outbound.logs, "virtualOutbound-blackhole", OUTBOUND_PORT),
            chain("virtualOutbound-catchall-tcp", vec![proxy(outbound.logs, rest)]),
        ],
        ..outbound_listener()
    }
}

/// The numbers of the declared HTTP ports.
pub(crate) fn http_ports(services: &[&OutboundService]) -> BTreeSet<u16> {
    let ports = services.iter().flat_map(|s| &s.ports).map(|p| &p.port);
    ports.filter(|p| p.protocol.is_http() && usable(p.port)).map(|p| p.port).collect()
}

/// Every destination with this port number that has no listener of its own.
pub(crate) fn http(outbound: &Outbound<'_>, port: u16) -> Listener {
    let stats = format!("outbound_0.0.0.0_{port};");
    let manager = hcm::outbound(outbound.mesh, outbound.logs, stats, hcm::rds(&port.to_string()));
    let name = format!("0.0.0.0_{port}");
    Listener {
        address: Some(socket("0.0.0.0", port)),
        additional_addresses: wildcard_ipv6(outbound.shape.ipv6, port),
        bind_to_port: bool_value(false),
        filter_chains: vec![chain(&name, vec![manager])],
        name,
        ..outbound_listener()
    }
}

/// The listeners of one service's TCP and undeclared ports: at its cluster IPs, or else at each endpoint.
pub(crate) fn tcp(mesh: &MeshConfig, logs: &[Log], service: &OutboundService) -> Vec<Listener> {
    let mut listeners = BTreeMap::new();
    for port in service.ports.iter().filter(|p| !p.port.protocol.is_http() && usable(p.port.port)) {
        let number = port.port.port;
        let target = cluster::outbound_name(number, &service.service.hostname);
        let mut addresses: BTreeSet<IpAddr> = service.service.cluster_ips.iter().copied().collect();
        if addresses.is_empty() {
            addresses = port.endpoints.iter().map(|e| e.address).collect();
        }
        for address in addresses {
            let at = SocketAddr::new(address, number);
            listeners.entry(at).or_insert_with(|| tcp_at(mesh, logs, at, &target, port));
        }
    }
    listeners.into_values().collect()
}

fn tcp_at(mesh: &MeshConfig, logs: &[Log], at: SocketAddr, target: &str, port: &OutboundPort) -> Listener {
    let name = format!("{}_{}", at.ip(), at.port());
    let mut chains = Vec::new();
    let mut inspectors = Vec::new();
    if port.port.protocol == Protocol::Auto {
        // A server outside of the mesh is offered nothing that only the mesh knows.
        let ours = !matches!(port.tls, PortTls::Told(ClientTls::Originate(_)));
        inspectors.push(http_inspector(None));
        let alpns = [tls::upstream_alpn(Protocol::Http), tls::upstream_alpn(Protocol::Http2)];
        for (seen, alpn) in PLAIN_HTTP.into_iter().zip(alpns) {
            let routes = RouteSpecifier::RouteConfig(route::single(target, target));
            let manager = hcm::outbound(mesh, logs, format!("outbound_{name};"), routes);
            chains.push(FilterChain {
                filter_chain_match: Some(FilterChainMatch {
                    application_protocols: vec![seen.to_owned()],
                    ..Default::default()
                }),
                ..chain(
                    &format!("{name}_{seen}"),
                    ours.then(|| offer(alpn)).into_iter().chain([manager]).collect(),
                )
            });
        }
    }
    chains.push(chain(&format!("{name}_tcp"), vec![proxy(logs, target)]));
    Listener {
        name,
        address: Some(ip_socket(at.ip(), at.port())),
        bind_to_port: bool_value(false),
        filter_chains: chains,
        listener_filters: inspectors,
        listener_filters_timeout: millis(mesh.protocol_detection_timeout_ms),
        continue_on_listener_filters_timeout: true,
        ..outbound_listener()
    }
}

/// Makes connections of this chain offer `alpn` upstream: what a cluster of undeclared protocol cannot know.
fn offer(alpn: &[&str]) -> Filter {
    let format = core::SubstitutionFormatString {
        format: Some(core::substitution_format_string::Format::TextFormatSource(core::DataSource {
            specifier: Some(core::data_source::Specifier::InlineString(alpn.join(","))),
            ..Default::default()
        })),
        ..Default::default()
    };
    let value = FilterStateValue {
        key: Some(filter_state_value::Key::ObjectKey("envoy.network.application_protocols".to_owned())),
        value: Some(filter_state_value::Value::FormatString(format)),
        shared_with_upstream: filter_state_value::SharedWithUpstream::Once as i32,
        ..Default::default()
    };
    let config = SetFilterState { on_new_connection: vec![value], ..Default::default() };
    network_filter("envoy.filters.network.set_filter_state", any(&config))
}

/// The HTTP forward listener of a proxy without redirection; `None` for a workload without an address.
pub(crate) fn forward(outbound: &Outbound<'_>) -> Option<Listener> {
    let address = outbound.addresses.first()?;
    let manager =
        hcm::outbound(outbound.mesh, outbound.logs, "outbound_forward;".to_owned(), hcm::rds(FORWARD));
    Some(Listener {
        name: FORWARD.to_owned(),
        address: Some(ip_socket(*address, OUTBOUND_PORT)),
        filter_chains: vec![chain(FORWARD, vec![manager])],
        ..outbound_listener()
    })
}

/// A local listener for each TCP service that a proxy without redirection asks for. One whose service does not exist,
/// or whose address another entry has, is left out: connections are refused.
pub(crate) fn upstreams(outbound: &Outbound<'_>, wanted: &BTreeMap<Upstream, SocketAddr>) -> Vec<Listener> {
    let mut taken = BTreeSet::new();
    let listener = |(Upstream { host, port }, at): (&Upstream, &SocketAddr)| {
        let named = |s: &&&OutboundService| {
            s.ports.iter().any(|p| p.port.port == *port)
                && route::names(&s.service, outbound.namespace).iter().any(|name| **name == **host)
        };
        let service = outbound.services.iter().filter(named).min_by_key(|s| &s.service.hostname);
        let Some(service) = service else {
            tracing::warn!(%host, port, "COUNTERSIGN_UPSTREAMS names a service that does not exist");
            return None;
        };
        let target = cluster::outbound_name(*port, &service.service.hostname);
        let name = format!("upstream_{at}");
        taken.insert(*at).then(|| Listener {
            address: Some(ip_socket(at.ip(), at.port())),
            filter_chains: vec![chain(&name, vec![proxy(outbound.logs, &target)])],
            name,
            ..outbound_listener()
        })
    };
    wanted.iter().filter_map(listener).collect()
}

/// Not one of our own ports: a listener there would be a duplicate.
fn usable(port: u16) -> bool {
    port != 0 && port != OUTBOUND_PORT && port != INBOUND_PORT
}

fn chain(name: &str, filters: Vec<Filter>) -> FilterChain {
    FilterChain { name: name.to_owned(), filters, ..Default::default() }
}

fn outbound_listener() -> Listener {
    Listener { traffic_direction: core::TrafficDirection::Outbound as i32, ..Default::default() }
}
