//! Decisions of a real Envoy under what is generated.

use std::net::SocketAddr;

use mesh::{InboundPort, MeshConfig, Protocol};
use policy::{Atom, EffectivePolicy, MtlsMode, StringMatch};

use super::envoy::Envoy;
use super::pki::{Ca, Identity};
use super::{fixtures, net};

const HTTP: u16 = 8080;
const AUTO: u16 = 8081;
const TCP: u16 = 8082;
const MESH_HTTP: [&str; 3] = ["istio-http/1.1", "istio", "http/1.1"];
const MESH_TCP: [&str; 2] = ["istio-peer-exchange", "istio"];

/// One workload behind one Envoy, without redirection, and a client that may be anyone.
struct Bed {
    ca: Ca,
    client: Identity,
    mesh: MeshConfig,
    ports: Vec<InboundPort>,
    address: std::net::IpAddr,
    app: SocketAddr,
    envoy: Envoy,
    inline: bool,
}

impl Bed {
    async fn new() -> Option<Self> {
        let ca = Ca::new();
        let own = ca.issue(&["spiffe://cluster.local/ns/foo/sa/test"]);
        let envoy = Envoy::start(&own, &ca.pem).await?;
        Some(Self {
            client: ca.issue(&["spiffe://cluster.local/ns/foo/sa/client"]),
            ca,
            mesh: MeshConfig { access_log_file: "/dev/stderr".into(), ..MeshConfig::default() },
            ports: fixtures::ports(&[(HTTP, Protocol::Http), (AUTO, Protocol::Auto), (TCP, Protocol::Tcp)]),
            address: net::own_address(),
            app: net::app().await,
            envoy,
            inline: false,
        })
    }

    async fn enforce(&self, policy: &EffectivePolicy) {
        let workload = fixtures::workload(&[self.address]);
        let shape = fixtures::bound(&self.ports, self.app, self.inline);
        let resources = fixtures::own(&self.mesh, &workload, &self.ports, policy, &shape);
        self.envoy.server.publish(resources).await.unwrap_or_else(|e| panic!("refused: {e:#?}"));
        for port in &self.ports {
            self.open(port.port).await;
        }
    }

    /// Waits until Envoy listens.
    async fn open(&self, port: u16) {
        for _ in 0..500 {
            if net::plain(self.at(port)).await.is_ok() {
                return;
            }
            tokio::time::sleep(std::time::Duration::from_millis(10)).await;
        }
        panic!("port {port} does not open: {}", self.envoy.log());
    }

    fn at(&self, port: u16) -> SocketAddr {
        SocketAddr::new(self.address, port)
    }

    async fn http(&self, port: u16, identity: Option<&Identity>, path: &str) -> Result<u16, String> {
        self.http_with(port, identity, path, "").await.map(|(status, _)| status)
    }

    async fn http_with(
        &self,
        port: u16,
        identity: Option<&Identity>,
        path: &str,
        headers: &str,
    ) -> Result<(u16, String), String> {
        let stream = match identity {
            Some(identity) => net::tls(self.at(port), Some(identity), &MESH_HTTP).await,
            None => net::plain(self.at(port)).await,
        };
        net::http(&mut stream.map_err(|e| e.to_string())?, "GET", path, headers).await
    }

    async fn tcp(&self, port: u16, identity: Option<&Identity>) -> bool {
        let stream = match identity {
            Some(identity) => net::tls(self.at(port), Some(identity), &MESH_TCP).await,
            None => net::plain(self.at(port)).await,
        };
        let Ok(mut stream) = stream else { return false };
        net::echo(&mut stream).await
    }
}

fn allow_paths(prefix: &str) -> EffectivePolicy {
    let mut policy = EffectivePolicy::default();
    let path = Atom::Path(policy::PathMatch::Plain(StringMatch::parse(prefix)));
    let caller = Atom::Principal(StringMatch::parse("cluster.local/ns/foo/sa/client"));
    policy.allow.enforced = Some(vec![fixtures::rule("allow", &[path], &[caller])]);
    policy
}

#[tokio::test]
async fn modes_and_identities() {
    let Some(bed) = Bed::new().await else { return };
    let client = Some(&bed.client);
    bed.enforce(&EffectivePolicy::default()).await;
    for port in [HTTP, AUTO] {
        assert_eq!(bed.http(port, client, "/").await, Ok(200), "{port}");
        assert_eq!(bed.http(port, None, "/").await, Ok(200), "{port}");
    }
    for port in [AUTO, TCP] {
        assert!(bed.tcp(port, client).await, "{port}");
        assert!(bed.tcp(port, None).await, "{port}");
    }

    let mut strict = EffectivePolicy::default();
    strict.mtls.mode = MtlsMode::Strict;
    bed.enforce(&strict).await;
    let foreign = Ca::new().issue(&["spiffe://cluster.local/ns/foo/sa/client"]);
    let elsewhere = bed.ca.issue(&["spiffe://cluster.local.evil/ns/foo/sa/client"]);
    for port in [HTTP, AUTO] {
        assert_eq!(bed.http(port, client, "/").await, Ok(200), "{port}");
        for wrong in [None, Some(&foreign), Some(&elsewhere)] {
            assert!(bed.http(port, wrong, "/").await.is_err(), "{port}");
        }
    }
    for port in [AUTO, TCP] {
        assert!(bed.tcp(port, client).await, "{port}");
        for wrong in [None, Some(&foreign), Some(&elsewhere)] {
            assert!(!bed.tcp(port, wrong).await, "{port}");
        }
    }
}

#[tokio::test]
async fn a_revoked_permission_is_refused_on_the_same_connection() {
    let Some(bed) = Bed::new().await else { return };
    bed.enforce(&allow_paths("/a*")).await;
    let mut stream = net::tls(bed.at(HTTP), Some(&bed.client), &MESH_HTTP).await.unwrap();
    assert_eq!(net::http(&mut stream, "GET", "/a", "").await.unwrap().0, 200);
    assert_eq!(net::http(&mut stream, "GET", "/b", "").await.unwrap().0, 403);
    bed.enforce(&allow_paths("/b*")).await;
    assert_eq!(net::http(&mut stream, "GET", "/a", "").await.unwrap().0, 403);
    assert_eq!(net::http(&mut stream, "GET", "/b", "").await.unwrap().0, 200);
    // HTTP rules allow nothing over TCP.
    assert!(!bed.tcp(TCP, Some(&bed.client)).await);
    assert!(!bed.tcp(AUTO, Some(&bed.client)).await);
}
