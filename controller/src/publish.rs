//! From the store to what each connected proxy is to have: recomputes what a batch of changes affects, and publishes a
//! snapshot where (and only where) bytes changed. Synchronous and owned by one task; sessions only read the watch
//! channels. Knows neither sessions nor gRPC.

mod groups;
mod services;
mod slot;
mod tables;

use std::collections::{BTreeMap, BTreeSet, HashMap, HashSet};
use std::net::IpAddr;
use std::sync::Arc;

use mesh::{Log, Logs, MeshConfig, Sink, Workload};
use policy::{EffectivePolicy, ObjectName};
use tokio::sync::watch;
use xds::build::{self, Inbound, Outbound, OutboundService, Provider, ProxyShape, SharedShape};
use xds::{ResourceType, Snapshot};

use crate::affected::{Affected, Namespaces, affected};
use crate::effective::Effective;
use crate::endpoints::identity;
use crate::guard::{Panicked, guarded};
use crate::store::{Edit, Store};
use groups::{Group, Groups, Inputs, Providers};
use services::{Context, Services, ViewId, ViewKey};
use slot::{Touched, closed, stranger, touched};
use tables::{Encoded, Interner, Tables, keep_equal, overlaid};

/// Where a builder failed, and with what. Until it succeeds the last good result stays in force.
#[derive(Debug, Default)]
pub(crate) struct Failures(BTreeMap<Failure, String>);

/// What could not be translated.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Failure {
    Service(ObjectName),
    /// Outbound listeners and routes of those of a namespace that see the same.
    Outbound {
        namespace: Arc<str>,
        view: ViewId,
    },
    Workload(ObjectName),
    /// Outbound listeners and routes of a proxy without capture, which are its own.
    OutboundOf(ObjectName),
}

impl std::fmt::Display for Failure {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Service(id) => write!(f, "service {id}"),
            Self::Outbound { namespace, view: _ } => write!(f, "outbound side of namespace {namespace}"),
            Self::Workload(id) => write!(f, "workload {id}"),
            Self::OutboundOf(id) => write!(f, "outbound side of workload {id}"),
        }
    }
}

impl Failures {
    fn set(&mut self, failure: Failure, Panicked(message): Panicked) {
        self.0.insert(failure, message);
    }

    fn clear(&mut self, failure: &Failure) {
        self.0.remove(failure);
    }

    pub(crate) fn iter(&self) -> impl Iterator<Item = (&Failure, &str)> {
        self.0.iter().map(|(failure, message)| (failure, &**message))
    }
}

/// Proxies that are to have the same snapshot: one workload's, of one shape.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(crate) struct SlotKey {
    /// As the node id says, and on the secure port as the verified identity may speak for.
    pub(crate) workload: ObjectName,
    pub(crate) shape: ProxyShape,
    /// The verified SPIFFE ID; `None` on the plaintext port, where nothing is verified.
    pub(crate) identity: Option<Arc<str>>,
    /// The pod that the identity's token is bound to; `None` for certificates and on the plaintext port.
    pub(crate) pod_uid: Option<Arc<str>>,
    /// The node's own word about its address, used on the plaintext port while its workload is not registered.
    pub(crate) claimed: Option<IpAddr>,
}

/// One set of proxies with the same snapshot.
#[derive(Debug)]
struct Slot {
    sender: watch::Sender<Arc<Snapshot>>,
    group: Arc<Group>,
    /// Which logs these proxies write; those of `group` are the inbound ones.
    logs: Logs,
    view: ViewId,
    /// Outbound side of a proxy without capture.
    private: Option<Private>,
    /// What it shares with others.
    shared: Tables,
    /// Own resources, `private` among them.
    own: Tables,
    /// The generation that last changed each type for these proxies.
    changed: [u64; 5],
}

/// The outbound side of one proxy, and what it was made from.
#[derive(Debug)]
struct Private {
    view: ViewId,
    /// [`Services::version`].
    version: u64,
    mesh: Arc<MeshConfig>,
    addresses: Vec<IpAddr>,
    logs: Arc<[Log]>,
    encoded: Encoded,
}

/// Why a proxy gets no snapshot.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub(crate) enum Refusal {
    #[error("no workload {0} is registered")]
    Unregistered(ObjectName),
    #[error("{identity} may not speak for {workload}")]
    Identity { workload: ObjectName, identity: Arc<str> },
    #[error("the token belongs to another pod of the name {0} than the one that is there now")]
    OtherPod(ObjectName),
    #[error("translation failed for {0}")]
    Failed(ObjectName),
}

/// The translation in use; tests put failing ones in its place.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Builders {
    own: fn(&Inbound<'_>) -> Encoded,
    service: fn(&MeshConfig, &[Log], &OutboundService, SharedShape) -> Encoded,
    outbound: fn(&Outbound<'_>) -> Encoded,
}

impl Default for Builders {
    fn default() -> Self {
        Self { own: build::own, service: build::service, outbound: build::outbound }
    }
}

/// The owner of everything that is computed.
#[derive(Debug, Default)]
pub(crate) struct Publisher {
    builders: Builders,
    pub(crate) store: Store,
    effective: Effective,
    services: Services,
    groups: Groups,
    slots: HashMap<SlotKey, Slot>,
    providers: Providers,
    /// Access log services of the mesh configuration that exist.
    log_services: BTreeSet<Arc<str>>,
    interner: Interner,
    pub(crate) failures: Failures,
    /// Grows with every commit that changed something.
    pub(crate) generation: u64,
    pending: Affected,
}

impl Publisher {
    /// Notes what an edit of the store affects; [`Self::commit`] acts on it.
    pub(crate) fn edited(&mut self, edit: &Edit) {
        self.pending.merge(affected(&self.store, edit));
    }

    /// Notes that everything is to be computed: the first list is complete.
    pub(crate) fn first_list(&mut self) {
        self.pending = Affected::all(&self.store);
    }

    /// Recomputes what the edits since the last commit affect, and publishes it. The number of slots that got a new
    /// snapshot.
    pub(crate) fn commit(&mut self) -> usize {
        if self.pending.is_empty() {
            return 0;
        }
        let mut affected = std::mem::take(&mut self.pending);
        self.generation += 1;
        if affected.mesh || !affected.services.is_empty() {
            self.resolve_providers(&mut affected);
        }
        self.effective.invalidate(&affected.policies);
        let dirty = self.update_services(&affected);
        let concerned = self
            .slots
            .iter()
            .filter(|(key, slot)| dirty.contains(&slot.view) || touched(key, &affected).is_some());
        let mut keys: Vec<SlotKey> = concerned.map(|(key, _)| key.clone()).collect();
        keys.retain(|key| !self.same_policy(key, &affected, &dirty));
        let published = keys.into_iter().filter(|key| self.update_slot(key, &affected)).count();
        self.sweep();
        published
    }

    /// The receiver of a proxy's snapshots; the slot lives until its last receiver is gone and [`Self::sweep`] ran.
    ///
    /// # Errors
    /// [`Refusal`] if the registry does not give the workload to that identity, or if translation fails.
    pub(crate) fn subscribe(&mut self, key: &SlotKey) -> Result<watch::Receiver<Arc<Snapshot>>, Refusal> {
        if let Some(slot) = self.slots.get(key) {
            return Ok(slot.sender.subscribe());
        }
        let (subject, policy) = self.subject(key)?;
        let logs = self.store.logs(&subject);
        let group = self.group(key, &subject, policy, &logs, None);
        let group = group.map_err(|_| Refusal::Failed(key.workload.clone()))?;
        let sender = watch::Sender::new(Arc::new(Snapshot::new(self.generation)));
        let own = group.tables.clone();
        let view = self.view(key, &subject, &logs);
        let (shared, changed) = (Tables::default(), [self.generation; 5]);
        let mut slot = Slot { sender, group, logs, view, private: None, shared, own, changed };
        self.publish(key, &subject, &mut slot);
        let receiver = slot.sender.subscribe();
        self.slots.insert(key.clone(), slot);
        Ok(receiver)
    }

    /// The generation that last changed each type for these proxies; `None` if nobody is connected.
    pub(crate) fn changed(&self, key: &SlotKey) -> Option<[u64; 5]> {
        self.slots.get(key).map(|slot| slot.changed)
    }

    /// Whether something that these proxies are to have could not be translated, so that they keep what they had.
    pub(crate) fn fails(&self, key: &SlotKey) -> bool {
        self.failures.0.contains_key(&Failure::Workload(key.workload.clone()))
    }

    /// The policy in force at a registered workload, whether or not a proxy is connected.
    pub(crate) fn policy_of(&mut self, workload: &Workload) -> Result<Arc<EffectivePolicy>, Panicked> {
        let Self { store, effective, .. } = self;
        guarded(&workload.name, || effective.get(&store.policies, &workload.namespace, &workload.labels))
    }

    /// Forgets slots without receivers, and what only they used.
    pub(crate) fn sweep(&mut self) {
        self.slots.retain(|_, slot| slot.sender.receiver_count() > 0);
        self.groups.sweep();
        let views: HashSet<ViewId> = self.slots.values().map(|slot| slot.view).collect();
        self.services.retain(&views);
        let connected: HashSet<&ObjectName> = self.slots.keys().map(|key| &key.workload).collect();
        self.failures.0.retain(|failure, _| match failure {
            Failure::Service(_) => true,
            Failure::Outbound { view, .. } => views.contains(view),
            Failure::Workload(id) | Failure::OutboundOf(id) => connected.contains(id),
        });
        self.interner.sweep();
    }

    fn resolve_providers(&mut self, affected: &mut Affected) {
        let providers = providers(&self.store);
        let log_services = log_services(&self.store);
        if affected.mesh || providers != *self.providers || log_services != self.log_services {
            self.log_services = log_services;
            self.store.policies.scope.providers = providers.keys().cloned().collect();
            self.providers = Arc::new(providers);
            affected.merge(Affected {
                policies: Namespaces::All,
                inbound: Namespaces::All,
                ..Affected::default()
            });
        }
    }

    /// The views in which something changed.
    fn update_services(&mut self, affected: &Affected) -> HashSet<ViewId> {
        let Self { store, effective, services, providers, interner, failures, builders, .. } = self;
        let mesh = store.mesh.clone();
        let mut context = Context { builders: *builders, mesh: &mesh, interner, failures };
        let needed = needed(store, providers);
        services.update(affected, needed, (store, effective), &mut context)
    }

    /// The view of a proxy, by what applies to its workload.
    fn view(&mut self, key: &SlotKey, workload: &Workload, logs: &Logs) -> ViewId {
        let Self { store, services, interner, failures, builders, .. } = self;
        let mesh = store.mesh.clone();
        let mut context = Context { builders: *builders, mesh: &mesh, interner, failures };
        let client = store.destination_rules.client(&workload.namespace, &workload.labels);
        let logs = if key.shape.captured() { logs.client.clone() } else { Arc::default() };
        let scope = store.sidecar_of(workload).map(|sidecar| sidecar.scope.clone()).unwrap_or_default();
        let key = ViewKey { client, scope, logs, shape: key.shape.shared() };
        services.view(key, store, &mut context)
    }

    /// Only the policies of these proxies' namespace may have changed, and theirs has not: most of them, for most changes.
    fn same_policy(&mut self, key: &SlotKey, affected: &Affected, dirty: &HashSet<ViewId>) -> bool {
        let seen = self.slots.get(key).is_some_and(|slot| dirty.contains(&slot.view));
        if seen || touched(key, affected) != Some(Touched::Policy) || self.fails(key) {
            return false;
        }
        let Some(workload) = self.store.workload(&key.workload).cloned() else { return false };
        let policy = self.policy_of(&workload);
        let slot = self.slots.get(key);
        policy.ok().zip(slot).is_some_and(|(policy, slot)| Arc::ptr_eq(&policy, &slot.group.inputs.policy))
    }

    /// Whether the slot got a new snapshot.
    fn update_slot(&mut self, key: &SlotKey, affected: &Affected) -> bool {
        let Some(mut slot) = self.slots.remove(key) else { return false };
        let (subject, policy) = match self.subject(key) {
            Ok(found) => found,
            Err(Refusal::Failed(_)) => {
                self.slots.insert(key.clone(), slot);
                return false;
            }
            Err(refusal) => {
                // Dropping the sender ends the sessions; their Envoys keep what they have.
                tracing::info!(workload = ?key.workload.to_string(), refusal = ?refusal.to_string(), "ending the sessions of a proxy");
                return false;
            }
        };
        if let Some(touched) = touched(key, affected) {
            let logs = self.store.logs(&subject);
            slot.view = self.view(key, &subject, &logs);
            let before = Some((&slot.group, touched));
            if let Ok(group) = self.group(key, &subject, policy, &logs, before) {
                slot.group = group;
            }
            slot.logs = logs;
        }
        let published = self.publish(key, &subject, &mut slot);
        self.slots.insert(key.clone(), slot);
        published
    }

    /// The workload a slot stands for and its policy: the registry's word; for a node on the plaintext port that the
    /// registry does not know, a stand-in to which nobody may talk.
    fn subject(&mut self, key: &SlotKey) -> Result<(Arc<Workload>, Arc<EffectivePolicy>), Refusal> {
        let Some(workload) = self.store.workload(&key.workload).cloned() else {
            if key.identity.is_some() {
                return Err(Refusal::Unregistered(key.workload.clone()));
            }
            let stranger = stranger(key);
            let policy = self.policy_or_refusal(key, &stranger)?;
            return Ok((Arc::new(stranger), Arc::new(closed(&policy))));
        };
        if let Some(presented) = &key.identity
            && **presented != *identity(&self.store, &workload)
        {
            let refusal = Refusal::Identity { workload: key.workload.clone(), identity: presented.clone() };
            return Err(refusal);
        }
        if key.pod_uid.is_some() && key.pod_uid != workload.uid {
            return Err(Refusal::OtherPod(key.workload.clone()));
        }
        let policy = self.policy_or_refusal(key, &workload)?;
        Ok((workload, policy))
    }

    fn policy_or_refusal(
        &mut self,
        key: &SlotKey,
        workload: &Workload,
    ) -> Result<Arc<EffectivePolicy>, Refusal> {
        self.policy_of(workload).map_err(|panicked| {
            self.failures.set(Failure::Workload(key.workload.clone()), panicked);
            Refusal::Failed(key.workload.clone())
        })
    }

    /// `before` is the group that the proxies were in, and what may have changed since.
    fn group(
        &mut self,
        key: &SlotKey,
        workload: &Workload,
        policy: Arc<EffectivePolicy>,
        logs: &Logs,
        before: Option<(&Arc<Group>, Touched)>,
    ) -> Result<Arc<Group>, Panicked> {
        let failure = Failure::Workload(key.workload.clone());
        let ports = match before {
            Some((group, Touched::Policy)) => group.inputs.ports.clone(),
            _ => self.store.inbound_ports(workload),
        };
        let before = before.map(|(group, _)| group);
        let logs = logs.server.clone();
        let inputs =
            Inputs::new(&self.store.mesh, workload, ports, policy, &key.shape, &self.providers, logs);
        match self.groups.get(&failure, inputs, before, self.builders.own, &mut self.interner) {
            Ok(group) => {
                self.failures.clear(&failure);
                Ok(group)
            }
            Err(panicked) => {
                self.failures.set(failure, panicked.clone());
                Err(panicked)
            }
        }
    }

    /// Puts the slot's tables together and sends them if a byte of them is new.
    fn publish(&mut self, key: &SlotKey, workload: &Workload, slot: &mut Slot) -> bool {
        let Self { store, services, interner, failures, generation, builders, .. } = self;
        let mut context = Context { builders: *builders, mesh: &store.mesh, interner, failures };
        let shared = services.tables(slot.view);
        let own = if key.shape.captured() {
            slot.group.tables.clone()
        } else {
            refresh_private(key, workload, slot, services, &store.mesh, &mut context);
            let private = slot.private.as_ref().map_or(&[][..], |private| &private.encoded);
            overlaid(&slot.group.tables, private, &slot.own)
        };
        // Another group may hold equal content under another pointer.
        keep_equal(&mut slot.own, own);
        // So may another view.
        keep_equal(&mut slot.shared, shared);
        let mut snapshot = Snapshot::new(*generation);
        for kind in ResourceType::ALL {
            let layers = snapshot.of_mut(kind);
            layers.shared = slot.shared[kind as usize].clone();
            layers.own = slot.own[kind as usize].clone();
        }
        slot.sender.send_if_modified(|current| {
            let changed = |kind: &ResourceType| !current.of(*kind).same(snapshot.of(*kind));
            let changed: Vec<ResourceType> = ResourceType::ALL.into_iter().filter(changed).collect();
            for kind in &changed {
                slot.changed[*kind as usize] = *generation;
            }
            if !changed.is_empty() {
                *current = Arc::new(snapshot);
            }
            !changed.is_empty()
        })
    }
}

/// Makes the outbound side of a proxy without capture again if anything it is made from changed.
fn refresh_private(
    key: &SlotKey,
    workload: &Workload,
    slot: &mut Slot,
    services: &Services,
    mesh: &Arc<MeshConfig>,
    context: &mut Context<'_>,
) {
    let fresh = slot.private.as_ref().is_some_and(|private| {
        private.view == slot.view
            && private.version == services.version(slot.view)
            && Arc::ptr_eq(&private.mesh, mesh)
            && private.addresses == workload.addresses
            && private.logs == slot.logs.client
    });
    if fresh {
        return;
    }
    let failure = Failure::OutboundOf(key.workload.clone());
    let (addresses, logs) = (&workload.addresses, slot.logs.client.clone());
    if let Some(encoded) = services.outbound(slot.view, &failure, addresses, &key.shape, &logs, context) {
        let (view, version) = (slot.view, services.version(slot.view));
        let (mesh, addresses) = (mesh.clone(), addresses.clone());
        slot.private = Some(Private { view, version, mesh, addresses, logs, encoded });
    }
}

/// The ext_authz providers whose service and port exist (semantics §4.8).
fn providers(store: &Store) -> BTreeMap<Arc<str>, Provider> {
    let mut found = BTreeMap::new();
    for provider in &store.mesh.extension_providers {
        let Some(ext_authz) = &provider.ext_authz else { continue };
        if let Some(service) = store.service_at(&ext_authz.service, ext_authz.port) {
            let cluster = format!("outbound|{}||{}", ext_authz.port, service.hostname).into();
            let hostname = service.hostname.clone();
            found.entry(provider.name.clone()).or_insert(Provider { cluster, hostname });
        }
    }
    found
}

/// The providers of access logs that are services and whose service exists.
fn log_services(store: &Store) -> BTreeSet<Arc<str>> {
    let services = store.mesh.log_providers.iter().filter(|(_, sink)| matches!(sink, Sink::Service { .. }));
    services.filter(|(_, sink)| store.reaches(sink)).map(|(name, _)| name.clone()).collect()
}

/// The services of the providers that exist, of ext_authz and of access logs.
fn needed(store: &Store, providers: &BTreeMap<Arc<str>, Provider>) -> BTreeSet<ObjectName> {
    let logs = store.mesh.log_providers.values().filter_map(|sink| match sink {
        Sink::Service { service, port, .. } => store.service_at(service, *port),
        Sink::File { .. } => None,
    });
    let mut services: BTreeSet<ObjectName> =
        logs.map(|service| crate::store::service_name(service)).collect();
    if !providers.is_empty() {
        let called: HashSet<&str> = providers.values().map(|provider| &*provider.hostname).collect();
        let authorizers = store.services.iter().filter(|service| called.contains(&*service.hostname));
        services.extend(authorizers.map(|service| crate::store::service_name(service)));
    }
    services
}

#[cfg(test)]
mod tests;
