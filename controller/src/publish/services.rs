//! What all proxies share: every service as clients see it, encoded once per [`SharedShape`], and the outbound listeners
//! and routes of each namespace. Knows nothing of policies but whether an endpoint speaks mTLS.

use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;

use mesh::MeshConfig;
use policy::ObjectName;
use xds::build::{self, Outbound, OutboundService, ProxyShape, SharedShape};

use super::tables::{Encoded, Interner, Tables, overlaid, tables};
use super::{Builders, Failure, Failures};
use crate::effective::Effective;
use crate::endpoints::outbound_service;
use crate::guard::guarded;
use crate::store::Store;

/// All services, encoded.
#[derive(Debug, Default)]
pub(crate) struct Services {
    known: BTreeMap<ObjectName, Known>,
    /// Tables of all services per shape in use.
    tables: HashMap<SharedShape, Tables>,
    /// Those tables with a namespace's listeners and routes, per namespace and shape in use (captured proxies only).
    namespaces: HashMap<(Arc<str>, SharedShape), Tables>,
    /// Grows when any service changed; what was made from an older one is stale.
    pub(crate) version: u64,
}

#[derive(Debug)]
struct Known {
    seen: OutboundService,
    /// Per shape in use; made from `seen` unless the builder failed.
    encoded: HashMap<SharedShape, Encoded>,
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
        let shapes: Vec<SharedShape> = self.tables.keys().copied().collect();
        match self.known.get_mut(id) {
            Some(known) if known.seen == seen && !again => return,
            Some(known) => known.seen = seen,
            None => {
                self.known.insert(id.clone(), Known { seen, encoded: HashMap::new() });
            }
        }
        self.version += 1;
        context.failures.clear(&failure);
        for shape in shapes {
            self.encode(id, shape, context);
        }
    }

    fn encode(&mut self, id: &ObjectName, shape: SharedShape, context: &mut Context<'_>) {
        let Some(known) = self.known.get_mut(id) else { return };
        let failure = Failure::Service(id.clone());
        match guarded(&failure, || (context.builders.service)(context.mesh, &known.seen, shape)) {
            Ok(encoded) => {
                known.encoded.insert(shape, context.interner.share_all(encoded));
            }
            Err(panicked) => context.failures.set(failure, panicked),
        }
    }

    /// Puts the tables in use together again after services changed.
    pub(crate) fn rebuild(&mut self, context: &mut Context<'_>) {
        let shapes: Vec<SharedShape> = self.tables.keys().copied().collect();
        for shape in shapes {
            self.rebuild_shape(shape);
        }
        let namespaces: Vec<_> = self.namespaces.keys().cloned().collect();
        for (namespace, shape) in namespaces {
            self.rebuild_namespace(&namespace, shape, context);
        }
    }

    fn rebuild_shape(&mut self, shape: SharedShape) {
        let all = self.known.values().filter_map(|known| known.encoded.get(&shape)).flatten();
        let new = tables(all, self.tables.get(&shape).unwrap_or(&Tables::default()));
        self.tables.insert(shape, new);
    }

    fn rebuild_namespace(&mut self, namespace: &Arc<str>, shape: SharedShape, context: &mut Context<'_>) {
        // Captured proxies of a namespace and shared shape differ in nothing that their outbound side depends on.
        let proxy = ProxyShape { capture: build::Capture::Nft, inline_policy: false, ipv6: shape.ipv6 };
        let old = self.namespaces.get(&(namespace.clone(), shape)).cloned().unwrap_or_default();
        let failure = Failure::Outbound(namespace.clone());
        match self.outbound(&failure, namespace, &[], &proxy, context) {
            Some(encoded) => {
                let new = overlaid(&self.tables[&shape], &encoded, &old);
                self.namespaces.insert((namespace.clone(), shape), new);
            }
            None => {
                // No listeners is what a proxy starts with; the services' clusters harm nobody.
                let base = self.tables[&shape].clone();
                self.namespaces.entry((namespace.clone(), shape)).or_insert(base);
            }
        }
    }

    /// The outbound listeners and routes of one proxy (shape); `None` if the builder failed.
    pub(crate) fn outbound(
        &self,
        failure: &Failure,
        namespace: &str,
        addresses: &[std::net::IpAddr],
        shape: &ProxyShape,
        context: &mut Context<'_>,
    ) -> Option<Encoded> {
        let services: Vec<&OutboundService> = self.known.values().map(|known| &known.seen).collect();
        let outbound = Outbound { mesh: context.mesh, namespace, addresses, services: &services, shape };
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

    /// The tables that a proxy of this namespace and shape shares with others; made on first use.
    pub(crate) fn shared(
        &mut self,
        namespace: &Arc<str>,
        shape: SharedShape,
        context: &mut Context<'_>,
    ) -> Tables {
        if !self.tables.contains_key(&shape) {
            let ids: Vec<ObjectName> = self.known.keys().cloned().collect();
            for id in ids {
                self.encode(&id, shape, context);
            }
            self.rebuild_shape(shape);
        }
        if !shape.captured {
            return self.tables[&shape].clone();
        }
        let key = (namespace.clone(), shape);
        if !self.namespaces.contains_key(&key) {
            self.rebuild_namespace(namespace, shape, context);
        }
        self.namespaces[&key].clone()
    }

    /// Forgets shapes and namespaces that no proxy uses any more.
    pub(crate) fn retain(
        &mut self,
        used: impl Fn(&str, SharedShape) -> bool,
        shapes: impl Fn(SharedShape) -> bool,
    ) {
        self.namespaces.retain(|(namespace, shape), _| used(namespace, *shape));
        self.tables.retain(|shape, _| shapes(*shape));
        for known in self.known.values_mut() {
            known.encoded.retain(|shape, _| shapes(*shape));
        }
    }
}
