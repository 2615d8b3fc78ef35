//! Telemetry (telemetry.istio.io): the wire type and what it says of access logs (semantics §1.6). What it says of traces
//! and metrics has no effect here, and is not read. One that cannot be understood changes no log.

mod cel;

use mesh::{AccessLogging, LogMode, Reach};
use policy::{Attachment, TargetRef};
use schemars::JsonSchema;
use serde::Deserialize;
use serde_json::{Map, Value};

use crate::crd::schema;
use crate::finding::Issues;
use crate::meta::Metadata;
use crate::object::Object;
use crate::path::At;
use crate::selector::{Attachments, PolicyTargetReference, WorkloadSelector};
use crate::wire;

#[derive(Debug, Default, Deserialize)]
#[serde(default)]
struct Document {
    spec: TelemetrySpec,
}

/// `spec`.
#[derive(Clone, Debug, Default, PartialEq, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, rename_all = "camelCase", default)]
#[schemars(extend("x-kubernetes-validations" = schema::one_attachment()))]
pub struct TelemetrySpec {
    /// The workloads it is about: those of its namespace, or in the root namespace of the mesh, if left out.
    pub selector: Option<WorkloadSelector>,
    /// The old singular of targetRefs.
    pub target_ref: Option<PolicyTargetReference>,
    /// The gateways it is about.
    #[schemars(length(max = crate::selector::MAX_TARGET_REFS))]
    pub target_refs: Vec<PolicyTargetReference>,
    /// Which access logs are written.
    pub access_logging: Vec<AccessLoggingEntry>,
    /// Traces: read by Istio, has no effect here.
    #[schemars(schema_with = "schema::anything_listed")]
    pub tracing: Vec<Value>,
    /// Metrics: read by Istio, has no effect here.
    #[schemars(schema_with = "schema::anything_listed")]
    pub metrics: Vec<Value>,
}

/// `accessLogging[]`.
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, rename_all = "camelCase", default)]
pub struct AccessLoggingEntry {
    /// Which listeners it is about.
    pub r#match: Option<LogSelector>,
    /// Where lines go, by the names of the mesh configuration; left out: where they go already.
    pub providers: Vec<ProviderReference>,
    /// Nothing is logged there.
    pub disabled: Option<bool>,
    /// Which requests and connections are logged.
    pub filter: Option<Filter>,
}

/// `match`.
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct LogSelector {
    /// CLIENT: what the workload calls. SERVER: what it is called with. CLIENT_AND_SERVER: both.
    pub mode: WorkloadMode,
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize, JsonSchema)]
#[serde(rename_all = "SCREAMING_SNAKE_CASE")]
pub enum WorkloadMode {
    #[default]
    ClientAndServer,
    Client,
    Server,
}

/// `providers[]`.
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
#[schemars(extend("required" = ["name"]))]
pub struct ProviderReference {
    /// Of one of the mesh configuration's extensionProviders, or `envoy`: standard output.
    #[schemars(length(min = 1))]
    pub name: String,
}

/// `filter`.
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct Filter {
    /// In CEL, over Envoy's attributes: `response.code >= 400`.
    pub expression: String,
}

/// Reads one object; `None` or errors in `issues` if it cannot be understood.
pub(crate) fn read(
    metadata: &Metadata,
    document: &Map<String, Value>,
    issues: &mut Issues,
) -> Option<Object> {
    let Document { spec } = wire::read(document, issues)?;
    let TelemetrySpec { selector, target_ref, target_refs, access_logging, tracing, metrics } = spec;
    let at = At::ROOT.key("spec");
    for (field, list) in [("tracing", &tracing), ("metrics", &metrics)] {
        if !list.is_empty() {
            issues.warning(&at.key(field), "has no effect here");
        }
    }
    let attachments = Attachments {
        selector: selector.as_ref(),
        target_ref: target_ref.as_ref(),
        target_refs: &target_refs,
    };
    let reach = reach(attachments.read(issues));
    let list = at.key("accessLogging");
    let entries = access_logging.into_iter().enumerate();
    let access_logging = entries.map(|(i, entry)| read_entry(entry, &list.index(i), issues)).collect();
    let Metadata { name, namespace, labels: _, annotations: _, created, uid: _ } = metadata;
    Some(Object::Telemetry(mesh::Telemetry {
        namespace: namespace.clone(),
        name: name.clone(),
        created: *created,
        reach,
        access_logging,
    }))
}

fn reach(attachment: Attachment) -> Reach {
    let gateway = |target: TargetRef| {
        let TargetRef { group, kind, name } = target;
        (group == "gateway.networking.k8s.io" && kind == "Gateway").then_some(name)
    };
    match attachment {
        Attachment::Namespace => Reach::Namespace,
        Attachment::Labels(labels) => Reach::Labels(labels),
        Attachment::Targets(targets) => Reach::Gateways(targets.into_iter().filter_map(gateway).collect()),
    }
}

fn read_entry(entry: AccessLoggingEntry, at: &At<'_>, issues: &mut Issues) -> AccessLogging {
    let AccessLoggingEntry { r#match, providers, disabled, filter } = entry;
    let list = at.key("providers");
    let mut names = Vec::with_capacity(providers.len());
    for (i, ProviderReference { name }) in providers.into_iter().enumerate() {
        if name.is_empty() {
            issues.error(&list.index(i).key("name"), "a provider needs a name");
        }
        names.push(name.into());
    }
    let filter = filter.map(|Filter { expression }| {
        if let Err(why) = cel::check(&expression) {
            issues.error(&at.key("filter").key("expression"), why);
        }
        expression.into()
    });
    let mode = match r#match.unwrap_or_default().mode {
        WorkloadMode::ClientAndServer => LogMode::Both,
        WorkloadMode::Client => LogMode::Client,
        WorkloadMode::Server => LogMode::Server,
    };
    AccessLogging { mode, providers: names, disabled: disabled.unwrap_or_default(), filter }
}

#[cfg(test)]
mod tests;
