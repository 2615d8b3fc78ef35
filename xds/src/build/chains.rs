//! The filter chains of one inbound port: which bytes are taken, whether mTLS is terminated, HTTP or TCP
//! (semantics §3.2). The same for redirected and for bound listeners; what differs is the match on the port.

use mesh::{ExtAuthz, Log, MeshConfig, Protocol};
use policy::{EffectiveMtls, EffectivePolicy, MtlsMode};

use super::encode::{Kind, ListValue, Struct, Value, any};
use super::pb::{core, hcm as hcm_pb, listener, network_filter, tcp_proxy, u32_value};
use super::slots::{http_filters, slots};
use super::{Inbound, Provider, access_log, ext_authz, hcm, rbac, route, tls};
use listener::{Filter, FilterChain, FilterChainMatch};

const TCP_PROXY: &str = "envoy.filters.network.tcp_proxy";

/// What plaintext HTTP looks like to the HTTP inspector.
pub(crate) const PLAIN_HTTP: [&str; 2] = ["http/1.1", "h2c"];

/// Everything that the chains of one workload have in common, made once.
#[derive(Debug)]
pub(crate) struct Parts<'a> {
    mesh: &'a MeshConfig,
    logs: &'a [Log],
    http_filters: Vec<hcm_pb::HttpFilter>,
    tcp_filters: Vec<Filter>,
    mtls_http: core::TransportSocket,
    mtls_tcp: core::TransportSocket,
    drain: Option<core::Metadata>,
}

/// One port, or (without `matched_port`) every other.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Port<'a> {
    /// Prefix of the chains' names.
    pub(crate) name: &'a str,
    pub(crate) stat_prefix: &'a str,
    pub(crate) cluster: &'a str,
    pub(crate) matched_port: Option<u16>,
    pub(crate) protocol: Protocol,
    pub(crate) mode: MtlsMode,
}

/// A row of the matrix.
struct Row {
    kind: &'static str,
    /// The transport protocol that is matched: TLS bytes or anything else.
    tls: bool,
    alpn: Vec<&'static str>,
    http: bool,
    terminates: bool,
}

fn rows(protocol: Protocol, mode: MtlsMode) -> Vec<Row> {
    let all = || [tls::ALPN_HTTP.as_slice(), &tls::ALPN_TCP].concat();
    let row = |kind, tls, alpn, http, terminates| Row { kind, tls, alpn, http, terminates };
    let mtls_http = |alpn| row("mtls-http", true, alpn, true, true);
    let mtls_tcp = |alpn| row("mtls-tcp", true, alpn, false, true);
    let plain_http = |alpn| row("http", false, alpn, true, false);
    let plain_tcp = || row("tcp", false, vec![], false, false);
    let opaque_tls = || row("tls-tcp", true, vec![], false, false);
    match (protocol, mode) {
        (Protocol::Http | Protocol::Http2, MtlsMode::Strict) => vec![mtls_http(vec![])],
        (Protocol::Http | Protocol::Http2, MtlsMode::Permissive) => {
            vec![mtls_http(all()), plain_http(vec![])]
        }
        (Protocol::Http | Protocol::Http2, MtlsMode::Disable) => vec![plain_http(vec![])],
        (Protocol::Tcp, MtlsMode::Strict) => vec![mtls_tcp(vec![])],
        (Protocol::Tcp, MtlsMode::Permissive) => vec![mtls_tcp(all()), opaque_tls(), plain_tcp()],
        (Protocol::Tcp, MtlsMode::Disable) => vec![plain_tcp()],
        (Protocol::Auto, MtlsMode::Strict) => vec![mtls_http(tls::ALPN_HTTP.to_vec()), mtls_tcp(vec![])],
        (Protocol::Auto, MtlsMode::Permissive) => vec![
            mtls_http(tls::ALPN_HTTP.to_vec()),
            plain_http(PLAIN_HTTP.to_vec()),
            mtls_tcp(tls::ALPN_TCP.to_vec()),
            plain_tcp(),
            opaque_tls(),
        ],
        (Protocol::Auto, MtlsMode::Disable) => vec![plain_http(PLAIN_HTTP.to_vec()), plain_tcp()],
    }
}

impl<'a> Parts<'a> {
    pub(crate) fn new(inbound: &Inbound<'a>) -> Self {
        let mesh = inbound.mesh;
        Self {
            mesh,
            logs: inbound.logs,
            http_filters: http_filters(&slots(inbound), inbound.shape.inline_policy),
            tcp_filters: tcp_filters(inbound),
            mtls_http: tls::downstream(mesh, true),
            mtls_tcp: tls::downstream(mesh, false),
            drain: drain(inbound),
        }
    }

    pub(crate) fn logs(&self) -> &[Log] {
        self.logs
    }

    /// The complete set for `port`: a chain for a port hides the chains for all ports (semantics §3.1).
    pub(crate) fn chains(&self, port: &Port<'_>) -> Vec<FilterChain> {
        rows(port.protocol, port.mode).into_iter().map(|row| self.chain(port, row)).collect()
    }

    fn chain(&self, port: &Port<'_>, row: Row) -> FilterChain {
        let Row { kind, tls, alpn, http, terminates } = row;
        let filters = if http {
            let stats = port.stat_prefix.to_owned();
            vec![hcm::inbound(
                self.mesh,
                self.logs,
                stats,
                self.http_filters.clone(),
                route::inbound(port.cluster),
            )]
        } else {
            let mut filters = self.tcp_filters.clone();
            filters.push(if terminates {
                authenticated_proxy(self.logs, port.cluster)
            } else {
                proxy(self.logs, port.cluster)
            });
            filters
        };
        let transport_socket =
            terminates.then(|| if http { self.mtls_http.clone() } else { self.mtls_tcp.clone() });
        FilterChain {
            name: format!("{}_{kind}", port.name),
            filter_chain_match: Some(FilterChainMatch {
                destination_port: port.matched_port.and_then(|p| u32_value(p.into())),
                transport_protocol: if tls { "tls" } else { "raw_buffer" }.to_owned(),
                application_protocols: alpn.into_iter().map(str::to_owned).collect(),
                ..Default::default()
            }),
            filters,
            transport_socket,
            metadata: if http { self.drain.clone() } else { None },
            ..Default::default()
        }
    }
}

/// `tcp_proxy` to one cluster.
pub(crate) fn proxy(logs: &[Log], cluster: &str) -> Filter {
    network_filter(TCP_PROXY, any(&tcp_proxy(logs, cluster)))
}

/// Connects to the application only when the client's certificate has been verified: otherwise anyone could make it
/// accept connections. Envoys before 1.37 do not know the field and connect at once.
fn authenticated_proxy(logs: &[Log], cluster: &str) -> Filter {
    let proxy = tcp_proxy::TcpProxy {
        upstream_connect_mode: tcp_proxy::UpstreamConnectMode::OnDownstreamTlsHandshake as i32,
        max_early_data_bytes: u32_value(0),
        ..tcp_proxy(logs, cluster)
    };
    network_filter(TCP_PROXY, any(&proxy))
}

fn tcp_proxy(logs: &[Log], cluster: &str) -> tcp_proxy::TcpProxy {
    tcp_proxy::TcpProxy {
        stat_prefix: cluster.to_owned(),
        access_log: access_log::requests(logs),
        cluster_specifier: Some(tcp_proxy::tcp_proxy::ClusterSpecifier::Cluster(cluster.to_owned())),
        ..Default::default()
    }
}

/// Policy on a TCP chain stands in the chain itself: a network filter is bound when a connection is accepted, so a
/// change has to drain the chain (design decision 3). The guard is not needed there: STRICT has no plaintext chain.
fn tcp_filters(inbound: &Inbound<'_>) -> Vec<Filter> {
    let policy = EffectivePolicy { mtls: EffectiveMtls::default(), ..inbound.policy.tcp() };
    let mut filters = Vec::new();
    for (name, (config, resolved)) in inbound.authorizers() {
        if let Some(pair) = custom_pair(name, config, resolved, &policy) {
            filters.extend(pair);
        }
    }
    let all = [
        rbac::audit(&policy),
        rbac::deny(&policy, |provider| inbound.usable(provider)),
        rbac::allow(&policy),
    ];
    let active = all.into_iter().filter(|filter| !filter.is_empty());
    filters.extend(active.map(|filter| network_filter(rbac::NETWORK_FILTER, any(&filter.network()))));
    filters
}

fn custom_pair(
    name: &str,
    config: &ExtAuthz,
    resolved: Option<&Provider>,
    policy: &EffectivePolicy,
) -> Option<[Filter; 2]> {
    let ask = ext_authz::network(name, config, resolved?)?;
    let shadow = rbac::custom(name, policy.custom.get(name));
    (!shadow.is_empty()).then(|| {
        [
            network_filter(rbac::NETWORK_FILTER, any(&shadow.network())),
            network_filter("envoy.filters.network.ext_authz", any(&ask)),
        ]
    })
}

/// Metadata that nothing reads: it changes when a policy with `countersign.io/on-revoke: drain` does, and a changed
/// chain is drained by Envoy.
fn drain(inbound: &Inbound<'_>) -> Option<core::Metadata> {
    use envoy_types::pb::google::protobuf as google;
    use prost::Message;
    let drain = &inbound.policy.drain;
    if drain.is_empty() {
        return None;
    }
    let entry = |(id, digest): &(policy::ObjectName, u64)| Value {
        kind: Some(Kind::String(format!("{id} {digest:016x}"))),
    };
    let list = Value { kind: Some(Kind::List(ListValue { values: drain.iter().map(entry).collect() })) };
    let fields = Struct { fields: [("drain".to_owned(), list)].into() };
    let fields = google::Struct::decode(&*fields.encode_to_vec()).expect("the same message");
    Some(core::Metadata {
        filter_metadata: [("countersign".to_owned(), fields)].into(),
        ..Default::default()
    })
}
