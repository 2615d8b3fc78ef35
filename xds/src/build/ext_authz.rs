//! CUSTOM: the second half of a pair, asking an external authorizer when the shadow RBAC before it matched
//! (semantics §4.8). Which clusters exist is the controller's knowledge.

use mesh::{ExtAuthz, ExtAuthzKind, HeaderMatch, IncludeBody};

use super::Provider;
use super::pb::http_ext_authz::{
    AuthorizationRequest, AuthorizationResponse, BufferSettings, ExtAuthz as HttpFilter, HttpService,
    ext_authz::Services,
};
use super::pb::matcher::{ListStringMatcher, MetadataMatcher, StringMatcher, string_matcher::MatchPattern};
use super::pb::network_ext_authz::ExtAuthz as NetworkFilter;
use super::pb::{core, millis, string};
use super::rbac::{self, matcher};

/// The HTTP filter of provider `name`. A provider that is not `resolved` is never asked (its policies are denials in
/// the DENY slot), but its slot has to hold something.
pub(crate) fn http(name: &str, config: &ExtAuthz, resolved: Option<&Provider>) -> HttpFilter {
    let ExtAuthz { kind, service: _, port, timeout_ms, fail_open, status_on_error, include_body } = config;
    let cluster = resolved.map_or(super::cluster::BLACKHOLE, |p| &*p.cluster);
    let hostname = resolved.map_or("", |p| &*p.hostname);
    let (services, allowed_headers) = match kind {
        ExtAuthzKind::Grpc => (Services::GrpcService(grpc(cluster, hostname, *timeout_ms)), None),
        ExtAuthzKind::Http {
            path_prefix,
            include_headers,
            additional_headers,
            upstream_on_allow,
            downstream_on_deny,
            downstream_on_allow,
        } => {
            let uri = core::HttpUri {
                uri: format!("http://{hostname}:{port}"),
                timeout: millis(*timeout_ms),
                http_upstream_type: Some(core::http_uri::HttpUpstreamType::Cluster(cluster.to_owned())),
            };
            let add = |(key, value): (&String, &String)| core::HeaderValue {
                key: key.clone(),
                value: value.clone(),
                ..Default::default()
            };
            let service = HttpService {
                server_uri: Some(uri),
                path_prefix: path_prefix.clone(),
                authorization_request: Some(AuthorizationRequest {
                    headers_to_add: additional_headers.iter().map(add).collect(),
                    ..Default::default()
                }),
                authorization_response: Some(AuthorizationResponse {
                    allowed_upstream_headers: headers(upstream_on_allow),
                    allowed_client_headers: headers(downstream_on_deny),
                    allowed_client_headers_on_success: headers(downstream_on_allow),
                    ..Default::default()
                }),
                ..Default::default()
            };
            (Services::HttpService(service), headers(include_headers))
        }
    };
    HttpFilter {
        transport_api_version: core::ApiVersion::V3 as i32,
        failure_mode_allow: *fail_open,
        with_request_body: include_body.as_ref().map(body),
        status_on_error: status_on_error.and_then(status),
        filter_enabled_metadata: Some(enabled(name, rbac::HTTP_FILTER)),
        allowed_headers,
        services: Some(services),
        ..Default::default()
    }
}

/// The network filter of a gRPC provider; an HTTP provider has nothing to say about TCP (semantics §4.4).
pub(crate) fn network(name: &str, config: &ExtAuthz, resolved: &Provider) -> Option<NetworkFilter> {
    if config.kind != ExtAuthzKind::Grpc {
        return None;
    }
    Some(NetworkFilter {
        stat_prefix: rbac::TCP_STATS.to_owned(),
        grpc_service: Some(grpc(&resolved.cluster, &resolved.hostname, config.timeout_ms)),
        failure_mode_allow: config.fail_open,
        transport_api_version: core::ApiVersion::V3 as i32,
        filter_enabled_metadata: Some(enabled(name, rbac::NETWORK_FILTER)),
        ..Default::default()
    })
}

/// Asked only if a CUSTOM rule of this very provider matched.
fn enabled(provider: &str, filter: &str) -> MetadataMatcher {
    let rule = string(MatchPattern::Prefix(rbac::custom_rule_prefix(provider)));
    matcher::metadata(filter, &[&rbac::custom_key(provider)], matcher::string_value(rule))
}

fn grpc(cluster: &str, authority: &str, timeout_ms: u64) -> core::GrpcService {
    let target = core::grpc_service::EnvoyGrpc {
        cluster_name: cluster.to_owned(),
        authority: authority.to_owned(),
        ..Default::default()
    };
    core::GrpcService {
        timeout: millis(timeout_ms),
        target_specifier: Some(core::grpc_service::TargetSpecifier::EnvoyGrpc(target)),
        ..Default::default()
    }
}

fn body(include: &IncludeBody) -> BufferSettings {
    let IncludeBody { max_bytes, allow_partial, pack_as_bytes } = *include;
    BufferSettings { max_request_bytes: max_bytes, allow_partial_message: allow_partial, pack_as_bytes }
}

/// `None` for a code that Envoy does not know: then errors are 403.
fn status(code: u32) -> Option<envoy_types::pb::envoy::r#type::v3::HttpStatus> {
    use envoy_types::pb::envoy::r#type::v3::{HttpStatus, StatusCode};
    let known = StatusCode::try_from(i32::try_from(code).ok()?).ok()?;
    (known != StatusCode::Empty).then_some(HttpStatus { code: known as i32 })
}

/// `None` for an empty list, which to Envoy means its own default.
fn headers(matches: &[HeaderMatch]) -> Option<ListStringMatcher> {
    let pattern = |m: &HeaderMatch| StringMatcher {
        ignore_case: true,
        match_pattern: Some(match m {
            HeaderMatch::Exact(name) => MatchPattern::Exact(name.clone()),
            HeaderMatch::Prefix(prefix) => MatchPattern::Prefix(prefix.clone()),
            HeaderMatch::Suffix(suffix) => MatchPattern::Suffix(suffix.clone()),
        }),
    };
    (!matches.is_empty()).then(|| ListStringMatcher { patterns: matches.iter().map(pattern).collect() })
}
