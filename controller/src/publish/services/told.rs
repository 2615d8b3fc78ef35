//! What DestinationRules tell clients of services: one view for all clients that are told the same. Encodes nothing.

use std::collections::{BTreeMap, BTreeSet, HashMap, HashSet};
use std::hash::{Hash, Hasher};
use std::ops::Deref;
use std::sync::Arc;

use mesh::{Client, ClientTls, Service};
use policy::ObjectName;
use xds::build::{OutboundPort, OutboundService, PortTls};

use crate::store::Store;

/// What a client is told of a service, by port. Ports that no rule speaks of are not in it.
pub(super) type Told = Arc<BTreeMap<u16, ClientTls>>;

/// Services of which a client is told anything. There is one of each content at a time, so it is compared as a pointer.
#[derive(Clone, Debug, Default)]
pub(super) struct View(Arc<BTreeMap<ObjectName, Told>>);

impl Deref for View {
    type Target = BTreeMap<ObjectName, Told>;

    fn deref(&self) -> &Self::Target {
        &self.0
    }
}

impl PartialEq for View {
    fn eq(&self, other: &Self) -> bool {
        Arc::ptr_eq(&self.0, &other.0)
    }
}

impl Eq for View {}

impl Hash for View {
    fn hash<H: Hasher>(&self, state: &mut H) {
        Arc::as_ptr(&self.0).hash(state);
    }
}

/// The views of the clients in use.
#[derive(Debug, Default)]
pub(super) struct Views(HashMap<Client, View>);

impl Views {
    pub(super) fn of(&self, client: &Client) -> Option<&View> {
        self.0.get(client)
    }

    /// The client's view, made on first use.
    pub(super) fn get(&mut self, client: &Client, store: &Store) -> View {
        if let Some(known) = self.0.get(client) {
            return known.clone();
        }
        let mut content = BTreeMap::new();
        if !store.destination_rules.is_empty() {
            for service in store.services.iter() {
                let told = told(store, client, service);
                if !told.is_empty() {
                    content.insert(crate::store::service_name(service), told);
                }
            }
        }
        let view = self.only(content);
        self.0.insert(client.clone(), view.clone());
        view
    }

    /// Looks at these services anew for every client. Services and what some client is newly told of them.
    pub(super) fn update<'a>(
        &mut self,
        ids: impl Iterator<Item = &'a ObjectName> + Clone,
        store: &Store,
    ) -> Vec<(ObjectName, Told)> {
        let mut news = Vec::new();
        if store.destination_rules.is_empty() && self.0.values().all(|view| view.is_empty()) {
            return news;
        }
        // An outcome is one value, whichever client it is for.
        let mut outcomes: HashMap<&ObjectName, BTreeSet<Told>> = HashMap::new();
        let clients: Vec<Client> = self.0.keys().cloned().collect();
        for client in clients {
            let view = &self.0[&client];
            let mut changes = Vec::new();
            for id in ids.clone() {
                let new =
                    store.services.get(id).map(|service| told(store, &client, service)).unwrap_or_default();
                if view.get(id).map_or(!new.is_empty(), |old| *old != new) {
                    changes.push((id, new));
                }
            }
            if changes.is_empty() {
                continue;
            }
            let mut content = (*view.0).clone();
            for (id, told) in changes {
                if told.is_empty() {
                    content.remove(id);
                } else {
                    content.insert(id.clone(), told.clone());
                }
                if outcomes.entry(id).or_default().insert(told.clone()) {
                    news.push((id.clone(), told));
                }
            }
            let view = self.only(content);
            self.0.insert(client, view);
        }
        news
    }

    /// The one view with that content.
    fn only(&self, content: BTreeMap<ObjectName, Told>) -> View {
        let same = self.0.values().find(|view| *view.0 == content);
        same.cloned().unwrap_or_else(|| View(Arc::new(content)))
    }

    /// Each once.
    pub(super) fn distinct(&self) -> HashSet<View> {
        self.0.values().cloned().collect()
    }

    pub(super) fn retain(&mut self, used: impl Fn(&Client) -> bool) {
        self.0.retain(|client, _| used(client));
    }
}

fn told(store: &Store, client: &Client, service: &Service) -> Told {
    let hostname = service.hostname.to_ascii_lowercase();
    let root = &store.mesh.root_namespace;
    let found = store.destination_rules.policy(client, &service.namespace, &hostname, root);
    let Some((policy, _)) = found else { return Told::default() };
    let port = |port: &mesh::ServicePort| Some((port.port, policy.port(port.port)?.clone()));
    Arc::new(service.ports.iter().filter_map(port).collect())
}

/// The service as those clients see it.
pub(super) fn said(service: &OutboundService, told: &Told) -> OutboundService {
    let port = |port: &OutboundPort| {
        let told = told.get(&port.port.port).cloned();
        OutboundPort { tls: told.map_or_else(|| port.tls.clone(), PortTls::Told), ..port.clone() }
    };
    OutboundService { service: service.service.clone(), ports: service.ports.iter().map(port).collect() }
}
