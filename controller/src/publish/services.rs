//! What all proxies share: every service as clients see it, encoded once per [`Shared`], and the outbound listeners
//! and routes of each namespace. Knows nothing of policies but whether an endpoint speaks mTLS. What DestinationRules tell
//! some clients is encoded once per distinct outcome, and clients that are told the same share tables.

mod told;

use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;

use mesh::{Client, Log, MeshConfig};
use policy::ObjectName;
use xds::build::{self, Outbound, OutboundService, ProxyShape, SharedShape};

use super::tables::{Encoded, Interner, Tables, overlaid, tables};
use super::{Builders, Failure, Failures};
use crate::effective::Effective;
use crate::endpoints::outbound_service;
use crate::guard::guarded;
use crate::store::Store;
use told::{Told, View, Views};

/// What decides how proxies see services, besides DestinationRules. Shapes differ little, and logs in few namespaces.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) struct Shared {
    shape: SharedShape,
    /// Which of [`Services::logs`].
    logs: usize,
}

/// All services, encoded.
#[derive(Debug, Default)]
pub(crate) struct Services {
    known: BTreeMap<ObjectName, Known>,
    /// The distinct logs of outbound listeners that there have been.
    logs: Vec<Arc<[Log]>>,
    /// What clients in use are told.
    views: Views,
    /// Tables of all services per shape in use, for clients that are told nothing.
    tables: HashMap<Shared, Tables>,
    /// The same for each view in use.
    told: HashMap<(View, Shared), Tables>,
    /// Those tables with a namespace's listeners and routes, per client and shape in use (captured proxies only).
    clients: HashMap<(Client, Shared), Tables>,
    /// Grows when any service changed; what was made from an older one is stale.
    pub(crate) version: u64,
}

#[derive(Debug)]
struct Known {
    seen: OutboundService,
    /// Per shape in use and what clients are told; made from `seen` unless the builder failed.
    encoded: HashMap<(Shared, Told), Encoded>,
}

/// What translation needs besides the services.
#[derive(Debug)]
pub(crate) struct Context<'a> {
    pub(crate) builders: Builders,
    pub(crate) mesh: &'a MeshConfig,
    pub(crate) interner: &'a mut Interner,
    pub(crate) failures: &'a mut Failures,
}

impl Services {
    /// Looks at one service anew; `again` encodes it also if nothing changed (another mesh configuration).
    pub(crate) fn update(
        &mut self,
        id: &ObjectName,
        store: &Store,
        effective: &mut Effective,
        again: bool,
        context: &mut Context<'_>,
    ) {
        let failure = Failure::Service(id.clone());
        let Some(service) = store.services.get(id) else {
            context.failures.clear(&failure);
            if self.known.remove(id).is_some() {
                self.version += 1;
            }
            return;
        };
        let seen = match guarded(&failure, || outbound_service(store, effective, service)) {
            Ok(seen) => seen,
            Err(panicked) => return context.failures.set(failure, panicked),
        };
        let shapes: Vec<Shared> = self.tables.keys().copied().collect();
        match self.known.get_mut(id) {
            Some(known) if known.seen == seen && !again => return,
            Some(known) => known.seen = seen,
            None => {
                self.known.insert(id.clone(), Known { seen, encoded: HashMap::new() });
            }
        }
        self.version += 1;
        context.failures.clear(&failure);
        let mut wanted: Vec<(Shared, Told)> =
            self.known.get(id).into_iter().flat_map(|known| known.encoded.keys().cloned()).collect();
        for key in shapes.into_iter().map(|shape| (shape, Told::default())) {
            if !wanted.contains(&key) {
                wanted.push(key);
            }
        }
        for (shape, told) in wanted {
            self.encode(id, shape, &told, context);
        }
    }

    /// Looks anew at what clients are told of these services.
    pub(crate) fn tell<'a>(
        &mut self,
        ids: impl Iterator<Item = &'a ObjectName> + Clone,
        store: &Store,
        context: &mut Context<'_>,
    ) {
        for (id, told) in self.views.update(ids, store) {
            self.version += 1;
            let shapes: Vec<Shared> = self.tables.keys().copied().collect();
            for shape in shapes {
                self.encode_once(&id, shape, &told, context);
            }
        }
    }

    fn encode_once(&mut self, id: &ObjectName, shape: Shared, told: &Told, context: &mut Context<'_>) {
        let Some(known) = self.known.get(id) else { return };
        if !known.encoded.contains_key(&(shape, told.clone())) {
            self.encode(id, shape, told, context);
        }
    }

    fn encode(&mut self, id: &ObjectName, shape: Shared, told: &Told, context: &mut Context<'_>) {
        let Some(known) = self.known.get_mut(id) else { return };
        let failure = Failure::Service(id.clone());
        let seen = told::said(&known.seen, told);
        let logs = &self.logs[shape.logs];
        match guarded(&failure, || (context.builders.service)(context.mesh, logs, &seen, shape.shape)) {
            Ok(encoded) => {
                known.encoded.insert((shape, told.clone()), context.interner.share_all(encoded));
            }
            Err(panicked) => context.failures.set(failure, panicked),
        }
    }

    /// Puts the tables in use together again after services changed.
    pub(crate) fn rebuild(&mut self, context: &mut Context<'_>) {
        let shapes: Vec<Shared> = self.tables.keys().copied().collect();
        for shape in shapes {
            self.rebuild_shape(shape);
        }
        let shapes: Vec<Shared> = self.tables.keys().copied().collect();
        for view in self.views.distinct().iter().filter(|view| !view.is_empty()) {
            for shape in &shapes {
                self.rebuild_view(view, *shape);
            }
        }
        let clients: Vec<_> = self.clients.keys().cloned().collect();
        for (client, shape) in clients {
            self.rebuild_client(&client, shape, context);
        }
    }

    fn rebuild_shape(&mut self, shape: Shared) {
        let key = (shape, Told::default());
        let all = self.known.values().filter_map(|known| known.encoded.get(&key)).flatten();
        let new = tables(all, self.tables.get(&shape).unwrap_or(&Tables::default()));
        self.tables.insert(shape, new);
    }

    /// The tables of the shape, with what is different for clients of this view.
    fn rebuild_view(&mut self, view: &View, shape: Shared) {
        let key = (view.clone(), shape);
        let mut base = self.tables[&shape].clone();
        let mut different = Encoded::new();
        for (id, told) in view.iter() {
            let Some(known) = self.known.get(id) else { continue };
            match known.encoded.get(&(shape, told.clone())) {
                Some(encoded) => different.extend(encoded.iter().cloned()),
                // By a bug it could not be made. What others are told is not for these clients: they do not call it.
                None => without(&mut base, known.encoded.get(&(shape, Told::default()))),
            }
        }
        let old = self.told.get(&key).cloned().unwrap_or_default();
        self.told.insert(key, overlaid(&base, &different, &old));
    }

    /// The tables of all services as a client sees them.
    fn seen_by(&self, client: &Client, shape: Shared) -> &Tables {
        let view = self.views.of(client).filter(|view| !view.is_empty());
        view.and_then(|view| self.told.get(&(view.clone(), shape))).unwrap_or(&self.tables[&shape])
    }

    fn rebuild_client(&mut self, client: &Client, shape: Shared, context: &mut Context<'_>) {
        // Captured proxies of a namespace and shared shape differ in nothing else that their outbound side depends on.
        let proxy = ProxyShape { capture: build::Capture::Nft, inline_policy: false, ipv6: shape.shape.ipv6 };
        let key = (client.clone(), shape);
        let old = self.clients.get(&key).cloned().unwrap_or_default();
        let failure = Failure::Outbound(client.namespace.clone());
        let logs = self.logs[shape.logs].clone();
        let outbound = self.outbound(&failure, &client.namespace, &[], &proxy, &logs, context);
        let base = self.seen_by(client, shape).clone();
        match outbound {
            Some(encoded) => drop(self.clients.insert(key, overlaid(&base, &encoded, &old))),
            // No listeners is what a proxy starts with; the services' clusters harm nobody.
            None => drop(self.clients.entry(key).or_insert(base)),
        }
    }

    /// The outbound listeners and routes of one proxy (shape); `None` if the builder failed.
    pub(crate) fn outbound(
        &self,
        failure: &Failure,
        namespace: &str,
        addresses: &[std::net::IpAddr],
        shape: &ProxyShape,
        logs: &[Log],
        context: &mut Context<'_>,
    ) -> Option<Encoded> {
        let services: Vec<&OutboundService> = self.known.values().map(|known| &known.seen).collect();
        let outbound =
            Outbound { mesh: context.mesh, namespace, addresses, services: &services, shape, logs };
        match guarded(failure, || (context.builders.outbound)(&outbound)) {
            Ok(encoded) => {
                context.failures.clear(failure);
                Some(context.interner.share_all(encoded))
            }
            Err(panicked) => {
                context.failures.set(failure.clone(), panicked);
                None
            }
        }
    }

    /// The key of what proxies of that shape share that write these logs. Those without capture share no listener.
    pub(crate) fn key(&mut self, shape: SharedShape, logs: &Arc<[Log]>) -> Shared {
        let logs = if shape.captured { logs.clone() } else { Arc::default() };
        let known = self.logs.iter().position(|known| *known == logs);
        let logs = known.unwrap_or_else(|| {
            self.logs.push(logs);
            self.logs.len() - 1
        });
        Shared { shape, logs }
    }

    /// The tables that a proxy of this client and shape shares with others; made on first use.
    pub(crate) fn shared(
        &mut self,
        client: &Client,
        shape: Shared,
        store: &Store,
        context: &mut Context<'_>,
    ) -> Tables {
        if !self.tables.contains_key(&shape) {
            let ids: Vec<ObjectName> = self.known.keys().cloned().collect();
            for id in ids {
                self.encode(&id, shape, &Told::default(), context);
            }
            self.rebuild_shape(shape);
        }
        let view = self.views.get(client, store);
        let key = (view, shape);
        if !key.0.is_empty() && !self.told.contains_key(&key) {
            for (id, told) in key.0.iter() {
                self.encode_once(id, shape, told, context);
            }
            self.rebuild_view(&key.0, shape);
        }
        if !shape.shape.captured {
            return self.seen_by(client, shape).clone();
        }
        let key = (client.clone(), shape);
        if !self.clients.contains_key(&key) {
            self.rebuild_client(client, shape, context);
        }
        self.clients[&key].clone()
    }

    /// Forgets shapes and clients that no proxy uses any more.
    pub(crate) fn retain(
        &mut self,
        used: impl Fn(&Client, Shared) -> bool,
        clients: impl Fn(&Client) -> bool,
        shapes: impl Fn(Shared) -> bool,
    ) {
        self.clients.retain(|(client, shape), _| used(client, *shape));
        self.tables.retain(|shape, _| shapes(*shape));
        self.views.retain(clients);
        let views = self.views.distinct();
        self.told.retain(|(view, shape), _| shapes(*shape) && views.contains(view));
        for (id, known) in &mut self.known {
            known.encoded.retain(|(shape, told), _| {
                shapes(*shape) && (told.is_empty() || views.iter().any(|view| view.get(id) == Some(told)))
            });
        }
    }
}

/// Takes a service out of tables.
fn without(tables: &mut Tables, service: Option<&Encoded>) {
    for (kind, resource) in service.into_iter().flatten() {
        Arc::make_mut(&mut tables[*kind as usize]).remove(&resource.name);
    }
}
