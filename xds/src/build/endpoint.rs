//! Endpoints of a service port and which of them speak mesh mTLS.

use mesh::ClientTls;

use super::cluster::{SOCKET_MATCH, TLS_MODE, outbound_name};
use super::encode::one_field;
use super::pb::endpoint::{
    ClusterLoadAssignment, Endpoint, LbEndpoint, LocalityLbEndpoints, lb_endpoint::HostIdentifier,
};
use super::pb::{core, ip_socket, u32_value};
use super::{OutboundEndpoint, OutboundPort, PortTls};

/// The load assignment of one port, sorted and without duplicates. An endpoint that is listed both with and without
/// mTLS has it. Where a DestinationRule speaks of TLS, all or none of them have it (semantics §3.5); where nothing may be
/// sent, there are none.
pub(crate) fn assignment(hostname: &str, port: &OutboundPort) -> ClusterLoadAssignment {
    let mut endpoints: Vec<&OutboundEndpoint> = port.endpoints.iter().collect();
    endpoints.sort_by_key(|e| (e.address, e.port, !e.mutual_tls));
    endpoints.dedup_by_key(|e| (e.address, e.port));
    let told = match &port.tls {
        PortTls::Auto | PortTls::Plaintext => None,
        PortTls::Told(ClientTls::IstioMutual { .. }) => Some(true),
        PortTls::Told(ClientTls::Disable | ClientTls::Originate(_)) => Some(false),
        PortTls::Told(ClientTls::Refuse) => {
            endpoints.clear();
            Some(true)
        }
    };
    let lb_endpoints: Vec<LbEndpoint> = endpoints
        .into_iter()
        .map(|e| LbEndpoint {
            metadata: told.unwrap_or(e.mutual_tls).then(mutual_tls),
            ..at(ip_socket(e.address, e.port))
        })
        .collect();
    let locality =
        LocalityLbEndpoints { lb_endpoints, load_balancing_weight: u32_value(1), ..Default::default() };
    ClusterLoadAssignment {
        cluster_name: outbound_name(port.port.port, hostname),
        endpoints: if locality.lb_endpoints.is_empty() { Vec::new() } else { vec![locality] },
        ..Default::default()
    }
}

/// An endpoint at `address`.
pub(crate) fn at(address: core::Address) -> LbEndpoint {
    LbEndpoint {
        host_identifier: Some(HostIdentifier::Endpoint(Endpoint {
            address: Some(address),
            ..Default::default()
        })),
        ..Default::default()
    }
}

fn mutual_tls() -> core::Metadata {
    core::Metadata {
        filter_metadata: [(SOCKET_MATCH.to_owned(), one_field(TLS_MODE.0, TLS_MODE.1))].into(),
        ..Default::default()
    }
}
