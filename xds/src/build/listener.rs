//! Inbound listeners: the one that redirected connections arrive at (semantics §3.1, §3.2), or one for each port where
//! the proxy binds the workload's ports itself. What a chain does is decided in `chains`.

use std::collections::{BTreeMap, BTreeSet};

use envoy_types::pb::envoy::extensions::filters::listener::http_inspector::v3::HttpInspector;
use envoy_types::pb::envoy::extensions::filters::listener::original_dst::v3::OriginalDst;
use envoy_types::pb::envoy::extensions::filters::listener::tls_inspector::v3::TlsInspector;
use envoy_types::pb::envoy::r#type::v3::Int32Range;
use mesh::{Log, MeshConfig, Protocol};
use policy::MtlsMode;
use policy::matcher::Atom;

use super::chains::{Parts, Port, proxy};
use super::encode::any;
use super::pb::listener::listener_filter_chain_match_predicate::{MatchSet, Rule};
use super::pb::listener::{
    AdditionalAddress, FilterChain, FilterChainMatch, Listener, ListenerFilter,
    ListenerFilterChainMatchPredicate, listener_filter,
};
use super::pb::{Any, bool_value, core, ip_socket, millis, socket, u32_value};
use super::{Inbound, access_log, cluster};

/// Where redirected inbound connections arrive.
pub(crate) const INBOUND_PORT: u16 = 15006;
/// Where redirected outbound connections arrive, and where a forward proxy listens.
pub(crate) const OUTBOUND_PORT: u16 = 15001;

/// A port with chains of its own.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct OwnPort {
    pub(crate) port: u16,
    pub(crate) protocol: Protocol,
    pub(crate) mode: MtlsMode,
    /// A Service names it.
    pub(crate) declared: bool,
}

/// The declared ports and those that PeerAuthentication singles out, ascending.
pub(crate) fn own_ports(inbound: &Inbound<'_>) -> Vec<OwnPort> {
    let mut ports = BTreeMap::new();
    for port in inbound.ports {
        ports.entry(port.port).or_insert((port.protocol, true));
    }
    for port in inbound.policy.mtls.ports.keys() {
        ports.entry(*port).or_insert((Protocol::Auto, false));
    }
    if !inbound.shape.captured() {
        for port in policy_ports(inbound) {
            ports.entry(port).or_insert((Protocol::Auto, false));
        }
    }
    let reserved = if inbound.shape.captured() { INBOUND_PORT } else { OUTBOUND_PORT };
    let usable = ports.into_iter().filter(|(port, _)| *port != 0 && *port != reserved);
    usable
        .map(|(port, (protocol, declared))| OwnPort {
            port,
            protocol,
            mode: inbound.policy.mtls.port(port),
            declared,
        })
        .collect()
}

/// Ports that some attached rule names: without redirection only ports that are known can be bound.
fn policy_ports(inbound: &Inbound<'_>) -> BTreeSet<u16> {
    let policy = inbound.policy;
    let actions = [&policy.audit, &policy.deny, &policy.allow].into_iter().chain(policy.custom.values());
    let rules = actions.flat_map(|a| a.enforced.iter().chain(&a.shadow)).flatten();
    let clauses = rules.flat_map(|rule| rule.permissions.iter().flatten());
    let atoms = clauses.flat_map(|clause| clause.any.iter().chain(&clause.none));
    atoms
        .filter_map(|atom| match atom {
            Atom::Port(port) => Some(*port),
            _ => None,
        })
        .collect()
}

/// The listener for redirected connections.
pub(crate) fn virtual_inbound(inbound: &Inbound<'_>, ports: &[OwnPort]) -> Listener {
    let (mesh, parts) = (inbound.mesh, Parts::new(inbound));
    let mut chains = vec![blackhole(inbound.logs, "virtualInbound-blackhole", INBOUND_PORT)];
    chains.extend(parts.chains(&Port {
        name: "virtualInbound",
        stat_prefix: cluster::INBOUND_PASSTHROUGH,
        cluster: cluster::INBOUND_PASSTHROUGH,
        matched_port: None,
        protocol: Protocol::Auto,
        mode: inbound.policy.mtls.mode,
    }));
    for own in ports {
        let app = cluster::inbound_name(own.port);
        chains.extend(parts.chains(&Port {
            name: &format!("inbound_{}", own.port),
            stat_prefix: &format!("inbound_0.0.0.0_{};", own.port),
            cluster: if own.declared { &app } else { cluster::INBOUND_PASSTHROUGH },
            matched_port: Some(own.port),
            protocol: own.protocol,
            mode: own.mode,
        }));
    }
    let mut filters = vec![original_dst()];
    filters.extend(inspectors(inbound.policy.mtls.mode, ports));
    Listener {
        name: "virtualInbound".to_owned(),
        address: Some(socket("0.0.0.0", INBOUND_PORT)),
        additional_addresses: wildcard_ipv6(inbound.shape.ipv6, INBOUND_PORT),
        filter_chains: chains,
        listener_filters: filters,
        ..inbound_listener(mesh, inbound.logs)
    }
}

/// One listener on the workload's own addresses for each port; none for a workload without an address.
pub(crate) fn bound_inbound(inbound: &Inbound<'_>, ports: &[OwnPort]) -> Vec<Listener> {
    let [first, others @ ..] = &*inbound.workload.addresses else { return Vec::new() };
    let (mesh, parts) = (inbound.mesh, Parts::new(inbound));
    let listener = |own: &OwnPort| {
        let app = cluster::inbound_name(own.port);
        let name = format!("inbound_{}", own.port);
        let chains = parts.chains(&Port {
            name: &name,
            stat_prefix: &format!("inbound_0.0.0.0_{};", own.port),
            cluster: &app,
            matched_port: None,
            protocol: own.protocol,
            mode: own.mode,
        });
        let tls = (own.mode != MtlsMode::Disable).then(|| tls_inspector(None));
        let http = (own.protocol == Protocol::Auto).then(|| http_inspector(None));
        let others = others
            .iter()
            .map(|ip| AdditionalAddress { address: Some(ip_socket(*ip, own.port)), ..Default::default() });
        Listener {
            name,
            address: Some(ip_socket(*first, own.port)),
            additional_addresses: others.collect(),
            filter_chains: chains,
            listener_filters: tls.into_iter().chain(http).collect(),
            // A process of the same user could otherwise share the port, and half of the connections with it.
            enable_reuse_port: bool_value(false),
            ..inbound_listener(mesh, inbound.logs)
        }
    };
    ports.iter().map(listener).collect()
}

pub(crate) fn inbound_listener(mesh: &MeshConfig, logs: &[Log]) -> Listener {
    Listener {
        traffic_direction: core::TrafficDirection::Inbound as i32,
        listener_filters_timeout: millis(mesh.protocol_detection_timeout_ms),
        continue_on_listener_filters_timeout: true,
        access_log: access_log::rejected(logs),
        ..Default::default()
    }
}

/// The same port on `[::]`.
pub(crate) fn wildcard_ipv6(wanted: bool, port: u16) -> Vec<AdditionalAddress> {
    let address = AdditionalAddress { address: Some(socket("::", port)), ..Default::default() };
    if wanted { vec![address] } else { Vec::new() }
}

/// Drops connections to the listener's own port: they were not redirected, or would go round in a circle.
pub(crate) fn blackhole(logs: &[Log], name: &str, port: u16) -> FilterChain {
    FilterChain {
        name: name.to_owned(),
        filter_chain_match: Some(FilterChainMatch {
            destination_port: u32_value(port.into()),
            ..Default::default()
        }),
        filters: vec![proxy(logs, cluster::BLACKHOLE)],
        ..Default::default()
    }
}

/// Which ports are looked into, in terms that do not change between PERMISSIVE and STRICT: a change of listener filters would
/// drain every connection of the workload, a change of chains only those on them. Under STRICT an HTTP inspector
/// finds nothing that a chain would match.
fn inspectors(default: MtlsMode, ports: &[OwnPort]) -> Vec<ListenerFilter> {
    let disabled = |mode: MtlsMode| mode == MtlsMode::Disable;
    let some = |wanted: &dyn Fn(&OwnPort) -> bool| {
        ports.iter().filter(|p| wanted(p)).map(|p| p.port).collect::<Vec<_>>()
    };
    let mut filters = Vec::new();
    if !disabled(default) {
        filters.push(tls_inspector(port_is(&some(&|p| disabled(p.mode)))));
    } else if let Some(enabled) = port_is(&some(&|p| !disabled(p.mode))) {
        filters.push(tls_inspector(Some(predicate(Rule::NotMatch(Box::new(enabled))))));
    }
    filters.push(http_inspector(port_is(&some(&|p| p.protocol != Protocol::Auto))));
    filters
}

fn port_is(ports: &[u16]) -> Option<ListenerFilterChainMatchPredicate> {
    let range = |port: &u16| {
        let start = i32::from(*port);
        predicate(Rule::DestinationPortRange(Int32Range { start, end: start + 1 }))
    };
    match ports {
        [] => None,
        [port] => Some(range(port)),
        _ => Some(predicate(Rule::OrMatch(MatchSet { rules: ports.iter().map(range).collect() }))),
    }
}

fn predicate(rule: Rule) -> ListenerFilterChainMatchPredicate {
    ListenerFilterChainMatchPredicate { rule: Some(rule) }
}

fn original_dst() -> ListenerFilter {
    filter("envoy.filters.listener.original_dst", any(&OriginalDst {}), None)
}

pub(crate) fn tls_inspector(disabled: Option<ListenerFilterChainMatchPredicate>) -> ListenerFilter {
    filter("envoy.filters.listener.tls_inspector", any(&TlsInspector::default()), disabled)
}

pub(crate) fn http_inspector(disabled: Option<ListenerFilterChainMatchPredicate>) -> ListenerFilter {
    filter("envoy.filters.listener.http_inspector", any(&HttpInspector {}), disabled)
}

fn filter(name: &str, config: Any, disabled: Option<ListenerFilterChainMatchPredicate>) -> ListenerFilter {
    ListenerFilter {
        name: name.to_owned(),
        filter_disabled: disabled,
        config_type: Some(listener_filter::ConfigType::TypedConfig(config)),
    }
}
