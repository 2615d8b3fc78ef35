//! Translation: one effective policy and the mesh around a workload become encoded Envoy resources.
//! Pure: the same input gives the same bytes in every process. Decides nothing about policy and keeps nothing.

mod access_log;
mod chains;
mod cluster;
pub(crate) mod encode;
mod endpoint;
mod envoy_static;
mod ext_authz;
mod hcm;
pub mod json;
mod jwt;
mod listener;
mod outbound;
mod pb;
pub mod rbac;
mod route;
mod shape;
mod slots;
#[cfg(test)]
mod tests;
mod tls;

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;
use std::sync::Arc;

use mesh::{
    ClientTls, ExtAuthz, ExtensionProvider, InboundPort, IngressApp, Log, MeshConfig, Protocol, Service,
    ServicePort, Workload,
};
use policy::EffectivePolicy;

pub use envoy_static::{Static, StaticPort, envoy_static};
pub use shape::{AppAddress, Capture, ProxyShape, ShapeError, SharedShape, Upstream};
pub use tls::TlsFiles;

use self::pb::cluster::Cluster;
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
    /// [`mesh::Logs::server`].
    pub logs: &'a [Log],
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
    pub tls: PortTls,
}

/// How clients speak to a service port.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub enum PortTls {
    /// Mesh mTLS to endpoints that take it, plaintext to others; always plaintext where the mesh configuration says so.
    #[default]
    Auto,
    /// Plaintext: the service's namespace takes no mTLS, or it is outside of the mesh.
    Plaintext,
    /// What a DestinationRule says.
    Told(ClientTls),
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
    /// Hosts that no service has are called as they are (ALLOW_ANY), by redirected clients.
    pub allow_any: bool,
    pub shape: &'a ProxyShape,
    /// [`mesh::Logs::client`].
    pub logs: &'a [Log],
}

impl<'a> Inbound<'a> {
    /// The ext_authz providers of the mesh config by name, and where each is reached.
    fn authorizers(&self) -> BTreeMap<&'a str, (&'a ExtAuthz, Option<&'a Provider>)> {
        let providers = self.mesh.extension_providers.iter();
        let authorizer =
            |p: &'a ExtensionProvider| Some((&*p.name, (p.ext_authz.as_ref()?, self.providers.get(&p.name))));
        providers.filter_map(authorizer).collect()
    }

    /// Where the application of a port listens, if a Sidecar says so.
    fn app(&self, port: u16) -> Option<&'a IngressApp> {
        self.ports.iter().find(|own| own.port == port)?.app.as_ref()
    }

    /// Whether a CUSTOM policy can be left to `provider`; if not, what it matches is denied.
    fn usable(&self, provider: &str) -> bool {
        let configured = |p: &ExtensionProvider| *p.name == *provider && p.ext_authz.is_some();
        self.providers.contains_key(provider) && self.mesh.extension_providers.iter().any(configured)
    }
}

/// Inbound clusters, ECDS slots and inbound listeners of one workload.
pub fn own(inbound: &Inbound<'_>) -> Vec<(ResourceType, Resource)> {
    let ports = listener::own_ports(inbound);
    let (clusters, listeners) = match &inbound.shape.capture {
        Capture::None { apps, .. } => {
            (bound_clusters(inbound, apps, &ports), listener::bound_inbound(inbound, &ports))
        }
        capture => {
            let declared = ports.iter().filter(|p| p.declared);
            let app = |p: &listener::OwnPort| {
                cluster::app(inbound.mesh, capture, p.port, p.protocol, inbound.app(p.port))
            };
            let mut clusters: Vec<_> = declared.map(app).collect();
            clusters.extend([cluster::inbound_passthrough(capture), cluster::blackhole()]);
            (clusters, vec![listener::virtual_inbound(inbound, &ports)])
        }
    };
    let mut resources: Vec<_> = clusters.iter().map(|c| encode::resource(&*c.name, c)).collect();
    if !inbound.shape.inline_policy {
        let slots = slots::slots(inbound);
        resources.extend(slots.into_iter().map(|slot| encode::extension(&slot.name, slot.config)));
    }
    resources.extend(listeners.iter().map(|l| encode::resource(&*l.name, l)));
    resources
}

/// The applications of a workload whose proxy binds its ports: where the shape says, else the same port of 127.0.0.1.
fn bound_clusters(
    inbound: &Inbound<'_>,
    apps: &BTreeMap<u16, AppAddress>,
    ports: &[listener::OwnPort],
) -> Vec<Cluster> {
    let cluster = |own: &listener::OwnPort| {
        let local = match inbound.app(own.port) {
            None => AppAddress::Tcp { host: "127.0.0.1".into(), port: own.port },
            Some(IngressApp::Pipe(path)) => AppAddress::Pipe(path.clone()),
            Some(IngressApp::Loopback(at)) => {
                AppAddress::Tcp { host: at.ip().to_string().into(), port: at.port() }
            }
            Some(IngressApp::Own { ipv6, port }) => {
                let of_family = inbound.workload.addresses.iter().find(|ip| ip.is_ipv6() == *ipv6);
                let host = of_family.map_or_else(|| "127.0.0.1".to_owned(), ToString::to_string);
                AppAddress::Tcp { host: host.into(), port: *port }
            }
        };
        let app = apps.get(&own.port).unwrap_or(&local);
        let own_address = |host: &str| host.parse().is_ok_and(|ip| inbound.workload.addresses.contains(&ip));
        let circular = matches!(app, AppAddress::Tcp { host, port } if ports.iter().any(|p| p.port == *port) && own_address(host));
        cluster::bound_app(own.port, own.protocol, Some(app).filter(|_| !circular))
    };
    ports.iter().map(cluster).collect()
}

/// Clusters, endpoints and (for captured proxies) TCP listeners of one service. Shared by all proxies of equal
/// [`SharedShape`].
pub fn service(
    mesh: &MeshConfig,
    logs: &[Log],
    service: &OutboundService,
    shape: SharedShape,
) -> Vec<(ResourceType, Resource)> {
    let hostname = &*service.service.hostname;
    let mut resources = Vec::new();
    let mut seen = BTreeSet::new();
    for port in service.ports.iter().filter(|p| seen.insert(p.port.port)) {
        let mut clusters = vec![cluster::outbound(mesh, hostname, port)];
        if !shape.captured && port.port.protocol == Protocol::Auto {
            clusters.push(cluster::sniffed_http(mesh, hostname, port));
        }
        resources.extend(clusters.iter().map(|c| encode::resource(&*c.name, c)));
        let assignment = endpoint::assignment(hostname, port);
        resources.push(encode::resource(&*assignment.cluster_name, &assignment));
    }
    if shape.captured {
        resources.extend(outbound::tcp(mesh, logs, service).iter().map(|l| encode::resource(&*l.name, l)));
    }
    resources
}

/// Outbound listeners and routes of a proxy. For captured proxies the result depends on the mesh, the namespace, the
/// services and [`ProxyShape::shared`] only; without capture it is the proxy's own.
pub fn outbound(outbound: &Outbound<'_>) -> Vec<(ResourceType, Resource)> {
    let Outbound { mesh: _, namespace, addresses: _, services, allow_any, shape, logs: _ } = *outbound;
    let blackhole = cluster::blackhole();
    let mut resources = vec![encode::resource(&*blackhole.name, &blackhole)];
    let mut listeners = Vec::new();
    if let Capture::None { upstreams, .. } = &shape.capture {
        listeners.extend(outbound::forward(outbound));
        listeners.extend(outbound::upstreams(outbound, upstreams));
        let routes = route::forward(outbound::FORWARD, namespace, services);
        resources.push(encode::resource(&*routes.name, &routes));
    } else {
        let passthrough = cluster::passthrough();
        resources.push(encode::resource(&*passthrough.name, &passthrough));
        listeners.push(outbound::virtual_outbound(outbound));
        for port in outbound::http_ports(services) {
            listeners.push(outbound::http(outbound, port));
            let routes = route::port(allow_any, namespace, services, port);
            resources.push(encode::resource(&*routes.name, &routes));
        }
    }
    resources.extend(listeners.iter().map(|l| encode::resource(&*l.name, l)));
    resources
}
