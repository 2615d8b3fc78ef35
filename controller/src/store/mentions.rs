//! Which services a workload may stand behind because their EndpointSlices speak of it, by its name or an address.

use std::collections::{BTreeMap, HashMap};
use std::net::IpAddr;
use std::sync::Arc;

use mesh::{EndpointSlice, Workload};
use policy::ObjectName;

use super::workload_name;

/// What an endpoint of an EndpointSlice says of the workload it is.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
enum Mention {
    Address(IpAddr),
    Workload(ObjectName),
}

/// How often each service mentions what.
#[derive(Debug, Default)]
pub(super) struct Mentions(HashMap<Mention, BTreeMap<ObjectName, usize>>);

impl Mentions {
    /// A slice of `service` is there.
    pub(super) fn note(&mut self, slice: &EndpointSlice, service: &ObjectName) {
        for mention in mentions(slice) {
            *self.0.entry(mention).or_default().entry(service.clone()).or_default() += 1;
        }
    }

    /// It is gone.
    pub(super) fn forget(&mut self, slice: &EndpointSlice, service: &ObjectName) {
        for mention in mentions(slice) {
            let Some(services) = self.0.get_mut(&mention) else { continue };
            if let Some(count) = services.get_mut(service) {
                *count -= 1;
                if *count == 0 {
                    services.remove(service);
                }
            }
            if services.is_empty() {
                self.0.remove(&mention);
            }
        }
    }

    #[cfg(test)]
    pub(super) fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// The services that mention the workload.
    pub(super) fn of<'a>(&'a self, workload: &'a Workload) -> impl Iterator<Item = ObjectName> + 'a {
        let addresses = workload.addresses.iter().map(|address| Mention::Address(*address));
        let mentions = addresses.chain([Mention::Workload(workload_name(workload))]);
        let services = mentions.filter_map(|mention| self.0.get(&mention));
        services.flat_map(|services| services.keys().cloned())
    }
}

fn mentions(slice: &EndpointSlice) -> impl Iterator<Item = Mention> + '_ {
    let named = |name: &Arc<str>| {
        Mention::Workload(ObjectName { namespace: slice.namespace.clone(), name: name.clone() })
    };
    slice.endpoints.iter().flat_map(move |endpoint| {
        endpoint.addresses.iter().copied().map(Mention::Address).chain(endpoint.workload.as_ref().map(named))
    })
}
