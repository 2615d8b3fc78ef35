//! Translation: one effective policy and the mesh around a workload become encoded Envoy resources.
//! Pure: the same input gives the same bytes in every process. Decides nothing about policy and keeps nothing.

pub mod rbac;
mod shape;

use std::collections::BTreeMap;
use std::net::IpAddr;
use std::sync::Arc;

use mesh::{InboundPort, MeshConfig, Service, ServicePort, Workload};
use policy::EffectivePolicy;

pub use shape::{AppAddress, Capture, ProxyShape, ShapeError, SharedShape, Upstream};

use crate::{Resource, ResourceType};

/// Everything that decides a workload's own resources: inbound clusters, ECDS slots, inbound listeners.
#[derive(Clone, Copy, Debug)]
pub struct Inbound<'a> {
    pub mesh: &'a MeshConfig,
    pub workload: &'a Workload,
    /// Ports that some Service names ([`mesh::inbound_ports`]).
    pub ports: &'a [InboundPort],
    pub policy: &'a EffectivePolicy,
    pub shape: &'a ProxyShape,
    /// The ext_authz providers of the mesh config whose service exists, by provider name.
    pub providers: &'a BTreeMap<Arc<str>, Provider>,
}

/// Where an ext_authz provider is reached.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Provider {
    /// Name of its outbound cluster, `outbound|PORT||HOSTNAME`.
    pub cluster: Arc<str>,
    /// Sent as `:authority`.
    pub hostname: Arc<str>,
}

/// A service as a client sees it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct OutboundService {
    pub service: Arc<Service>,
    pub ports: Vec<OutboundPort>,
}

/// One port of a service and what is behind it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct OutboundPort {
    pub port: ServicePort,
    pub endpoints: Vec<OutboundEndpoint>,
    /// SPIFFE IDs (`spiffe://…`) that may answer for the service (semantics §3.5); trust-domain aliases are added
    /// here. Empty means unknown: then no certificate is good enough. Any order, duplicates allowed.
    pub identities: Vec<String>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct OutboundEndpoint {
    pub address: IpAddr,
    pub port: u16,
    /// It offers mTLS and its PeerAuthentication does not say DISABLE for this port.
    pub mutual_tls: bool,
}

/// Everything that decides the outbound listeners and routes of a proxy.
#[derive(Clone, Copy, Debug)]
pub struct Outbound<'a> {
    pub mesh: &'a MeshConfig,
    /// The proxy's namespace: short names are of services there.
    pub namespace: &'a str,
    /// The workload's addresses; used only without capture, where the forward listener binds the first one.
    pub addresses: &'a [IpAddr],
    pub services: &'a [&'a OutboundService],
    pub shape: &'a ProxyShape,
}

/// Inbound clusters, ECDS slots and inbound listeners of one workload.
pub fn own(_inbound: &Inbound<'_>) -> Vec<(ResourceType, Resource)> {
    Vec::new()
}

/// Clusters, endpoints and (for captured proxies) TCP listeners of one service. Shared by all proxies of equal
/// [`SharedShape`].
pub fn service(
    _mesh: &MeshConfig,
    _service: &OutboundService,
    _shape: SharedShape,
) -> Vec<(ResourceType, Resource)> {
    Vec::new()
}

/// Outbound listeners and routes of a proxy. For captured proxies the result depends on the mesh, the namespace, the
/// services and [`ProxyShape::shared`] only; without capture it is the proxy's own.
pub fn outbound(_outbound: &Outbound<'_>) -> Vec<(ResourceType, Resource)> {
    Vec::new()
}
