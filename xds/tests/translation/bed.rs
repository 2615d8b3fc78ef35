//! One workload behind one Envoy, without redirection, and a client that may be anyone.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::sync::Arc;

use mesh::{InboundPort, MeshConfig, Protocol};
use policy::EffectivePolicy;
use xds::build::{Inbound, Provider};

use super::envoy::Envoy;
use super::pki::{Ca, Identity};
use super::serve::Resources;
use super::{fixtures, net};

pub(crate) const HTTP: u16 = 8080;
pub(crate) const AUTO: u16 = 8081;
pub(crate) const TCP: u16 = 8082;
pub(crate) const MESH_HTTP: [&str; 3] = ["istio-http/1.1", "istio", "http/1.1"];
pub(crate) const MESH_TCP: [&str; 2] = ["istio-peer-exchange", "istio"];

pub(crate) struct Bed {
    pub(crate) ca: Ca,
    pub(crate) client: Identity,
    pub(crate) mesh: MeshConfig,
    pub(crate) ports: Vec<InboundPort>,
    pub(crate) address: std::net::IpAddr,
    pub(crate) app: SocketAddr,
    pub(crate) envoy: Envoy,
    pub(crate) inline: bool,
    pub(crate) providers: BTreeMap<Arc<str>, Provider>,
    /// What the proxy has besides its own.
    pub(crate) others: Resources,
}

impl Bed {
    pub(crate) async fn new() -> Option<Self> {
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
            providers: BTreeMap::new(),
            others: Vec::new(),
        })
    }

    pub(crate) async fn enforce(&self, policy: &EffectivePolicy) {
        self.envoy.server.publish(self.resources(policy)).await.unwrap_or_else(|e| panic!("refused: {e:#?}"));
        for port in &self.ports {
            net::opens(self.at(port.port)).await;
        }
    }

    pub(crate) fn resources(&self, policy: &EffectivePolicy) -> Resources {
        let workload = fixtures::workload(&[self.address]);
        let shape = fixtures::bound(&self.ports, self.app, self.inline);
        let mut all = xds::build::own(&Inbound {
            mesh: &self.mesh,
            workload: &workload,
            ports: &self.ports,
            policy,
            shape: &shape,
            providers: &self.providers,
            logs: &mesh::Logs::of_mesh(&self.mesh).server,
        });
        all.extend(self.others.iter().cloned());
        all
    }

    pub(crate) fn at(&self, port: u16) -> SocketAddr {
        SocketAddr::new(self.address, port)
    }

    pub(crate) async fn http(
        &self,
        port: u16,
        identity: Option<&Identity>,
        path: &str,
    ) -> Result<u16, String> {
        self.http_with(port, identity, path, "").await.map(|(status, _)| status)
    }

    pub(crate) async fn http_with(
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

    pub(crate) async fn tcp(&self, port: u16, identity: Option<&Identity>) -> bool {
        let stream = match identity {
            Some(identity) => net::tls(self.at(port), Some(identity), &MESH_TCP).await,
            None => net::plain(self.at(port)).await,
        };
        let Ok(mut stream) = stream else { return false };
        net::echo(&mut stream).await
    }
}
