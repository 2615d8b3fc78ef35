//! One running instance and the ports on which it is served.

use std::collections::BTreeMap;
use std::net::IpAddr;
use std::sync::Arc;

use crate::protocol::Protocol;
use crate::service::Service;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum WorkloadKind {
    Pod,
    WorkloadEntry,
}

/// A Pod or a WorkloadEntry, as far as anything here needs it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Workload {
    pub namespace: Arc<str>,
    pub name: Arc<str>,
    pub kind: WorkloadKind,
    pub labels: Arc<BTreeMap<String, String>>,
    /// `default` where none is given.
    pub service_account: Arc<str>,
    /// Every address, primary first.
    pub addresses: Vec<IpAddr>,
    /// Container ports by name (Pod) or `ports` (WorkloadEntry), for named target ports.
    pub named_ports: BTreeMap<String, u16>,
    /// Offers mTLS: label `security.istio.io/tlsMode: istio`, or a WorkloadEntry with a service account (semantics §1.6).
    pub mutual_tls: bool,
    /// Running and Ready (a WorkloadEntry always is).
    pub ready: bool,
    /// Seconds since the epoch, 0 if unknown.
    pub created: i64,
}

/// A port of a workload that some Service names (semantics §3.1).
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct InboundPort {
    /// The workload's own port.
    pub port: u16,
    pub protocol: Protocol,
}

/// The declared ports of `workload`: target ports of the services that select it, ascending. Where two services name
/// the same port, the oldest (then by name, namespace) decides the protocol. UDP is skipped.
pub fn inbound_ports<'a>(
    workload: &Workload,
    services: impl IntoIterator<Item = &'a Service>,
) -> Vec<InboundPort> {
    let mut selecting: Vec<&Service> = services.into_iter().filter(|s| s.selects(workload)).collect();
    selecting.sort_by(|a, b| a.order().cmp(&b.order()));
    let mut ports = BTreeMap::new();
    for service in selecting {
        for port in &service.ports {
            if let Some(target) = port.target_on(workload) {
                ports.entry(target).or_insert(port.protocol);
            }
        }
    }
    ports.into_iter().map(|(port, protocol)| InboundPort { port, protocol }).collect()
}
