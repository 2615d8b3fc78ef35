//! Services and the endpoints behind them.

use std::collections::BTreeMap;
use std::net::IpAddr;
use std::sync::Arc;

use crate::protocol::Protocol;
use crate::workload::Workload;

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Service {
    pub namespace: Arc<str>,
    pub name: Arc<str>,
    /// `NAME.NAMESPACE.svc.cluster.local`.
    pub hostname: Arc<str>,
    /// Empty: headless, or a file that gives none.
    pub cluster_ips: Vec<IpAddr>,
    /// UDP ports are already left out.
    pub ports: Vec<ServicePort>,
    /// `None`: endpoints come from EndpointSlices only.
    pub selector: Option<BTreeMap<String, String>>,
    /// Seconds since the epoch, 0 if unknown.
    pub created: i64,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ServicePort {
    /// Empty for an unnamed port.
    pub name: String,
    pub port: u16,
    pub target: TargetPort,
    pub protocol: Protocol,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub enum TargetPort {
    Number(u16),
    Name(String),
}

impl Service {
    /// Oldest first, then name, then namespace.
    pub fn order(&self) -> (i64, &str, &str) {
        (self.created, &self.name, &self.namespace)
    }

    /// Same namespace and every selector label equal. A service without selector selects nothing.
    pub fn selects(&self, workload: &Workload) -> bool {
        self.namespace == workload.namespace
            && self.selector.as_ref().is_some_and(|selector| {
                !selector.is_empty() && selector.iter().all(|(k, v)| workload.labels.get(k) == Some(v))
            })
    }
}

impl ServicePort {
    /// The number of this port on `workload`; `None` if a named target port does not exist there.
    pub fn target_on(&self, workload: &Workload) -> Option<u16> {
        match &self.target {
            TargetPort::Number(port) => Some(*port),
            TargetPort::Name(name) => workload.named_ports.get(name).copied(),
        }
    }
}

/// A `discovery.k8s.io/v1` EndpointSlice.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct EndpointSlice {
    pub namespace: Arc<str>,
    pub name: Arc<str>,
    /// Label `kubernetes.io/service-name`.
    pub service: Arc<str>,
    pub ports: Vec<EndpointPort>,
    pub endpoints: Vec<SliceEndpoint>,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct EndpointPort {
    pub name: String,
    pub port: u16,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SliceEndpoint {
    pub addresses: Vec<IpAddr>,
    pub ready: bool,
    /// Name of the Pod in the slice's namespace (`targetRef`).
    pub workload: Option<Arc<str>>,
}

/// One address behind one service port.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Endpoint {
    pub address: IpAddr,
    pub port: u16,
    /// The workload there, if the registry knows one (by `targetRef`, else by address).
    pub workload: Option<Arc<Workload>>,
}

/// The ready endpoints of `port` of `service`, sorted by address and port: from the service's EndpointSlices where it
/// has any, otherwise from the workloads its selector selects (the case of plain files).
///
/// `by_name` looks a workload of the service's namespace up by name, `by_address` by IP; `selected` are candidates
/// for the selector (all workloads of the namespace).
pub fn endpoints<'a>(
    service: &Service,
    port: &ServicePort,
    slices: &[&EndpointSlice],
    selected: impl IntoIterator<Item = &'a Arc<Workload>>,
    by_name: impl Fn(&str) -> Option<Arc<Workload>>,
    by_address: impl Fn(IpAddr) -> Option<Arc<Workload>>,
) -> Vec<Endpoint> {
    let mut found = Vec::new();
    if slices.is_empty() {
        for workload in selected {
            if !workload.ready || !service.selects(workload) {
                continue;
            }
            if let (Some(port), Some(address)) = (port.target_on(workload), workload.addresses.first()) {
                found.push(Endpoint { address: *address, port, workload: Some(workload.clone()) });
            }
        }
    }
    for slice in slices {
        let Some(number) = slice.ports.iter().find(|p| p.name == port.name).map(|p| p.port) else { continue };
        for endpoint in slice.endpoints.iter().filter(|e| e.ready) {
            let Some(address) = endpoint.addresses.first() else { continue };
            let named = endpoint.workload.as_deref().and_then(&by_name);
            let workload = named.or_else(|| by_address(*address));
            found.push(Endpoint { address: *address, port: number, workload });
        }
    }
    found.sort_by_key(|e| (e.address, e.port));
    found.dedup_by_key(|e| (e.address, e.port));
    found
}
