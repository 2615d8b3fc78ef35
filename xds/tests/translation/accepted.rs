//! Envoy accepts everything that can be generated: served over ADS, or as a static file.

use std::collections::BTreeMap;
use std::process::Command;
use std::sync::Arc;

use mesh::{
    ExtAuthz, ExtAuthzKind, ExtensionProvider, HeaderMatch, InboundMode, IncludeBody, LogFormat, LogService,
    Logs, MeshConfig, PathNormalization, Protocol, Service, ServicePort, Sink, TargetPort,
};
use policy::{ClaimToHeader, EffectivePolicy, Jwks, JwtHeader, JwtRule, MtlsMode, Presence};
use proptest::strategy::{Strategy, ValueTree};
use proptest::test_runner::TestRunner;
use xds::build::{
    Capture, Inbound, Outbound, OutboundEndpoint, OutboundPort, OutboundService, Provider, ProxyShape,
    Static, StaticPort, TlsFiles, Upstream,
};

use super::envoy::{self, Envoy};
use super::pki::Ca;
use super::serve::Resources;
use super::{fixtures, net, samples};

fn mesh_config() -> MeshConfig {
    let authorizer = |kind| ExtAuthz {
        kind,
        service: "ext/authz".into(),
        port: 9000,
        timeout_ms: 1500,
        fail_open: true,
        status_on_error: Some(503),
        include_body: Some(IncludeBody { max_bytes: 100, allow_partial: true, pack_as_bytes: true }),
    };
    let header = || {
        vec![HeaderMatch::Exact("a".into()), HeaderMatch::Prefix("b".into()), HeaderMatch::Suffix("c".into())]
    };
    let http = ExtAuthzKind::Http {
        path_prefix: "/check".into(),
        include_headers: header(),
        additional_headers: BTreeMap::from([("x".into(), "y".into()), ("z".into(), "1".into())]),
        upstream_on_allow: header(),
        downstream_on_deny: header(),
        downstream_on_allow: header(),
    };
    let provider =
        |name: &str, kind| ExtensionProvider { name: name.into(), ext_authz: Some(authorizer(kind)) };
    MeshConfig {
        trust_domain_aliases: vec!["old".into()],
        access_log_file: "/dev/null".into(),
        path_normalization: PathNormalization::DecodeAndMergeSlashes,
        extension_providers: vec![
            provider("ext", ExtAuthzKind::Grpc),
            provider("ext-b", http.clone()),
            provider("lost", http),
            provider("lost-grpc", ExtAuthzKind::Grpc),
        ],
        log_providers: log_providers(),
        default_log_providers: ["file", "http", "tcp", "otel"].map(Into::into).to_vec(),
        ..MeshConfig::default()
    }
}

/// One of each kind; the services need not be there.
fn log_providers() -> BTreeMap<Arc<str>, Sink> {
    let service = |kind| Sink::Service {
        kind,
        service: "ext/logs.ext.svc.cluster.local".into(),
        port: 9001,
        log_name: "log".into(),
        body: String::new(),
    };
    let format = LogFormat::Json(r#"{"code": "%RESPONSE_CODE%", "why": "%RESPONSE_CODE_DETAILS%"}"#.into());
    [
        ("file".into(), Sink::File { path: "/dev/null".into(), format }),
        ("http".into(), service(LogService::Http)),
        ("tcp".into(), service(LogService::Tcp)),
        ("otel".into(), service(LogService::OpenTelemetry)),
    ]
    .into()
}

fn providers() -> BTreeMap<Arc<str>, Provider> {
    let at = || Provider {
        cluster: "outbound|9000||authz.ext.svc.cluster.local".into(),
        hostname: "authz.ext.svc.cluster.local".into(),
    };
    [("ext".into(), at()), ("ext-b".into(), at())].into()
}

pub(crate) fn jwt(issuer: &str, jwks: Jwks) -> JwtRule {
    JwtRule {
        issuer: issuer.into(),
        audiences: vec![],
        jwks,
        from_headers: vec![],
        from_params: vec![],
        from_cookies: vec![],
        output_payload_to_header: None,
        forward_original_token: false,
        output_claim_to_headers: vec![],
        space_delimited_claims: vec![],
        timeout_ms: 5000,
        presence: Presence::Optional,
    }
}

fn everything() -> EffectivePolicy {
    let mut policy = samples::everything();
    policy.mtls.ports = [(81, MtlsMode::Strict), (82, MtlsMode::Disable), (9999, MtlsMode::Strict)].into();
    policy.drain = vec![(policy::ObjectName::new("foo", "a"), 7)];
    policy.custom.insert("ext-b".into(), policy.deny.clone());
    let full = JwtRule {
        audiences: vec!["a".into()],
        from_headers: vec![JwtHeader { name: "x-token".into(), prefix: "Bearer ".into() }],
        from_params: vec!["t".into()],
        from_cookies: vec!["c".into()],
        output_payload_to_header: Some("x-payload".into()),
        forward_original_token: true,
        output_claim_to_headers: vec![ClaimToHeader { header: "x-sub".into(), claim: "sub".into() }],
        space_delimited_claims: vec!["groups".into()],
        presence: Presence::Required,
        ..jwt("b", Jwks::Remote(None))
    };
    policy.jwt = vec![
        jwt("", Jwks::RefuseAll),
        jwt("a", Jwks::RefuseAll),
        full.clone(),
        JwtRule { issuer: "c".into(), ..full },
    ];
    policy
}

pub(crate) fn service(
    name: &str,
    cluster_ip: Option<&str>,
    ports: &[(u16, Protocol, u16)],
    at: &str,
) -> OutboundService {
    let ports: Vec<OutboundPort> = ports
        .iter()
        .map(|(port, protocol, target)| OutboundPort {
            port: ServicePort {
                name: String::new(),
                port: *port,
                target: TargetPort::Number(*target),
                protocol: *protocol,
            },
            endpoints: vec![OutboundEndpoint {
                address: at.parse().unwrap(),
                port: *target,
                mutual_tls: true,
            }],
            identities: vec![format!("spiffe://cluster.local/ns/foo/sa/{name}")],
            tls: Default::default(),
        })
        .collect();
    OutboundService {
        service: Arc::new(Service {
            namespace: "foo".into(),
            name: name.into(),
            hostname: format!("{name}.foo.svc.cluster.local").into(),
            cluster_ips: cluster_ip.map(|ip| ip.parse().unwrap()).into_iter().collect(),
            ports: ports.iter().map(|p| p.port.clone()).collect(),
            selector: None,
            created: 0,
            export_to: None,
        }),
        ports,
    }
}

fn services() -> Vec<OutboundService> {
    let ports = [
        (80, Protocol::Http, 8080),
        (81, Protocol::Http2, 81),
        (82, Protocol::Tcp, 82),
        (83, Protocol::Auto, 83),
        (15001, Protocol::Http, 1),
    ];
    let mut unknown = service("unknown", None, &ports, "10.0.0.2");
    for port in &mut unknown.ports {
        port.identities.clear();
    }
    vec![
        service("a", Some("10.1.0.1"), &ports, "10.0.0.1"),
        service("b", Some("fd00::1"), &ports, "fd00::2"),
        // The same address twice is one listener's worth.
        service("c", None, &ports, "10.0.0.2"),
        unknown,
    ]
}

fn resources(
    mesh: &MeshConfig,
    policy: &EffectivePolicy,
    shape: &ProxyShape,
    addresses: &[std::net::IpAddr],
) -> Resources {
    let ports = fixtures::ports(&[
        (80, Protocol::Http),
        (81, Protocol::Auto),
        (82, Protocol::Tcp),
        (83, Protocol::Http2),
    ]);
    let workload = fixtures::workload(addresses);
    let providers = providers();
    let logs = Logs::of_mesh(mesh);
    let mut all = xds::build::own(&Inbound {
        mesh,
        workload: &workload,
        ports: &ports,
        policy,
        shape,
        providers: &providers,
        logs: &logs.server,
    });
    let services = services();
    for service in &services {
        all.extend(xds::build::service(mesh, &logs.client, service, shape.shared()));
    }
    let services: Vec<_> = services.iter().collect();
    all.extend(xds::build::outbound(&Outbound {
        mesh,
        namespace: "foo",
        addresses,
        services: &services,
        allow_any: mesh.outbound_allow_any,
        shape,
        logs: &logs.client,
    }));
    // As the tables that a session has: a name occurs once.
    let table: BTreeMap<_, _> = all.into_iter().map(|(t, r)| ((t, r.name.clone()), r)).collect();
    table.into_iter().map(|((t, _), r)| (t, r)).collect()
}

async fn accepts(envoy: &Envoy, resources: Resources) {
    envoy.server.publish(resources).await.unwrap_or_else(|e| panic!("refused: {e:#?}"));
}

#[tokio::test]
async fn every_shape_with_everything() {
    let ca = Ca::new();
    let identity = ca.issue(&["spiffe://cluster.local/ns/foo/sa/test"]);
    let Some(envoy) = Envoy::start(&identity, &ca.pem).await else { return };
    let upstreams = [
        (Upstream { host: "a.foo".into(), port: 82 }, std::net::SocketAddr::new(net::own_address(), 5432)),
        (Upstream { host: "nobody".into(), port: 82 }, std::net::SocketAddr::new(net::own_address(), 5433)),
    ];
    let addresses = [net::own_address(), net::own_address()];
    let bound = Capture::None { apps: BTreeMap::new(), upstreams: upstreams.into() };
    for (capture, inline_policy) in [(bound.clone(), false), (bound, true)] {
        let shape = ProxyShape { capture, inline_policy, ipv6: false };
        accepts(&envoy, resources(&mesh_config(), &everything(), &shape, &addresses)).await;
    }
}

/// 15006 and 15001 can be had by one process at a time, so they are moved; all else is as generated.
#[tokio::test]
async fn every_redirected_shape_with_everything() {
    let ca = Ca::new();
    let identity = ca.issue(&["spiffe://cluster.local/ns/foo/sa/test"]);
    let Some(envoy) = Envoy::start(&identity, &ca.pem).await else { return };
    let mut localhost = mesh_config();
    localhost.inbound_mode = InboundMode::Localhost;
    localhost.access_log_json = true;
    localhost.default_log_providers.clear();
    localhost.outbound_allow_any = false;
    localhost.min_tls_1_3 = true;
    for mesh in [mesh_config(), localhost] {
        for capture in [Capture::Redirect, Capture::Nft] {
            for inline_policy in [false, true] {
                let shape = ProxyShape { capture: capture.clone(), inline_policy, ipv6: true };
                let all = resources(&mesh, &everything(), &shape, &[]);
                accepts(&envoy, fixtures::elsewhere(all, net::own_address())).await;
            }
        }
    }
}

/// A NACK is a stale policy (semantics §10.6): whatever a policy says, Envoy must take it.
#[tokio::test]
async fn any_policy() {
    let ca = Ca::new();
    let identity = ca.issue(&["spiffe://cluster.local/ns/foo/sa/test"]);
    let Some(envoy) = Envoy::start(&identity, &ca.pem).await else { return };
    let shape = ProxyShape {
        capture: Capture::None { apps: BTreeMap::new(), upstreams: BTreeMap::new() },
        inline_policy: true,
        ipv6: false,
    };
    let address = net::own_address();
    let mut runner = TestRunner::deterministic();
    for _ in 0..20 {
        let policy = samples::policies(true).new_tree(&mut runner).unwrap().current();
        accepts(&envoy, resources(&mesh_config(), &policy, &shape, &[address])).await;
    }
}

#[test]
fn the_static_configuration() {
    let Some(binary) = envoy::binary() else { return };
    let dir = tempfile::tempdir().unwrap();
    let ca = Ca::new();
    let identity = ca.issue(&["spiffe://cluster.local/ns/foo/sa/test"]);
    let file = |name: &str, text: &str| {
        let path = dir.path().join(name);
        std::fs::write(&path, text).unwrap();
        path.to_str().unwrap().to_owned()
    };
    let tls = TlsFiles {
        certificate: file("cert.pem", &identity.cert),
        key: file("key.pem", &identity.key),
        roots: file("roots.pem", &ca.pem),
    };
    let port = |listen: u16, protocol| StaticPort {
        listen: ([127, 0, 0, 1], listen).into(),
        app: ([127, 0, 0, 1], 9000).into(),
        protocol,
    };
    let ports = [
        port(18080, Protocol::Http),
        port(18081, Protocol::Auto),
        port(18082, Protocol::Tcp),
        port(18083, Protocol::Http2),
    ];
    for mode in [MtlsMode::Disable, MtlsMode::Permissive, MtlsMode::Strict] {
        for tls in [None, Some(&tls)] {
            let mut policy = everything();
            policy.mtls.mode = mode;
            let config = Static { mesh: &MeshConfig::default(), policy: &policy, ports: &ports, tls };
            let path = file("envoy.yaml", &xds::build::envoy_static(&config).unwrap());
            let out = Command::new(&binary).args(["--mode", "validate", "-c", &path]).output().unwrap();
            assert!(out.status.success(), "{}", String::from_utf8_lossy(&out.stderr));
        }
    }
}
