//! What a client needs to know of a service: its endpoints, which of them speak mTLS, and whose certificates may answer
//! (semantics §3.5). Encodes nothing.

use std::collections::BTreeSet;
use std::sync::Arc;

use mesh::{Endpoint, Service, Workload};
use policy::{MtlsMode, ObjectName};
use xds::build::{OutboundEndpoint, OutboundPort, OutboundService, PortTls};

use crate::effective::Effective;
use crate::store::{Store, service_name};

/// `service` as its clients see it.
pub(crate) fn outbound_service(
    store: &Store,
    effective: &mut Effective,
    service: &Arc<Service>,
) -> OutboundService {
    let slices = store.slices_of(&service_name(service));
    let named = |name: &str| store.workload(&ObjectName::new(service.namespace.clone(), name)).cloned();
    let at = |address| store.workload_at(address).cloned();
    let identities: BTreeSet<String> = members(store, service).iter().map(|w| identity(store, w)).collect();
    let identities: Vec<String> = identities.into_iter().collect();
    // As far as clients know, a namespace takes mTLS or not; what single workloads say is known of endpoints only.
    let nobody = std::collections::BTreeMap::new();
    let namespace = effective.get(&store.policies, &service.namespace, &nobody);
    let tls = if namespace.mtls.mode == MtlsMode::Disable { PortTls::Plaintext } else { PortTls::Auto };
    let mut ports = Vec::with_capacity(service.ports.len());
    for port in &service.ports {
        let candidates = store.workloads_in(&service.namespace);
        let endpoints = mesh::endpoints(service, port, &slices, candidates, named, at)
            .into_iter()
            .map(|Endpoint { address, port, workload }| OutboundEndpoint {
                address,
                port,
                mutual_tls: workload.is_some_and(|w| mutual_tls(store, effective, &w, port)),
            })
            .collect();
        let (port, identities, tls) = (port.clone(), identities.clone(), tls.clone());
        ports.push(OutboundPort { port, endpoints, identities, tls });
    }
    OutboundService { service: service.clone(), ports }
}

/// Every workload behind the service, ready or not: an identity must not come and go with readiness, for each change of
/// the list rebuilds the service's clusters in all clients.
fn members(store: &Store, service: &Service) -> Vec<Arc<Workload>> {
    let slices = store.slices_of(&service_name(service));
    if slices.is_empty() {
        return store.workloads_in(&service.namespace).filter(|w| service.selects(w)).cloned().collect();
    }
    let endpoints = slices.iter().flat_map(|slice| &slice.endpoints);
    let member = |endpoint: &mesh::SliceEndpoint| {
        let named = endpoint
            .workload
            .as_deref()
            .and_then(|name| store.workload(&ObjectName::new(service.namespace.clone(), name)));
        named.or_else(|| endpoint.addresses.first().and_then(|a| store.workload_at(*a))).cloned()
    };
    endpoints.filter_map(member).collect()
}

/// The SPIFFE ID that the registration gives a workload.
pub(crate) fn identity(store: &Store, workload: &Workload) -> String {
    format!("spiffe://{}/ns/{}/sa/{}", store.mesh.trust_domain, workload.namespace, workload.service_account)
}

/// It offers mTLS, and its own PeerAuthentication does not say DISABLE for that port.
fn mutual_tls(store: &Store, effective: &mut Effective, workload: &Workload, port: u16) -> bool {
    workload.mutual_tls
        && effective.get(&store.policies, &workload.namespace, &workload.labels).mtls.port(port)
            != MtlsMode::Disable
}
