//! The client's side: auto-mTLS and secure naming between two real Envoys (semantics §3.5), neither application knowing.

use std::collections::BTreeMap;
use std::net::SocketAddr;

use mesh::{MeshConfig, Protocol};
use policy::{EffectivePolicy, MtlsMode};
use xds::build::{Capture, Outbound, OutboundService, ProxyShape, Upstream};

use super::accepted::service;
use super::bed::{AUTO, Bed, HTTP, TCP};
use super::envoy::Envoy;
use super::{fixtures, net};

struct Client {
    envoy: Envoy,
    address: std::net::IpAddr,
    db: SocketAddr,
}

impl Client {
    async fn new(server: &Bed) -> Option<Self> {
        let identity = server.ca.issue(&["spiffe://cluster.local/ns/foo/sa/client"]);
        let address = net::own_address();
        Some(Self {
            envoy: Envoy::start(&identity, &server.ca.pem).await?,
            address,
            db: SocketAddr::new(address, 5432),
        })
    }

    async fn knows(&self, services: &[OutboundService]) {
        let upstream = Upstream { host: "shop".into(), port: 82 };
        let capture = Capture::None { apps: BTreeMap::new(), upstreams: [(upstream, self.db)].into() };
        let shape = ProxyShape { capture, inline_policy: false, ipv6: false };
        let mesh = MeshConfig { access_log_file: "/dev/stderr".into(), ..MeshConfig::default() };
        let logs = mesh::Logs::of_mesh(&mesh).client;
        let mut all = Vec::new();
        for service in services {
            all.extend(xds::build::service(&mesh, &logs, service, shape.shared()));
        }
        let services: Vec<_> = services.iter().collect();
        let addresses = [self.address];
        let outbound = Outbound {
            mesh: &mesh,
            namespace: "foo",
            addresses: &addresses,
            services: &services,
            allow_any: mesh.outbound_allow_any,
            shape: &shape,
            logs: &logs,
        };
        all.extend(xds::build::outbound(&outbound));
        self.envoy.server.publish(all).await.unwrap();
        net::opens(SocketAddr::new(self.address, 15001)).await;
    }

    /// Asks for `host` through the forward listener.
    async fn get(&self, host: &str) -> (u16, String) {
        let mut stream = net::plain(SocketAddr::new(self.address, 15001)).await.unwrap();
        net::http_to(&mut stream, host, "GET", "/", "").await.unwrap()
    }
}

fn shop(server: &Bed) -> OutboundService {
    let ports = [(80, Protocol::Http, HTTP), (81, Protocol::Auto, AUTO), (82, Protocol::Tcp, TCP)];
    let mut shop = service("shop", None, &ports, &server.address.to_string());
    for port in &mut shop.ports {
        port.identities = vec!["spiffe://cluster.local/ns/foo/sa/test".into()];
    }
    shop
}

#[tokio::test]
async fn two_sidecars_speak_mtls() {
    let Some(server) = Bed::new().await else { return };
    let Some(client) = Client::new(&server).await else { return };
    let mut strict = EffectivePolicy::default();
    strict.mtls.mode = MtlsMode::Strict;
    server.enforce(&strict).await;
    client.knows(&[shop(&server)]).await;
    for host in [
        "shop",
        "shop:80",
        "SHOP.foo",
        "shop.foo.svc.cluster.local",
        "shop.foo.svc.cluster.local:80",
        "shop:81",
    ] {
        let (status, seen) = client.get(host).await;
        assert_eq!(status, 200, "{host}");
        // The server's proxy says who called.
        assert!(seen.contains("URI=spiffe://cluster.local/ns/foo/sa/client"), "{host}: {seen}");
    }
    for host in ["shop:82", "shop:9", "other", "shop.bar"] {
        assert_eq!(client.get(host).await.0, 502, "{host}");
    }
    let mut db = net::plain(client.db).await.unwrap();
    assert!(net::echo(&mut db).await);
}

/// Semantics §10.18: whoever answers must be one of the service's own identities.
#[tokio::test]
async fn an_impostor_is_not_spoken_to() {
    let Some(server) = Bed::new().await else { return };
    let Some(client) = Client::new(&server).await else { return };
    server.enforce(&EffectivePolicy::default()).await;
    for identities in [vec![], vec!["spiffe://cluster.local/ns/foo/sa/other".to_owned()]] {
        let mut shop = shop(&server);
        for port in &mut shop.ports {
            port.identities.clone_from(&identities);
        }
        client.knows(&[shop]).await;
        for host in ["shop", "shop:81"] {
            assert_eq!(client.get(host).await.0, 503, "{host}");
        }
        let mut db = net::plain(client.db).await.unwrap();
        assert!(!net::echo(&mut db).await);
    }
    client.envoy.logged("CERTIFICATE_VERIFY_FAILED").await;
}

/// An endpoint without mTLS is spoken to in plaintext, and an alias of the trust domain counts as the same identity.
#[tokio::test]
async fn endpoints_without_mtls() {
    let Some(server) = Bed::new().await else { return };
    let Some(client) = Client::new(&server).await else { return };
    server.enforce(&EffectivePolicy::default()).await;
    let mut shop = shop(&server);
    for port in &mut shop.ports {
        port.endpoints[0].mutual_tls = false;
    }
    client.knows(&[shop]).await;
    let (status, seen) = client.get("shop").await;
    assert_eq!(status, 200);
    assert!(!seen.contains("spiffe://"), "{seen}");
}

/// A redirected client sniffs an undeclared port: HTTP/1.1 and HTTP/2 arrive at the server's HTTP chain (the ALPN that
/// the filter state offers), other bytes at its TCP chain. The redirection itself is what `tests/lab` tries.
#[tokio::test]
async fn an_undeclared_port_is_sniffed_on_both_sides() {
    let Some(server) = Bed::new().await else { return };
    let Some(client) = Client::new(&server).await else { return };
    // Only HTTP can be allowed by this, and only with an identity.
    let mut policy = EffectivePolicy::default();
    policy.mtls.mode = MtlsMode::Strict;
    let path = policy::Atom::Path(policy::PathMatch::Plain(policy::StringMatch::parse("/*")));
    let caller = policy::Atom::Principal(policy::StringMatch::parse("*/sa/client"));
    policy.allow.enforced = Some(vec![fixtures::rule("http", &[path], &[caller])]);
    server.enforce(&policy).await;
    let shape = xds::build::SharedShape { captured: true, ipv6: false };
    let mesh = MeshConfig { access_log_file: "/dev/stderr".into(), ..MeshConfig::default() };
    let shop = shop(&server);
    let logs = mesh::Logs::of_mesh(&mesh).client;
    let all = xds::build::service(&mesh, &logs, &shop, shape);
    let (all, bound) = fixtures::bound_for_real(all, client.address);
    let sniffing = bound[&format!("{}_81", server.address)];
    client.envoy.server.publish(all).await.unwrap();
    net::opens(sniffing).await;
    let mut stream = net::plain(sniffing).await.unwrap();
    let (status, seen) = net::http(&mut stream, "GET", "/", "").await.unwrap();
    assert_eq!(status, 200);
    assert!(seen.contains("URI=spiffe://cluster.local/ns/foo/sa/client"), "{seen}");
    assert_eq!(net::http2_status(sniffing).await, 200);
    let mut stream = net::plain(sniffing).await.unwrap();
    assert!(!net::echo(&mut stream).await);
    policy.allow.enforced = None;
    server.enforce(&policy).await;
    let mut stream = net::plain(sniffing).await.unwrap();
    assert!(net::echo(&mut stream).await);
}
