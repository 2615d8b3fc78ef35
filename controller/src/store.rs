//! What the mesh consists of, as last understood: one generic table per kind and the indices that questions need.
//! Dumb on purpose: no parsing, no selection, no precedence, no encoding.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::net::IpAddr;
use std::sync::Arc;

use crds::{Kind, Object, ObjectRef};
use mesh::{
    DestinationRule, DestinationRules, EndpointSlice, InboundPort, Logs, MeshConfig, Service, Sidecar, Sink,
    Telemetry, Workload, WorkloadKind,
};
use policy::{ObjectName, PolicySet, Scope};

/// Objects of one kind by namespace and name.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Objects<T>(BTreeMap<Arc<str>, BTreeMap<Arc<str>, Arc<T>>>);

impl<T> Default for Objects<T> {
    fn default() -> Self {
        Self(BTreeMap::new())
    }
}

impl<T> Objects<T> {
    pub(crate) fn get(&self, id: &ObjectName) -> Option<&Arc<T>> {
        self.0.get(&id.namespace)?.get(&id.name)
    }

    pub(crate) fn namespace(&self, namespace: &str) -> impl Iterator<Item = &Arc<T>> {
        self.0.get(namespace).into_iter().flat_map(BTreeMap::values)
    }

    pub(crate) fn iter(&self) -> impl Iterator<Item = &Arc<T>> {
        self.0.values().flat_map(BTreeMap::values)
    }

    pub(crate) fn names(&self) -> impl Iterator<Item = ObjectName> + '_ {
        let name = |ns: &Arc<str>, name: &Arc<str>| ObjectName { namespace: ns.clone(), name: name.clone() };
        self.0.iter().flat_map(move |(ns, objects)| objects.keys().map(move |n| name(ns, n)))
    }

    pub(crate) fn len(&self) -> usize {
        self.0.values().map(BTreeMap::len).sum()
    }

    /// Sets or (with `None`) removes one object; the one that was there.
    fn set(&mut self, id: &ObjectName, object: Option<Arc<T>>) -> Option<Arc<T>> {
        match object {
            Some(object) => self.0.entry(id.namespace.clone()).or_default().insert(id.name.clone(), object),
            None => {
                let objects = self.0.get_mut(&id.namespace)?;
                let old = objects.remove(&id.name);
                if objects.is_empty() {
                    self.0.remove(&id.namespace);
                }
                old
            }
        }
    }
}

/// What one change did to the store; the input of [`crate::affected`].
#[derive(Debug)]
pub(crate) enum Edit {
    /// Equal content, or a kind that decides nothing.
    Nothing,
    /// A policy; `mtls` if it is a PeerAuthentication, which clients of its workloads see too.
    Policy {
        namespace: Arc<str>,
        mtls: bool,
    },
    Service(ObjectName),
    /// A Telemetry of this namespace.
    Telemetry(Arc<str>),
    /// A Sidecar there.
    Sidecar(Arc<str>),
    Workload {
        old: Option<Arc<Workload>>,
        new: Option<Arc<Workload>>,
    },
    /// A DestinationRule, before and after.
    DestinationRule {
        old: Option<Arc<DestinationRule>>,
        new: Option<Arc<DestinationRule>>,
    },
    /// Names of the services whose endpoints an EndpointSlice said or says.
    Slice(BTreeSet<ObjectName>),
    Mesh,
}

#[derive(Debug, Default)]
pub(crate) struct Store {
    pub(crate) mesh: Arc<MeshConfig>,
    /// Its scope follows `mesh`, except for `providers`, which the publisher resolves.
    pub(crate) policies: PolicySet,
    pub(crate) namespaces: BTreeSet<Arc<str>>,
    pub(crate) service_accounts: BTreeSet<ObjectName>,
    pub(crate) services: Objects<Service>,
    sidecars: Objects<Sidecar>,
    pods: Objects<Workload>,
    entries: Objects<Workload>,
    slices: Objects<EndpointSlice>,
    pub(crate) destination_rules: DestinationRules,
    telemetries: Objects<Telemetry>,
    /// Workloads by each of their addresses.
    by_address: HashMap<IpAddr, BTreeSet<(Rank, ObjectName)>>,
    /// EndpointSlices by the service they belong to.
    slices_of: BTreeMap<ObjectName, BTreeSet<Arc<str>>>,
    /// Services by what their EndpointSlices mention.
    mentioned: HashMap<Mention, BTreeMap<ObjectName, usize>>,
}

/// What an endpoint of an EndpointSlice says of the workload it is.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
enum Mention {
    Address(IpAddr),
    Workload(ObjectName),
}

fn mentions(slice: &EndpointSlice) -> impl Iterator<Item = Mention> + '_ {
    let named = |name: &Arc<str>| {
        Mention::Workload(ObjectName { namespace: slice.namespace.clone(), name: name.clone() })
    };
    slice.endpoints.iter().flat_map(move |endpoint| {
        endpoint.addresses.iter().copied().map(Mention::Address).chain(endpoint.workload.as_ref().map(named))
    })
}

/// A Pod wins over a WorkloadEntry of the same name or address.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Rank {
    Pod,
    Entry,
}

impl From<WorkloadKind> for Rank {
    fn from(kind: WorkloadKind) -> Self {
        match kind {
            WorkloadKind::Pod => Self::Pod,
            WorkloadKind::WorkloadEntry => Self::Entry,
        }
    }
}

/// Namespace and name of a workload.
pub(crate) fn workload_name(workload: &Workload) -> ObjectName {
    ObjectName { namespace: workload.namespace.clone(), name: workload.name.clone() }
}

/// Namespace and name of a service.
pub(crate) fn service_name(service: &Service) -> ObjectName {
    ObjectName { namespace: service.namespace.clone(), name: service.name.clone() }
}

impl Store {
    /// Takes over a created or changed object.
    pub(crate) fn apply(&mut self, object: Object) -> Edit {
        match object {
            Object::Namespace { name, labels: _ } => {
                self.namespaces.insert(name);
                Edit::Nothing
            }
            Object::ServiceAccount(id) => {
                self.service_accounts.insert(id);
                Edit::Nothing
            }
            Object::Service(service) => self.set_service(&service_name(&service), Some(service)),
            Object::Workload(workload) => {
                self.set_workload(&workload_name(&workload), workload.kind, Some(workload))
            }
            Object::Sidecar(sidecar) => {
                let id = ObjectName { namespace: sidecar.namespace.clone(), name: sidecar.name.clone() };
                self.set_sidecar(&id, Some(sidecar))
            }
            Object::EndpointSlice(slice) => {
                let id = ObjectName { namespace: slice.namespace.clone(), name: slice.name.clone() };
                self.set_slice(&id, Some(slice))
            }
            Object::DestinationRule(rule) => {
                let id = ObjectName { namespace: rule.namespace.clone(), name: rule.name.clone() };
                self.set_destination_rule(&id, Some(rule))
            }
            Object::Telemetry(new) => {
                let id = ObjectName { namespace: new.namespace.clone(), name: new.name.clone() };
                self.set_telemetry(&id, Some(new))
            }
            Object::PeerAuthentication(new) => {
                let id = new.meta.id.clone();
                let here = self.policies.namespace(&id.namespace).and_then(|n| n.peer.get(&id.name));
                let equal = here.is_some_and(|old| **old == new);
                self.policies.put_peer(Arc::new(new));
                policy_edit(&id, true, equal)
            }
            Object::RequestAuthentication(new) => {
                let id = new.meta.id.clone();
                let here = self.policies.namespace(&id.namespace).and_then(|n| n.request.get(&id.name));
                let equal = here.is_some_and(|old| **old == new);
                self.policies.put_request(Arc::new(new));
                policy_edit(&id, false, equal)
            }
            Object::AuthorizationPolicy(new) => {
                let id = new.meta.id.clone();
                let here = self.policies.namespace(&id.namespace).and_then(|n| n.authorization.get(&id.name));
                let equal = here.is_some_and(|old| **old == new);
                self.policies.put_authorization(Arc::new(new));
                policy_edit(&id, false, equal)
            }
        }
    }

    /// Forgets an object that was explicitly deleted.
    pub(crate) fn remove(&mut self, object: &ObjectRef) -> Edit {
        let ObjectRef { kind, id } = object;
        match kind {
            Kind::Namespace => {
                self.namespaces.remove(&id.name);
                Edit::Nothing
            }
            Kind::ServiceAccount => {
                self.service_accounts.remove(id);
                Edit::Nothing
            }
            Kind::Service => self.set_service(id, None),
            Kind::Pod => self.set_workload(id, WorkloadKind::Pod, None),
            Kind::WorkloadEntry => self.set_workload(id, WorkloadKind::WorkloadEntry, None),
            Kind::Sidecar => self.set_sidecar(id, None),
            Kind::EndpointSlice => self.set_slice(id, None),
            Kind::DestinationRule => self.set_destination_rule(id, None),
            Kind::Telemetry => self.set_telemetry(id, None),
            Kind::PeerAuthentication => {
                self.policies.remove_peer(id);
                policy_edit(id, true, false)
            }
            Kind::RequestAuthentication => {
                self.policies.remove_request(id);
                policy_edit(id, false, false)
            }
            Kind::AuthorizationPolicy => {
                self.policies.remove_authorization(id);
                policy_edit(id, false, false)
            }
        }
    }

    /// Takes over a mesh configuration.
    pub(crate) fn set_mesh(&mut self, mesh: MeshConfig) -> Edit {
        if *self.mesh == mesh {
            return Edit::Nothing;
        }
        self.policies.scope = Scope {
            root_namespace: mesh.root_namespace.clone(),
            trust_domain: mesh.trust_domain.clone(),
            trust_domain_aliases: mesh.trust_domain_aliases.clone(),
            providers: std::mem::take(&mut self.policies.scope.providers),
        };
        self.mesh = Arc::new(mesh);
        Edit::Mesh
    }

    fn set_service(&mut self, id: &ObjectName, new: Option<Service>) -> Edit {
        let new = new.map(Arc::new);
        if self.services.set(id, new.clone()) == new { Edit::Nothing } else { Edit::Service(id.clone()) }
    }

    fn set_destination_rule(&mut self, id: &ObjectName, new: Option<DestinationRule>) -> Edit {
        let new = new.map(Arc::new);
        let old = self.destination_rules.set(&id.namespace, &id.name, new.clone());
        if old == new { Edit::Nothing } else { Edit::DestinationRule { old, new } }
    }

    fn set_sidecar(&mut self, id: &ObjectName, new: Option<Sidecar>) -> Edit {
        let new = new.map(Arc::new);
        let equal = self.sidecars.set(id, new.clone()) == new;
        if equal { Edit::Nothing } else { Edit::Sidecar(id.namespace.clone()) }
    }

    fn set_workload(&mut self, id: &ObjectName, kind: WorkloadKind, new: Option<Workload>) -> Edit {
        let new = new.map(Arc::new);
        let table = match kind {
            WorkloadKind::Pod => &mut self.pods,
            WorkloadKind::WorkloadEntry => &mut self.entries,
        };
        let old = table.set(id, new.clone());
        if old == new {
            return Edit::Nothing;
        }
        let key = (Rank::from(kind), id.clone());
        for address in old.iter().flat_map(|w| &w.addresses) {
            if let Some(holders) = self.by_address.get_mut(address) {
                holders.remove(&key);
                if holders.is_empty() {
                    self.by_address.remove(address);
                }
            }
        }
        for address in new.iter().flat_map(|w| &w.addresses) {
            self.by_address.entry(*address).or_default().insert(key.clone());
        }
        Edit::Workload { old, new }
    }

    fn set_slice(&mut self, id: &ObjectName, new: Option<EndpointSlice>) -> Edit {
        let new = new.map(Arc::new);
        let old = self.slices.set(id, new.clone());
        if old == new {
            return Edit::Nothing;
        }
        let service =
            |s: &EndpointSlice| ObjectName { namespace: s.namespace.clone(), name: s.service.clone() };
        if let Some(old) = &old {
            let owner = service(old);
            if let Some(names) = self.slices_of.get_mut(&owner) {
                names.remove(&id.name);
                if names.is_empty() {
                    self.slices_of.remove(&owner);
                }
            }
            for mention in mentions(old) {
                self.forget_mention(&mention, &owner);
            }
        }
        if let Some(new) = &new {
            let owner = service(new);
            self.slices_of.entry(owner.clone()).or_default().insert(id.name.clone());
            for mention in mentions(new) {
                *self.mentioned.entry(mention).or_default().entry(owner.clone()).or_default() += 1;
            }
        }
        Edit::Slice(old.iter().chain(&new).map(|slice| service(slice)).collect())
    }

    fn set_telemetry(&mut self, id: &ObjectName, new: Option<Telemetry>) -> Edit {
        let new = new.map(Arc::new);
        let old = self.telemetries.set(id, new.clone());
        if old == new { Edit::Nothing } else { Edit::Telemetry(id.namespace.clone()) }
    }

    /// The Telemetry of that name.
    pub(crate) fn telemetry(&self, id: &ObjectName) -> Option<&Arc<Telemetry>> {
        self.telemetries.get(id)
    }

    /// Which logs the proxy of `workload` writes.
    pub(crate) fn logs(&self, workload: &Workload) -> Logs {
        let root = &*self.mesh.root_namespace;
        let in_root = *workload.namespace == *root;
        let own = (!in_root).then(|| self.telemetries.namespace(&workload.namespace));
        let root = self.telemetries.namespace(root).map(|telemetry| &**telemetry);
        let own = own.into_iter().flatten().map(|telemetry| &**telemetry);
        let layers = mesh::telemetry::layers(root, own, in_root, &workload.labels);
        Logs::resolve(&self.mesh, &layers, |sink| self.reaches(sink))
    }

    /// Whether lines can be written there: a service of logs has to exist.
    pub(crate) fn reaches(&self, sink: &Sink) -> bool {
        match sink {
            Sink::File { .. } => true,
            Sink::Service { service, port, .. } => self.service_at(service, *port).is_some(),
        }
    }

    /// The service `[NAMESPACE/]HOST` if it has that port.
    pub(crate) fn service_at(&self, service: &str, port: u16) -> Option<&Arc<Service>> {
        let (namespace, host) = match service.split_once('/') {
            Some((namespace, host)) => (Some(namespace), host),
            None => (None, service),
        };
        self.services.iter().find(|service| {
            *service.hostname == *host
                && namespace.is_none_or(|ns| *service.namespace == *ns)
                && service.ports.iter().any(|p| p.port == port)
        })
    }

    fn forget_mention(&mut self, mention: &Mention, service: &ObjectName) {
        let Some(services) = self.mentioned.get_mut(mention) else { return };
        if let Some(count) = services.get_mut(service) {
            *count -= 1;
            if *count == 0 {
                services.remove(service);
            }
        }
        if services.is_empty() {
            self.mentioned.remove(mention);
        }
    }

    /// The workload of that name; a Pod where a WorkloadEntry has the same one.
    pub(crate) fn workload(&self, id: &ObjectName) -> Option<&Arc<Workload>> {
        self.pods.get(id).or_else(|| self.entries.get(id))
    }

    /// The workload at that address. Where several claim it: a Pod, the newest, the first by namespace and name. An
    /// address is given to a new Pod while the object of the old one may still be there.
    pub(crate) fn workload_at(&self, address: IpAddr) -> Option<&Arc<Workload>> {
        let claimants = self.by_address.get(&address)?.iter();
        let workload = |(rank, id): &(Rank, ObjectName)| match rank {
            Rank::Pod => self.pods.get(id),
            Rank::Entry => self.entries.get(id),
        };
        let claimants = claimants.filter_map(|key| Some((key, workload(key)?)));
        let first =
            claimants.min_by_key(|((rank, _), workload)| (*rank, std::cmp::Reverse(workload.created)));
        first.map(|(_, workload)| workload)
    }

    /// The workloads of a namespace, without the WorkloadEntries that a Pod of the same name hides.
    pub(crate) fn workloads_in<'a>(&'a self, namespace: &'a str) -> impl Iterator<Item = &'a Arc<Workload>> {
        let hidden = |w: &&Arc<Workload>| self.pods.get(&workload_name(w)).is_none();
        self.pods.namespace(namespace).chain(self.entries.namespace(namespace).filter(hidden))
    }

    /// Every workload, as [`Self::workloads_in`].
    pub(crate) fn workloads(&self) -> impl Iterator<Item = &Arc<Workload>> {
        let hidden = |w: &&Arc<Workload>| self.pods.get(&workload_name(w)).is_none();
        self.pods.iter().chain(self.entries.iter().filter(hidden))
    }

    /// The Sidecar that applies to a workload.
    pub(crate) fn sidecar_of(&self, workload: &Workload) -> Option<&Sidecar> {
        let of = |namespace| self.sidecars.namespace(namespace).map(|sidecar| &**sidecar);
        let own = self.sidecars.0.get(&workload.namespace);
        let own = own.into_iter().flat_map(|sidecars| sidecars.values().map(|sidecar| &**sidecar));
        mesh::sidecar(&workload.labels, own, of(&self.mesh.root_namespace))
    }

    /// The ports that a workload is known to serve: those of its Sidecar's ingress, or else those of the services that
    /// select it (semantics §1.6, §3.1).
    pub(crate) fn inbound_ports(&self, workload: &Workload) -> Vec<InboundPort> {
        if let Some(sidecar) = self.sidecar_of(workload).filter(|sidecar| !sidecar.ingress.is_empty()) {
            return sidecar.inbound_ports();
        }
        let services = self.services.namespace(&workload.namespace).map(|service| &**service);
        mesh::inbound_ports(workload, services)
    }

    /// The EndpointSlices of a service, by name.
    pub(crate) fn slices_of(&self, service: &ObjectName) -> Vec<&EndpointSlice> {
        let id = |name: &Arc<str>| ObjectName { namespace: service.namespace.clone(), name: name.clone() };
        let names = self.slices_of.get(service).into_iter().flatten();
        names.filter_map(|name| self.slices.get(&id(name)).map(|slice| &**slice)).collect()
    }

    /// The services that `workload` may stand behind: those that select it, and those whose EndpointSlices mention it or
    /// one of its addresses.
    pub(crate) fn services_around<'a>(
        &'a self,
        workload: &'a Workload,
    ) -> impl Iterator<Item = ObjectName> + 'a {
        let own = self.services.namespace(&workload.namespace).filter(|service| service.selects(workload));
        let own = own.map(|service| service_name(service));
        let addresses = workload.addresses.iter().map(|address| Mention::Address(*address));
        let mentions = addresses.chain([Mention::Workload(workload_name(workload))]);
        let mentioned = mentions.filter_map(|mention| self.mentioned.get(&mention));
        own.chain(mentioned.flat_map(|services| services.keys().cloned()))
    }

    /// Number of objects of each kind, for metrics.
    pub(crate) fn counts(&self) -> [(Kind, usize); 12] {
        let policies = || self.policies.namespaces().map(|(_, policies)| policies);
        [
            (Kind::Namespace, self.namespaces.len()),
            (Kind::ServiceAccount, self.service_accounts.len()),
            (Kind::Service, self.services.len()),
            (Kind::Pod, self.pods.len()),
            (Kind::WorkloadEntry, self.entries.len()),
            (Kind::Sidecar, self.sidecars.len()),
            (Kind::EndpointSlice, self.slices.len()),
            (Kind::DestinationRule, self.destination_rules.len()),
            (Kind::PeerAuthentication, policies().map(|p| p.peer.len()).sum()),
            (Kind::RequestAuthentication, policies().map(|p| p.request.len()).sum()),
            (Kind::AuthorizationPolicy, policies().map(|p| p.authorization.len()).sum()),
            (Kind::Telemetry, self.telemetries.len()),
        ]
    }
}

fn policy_edit(id: &ObjectName, mtls: bool, equal: bool) -> Edit {
    if equal { Edit::Nothing } else { Edit::Policy { namespace: id.namespace.clone(), mtls } }
}

#[cfg(test)]
mod tests;
