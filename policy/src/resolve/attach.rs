//! Whether one policy object reaches one workload (semantics §2.2, §2.4). Not whether it wins there: of several
//! PeerAuthentications that reach a workload only some decide, see `mtls`.

use std::collections::BTreeMap;

use crate::model::{
    Attachment, AuthorizationPolicy, Meta, PeerAuthentication, RequestAuthentication, TargetRef,
};
use crate::set::{Scope, WorkloadKey};

/// A workload that carries this label is a Kubernetes Gateway API gateway, named by the value.
pub const GATEWAY_LABEL: &str = "gateway.networking.k8s.io/gateway-name";

impl AuthorizationPolicy {
    /// Whether this policy applies to `workload` (semantics §2.4).
    pub fn attaches_to(&self, scope: &Scope, workload: &WorkloadKey) -> bool {
        attaches(&self.meta, &self.attachment, scope, workload)
    }
}

impl RequestAuthentication {
    /// Whether this policy applies to `workload` (semantics §2.4).
    pub fn attaches_to(&self, scope: &Scope, workload: &WorkloadKey) -> bool {
        attaches(&self.meta, &self.attachment, scope, workload)
    }
}

impl PeerAuthentication {
    /// Whether this policy is considered for `workload` (semantics §2.2): one with a selector in the root namespace
    /// never is, and the kind has no targetRefs.
    pub fn attaches_to(&self, scope: &Scope, workload: &WorkloadKey) -> bool {
        let root = self.meta.id.namespace == scope.root_namespace;
        match &self.attachment {
            Attachment::Namespace => root || self.meta.id.namespace == workload.namespace,
            Attachment::Labels(_) if root => false,
            Attachment::Labels(_) => attaches(&self.meta, &self.attachment, scope, workload),
            Attachment::Targets(_) => false,
        }
    }
}

fn attaches(meta: &Meta, attachment: &Attachment, scope: &Scope, workload: &WorkloadKey) -> bool {
    let namespace = &meta.id.namespace;
    let reached = *namespace == scope.root_namespace || *namespace == workload.namespace;
    reached && attachment.selects(namespace, &workload.namespace, &workload.labels)
}

impl Attachment {
    /// Whether a policy of the namespace `namespace` that is attached so selects a workload that it reaches: one of the
    /// same namespace or, from the root namespace, any (semantics §2.4).
    pub fn selects(&self, namespace: &str, of: &str, labels: &BTreeMap<String, String>) -> bool {
        match self {
            Self::Namespace => true,
            Self::Labels(wanted) => wanted.iter().all(|(key, value)| labels.get(key) == Some(value)),
            // A policy that targets something never falls back to its namespace.
            Self::Targets(targets) => namespace == of && targets.iter().any(|t| is_gateway(t, labels)),
        }
    }
}

/// References to Services, ServiceEntries and GatewayClasses are for waypoints, which are not served here.
fn is_gateway(target: &TargetRef, labels: &BTreeMap<String, String>) -> bool {
    let TargetRef { group, kind, name } = target;
    group == "gateway.networking.k8s.io" && kind == "Gateway" && labels.get(GATEWAY_LABEL) == Some(name)
}

#[cfg(test)]
mod tests;
