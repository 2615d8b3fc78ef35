//! What tools may know of the connected proxies, and the record it is answered from (semantics §6.8). A caller is told of
//! proxies of its own namespace; one of the root namespace of all (design decision 7). Changes nothing.
//!
//! Cluster administrators come as the root namespace: `istioctl` asks the API server for a token of a service account
//! there, which only they may make.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::SystemTime;

use mesh::MeshConfig;
use tokio::sync::watch;
use xds::ads::facts::{self, ProxyFact, Sync, TypeFact};
use xds::ads::node;
use xds::ads::server::{Fact, Peer, Proxy, Question, Refused};
use xds::ads::session::Event;
use xds::{ResourceType, Snapshot};

use crate::status::SessionId;

/// Characters kept of what a proxy says of its version and cluster.
const MAX_CHARS: usize = 128;
/// Istio's name for the only cluster.
const CLUSTER: &str = "Kubernetes";

/// The connected proxies. Clones share them.
#[derive(Clone, Debug, Default)]
pub(crate) struct Debug(Arc<Mutex<BTreeMap<SessionId, Entry>>>);

/// One session.
#[derive(Debug)]
struct Entry {
    id: String,
    namespace: Arc<str>,
    cluster: String,
    istio_version: String,
    /// Holds the slot open as the session itself does; gone with its [`Record`].
    snapshots: watch::Receiver<Arc<Snapshot>>,
    types: [State; 5],
}

#[derive(Clone, Debug, Default)]
struct State {
    sent: Option<SystemTime>,
    /// Sent, and not all of it answered.
    outstanding: bool,
    acked: bool,
    error: Option<String>,
}

/// Writes down what happens in one session; forgets the session when dropped.
#[derive(Debug)]
pub(crate) struct Record {
    debug: Debug,
    id: SessionId,
}

impl Debug {
    fn lock(&self) -> MutexGuard<'_, BTreeMap<SessionId, Entry>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(crate) fn opened(
        &self,
        id: SessionId,
        proxy: &Proxy,
        snapshots: watch::Receiver<Arc<Snapshot>>,
    ) -> Record {
        let said = |key| node::text(&proxy.node, key).unwrap_or_default().chars().take(MAX_CHARS).collect();
        let mut cluster: String = said("CLUSTER_ID");
        if cluster.is_empty() {
            CLUSTER.clone_into(&mut cluster);
        }
        let entry = Entry {
            id: format!("{}.{}", proxy.id.name, proxy.id.namespace),
            namespace: proxy.id.namespace.clone(),
            cluster,
            istio_version: said("ISTIO_VERSION"),
            snapshots,
            types: Default::default(),
        };
        self.lock().insert(id, entry);
        Record { debug: self.clone(), id }
    }

    /// # Errors
    /// If the peer may not ask, or asks for a type that is not answered.
    pub(crate) fn answer(&self, question: &Question, mesh: &MeshConfig) -> Result<Vec<Fact>, Refused> {
        let Question { peer, type_url, names } = question;
        let sees = Sees::of(peer, mesh)?;
        match (type_url.as_str(), &names[..]) {
            (facts::SYNCZ, _) => Ok(self.syncz(&sees)),
            (facts::CONFIG_DUMP, [id]) => Ok(self.config_dump(&sees, id)),
            (facts::CONFIG_DUMP, _) => Err(Refused::Invalid("name one proxy, as NAME.NAMESPACE".to_owned())),
            (other, _) => Err(Refused::Invalid(format!(
                "{other:?} is not answered; known: {}, {}",
                facts::SYNCZ,
                facts::CONFIG_DUMP
            ))),
        }
    }

    fn syncz(&self, sees: &Sees) -> Vec<Fact> {
        let mut told: Vec<Fact> = {
            let entries = self.lock();
            let seen = entries.values().filter(|entry| sees.namespace(&entry.namespace));
            seen.map(|entry| entry.fact().encode()).collect()
        };
        told.sort_by(|a, b| a.name.cmp(&b.name));
        told
    }

    fn config_dump(&self, sees: &Sees, id: &str) -> Vec<Fact> {
        // The newest session of that name.
        let snapshot = self
            .lock()
            .values()
            .rev()
            .find(|entry| entry.id == id && sees.namespace(&entry.namespace))
            .map(|entry| entry.snapshots.borrow().clone());
        snapshot.map_or_else(facts::not_connected, |snapshot| facts::config_dump(&snapshot))
    }
}

impl Entry {
    fn fact(&self) -> ProxyFact {
        let Self { id, namespace, cluster, istio_version, snapshots: _, types } = self;
        let types = ResourceType::ALL.into_iter().filter_map(|kind| {
            let State { sent, outstanding, acked, error } = &types[kind as usize];
            let sync = match (error, outstanding, sent.is_some() || *acked) {
                (Some(_), ..) => Sync::Error,
                (None, true, _) => Sync::Stale,
                (None, false, true) => Sync::Synced,
                // What a proxy needs besides these follows from them: not asked for is not used.
                (None, false, false) if kind.wildcard() => Sync::NotSent,
                (None, false, false) => return None,
            };
            Some(TypeFact { kind, sync, sent: *sent, error: error.clone() })
        });
        ProxyFact {
            id: id.clone(),
            namespace: namespace.to_string(),
            cluster: cluster.clone(),
            istio_version: istio_version.clone(),
            types: types.collect(),
        }
    }
}

impl Record {
    pub(crate) fn event(&self, event: &Event) {
        let mut entries = self.debug.lock();
        let Some(entry) = entries.get_mut(&self.id) else { return };
        match event {
            Event::Sent { kind, resources: _, bytes: _ } => {
                let state = &mut entry.types[*kind as usize];
                state.sent = Some(SystemTime::now());
                state.outstanding = true;
            }
            Event::Acked { kind, generation: _ } => {
                let state = &mut entry.types[*kind as usize];
                *state = State { sent: state.sent, outstanding: false, acked: true, error: None };
            }
            Event::Rejected { kind, resource: _, message } => {
                entry.types[*kind as usize].error = Some(message.clone());
            }
            Event::StaleNonce { kind: _ } | Event::Replacing | Event::Waiting(_) => {}
        }
    }
}

impl Drop for Record {
    fn drop(&mut self) {
        self.debug.lock().remove(&self.id);
    }
}

/// Whose proxies a caller may know of.
#[derive(Debug, PartialEq, Eq)]
enum Sees {
    All,
    Namespace(String),
}

impl Sees {
    fn of(peer: &Peer, mesh: &MeshConfig) -> Result<Self, Refused> {
        if !peer.secure {
            return Err(Refused::PermissionDenied("debug types are for the TLS port".to_owned()));
        }
        let identity = peer.identity.as_ref().ok_or(Refused::Unauthenticated)?;
        let workload = identity.as_workload().filter(|_| *identity.trust_domain() == *mesh.trust_domain);
        match workload {
            Some((namespace, _)) if *namespace == *mesh.root_namespace => Ok(Self::All),
            Some((namespace, _)) => Ok(Self::Namespace(namespace.to_owned())),
            None => Err(Refused::PermissionDenied(format!("{identity} is of no namespace of this mesh"))),
        }
    }

    fn namespace(&self, namespace: &str) -> bool {
        match self {
            Self::All => true,
            Self::Namespace(own) => own == namespace,
        }
    }
}
