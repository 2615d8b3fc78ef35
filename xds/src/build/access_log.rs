//! Access logs: the line in which people find out which rule refused a request (semantics §1.6).

use std::collections::BTreeMap;

use envoy_types::pb::envoy::extensions::access_loggers::filters::cel::v3::ExpressionFilter;
use mesh::MeshConfig;

use super::encode::{FileAccessLog, Kind, LogFormat, Struct, Value, any};
use super::pb::accesslog::{
    AccessLog, AccessLogFilter, ExtensionFilter, OrFilter, ResponseFlagFilter, access_log::ConfigType,
    access_log_filter::FilterSpecifier, extension_filter,
};
use super::pb::core;

/// Field name in the JSON form, Envoy's command operator. The text form has the same, in this order.
const FIELDS: [(&str, &str); 25] = [
    ("start_time", "%START_TIME%"),
    ("method", "%REQ(:METHOD)%"),
    ("path", "%REQ(X-ENVOY-ORIGINAL-PATH?:PATH)%"),
    ("protocol", "%PROTOCOL%"),
    ("response_code", "%RESPONSE_CODE%"),
    ("response_flags", "%RESPONSE_FLAGS%"),
    ("response_code_details", "%RESPONSE_CODE_DETAILS%"),
    ("connection_termination_details", "%CONNECTION_TERMINATION_DETAILS%"),
    ("downstream_transport_failure_reason", "%DOWNSTREAM_TRANSPORT_FAILURE_REASON%"),
    ("upstream_transport_failure_reason", "%UPSTREAM_TRANSPORT_FAILURE_REASON%"),
    ("http_policy", "%DYNAMIC_METADATA(envoy.filters.http.rbac:enforced_effective_policy_id)%"),
    ("tcp_policy", "%DYNAMIC_METADATA(envoy.filters.network.rbac:enforced_effective_policy_id)%"),
    ("downstream_peer_uri_san", "%DOWNSTREAM_PEER_URI_SAN%"),
    ("requested_server_name", "%REQUESTED_SERVER_NAME%"),
    ("authority", "%REQ(:AUTHORITY)%"),
    ("request_id", "%REQ(X-REQUEST-ID)%"),
    ("bytes_received", "%BYTES_RECEIVED%"),
    ("bytes_sent", "%BYTES_SENT%"),
    ("duration", "%DURATION%"),
    ("upstream_host", "%UPSTREAM_HOST%"),
    ("upstream_cluster", "%UPSTREAM_CLUSTER%"),
    ("downstream_remote_address", "%DOWNSTREAM_REMOTE_ADDRESS%"),
    ("downstream_local_address", "%DOWNSTREAM_LOCAL_ADDRESS%"),
    ("filter_chain", "%FILTER_CHAIN_NAME%"),
    ("route_name", "%ROUTE_NAME%"),
];

/// The log of requests and TCP connections; none without `accessLogFile`.
pub(crate) fn requests(mesh: &MeshConfig) -> Vec<AccessLog> {
    file(mesh, None)
}

/// The log of connections that were refused before there was a request: those that no filter chain took, such as
/// plaintext under STRICT, and those whose certificate was refused on an HTTP chain (a TCP chain logs them itself).
pub(crate) fn rejected(mesh: &MeshConfig) -> Vec<AccessLog> {
    let no_route = FilterSpecifier::ResponseFlagFilter(ResponseFlagFilter { flags: vec!["NR".to_owned()] });
    let handshake = ExpressionFilter {
        expression:
            "connection.transport_failure_reason != '' && xds.filter_chain_name.endsWith('_mtls-http')"
                .to_owned(),
        ..Default::default()
    };
    let handshake = FilterSpecifier::ExtensionFilter(ExtensionFilter {
        name: "envoy.access_loggers.extension_filters.cel".to_owned(),
        config_type: Some(extension_filter::ConfigType::TypedConfig(any(&handshake))),
    });
    let filters = [no_route, handshake].map(|f| AccessLogFilter { filter_specifier: Some(f) }).to_vec();
    let either = FilterSpecifier::OrFilter(OrFilter { filters });
    file(mesh, Some(AccessLogFilter { filter_specifier: Some(either) }))
}

fn file(mesh: &MeshConfig, filter: Option<AccessLogFilter>) -> Vec<AccessLog> {
    if mesh.access_log_file.is_empty() {
        return Vec::new();
    }
    let log = FileAccessLog { path: mesh.access_log_file.clone(), log_format: Some(format(mesh)) };
    vec![AccessLog {
        name: "envoy.access_loggers.file".to_owned(),
        filter,
        config_type: Some(ConfigType::TypedConfig(any(&log))),
    }]
}

fn format(mesh: &MeshConfig) -> LogFormat {
    if mesh.access_log_json {
        return LogFormat { json_format: Some(json(&mesh.access_log_format)), text_format_source: None };
    }
    let mut text = if mesh.access_log_format.is_empty() { text() } else { mesh.access_log_format.clone() };
    if !text.ends_with('\n') {
        text.push('\n');
    }
    let source = core::data_source::Specifier::InlineString(text);
    LogFormat {
        json_format: None,
        text_format_source: Some(core::DataSource { specifier: Some(source), ..Default::default() }),
    }
}

/// `key=value` for everything, so that a person and a script both find what they look for.
fn text() -> String {
    let fields: Vec<String> = FIELDS.iter().map(|(name, value)| format!("{name}={value}")).collect();
    fields.join(" ")
}

/// The configured object, or the default one if there is none or it is not an object.
fn json(format: &str) -> Struct {
    if let Ok(serde_json::Value::Object(fields)) = serde_json::from_str(format) {
        return Struct { fields: fields.iter().map(|(k, v)| (k.clone(), v.into())).collect() };
    }
    let field = |(name, value): &(&str, &str)| {
        ((*name).to_owned(), Value { kind: Some(Kind::String((*value).to_owned())) })
    };
    Struct { fields: FIELDS.iter().map(field).collect::<BTreeMap<_, _>>() }
}
