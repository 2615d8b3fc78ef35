//! Wire formats: one file per kind, its validation (semantics §1), and `TryFrom` into `policy` and `mesh`.
//! Reads text and values only; never a file, never a cluster.

use std::sync::Arc;

/// One object, understood.
#[derive(Clone, Debug, PartialEq)]
pub enum Object {
    Namespace { name: Arc<str>, labels: std::collections::BTreeMap<String, String> },
    ServiceAccount(policy::ObjectName),
    Service(mesh::Service),
    Workload(mesh::Workload),
    EndpointSlice(mesh::EndpointSlice),
    PeerAuthentication(policy::PeerAuthentication),
    RequestAuthentication(policy::RequestAuthentication),
    AuthorizationPolicy(policy::AuthorizationPolicy),
}

/// Identifies an object across versions of it.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct ObjectRef {
    pub kind: Kind,
    /// Empty namespace for cluster-scoped kinds.
    pub id: policy::ObjectName,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Kind {
    Namespace,
    ServiceAccount,
    Service,
    Pod,
    WorkloadEntry,
    EndpointSlice,
    PeerAuthentication,
    RequestAuthentication,
    AuthorizationPolicy,
}

/// A problem with an object: what, where in it, and how bad.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Finding {
    pub severity: Severity,
    /// E.g. `spec.rules[0].from[0].source.principal`; empty if it is about the whole document.
    pub field: String,
    pub message: String,
    /// 1-based, within the file, where known.
    pub line: Option<usize>,
    pub column: Option<usize>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Severity {
    Warning,
    Error,
}
