//! mTLS contexts on both sides (semantics §3.3, §3.5). Holds no key material: certificates and roots are the SDS
//! secrets `default` and `ROOTCA` of the agent.

use mesh::{MeshConfig, Originate, Protocol};

use super::encode::any;
use super::pb::matcher::{StringMatcher, string_matcher::MatchPattern};
use super::pb::tls::{
    CertificateValidationContext, CommonTlsContext, DownstreamTlsContext, SdsSecretConfig,
    SubjectAltNameMatcher, TlsCertificate, TlsParameters, UpstreamTlsContext, common_tls_context,
    downstream_tls_context::SessionTicketKeysType, subject_alt_name_matcher::SanType,
    tls_parameters::TlsProtocol,
};
use super::pb::{Any, bool_value, core, millis, string, u32_value};
use super::rbac::matcher::regex;

/// Paths of PEM files as the proxy sees them.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TlsFiles {
    pub certificate: String,
    pub key: String,
    /// The roots that client certificates must chain to.
    pub roots: String,
}

/// ALPNs that only our own clients offer; the server's filter chains are told apart by them (semantics §3.2).
pub(crate) const ALPN_HTTP: [&str; 3] = ["istio-http/1.0", "istio-http/1.1", "istio-h2"];
pub(crate) const ALPN_TCP: [&str; 2] = ["istio-peer-exchange", "istio"];

/// How long Envoy waits for a file before it goes on without the cluster.
const FILES_MS: u64 = 1000;

const CIPHERS: [&str; 6] = [
    "ECDHE-ECDSA-AES256-GCM-SHA384",
    "ECDHE-RSA-AES256-GCM-SHA384",
    "ECDHE-ECDSA-AES128-GCM-SHA256",
    "ECDHE-RSA-AES128-GCM-SHA256",
    "AES256-GCM-SHA384",
    "AES128-GCM-SHA256",
];

/// Terminates mesh mTLS; the peer's certificate must chain to our root and be of our trust domain or an alias.
pub(crate) fn downstream(mesh: &MeshConfig, http: bool) -> core::TransportSocket {
    let alpn: &[&str] = if http { &["h2", "http/1.1"] } else { &["istio-peer-exchange", "h2", "http/1.1"] };
    terminate(common(mesh, alpn, trust_domains(mesh)))
}

/// The same with certificate, key and roots from files, for a proxy without a control plane.
pub(crate) fn downstream_from_files(mesh: &MeshConfig, files: &TlsFiles) -> core::TransportSocket {
    let TlsFiles { certificate, key, roots } = files;
    let file = |path: &str| {
        let specifier = core::data_source::Specifier::Filename(path.to_owned());
        Some(core::DataSource { specifier: Some(specifier), ..Default::default() })
    };
    let validation =
        CertificateValidationContext { trusted_ca: file(roots), ..validation(trust_domains(mesh)) };
    terminate(CommonTlsContext {
        tls_certificates: vec![TlsCertificate {
            certificate_chain: file(certificate),
            private_key: file(key),
            ..Default::default()
        }],
        tls_certificate_sds_secret_configs: Vec::new(),
        validation_context_type: Some(common_tls_context::ValidationContextType::ValidationContext(
            validation,
        )),
        ..common(mesh, &["h2", "http/1.1"], Vec::new())
    })
}

fn terminate(common: CommonTlsContext) -> core::TransportSocket {
    socket(any(&DownstreamTlsContext {
        common_tls_context: Some(common),
        require_client_certificate: bool_value(true),
        // A resumed session is not verified again, so a changed root or trust domain would not be honoured.
        disable_stateful_session_resumption: true,
        session_ticket_keys_type: Some(SessionTicketKeysType::DisableStatelessSessionResumption(true)),
        ..Default::default()
    }))
}

/// Speaks mesh mTLS to a service whose certificate must carry one of `identities` (SPIFFE IDs, sorted).
pub(crate) fn upstream(
    mesh: &MeshConfig,
    sni: &str,
    protocol: Protocol,
    identities: &[String],
) -> core::TransportSocket {
    let sans = identities.iter().map(|id| uri(string(MatchPattern::Exact(id.clone())))).collect();
    mutual(mesh, sni, protocol, sans)
}

/// The same to a server whose certificate must carry one of `names`, of any kind.
pub(crate) fn upstream_to(
    mesh: &MeshConfig,
    sni: &str,
    protocol: Protocol,
    names: &[String],
) -> core::TransportSocket {
    mutual(mesh, sni, protocol, names.iter().flat_map(|name| named(name)).collect())
}

fn mutual(
    mesh: &MeshConfig,
    sni: &str,
    protocol: Protocol,
    sans: Vec<SubjectAltNameMatcher>,
) -> core::TransportSocket {
    socket(any(&UpstreamTlsContext {
        common_tls_context: Some(common(mesh, upstream_alpn(protocol), sans)),
        sni: sni.to_owned(),
        // Session tickets would skip the verification of the server's identity.
        max_session_keys: u32_value(0),
        ..Default::default()
    }))
}

/// What a client offers. For undeclared protocols this is the TCP list; the HTTP chains put their own list into the
/// filter state `envoy.network.application_protocols`.
pub(crate) fn upstream_alpn(protocol: Protocol) -> &'static [&'static str] {
    match protocol {
        Protocol::Http => &["istio-http/1.1", "istio", "http/1.1"],
        Protocol::Http2 => &["istio-h2", "istio", "h2"],
        Protocol::Tcp | Protocol::Auto => &ALPN_TCP,
    }
}

/// Speaks TLS to a server outside of the mesh. Certificates and roots are files at the proxy, which the agent serves under
/// the names that Istio's agent knows them by; while one is missing, no connection is made.
pub(crate) fn originate(originate: &Originate, protocol: Protocol) -> core::TransportSocket {
    let Originate { certificate, roots, revoked, sni, subject_alt_names, verify } = originate;
    let roots = format!("file-root:{}", roots.as_deref().unwrap_or("system"));
    let file = |path: &String| core::DataSource {
        specifier: Some(core::data_source::Specifier::Filename(path.clone())),
        ..Default::default()
    };
    let validation = CertificateValidationContext {
        match_typed_subject_alt_names: subject_alt_names.iter().flat_map(|name| named(name)).collect(),
        crl: revoked.as_ref().map(file),
        ..Default::default()
    };
    let validation = if *verify {
        common_tls_context::ValidationContextType::CombinedValidationContext(
            common_tls_context::CombinedCertificateValidationContext {
                default_validation_context: Some(validation),
                validation_context_sds_secret_config: Some(file_secret(&roots)),
                ..Default::default()
            },
        )
    } else {
        common_tls_context::ValidationContextType::ValidationContext(Default::default())
    };
    let certificate =
        certificate.iter().map(|(chain, key)| file_secret(&format!("file-cert:{chain}~{key}"))).collect();
    let alpn: &[&str] = if protocol == Protocol::Http2 { &["h2"] } else { &[] };
    let common = CommonTlsContext {
        tls_params: Some(TlsParameters {
            tls_minimum_protocol_version: TlsProtocol::TlSv12 as i32,
            tls_maximum_protocol_version: TlsProtocol::TlSv13 as i32,
            ..Default::default()
        }),
        tls_certificate_sds_secret_configs: certificate,
        alpn_protocols: alpn.iter().map(|protocol| (*protocol).to_owned()).collect(),
        validation_context_type: Some(validation),
        ..Default::default()
    };
    socket(any(&UpstreamTlsContext {
        common_tls_context: Some(common),
        sni: sni.clone(),
        // A resumed session is not verified again.
        max_session_keys: u32_value(0),
        ..Default::default()
    }))
}

/// Matches that name in a certificate, whichever kind of name it is.
fn named(name: &str) -> [SubjectAltNameMatcher; 4] {
    [SanType::Dns, SanType::Uri, SanType::Email, SanType::IpAddress].map(|kind| SubjectAltNameMatcher {
        san_type: kind as i32,
        matcher: Some(string(MatchPattern::Exact(name.to_owned()))),
        ..Default::default()
    })
}

/// A transport socket without encryption.
pub(crate) fn raw_buffer() -> core::TransportSocket {
    use envoy_types::pb::envoy::extensions::transport_sockets::raw_buffer::v3::RawBuffer;
    core::TransportSocket {
        name: "envoy.transport_sockets.raw_buffer".to_owned(),
        config_type: Some(core::transport_socket::ConfigType::TypedConfig(any(&RawBuffer {}))),
    }
}

fn socket(config: Any) -> core::TransportSocket {
    core::TransportSocket {
        name: "envoy.transport_sockets.tls".to_owned(),
        config_type: Some(core::transport_socket::ConfigType::TypedConfig(config)),
    }
}

/// `spiffe://TD/` with its slash, for the trust domain and its aliases. Like Istio's, the check takes a URI SAN or a DNS
/// SAN spelled that way; RBAC reads both as well, and our CA issues only the former.
fn trust_domains(mesh: &MeshConfig) -> Vec<SubjectAltNameMatcher> {
    let prefixes =
        mesh.trust_domains().into_iter().map(|td| string(MatchPattern::Prefix(format!("spiffe://{td}/"))));
    prefixes
        .flat_map(|prefix| {
            let dns = SubjectAltNameMatcher {
                san_type: SanType::Dns as i32,
                matcher: Some(prefix.clone()),
                ..Default::default()
            };
            [uri(prefix), dns]
        })
        .collect()
}

fn uri(matcher: StringMatcher) -> SubjectAltNameMatcher {
    SubjectAltNameMatcher { san_type: SanType::Uri as i32, matcher: Some(matcher), ..Default::default() }
}

fn validation(mut sans: Vec<SubjectAltNameMatcher>) -> CertificateValidationContext {
    if sans.is_empty() {
        // An empty list would accept every certificate of the mesh; this expression matches no string at all.
        sans.push(uri(regex("[^\\s\\S]".to_owned())));
    }
    CertificateValidationContext { match_typed_subject_alt_names: sans, ..Default::default() }
}

fn common(mesh: &MeshConfig, alpn: &[&str], sans: Vec<SubjectAltNameMatcher>) -> CommonTlsContext {
    let minimum = if mesh.min_tls_1_3 { TlsProtocol::TlSv13 } else { TlsProtocol::TlSv12 };
    let cipher_suites = if mesh.cipher_suites.is_empty() {
        CIPHERS.map(str::to_owned).to_vec()
    } else {
        mesh.cipher_suites.clone()
    };
    let combined = common_tls_context::CombinedCertificateValidationContext {
        default_validation_context: Some(validation(sans)),
        validation_context_sds_secret_config: Some(secret("ROOTCA")),
        ..Default::default()
    };
    CommonTlsContext {
        tls_params: Some(TlsParameters {
            tls_minimum_protocol_version: minimum as i32,
            tls_maximum_protocol_version: TlsProtocol::TlSv13 as i32,
            cipher_suites,
            ..Default::default()
        }),
        tls_certificate_sds_secret_configs: vec![secret("default")],
        alpn_protocols: alpn.iter().map(|p| (*p).to_owned()).collect(),
        validation_context_type: Some(common_tls_context::ValidationContextType::CombinedValidationContext(
            combined,
        )),
        ..Default::default()
    }
}

/// Waits without limit: a listener or cluster without its certificate must not open.
fn secret(name: &str) -> SdsSecretConfig {
    secret_within(name, 0)
}

/// Files may be missing for ever: the cluster does not hold up the others, and makes no connection while it waits.
fn file_secret(name: &str) -> SdsSecretConfig {
    secret_within(name, FILES_MS)
}

fn secret_within(name: &str, wait_ms: u64) -> SdsSecretConfig {
    let agent = core::grpc_service::TargetSpecifier::EnvoyGrpc(core::grpc_service::EnvoyGrpc {
        cluster_name: "sds-grpc".to_owned(),
        ..Default::default()
    });
    let api = core::ApiConfigSource {
        api_type: core::api_config_source::ApiType::Grpc as i32,
        transport_api_version: core::ApiVersion::V3 as i32,
        grpc_services: vec![core::GrpcService { target_specifier: Some(agent), ..Default::default() }],
        set_node_on_first_message_only: true,
        ..Default::default()
    };
    SdsSecretConfig {
        name: name.to_owned(),
        sds_config: Some(core::ConfigSource {
            initial_fetch_timeout: millis(wait_ms),
            resource_api_version: core::ApiVersion::V3 as i32,
            config_source_specifier: Some(core::config_source::ConfigSourceSpecifier::ApiConfigSource(api)),
            ..Default::default()
        }),
    }
}
