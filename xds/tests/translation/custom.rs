//! CUSTOM policies before real external authorizers (semantics §4.8, §10.13).

use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use envoy_types::pb::envoy::service::auth::v3::authorization_server::{Authorization, AuthorizationServer};
use envoy_types::pb::envoy::service::auth::v3::{CheckRequest, CheckResponse};
use envoy_types::pb::google::rpc;
use mesh::{ExtAuthz, ExtAuthzKind, ExtensionProvider, Protocol};
use policy::{ActionRules, Atom, EffectivePolicy, PathMatch, StringMatch};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tonic::{Request, Response, Status};
use xds::build::{Provider, SharedShape};

use super::accepted::service;
use super::bed::{AUTO, Bed, HTTP, TCP};
use super::fixtures;

type Asked = Arc<AtomicUsize>;

/// An HTTP authorizer that always answers `status`, and how often it was asked.
async fn http_authorizer(status: &'static str) -> (SocketAddr, Asked) {
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let (address, asked) = (listener.local_addr().unwrap(), Asked::default());
    let count = asked.clone();
    tokio::spawn(async move {
        while let Ok((mut stream, _)) = listener.accept().await {
            let count = count.clone();
            tokio::spawn(async move {
                let mut buffer = [0; 4096];
                while stream.read(&mut buffer).await.is_ok_and(|n| n > 0) {
                    count.fetch_add(1, Ordering::Relaxed);
                    let answer = format!("HTTP/1.1 {status}\r\ncontent-length: 0\r\n\r\n");
                    if stream.write_all(answer.as_bytes()).await.is_err() {
                        return;
                    }
                }
            });
        }
    });
    (address, asked)
}

struct Grpc(Asked);

#[tonic::async_trait]
impl Authorization for Grpc {
    async fn check(&self, _: Request<CheckRequest>) -> Result<Response<CheckResponse>, Status> {
        self.0.fetch_add(1, Ordering::Relaxed);
        let status = Some(rpc::Status { code: 7, ..Default::default() });
        Ok(Response::new(CheckResponse { status, ..Default::default() }))
    }
}

/// A gRPC authorizer that refuses everything.
async fn grpc_authorizer() -> (SocketAddr, Asked) {
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let (address, asked) = (listener.local_addr().unwrap(), Asked::default());
    let router =
        tonic::transport::Server::builder().add_service(AuthorizationServer::new(Grpc(asked.clone())));
    tokio::spawn(router.serve_with_incoming(tokio_stream::wrappers::TcpListenerStream::new(listener)));
    (address, asked)
}

/// Makes `name` a provider of the mesh that is reached at `at`; `None`: its service does not exist.
fn provide(bed: &mut Bed, name: &str, kind: ExtAuthzKind, at: Option<SocketAddr>) {
    let protocol = if kind == ExtAuthzKind::Grpc { Protocol::Http2 } else { Protocol::Http };
    let authorizer = ExtAuthz {
        kind,
        service: format!("foo/authz-{name}"),
        port: 9000,
        timeout_ms: 5000,
        fail_open: false,
        status_on_error: None,
        include_body: None,
    };
    bed.mesh.extension_providers.push(ExtensionProvider { name: name.into(), ext_authz: Some(authorizer) });
    let Some(at) = at else { return };
    let mut service = service(&format!("authz-{name}"), None, &[(9000, protocol, at.port())], "127.0.0.1");
    service.ports[0].endpoints[0].mutual_tls = false;
    let hostname = service.service.hostname.clone();
    let cluster = format!("outbound|9000||{hostname}").into();
    bed.providers.insert(name.into(), Provider { cluster, hostname });
    let shape = SharedShape { captured: false, ipv6: false };
    bed.others.extend(xds::build::service(&bed.mesh, &[], &service, shape));
}

fn http() -> ExtAuthzKind {
    ExtAuthzKind::Http {
        path_prefix: String::new(),
        include_headers: vec![],
        additional_headers: [].into(),
        upstream_on_allow: vec![],
        downstream_on_deny: vec![],
        downstream_on_allow: vec![],
    }
}

fn custom(rules: &[(&str, Atom)]) -> EffectivePolicy {
    let rules = rules.iter().map(|(provider, atom)| {
        let rule = fixtures::rule(&format!("ask-{provider}"), std::slice::from_ref(atom), &[]);
        ((*provider).into(), ActionRules { enforced: Some(vec![rule]), shadow: None })
    });
    EffectivePolicy { custom: rules.collect(), ..EffectivePolicy::default() }
}

fn path(text: &str) -> Atom {
    Atom::Path(PathMatch::Plain(StringMatch::parse(text)))
}

#[tokio::test]
async fn each_provider_is_asked_for_its_own_rules_only() {
    for inline in [false, true] {
        let Some(mut bed) = Bed::new().await else { return };
        bed.inline = inline;
        let (refusing, asked_a) = http_authorizer("403 Forbidden").await;
        let (agreeing, asked_ab) = http_authorizer("200 OK").await;
        provide(&mut bed, "a", http(), Some(refusing));
        provide(&mut bed, "a-b", http(), Some(agreeing));
        provide(&mut bed, "lost", http(), None);
        let rules = [
            ("a", path("/a")),
            ("a-b", path("/b")),
            ("lost", path("/lost")),
            ("never-configured", path("/n")),
        ];
        bed.enforce(&custom(&rules)).await;
        for (path, status) in [("/", 200), ("/a", 403), ("/b", 200), ("/lost", 403), ("/n", 403), ("/x", 200)]
        {
            assert_eq!(bed.http(HTTP, Some(&bed.client), path).await, Ok(status), "{path}");
        }
        let asked = [&asked_a, &asked_ab].map(|asked| asked.load(Ordering::Relaxed));
        assert_eq!(asked, [1, 1]);
        // Without policies the slots are still there, and ask nobody.
        bed.enforce(&EffectivePolicy::default()).await;
        assert_eq!(bed.http(HTTP, Some(&bed.client), "/a").await, Ok(200));
        // An HTTP authorizer has no say about TCP (semantics §4.4).
        bed.enforce(&custom(&[("a", Atom::Port(TCP))])).await;
        assert!(bed.tcp(TCP, Some(&bed.client)).await);
    }
}

#[tokio::test]
async fn grpc_authorizers_decide_about_tcp_as_well() {
    let Some(mut bed) = Bed::new().await else { return };
    let (address, asked) = grpc_authorizer().await;
    provide(&mut bed, "ext", ExtAuthzKind::Grpc, Some(address));
    bed.enforce(&custom(&[("ext", Atom::Port(TCP))])).await;
    assert!(bed.tcp(AUTO, Some(&bed.client)).await);
    assert_eq!(bed.http(HTTP, Some(&bed.client), "/").await, Ok(200));
    assert_eq!(asked.load(Ordering::Relaxed), 0);
    assert!(!bed.tcp(TCP, Some(&bed.client)).await);
    assert_eq!(asked.load(Ordering::Relaxed), 1);
    bed.enforce(&custom(&[("ext", path("/a"))])).await;
    assert_eq!(bed.http(HTTP, Some(&bed.client), "/b").await, Ok(200));
    assert_eq!(asked.load(Ordering::Relaxed), 1);
    assert_eq!(bed.http(HTTP, Some(&bed.client), "/a").await, Ok(403));
    assert_eq!(asked.load(Ordering::Relaxed), 2);
}
