//! MeshConfig: the fields that touch policy (semantics §1.6), under Istio's names. Other fields are tolerated, wrong
//! values are not: whoever reads it keeps the last good configuration. It does not look providers up.

mod idle;
mod logs;
mod providers;

use std::sync::Arc;

use mesh::{InboundMode, MeshConfig, PathNormalization};
use serde::Deserialize;
use serde_json::Value;

use crate::finding::{Finding, Issues};
use crate::path::At;
use crate::{export_to, values, wire};
use providers::Provider;

/// The document.
#[derive(Clone, Debug, Default, PartialEq, Deserialize)]
#[serde(rename_all = "camelCase", default)]
struct Document {
    trust_domain: Option<String>,
    trust_domain_aliases: Vec<String>,
    root_namespace: Option<String>,
    enable_auto_mtls: Option<bool>,
    #[serde(rename = "meshMTLS")]
    mesh_mtls: MeshMtls,
    path_normalization: Normalization,
    protocol_detection_timeout: Option<String>,
    inbound_traffic_policy: TrafficPolicy,
    outbound_traffic_policy: TrafficPolicy,
    default_service_export_to: Vec<String>,
    access_log_file: String,
    access_log_format: String,
    access_log_encoding: Option<Encoding>,
    extension_providers: Vec<Provider>,
    default_providers: logs::Defaults,
    default_config: DefaultConfig,
}

#[derive(Clone, Debug, Default, PartialEq, Deserialize)]
#[serde(rename_all = "camelCase", default)]
struct MeshMtls {
    min_protocol_version: Option<String>,
    cipher_suites: Vec<String>,
}

#[derive(Clone, Debug, Default, PartialEq, Deserialize)]
#[serde(default)]
struct Normalization {
    normalization: Option<NormalizationType>,
}

#[derive(Clone, Copy, Debug, PartialEq, Deserialize)]
#[serde(rename_all = "SCREAMING_SNAKE_CASE")]
enum NormalizationType {
    Default,
    None,
    Base,
    MergeSlashes,
    DecodeAndMergeSlashes,
}

#[derive(Clone, Debug, Default, PartialEq, Deserialize)]
#[serde(default)]
struct TrafficPolicy {
    mode: Option<String>,
}

#[derive(Clone, Copy, Debug, PartialEq, Deserialize)]
#[serde(rename_all = "UPPERCASE")]
enum Encoding {
    Text,
    Json,
}

#[derive(Clone, Debug, Default, PartialEq, Deserialize)]
#[serde(rename_all = "camelCase", default)]
struct DefaultConfig {
    gateway_topology: GatewayTopology,
}

#[derive(Clone, Debug, Default, PartialEq, Deserialize)]
#[serde(rename_all = "camelCase", default)]
struct GatewayTopology {
    num_trusted_proxies: u32,
}

/// Reads a mesh configuration file. An empty one is the defaults.
///
/// # Errors
/// The findings, if one of them is an error; otherwise warnings accompany the configuration.
pub fn read(text: &str) -> Result<(MeshConfig, Vec<Finding>), Vec<Finding>> {
    let (value, locate) = crate::read::single(text).map_err(|finding| vec![finding])?;
    let mut issues = Issues::default();
    let config = parse(&value, &mut issues);
    let findings = issues.0.iter().map(locate).collect();
    match config {
        Some(config) if !issues.has_errors() => Ok((config, findings)),
        _ => Err(findings),
    }
}

fn parse(value: &Value, issues: &mut Issues) -> Option<MeshConfig> {
    let document = match value {
        Value::Null => return Some(MeshConfig::default()),
        Value::Object(document) => document,
        _ => {
            issues.error(&At::ROOT, "a mapping of MeshConfig fields is expected");
            return None;
        }
    };
    if document.contains_key("kind") && document.contains_key("metadata") {
        issues.error(
            &At::ROOT.key("kind"),
            "this is a Kubernetes object; the file must hold the MeshConfig itself",
        );
        return None;
    }
    idle::report(document, issues);
    let document: Document = wire::read(document, issues)?;
    Some(convert(document, issues))
}

fn convert(document: Document, issues: &mut Issues) -> MeshConfig {
    let Document {
        trust_domain,
        trust_domain_aliases,
        root_namespace,
        enable_auto_mtls,
        mesh_mtls,
        path_normalization: Normalization { normalization },
        protocol_detection_timeout,
        inbound_traffic_policy,
        outbound_traffic_policy,
        default_service_export_to,
        access_log_file,
        access_log_format,
        access_log_encoding,
        extension_providers,
        default_providers: logs::Defaults { access_logging },
        default_config: DefaultConfig { gateway_topology: GatewayTopology { num_trusted_proxies } },
    } = document;
    let defaults = MeshConfig::default();
    let root = At::ROOT;
    let (min_tls_1_3, cipher_suites) = read_mtls(mesh_mtls, issues);
    let (extension_providers, log_providers) = providers::read(extension_providers, issues);
    let aliases = root.key("trustDomainAliases");
    MeshConfig {
        trust_domain: match trust_domain {
            Some(name) => trust_domain_name(&name, &root.key("trustDomain"), issues),
            None => defaults.trust_domain,
        },
        trust_domain_aliases: trust_domain_aliases
            .iter()
            .enumerate()
            .map(|(i, name)| trust_domain_name(name, &aliases.index(i), issues))
            .collect(),
        root_namespace: match root_namespace {
            Some(name) => namespace_name(&name, &root.key("rootNamespace"), issues),
            None => defaults.root_namespace,
        },
        enable_auto_mtls: enable_auto_mtls.unwrap_or(defaults.enable_auto_mtls),
        min_tls_1_3,
        cipher_suites,
        path_normalization: normalization.unwrap_or(NormalizationType::Default).into(),
        protocol_detection_timeout_ms: duration(protocol_detection_timeout.as_deref(), issues),
        inbound_mode: match mode(
            inbound_traffic_policy,
            "inboundTrafficPolicy",
            ["PASSTHROUGH", "LOCALHOST"],
            issues,
        ) {
            0 => InboundMode::Passthrough,
            _ => InboundMode::Localhost,
        },
        outbound_allow_any: mode(
            outbound_traffic_policy,
            "outboundTrafficPolicy",
            ["ALLOW_ANY", "REGISTRY_ONLY"],
            issues,
        ) == 0,
        default_service_export_to: export_to::list(
            &default_service_export_to,
            &root.key("defaultServiceExportTo"),
            issues,
        )
        .unwrap_or(defaults.default_service_export_to),
        access_log_file,
        access_log_format,
        access_log_json: access_log_encoding == Some(Encoding::Json),
        extension_providers,
        log_providers,
        default_log_providers: access_logging.into_iter().map(Into::into).collect(),
        num_trusted_proxies,
    }
}

impl From<NormalizationType> for PathNormalization {
    fn from(normalization: NormalizationType) -> Self {
        match normalization {
            NormalizationType::Default | NormalizationType::Base => Self::Base,
            NormalizationType::None => Self::None,
            NormalizationType::MergeSlashes => Self::MergeSlashes,
            NormalizationType::DecodeAndMergeSlashes => Self::DecodeAndMergeSlashes,
        }
    }
}

fn namespace_name(name: &str, at: &At<'_>, issues: &mut Issues) -> Arc<str> {
    if name.is_empty() || name.len() > 63 || !name.chars().all(label) {
        issues.error(at, format!("`{name}` is not the name of a namespace"));
    }
    name.into()
}

fn label(c: char) -> bool {
    c.is_ascii_lowercase() || c.is_ascii_digit() || c == '-'
}

/// SPIFFE-ID §2.1, at most 255 bytes. An alias that is empty would accept every identity once it is made a prefix.
fn trust_domain_name(name: &str, at: &At<'_>, issues: &mut Issues) -> Arc<str> {
    if name.is_empty() || name.len() > 255 || !name.chars().all(|c| label(c) || c == '.' || c == '_') {
        issues.error(at, format!("`{name}` is not a trust domain (a-z, 0-9, `.`, `-`, `_`)"));
    }
    name.into()
}

fn read_mtls(mtls: MeshMtls, issues: &mut Issues) -> (bool, Vec<String>) {
    let MeshMtls { min_protocol_version, cipher_suites } = mtls;
    let at = At::ROOT.key("meshMTLS");
    let min_tls_1_3 = match min_protocol_version.as_deref() {
        None | Some("TLS_AUTO" | "TLSV1_2") => false,
        Some("TLSV1_3") => true,
        Some(other) => {
            let at = at.key("minProtocolVersion");
            issues.error(&at, format!("`{other}` is not known: TLSV1_2, TLSV1_3 or TLS_AUTO"));
            true
        }
    };
    let suite = |c: char| c.is_ascii_alphanumeric() || c == '-' || c == '_';
    for (i, name) in cipher_suites.iter().enumerate() {
        if name.is_empty() || !name.chars().all(suite) {
            issues.error(
                &at.key("cipherSuites").index(i),
                format!("`{name}` is not the name of a cipher suite"),
            );
        }
    }
    (min_tls_1_3, cipher_suites)
}

fn duration(value: Option<&str>, issues: &mut Issues) -> u64 {
    value.map_or(0, |value| {
        values::duration_ms(value).unwrap_or_else(|why| {
            issues.error(&At::ROOT.key("protocolDetectionTimeout"), why);
            0
        })
    })
}

/// Which of `known` the mode of a traffic policy is; the first if there is none, the stricter second if it is neither.
fn mode(policy: TrafficPolicy, field: &str, known: [&str; 2], issues: &mut Issues) -> usize {
    let Some(mode) = policy.mode else { return 0 };
    known.iter().position(|name| *name == mode).unwrap_or_else(|| {
        let at = At::ROOT.key(field);
        issues.error(&at.key("mode"), format!("`{mode}` is not known: {} or {}", known[0], known[1]));
        1
    })
}

#[cfg(test)]
mod tests;
