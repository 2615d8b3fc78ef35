//! DestinationRule (networking.istio.io, semantics §1.6): the wire type, its validation, and its conversion. Only TLS
//! has an effect here; what it says of pools, balancing and outliers is reported. It does not say which rule counts.

mod tls;

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use schemars::JsonSchema;
use serde::Deserialize;
use serde_json::{Map, Value};

use crate::crd::schema;
use crate::finding::Issues;
use crate::meta::Metadata;
use crate::object::Object;
use crate::path::At;
use crate::salvage::{Spec, salvage};
use crate::selector::WorkloadSelector;
use crate::{Reading, degrade, values};

pub use tls::{ClientTlsSettings, TlsMode};

/// `spec`.
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, rename_all = "camelCase", default)]
#[schemars(extend("required" = ["host"]))]
pub struct DestinationRuleSpec {
    /// The service that is called: its full name, its short name if it is in the same namespace, or a name that begins
    /// with * for several.
    pub host: String,
    /// What its callers do.
    pub traffic_policy: Option<TrafficPolicy>,
    /// Parts of the service that routes lead to: without routes, of no effect here.
    pub subsets: Vec<Subset>,
    /// Namespaces whose clients it is for: `*` (also if left out), `.` for its own, or names.
    pub export_to: Vec<String>,
    /// The clients in its own namespace that it is for: any, if left out.
    pub workload_selector: Option<WorkloadSelector>,
}

/// `trafficPolicy`.
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, rename_all = "camelCase", default)]
pub struct TrafficPolicy {
    /// How callers encrypt, and what they demand of the other side.
    pub tls: Option<ClientTlsSettings>,
    /// For single ports of the service: each replaces all that is said beside it.
    #[schemars(extend("maxItems" = 4096))]
    pub port_level_settings: Option<Vec<PortTrafficPolicy>>,
    /// Has no effect here.
    #[schemars(schema_with = "schema::anything")]
    pub load_balancer: Option<Map<String, Value>>,
    /// Has no effect here.
    #[schemars(schema_with = "schema::anything")]
    pub connection_pool: Option<Map<String, Value>>,
    /// Has no effect here.
    #[schemars(schema_with = "schema::anything")]
    pub outlier_detection: Option<Map<String, Value>>,
    /// Has no effect here.
    #[schemars(schema_with = "schema::anything")]
    pub tunnel: Option<Map<String, Value>>,
    /// Has no effect here.
    #[schemars(schema_with = "schema::anything")]
    pub proxy_protocol: Option<Map<String, Value>>,
    /// Has no effect here.
    #[schemars(schema_with = "schema::anything")]
    pub retry_budget: Option<Map<String, Value>>,
}

/// `portLevelSettings[]`.
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, rename_all = "camelCase", default)]
pub struct PortTrafficPolicy {
    /// The service's port.
    pub port: Option<PortSelector>,
    /// How callers encrypt, and what they demand of the other side.
    pub tls: Option<ClientTlsSettings>,
    /// Has no effect here.
    #[schemars(schema_with = "schema::anything")]
    pub load_balancer: Option<Map<String, Value>>,
    /// Has no effect here.
    #[schemars(schema_with = "schema::anything")]
    pub connection_pool: Option<Map<String, Value>>,
    /// Has no effect here.
    #[schemars(schema_with = "schema::anything")]
    pub outlier_detection: Option<Map<String, Value>>,
}

/// `port`.
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct PortSelector {
    /// Its number.
    pub number: u32,
}

/// `subsets[]`.
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, rename_all = "camelCase", default)]
#[schemars(extend("required" = ["name"]))]
pub struct Subset {
    /// By which routes know it.
    pub name: String,
    /// Which of the service's workloads it is.
    pub labels: BTreeMap<String, String>,
    /// What callers do there, beside what the rule says.
    pub traffic_policy: Option<TrafficPolicy>,
}

/// Reads one object: the rule it means, or, if `issues` has errors afterwards, its closed value.
pub(crate) fn read(metadata: &Metadata, spec: Spec<'_>, issues: &mut Issues) -> Reading {
    let salvaged = salvage::<DestinationRuleSpec>(spec, issues);
    let DestinationRuleSpec { host, traffic_policy, subsets, export_to, workload_selector } =
        salvaged.unwrap_or_default();
    let at = At::ROOT.key("spec");
    let namespace = &metadata.namespace;
    let host = read_host(&host, namespace, &at.key("host"), issues);
    if let Some(selector) = &workload_selector {
        selector.validate_labels(&at.key("workloadSelector"), issues);
    }
    let export_to =
        read_export_to(&export_to, namespace, workload_selector.is_some(), &at.key("exportTo"), issues);
    let context = Context { namespace, selector: workload_selector.is_some() };
    let policy_at = at.key("trafficPolicy");
    let policy = traffic_policy.map(|policy| read_policy(policy, &context, &policy_at, issues));
    let subsets = read_subsets(subsets, &context, &at.key("subsets"), issues);
    let rule = mesh::DestinationRule {
        namespace: namespace.clone(),
        name: metadata.name.clone(),
        created: metadata.created,
        host,
        export_to,
        selector: workload_selector.map(|selector| selector.match_labels),
        policy,
        subsets,
    };
    if !issues.has_errors() {
        return Reading::understood(Object::DestinationRule(rule));
    }
    degrade::destination_rule(rule, issues)
}

/// What the TLS settings of a rule depend on besides themselves.
#[derive(Clone, Copy, Debug)]
struct Context<'a> {
    namespace: &'a str,
    /// The rule has a selector.
    selector: bool,
}

/// Fully qualified, lower case.
fn read_host(host: &str, namespace: &str, at: &At<'_>, issues: &mut Issues) -> Arc<str> {
    if host.is_empty() {
        issues.missing(at, "a host is required");
    } else if !values::wildcard_domain(host) {
        issues.error(at, format!("`{host}` is not a DNS name, and none that begins with *"));
    }
    let host = host.to_ascii_lowercase();
    if host == "*" || host.contains('.') || host.parse::<std::net::IpAddr>().is_ok() {
        return host.into();
    }
    format!("{host}.{namespace}.svc.cluster.local").into()
}

fn read_export_to(
    export_to: &[String],
    namespace: &Arc<str>,
    selector: bool,
    at: &At<'_>,
    issues: &mut Issues,
) -> Option<BTreeSet<Arc<str>>> {
    let mut names: BTreeSet<Arc<str>> = BTreeSet::new();
    for (index, name) in export_to.iter().enumerate() {
        let at = at.index(index);
        let name: Arc<str> = if name == "." { namespace.clone() } else { name.as_str().into() };
        if &*name != "*" && !values::dns_label(&name) {
            issues.error(&at, format!("`{name}` is neither `*`, `.` nor the name of a namespace"));
        } else if !names.insert(name.clone()) {
            issues.error(&at, format!("`{name}` is given twice"));
        }
    }
    if names.contains("*") && names.len() > 1 {
        issues.error(at, "`*` cannot be given together with others");
    }
    if selector && !names.is_empty() && (names.len() > 1 || !names.contains(namespace)) {
        issues.error(at, "a rule with a workloadSelector is for its own namespace only");
    }
    if selector {
        return Some(BTreeSet::from([namespace.clone()]));
    }
    (!names.is_empty() && !names.contains("*")).then_some(names)
}

fn read_policy(
    policy: TrafficPolicy,
    context: &Context<'_>,
    at: &At<'_>,
    issues: &mut Issues,
) -> mesh::TrafficPolicy {
    let TrafficPolicy {
        tls,
        port_level_settings,
        load_balancer,
        connection_pool,
        outlier_detection,
        tunnel,
        proxy_protocol,
        retry_budget,
    } = policy;
    let ignored = [
        ("loadBalancer", &load_balancer),
        ("connectionPool", &connection_pool),
        ("outlierDetection", &outlier_detection),
        ("tunnel", &tunnel),
        ("proxyProtocol", &proxy_protocol),
        ("retryBudget", &retry_budget),
    ];
    let given = without_effect(&ignored, at, issues);
    if !given && tls.is_none() && port_level_settings.is_none() {
        issues.missing(at, "a traffic policy needs at least one field");
    }
    if tunnel.is_some() && proxy_protocol.is_some() {
        issues.error(at, "tunnel and proxyProtocol cannot be given together");
    }
    let mut ports = BTreeMap::new();
    for (index, settings) in port_level_settings.unwrap_or_default().into_iter().enumerate() {
        let at = at.key("portLevelSettings");
        let at = at.index(index);
        let PortTrafficPolicy { port, tls, load_balancer, connection_pool, outlier_detection } = settings;
        let ignored = [
            ("loadBalancer", &load_balancer),
            ("connectionPool", &connection_pool),
            ("outlierDetection", &outlier_detection),
        ];
        if !without_effect(&ignored, &at, issues) && tls.is_none() {
            issues.missing(&at, "the settings of a port need at least one field beside it");
        }
        let tls = tls.map(|tls| tls.read(context, &at.key("tls"), issues));
        match port.map(|port| u16::try_from(port.number)) {
            Some(Ok(number)) if number > 0 => {
                // The first one counts, as with Istio.
                if ports.contains_key(&number) {
                    issues.warning(&at.key("port"), "this port was given before: without effect");
                }
                ports.entry(number).or_insert(tls);
            }
            Some(_) => issues.warning(&at.key("port"), "not a port number from 1 to 65535: without effect"),
            None => issues.missing(&at.key("port"), "a port is required"),
        }
    }
    mesh::TrafficPolicy { tls: tls.map(|tls| tls.read(context, &at.key("tls"), issues)), ports }
}

/// Whether any of them is given.
fn without_effect(fields: &[(&str, &Option<Map<String, Value>>)], at: &At<'_>, issues: &mut Issues) -> bool {
    let given: Vec<&str> =
        fields.iter().filter(|(_, value)| value.is_some()).map(|(name, _)| *name).collect();
    for name in &given {
        issues.warning(&at.key(name), "has no effect here");
    }
    !given.is_empty()
}

fn read_subsets(
    subsets: Vec<Subset>,
    context: &Context<'_>,
    at: &At<'_>,
    issues: &mut Issues,
) -> Vec<mesh::Subset> {
    if !subsets.is_empty() {
        issues.warning(at, "no route leads to a subset here: without effect");
    }
    let mut names = BTreeSet::new();
    let mut read = Vec::with_capacity(subsets.len());
    for (index, subset) in subsets.into_iter().enumerate() {
        let at = at.index(index);
        let Subset { name, labels, traffic_policy } = subset;
        if !values::dns_label(&name) {
            issues.error(
                &at.key("name"),
                format!("`{name}` is not a name (letters, digits and -, at most 63)"),
            );
        }
        if !names.insert(name.clone()) {
            issues.error(&at.key("name"), format!("`{name}` is given twice"));
        }
        let policy =
            traffic_policy.map(|policy| read_policy(policy, context, &at.key("trafficPolicy"), issues));
        read.push(mesh::Subset { name, labels, policy });
    }
    read
}

#[cfg(test)]
mod tests;
