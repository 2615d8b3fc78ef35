//! The controller as the source of snapshots for xDS streams: who may have which snapshot, and what becomes of what
//! proxies say. The rules of identity are here and in [`crate::publish`]; bytes are `xds::ads`'s.
//!
//! On the secure port a verified identity is required, the node id names a registered workload, and the registration
//! must give that workload to that identity (design decisions 7, 10). On the plaintext port (loopback by default) nobody
//! is refused: the node id is believed; a node that the registry does not know gets its namespace's policies and an
//! inbound side that admits nobody until it is registered, because without labels nobody can tell what else applies.

use std::sync::{Arc, Mutex, PoisonError};
use std::time::Instant;

use tokio::sync::{mpsc, oneshot};
use xds::ads::node;
use xds::ads::server::{Events, Proxy, Refused, Snapshots, Subscription};
use xds::ads::session::Event;

use crate::Handle;
use crate::actor::{Arrived, Command, Denied, Opened, Subscribe};
use crate::metrics::Metrics;
use crate::publish::{Refusal, SlotKey};
use crate::status::{Connected, Journal, Nack, SessionId};

impl Snapshots for Handle {
    async fn subscribe(&self, proxy: Proxy) -> Result<Subscription, Refused> {
        let key = slot(&proxy)?;
        let connected = connected(&proxy, &key);
        let node: Arc<str> = connected.node.as_str().into();
        let journal = Arc::new(Mutex::new(Journal::default()));
        let (reply, answer) = oneshot::channel();
        let subscribe = Subscribe { key, proxy: connected, journal: journal.clone(), reply };
        let gone = |_| Refused::NotReady("the control plane is stopping".to_owned());
        self.commands.send(Command::Subscribe(Box::new(subscribe))).await.map_err(|_| gone(()))?;
        let Opened { id, snapshots } = answer.await.map_err(|_| gone(()))?.map_err(refused)?;
        let closed = self.closed.clone();
        let (metrics, arrived) = (self.metrics.clone(), self.arrived.clone());
        let opened = Instant::now();
        let events = Listener { id, node, opened, journal, metrics, arrived, closed };
        Ok(Subscription { snapshots, events: Box::new(events) })
    }
}

/// Which snapshot the proxy may ask for.
fn slot(proxy: &Proxy) -> Result<SlotKey, Refused> {
    let workload = policy::ObjectName { namespace: proxy.id.namespace.clone(), name: proxy.id.name.clone() };
    let shape = proxy.shape.clone();
    if !proxy.peer.secure {
        return Ok(SlotKey { workload, shape, identity: None, claimed: Some(proxy.id.address) });
    }
    let identity = proxy.peer.identity.as_ref().ok_or(Refused::Unauthenticated)?;
    Ok(SlotKey { workload, shape, identity: Some(identity.to_string().into()), claimed: None })
}

fn connected(proxy: &Proxy, key: &SlotKey) -> Connected {
    Connected {
        node: proxy.node.id.chars().take(512).collect(),
        workload: key.workload.clone(),
        peer: proxy.peer.address.map(|address| address.to_string()).unwrap_or_default(),
        secure: proxy.peer.secure,
        identity: key.identity.clone(),
        envoy_version: proxy.envoy_version,
        agent_version: node::text(&proxy.node, "ISTIO_VERSION").unwrap_or_default().to_owned(),
    }
}

fn refused(denied: Denied) -> Refused {
    match denied {
        Denied::NotReady(reasons) => Refused::NotReady(reasons.join("; ")),
        Denied::Refused(refusal @ (Refusal::Unregistered(_) | Refusal::Identity { .. })) => {
            Refused::PermissionDenied(refusal.to_string())
        }
        // What is missing is not the proxy's fault: it asks again.
        Denied::Refused(refusal @ Refusal::Failed(_)) => Refused::NotReady(refusal.to_string()),
    }
}

/// Listens to one session, in that session's task.
#[derive(Debug)]
struct Listener {
    id: SessionId,
    node: Arc<str>,
    /// What was published before counts as start, not as convergence.
    opened: Instant,
    journal: Arc<Mutex<Journal>>,
    metrics: Metrics,
    arrived: Arrived,
    closed: mpsc::UnboundedSender<SessionId>,
}

impl Events for Listener {
    fn event(&mut self, event: Event) {
        let mut journal = self.journal.lock().unwrap_or_else(PoisonError::into_inner);
        match event {
            Event::Sent { kind, resources: _, bytes } => {
                self.metrics.pushed(kind, bytes);
                journal.sent(kind);
            }
            Event::Acked { kind, generation } => {
                journal.acked(kind, generation);
                let (latest, since) = *self.arrived.lock().unwrap_or_else(PoisonError::into_inner);
                if generation == latest && since > self.opened {
                    self.metrics.convergence.observe(since.elapsed().as_secs_f64());
                }
            }
            Event::Rejected { kind, resource, message } => {
                self.metrics.rejected(kind);
                let resource = resource.map(|(name, _)| name);
                tracing::warn!(
                    node = ?self.node, kind = kind.short(), ?resource, error = ?message,
                    "a proxy refused a resource; it keeps what it had"
                );
                journal.nacked(kind, Nack { resource, error: message });
            }
            Event::StaleNonce { kind: _ } => {
                self.metrics.expired_nonce.inc();
            }
        }
    }
}

impl Drop for Listener {
    fn drop(&mut self) {
        // The state's owner may be gone already.
        let _ = self.closed.send(self.id);
    }
}
