//! What comes out of this crate: understood objects and their identities.

use std::collections::BTreeMap;
use std::fmt;
use std::sync::Arc;

/// One object, understood.
#[derive(Clone, Debug, PartialEq)]
pub enum Object {
    Namespace { name: Arc<str>, labels: BTreeMap<String, String> },
    ServiceAccount(policy::ObjectName),
    Service(mesh::Service),
    Workload(mesh::Workload),
    Sidecar(mesh::Sidecar),
    EndpointSlice(mesh::EndpointSlice),
    DestinationRule(mesh::DestinationRule),
    PeerAuthentication(policy::PeerAuthentication),
    RequestAuthentication(policy::RequestAuthentication),
    AuthorizationPolicy(policy::AuthorizationPolicy),
    Telemetry(mesh::Telemetry),
}

impl Object {
    /// Its kind, namespace and name.
    pub fn object_ref(&self) -> ObjectRef {
        let id = |namespace: &Arc<str>, name: &Arc<str>| policy::ObjectName {
            namespace: namespace.clone(),
            name: name.clone(),
        };
        match self {
            Self::Namespace { name, .. } => ObjectRef { kind: Kind::Namespace, id: id(&"".into(), name) },
            Self::ServiceAccount(name) => ObjectRef { kind: Kind::ServiceAccount, id: name.clone() },
            Self::Service(s) => ObjectRef { kind: Kind::Service, id: id(&s.namespace, &s.name) },
            Self::Workload(w) => {
                let kind = match w.kind {
                    mesh::WorkloadKind::Pod => Kind::Pod,
                    mesh::WorkloadKind::WorkloadEntry => Kind::WorkloadEntry,
                };
                ObjectRef { kind, id: id(&w.namespace, &w.name) }
            }
            Self::Sidecar(s) => ObjectRef { kind: Kind::Sidecar, id: id(&s.namespace, &s.name) },
            Self::EndpointSlice(e) => ObjectRef { kind: Kind::EndpointSlice, id: id(&e.namespace, &e.name) },
            Self::DestinationRule(d) => {
                ObjectRef { kind: Kind::DestinationRule, id: id(&d.namespace, &d.name) }
            }
            Self::PeerAuthentication(p) => {
                ObjectRef { kind: Kind::PeerAuthentication, id: p.meta.id.clone() }
            }
            Self::RequestAuthentication(p) => {
                ObjectRef { kind: Kind::RequestAuthentication, id: p.meta.id.clone() }
            }
            Self::AuthorizationPolicy(p) => {
                ObjectRef { kind: Kind::AuthorizationPolicy, id: p.meta.id.clone() }
            }
            Self::Telemetry(t) => ObjectRef { kind: Kind::Telemetry, id: id(&t.namespace, &t.name) },
        }
    }
}

/// Identifies an object across versions of it.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct ObjectRef {
    pub kind: Kind,
    /// Empty namespace for cluster-scoped kinds.
    pub id: policy::ObjectName,
}

/// `KIND NAMESPACE/NAME`, or `KIND NAME` for a cluster-scoped kind.
impl fmt::Display for ObjectRef {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.id.namespace.is_empty() {
            write!(f, "{} {}", self.kind, self.id.name)
        } else {
            write!(f, "{} {}", self.kind, self.id)
        }
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Kind {
    Namespace,
    ServiceAccount,
    Service,
    Pod,
    WorkloadEntry,
    Sidecar,
    EndpointSlice,
    DestinationRule,
    PeerAuthentication,
    RequestAuthentication,
    AuthorizationPolicy,
    Telemetry,
}

impl Kind {
    pub const ALL: [Self; 12] = [
        Self::Namespace,
        Self::ServiceAccount,
        Self::Service,
        Self::Pod,
        Self::WorkloadEntry,
        Self::Sidecar,
        Self::EndpointSlice,
        Self::DestinationRule,
        Self::PeerAuthentication,
        Self::RequestAuthentication,
        Self::AuthorizationPolicy,
        Self::Telemetry,
    ];

    /// The value of `kind`.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Namespace => "Namespace",
            Self::ServiceAccount => "ServiceAccount",
            Self::Service => "Service",
            Self::Pod => "Pod",
            Self::WorkloadEntry => "WorkloadEntry",
            Self::Sidecar => "Sidecar",
            Self::EndpointSlice => "EndpointSlice",
            Self::DestinationRule => "DestinationRule",
            Self::PeerAuthentication => "PeerAuthentication",
            Self::RequestAuthentication => "RequestAuthentication",
            Self::AuthorizationPolicy => "AuthorizationPolicy",
            Self::Telemetry => "Telemetry",
        }
    }

    /// The API group; empty for the core group.
    pub fn group(self) -> &'static str {
        match self {
            Self::Namespace | Self::ServiceAccount | Self::Service | Self::Pod => "",
            Self::WorkloadEntry | Self::DestinationRule | Self::Sidecar => "networking.istio.io",
            Self::EndpointSlice => "discovery.k8s.io",
            Self::PeerAuthentication | Self::RequestAuthentication | Self::AuthorizationPolicy => {
                "security.istio.io"
            }
            Self::Telemetry => "telemetry.istio.io",
        }
    }

    /// The versions that are read; another one of the same group is read as the first, with a warning.
    pub fn versions(self) -> &'static [&'static str] {
        match self {
            Self::Namespace | Self::ServiceAccount | Self::Service | Self::Pod | Self::EndpointSlice => {
                &["v1"]
            }
            Self::WorkloadEntry | Self::DestinationRule | Self::Sidecar => &["v1", "v1beta1", "v1alpha3"],
            Self::PeerAuthentication | Self::RequestAuthentication | Self::AuthorizationPolicy => {
                &["v1", "v1beta1"]
            }
            Self::Telemetry => &["v1", "v1alpha1"],
        }
    }

    pub fn is_policy(self) -> bool {
        matches!(self, Self::PeerAuthentication | Self::RequestAuthentication | Self::AuthorizationPolicy)
    }

    /// Objects of it that cannot be understood are enforced as a closed value (design decision 5); those of other kinds
    /// are simply not there.
    pub(crate) fn has_closed_value(self) -> bool {
        self.is_policy() || matches!(self, Self::DestinationRule | Self::Sidecar)
    }

    pub(crate) fn cluster_scoped(self) -> bool {
        self == Self::Namespace
    }
}

impl fmt::Display for Kind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}
