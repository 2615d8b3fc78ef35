//! Clusters, inbound and outbound, with auto-mTLS and secure naming (semantics §3.1, §3.5). Endpoints come by EDS.

use std::collections::BTreeSet;

use mesh::{ClientTls, InboundMode, IngressApp, MeshConfig, Originate, Protocol};

use super::encode::{any, one_field};
use super::pb::cluster::cluster::{
    ClusterDiscoveryType, DiscoveryType, EdsClusterConfig, LbConfig, LbPolicy, OriginalDstLbConfig,
    TransportSocketMatch,
};
use super::pb::cluster::{CircuitBreakers, Cluster, circuit_breakers::Thresholds};
use super::pb::core::{
    Address, BindConfig, ExtraSourceAddress, Http1ProtocolOptions, Http2ProtocolOptions, SocketAddress,
    UpstreamHttpProtocolOptions,
};
use super::pb::upstream_http::HttpProtocolOptions;
use super::pb::upstream_http::http_protocol_options::{
    ExplicitHttpConfig, UpstreamProtocolOptions, UseDownstreamHttpConfig,
    explicit_http_config::ProtocolConfig,
};
use super::pb::{ads, core, endpoint, ip_socket, millis, pipe, socket, u32_value};
use super::shape::{AppAddress, Capture};
use super::{OutboundPort, PortTls, tls};

pub(crate) const PASSTHROUGH: &str = "PassthroughCluster";
pub(crate) const BLACKHOLE: &str = "BlackHoleCluster";
pub(crate) const INBOUND_PASSTHROUGH: &str = "InboundPassthroughCluster";
/// Endpoint metadata that chooses a transport socket, and the key and value that mean mesh mTLS.
pub(crate) const SOCKET_MATCH: &str = "envoy.transport_socket_match";
pub(crate) const TLS_MODE: (&str, &str) = ("tlsMode", "istio");

pub(crate) fn inbound_name(port: u16) -> String {
    format!("inbound|{port}||")
}

pub(crate) fn outbound_name(port: u16, hostname: &str) -> String {
    format!("outbound|{port}||{hostname}")
}

/// The cluster for HTTP to a port of undeclared protocol, for a forward proxy: there is no connection whose protocol
/// could be taken over.
pub(crate) fn sniffed_http_name(port: u16, hostname: &str) -> String {
    format!("outbound|{port}|http|{hostname}")
}

/// A declared port of a redirected workload.
pub(crate) fn app(
    mesh: &MeshConfig,
    capture: &Capture,
    port: u16,
    protocol: Protocol,
    app: Option<&IngressApp>,
) -> Cluster {
    let name = inbound_name(port);
    let cluster = match (app, mesh.inbound_mode) {
        (Some(IngressApp::Loopback(at)), _) => fixed(name, Some(ip_socket(at.ip(), at.port()))),
        (Some(IngressApp::Pipe(path)), _) => fixed(name, Some(pipe(path))),
        // The workload's own address is where the connection was going.
        (Some(IngressApp::Own { ipv6: _, port }), _) => {
            let at = OriginalDstLbConfig {
                upstream_port_override: u32_value((*port).into()),
                ..Default::default()
            };
            Cluster { lb_config: Some(LbConfig::OriginalDstLbConfig(at)), ..original_dst(name, capture) }
        }
        (None, InboundMode::Passthrough) => original_dst(name, capture),
        (None, InboundMode::Localhost) => fixed(name, Some(socket("127.0.0.1", port))),
    };
    with_protocol(cluster, protocol, None)
}

/// Every other port of a redirected workload.
pub(crate) fn inbound_passthrough(capture: &Capture) -> Cluster {
    with_protocol(original_dst(INBOUND_PASSTHROUGH.to_owned(), capture), Protocol::Auto, None)
}

/// A port of a workload whose proxy binds it itself. `None`: the application cannot be reached without a loop.
pub(crate) fn bound_app(port: u16, protocol: Protocol, app: Option<&AppAddress>) -> Cluster {
    let name = inbound_name(port);
    let cluster = match app {
        None => fixed(name, None),
        Some(AppAddress::Pipe(path)) => fixed(name, Some(pipe(path))),
        Some(AppAddress::Tcp { host, port }) => {
            let kind = if host.parse::<std::net::IpAddr>().is_ok() {
                DiscoveryType::Static
            } else {
                DiscoveryType::StrictDns
            };
            Cluster {
                cluster_discovery_type: Some(ClusterDiscoveryType::Type(kind as i32)),
                ..fixed(name, Some(socket(host, *port)))
            }
        }
    };
    with_protocol(cluster, protocol, None)
}

/// Wherever the client wanted to go, unencrypted.
pub(crate) fn passthrough() -> Cluster {
    with_protocol(original_dst(PASSTHROUGH.to_owned(), &Capture::Nft), Protocol::Auto, None)
}

/// A cluster without endpoints.
pub(crate) fn blackhole() -> Cluster {
    fixed(BLACKHOLE.to_owned(), None)
}

/// One port of a service.
pub(crate) fn outbound(mesh: &MeshConfig, hostname: &str, port: &OutboundPort) -> Cluster {
    let name = outbound_name(port.port.port, hostname);
    eds(mesh, hostname, port, name, port.port.protocol)
}

/// See [`sniffed_http_name`].
pub(crate) fn sniffed_http(mesh: &MeshConfig, hostname: &str, port: &OutboundPort) -> Cluster {
    eds(mesh, hostname, port, sniffed_http_name(port.port.port, hostname), Protocol::Http)
}

fn eds(mesh: &MeshConfig, hostname: &str, port: &OutboundPort, name: String, protocol: Protocol) -> Cluster {
    let number = port.port.port;
    let Security { transport_socket_matches, transport_socket, http, metadata } =
        security(mesh, hostname, port, protocol);
    let cluster = Cluster {
        cluster_discovery_type: Some(ClusterDiscoveryType::Type(DiscoveryType::Eds as i32)),
        eds_cluster_config: Some(EdsClusterConfig {
            eds_config: ads(),
            service_name: outbound_name(number, hostname),
        }),
        lb_policy: LbPolicy::LeastRequest as i32,
        transport_socket_matches,
        transport_socket,
        metadata,
        ..base(name)
    };
    with_protocol(cluster, protocol, http)
}

/// The parts of a cluster that say how its endpoints are spoken to.
#[derive(Default)]
struct Security {
    transport_socket_matches: Vec<TransportSocketMatch>,
    transport_socket: Option<core::TransportSocket>,
    /// What is taken from each request.
    http: Option<UpstreamHttpProtocolOptions>,
    metadata: Option<core::Metadata>,
}

/// Semantics §3.5, row by row. Headless services have clusters like all others here, so that their row is not needed.
fn security(mesh: &MeshConfig, hostname: &str, port: &OutboundPort, protocol: Protocol) -> Security {
    let own_sni = || format!("outbound_.{}_._.{hostname}", port.port.port);
    let mutual = |sni: &str, names: &[String]| {
        if names.is_empty() {
            tls::upstream(mesh, sni, protocol, &identities(mesh, &port.identities))
        } else {
            tls::upstream_to(mesh, sni, protocol, names)
        }
    };
    match &port.tls {
        PortTls::Auto if mesh.enable_auto_mtls => Security {
            transport_socket_matches: vec![
                TransportSocketMatch {
                    name: "tlsMode-istio".to_owned(),
                    r#match: Some(one_field(TLS_MODE.0, TLS_MODE.1)),
                    transport_socket: Some(mutual(&own_sni(), &[])),
                },
                TransportSocketMatch {
                    name: "tlsMode-disabled".to_owned(),
                    r#match: Some(Default::default()),
                    transport_socket: Some(tls::raw_buffer()),
                },
            ],
            ..Security::default()
        },
        PortTls::Auto | PortTls::Plaintext | PortTls::Told(ClientTls::Disable) => Security::default(),
        PortTls::Told(ClientTls::IstioMutual { sni, subject_alt_names }) => {
            let sni = if sni.is_empty() { own_sni() } else { sni.clone() };
            Security { transport_socket: Some(mutual(&sni, subject_alt_names)), ..Security::default() }
        }
        PortTls::Told(ClientTls::Originate(originate)) => Security {
            transport_socket: Some(tls::originate(originate, protocol)),
            http: from_request(originate),
            metadata: Some(keep_alpn()),
            ..Security::default()
        },
        // It has no endpoints either; no certificate would be good enough.
        PortTls::Told(ClientTls::Refuse) => Security {
            transport_socket: Some(tls::upstream(mesh, &own_sni(), protocol, &[])),
            ..Security::default()
        },
    }
}

/// The host that is asked for becomes the SNI, and the name in the certificate, where the rule names none.
fn from_request(originate: &Originate) -> Option<UpstreamHttpProtocolOptions> {
    let auto_sni = originate.sni.is_empty();
    let auto_san_validation = auto_sni && originate.verify && originate.subject_alt_names.is_empty();
    auto_sni.then(|| UpstreamHttpProtocolOptions { auto_sni, auto_san_validation, ..Default::default() })
}

/// Read by Istio's ALPN filter: the server is none of the mesh.
fn keep_alpn() -> core::Metadata {
    core::Metadata {
        filter_metadata: [("istio".to_owned(), one_field("alpn_override", "false"))].into(),
        ..Default::default()
    }
}

/// Every identity in the trust domain and its aliases, sorted; one of a foreign trust domain stays as it is.
fn identities(mesh: &MeshConfig, identities: &[String]) -> Vec<String> {
    let domains = mesh.trust_domains();
    let mut all = BTreeSet::new();
    for id in identities {
        match id.strip_prefix("spiffe://").and_then(|rest| rest.split_once('/')) {
            Some((td, path)) if domains.iter().any(|d| **d == *td) => {
                all.extend(domains.iter().map(|d| format!("spiffe://{d}/{path}")));
            }
            _ => drop(all.insert(id.clone())),
        }
    }
    all.into_iter().collect()
}

fn base(name: String) -> Cluster {
    let no_limit = u32_value(u32::MAX);
    Cluster {
        name,
        connect_timeout: millis(10_000),
        circuit_breakers: Some(CircuitBreakers {
            thresholds: vec![Thresholds {
                max_connections: no_limit,
                max_pending_requests: no_limit,
                max_requests: no_limit,
                max_retries: no_limit,
                ..Default::default()
            }],
            ..Default::default()
        }),
        ..Default::default()
    }
}

fn fixed(name: String, address: Option<Address>) -> Cluster {
    let load_assignment = address.map(|address| endpoint::ClusterLoadAssignment {
        cluster_name: name.clone(),
        endpoints: vec![endpoint::LocalityLbEndpoints {
            lb_endpoints: vec![super::endpoint::at(address)],
            ..Default::default()
        }],
        ..Default::default()
    });
    Cluster {
        cluster_discovery_type: Some(ClusterDiscoveryType::Type(DiscoveryType::Static as i32)),
        load_assignment,
        ..base(name)
    }
}

fn original_dst(name: String, capture: &Capture) -> Cluster {
    Cluster {
        cluster_discovery_type: Some(ClusterDiscoveryType::Type(DiscoveryType::OriginalDst as i32)),
        lb_policy: LbPolicy::ClusterProvided as i32,
        upstream_bind_config: (*capture == Capture::Redirect).then(marked_source),
        ..base(name)
    }
}

/// The source addresses that Istio's own iptables rules let through to the application.
fn marked_source() -> BindConfig {
    let source = |ip: &str| {
        let ip = ip.parse().expect("an address");
        match ip_socket(ip, 0).address {
            Some(core::address::Address::SocketAddress(socket)) => socket,
            _ => SocketAddress::default(),
        }
    };
    BindConfig {
        source_address: Some(source("127.0.0.6")),
        extra_source_addresses: vec![ExtraSourceAddress {
            address: Some(source("::6")),
            ..Default::default()
        }],
        ..Default::default()
    }
}

/// `http`: what is taken from each request, where the port has requests.
fn with_protocol(
    mut cluster: Cluster,
    protocol: Protocol,
    http: Option<UpstreamHttpProtocolOptions>,
) -> Cluster {
    let http1 = Some(Http1ProtocolOptions::default());
    let http2 = Some(Http2ProtocolOptions::default());
    let explicit = |config| {
        UpstreamProtocolOptions::ExplicitHttpConfig(ExplicitHttpConfig { protocol_config: Some(config) })
    };
    let options = match protocol {
        Protocol::Tcp => return cluster,
        Protocol::Http if http.is_none() => return cluster,
        Protocol::Http => explicit(ProtocolConfig::HttpProtocolOptions(Http1ProtocolOptions::default())),
        Protocol::Http2 => explicit(ProtocolConfig::Http2ProtocolOptions(Http2ProtocolOptions::default())),
        Protocol::Auto => UpstreamProtocolOptions::UseDownstreamProtocolConfig(UseDownstreamHttpConfig {
            http_protocol_options: http1,
            http2_protocol_options: http2,
            ..Default::default()
        }),
    };
    let options = HttpProtocolOptions {
        upstream_http_protocol_options: http,
        upstream_protocol_options: Some(options),
        ..Default::default()
    };
    let key = "envoy.extensions.upstreams.http.v3.HttpProtocolOptions";
    cluster.typed_extension_protocol_options = [(key.to_owned(), any(&options))].into();
    cluster
}
