//! PeerAuthentication resolution (semantics §2.3). Says nothing of filter chains or of what clients do.

use std::collections::BTreeMap;

use crate::effective::EffectiveMtls;
use crate::model::{Attachment, MtlsMode, PeerAuthentication};
use crate::set::{NamespacePolicies, PolicySet, WorkloadKey};

/// The policy that decides in each scope, widest first: the oldest; all others of that scope are ignored completely.
#[derive(Debug)]
pub(super) struct Winners<'s> {
    mesh: Option<&'s PeerAuthentication>,
    namespace: Option<&'s PeerAuthentication>,
    workload: Option<&'s PeerAuthentication>,
}

impl<'s> Winners<'s> {
    pub(super) fn of(set: &'s PolicySet, workload: &WorkloadKey) -> Self {
        let oldest = |policies: Option<&'s NamespacePolicies>, whole_namespace: bool| {
            let all = policies.into_iter().flat_map(|p| p.peer.candidates(&workload.labels));
            all.filter(|p| (p.attachment == Attachment::Namespace) == whole_namespace)
                .filter(|p| p.attaches_to(&set.scope, workload))
                .min_by(|a, b| a.meta.order().cmp(&b.meta.order()))
        };
        let own = (workload.namespace != set.scope.root_namespace)
            .then(|| set.namespace(&workload.namespace))
            .flatten();
        Self {
            mesh: oldest(set.namespace(&set.scope.root_namespace), true),
            namespace: oldest(own, true),
            workload: oldest(own, false),
        }
    }

    pub(super) fn iter(&self) -> impl Iterator<Item = &'s PeerAuthentication> {
        let Self { mesh, namespace, workload } = *self;
        mesh.into_iter().chain(namespace).chain(workload)
    }

    /// The narrowest scope with a mode wins; UNSET inherits, for `portLevelMtls` from the mode so found.
    pub(super) fn resolve(&self) -> EffectiveMtls {
        let mut mtls = EffectiveMtls::default();
        for policy in self.iter() {
            if let Some(mode) = policy.mode {
                mtls.mode = mode;
                mtls.set_by = Some(policy.meta.id.clone());
            }
        }
        // Only a policy for single workloads may have exceptions by port.
        if let Some(policy) = self.workload.filter(|policy| !policy.ports.is_empty()) {
            let or_inherit = |mode: Option<MtlsMode>| mode.unwrap_or(mtls.mode);
            let ports: BTreeMap<u16, MtlsMode> =
                policy.ports.iter().map(|(port, mode)| (*port, or_inherit(*mode))).collect();
            mtls.ports = ports;
            mtls.ports_set_by = Some(policy.meta.id.clone());
        }
        mtls
    }
}
