//! Whether a policy applies to a workload (semantics §2.2, §2.4). Sidecars only: `targetRefs` never attach here.

use crate::model::{Attachment, AuthorizationPolicy, Meta, PeerAuthentication, RequestAuthentication};
use crate::set::{Scope, WorkloadKey};

impl AuthorizationPolicy {
    /// Same namespace or the root namespace, and the selector (if any) matches.
    pub fn attaches_to(&self, scope: &Scope, workload: &WorkloadKey) -> bool {
        in_reach(&self.meta, scope, workload) && selected(&self.attachment, workload)
    }
}

impl RequestAuthentication {
    /// As for AuthorizationPolicy.
    pub fn attaches_to(&self, scope: &Scope, workload: &WorkloadKey) -> bool {
        in_reach(&self.meta, scope, workload) && selected(&self.attachment, workload)
    }
}

impl PeerAuthentication {
    /// As for AuthorizationPolicy, but a selector in the root namespace has no effect at all.
    pub fn attaches_to(&self, scope: &Scope, workload: &WorkloadKey) -> bool {
        let in_root = self.meta.id.namespace == scope.root_namespace;
        if in_root && self.attachment != Attachment::Namespace {
            return false;
        }
        in_reach(&self.meta, scope, workload) && selected(&self.attachment, workload)
    }
}

fn in_reach(meta: &Meta, scope: &Scope, workload: &WorkloadKey) -> bool {
    meta.id.namespace == workload.namespace || meta.id.namespace == scope.root_namespace
}

fn selected(attachment: &Attachment, workload: &WorkloadKey) -> bool {
    match attachment {
        Attachment::Namespace => true,
        Attachment::Labels(labels) => labels.iter().all(|(k, v)| workload.labels.get(k) == Some(v)),
        Attachment::Targets(_) => false,
    }
}
