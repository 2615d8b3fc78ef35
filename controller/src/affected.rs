//! Which results one edit of the store may change: a superset, cheap to compute. Computes no result itself; what turns
//! out equal stops at the next comparison.

use std::collections::BTreeSet;
use std::sync::Arc;

use policy::ObjectName;

use crate::store::{Edit, Store, service_name, workload_name};

/// A set of namespaces that may be all of them.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Namespaces {
    Some(BTreeSet<Arc<str>>),
    All,
}

impl Default for Namespaces {
    fn default() -> Self {
        Self::Some(BTreeSet::new())
    }
}

impl Namespaces {
    fn one(namespace: Arc<str>) -> Self {
        Self::Some(BTreeSet::from([namespace]))
    }

    pub(crate) fn contains(&self, namespace: &str) -> bool {
        match self {
            Self::Some(names) => names.contains(namespace),
            Self::All => true,
        }
    }

    pub(crate) fn is_empty(&self) -> bool {
        matches!(self, Self::Some(names) if names.is_empty())
    }

    fn merge(&mut self, other: Self) {
        match (&mut *self, other) {
            (Self::All, _) => {}
            (_, Self::All) => *self = Self::All,
            (Self::Some(all), Self::Some(more)) => all.extend(more),
        }
    }
}

/// What to recompute.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Affected {
    /// Effective policies of workloads there.
    pub(crate) policies: Namespaces,
    /// Inbound ports of workloads there, and what they may call.
    pub(crate) inbound: Namespaces,
    /// Everything that is these workloads' own.
    pub(crate) workloads: BTreeSet<ObjectName>,
    /// Endpoints, identities and mTLS of these services.
    pub(crate) services: BTreeSet<ObjectName>,
    /// What clients are told about these services.
    pub(crate) told: BTreeSet<ObjectName>,
    /// Every encoded resource, because the mesh configuration is part of each.
    pub(crate) mesh: bool,
}

impl Affected {
    /// Everything: the first list, and a changed mesh configuration.
    pub(crate) fn all(store: &Store) -> Self {
        Self {
            policies: Namespaces::All,
            inbound: Namespaces::All,
            workloads: BTreeSet::new(),
            services: store.services.names().collect(),
            told: BTreeSet::new(),
            mesh: true,
        }
    }

    pub(crate) fn is_empty(&self) -> bool {
        let Self { policies, inbound, workloads, services, told, mesh } = self;
        policies.is_empty()
            && inbound.is_empty()
            && workloads.is_empty()
            && services.is_empty()
            && told.is_empty()
            && !mesh
    }

    pub(crate) fn merge(&mut self, other: Self) {
        let Self { policies, inbound, workloads, services, told, mesh } = other;
        self.policies.merge(policies);
        self.inbound.merge(inbound);
        self.workloads.extend(workloads);
        self.services.extend(services);
        self.told.extend(told);
        self.mesh |= mesh;
    }
}

/// What `edit` may change. `store` already holds the new state.
pub(crate) fn affected(store: &Store, edit: &Edit) -> Affected {
    match edit {
        Edit::Nothing => Affected::default(),
        Edit::Mesh => Affected::all(store),
        Edit::Policy { namespace, mtls } => policy(store, namespace, *mtls),
        // A service decides which ports its workloads have, and what its clients see.
        Edit::Service(id) => Affected {
            inbound: Namespaces::one(id.namespace.clone()),
            services: BTreeSet::from([id.clone()]),
            ..Affected::default()
        },
        // Which logs a proxy writes stands in its listeners.
        Edit::Sidecar(namespace) | Edit::Telemetry(namespace) => {
            let root = **namespace == *store.mesh.root_namespace;
            let inbound = if root { Namespaces::All } else { Namespaces::one(namespace.clone()) };
            Affected { inbound, ..Affected::default() }
        }
        Edit::Workload { old, new } => {
            let both = || old.iter().chain(new);
            Affected {
                workloads: both().map(|w| workload_name(w)).collect(),
                services: both().flat_map(|w| store.services_around(w)).collect(),
                ..Affected::default()
            }
        }
        // Whom a rule concerns is known only by looking it up for every client; here: which services.
        Edit::DestinationRule { old, new } => {
            let named = |service: &&Arc<mesh::Service>| {
                let hostname = service.hostname.to_ascii_lowercase();
                old.iter().chain(new).any(|rule| rule.names(&hostname))
            };
            let services = store.services.iter().filter(named).map(|service| service_name(service));
            let told = services.collect();
            // Clients may be selected that were not, and the other way round.
            let selecting = old.iter().chain(new).find(|rule| rule.selector.is_some());
            let clients = selecting.map(|rule| Namespaces::one(rule.namespace.clone()));
            Affected { told, inbound: clients.unwrap_or_default(), ..Affected::default() }
        }
        Edit::Slice(services) => Affected { services: services.clone(), ..Affected::default() },
    }
}

fn policy(store: &Store, namespace: &Arc<str>, mtls: bool) -> Affected {
    let root = **namespace == *store.mesh.root_namespace;
    let services = match (mtls, root) {
        (false, _) => BTreeSet::new(),
        (true, true) => store.services.names().collect(),
        (true, false) => {
            let own = store.services.namespace(namespace).map(|service| service_name(service));
            let around = store.workloads_in(namespace).flat_map(|w| store.services_around(w));
            own.chain(around).collect()
        }
    };
    let policies = if root { Namespaces::All } else { Namespaces::one(namespace.clone()) };
    Affected { policies, services, ..Affected::default() }
}
