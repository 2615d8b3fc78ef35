//! The same translation without proxies, sources or time: for `translate` and for tests. Serves nobody.

mod describe;

use std::collections::BTreeMap;
use std::sync::Arc;

use crds::Object;
use mesh::{InboundPort, MeshConfig, Service, Workload, WorkloadKind};
use policy::{EffectivePolicy, ObjectName, PolicySet};
use xds::build::ProxyShape;
use xds::{Resource, ResourceType};

pub use describe::describe;

pub use crate::admission::advice::{Advice, Code};

use crate::keys::Keys;
use crate::publish::{Publisher, SlotKey};

/// Everything over a fixed set of objects.
#[derive(Debug)]
pub struct Offline(Publisher);

/// A bug: translation panicked. The log has its words.
#[derive(Debug, thiserror::Error)]
#[error("translation failed for {0}")]
pub struct TranslationFailed(ObjectName);

impl Offline {
    pub fn new(mesh: MeshConfig, objects: impl IntoIterator<Item = Object>) -> Self {
        // Nothing is fetched offline.
        let (mut keys, _wanted) = Keys::new();
        let without_keys = |object| match object {
            Object::RequestAuthentication(policy) => {
                Object::RequestAuthentication(keys.resolve(policy).policy)
            }
            other => other,
        };
        Self::over(mesh, objects.into_iter().map(without_keys))
    }

    /// For questions about described requests, whose tokens are taken to be good: as if the keys of every
    /// RequestAuthentication had been fetched. What [`Self::resources`] makes of that is not fit for a proxy.
    pub fn assuming_keys(mesh: MeshConfig, objects: impl IntoIterator<Item = Object>) -> Self {
        Self::over(mesh, objects)
    }

    fn over(mesh: MeshConfig, objects: impl IntoIterator<Item = Object>) -> Self {
        let mut publisher = Publisher::default();
        publisher.store.set_mesh(mesh);
        for object in objects {
            publisher.store.apply(object);
        }
        publisher.first_list();
        publisher.commit();
        Self(publisher)
    }

    /// The registered workloads, by namespace and name.
    pub fn workloads(&self) -> Vec<Arc<Workload>> {
        let mut all: Vec<_> = self.0.store.workloads().cloned().collect();
        all.sort_by(|a, b| (&a.namespace, &a.name).cmp(&(&b.namespace, &b.name)));
        all
    }

    /// A workload of these labels that nobody has registered, and now somebody has.
    pub fn register(&mut self, namespace: &str, labels: BTreeMap<String, String>) -> Arc<Workload> {
        let workload = Workload {
            namespace: namespace.into(),
            name: "translated".into(),
            kind: WorkloadKind::WorkloadEntry,
            labels: Arc::new(labels),
            service_account: "default".into(),
            addresses: vec![[127, 0, 0, 1].into()],
            named_ports: BTreeMap::new(),
            mutual_tls: true,
            ready: true,
            created: 0,
            uid: None,
        };
        self.add(workload)
    }

    /// Registers `workload`.
    pub fn add(&mut self, workload: Workload) -> Arc<Workload> {
        let edit = self.0.store.apply(Object::Workload(workload.clone()));
        self.0.edited(&edit);
        self.0.commit();
        Arc::new(workload)
    }

    /// Every policy, with the settings of the mesh that decide how it applies.
    pub fn policies(&self) -> &PolicySet {
        &self.0.store.policies
    }

    /// What the author of a policy should know: what admission warns of.
    pub fn advise(&mut self, policy: &Object) -> Vec<Advice> {
        crate::admission::advice::coded(&mut self.0, policy)
    }

    /// The services of one namespace, by name.
    pub fn services(&self, namespace: &str) -> impl Iterator<Item = &Arc<Service>> {
        self.0.store.services.namespace(namespace)
    }

    /// The ServiceAccounts that are known as objects.
    pub fn service_accounts(&self) -> impl Iterator<Item = &ObjectName> {
        self.0.store.service_accounts.iter()
    }

    /// The mesh configuration given.
    pub fn mesh(&self) -> &MeshConfig {
        &self.0.store.mesh
    }

    /// All that applies to a workload.
    ///
    /// # Errors
    /// [`TranslationFailed`] on a bug.
    pub fn effective(&mut self, workload: &Workload) -> Result<Arc<EffectivePolicy>, TranslationFailed> {
        self.0.policy_of(workload).map_err(|_| failed(workload))
    }

    /// Its ports that some service names.
    pub fn ports(&self, workload: &Workload) -> Vec<InboundPort> {
        self.0.store.inbound_ports(workload)
    }

    /// Everything its proxy would have, in the order of [`ResourceType`], by name.
    ///
    /// # Errors
    /// [`TranslationFailed`] on a bug.
    pub fn resources(
        &mut self,
        workload: &Workload,
        shape: ProxyShape,
    ) -> Result<Vec<(ResourceType, Resource)>, TranslationFailed> {
        let key = SlotKey {
            workload: crate::store::workload_name(workload),
            shape,
            identity: None,
            pod_uid: None,
            claimed: workload.addresses.first().copied(),
        };
        let receiver = self.0.subscribe(&key).map_err(|_| failed(workload))?;
        let snapshot = receiver.borrow();
        let of = |kind| {
            let mut all: Vec<_> = snapshot.of(kind).iter().map(|r| (kind, r.clone())).collect();
            all.sort_by(|a, b| a.1.name.cmp(&b.1.name));
            all
        };
        Ok(ResourceType::ALL.into_iter().flat_map(of).collect())
    }
}

fn failed(workload: &Workload) -> TranslationFailed {
    TranslationFailed(crate::store::workload_name(workload))
}
