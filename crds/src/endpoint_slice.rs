//! EndpointSlice (discovery.k8s.io/v1): the wire type and its conversion.

use serde::Deserialize;
use serde_json::{Map, Value};

use crate::finding::Issues;
use crate::meta::Metadata;
use crate::object::Object;
use crate::path::At;
use crate::wire;

/// Which Service a slice belongs to.
const SERVICE_NAME: &str = "kubernetes.io/service-name";

/// The document, as far as anything here needs it.
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct EndpointSliceDocument {
    pub address_type: String,
    pub endpoints: Vec<Endpoint>,
    pub ports: Vec<Port>,
}

/// `endpoints[]`.
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct Endpoint {
    pub addresses: Vec<String>,
    pub conditions: Conditions,
    pub target_ref: Option<TargetRef>,
}

#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct Conditions {
    /// Absent counts as ready.
    pub ready: Option<bool>,
}

#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct TargetRef {
    pub kind: String,
    pub name: String,
    pub namespace: String,
}

/// `ports[]`.
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct Port {
    pub name: String,
    pub port: Option<u32>,
    pub protocol: Option<String>,
}

pub(crate) fn read(
    metadata: &Metadata,
    document: &Map<String, Value>,
    issues: &mut Issues,
) -> Option<Object> {
    let slice: EndpointSliceDocument = wire::read(document, issues)?;
    let EndpointSliceDocument { address_type, endpoints, ports } = slice;
    let Metadata { name, namespace, labels, annotations: _, created: _, uid: _ } = metadata;
    let Some(service) = labels.get(SERVICE_NAME) else {
        let at = At::ROOT.key("metadata");
        issues.error(&at.key("labels"), format!("the label `{SERVICE_NAME}` is missing"));
        return None;
    };
    let at = At::ROOT.key("ports");
    let tcp = |p: &Port| p.protocol.as_deref().is_none_or(|p| p.eq_ignore_ascii_case("TCP"));
    let ports = ports.iter().enumerate().filter(|(_, p)| tcp(p)).filter_map(|(i, p)| {
        let port = wire::port(p.port?, &at.index(i).key("port"), issues)?;
        Some(mesh::EndpointPort { name: p.name.clone(), port })
    });
    let ports = ports.collect();
    // Slices of host names have nothing that could be dialled.
    let endpoints = if address_type == "FQDN" { Vec::new() } else { endpoints };
    let at = At::ROOT.key("endpoints");
    let endpoints =
        endpoints.iter().enumerate().map(|(i, e)| read_endpoint(e, namespace, &at.index(i), issues));
    Some(Object::EndpointSlice(mesh::EndpointSlice {
        endpoints: endpoints.collect(),
        namespace: namespace.clone(),
        name: name.clone(),
        service: service.as_str().into(),
        ports,
    }))
}

fn read_endpoint(
    endpoint: &Endpoint,
    namespace: &str,
    at: &At<'_>,
    issues: &mut Issues,
) -> mesh::SliceEndpoint {
    let Endpoint { addresses, conditions: Conditions { ready }, target_ref } = endpoint;
    let at = at.key("addresses");
    let addresses = addresses.iter().enumerate().filter_map(|(i, a)| wire::address(a, &at.index(i), issues));
    let here = |t: &&TargetRef| t.kind == "Pod" && (t.namespace.is_empty() || t.namespace == namespace);
    mesh::SliceEndpoint {
        addresses: addresses.collect(),
        ready: ready.unwrap_or(true),
        workload: target_ref.as_ref().filter(here).map(|t| t.name.as_str().into()),
    }
}

#[cfg(test)]
mod tests;
