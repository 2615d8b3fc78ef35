//! WorkloadEntry (networking.istio.io): the wire type and its conversion into a workload (semantics §1.6).

use std::collections::BTreeMap;
use std::sync::Arc;

use mesh::{Workload, WorkloadKind};
use schemars::JsonSchema;
use serde::Deserialize;
use serde_json::{Map, Value};

use crate::crd::schema;
use crate::finding::Issues;
use crate::meta::Metadata;
use crate::object::Object;
use crate::path::At;
use crate::pod::TLS_MODE;
use crate::wire;

#[derive(Debug, Default, Deserialize)]
#[serde(default)]
struct Document {
    spec: WorkloadEntrySpec,
}

/// `spec`.
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", default)]
#[schemars(extend("x-kubernetes-validations" = schema::entry_address()))]
pub struct WorkloadEntrySpec {
    /// Its IP address. A host name, which Istio resolves in DNS, and `unix://` have no effect here.
    #[schemars(length(max = 256), extend("x-kubernetes-validations" = schema::unix_socket()))]
    pub address: String,
    /// Names of its ports.
    #[schemars(schema_with = "schema::named_ports")]
    pub ports: BTreeMap<String, u32>,
    /// Its labels, which selectors look at, beside those of the object itself.
    #[schemars(extend("maxProperties" = 256))]
    pub labels: BTreeMap<String, String>,
    /// The service account that it runs as.
    #[schemars(length(max = 253))]
    pub service_account: String,
    /// The network it is in: read by Istio, has no effect here.
    #[schemars(length(max = 2048))]
    pub network: String,
    /// Region, zone and subzone: read by Istio, has no effect here.
    #[schemars(length(max = 2048))]
    pub locality: String,
    /// Its share of the load: read by Istio, has no effect here.
    pub weight: u32,
}

pub(crate) fn read(
    metadata: &Metadata,
    document: &Map<String, Value>,
    issues: &mut Issues,
) -> Option<Object> {
    let Document { spec } = wire::read(document, issues)?;
    let WorkloadEntrySpec { address, ports, labels, service_account, network: _, locality: _, weight: _ } =
        spec;
    let at = At::ROOT.key("spec");
    let named_ports = ports
        .into_iter()
        .filter_map(|(name, number)| {
            let number = wire::port(number, &at.key("ports").key(&name), issues)?;
            Some((name, number))
        })
        .collect();
    let addresses = if address.is_empty() {
        Vec::new()
    } else {
        wire::address(&address, &at.key("address"), issues).into_iter().collect()
    };
    // Both count; where they differ, Istio believes the metadata.
    let mut all = labels;
    all.extend(metadata.labels.clone());
    let mutual_tls = match all.get(TLS_MODE) {
        Some(mode) => mode == "istio",
        None => !service_account.is_empty(),
    };
    let Metadata { name, namespace, labels: _, annotations: _, created, uid } = metadata;
    Some(Object::Workload(Workload {
        namespace: namespace.clone(),
        name: name.clone(),
        kind: WorkloadKind::WorkloadEntry,
        labels: Arc::new(all),
        service_account: if service_account.is_empty() { "default".into() } else { service_account.into() },
        addresses,
        named_ports,
        mutual_tls,
        ready: true,
        created: *created,
        uid: uid.clone(),
    }))
}

#[cfg(test)]
mod tests;
