//! Envoy's bootstrap: who it is, where its control plane and its certificates are. Policy is not in here.

use std::net::IpAddr;

use serde_json::{Map, Value, json};

use crate::Error;
use crate::args::{AgentArgs, AppAddress, CaptureMode, XdsProtocol};
use crate::capture::Plan;
use crate::identity::Trust;
use crate::state::{self, State};

/// The Istio version whose behaviour we offer.
const ISTIO_VERSION: &str = "1.31.0";
/// Connections that one Envoy accepts at the same time.
const MAX_CONNECTIONS: u32 = 50_000;

/// Writes the bootstrap file (0600, owned by the user Envoy runs as); its path.
pub(crate) fn write(
    args: &AgentArgs,
    state: &State,
    trust: &Trust,
    plan: &Plan,
) -> Result<std::path::PathBuf, Error> {
    let text = bootstrap(args, state, trust.server_id.as_str(), plan)?.to_string();
    state::write_private(&state.bootstrap, text.as_bytes(), plan.proxy_uid())?;
    Ok(state.bootstrap.clone())
}

fn bootstrap(args: &AgentArgs, state: &State, server_id: &str, plan: &Plan) -> Result<Value, Error> {
    let address = *plan.addresses.first().ok_or(Error::NoAddress)?;
    let (namespace, name) = (&args.workload.namespace, &args.workload.name);
    let api_type = match args.xds_protocol {
        XdsProtocol::Delta => "DELTA_GRPC",
        XdsProtocol::Sotw => "GRPC",
    };
    let ads = json!({"ads": {}, "initial_fetch_timeout": "0s", "resource_api_version": "V3"});
    let mut bootstrap = json!({
        "node": {
            "id": format!("sidecar~{address}~{name}.{namespace}~{namespace}.svc.cluster.local"),
            "cluster": format!("{name}.{namespace}"),
            "metadata": metadata(args, address, plan),
        },
        "layered_runtime": {"layers": [
            {"name": "static", "static_layer": {
                "re2.max_program_size.error_level": 32768,
            }},
            {"name": "admin", "admin_layer": {}},
        ]},
        "admin": {"address": {"pipe": {"path": state.admin_socket, "mode": 0o600}}},
        "stats_config": stats(),
        "overload_manager": {"resource_monitors": [{
            "name": "envoy.resource_monitors.global_downstream_max_connections",
            "typed_config": {
                "@type": "type.googleapis.com/envoy.extensions.resource_monitors.downstream_connections.v3.DownstreamConnectionsConfig",
                "max_active_downstream_connections": MAX_CONNECTIONS,
            },
        }]},
        "dynamic_resources": {
            "lds_config": ads, "cds_config": ads,
            "ads_config": {
                "api_type": api_type, "transport_api_version": "V3", "set_node_on_first_message_only": true,
                // Envoy's own pause grows to half a minute: too long for whoever waits for a missed change.
                "grpc_services": [{"envoy_grpc": {
                    "cluster_name": "xds-grpc",
                    "retry_policy": {"retry_back_off": {"base_interval": "0.5s", "max_interval": "3s"}},
                }}],
            },
        },
        "static_resources": {"clusters": [sds_cluster(state), xds_cluster(&args.server, server_id)]},
    });
    if let Some(mark) = plan.envoy_mark() {
        // SOL_SOCKET, SO_MARK: lets Envoy's own connections pass the redirection where no user of its own exists.
        let option = json!({"level": 1, "name": 36, "int_value": mark, "state": "STATE_PREBIND"});
        bootstrap["cluster_manager"] = json!({"upstream_bind_config": {"socket_options": [option]}});
    }
    Ok(bootstrap)
}

fn metadata(args: &AgentArgs, address: IpAddr, plan: &Plan) -> Value {
    let addresses: Vec<String> = plan.addresses.iter().map(ToString::to_string).collect();
    let mut metadata = json!({
        "NAME": args.workload.name,
        "NAMESPACE": args.workload.namespace,
        "INSTANCE_IPS": addresses.join(","),
        "ISTIO_VERSION": ISTIO_VERSION,
        "CLUSTER_ID": "Kubernetes",
        // So long after a listener changed its old connections may live; until then its policy counts as draining.
        "COUNTERSIGN_DRAIN_SECONDS": args.drain_time.to_string(),
    });
    if args.inline_policy {
        metadata["COUNTERSIGN_INLINE_POLICY"] = json!("true");
    }
    // Without this key the capture is Istio's redirection, whose rules ours are.
    if args.capture == CaptureMode::None {
        metadata["COUNTERSIGN_CAPTURE"] = json!("none");
        let app = |address: &AppAddress| match address {
            AppAddress::Unix(path) => format!("unix:{path}"),
            AppAddress::Tcp(address) => address.clone(),
        };
        let apps: Map<String, Value> =
            args.app.iter().map(|a| (a.port.to_string(), app(&a.address).into())).collect();
        let local =
            |host: Option<IpAddr>, port| std::net::SocketAddr::new(host.unwrap_or(address), port).to_string();
        let upstreams: Map<String, Value> =
            args.upstream.iter().map(|u| (u.service.clone(), local(u.host, u.port).into())).collect();
        metadata["COUNTERSIGN_APPS"] = apps.into();
        metadata["COUNTERSIGN_UPSTREAMS"] = upstreams.into();
    }
    metadata
}

fn http2() -> Value {
    let options = "envoy.extensions.upstreams.http.v3.HttpProtocolOptions";
    json!({options: {
        "@type": format!("type.googleapis.com/{options}"),
        "explicit_http_config": {"http2_protocol_options": {"connection_keepalive": {"interval": "20s", "timeout": "10s"}}},
    }})
}

fn sds_cluster(state: &State) -> Value {
    json!({
        "name": "sds-grpc", "type": "STATIC", "connect_timeout": "1s",
        "typed_extension_protocol_options": http2(),
        "load_assignment": {"cluster_name": "sds-grpc", "endpoints": [{"lb_endpoints": [
            {"endpoint": {"address": {"pipe": {"path": state.sds_socket}}}},
        ]}]},
    })
}

fn secret(name: &str) -> Value {
    json!({"name": name, "sds_config": {
        "resource_api_version": "V3", "initial_fetch_timeout": "0s",
        "api_config_source": {
            "api_type": "GRPC", "transport_api_version": "V3", "set_node_on_first_message_only": true,
            "grpc_services": [{"envoy_grpc": {"cluster_name": "sds-grpc"}}],
        },
    }})
}

/// The control plane, known by its SPIFFE ID and nothing else.
fn xds_cluster(server: &str, server_id: &str) -> Value {
    let (host, port) = server.rsplit_once(':').unwrap_or((server, "15012"));
    let host = host.trim_start_matches('[').trim_end_matches(']');
    let discovery = if host.parse::<IpAddr>().is_ok() { "STATIC" } else { "STRICT_DNS" };
    json!({
        "name": "xds-grpc", "type": discovery, "dns_lookup_family": "ALL", "connect_timeout": "2s",
        "typed_extension_protocol_options": http2(),
        "upstream_connection_options": {"tcp_keepalive": {"keepalive_time": 30}},
        "load_assignment": {"cluster_name": "xds-grpc", "endpoints": [{"lb_endpoints": [
            {"endpoint": {"address": {"socket_address": {"address": host, "port_value": port.parse::<u16>().unwrap_or(15012)}}}},
        ]}]},
        "transport_socket": {"name": "envoy.transport_sockets.tls", "typed_config": {
            "@type": "type.googleapis.com/envoy.extensions.transport_sockets.tls.v3.UpstreamTlsContext",
            "max_session_keys": 0,
            "common_tls_context": {
                "alpn_protocols": ["h2"],
                "tls_params": {"tls_minimum_protocol_version": "TLSv1_2", "tls_maximum_protocol_version": "TLSv1_3"},
                "tls_certificate_sds_secret_configs": [secret("default")],
                "combined_validation_context": {
                    "default_validation_context": {
                        "match_typed_subject_alt_names": [{"san_type": "URI", "matcher": {"exact": server_id}}],
                    },
                    "validation_context_sds_secret_config": secret("ROOTCA"),
                },
            },
        }},
    })
}

/// The tags under which dry-run and enforced results are found (semantics §4.5).
fn stats() -> Value {
    json!({"stats_tags": [
        {"tag_name": "authz_enforce_result", "regex": r"rbac(\.(allowed|denied))"},
        {"tag_name": "authz_dry_run_action", "regex": r"(\.istio_dry_run_(allow|deny)_)"},
        {"tag_name": "authz_dry_run_result", "regex": r"(\.shadow_(allowed|denied))"},
    ]})
}

#[cfg(test)]
mod tests;
