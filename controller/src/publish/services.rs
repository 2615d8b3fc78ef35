//! What proxies share: every service as clients see it, encoded once per [`Facet`], and for each [`ViewKey`] the tables of
//! the services it shows with the outbound listeners and routes that lead to them. A change of a service costs the views
//! that show it, and leaves alone what does not depend on it. Knows nothing of policies but whether an endpoint speaks mTLS.

mod told;

use std::borrow::Cow;
use std::collections::{BTreeMap, BTreeSet, HashMap, HashSet};
use std::sync::Arc;

use mesh::{Client, Log, MeshConfig, Scope};
use policy::ObjectName;
use xds::build::{Capture, Outbound, OutboundService, ProxyShape, SharedShape};
use xds::{Resource, ResourceType};

use super::tables::{Encoded, Interner, Memo, Tables, keep_equal, tables};
use super::{Builders, Failure, Failures};
use crate::affected::Affected;
use crate::effective::Effective;
use crate::endpoints::outbound_service;
use crate::guard::guarded;
use crate::store::Store;
use told::Told;

/// Clients that see the same services: all that the shared part of their configuration depends on.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(crate) struct ViewKey {
    /// Its namespace, and which DestinationRules count for it.
    pub(crate) client: Client,
    /// Of the Sidecar that applies.
    pub(crate) scope: Arc<Scope>,
    /// Of outbound listeners; none for proxies without capture, which share no listener.
    pub(crate) logs: Arc<[Log]>,
    pub(crate) shape: SharedShape,
}

/// Names a view while it is in use.
pub(crate) type ViewId = u64;

/// What some clients see of a service: the key under which its encoded resources are shared.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
struct Facet {
    shape: SharedShape,
    logs: Arc<[Log]>,
    /// `None`: every port.
    ports: Option<Vec<u16>>,
    /// By DestinationRules.
    told: Told,
    /// Its clusters are there for the proxy's own filters, and nothing leads to them: see [`Services::needed`].
    hidden: bool,
}

/// All services, encoded, and all views in use.
#[derive(Debug, Default)]
pub(crate) struct Services {
    known: BTreeMap<ObjectName, Known>,
    /// Services that the proxy itself calls (ext_authz, access logs): every proxy has their clusters, whatever it may call itself.
    needed: BTreeSet<ObjectName>,
    ids: HashMap<ViewKey, ViewId>,
    views: BTreeMap<ViewId, View>,
    last: ViewId,
}

#[derive(Debug)]
struct Known {
    seen: OutboundService,
    /// Per facet in use; made from `seen` unless the builder failed.
    encoded: HashMap<Facet, Encoded>,
}

#[derive(Debug)]
struct View {
    key: ViewKey,
    visible: BTreeMap<ObjectName, Facet>,
    /// Listeners and routes to what is visible; empty for proxies without capture, whose are their own.
    outbound: Encoded,
    tables: Tables,
    /// Grows when anything changed that `outbound` is made from.
    version: u64,
}

/// A service that is not what it was.
struct Changed {
    id: ObjectName,
    before: HashMap<Facet, Encoded>,
    /// More than its endpoints and identities.
    structural: bool,
}

/// How one view's part of it changes.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
struct Move {
    index: usize,
    old: Option<Facet>,
    new: Option<Facet>,
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
    /// Looks anew at the affected services, and at what clients are told of them; the views in which something changed. With
    /// another mesh configuration it encodes also what did not change.
    pub(crate) fn update(
        &mut self,
        affected: &Affected,
        needed: BTreeSet<ObjectName>,
        (store, effective): (&Store, &mut Effective),
        context: &mut Context<'_>,
    ) -> HashSet<ViewId> {
        let moved: BTreeSet<ObjectName> = self.needed.symmetric_difference(&needed).cloned().collect();
        self.needed = needed;
        let mut changed = Vec::new();
        for id in affected.services.union(&moved) {
            let again = affected.mesh || moved.contains(id);
            changed.extend(self.look(id, store, effective, again, context));
        }
        let looked: HashSet<ObjectName> = changed.iter().map(|change| change.id.clone()).collect();
        for id in affected.services.union(&affected.told).filter(|id| !looked.contains(*id)) {
            // What clients are told of it may be something else, even though the service is what it was.
            if let Some(known) = self.known.get(id).filter(|_| affected.told.contains(id)) {
                changed.push(Changed { id: id.clone(), before: known.encoded.clone(), structural: false });
            }
        }
        let mut dirty = HashSet::new();
        if changed.is_empty() {
            return dirty;
        }
        let mut memo = Memo::default();
        let mut views = std::mem::take(&mut self.views);
        for (id, view) in &mut views {
            if self.apply(*id, view, &changed, store, &mut memo, context) {
                dirty.insert(*id);
            }
        }
        for Changed { id, .. } in &changed {
            if let Some(known) = self.known.get_mut(id) {
                let used: HashSet<&Facet> = views.values().filter_map(|view| view.visible.get(id)).collect();
                known.encoded.retain(|facet, _| used.contains(facet));
            }
        }
        self.views = views;
        dirty
    }

    /// Looks at one service anew.
    fn look(
        &mut self,
        id: &ObjectName,
        store: &Store,
        effective: &mut Effective,
        again: bool,
        context: &mut Context<'_>,
    ) -> Option<Changed> {
        let failure = Failure::Service(id.clone());
        let Some(service) = store.services.get(id) else {
            context.failures.clear(&failure);
            let known = self.known.remove(id)?;
            return Some(Changed { id: id.clone(), before: known.encoded, structural: true });
        };
        let seen = match guarded(&failure, || outbound_service(store, effective, service)) {
            Ok(seen) => seen,
            Err(panicked) => {
                context.failures.set(failure, panicked);
                return None;
            }
        };
        let mut before = HashMap::new();
        let mut structural = true;
        match self.known.get_mut(id) {
            Some(known) if known.seen == seen && !again => return None,
            Some(known) => {
                structural = again || known.seen.service != seen.service;
                before = known.encoded.clone();
                known.seen = seen;
            }
            None => {
                self.known.insert(id.clone(), Known { seen, encoded: HashMap::new() });
            }
        }
        context.failures.clear(&failure);
        for facet in before.keys() {
            self.encode(id, facet, context);
        }
        Some(Changed { id: id.clone(), before, structural })
    }

    fn encode(&mut self, id: &ObjectName, facet: &Facet, context: &mut Context<'_>) {
        let Some(known) = self.known.get_mut(id) else { return };
        let failure = Failure::Service(id.clone());
        let seen = reduced(&known.seen, facet);
        match guarded(&failure, || (context.builders.service)(context.mesh, &facet.logs, &seen, facet.shape))
        {
            Ok(mut encoded) => {
                if facet.hidden {
                    encoded
                        .retain(|(kind, _)| matches!(kind, ResourceType::Cluster | ResourceType::Endpoint));
                }
                known.encoded.insert(facet.clone(), context.interner.share_all(encoded));
            }
            Err(panicked) => context.failures.set(failure, panicked),
        }
    }

    fn encoded(&self, id: &ObjectName, facet: &Facet) -> &[(ResourceType, Resource)] {
        self.known.get(id).and_then(|known| known.encoded.get(facet)).map_or(&[], Vec::as_slice)
    }

    /// What the clients of a view see of a service.
    fn facet(&self, key: &ViewKey, id: &ObjectName, store: &Store) -> Option<Facet> {
        let service = &self.known.get(id)?.seen.service;
        let told = || told::told(store, &key.client, service);
        let facet = |ports, hidden| {
            let (shape, logs) = (key.shape, key.logs.clone());
            Facet { shape, logs, ports, told: told(), hidden }
        };
        let default = &store.mesh.default_service_export_to;
        match mesh::visible(&key.client.namespace, &key.scope, service, default) {
            Some(ports) => Some(facet(ports, false)),
            None => self.needed.contains(id).then(|| facet(None, true)),
        }
    }

    /// Brings a view in line with the services that changed; whether that changed it.
    fn apply(
        &mut self,
        id: ViewId,
        view: &mut View,
        changed: &[Changed],
        store: &Store,
        memo: &mut Memo<Vec<Move>>,
        context: &mut Context<'_>,
    ) -> bool {
        let mut structural = false;
        let mut moves = Vec::new();
        for (index, change) in changed.iter().enumerate() {
            let new = self.facet(&view.key, &change.id, store);
            if let Some(facet) = &new
                && self.known.get(&change.id).is_some_and(|known| !known.encoded.contains_key(facet))
            {
                self.encode(&change.id, facet, context);
            }
            let old = match &new {
                Some(facet) => view.visible.insert(change.id.clone(), facet.clone()),
                None => view.visible.remove(&change.id),
            };
            if old.is_some() || new.is_some() {
                let shown = |facet: &Option<Facet>| facet.as_ref().map(|f| (f.ports.clone(), f.hidden));
                structural |= change.structural || shown(&old) != shown(&new);
                moves.push(Move { index, old, new });
            }
        }
        if moves.is_empty() {
            return false;
        }
        let listeners = structural || moves.iter().any(|step| self.listeners_differ(step, changed));
        if structural {
            view.version += 1;
            self.refresh_outbound(id, view, context);
        }
        let mut new = view.tables.clone();
        for kind in [ResourceType::Cluster, ResourceType::Endpoint] {
            let table = &mut new[kind as usize];
            *table = memo.remember(table, &moves, |table| {
                for step in &moves {
                    let [before, after] = self.step(step, changed);
                    let of_kind = |encoded: &'_ &(ResourceType, Resource)| encoded.0 == kind;
                    before.iter().filter(of_kind).for_each(|(_, resource)| table.remove(&resource.name));
                    after.iter().filter(of_kind).for_each(|(_, resource)| table.insert(resource.clone()));
                }
            });
        }
        if listeners {
            let rebuilt = self.leading(view);
            for kind in [ResourceType::Listener, ResourceType::Route] {
                new[kind as usize] = rebuilt[kind as usize].clone();
            }
        }
        keep_equal(&mut view.tables, new) || structural
    }

    fn step<'a>(&'a self, step: &Move, changed: &'a [Changed]) -> [&'a [(ResourceType, Resource)]; 2] {
        let change = &changed[step.index];
        let before =
            step.old.as_ref().and_then(|facet| change.before.get(facet)).map_or(&[][..], Vec::as_slice);
        let after = step.new.as_ref().map_or(&[][..], |facet| self.encoded(&change.id, facet));
        [before, after]
    }

    fn listeners_differ(&self, step: &Move, changed: &[Changed]) -> bool {
        let [before, after] = self.step(step, changed);
        let listeners = |encoded: &'_ &(ResourceType, Resource)| encoded.0 == ResourceType::Listener;
        !before.iter().filter(listeners).eq(after.iter().filter(listeners))
    }

    /// Everything but the services' clusters and endpoints: listeners (of which several services may want the same one), and
    /// what leads to services.
    fn leading(&self, view: &View) -> Tables {
        let services = view.visible.iter().flat_map(|(id, facet)| self.encoded(id, facet));
        let listeners = services.filter(|(kind, _)| *kind == ResourceType::Listener);
        tables(listeners.chain(&view.outbound), &view.tables)
    }

    /// Makes what leads to a view's services anew; it stays what it was if the builder fails.
    fn refresh_outbound(&self, id: ViewId, view: &mut View, context: &mut Context<'_>) {
        if !view.key.shape.captured {
            return;
        }
        // Captured proxies of a view differ in nothing that their outbound side depends on.
        let proxy = ProxyShape { capture: Capture::Nft, inline_policy: false, ipv6: view.key.shape.ipv6 };
        let failure = Failure::Outbound { namespace: view.key.client.namespace.clone(), view: id };
        if let Some(encoded) = self.outbound_of(view, &failure, &[], (&proxy, &view.key.logs), context) {
            view.outbound = encoded;
        }
    }

    fn outbound_of(
        &self,
        view: &View,
        failure: &Failure,
        addresses: &[std::net::IpAddr],
        (shape, logs): (&ProxyShape, &[Log]),
        context: &mut Context<'_>,
    ) -> Option<Encoded> {
        let shown = view.visible.iter().filter(|(_, facet)| !facet.hidden);
        let shown: Vec<Cow<'_, OutboundService>> =
            shown.filter_map(|(id, facet)| Some(reduced(&self.known.get(id)?.seen, facet))).collect();
        let services: Vec<&OutboundService> = shown.iter().map(|service| &**service).collect();
        let outbound = Outbound {
            mesh: context.mesh,
            namespace: &view.key.client.namespace,
            addresses,
            services: &services,
            allow_any: view.key.scope.allow_any.unwrap_or(context.mesh.outbound_allow_any),
            shape,
            logs,
        };
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

    /// The outbound listeners and routes of one proxy (shape) of a view; `None` if the builder failed.
    pub(crate) fn outbound(
        &self,
        view: ViewId,
        failure: &Failure,
        addresses: &[std::net::IpAddr],
        shape: &ProxyShape,
        logs: &[Log],
        context: &mut Context<'_>,
    ) -> Option<Encoded> {
        self.outbound_of(self.views.get(&view)?, failure, addresses, (shape, logs), context)
    }

    /// Grows when anything changed that [`Self::outbound`] of the view is made from.
    pub(crate) fn version(&self, view: ViewId) -> u64 {
        self.views.get(&view).map_or(0, |view| view.version)
    }

    /// The view of that key; made on first use.
    pub(crate) fn view(&mut self, key: ViewKey, store: &Store, context: &mut Context<'_>) -> ViewId {
        if let Some(id) = self.ids.get(&key) {
            return *id;
        }
        self.last += 1;
        let facets = self.known.keys().filter_map(|id| Some((id.clone(), self.facet(&key, id, store)?)));
        let visible: BTreeMap<ObjectName, Facet> = facets.collect();
        for (id, facet) in &visible {
            if self.encoded(id, facet).is_empty() {
                self.encode(id, facet, context);
            }
        }
        let mut view =
            View { key: key.clone(), visible, outbound: Vec::new(), tables: Tables::default(), version: 1 };
        self.refresh_outbound(self.last, &mut view, context);
        let all = view.visible.iter().flat_map(|(id, facet)| self.encoded(id, facet)).chain(&view.outbound);
        view.tables = tables(all, &Tables::default());
        // Views that show the same share the tables, and go on sharing them while they change alike.
        for other in self.views.values() {
            for (mine, theirs) in view.tables.iter_mut().zip(&other.tables) {
                if *mine == *theirs {
                    *mine = theirs.clone();
                }
            }
        }
        self.views.insert(self.last, view);
        self.ids.insert(key, self.last);
        self.last
    }

    /// The tables that the proxies of a view share.
    pub(crate) fn tables(&self, view: ViewId) -> Tables {
        self.views.get(&view).map(|view| view.tables.clone()).unwrap_or_default()
    }

    /// Forgets views that no proxy uses any more.
    pub(crate) fn retain(&mut self, used: &HashSet<ViewId>) {
        let before = self.views.len();
        self.views.retain(|id, _| used.contains(id));
        if self.views.len() == before {
            return;
        }
        self.ids.retain(|_, id| used.contains(id));
        let mut facets: BTreeMap<&ObjectName, HashSet<&Facet>> = BTreeMap::new();
        for (id, facet) in self.views.values().flat_map(|view| &view.visible) {
            facets.entry(id).or_default().insert(facet);
        }
        for (id, known) in &mut self.known {
            let used = facets.get(id);
            known.encoded.retain(|facet, _| used.is_some_and(|used| used.contains(facet)));
        }
    }

    #[cfg(test)]
    pub(crate) fn len(&self) -> usize {
        self.views.len()
    }
}

/// `seen` with the ports that the facet shows, and what it is told of them.
fn reduced<'a>(seen: &'a OutboundService, facet: &Facet) -> Cow<'a, OutboundService> {
    if facet.ports.is_none() && facet.told.is_empty() {
        return Cow::Borrowed(seen);
    }
    let mut seen = told::said(seen, &facet.told);
    seen.ports.retain(|port| facet.ports.as_ref().is_none_or(|shown| shown.contains(&port.port.port)));
    Cow::Owned(seen)
}
