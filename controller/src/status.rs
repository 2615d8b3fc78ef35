//! What the control plane knows of its objects and proxies, in the words of Kubernetes conditions: the answer of
//! `/status`, which `countersign status`, `proxy-status` and `wait` read. Changes nothing and decides nothing.

mod objects;
mod sessions;

use serde::{Deserialize, Serialize};

pub(crate) use crate::receipts::{Journal, Nack};
pub(crate) use objects::{KeysOf, Known, Objects};
pub(crate) use sessions::{Concerned, Connected, Session, SessionId, Sessions, VersionFloor};

/// Everything, at one moment.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Report {
    pub ready: bool,
    /// Why not, if not ready: frozen sources, blocking documents, the missing first list.
    pub reasons: Vec<String>,
    /// Grows with every batch of changes that affected something.
    pub generation: u64,
    pub mesh: Mesh,
    pub objects: Vec<ObjectStatus>,
    /// Documents that are not objects, and those that could not be told apart.
    pub unreadable: Vec<UnreadableStatus>,
    /// Kinds of Istio that have no effect here, where there are objects of them.
    #[serde(default)]
    pub unimplemented: Vec<UnimplementedStatus>,
    pub proxies: Vec<ProxyStatus>,
    /// Parts whose translation failed by a bug; what they had stays in force.
    pub failures: Vec<FailureStatus>,
}

#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Mesh {
    pub trust_domain: String,
    pub root_namespace: String,
}

#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct ObjectStatus {
    pub kind: String,
    /// Empty for cluster-scoped kinds.
    pub namespace: String,
    pub name: String,
    /// Where it was read, `FILE:LINE`.
    pub origin: String,
    pub findings: Vec<FindingStatus>,
    pub conditions: Vec<Condition>,
}

/// `metav1.Condition`.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Condition {
    #[serde(rename = "type")]
    pub kind: String,
    /// `True`, `False` or `Unknown`.
    pub status: String,
    pub reason: String,
    pub message: String,
    /// The object's `metadata.generation` that this is about; files have none.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub observed_generation: Option<i64>,
    /// RFC 3339: when the status was first seen to be this one.
    pub last_transition_time: String,
}

#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct FindingStatus {
    /// `error` or `warning`.
    pub severity: String,
    pub field: String,
    pub message: String,
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub line: Option<usize>,
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub column: Option<usize>,
}

impl From<&crds::Finding> for FindingStatus {
    fn from(finding: &crds::Finding) -> Self {
        let crds::Finding { severity, field, message, line, column } = finding;
        let severity = match severity {
            crds::Severity::Warning => "warning",
            crds::Severity::Error => "error",
        };
        Self {
            severity: severity.to_owned(),
            field: field.clone(),
            message: message.clone(),
            line: *line,
            column: *column,
        }
    }
}

#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct UnreadableStatus {
    pub origin: String,
    pub finding: FindingStatus,
    /// It was there at start, so nothing is served until it can be read.
    pub blocks_ready: bool,
}

#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct UnimplementedStatus {
    pub group: String,
    pub kind: String,
    pub count: usize,
    /// Up to five of them, `NAMESPACE/NAME`.
    pub names: Vec<String>,
    /// Why they cannot be counted.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub error: Option<String>,
}

impl From<&source::UnimplementedObjects> for UnimplementedStatus {
    fn from(objects: &source::UnimplementedObjects) -> Self {
        let source::UnimplementedObjects { group, kind, count, names, error } = objects;
        Self {
            group: group.to_string(),
            kind: kind.to_string(),
            count: *count,
            names: names.clone(),
            error: error.clone(),
        }
    }
}

#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct ProxyStatus {
    pub node: String,
    pub namespace: String,
    pub name: String,
    pub peer: String,
    /// Came in on the TLS port; `identity` is verified then.
    pub secure: bool,
    pub identity: Option<String>,
    pub envoy_version: Option<String>,
    /// RFC 3339.
    pub connected: String,
    /// The registry knows the workload. A proxy that it does not know admits nobody.
    pub registered: bool,
    /// Everything that was published for it is acknowledged.
    pub synced: bool,
    pub types: Vec<TypeStatus>,
    /// E.g. an Envoy version with known policy bypasses.
    pub warnings: Vec<String>,
}

#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct TypeStatus {
    /// `cds`, `eds`, `ecds`, `lds` or `rds`.
    #[serde(rename = "type")]
    pub kind: String,
    /// Generation that is published for this proxy, and the one it has acknowledged; `None`: not asked for yet.
    pub published: u64,
    pub acked: Option<u64>,
    /// Resources in the published snapshot.
    pub resources: usize,
    /// What the proxy refused, and its words.
    pub rejected: Vec<RejectedStatus>,
}

#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct RejectedStatus {
    /// Name of the resource, where it could be told.
    pub resource: Option<String>,
    pub error: String,
}

#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct FailureStatus {
    pub subject: String,
    pub error: String,
}

/// RFC 3339, in UTC, to the millisecond.
pub(crate) fn timestamp(at: std::time::SystemTime) -> String {
    let at = time::OffsetDateTime::from(at);
    let at = at.replace_millisecond(at.millisecond()).unwrap_or(at);
    at.format(&time::format_description::well_known::Rfc3339).unwrap_or_default()
}
