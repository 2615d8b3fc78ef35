//! Sidecar (networking.istio.io): the wire type, its validation, and its conversion (semantics §1.6). Which workload it is
//! for, and what it shows, is `mesh::visibility`'s.

mod ingress;

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use mesh::{Egress, HostMatch, HostRule, Scope};
use schemars::JsonSchema;
use serde::Deserialize;
use serde_json::{Map, Value};

use crate::crd::schema;
use crate::finding::Issues;
use crate::meta::Metadata;
use crate::object::Object;
use crate::path::At;
use crate::{Reading, export_to, host, wire};

#[derive(Debug, Default, Deserialize)]
#[serde(default)]
struct Document {
    spec: SidecarSpec,
}

/// `spec`.
#[derive(Clone, Debug, Default, PartialEq, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, rename_all = "camelCase", default)]
pub struct SidecarSpec {
    /// The workloads it is for: all of its namespace if left out, and in the root namespace those of every namespace without
    /// one.
    pub workload_selector: Option<NetworkingSelector>,
    /// The ports of the workloads, instead of those that Services name.
    pub ingress: Vec<IngressListener>,
    /// The hosts that the workloads may call: every one that is visible to them if left out.
    pub egress: Vec<EgressListener>,
    /// Settings of connections to the application: read by Istio, have no effect here.
    #[schemars(schema_with = "schema::anything")]
    pub inbound_connection_pool: Option<Value>,
    /// What happens to connections to hosts that are not known.
    pub outbound_traffic_policy: Option<OutboundTrafficPolicy>,
}

/// `workloadSelector`.
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, rename_all = "camelCase", default)]
pub struct NetworkingSelector {
    /// Labels that a workload must have, all of them.
    #[schemars(extend("maxProperties" = 256))]
    pub labels: BTreeMap<String, String>,
}

/// `ingress[]`.
#[derive(Clone, Debug, Default, PartialEq, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, rename_all = "camelCase", default)]
#[schemars(extend("required" = ["port"]))]
pub struct IngressListener {
    /// The workload's port.
    pub port: Option<SidecarPort>,
    /// The address that is listened at: read by Istio, has no effect here.
    pub bind: String,
    /// Whether connections are redirected: read by Istio, has no effect here.
    pub capture_mode: CaptureMode,
    /// Where the application listens: 127.0.0.1:PORT, [::1]:PORT, 0.0.0.0:PORT, [::]:PORT or unix:///PATH.
    pub default_endpoint: String,
    /// TLS without the mesh's certificates: has no effect, PeerAuthentication decides.
    #[schemars(schema_with = "schema::anything")]
    pub tls: Option<Value>,
    /// Settings of connections to the application: read by Istio, have no effect here.
    #[schemars(schema_with = "schema::anything")]
    pub connection_pool: Option<Value>,
}

/// `egress[]`.
#[derive(Clone, Debug, Default, PartialEq, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, rename_all = "camelCase", default)]
#[schemars(extend("required" = ["hosts"]))]
pub struct EgressListener {
    /// Only this port of the hosts.
    pub port: Option<SidecarPort>,
    /// The address that is listened at: read by Istio, has no effect here.
    pub bind: String,
    /// Whether connections are redirected: read by Istio, has no effect here.
    pub capture_mode: CaptureMode,
    /// NAMESPACE/HOST each. The namespace may be `*` (any), `.` (that of the Sidecar) or `~` (none); the host may begin with
    /// `*`.
    pub hosts: Vec<String>,
}

/// `port`.
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, rename_all = "camelCase", default)]
pub struct SidecarPort {
    /// From 1 to 65535.
    pub number: u32,
    /// HTTP, HTTPS, GRPC, HTTP2, MONGO, TCP, TLS or the like; found out from the traffic if left out.
    pub protocol: String,
    /// Its name.
    pub name: String,
    /// Has no effect.
    pub target_port: u32,
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize, JsonSchema)]
#[serde(rename_all = "UPPERCASE")]
pub enum CaptureMode {
    #[default]
    Default,
    Iptables,
    None,
}

/// `outboundTrafficPolicy`.
#[derive(Clone, Debug, Default, PartialEq, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, rename_all = "camelCase", default)]
pub struct OutboundTrafficPolicy {
    /// REGISTRY_ONLY: they are refused. ALLOW_ANY: they pass.
    pub mode: Option<OutboundMode>,
    /// Where Istio sends them instead: no such way is made here, they are refused.
    #[schemars(schema_with = "schema::anything")]
    pub egress_proxy: Option<Value>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize, JsonSchema)]
#[serde(rename_all = "SCREAMING_SNAKE_CASE")]
pub enum OutboundMode {
    RegistryOnly,
    AllowAny,
}

/// Reads one object. If `issues` has errors afterwards the result is its closed value: its workloads may call nothing.
/// Their inbound ports are then those of the Services, as if it were not there; PeerAuthentication and policies hold at
/// every port, whoever names it.
pub(crate) fn read(
    metadata: &Metadata,
    document: &Map<String, Value>,
    complete: bool,
    issues: &mut Issues,
) -> Reading {
    let document = if complete { wire::read::<Document>(document, issues) } else { None };
    let readable = document.is_some();
    let SidecarSpec { workload_selector, ingress, egress, inbound_connection_pool, outbound_traffic_policy } =
        document.unwrap_or_default().spec;
    let at = At::ROOT.key("spec");
    if inbound_connection_pool.is_some() {
        issues.warning(&at.key("inboundConnectionPool"), "it has no effect");
    }
    let selector =
        workload_selector.map(|selector| read_selector(selector, &at.key("workloadSelector"), issues));
    let ingress = ingress::read(&ingress, &at.key("ingress"), issues);
    let egress = read_egress(&egress, &metadata.namespace, &at.key("egress"), issues);
    let allow_any = outbound_traffic_policy.and_then(|policy| read_outbound(policy, &at, issues));
    let Metadata { name, namespace, labels: _, annotations: _, created, uid: _ } = metadata;
    let mut sidecar = mesh::Sidecar {
        namespace: namespace.clone(),
        name: name.clone(),
        created: *created,
        // No labels select everything.
        selector: selector.filter(|selector| !selector.is_empty()),
        scope: Arc::new(Scope { egress, allow_any }),
        ingress,
    };
    if !issues.has_errors() {
        return Reading::understood(Object::Sidecar(sidecar));
    }
    let scope_unknown = !readable || issues.errors_below(&["spec", "workloadSelector"]);
    sidecar.scope = Arc::new(Scope::nothing());
    sidecar.ingress.clear();
    if scope_unknown {
        sidecar.selector = None;
        // Before every other: where order decides, the object whose place is unknown must not lose.
        sidecar.created = i64::MIN;
    }
    Reading { object: Object::Sidecar(sidecar), scope_unknown }
}

fn read_selector(selector: NetworkingSelector, at: &At<'_>, issues: &mut Issues) -> BTreeMap<String, String> {
    let NetworkingSelector { labels } = selector;
    let at = at.key("labels");
    for (key, value) in &labels {
        if key.is_empty() {
            issues.error(&at.key(key), "a label needs a name");
        }
        if key.contains('*') || value.contains('*') {
            issues.error(&at.key(key), "wildcards are not supported in labels");
        }
    }
    labels
}

fn read_outbound(policy: OutboundTrafficPolicy, at: &At<'_>, issues: &mut Issues) -> Option<bool> {
    let OutboundTrafficPolicy { mode, egress_proxy } = policy;
    if egress_proxy.is_some() {
        let at = at.key("outboundTrafficPolicy");
        issues.warning(&at.key("egressProxy"), "no such way is made: hosts that are not known are refused");
        return Some(false);
    }
    // Given without a mode it is REGISTRY_ONLY, the first of the enum.
    Some(mode == Some(OutboundMode::AllowAny))
}

/// `None`: nothing is narrowed.
fn read_egress(
    listeners: &[EgressListener],
    namespace: &Arc<str>,
    at: &At<'_>,
    issues: &mut Issues,
) -> Option<Vec<Egress>> {
    if listeners.is_empty() {
        return None;
    }
    let mut seen = BTreeSet::new();
    let mut read = Vec::with_capacity(listeners.len());
    for (index, listener) in listeners.iter().enumerate() {
        let at = at.index(index);
        let EgressListener { port, bind, capture_mode, hosts } = listener;
        let number = port.as_ref().and_then(|port| ingress::number(port, &at.key("port"), issues));
        if port.is_none() {
            if !bind.is_empty() {
                issues.error(&at.key("bind"), "an address needs a port");
            }
            if index + 1 < listeners.len() {
                issues.error(&at, "the entry without a port is the last one, and there is only one");
            }
        } else {
            if !bind.is_empty() {
                issues.warning(&at.key("bind"), "it has no effect: the hosts are called as without it");
            }
            if !seen.insert((number, bind)) {
                issues.error(&at.key("port"), "this port is given twice");
            }
        }
        if *capture_mode == CaptureMode::None {
            issues
                .warning(&at.key("captureMode"), "it has no effect: how traffic is captured is the proxy's");
        }
        if hosts.is_empty() {
            issues.error(&at.key("hosts"), "at least one host is required");
        }
        let at = at.key("hosts");
        let rules =
            hosts.iter().enumerate().filter_map(|(i, text)| rule(text, namespace, &at.index(i), issues));
        read.push(Egress { port: number, hosts: rules.collect() });
    }
    Some(read)
}

/// `None` for a host that is none, and for `~/HOST`, which means nothing.
fn rule(text: &str, own: &Arc<str>, at: &At<'_>, issues: &mut Issues) -> Option<HostRule> {
    let Some((namespace, name)) = text.split_once('/') else {
        issues.error(at, format!("`{text}` is not NAMESPACE/HOST"));
        return None;
    };
    if let Err(reason) = host::wildcard(name) {
        issues.error(at, reason);
        return None;
    }
    let namespace = match namespace {
        "*" => None,
        "." => Some(own.clone()),
        "~" => return None,
        _ if export_to::namespace(namespace) => Some(namespace.into()),
        _ => {
            issues.error(at, format!("`{namespace}` is neither a namespace nor `*`, `.` or `~`"));
            return None;
        }
    };
    Some(HostRule { namespace, host: HostMatch::parse(name) })
}

#[cfg(test)]
mod tests;
