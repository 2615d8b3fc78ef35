//! What is different about a service of a ServiceEntry: how its addresses are found, and how its TLS hosts are told apart
//! where they have no address. What is spoken to them is decided where every cluster's is.

use std::collections::{BTreeMap, BTreeSet};

use mesh::{Entry, Resolution};

use super::chains::proxy;
use super::listener::{tls_inspector, wildcard_ipv6};
use super::outbound::{chain, outbound_listener, usable};
use super::pb::cluster::Cluster;
use super::pb::cluster::cluster::{ClusterDiscoveryType, DiscoveryType, DnsLookupFamily, LbPolicy};
use super::pb::endpoint::ClusterLoadAssignment;
use super::pb::listener::{FilterChain, FilterChainMatch, Listener};
use super::pb::{bool_value, socket};
use super::{Outbound, cluster};

/// Makes `cluster`, whose endpoints come by EDS, find them as the entry says.
pub(crate) fn resolve(cluster: &mut Cluster, entry: &Entry, assignment: &ClusterLoadAssignment) {
    let kind = match entry.resolution {
        Resolution::Static => return,
        Resolution::None => DiscoveryType::OriginalDst,
        Resolution::Dns => DiscoveryType::StrictDns,
    };
    cluster.cluster_discovery_type = Some(ClusterDiscoveryType::Type(kind as i32));
    cluster.eds_cluster_config = None;
    if entry.resolution == Resolution::None {
        cluster.lb_policy = LbPolicy::ClusterProvided as i32;
    } else {
        let cluster_name = cluster.name.clone();
        cluster.load_assignment = Some(ClusterLoadAssignment { cluster_name, ..assignment.clone() });
        cluster.dns_lookup_family = DnsLookupFamily::V4Preferred as i32;
    }
}

/// A listener for each port number of TLS hosts that have no address: the name that the client asks for says which one it
/// is. What asks for another name, or for none, goes where connections to nobody go. A number that HTTP is spoken at
/// has a listener already.
pub(crate) fn by_sni(outbound: &Outbound<'_>, http_ports: &BTreeSet<u16>) -> Vec<Listener> {
    let mut ports: BTreeMap<u16, BTreeMap<&str, FilterChain>> = BTreeMap::new();
    for service in outbound.services {
        let Some(entry) = &service.service.entry else { continue };
        if entry.resolution == Resolution::Static || !service.service.cluster_ips.is_empty() {
            continue;
        }
        let host = &*service.service.hostname;
        let numbers = service.ports.iter().map(|port| port.port.port);
        let wanted = |number: &u16| {
            entry.sni_ports.contains(number) && !http_ports.contains(number) && usable(*number)
        };
        for number in numbers.filter(wanted) {
            let target = cluster::outbound_name(number, host);
            let chain = FilterChain {
                filter_chain_match: Some(FilterChainMatch {
                    server_names: vec![host.to_owned()],
                    ..Default::default()
                }),
                ..chain(&format!("0.0.0.0_{number}_{host}"), vec![proxy(outbound.logs, &target)])
            };
            ports.entry(number).or_default().insert(host, chain);
        }
    }
    let rest = if outbound.allow_any { cluster::PASSTHROUGH } else { cluster::BLACKHOLE };
    let listener = |(number, chains): (u16, BTreeMap<&str, FilterChain>)| {
        let name = format!("0.0.0.0_{number}");
        Listener {
            address: Some(socket("0.0.0.0", number)),
            additional_addresses: wildcard_ipv6(outbound.shape.ipv6, number),
            bind_to_port: bool_value(false),
            filter_chains: chains.into_values().collect(),
            default_filter_chain: Some(chain(&format!("{name}_rest"), vec![proxy(outbound.logs, rest)])),
            listener_filters: vec![tls_inspector(None)],
            continue_on_listener_filters_timeout: true,
            name,
            ..outbound_listener()
        }
    };
    ports.into_iter().map(listener).collect()
}
