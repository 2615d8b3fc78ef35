//! What is a workload's own: workloads with equal inputs share one set of encoded resources. The key of a group is the
//! builder's whole input, so nothing that decides can be missing from it.

use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;

use mesh::{InboundPort, Log, MeshConfig, Workload, WorkloadKind};
use policy::EffectivePolicy;
use xds::build::{Inbound, Provider, ProxyShape};

use super::tables::{Encoded, Interner, Tables, tables};
use crate::guard::{Panicked, guarded};

/// The ext_authz providers that exist, by name.
pub(crate) type Providers = Arc<BTreeMap<Arc<str>, Provider>>;

/// Everything that [`build::own`] is given.
#[derive(Clone, Debug)]
pub(crate) struct Inputs {
    pub(crate) mesh: Arc<MeshConfig>,
    /// Without what does not reach any resource; see [`Inputs::workload`].
    workload: Workload,
    pub(crate) ports: Vec<InboundPort>,
    pub(crate) policy: Arc<EffectivePolicy>,
    pub(crate) shape: ProxyShape,
    pub(crate) providers: Providers,
    logs: Arc<[Log]>,
}

impl Inputs {
    pub(crate) fn new(
        mesh: &Arc<MeshConfig>,
        workload: &Workload,
        ports: Vec<InboundPort>,
        policy: Arc<EffectivePolicy>,
        shape: &ProxyShape,
        providers: &Providers,
        logs: Arc<[Log]>,
    ) -> Self {
        Self {
            mesh: mesh.clone(),
            workload: Self::workload(workload, shape),
            ports,
            policy,
            shape: shape.clone(),
            providers: providers.clone(),
            logs,
        }
    }

    /// `workload` as far as its inbound resources may depend on it. What is blanked here cannot decide anything, because
    /// the builder is given this value; what is kept separates groups.
    fn workload(workload: &Workload, shape: &ProxyShape) -> Workload {
        Workload {
            namespace: workload.namespace.clone(),
            name: "".into(),
            kind: WorkloadKind::Pod,
            labels: Arc::default(),
            service_account: workload.service_account.clone(),
            // A captured proxy listens on wildcard addresses; another binds the workload's own.
            addresses: if shape.captured() { Vec::new() } else { workload.addresses.clone() },
            named_ports: BTreeMap::new(),
            mutual_tls: true,
            ready: true,
            created: 0,
            uid: None,
        }
    }

    fn equal(&self, other: &Self) -> bool {
        let Self { mesh, workload, ports, policy, shape, providers, logs } = self;
        Arc::ptr_eq(mesh, &other.mesh)
            && Arc::ptr_eq(providers, &other.providers)
            && (Arc::ptr_eq(policy, &other.policy) || *policy == other.policy)
            && *shape == other.shape
            && *ports == other.ports
            && *logs == other.logs
            && *workload == other.workload
    }
}

/// Workloads with equal inputs.
#[derive(Debug)]
pub(crate) struct Group {
    pub(crate) inputs: Inputs,
    pub(crate) tables: Tables,
}

/// The groups in use, by namespace.
#[derive(Debug, Default)]
pub(crate) struct Groups(HashMap<Arc<str>, Vec<Arc<Group>>>);

impl Groups {
    /// The group of `inputs`; `before` is the one that the same proxy was in, whose tables stay where their content does.
    pub(crate) fn get(
        &mut self,
        subject: &dyn std::fmt::Display,
        inputs: Inputs,
        before: Option<&Arc<Group>>,
        own: fn(&Inbound<'_>) -> Encoded,
        interner: &mut Interner,
    ) -> Result<Arc<Group>, Panicked> {
        let groups = self.0.entry(inputs.workload.namespace.clone()).or_default();
        // Its own first: that is a comparison of pointers, mostly.
        if let Some(group) = before.into_iter().chain(&*groups).find(|group| group.inputs.equal(&inputs)) {
            return Ok(group.clone());
        }
        let encoded = guarded(subject, || {
            let Inputs { mesh, workload, ports, policy, shape, providers, logs } = &inputs;
            own(&Inbound { mesh, workload, ports, policy, shape, providers, logs })
        })?;
        let old = before.map(|group| group.tables.clone()).unwrap_or_default();
        let tables = tables(&interner.share_all(encoded), &old);
        let group = Arc::new(Group { inputs, tables });
        groups.push(group.clone());
        Ok(group)
    }

    /// Forgets groups that no proxy is in.
    pub(crate) fn sweep(&mut self) {
        for groups in self.0.values_mut() {
            groups.retain(|group| Arc::strong_count(group) > 1);
        }
        self.0.retain(|_, groups| !groups.is_empty());
    }

    #[cfg(test)]
    pub(crate) fn len(&self) -> usize {
        self.0.values().map(Vec::len).sum()
    }
}
