//! Objects from a Kubernetes API server: list, watch, and freeze on loss. Not policy: objects go through `crds::parse`
//! like those of a file. It writes nothing.
//!
//! ```text
//! API server ─► wire ─► slim (what is needed) ─► follow (list, watch, again) ─► objects ─► catalog (what changed) ─► Change…
//!                                                 └─► definitions (which kinds there are) ─┘
//! ```
//!
//! Every kind is listed and watched on its own and at the same time; `catalog` alone decides what follows, and is pure.

mod catalog;
mod client;
mod counters;
mod definitions;
pub mod events;
mod follow;
pub mod lease;
mod mesh_config;
mod objects;
pub mod replicas;
mod rights;
mod slim;
pub mod status;
mod unimplemented;
mod version;
pub mod webhook;
mod wire;

use std::collections::{BTreeMap, BTreeSet};
use std::hash::RandomState;
use std::path::PathBuf;
use std::sync::Arc;

use crds::Kind;
use tokio::sync::{mpsc, watch as latest};
use tokio::task::JoinSet;

use crate::Change;
use catalog::{Catalog, Tell};
pub use client::{ClientError, client};
pub use counters::{Count, Counters, Happened};
use definitions::{DefinitionSink, Definitions, Gate};
use follow::{ATTENTIVE, RELAXED, follow};
use mesh_config::ConfigMapSink;
use objects::ObjectSink;
pub use rights::{Need, Right, Scope, manifest, rights};
pub use version::native_sidecars;

/// What the watches saw and was not taken over yet.
const TELLS: usize = 1024;

/// What is watched, and as whom.
#[derive(Clone)]
pub struct Settings {
    /// Best from [`client()`].
    pub client: kube::Client,
    /// Where the mesh configuration is.
    pub mesh: MeshSource,
    /// Objects labelled `istio.io/rev` for another revision are ignored; `default` is the unlabelled one.
    pub revision: Arc<str>,
    /// What the watches count, for the process to show.
    pub counters: Arc<Counters>,
}

impl std::fmt::Debug for Settings {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Settings")
            .field("mesh", &self.mesh)
            .field("revision", &self.revision)
            .finish_non_exhaustive()
    }
}

/// Where the mesh configuration comes from. Absent means Istio's defaults, followed when it appears.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum MeshSource {
    /// Key `mesh` of a ConfigMap.
    ConfigMap {
        namespace: String,
        name: String,
    },
    File(PathBuf),
}

impl MeshSource {
    fn origin(&self) -> String {
        match self {
            Self::ConfigMap { namespace, name } => format!("ConfigMap {namespace}/{name}"),
            Self::File(path) => path.display().to_string(),
        }
    }
}

/// Tells every change until nobody listens any more. First comes the full list of every kind, ended by
/// [`Change::Synced`]; before that, [`Change::Frozen`] names what it is waited for. Dropping the future stops everything.
///
/// # Panics
/// If one of the watches does: a defect of ours.
pub async fn watch(settings: Settings, changes: mpsc::Sender<Change>) {
    let origin = settings.mesh.origin();
    let mut catalog = Catalog::new(origin, settings.counters.clone());
    let (synced, listen) = latest::channel(false);
    let (tells, mut told) = mpsc::channel(TELLS);
    let mut watches = start(settings, &tells, &listen);
    let (mut batch, mut news) = (Vec::new(), Vec::new());
    loop {
        let due = catalog.due();
        let sleep = async {
            match due {
                Some(due) => tokio::time::sleep_until(due).await,
                None => std::future::pending().await,
            }
        };
        tokio::select! {
            // `tells` is held here, so that it never ends.
            _ = told.recv_many(&mut batch, TELLS) => {}
            () = sleep => {}
            () = changes.closed() => return,
            // What is not followed any more would never be heard of again: better an end that everybody sees.
            Some(ended) = watches.join_next() => match ended {
                Err(error) if error.is_panic() => std::panic::resume_unwind(error.into_panic()),
                _ => return,
            },
        }
        let now = tokio::time::Instant::now();
        for tell in batch.drain(..) {
            catalog.take(tell, now, &mut news);
        }
        catalog.tick(now, &mut news);
        for change in news.drain(..) {
            if matches!(change, Change::Synced) {
                synced.send_replace(true);
            }
            if changes.send(change).await.is_err() {
                return;
            }
        }
    }
}

/// Starts every watch; they end when what is returned is dropped.
fn start(settings: Settings, tells: &mpsc::Sender<Tell>, synced: &latest::Receiver<bool>) -> JoinSet<()> {
    let Settings { client, mesh, revision, counters } = settings;
    let mut watches = JoinSet::new();
    let (sender, definitions) = latest::channel(Definitions::default());
    let gate = |name: String, versions| Gate::new(name, versions, definitions.clone(), client.clone());
    let mut wanted = BTreeMap::new();
    for kind in Kind::ALL {
        let gate = objects::defined(kind).then(|| {
            let name = format!("{}.{}", objects::plural(kind), kind.group());
            wanted.insert(name.clone(), true);
            gate(name, kind.versions())
        });
        let digest = RandomState::new();
        let sink = ObjectSink { kind, gate, revision: revision.clone(), tells: tells.clone(), digest };
        watches.spawn(follow(client.clone(), sink, ATTENTIVE, counters.clone()));
    }
    for kind in crds::unimplemented() {
        wanted.insert(kind.definition(), false);
        let gate = gate(kind.definition(), kind.versions);
        let sink = unimplemented::CountSink::new(kind, gate, revision.clone(), tells.clone(), synced.clone());
        watches.spawn(follow(client.clone(), sink, RELAXED, counters.clone()));
    }
    let sink = DefinitionSink {
        client: client.clone(),
        wanted,
        definitions: sender,
        tells: tells.clone(),
        listed: BTreeSet::new(),
    };
    watches.spawn(follow(client.clone(), sink, ATTENTIVE, counters.clone()));
    match mesh {
        MeshSource::ConfigMap { namespace, name } => {
            let (namespace, name) = (namespace.into(), name.into());
            let sink = ConfigMapSink { namespace, name, tells: tells.clone(), listed: false };
            watches.spawn(follow(client, sink, ATTENTIVE, counters));
        }
        MeshSource::File(path) => drop(watches.spawn(mesh_config::follow_file(path, tells.clone()))),
    }
    watches
}
