//! Services and the endpoints behind them.

use std::collections::BTreeMap;
use std::net::IpAddr;
use std::sync::Arc;

use crate::protocol::Protocol;
use crate::visibility::ExportTo;
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
    /// `None`: as the mesh configuration says (`defaultServiceExportTo`).
    pub export_to: Option<ExportTo>,
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

#[cfg(test)]
mod tests {
    use super::*;
    use crate::workload::tests::{service, workload};

    fn slice(endpoints: &[(&str, bool, Option<&str>)], ports: &[(&str, u16)]) -> EndpointSlice {
        EndpointSlice {
            namespace: "foo".into(),
            name: "slice".into(),
            service: "shop".into(),
            ports: ports
                .iter()
                .map(|(name, port)| EndpointPort { name: (*name).into(), port: *port })
                .collect(),
            endpoints: endpoints
                .iter()
                .map(|(address, ready, workload)| SliceEndpoint {
                    addresses: vec![address.parse().unwrap()],
                    ready: *ready,
                    workload: workload.map(Into::into),
                })
                .collect(),
        }
    }

    fn found(
        service: &Service,
        slices: &[&EndpointSlice],
        workloads: &[Arc<Workload>],
    ) -> Vec<(String, u16, String)> {
        let by_name = |name: &str| workloads.iter().find(|w| *w.name == *name).cloned();
        let by_address = |ip: IpAddr| workloads.iter().find(|w| w.addresses.contains(&ip)).cloned();
        endpoints(service, &service.ports[0], slices, workloads, by_name, by_address)
            .into_iter()
            .map(|e| {
                (e.address.to_string(), e.port, e.workload.map(|w| w.name.to_string()).unwrap_or_default())
            })
            .collect()
    }

    fn at(address: &str, port: u16, workload: &str) -> (String, u16, String) {
        (address.into(), port, workload.into())
    }

    #[test]
    fn without_slices_the_selector_decides() {
        let mut late = workload("late", "10.0.0.9");
        late.ready = false;
        let mut other = workload("other", "10.0.0.8");
        other.labels = Arc::default();
        let mut foreign = workload("foreign", "10.0.0.7");
        foreign.namespace = "bar".into();
        let (a, b) = (workload("a", "10.0.0.2"), workload("b", "10.0.0.1"));
        let workloads: Vec<_> = [a, b, late, other, foreign].into_iter().map(Arc::new).collect();
        let mut shop = service("shop", 0, &[(80, TargetPort::Number(8080), Protocol::Http)]);
        assert_eq!(found(&shop, &[], &workloads), [at("10.0.0.1", 8080, "b"), at("10.0.0.2", 8080, "a")]);
        shop.ports[0].target = TargetPort::Name("web".into());
        assert_eq!(found(&shop, &[], &workloads), [at("10.0.0.1", 8081, "b"), at("10.0.0.2", 8081, "a")]);
        shop.ports[0].target = TargetPort::Name("missing".into());
        assert_eq!(found(&shop, &[], &workloads), []);
        shop.selector = Some(BTreeMap::new());
        shop.ports[0].target = TargetPort::Number(1);
        assert_eq!(found(&shop, &[], &workloads), [], "an empty selector selects nothing");
    }

    #[test]
    fn slices_decide_where_there_are_any() {
        let workloads: Vec<_> = [workload("a", "10.0.0.1"), workload("b", "10.0.0.2")].map(Arc::new).to_vec();
        let shop = service("shop", 0, &[(80, TargetPort::Number(8080), Protocol::Http)]);
        let name = shop.ports[0].name.clone();
        let one = slice(
            &[
                ("10.0.0.2", true, None),
                ("10.0.0.1", true, Some("a")),
                ("10.0.0.3", false, None),
                ("10.9.9.9", true, None),
            ],
            &[("other", 1), (&name, 9090)],
        );
        let twice = slice(&[("10.0.0.1", true, Some("a"))], &[(&name, 9090)]);
        let other_port = slice(&[("10.0.0.4", true, None)], &[("other", 1)]);
        assert_eq!(
            found(&shop, &[&one, &twice, &other_port], &workloads),
            [at("10.0.0.1", 9090, "a"), at("10.0.0.2", 9090, "b"), at("10.9.9.9", 9090, "")]
        );
        assert_eq!(found(&shop, &[&other_port], &workloads), [], "no endpoints is an answer");
    }
}
