//! ServiceEntry: hosts that no Service stands for (semantics §1.6). Each of its hosts is a [`Service`] of its own, with what
//! is different about it in [`Entry`].

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;
use std::sync::Arc;

use crate::service::{Service, ServicePort};
use crate::visibility::ExportTo;

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ServiceEntry {
    pub namespace: Arc<str>,
    pub name: Arc<str>,
    /// Seconds since the epoch, 0 if unknown.
    pub created: i64,
    /// In lower case; may begin with `*.`.
    pub hosts: Vec<Arc<str>>,
    pub addresses: Vec<IpAddr>,
    pub ports: Vec<ServicePort>,
    /// Pods and WorkloadEntries of its namespace that are behind it.
    pub selector: Option<BTreeMap<String, String>>,
    pub export_to: Option<ExportTo>,
    pub entry: Arc<Entry>,
}

/// What a service of a ServiceEntry has and one of Kubernetes has not.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Entry {
    /// `location: MESH_EXTERNAL`: its endpoints take no mesh mTLS.
    pub external: bool,
    pub resolution: Resolution,
    pub endpoints: Vec<EntryEndpoint>,
    /// Who may answer beside the service accounts of its endpoints; for TLS that a DestinationRule asks for, alone.
    pub subject_alt_names: Vec<String>,
    /// Ports of HTTPS and TLS: without an address, their hosts are told apart by SNI.
    pub sni_ports: BTreeSet<u16>,
}

/// How an address of the host is found.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Resolution {
    /// Where the client wanted to go.
    None,
    /// The endpoints are the addresses.
    Static,
    /// The proxy asks DNS for the endpoints' names, or for the host.
    Dns,
}

/// `endpoints[]`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct EntryEndpoint {
    pub address: EntryAddress,
    /// By the name of the service port; others have the service port's number.
    pub ports: BTreeMap<String, u16>,
    pub service_account: Option<Arc<str>>,
    pub mutual_tls: bool,
    /// By which the policies of its namespace select it.
    pub labels: BTreeMap<String, String>,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub enum EntryAddress {
    Ip(IpAddr),
    Name(Arc<str>),
}

impl ServiceEntry {
    /// One for each host.
    pub fn services(&self) -> impl Iterator<Item = Service> + '_ {
        self.hosts.iter().map(|host| Service {
            namespace: self.namespace.clone(),
            // No Service of Kubernetes can have this name.
            name: format!("{}|{host}", self.name).into(),
            hostname: host.clone(),
            cluster_ips: self.addresses.clone(),
            ports: self.ports.clone(),
            selector: self.selector.clone(),
            created: self.created,
            export_to: self.export_to.clone(),
            entry: Some(self.entry.clone()),
        })
    }
}

impl EntryEndpoint {
    /// The number of a service port here.
    pub fn port(&self, port: &ServicePort) -> u16 {
        self.ports.get(&port.name).copied().unwrap_or_else(|| port.target_number())
    }
}
