//! `extensionProviders` (semantics §4.8). Those that are about access logs are read in `logs`; of
//! others only the name is kept.

use std::collections::BTreeMap;
use std::sync::Arc;

use mesh::{ExtAuthz, ExtAuthzKind, ExtensionProvider, HeaderMatch, IncludeBody, LogService, Sink};
use serde::Deserialize;

use super::logs;
use crate::finding::Issues;
use crate::path::At;
use crate::{values, wire};

/// Istio's default for a check without a timeout.
const DEFAULT_TIMEOUT_MS: u64 = 600_000;

/// `extensionProviders[]`.
#[derive(Clone, Debug, Default, PartialEq, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub(super) struct Provider {
    name: String,
    envoy_ext_authz_http: Option<Http>,
    envoy_ext_authz_grpc: Option<Grpc>,
    envoy_file_access_log: Option<logs::File>,
    envoy_http_als: Option<logs::Service>,
    envoy_tcp_als: Option<logs::Service>,
    envoy_otel_als: Option<logs::Service>,
}

/// `envoyExtAuthzHttp`. Unknown fields are refused: a misspelt `failOpen: false` does no harm, but a misspelt list of
/// headers would silently judge requests without them.
#[derive(Clone, Debug, Default, PartialEq, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields, default)]
struct Http {
    service: String,
    port: u32,
    timeout: Option<String>,
    path_prefix: String,
    fail_open: bool,
    status_on_error: Option<StatusCode>,
    include_headers_in_check: Vec<String>,
    include_request_headers_in_check: Vec<String>,
    include_additional_headers_in_check: BTreeMap<String, String>,
    include_request_body_in_check: Option<Body>,
    headers_to_upstream_on_allow: Vec<String>,
    headers_to_downstream_on_deny: Vec<String>,
    headers_to_downstream_on_allow: Vec<String>,
    clear_route_cache: bool,
}

/// `envoyExtAuthzGrpc`.
#[derive(Clone, Debug, Default, PartialEq, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields, default)]
struct Grpc {
    service: String,
    port: u32,
    timeout: Option<String>,
    fail_open: bool,
    status_on_error: Option<StatusCode>,
    include_request_body_in_check: Option<Body>,
    clear_route_cache: bool,
}

/// Istio writes it as text.
#[derive(Clone, Debug, PartialEq, Deserialize)]
#[serde(untagged)]
enum StatusCode {
    Number(u32),
    Text(String),
}

#[derive(Clone, Debug, Default, PartialEq, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields, default)]
struct Body {
    max_request_bytes: u32,
    allow_partial_message: bool,
    pack_as_bytes: bool,
}

/// The fields that both kinds have.
struct Common<'c> {
    service: &'c str,
    port: u32,
    timeout: Option<&'c str>,
    fail_open: bool,
    status_on_error: Option<&'c StatusCode>,
    body: Option<&'c Body>,
}

/// Those of access logs besides.
pub(super) type Logs = BTreeMap<Arc<str>, Sink>;

pub(super) fn read(providers: Vec<Provider>, issues: &mut Issues) -> (Vec<ExtensionProvider>, Logs) {
    let at = At::ROOT.key("extensionProviders");
    let mut read: Vec<ExtensionProvider> = Vec::with_capacity(providers.len());
    let mut sinks = Logs::new();
    for (i, provider) in providers.into_iter().enumerate() {
        let at = at.index(i);
        let Provider {
            name,
            envoy_ext_authz_http,
            envoy_ext_authz_grpc,
            envoy_file_access_log,
            envoy_http_als,
            envoy_tcp_als,
            envoy_otel_als,
        } = provider;
        check_name(&name, &at.key("name"), issues);
        if read.iter().any(|p| *p.name == *name) {
            issues.error(&at.key("name"), format!("`{name}` is given twice"));
        }
        let services = [
            ("envoyHttpAls", LogService::Http, envoy_http_als),
            ("envoyTcpAls", LogService::Tcp, envoy_tcp_als),
            ("envoyOtelAls", LogService::OpenTelemetry, envoy_otel_als),
        ];
        let given = services.iter().filter(|(_, _, service)| service.is_some()).count();
        let authorizes = envoy_ext_authz_http.is_some() || envoy_ext_authz_grpc.is_some();
        if given + usize::from(envoy_file_access_log.is_some()) + usize::from(authorizes) > 1 {
            issues.error(&at, "only one kind of provider can be given");
        }
        if let Some(file) = envoy_file_access_log {
            sinks.insert((*name).into(), logs::read_file(file, &at.key("envoyFileAccessLog"), issues));
        }
        for (field, kind, service) in services {
            if let Some(service) = service {
                sinks.insert((*name).into(), logs::read_service(kind, service, &at.key(field), issues));
            }
        }
        let ext_authz = match (envoy_ext_authz_http, envoy_ext_authz_grpc) {
            (Some(_), Some(_)) => {
                issues.error(&at, "only one kind of provider can be given");
                None
            }
            (Some(http), None) => Some(read_http(&http, &at.key("envoyExtAuthzHttp"), issues)),
            (None, Some(grpc)) => Some(read_grpc(&grpc, &at.key("envoyExtAuthzGrpc"), issues)),
            (None, None) => None,
        };
        read.push(ExtensionProvider { name: name.into(), ext_authz });
    }
    (read, sinks)
}

/// The name becomes part of the names of filters and policies in Envoy.
fn check_name(name: &str, at: &At<'_>, issues: &mut Issues) {
    let inner = |c: char| c.is_ascii_lowercase() || c.is_ascii_digit() || matches!(c, '-' | '.' | '_');
    let end = |c: char| c.is_ascii_lowercase() || c.is_ascii_digit();
    if name.len() > 63 || !name.chars().all(inner) || !name.starts_with(end) || !name.ends_with(end) {
        issues.error(
            at,
            format!("`{name}` is not a provider name (a-z, 0-9, `-`, `.`, `_`, at most 63 characters)"),
        );
    }
}

fn read_http(http: &Http, at: &At<'_>, issues: &mut Issues) -> ExtAuthz {
    let Http {
        service,
        port,
        timeout,
        path_prefix,
        fail_open,
        status_on_error,
        include_headers_in_check,
        include_request_headers_in_check,
        include_additional_headers_in_check,
        include_request_body_in_check,
        headers_to_upstream_on_allow,
        headers_to_downstream_on_deny,
        headers_to_downstream_on_allow,
        clear_route_cache: _,
    } = http;
    if !path_prefix.is_empty() && !path_prefix.starts_with('/') {
        issues.error(&at.key("pathPrefix"), "must begin with `/`");
    }
    for (name, value) in include_additional_headers_in_check {
        if name.is_empty() || !values::header_text(name) || !values::header_text(value) {
            issues.error(&at.key("includeAdditionalHeadersInCheck"), format!("`{name}` is not a header"));
        }
    }
    // The first is the old name of the second and only counts without it.
    let (included, field) = if include_request_headers_in_check.is_empty() {
        (include_headers_in_check, "includeHeadersInCheck")
    } else {
        (include_request_headers_in_check, "includeRequestHeadersInCheck")
    };
    let kind = ExtAuthzKind::Http {
        path_prefix: path_prefix.clone(),
        include_headers: headers(included, &at.key(field), issues),
        additional_headers: include_additional_headers_in_check.clone(),
        upstream_on_allow: headers(headers_to_upstream_on_allow, &at.key("headersToUpstreamOnAllow"), issues),
        downstream_on_deny: headers(
            headers_to_downstream_on_deny,
            &at.key("headersToDownstreamOnDeny"),
            issues,
        ),
        downstream_on_allow: headers(
            headers_to_downstream_on_allow,
            &at.key("headersToDownstreamOnAllow"),
            issues,
        ),
    };
    let common = Common {
        service,
        port: *port,
        timeout: timeout.as_deref(),
        fail_open: *fail_open,
        status_on_error: status_on_error.as_ref(),
        body: include_request_body_in_check.as_ref(),
    };
    read_common(&common, kind, at, issues)
}

fn read_grpc(grpc: &Grpc, at: &At<'_>, issues: &mut Issues) -> ExtAuthz {
    let Grpc {
        service,
        port,
        timeout,
        fail_open,
        status_on_error,
        include_request_body_in_check,
        clear_route_cache: _,
    } = grpc;
    let common = Common {
        service,
        port: *port,
        timeout: timeout.as_deref(),
        fail_open: *fail_open,
        status_on_error: status_on_error.as_ref(),
        body: include_request_body_in_check.as_ref(),
    };
    read_common(&common, ExtAuthzKind::Grpc, at, issues)
}

fn read_common(common: &Common<'_>, kind: ExtAuthzKind, at: &At<'_>, issues: &mut Issues) -> ExtAuthz {
    let Common { service, port, timeout, fail_open, status_on_error, body } = common;
    check_service(service, &at.key("service"), issues);
    let timeout_ms = timeout.map_or(DEFAULT_TIMEOUT_MS, |timeout| {
        values::duration_ms(timeout).ok().filter(|ms| *ms > 0).unwrap_or_else(|| {
            issues.error(&at.key("timeout"), format!("`{timeout}` is not a duration of at least 1ms"));
            DEFAULT_TIMEOUT_MS
        })
    });
    ExtAuthz {
        kind,
        service: (*service).to_owned(),
        port: wire::port(*port, &at.key("port"), issues).unwrap_or_default(),
        timeout_ms,
        fail_open: *fail_open,
        status_on_error: status_on_error.and_then(|code| status(code, &at.key("statusOnError"), issues)),
        include_body: body.map(|Body { max_request_bytes, allow_partial_message, pack_as_bytes }| {
            if *max_request_bytes == 0 {
                issues.error(&at.key("includeRequestBodyInCheck"), "maxRequestBytes must be at least 1");
            }
            IncludeBody {
                max_bytes: *max_request_bytes,
                allow_partial: *allow_partial_message,
                pack_as_bytes: *pack_as_bytes,
            }
        }),
    }
}

pub(super) fn check_service(service: &str, at: &At<'_>, issues: &mut Issues) {
    let host = service.split_once('/').map_or(service, |(_, host)| host);
    if host.is_empty()
        || host.contains('/')
        || service.starts_with('/')
        || service.contains(char::is_whitespace)
    {
        issues.error(at, format!("`{service}` is neither HOST nor NAMESPACE/HOST"));
    }
}

/// The codes of Envoy's `StatusCode` enum; it refuses a configuration with any other.
const STATUS_CODES: [u32; 56] = [
    100, 200, 201, 202, 203, 204, 205, 206, 207, 208, 226, 300, 301, 302, 303, 304, 305, 307, 308, 400, 401,
    402, 403, 404, 405, 406, 407, 408, 409, 410, 411, 412, 413, 414, 415, 416, 417, 421, 422, 423, 424, 426,
    428, 429, 431, 500, 501, 502, 503, 504, 505, 506, 507, 508, 510, 511,
];

fn status(code: &StatusCode, at: &At<'_>, issues: &mut Issues) -> Option<u32> {
    let number = match code {
        StatusCode::Number(number) => Some(*number),
        StatusCode::Text(text) => text.parse().ok(),
    };
    let known = number.filter(|number| STATUS_CODES.contains(number));
    if known.is_none() {
        issues.error(at, "not an HTTP status that Envoy knows");
    }
    known
}

fn headers(list: &[String], at: &At<'_>, issues: &mut Issues) -> Vec<HeaderMatch> {
    let mut read = Vec::with_capacity(list.len());
    for (i, value) in list.iter().enumerate() {
        if value.is_empty() || value == "*" || !values::header_text(value) {
            issues.error(
                &at.index(i),
                format!("`{value}` is not a header name, prefix (`x-*`) or suffix (`*-id`)"),
            );
            continue;
        }
        let lower = value.to_ascii_lowercase();
        read.push(if let Some(suffix) = lower.strip_prefix('*') {
            HeaderMatch::Suffix(suffix.to_owned())
        } else if let Some(prefix) = lower.strip_suffix('*') {
            HeaderMatch::Prefix(prefix.to_owned())
        } else {
            HeaderMatch::Exact(lower)
        });
    }
    read
}
