//! What DestinationRules tell clients of services. Encodes nothing.

use std::collections::BTreeMap;
use std::sync::Arc;

use mesh::{Client, ClientTls, Service};
use xds::build::{OutboundPort, OutboundService, PortTls};

use crate::store::Store;

/// What a client is told of a service, by port. Ports that no rule speaks of are not in it.
pub(super) type Told = Arc<BTreeMap<u16, ClientTls>>;

/// What `client` is told of a service.
pub(super) fn told(store: &Store, client: &Client, service: &Service) -> Told {
    let hostname = service.hostname.to_ascii_lowercase();
    let root = &store.mesh.root_namespace;
    let found = store.destination_rules.policy(client, &service.namespace, &hostname, root);
    let Some((policy, _)) = found else { return Told::default() };
    let port = |port: &mesh::ServicePort| Some((port.port, policy.port(port.port)?.clone()));
    Arc::new(service.ports.iter().filter_map(port).collect())
}

/// The service as those clients see it.
pub(super) fn said(service: &OutboundService, told: &Told) -> OutboundService {
    let port = |port: &OutboundPort| {
        let told = told.get(&port.port.port).cloned();
        OutboundPort { tls: told.map_or_else(|| port.tls.clone(), PortTls::Told), ..port.clone() }
    };
    OutboundService { service: service.service.clone(), ports: service.ports.iter().map(port).collect() }
}
