//! HTTP connection managers, inbound and outbound (semantics §3.4, §4.7). Knows no policy: the filters are given.

use envoy_types::pb::envoy::extensions::filters::http::router::v3::Router;
use mesh::{Log, MeshConfig, PathNormalization};

use super::access_log;
use super::encode::any;
use super::pb::hcm::http_connection_manager::{
    ForwardClientCertDetails, InternalAddressConfig, PathWithEscapedSlashesAction, RouteSpecifier,
    SetCurrentClientCertDetails, UpgradeConfig,
};
use super::pb::hcm::{HttpConnectionManager, HttpFilter, Rds, http_filter};
use super::pb::{ads, bool_value, listener, millis, network_filter, route};

const NAME: &str = "envoy.filters.network.http_connection_manager";

/// Serves one route configuration behind `filters`, and says to the application who called.
pub(crate) fn inbound(
    mesh: &MeshConfig,
    logs: &[Log],
    stat_prefix: String,
    filters: Vec<HttpFilter>,
    routes: route::RouteConfiguration,
) -> listener::Filter {
    let manager = HttpConnectionManager {
        forward_client_cert_details: ForwardClientCertDetails::AppendForward as i32,
        set_current_client_cert_details: Some(SetCurrentClientCertDetails {
            subject: bool_value(true),
            dns: true,
            uri: true,
            ..Default::default()
        }),
        server_name: "istio-envoy".to_owned(),
        route_specifier: Some(RouteSpecifier::RouteConfig(routes)),
        ..common(mesh, logs, stat_prefix, filters)
    };
    network_filter(NAME, any(&manager))
}

/// Forwards by the route configuration `routes`; carries no policy (semantics §10.17).
pub(crate) fn outbound(
    mesh: &MeshConfig,
    logs: &[Log],
    stat_prefix: String,
    routes: RouteSpecifier,
) -> listener::Filter {
    let manager = HttpConnectionManager {
        route_specifier: Some(routes),
        ..common(mesh, logs, stat_prefix, Vec::new())
    };
    network_filter(NAME, any(&manager))
}

/// Routes that come by RDS.
pub(crate) fn rds(name: &str) -> RouteSpecifier {
    RouteSpecifier::Rds(Rds { config_source: ads(), route_config_name: name.to_owned() })
}

fn common(
    mesh: &MeshConfig,
    logs: &[Log],
    stat_prefix: String,
    mut filters: Vec<HttpFilter>,
) -> HttpConnectionManager {
    filters.push(HttpFilter {
        name: "envoy.filters.http.router".to_owned(),
        config_type: Some(http_filter::ConfigType::TypedConfig(any(&Router::default()))),
        ..Default::default()
    });
    let (normalize, merge_slashes, unescape) = match mesh.path_normalization {
        PathNormalization::None => (false, false, false),
        PathNormalization::Base => (true, false, false),
        PathNormalization::MergeSlashes => (true, true, false),
        PathNormalization::DecodeAndMergeSlashes => (true, true, true),
    };
    let slashes = if unescape {
        PathWithEscapedSlashesAction::UnescapeAndForward
    } else {
        PathWithEscapedSlashesAction::KeepUnchanged
    };
    HttpConnectionManager {
        stat_prefix,
        http_filters: filters,
        stream_idle_timeout: millis(0),
        access_log: access_log::requests(logs),
        use_remote_address: bool_value(false),
        // No address makes a caller internal: x-envoy-* headers of a peer are never trusted for where it is.
        internal_address_config: Some(InternalAddressConfig::default()),
        upgrade_configs: vec![UpgradeConfig { upgrade_type: "websocket".to_owned(), ..Default::default() }],
        normalize_path: bool_value(normalize),
        merge_slashes,
        path_with_escaped_slashes_action: slashes as i32,
        ..Default::default()
    }
}
