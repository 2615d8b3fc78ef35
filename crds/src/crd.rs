//! CustomResourceDefinitions, made from the wire types: Istio's own kinds under their own names, with schemas that accept
//! and refuse what Istio's do (semantics §1.1–1.5). It installs nothing; `charts/countersign-crds` does.
//!
//! Two things differ from Istio's definitions: printer columns tell what is enforced, and `status` keeps every field.

pub(crate) mod schema;
mod structural;

use schemars::JsonSchema;
use schemars::generate::SchemaSettings;
use serde_json::{Value, json};

use crate::Kind;
use crate::spec::{
    AuthorizationPolicySpec, DestinationRuleSpec, PeerAuthenticationSpec, RequestAuthenticationSpec,
    SidecarSpec, TelemetrySpec, WorkloadEntrySpec,
};
use structural::structural;

/// Every definition that we ship has it.
pub const PART_OF_LABEL: (&str, &str) = ("app.kubernetes.io/part-of", "countersign");

/// One CustomResourceDefinition.
#[derive(Clone, Debug, PartialEq)]
pub struct Definition {
    pub kind: Kind,
    /// Lower case, as in API paths.
    pub plural: &'static str,
    /// Empty: there is none.
    pub short_name: &'static str,
    value: Value,
}

impl Definition {
    /// `PLURAL.GROUP`, which is its name in a cluster.
    pub fn name(&self) -> String {
        format!("{}.{}", self.plural, self.kind.group())
    }

    /// As the API server takes it.
    pub fn value(&self) -> &Value {
        &self.value
    }

    /// The text of its file in the chart.
    pub fn yaml(&self) -> String {
        let text = serde_yaml::to_string(&self.value).expect("a JSON value whose keys are text");
        format!("# Generated from the Rust types in crds/: scripts/gen writes it.\n{text}")
    }
}

/// The definitions of the kinds that are read from a cluster and are not Kubernetes' own.
pub fn definitions() -> Vec<Definition> {
    let policy = "security-istio-io";
    vec![
        Source {
            kind: Kind::AuthorizationPolicy,
            plural: "authorizationpolicies",
            short_name: "ap",
            category: policy,
            about: "Which requests may reach the workloads of a namespace.",
            spec: spec::<AuthorizationPolicySpec>(),
            spec_required: false,
            columns: vec![
                column("Action", ".spec.action", "What happens to requests that match; ALLOW if empty"),
                column("Dry-Run", r".metadata.annotations.istio\.io/dry-run", "Counted, not enforced"),
                enforced(),
            ],
        },
        Source {
            kind: Kind::DestinationRule,
            plural: "destinationrules",
            short_name: "dr",
            category: "networking-istio-io",
            about: "How the clients of a service call it: here, with which TLS.",
            spec: spec::<DestinationRuleSpec>(),
            spec_required: false,
            columns: vec![column("Host", ".spec.host", "The service that it is about")],
        },
        Source {
            kind: Kind::PeerAuthentication,
            plural: "peerauthentications",
            short_name: "pa",
            category: policy,
            about: "Which connections the workloads of a namespace take: mutual TLS only, or plaintext as well.",
            spec: spec::<PeerAuthenticationSpec>(),
            spec_required: false,
            columns: vec![column("Mode", ".spec.mtls.mode", "Which connections are taken"), enforced()],
        },
        Source {
            kind: Kind::RequestAuthentication,
            plural: "requestauthentications",
            short_name: "ra",
            category: policy,
            about: "Which tokens are verified for the workloads of a namespace.",
            spec: spec::<RequestAuthenticationSpec>(),
            spec_required: false,
            columns: vec![enforced()],
        },
        Source {
            kind: Kind::Sidecar,
            plural: "sidecars",
            short_name: "",
            category: "networking-istio-io",
            about: "Which hosts the workloads of a namespace may call, and which ports they serve.",
            spec: spec::<SidecarSpec>(),
            spec_required: false,
            columns: vec![],
        },
        Source {
            kind: Kind::Telemetry,
            plural: "telemetries",
            short_name: "telemetry",
            category: "telemetry-istio-io",
            about: "Which access logs the workloads of a namespace write.",
            spec: spec::<TelemetrySpec>(),
            spec_required: false,
            columns: Vec::new(),
        },
        Source {
            kind: Kind::WorkloadEntry,
            plural: "workloadentries",
            short_name: "we",
            category: "networking-istio-io",
            about: "A workload outside of Kubernetes, such as a virtual machine.",
            spec: spec::<WorkloadEntrySpec>(),
            spec_required: true,
            columns: vec![column("Address", ".spec.address", "Its IP address")],
        },
    ]
    .into_iter()
    .map(Source::definition)
    .collect()
}

/// What differs between the definitions.
struct Source {
    kind: Kind,
    plural: &'static str,
    short_name: &'static str,
    category: &'static str,
    about: &'static str,
    spec: Value,
    spec_required: bool,
    /// Between name and age.
    columns: Vec<Value>,
}

impl Source {
    fn definition(self) -> Definition {
        let Self { kind, plural, short_name, category, about, spec, spec_required, columns } = self;
        let policy = kind.is_policy();
        let mut schema = json!({
            "description": about,
            "type": "object",
            "properties": { "spec": spec, "status": status() },
        });
        if spec_required {
            schema["required"] = json!(["spec"]);
        }
        let columns = columns.into_iter().chain(policy.then(problems).into_iter().flatten()).chain([age()]);
        let columns: Vec<Value> = columns.collect();
        let version = |(index, name): (usize, &&str)| {
            json!({
                "name": name,
                "served": true,
                "storage": index == 0,
                "subresources": { "status": {} },
                "additionalPrinterColumns": columns,
                "schema": { "openAPIV3Schema": schema },
            })
        };
        let versions: Vec<Value> = kind.versions().iter().enumerate().map(version).collect();
        let singular = kind.as_str().to_lowercase();
        let mut value = json!({
            "apiVersion": "apiextensions.k8s.io/v1",
            "kind": "CustomResourceDefinition",
            "metadata": {
                "name": format!("{plural}.{}", kind.group()),
                "labels": { PART_OF_LABEL.0: PART_OF_LABEL.1 },
                // Without its definition every policy is gone: no uninstall takes it along.
                "annotations": { "helm.sh/resource-policy": "keep" },
            },
            "spec": {
                "group": kind.group(),
                "scope": "Namespaced",
                "names": {
                    "kind": kind.as_str(),
                    "listKind": format!("{kind}List"),
                    "plural": plural,
                    "singular": singular,
                    "categories": ["istio-io", category],
                },
                "versions": versions,
            },
        });
        if !short_name.is_empty() {
            value["spec"]["names"]["shortNames"] = json!([short_name]);
        }
        Definition { kind, plural, short_name, value: sorted(value) }
    }
}

fn spec<T: JsonSchema>() -> Value {
    let mut settings = SchemaSettings::openapi3();
    settings.inline_subschemas = true;
    // That transform is ours, and goes further.
    settings.transforms.clear();
    let mut schema = structural(settings.into_generator().into_root_schema_for::<T>().to_value());
    schema["description"] = "What is asked for.".into();
    schema
}

/// Whoever writes conditions may write more than we know.
fn status() -> Value {
    let text = |about: &str| json!({ "type": "string", "description": about });
    let number = json!({
        "x-kubernetes-int-or-string": true,
        "anyOf": [{ "type": "integer" }, { "type": "string" }],
        "description": "The metadata.generation that this is about.",
    });
    let time = json!({ "type": "string", "format": "date-time", "description": "When status last changed." });
    json!({
        "type": "object",
        "description": "What control planes say of it.",
        "x-kubernetes-preserve-unknown-fields": true,
        "properties": {
            "observedGeneration": number,
            "conditions": {
                "type": "array",
                "description": "Accepted, Programmed, Enforced, Conflicted, and those of other control planes.",
                "items": {
                    "type": "object",
                    "x-kubernetes-preserve-unknown-fields": true,
                    "properties": {
                        "type": text("What it is about."),
                        "status": text("True, False or Unknown."),
                        "reason": text("Why, in one word for programs."),
                        "message": text("Why, for people."),
                        "lastTransitionTime": time,
                        "observedGeneration": number,
                    },
                },
            },
        },
    })
}

fn column(name: &str, path: &str, about: &str) -> Value {
    json!({ "name": name, "type": "string", "jsonPath": path, "description": about })
}

fn enforced() -> Value {
    column(
        "Enforced",
        r#".status.conditions[?(@.type=="Enforced")].message"#,
        "How many of the proxies that it selects enforce it",
    )
}

/// Only shown by `-o wide`.
fn problems() -> Vec<Value> {
    ["Accepted", "Programmed", "Conflicted"]
        .into_iter()
        .map(|condition| {
            let path = format!(r#".status.conditions[?(@.type=="{condition}")].status"#);
            let mut column = column(condition, &path, "The condition of that name");
            column["priority"] = 1.into();
            column
        })
        .collect()
}

fn age() -> Value {
    json!({ "name": "Age", "type": "date", "jsonPath": ".metadata.creationTimestamp", "description": "Since when it exists" })
}

/// The order of keys must not depend on which features of serde_json a build happens to have.
fn sorted(value: Value) -> Value {
    match value {
        Value::Object(map) => {
            let sorted: std::collections::BTreeMap<_, _> =
                map.into_iter().map(|(key, value)| (key, sorted(value))).collect();
            Value::Object(sorted.into_iter().collect())
        }
        Value::Array(items) => items.into_iter().map(sorted).collect(),
        scalar => scalar,
    }
}

#[cfg(test)]
mod tests;
