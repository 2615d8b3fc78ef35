//! The one owner of state: takes changes from a source, works out whom they affect, has effective policies translated,
//! and publishes a snapshot per proxy. Does not parse, decide, encode or carry bytes: those are `crds`, `policy`,
//! `xds::build` and `xds::ads`.
//!
//! ```text
//! source::Change ─► store ─► affected ─► effective (policy::resolve) ─► groups, services (xds::build) ─► watch ─► sessions
//!                                          equal? same Arc                equal hash? same table, nothing sent
//! ```

mod actor;
pub mod admission;
mod affected;
mod audit;
mod debug;
mod effective;
mod endpoints;
mod guard;
pub mod injection;
mod keys;
mod metrics;
pub mod offline;
mod publish;
pub mod receipts;
mod report;
mod serve;
pub mod status;
mod store;

#[cfg(test)]
mod fixtures;
#[cfg(test)]
mod tests;

use std::future::Future;
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use authn::jwks::{Counters, Update, Wanted};
use mesh::{MeshConfig, Workload};
use policy::ObjectName;
use runtime::audit::Trail;
use runtime::http::Reasons;
use source::Change;
use tokio::sync::{mpsc, oneshot, watch};

pub use actor::SourceEnded;
pub use status::Report;

use actor::{Actor, Arrived, Command, Registry};
use debug::Debug;
use keys::Keys;
use metrics::{KeySets, Metrics};
use serve::hold::{self, Holding};
use status::SessionId;

/// Commands that may wait for the owner of the state; more make their senders wait.
const COMMANDS: usize = 1024;
/// Fetched keys that may wait for it.
const KEYS: usize = 64;
/// Longest wait for advice; a policy is admitted without.
const ADVICE: Duration = Duration::from_millis(50);

/// Starts the owner of the state.
#[derive(Debug)]
pub struct Controller;

impl Controller {
    /// The handle that everybody else uses, and the task to run; the process ends when the task does.
    pub fn start(
        metrics: &runtime::Metrics,
        changes: mpsc::Receiver<Change>,
    ) -> (Handle, impl Future<Output = Result<(), SourceEnded>> + Send + 'static) {
        Self::audited(metrics, changes, Trail::disabled())
    }

    /// The same, with every change of policy written into `trail`.
    pub fn audited(
        metrics: &runtime::Metrics,
        changes: mpsc::Receiver<Change>,
        trail: Trail,
    ) -> (Handle, impl Future<Output = Result<(), SourceEnded>> + Send + 'static) {
        let runtime_metrics = metrics;
        let metrics = metrics.register(Metrics::new);
        let (commands, received) = mpsc::channel(COMMANDS);
        let (ready_sender, ready) = watch::channel(Err(vec!["starting".to_owned()]));
        let (registry_sender, registry) = watch::channel(Arc::new(Registry::default()));
        let (closed, closing) = mpsc::unbounded_channel();
        let arrived: Arrived = Arc::new(Mutex::new((0, Instant::now())));
        let (keys, wanted) = Keys::new();
        let key_counters = Arc::<Counters>::default();
        runtime_metrics
            .register(|registry| registry.register_collector(Box::new(KeySets(key_counters.clone()))));
        let (update, learnt) = mpsc::channel(KEYS);
        let actor =
            Actor::new(metrics.clone(), arrived.clone(), ready_sender, registry_sender, (keys, learnt))
                .audited(trail);
        let (book, facts) = (actor.receipts.book.clone(), actor.receipts.facts());
        let holding = Holding::new(hold::Limits::default(), metrics.clone());
        let debug = Debug::default();
        let handle = Handle {
            commands,
            closed,
            ready,
            registry,
            metrics,
            arrived,
            holding,
            debug,
            keys: (wanted, update),
            key_counters,
            book,
            facts,
        };
        (handle, actor.run(changes, received, closing))
    }
}

/// What other parts of the process may ask. Cloning is cheap.
#[derive(Clone, Debug)]
pub struct Handle {
    commands: mpsc::Sender<Command>,
    /// One message per session, when it ends.
    closed: mpsc::UnboundedSender<SessionId>,
    ready: watch::Receiver<Result<(), Reasons>>,
    registry: watch::Receiver<Arc<Registry>>,
    metrics: Metrics,
    arrived: Arrived,
    holding: Holding,
    debug: Debug,
    keys: (watch::Receiver<Wanted>, mpsc::Sender<Update>),
    key_counters: Arc<Counters>,
    /// What the proxies have in force, and what is known of the policies.
    book: receipts::Book,
    facts: watch::Receiver<Arc<receipts::All>>,
}

/// What the registry says of a name.
#[derive(Clone, Debug, PartialEq)]
pub enum Registered {
    /// The first list is not complete: nobody knows yet.
    NotReady,
    Unknown,
    Workload(Arc<Workload>),
}

impl Handle {
    /// Whether everything is complete and followed.
    ///
    /// # Errors
    /// The reasons why not.
    pub fn ready(&self) -> Result<(), Reasons> {
        self.ready.borrow().clone()
    }

    /// Fetches the signing keys that policies name the place of, until the controller ends. While nobody does, tokens that
    /// would be verified with them are refused.
    pub async fn fetch_keys(&self, client: authn::jwks::Client, schedule: authn::jwks::Schedule) {
        let (wanted, updates) = self.keys.clone();
        let public = |text: &str| crds::public_jwks(text).map(|keys| keys.text);
        authn::jwks::keep(client, schedule, public, wanted, updates, self.key_counters.clone()).await;
    }

    /// Waits for the first readiness, or until the controller is gone.
    pub async fn wait_ready(&self) {
        let _ = self.ready.clone().wait_for(Result::is_ok).await;
    }

    /// The Pod or WorkloadEntry of that name.
    pub fn workload(&self, namespace: &str, name: &str) -> Registered {
        let registry = self.registry.borrow();
        if !registry.complete {
            return Registered::NotReady;
        }
        let found = registry.workloads.get(&ObjectName::new(namespace, name));
        found.map_or(Registered::Unknown, |workload| Registered::Workload(workload.clone()))
    }

    /// Whether some workload of `namespace` runs as `service_account`; `None` before the first list.
    pub fn service_account_in_use(&self, namespace: &str, service_account: &str) -> Option<bool> {
        let registry = self.registry.borrow();
        let uses = |w: &Arc<Workload>| *w.namespace == *namespace && *w.service_account == *service_account;
        registry.complete.then(|| registry.workloads.values().any(uses))
    }

    /// Whether the first list is complete.
    pub(crate) fn complete(&self) -> bool {
        self.registry.borrow().complete
    }

    /// The mesh configuration in force; Istio's defaults before the first list.
    pub fn mesh(&self) -> Arc<MeshConfig> {
        self.registry.borrow().mesh.clone()
    }

    /// What the author of `object` should know of its effect (nothing while the controller is not ready, or busy).
    pub async fn advise(&self, object: &crds::Object) -> Vec<String> {
        if self.ready().is_err() {
            return Vec::new();
        }
        let (reply, advice) = oneshot::channel();
        let command = Command::Advise { object: Box::new(object.clone()), reply };
        // Whoever writes a policy waits for the answer.
        if self.commands.try_send(command).is_err() {
            return Vec::new();
        }
        tokio::time::timeout(ADVICE, advice).await.ok().and_then(Result::ok).unwrap_or_default()
    }

    /// Waits until the mesh configuration is another than `known`; for ever once the controller is gone.
    pub async fn mesh_changed(&self, known: &Arc<MeshConfig>) {
        let mut registry = self.registry.clone();
        if registry.wait_for(|registry| registry.mesh != *known).await.is_err() {
            std::future::pending::<()>().await;
        }
    }

    /// Everything that `/status` shows; `None` if the controller is gone.
    pub async fn status(&self) -> Option<Report> {
        let (reply, report) = oneshot::channel();
        self.commands.send(Command::Report(reply)).await.ok()?;
        report.await.ok()
    }
}
