//! Access logs: the line in which people find out which rule refused a request (semantics §1.6). Which logs there are is
//! decided elsewhere (`mesh::Logs`).

use std::collections::BTreeMap;

use envoy_types::pb::envoy::extensions::access_loggers::filters::cel::v3::ExpressionFilter;
use envoy_types::pb::envoy::extensions::access_loggers::grpc::v3::{
    CommonGrpcAccessLogConfig, HttpGrpcAccessLogConfig, TcpGrpcAccessLogConfig,
};
use envoy_types::pb::envoy::extensions::access_loggers::open_telemetry::v3::OpenTelemetryAccessLogConfig;
use envoy_types::pb::opentelemetry::proto::common::v1::{AnyValue, any_value};
use mesh::{Log, LogFormat, LogService, Sink};

use super::cluster::outbound_name;
use super::encode::{self, FileAccessLog, Kind, Struct, Value, any};
use super::pb::accesslog::{
    AccessLog, AccessLogFilter, ExtensionFilter, OrFilter, ResponseFlagFilter, access_log::ConfigType,
    access_log_filter::FilterSpecifier, extension_filter,
};
use super::pb::{Any, core};

/// Field name in the JSON form, Envoy's command operator. The text form has the same, in this order.
const FIELDS: [(&str, &str); 26] = [
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
    ("audit", "%DYNAMIC_METADATA(envoy.common:access_log_hint)%"),
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

/// The logs of requests and TCP connections.
pub(crate) fn requests(logs: &[Log]) -> Vec<AccessLog> {
    let filter = |log: &Log| Some(AccessLogFilter { filter_specifier: Some(cel(log.filter.as_deref()?)) });
    logs.iter().map(|log| access_log(&log.sink, filter(log))).collect()
}

/// The logs of connections that were refused before there was a request: those that no filter chain took, such as
/// plaintext under STRICT, and those whose certificate was refused on an HTTP chain (a TCP chain logs them itself).
/// A filter that was written for requests does not hide them.
pub(crate) fn rejected(logs: &[Log]) -> Vec<AccessLog> {
    let no_route = FilterSpecifier::ResponseFlagFilter(ResponseFlagFilter { flags: vec!["NR".to_owned()] });
    let handshake =
        cel("connection.transport_failure_reason != '' && xds.filter_chain_name.endsWith('_mtls-http')");
    let filters = [no_route, handshake].map(|f| AccessLogFilter { filter_specifier: Some(f) }).to_vec();
    let either = AccessLogFilter { filter_specifier: Some(FilterSpecifier::OrFilter(OrFilter { filters })) };
    logs.iter().map(|log| access_log(&log.sink, Some(either.clone()))).collect()
}

fn cel(expression: &str) -> FilterSpecifier {
    let filter = ExpressionFilter { expression: expression.to_owned(), ..Default::default() };
    FilterSpecifier::ExtensionFilter(ExtensionFilter {
        name: "envoy.access_loggers.extension_filters.cel".to_owned(),
        config_type: Some(extension_filter::ConfigType::TypedConfig(any(&filter))),
    })
}

fn access_log(sink: &Sink, filter: Option<AccessLogFilter>) -> AccessLog {
    let (name, config) = match sink {
        Sink::File { path, format } => {
            let log = FileAccessLog { path: path.clone(), log_format: Some(line(format)) };
            ("envoy.access_loggers.file", any(&log))
        }
        Sink::Service { kind, service, port, log_name, body } => {
            let host = service.split_once('/').map_or(&**service, |(_, host)| host);
            stream(*kind, host, *port, log_name, body)
        }
    };
    AccessLog { name: name.to_owned(), filter, config_type: Some(ConfigType::TypedConfig(config)) }
}

/// Lines sent to the outbound cluster of a service.
fn stream(kind: LogService, host: &str, port: u16, log_name: &str, body: &str) -> (&'static str, Any) {
    let envoy = core::grpc_service::EnvoyGrpc {
        cluster_name: outbound_name(port, host),
        authority: host.to_owned(),
        ..Default::default()
    };
    let common_config = Some(CommonGrpcAccessLogConfig {
        log_name: log_name.to_owned(),
        grpc_service: Some(core::GrpcService {
            target_specifier: Some(core::grpc_service::TargetSpecifier::EnvoyGrpc(envoy)),
            ..Default::default()
        }),
        transport_api_version: core::ApiVersion::V3 as i32,
        ..Default::default()
    });
    match kind {
        LogService::Http => {
            let log = HttpGrpcAccessLogConfig { common_config, ..Default::default() };
            ("envoy.access_loggers.http_grpc", any(&log))
        }
        LogService::Tcp => ("envoy.access_loggers.tcp_grpc", any(&TcpGrpcAccessLogConfig { common_config })),
        LogService::OpenTelemetry => {
            let body = if body.is_empty() { text() } else { body.to_owned() };
            #[expect(deprecated, reason = "what stands in its place is not known to Envoy 1.36")]
            let log = OpenTelemetryAccessLogConfig {
                common_config,
                body: Some(AnyValue { value: Some(any_value::Value::StringValue(body)) }),
                ..Default::default()
            };
            ("envoy.access_loggers.open_telemetry", any(&log))
        }
    }
}

fn line(format: &LogFormat) -> encode::LogFormat {
    let mut text = match format {
        LogFormat::Json(format) => {
            return encode::LogFormat { json_format: Some(json(format)), text_format_source: None };
        }
        LogFormat::Text(format) if format.is_empty() => text(),
        LogFormat::Text(format) => format.clone(),
    };
    if !text.ends_with('\n') {
        text.push('\n');
    }
    let source = core::data_source::Specifier::InlineString(text);
    encode::LogFormat {
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
