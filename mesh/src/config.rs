//! The mesh configuration: the fields of Istio's MeshConfig that touch policy (semantics §1.6).

use std::collections::BTreeMap;
use std::sync::Arc;

use crate::telemetry::Sink;
use crate::visibility::ExportTo;

/// Defaults are Istio's.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct MeshConfig {
    pub trust_domain: Arc<str>,
    pub trust_domain_aliases: Vec<Arc<str>>,
    pub root_namespace: Arc<str>,
    pub enable_auto_mtls: bool,
    /// `meshMTLS.minProtocolVersion` is TLSV1_3.
    pub min_tls_1_3: bool,
    pub cipher_suites: Vec<String>,
    pub path_normalization: PathNormalization,
    /// Milliseconds; 0 waits for the first bytes without limit.
    pub protocol_detection_timeout_ms: u64,
    pub inbound_mode: InboundMode,
    /// `outboundTrafficPolicy.mode` is ALLOW_ANY (default) rather than REGISTRY_ONLY.
    pub outbound_allow_any: bool,
    /// What a service without `exportTo` is read as.
    pub default_service_export_to: ExportTo,
    /// Empty: no access log, unless a provider is asked for.
    pub access_log_file: String,
    /// Empty: the default format.
    pub access_log_format: String,
    pub access_log_json: bool,
    pub extension_providers: Vec<ExtensionProvider>,
    /// The providers of access logs among `extensionProviders`.
    pub log_providers: BTreeMap<Arc<str>, Sink>,
    /// `defaultProviders.accessLogging`.
    pub default_log_providers: Vec<Arc<str>>,
    /// `defaultConfig.gatewayTopology.numTrustedProxies`.
    pub num_trusted_proxies: u32,
}

impl Default for MeshConfig {
    fn default() -> Self {
        Self {
            trust_domain: "cluster.local".into(),
            trust_domain_aliases: Vec::new(),
            root_namespace: "istio-system".into(),
            enable_auto_mtls: true,
            min_tls_1_3: false,
            cipher_suites: Vec::new(),
            path_normalization: PathNormalization::Base,
            protocol_detection_timeout_ms: 0,
            inbound_mode: InboundMode::Passthrough,
            outbound_allow_any: true,
            default_service_export_to: ExportTo::All,
            access_log_file: String::new(),
            access_log_format: String::new(),
            access_log_json: false,
            extension_providers: Vec::new(),
            log_providers: BTreeMap::new(),
            default_log_providers: Vec::new(),
            num_trusted_proxies: 0,
        }
    }
}

impl MeshConfig {
    /// The trust domain and its aliases, without duplicates or empty strings, in order.
    pub fn trust_domains(&self) -> Vec<Arc<str>> {
        let mut all: Vec<Arc<str>> = Vec::new();
        for td in std::iter::once(&self.trust_domain).chain(&self.trust_domain_aliases) {
            if !td.is_empty() && !all.contains(td) {
                all.push(td.clone());
            }
        }
        all
    }
}

/// `pathNormalization.normalization` (semantics §4.7).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum PathNormalization {
    None,
    /// Also DEFAULT.
    Base,
    MergeSlashes,
    DecodeAndMergeSlashes,
}

/// `inboundTrafficPolicy.mode`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum InboundMode {
    Passthrough,
    Localhost,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ExtensionProvider {
    pub name: Arc<str>,
    /// `None`: a provider of a kind that has nothing to do with authorization, or one that could not be read.
    pub ext_authz: Option<ExtAuthz>,
}

/// `envoyExtAuthzHttp` / `envoyExtAuthzGrpc` (semantics §4.8).
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ExtAuthz {
    pub kind: ExtAuthzKind,
    /// `[NAMESPACE/]HOST`.
    pub service: String,
    pub port: u16,
    /// Milliseconds; default 600 s.
    pub timeout_ms: u64,
    pub fail_open: bool,
    pub status_on_error: Option<u32>,
    pub include_body: Option<IncludeBody>,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub enum ExtAuthzKind {
    Grpc,
    Http {
        path_prefix: String,
        include_headers: Vec<HeaderMatch>,
        additional_headers: BTreeMap<String, String>,
        upstream_on_allow: Vec<HeaderMatch>,
        downstream_on_deny: Vec<HeaderMatch>,
        downstream_on_allow: Vec<HeaderMatch>,
    },
}

/// Case-insensitive header name: exact, prefix (`x-*`) or suffix (`*-id`).
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum HeaderMatch {
    Exact(String),
    Prefix(String),
    Suffix(String),
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct IncludeBody {
    pub max_bytes: u32,
    pub allow_partial: bool,
    pub pack_as_bytes: bool,
}

#[cfg(test)]
mod tests {
    use super::*;

    /// An empty alias would become the SAN prefix `spiffe:///` (semantics §10.9).
    #[test]
    fn trust_domains_have_no_empty_and_no_double() {
        let aliases = ["old", "", "cluster.local", "older", "old"];
        let mesh =
            MeshConfig { trust_domain_aliases: aliases.map(Into::into).to_vec(), ..MeshConfig::default() };
        let domains: Vec<String> = mesh.trust_domains().iter().map(ToString::to_string).collect();
        assert_eq!(domains, ["cluster.local", "old", "older"]);
    }
}
