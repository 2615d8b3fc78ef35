//! ServiceEntry (networking.istio.io): the wire type, its validation, and its conversion (semantics §1.6). It resolves no
//! names: proxies do.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;
use std::sync::Arc;

use ipnet::IpNet;
use mesh::{Entry, EntryAddress, EntryEndpoint, Protocol, Resolution, ServicePort, TargetPort};
use schemars::JsonSchema;
use serde::Deserialize;
use serde_json::{Map, Value};

use crate::finding::Issues;
use crate::meta::Metadata;
use crate::object::Object;
use crate::path::At;
use crate::pod::TLS_MODE;
use crate::sidecar::{NetworkingSelector, known_protocol};
use crate::workload_entry::WorkloadEntrySpec;
use crate::{export_to, host, wire};

#[derive(Debug, Default, Deserialize)]
#[serde(default)]
struct Document {
    spec: ServiceEntrySpec,
}

/// `spec`.
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, rename_all = "camelCase", default)]
#[schemars(extend("required" = ["hosts"]))]
pub struct ServiceEntrySpec {
    /// The names of the service; one may begin with `*.`.
    #[schemars(length(min = 1, max = 256))]
    pub hosts: Vec<String>,
    /// The addresses that clients call it at.
    #[schemars(length(max = 256))]
    pub addresses: Vec<String>,
    /// Its ports.
    #[schemars(length(max = 256))]
    pub ports: Vec<EntryPort>,
    /// MESH_INTERNAL: its endpoints are workloads of the mesh. MESH_EXTERNAL: they are not.
    pub location: Location,
    /// How addresses are found: where the client wanted to go (NONE), the endpoints (STATIC), or by DNS.
    pub resolution: EntryResolution,
    /// What is behind it.
    #[schemars(length(max = 4096))]
    pub endpoints: Vec<WorkloadEntrySpec>,
    /// The Pods and WorkloadEntries of its namespace that are behind it.
    pub workload_selector: Option<NetworkingSelector>,
    /// The namespaces that it is shown to.
    pub export_to: Vec<String>,
    /// Names of which one must be in a server's certificate.
    pub subject_alt_names: Vec<String>,
}

/// `ports[]`.
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, rename_all = "camelCase", default)]
#[schemars(extend("required" = ["number", "name"]))]
pub struct EntryPort {
    /// From 1 to 65535.
    pub number: u32,
    /// HTTP, HTTPS, GRPC, HTTP2, MONGO, TCP, TLS or the like; found out from the traffic if left out.
    #[schemars(length(max = 256))]
    pub protocol: String,
    /// Its name.
    #[schemars(length(max = 256))]
    pub name: String,
    /// The port of its endpoints, if it is another one.
    pub target_port: u32,
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize, JsonSchema)]
#[serde(rename_all = "SCREAMING_SNAKE_CASE")]
pub enum Location {
    #[default]
    MeshExternal,
    MeshInternal,
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize, JsonSchema)]
#[serde(rename_all = "SCREAMING_SNAKE_CASE")]
pub enum EntryResolution {
    #[default]
    None,
    Static,
    Dns,
    DnsRoundRobin,
    DynamicDns,
}

pub(crate) fn read(
    metadata: &Metadata,
    document: &Map<String, Value>,
    issues: &mut Issues,
) -> Option<Object> {
    let Document { spec } = wire::read(document, issues)?;
    let ServiceEntrySpec {
        hosts,
        addresses,
        ports,
        location,
        resolution,
        endpoints,
        workload_selector,
        export_to,
        subject_alt_names,
    } = spec;
    let at = At::ROOT.key("spec");
    let selector = workload_selector.map(|selector| selector.labels).filter(|labels| !labels.is_empty());
    if selector.is_some() && !endpoints.is_empty() {
        issues.error(&at, "only one of workloadSelector and endpoints can be given");
    }
    let resolution = read_resolution(resolution, &endpoints, selector.is_some(), &hosts, &at, issues);
    let hosts = read_hosts(&hosts, &at.key("hosts"), issues);
    let addresses = read_addresses(&addresses, &at.key("addresses"), issues);
    let sni =
        |port: &&EntryPort| ["HTTPS", "TLS"].iter().any(|name| port.protocol.eq_ignore_ascii_case(name));
    let sni_ports: BTreeSet<u16> =
        ports.iter().filter(sni).filter_map(|port| u16::try_from(port.number).ok()).collect();
    let ports = read_ports(&ports, &at.key("ports"), issues);
    let unreachable =
        |port: &&ServicePort| port.protocol == Protocol::Tcp && !BTreeSet::contains(&sni_ports, &port.port);
    if addresses.is_empty() && resolution != Resolution::Static && ports.iter().any(|port| unreachable(&port))
    {
        let why = "without an address, connections to its TCP ports cannot be told from others: they have no effect";
        issues.warning(&at.key("addresses"), why);
    }
    let endpoints_at = at.key("endpoints");
    let endpoints = endpoints.into_iter().enumerate();
    let endpoints = endpoints
        .filter_map(|(i, one)| read_endpoint(one, resolution, &endpoints_at.index(i), issues))
        .collect();
    let export_to = export_to::list(&export_to, &at.key("exportTo"), issues);
    let Metadata { name, namespace, labels: _, annotations: _, created, uid: _ } = metadata;
    Some(Object::ServiceEntry(mesh::ServiceEntry {
        namespace: namespace.clone(),
        name: name.clone(),
        created: *created,
        hosts,
        addresses,
        ports,
        selector,
        export_to,
        entry: Arc::new(Entry {
            external: location == Location::MeshExternal,
            resolution,
            endpoints,
            subject_alt_names,
            sni_ports,
        }),
    }))
}

fn read_resolution(
    resolution: EntryResolution,
    endpoints: &[WorkloadEntrySpec],
    selected: bool,
    hosts: &[String],
    at: &At<'_>,
    issues: &mut Issues,
) -> Resolution {
    let wildcard = hosts.iter().any(|host| host.starts_with('*'));
    match resolution {
        EntryResolution::None => {
            if !endpoints.is_empty() {
                issues.error(&at.key("endpoints"), "resolution NONE has no endpoints");
            }
            Resolution::None
        }
        EntryResolution::Static => {
            if endpoints.is_empty() && !selected {
                issues.error(&at.key("endpoints"), "resolution STATIC needs endpoints or a workloadSelector");
            }
            Resolution::Static
        }
        EntryResolution::Dns | EntryResolution::DnsRoundRobin => {
            if endpoints.is_empty() && !selected && wildcard {
                issues.error(&at.key("hosts"), "DNS has no wildcards: give endpoints");
            }
            Resolution::Dns
        }
        EntryResolution::DynamicDns => {
            issues.error(&at.key("resolution"), "DYNAMIC_DNS is not supported: the host is not known");
            Resolution::Dns
        }
    }
}

fn read_hosts(hosts: &[String], at: &At<'_>, issues: &mut Issues) -> Vec<Arc<str>> {
    if hosts.is_empty() {
        issues.error(at, "at least one host is required");
    }
    let mut seen = BTreeSet::new();
    for (index, name) in hosts.iter().enumerate() {
        if name == "*" {
            issues.error(&at.index(index), "`*` alone is every host of the world");
        } else if let Err(reason) = host::wildcard(name) {
            issues.error(&at.index(index), reason);
        }
        if !seen.insert(name.to_ascii_lowercase()) {
            issues.error(&at.index(index), format!("`{name}` is given twice"));
        }
    }
    seen.into_iter().map(Into::into).collect()
}

/// Single addresses; a block of them cannot be listened at.
fn read_addresses(addresses: &[String], at: &At<'_>, issues: &mut Issues) -> Vec<IpAddr> {
    let mut read = Vec::new();
    for (index, text) in addresses.iter().enumerate() {
        let at = at.index(index);
        match (text.parse::<IpAddr>(), text.parse::<IpNet>()) {
            (Ok(ip), _) => read.push(ip.to_canonical()),
            (_, Ok(net)) if net.prefix_len() == net.max_prefix_len() => read.push(net.addr()),
            (_, Ok(_)) => issues.warning(&at, "a block of addresses has no effect: give single ones"),
            _ => issues.error(&at, format!("`{text}` is neither an IP address nor a CIDR block")),
        }
    }
    read
}

fn read_ports(ports: &[EntryPort], at: &At<'_>, issues: &mut Issues) -> Vec<ServicePort> {
    let (mut numbers, mut names) = (BTreeSet::new(), BTreeSet::new());
    let mut read = Vec::new();
    for (index, EntryPort { number, protocol, name, target_port }) in ports.iter().enumerate() {
        let at = at.index(index);
        if name.is_empty() {
            issues.error(&at.key("name"), "a port needs a name");
        } else if !names.insert(name) {
            issues.error(&at.key("name"), format!("`{name}` is given twice"));
        }
        if !numbers.insert(number) {
            issues.error(&at.key("number"), format!("{number} is given twice"));
        }
        if !known_protocol(protocol) {
            issues.error(&at.key("protocol"), format!("`{protocol}` is not the name of a protocol"));
        }
        let Some(port) = wire::port(*number, &at.key("number"), issues) else { continue };
        let target = match target_port {
            0 => Some(port),
            target => wire::port(*target, &at.key("targetPort"), issues),
        };
        if protocol.eq_ignore_ascii_case("UDP") {
            continue;
        }
        let protocol = Protocol::detect((!protocol.is_empty()).then_some(protocol.as_str()), "", port);
        read.extend(target.map(|target| ServicePort {
            name: name.clone(),
            port,
            target: TargetPort::Entry(target),
            protocol,
        }));
    }
    read
}

fn read_endpoint(
    endpoint: WorkloadEntrySpec,
    resolution: Resolution,
    at: &At<'_>,
    issues: &mut Issues,
) -> Option<EntryEndpoint> {
    let WorkloadEntrySpec { address, ports, labels, service_account, network: _, locality: _, weight: _ } =
        endpoint;
    let mut named = BTreeMap::new();
    for (name, number) in ports {
        if let Some(number) = wire::port(number, &at.key("ports").key(&name), issues) {
            named.insert(name, number);
        }
    }
    let address_at = at.key("address");
    let address = match address.parse::<IpAddr>() {
        Ok(ip) => EntryAddress::Ip(ip.to_canonical()),
        Err(_) if resolution == Resolution::Static => {
            issues.error(&address_at, format!("`{address}`: resolution STATIC needs an IP address"));
            return None;
        }
        Err(_) => match host::exact(&address) {
            Ok(()) => EntryAddress::Name(address.to_ascii_lowercase().into()),
            Err(reason) => {
                issues.error(&address_at, reason);
                return None;
            }
        },
    };
    let mutual_tls = match labels.get(TLS_MODE) {
        Some(mode) => mode == "istio",
        None => !service_account.is_empty(),
    };
    let service_account = (!service_account.is_empty()).then(|| service_account.into());
    Some(EntryEndpoint { address, ports: named, service_account, mutual_tls, labels })
}

#[cfg(test)]
mod tests;
