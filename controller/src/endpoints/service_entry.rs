//! What a ServiceEntry says of its endpoints itself, beside the workloads that it selects (semantics §1.6).

use std::sync::Arc;

use mesh::{Entry, EntryAddress, Resolution, Service, ServicePort};
use policy::MtlsMode;
use xds::build::{OutboundEndpoint, OutboundName};

use crate::effective::Effective;
use crate::store::Store;

/// Nobody knows of mesh mTLS at its endpoints: they are outside, or whatever the client wanted to call.
pub(super) fn plaintext(entry: &Entry) -> bool {
    entry.external || entry.resolution == Resolution::None
}

/// Adds the endpoints of `port` that the entry names.
pub(super) fn inline(
    store: &Store,
    effective: &mut Effective,
    service: &Service,
    entry: &Entry,
    port: &ServicePort,
    (endpoints, names): (&mut Vec<OutboundEndpoint>, &mut Vec<OutboundName>),
) {
    for endpoint in &entry.endpoints {
        let number = endpoint.port(port);
        let mode = effective.get(&store.policies, &service.namespace, &endpoint.labels).mtls.port(number);
        let mutual_tls = endpoint.mutual_tls && mode != MtlsMode::Disable;
        match &endpoint.address {
            EntryAddress::Ip(address) => {
                endpoints.push(OutboundEndpoint { address: *address, port: number, mutual_tls });
            }
            EntryAddress::Name(host) => {
                names.push(OutboundName { host: host.clone(), port: number, mutual_tls });
            }
        }
    }
    // Without any, the host is its own endpoint.
    let alone = entry.endpoints.is_empty() && service.selector.is_none();
    if entry.resolution == Resolution::Dns && alone {
        let (host, port) = (service.hostname.clone(), port.target_number());
        names.push(OutboundName { host, port, mutual_tls: false });
    }
    if entry.external {
        endpoints.iter_mut().for_each(|endpoint| endpoint.mutual_tls = false);
        names.iter_mut().for_each(|name| name.mutual_tls = false);
    }
    endpoints.sort_by_key(|endpoint| (endpoint.address, endpoint.port));
}

/// The identities that the entry names: accounts of its endpoints, in its own namespace, and `subjectAltNames`.
pub(super) fn accounts(store: &Store, service: &Service, entry: &Entry) -> Vec<String> {
    let account = |account: &Arc<str>| {
        format!("spiffe://{}/ns/{}/sa/{account}", store.mesh.trust_domain, service.namespace)
    };
    let accounts =
        entry.endpoints.iter().filter_map(|endpoint| endpoint.service_account.as_ref().map(account));
    accounts.chain(entry.subject_alt_names.iter().cloned()).collect()
}
