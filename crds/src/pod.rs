//! Pod (v1): the wire type and its conversion into a workload.

use std::collections::BTreeMap;
use std::sync::Arc;

use mesh::{Workload, WorkloadKind};
use serde::Deserialize;
use serde_json::{Map, Value};

use crate::finding::Issues;
use crate::meta::Metadata;
use crate::object::Object;
use crate::path::At;
use crate::wire;

/// Says that what is behind an address takes mTLS (semantics §1.6, §3.5).
pub(crate) const TLS_MODE: &str = "security.istio.io/tlsMode";

#[derive(Debug, Default, Deserialize)]
#[serde(default)]
struct Document {
    spec: PodSpec,
    status: Option<PodStatus>,
}

/// `spec`, as far as anything here needs it.
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct PodSpec {
    pub service_account_name: String,
    /// The old name of the same.
    pub service_account: String,
    pub containers: Vec<Container>,
    /// Those that never end are sidecars, and their ports count.
    pub init_containers: Vec<Container>,
    /// Its addresses are the node's, which it shares with the node and with every other Pod like it.
    pub host_network: bool,
}

#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct Container {
    pub ports: Vec<ContainerPort>,
    pub restart_policy: Option<String>,
}

#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct ContainerPort {
    pub name: String,
    pub container_port: u32,
    pub protocol: Option<String>,
}

/// `status`. A file may leave it out: such a Pod counts as ready, without an address.
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct PodStatus {
    pub phase: Option<String>,
    #[serde(rename = "podIP")]
    pub pod_ip: String,
    #[serde(rename = "podIPs")]
    pub pod_ips: Vec<PodIp>,
    pub conditions: Vec<Condition>,
}

#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(default)]
pub struct PodIp {
    pub ip: String,
}

#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(default)]
pub struct Condition {
    #[serde(rename = "type")]
    pub kind: String,
    pub status: String,
}

pub(crate) fn read(
    metadata: &Metadata,
    document: &Map<String, Value>,
    issues: &mut Issues,
) -> Option<Object> {
    let Document { spec, status } = wire::read(document, issues)?;
    let named_ports = named_ports(&spec, issues);
    let PodSpec { service_account_name, service_account, containers: _, init_containers: _, host_network } =
        spec;
    let account = [service_account_name, service_account].into_iter().find(|name| !name.is_empty());
    let ready = status.as_ref().is_none_or(PodStatus::ready);
    let at = At::ROOT.key("status");
    let at = at.key("podIPs");
    let own = !host_network && !status.as_ref().is_some_and(PodStatus::ended);
    let ips = status.map(PodStatus::addresses).unwrap_or_default();
    let addresses = ips.iter().enumerate().filter_map(|(i, ip)| wire::address(ip, &at.index(i), issues));
    // Whoever is at an address that is not (or no longer) the Pod's own must not be taken for it; endpoints that name the
    // Pod stay its own.
    let addresses = addresses.filter(|_| own).collect();
    let Metadata { name, namespace, labels, annotations: _, created, uid } = metadata;
    Some(Object::Workload(Workload {
        namespace: namespace.clone(),
        name: name.clone(),
        kind: WorkloadKind::Pod,
        service_account: account.unwrap_or_else(|| "default".into()).into(),
        addresses,
        named_ports,
        mutual_tls: labels.get(TLS_MODE).is_some_and(|mode| mode == "istio"),
        labels: Arc::new(labels.clone()),
        ready,
        created: *created,
        uid: uid.clone(),
    }))
}

fn named_ports(spec: &PodSpec, issues: &mut Issues) -> BTreeMap<String, u16> {
    let at = At::ROOT.key("spec");
    let mut ports = BTreeMap::new();
    let sidecars = spec.init_containers.iter().enumerate();
    let sidecars = sidecars.filter(|(_, c)| c.restart_policy.as_deref() == Some("Always"));
    let all = spec.containers.iter().enumerate().map(|c| ("containers", c));
    for (list, (i, container)) in all.chain(sidecars.map(|c| ("initContainers", c))) {
        let tcp = |p: &&ContainerPort| p.protocol.as_deref().is_none_or(|p| p.eq_ignore_ascii_case("TCP"));
        for port in container.ports.iter().filter(tcp).filter(|p| !p.name.is_empty()) {
            if let Some(number) = wire::port(port.container_port, &at.key(list).index(i).key("ports"), issues)
            {
                ports.entry(port.name.clone()).or_insert(number);
            }
        }
    }
    ports
}

impl PodStatus {
    fn ready(&self) -> bool {
        let Self { phase, pod_ip: _, pod_ips: _, conditions } = self;
        let running = phase.as_deref().is_none_or(|phase| phase == "Running");
        let condition = conditions.iter().find(|c| c.kind == "Ready");
        running && condition.is_none_or(|c| c.status == "True")
    }

    /// It has stopped for good, and its addresses are given to others.
    fn ended(&self) -> bool {
        matches!(self.phase.as_deref(), Some("Succeeded" | "Failed"))
    }

    fn addresses(self) -> Vec<String> {
        let Self { phase: _, pod_ip, pod_ips, conditions: _ } = self;
        let mut all = Vec::new();
        for ip in std::iter::once(pod_ip).chain(pod_ips.into_iter().map(|p| p.ip)) {
            if !ip.is_empty() && !all.contains(&ip) {
                all.push(ip);
            }
        }
        all
    }
}

#[cfg(test)]
mod tests;
