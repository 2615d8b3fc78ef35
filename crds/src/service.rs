//! Service (v1): the wire type and its conversion. UDP and SCTP ports are left out; endpoints are not its business.

use std::collections::BTreeMap;

use mesh::{Protocol, ServicePort, TargetPort};
use serde::Deserialize;
use serde_json::{Map, Value};

use crate::finding::Issues;
use crate::meta::Metadata;
use crate::object::Object;
use crate::path::At;
use crate::{export_to, wire};

#[derive(Debug, Default, Deserialize)]
#[serde(default)]
struct Document {
    spec: ServiceSpec,
}

/// `spec`, as far as anything here needs it.
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct ServiceSpec {
    #[serde(rename = "clusterIP")]
    pub cluster_ip: String,
    #[serde(rename = "clusterIPs")]
    pub cluster_ips: Vec<String>,
    pub ports: Vec<Port>,
    pub selector: Option<BTreeMap<String, String>>,
}

/// `spec.ports[]`.
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct Port {
    pub name: String,
    pub port: u32,
    pub target_port: Option<IntOrString>,
    /// TCP where none is given.
    pub protocol: Option<String>,
    pub app_protocol: Option<String>,
}

/// Kubernetes' `IntOrString`.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
#[serde(untagged)]
pub enum IntOrString {
    Int(u32),
    String(String),
}

pub(crate) fn read(
    metadata: &Metadata,
    document: &Map<String, Value>,
    issues: &mut Issues,
) -> Option<Object> {
    let Document { spec } = wire::read(document, issues)?;
    let ServiceSpec { cluster_ip, cluster_ips, ports, selector } = spec;
    let at = At::ROOT.key("spec");
    let ips = if cluster_ips.is_empty() { vec![cluster_ip] } else { cluster_ips };
    let address = |(i, ip): (usize, &String)| wire::address(ip, &at.key("clusterIPs").index(i), issues);
    let cluster_ips = ips
        .iter()
        .enumerate()
        .filter(|(_, ip)| !matches!(ip.as_str(), "" | "None"))
        .filter_map(address)
        .collect();
    let ports =
        ports.iter().enumerate().filter_map(|(i, port)| read_port(port, &at.key("ports").index(i), issues));
    let ports = ports.collect();
    let Metadata { name, namespace, labels: _, annotations, created, uid: _ } = metadata;
    let at = At::ROOT.key("metadata");
    let at = at.key("annotations");
    let export_to = annotations
        .get(export_to::ANNOTATION)
        .and_then(|value| export_to::annotation(value, &at.key(export_to::ANNOTATION), issues));
    Some(Object::Service(mesh::Service {
        namespace: namespace.clone(),
        name: name.clone(),
        // The suffix is Kubernetes', whatever the trust domain is.
        hostname: format!("{name}.{namespace}.svc.cluster.local").into(),
        cluster_ips,
        ports,
        selector,
        created: *created,
        export_to,
    }))
}

fn read_port(port: &Port, at: &At<'_>, issues: &mut Issues) -> Option<ServicePort> {
    let Port { name, port: number, target_port, protocol, app_protocol } = port;
    if protocol.as_deref().is_some_and(|protocol| !protocol.eq_ignore_ascii_case("TCP")) {
        return None;
    }
    let number = wire::port(*number, &at.key("port"), issues)?;
    let target_at = at.key("targetPort");
    let target = match target_port {
        None | Some(IntOrString::Int(0)) => TargetPort::Number(number),
        Some(IntOrString::Int(target)) => TargetPort::Number(wire::port(*target, &target_at, issues)?),
        Some(IntOrString::String(name)) if name.is_empty() => TargetPort::Number(number),
        // `targetPort: "8080"` is a number to Kubernetes only if unquoted; quoted it would name a port, and a name of
        // digits alone is refused there.
        Some(IntOrString::String(name)) if name.bytes().all(|b| b.is_ascii_digit()) => {
            issues.error(&target_at, format!("`{name}` in quotes is a name: leave the quotes out"));
            return None;
        }
        Some(IntOrString::String(name)) => TargetPort::Name(name.clone()),
    };
    Some(ServicePort {
        name: name.clone(),
        port: number,
        target,
        protocol: Protocol::detect(app_protocol.as_deref(), name, number),
    })
}

#[cfg(test)]
mod tests;
