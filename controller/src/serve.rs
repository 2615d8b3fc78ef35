//! The controller as the source of snapshots for xDS streams: who may have which snapshot, and what becomes of what
//! proxies say. The rules of identity are here and in [`crate::publish`]; bytes are `xds::ads`'s.
//!
//! On the secure port a verified identity is required, the node id names a registered workload, and the registration
//! must give that workload to that identity (design decisions 7, 10); a token must also be that pod's own. A stream whose
//! workload is not registered yet is held until it is ([`hold`]), never served from its metadata. On the plaintext port
//! (loopback by default) nobody is refused: the node id is believed; a node that the registry does not know gets its
//! namespace's policies and an inbound side that admits nobody until it is registered, because without labels nobody can
//! tell what else applies. What tools ask is answered by [`crate::debug`].

pub(crate) mod hold;
#[cfg(test)]
mod tests;

use std::sync::{Arc, Mutex, PoisonError};
use std::time::Instant;

use policy::ObjectName;
use tokio::sync::{mpsc, oneshot};
use xds::ads::node;
use xds::ads::server::{Events, Fact, Proxy, Question, Refused, Snapshots, Subscription};
use xds::ads::session::Event;

use crate::Handle;
use crate::actor::{Arrived, Command, Denied, Opened, Subscribe};
use crate::debug::Record;
use crate::metrics::Metrics;
use crate::publish::{Refusal, SlotKey};
use crate::status::{Connected, Journal, Nack, SessionId};

impl Snapshots for Handle {
    async fn subscribe(&self, proxy: Proxy) -> Result<Subscription, Refused> {
        let key = slot(&proxy).inspect_err(|_| {
            self.metrics.refused.inc();
        })?;
        let connected = connected(&proxy, &key);
        let journal = Arc::new(Mutex::new(Journal::default()));
        let Opened { id, snapshots } = self.open(&key, &connected, &journal).await?;
        let record = Some(self.debug.opened(id, &proxy, snapshots.clone()));
        let closed = self.closed.clone();
        let (metrics, arrived) = (self.metrics.clone(), self.arrived.clone());
        let opened = Instant::now();
        let node = connected.node.into();
        let events = Listener { id, node, opened, journal, record, metrics, arrived, closed };
        Ok(Subscription { snapshots, events: Box::new(events) })
    }

    async fn debug(&self, question: Question) -> Result<Vec<Fact>, Refused> {
        self.debug.answer(&question, &self.mesh())
    }
}

impl Handle {
    /// The snapshots of `key`; on the secure port once its workload is registered.
    async fn open(
        &self,
        key: &SlotKey,
        connected: &Connected,
        journal: &Arc<Mutex<Journal>>,
    ) -> Result<Opened, Refused> {
        let mut held = None;
        loop {
            let answer = self.ask(key.clone(), connected.clone(), journal.clone()).await?;
            let (Err(Denied::Refused(Refusal::Unregistered(_))), Some(identity)) = (&answer, &key.identity)
            else {
                return answer.map_err(refused);
            };
            let place = match held.take() {
                Some(place) => place,
                None => {
                    tracing::info!(node = ?connected.node, "held until its workload is registered");
                    self.holding.enter(identity)?
                }
            };
            held = Some(place.registered(self.registry.clone(), &key.workload).await?);
        }
    }

    async fn ask(
        &self,
        key: SlotKey,
        proxy: Connected,
        journal: Arc<Mutex<Journal>>,
    ) -> Result<Result<Opened, Denied>, Refused> {
        let (reply, answer) = oneshot::channel();
        let subscribe = Subscribe { key, proxy, journal, reply };
        self.commands.send(Command::Subscribe(Box::new(subscribe))).await.map_err(|_| stopping())?;
        answer.await.map_err(|_| stopping())
    }
}

fn stopping() -> Refused {
    Refused::NotReady("the control plane is stopping".to_owned())
}

/// Which snapshot the proxy may ask for. What can never be registered is refused here; whether it is registered, and to
/// whom, is the publisher's to say.
fn slot(proxy: &Proxy) -> Result<SlotKey, Refused> {
    let workload = ObjectName { namespace: proxy.id.namespace.clone(), name: proxy.id.name.clone() };
    let shape = proxy.shape.clone();
    if !proxy.peer.secure {
        let claimed = Some(proxy.id.address);
        return Ok(SlotKey { workload, shape, identity: None, pod_uid: None, claimed });
    }
    let identity = proxy.peer.identity.as_ref().ok_or(Refused::Unauthenticated)?;
    let denied = |why: String| Err(Refused::PermissionDenied(why));
    // Registrations give identities of this form alone; waiting for one would be in vain.
    if identity.as_workload().is_none_or(|(namespace, _)| *namespace != *workload.namespace) {
        let (workload, identity) = (workload, identity.to_string().into());
        return denied(Refusal::Identity { workload, identity }.to_string());
    }
    let pod_uid = match (proxy.peer.token, &proxy.peer.pod) {
        (false, None) => None,
        (_, Some(pod)) if pod.name == workload.name => Some(pod.uid.clone()),
        (_, Some(pod)) => return denied(format!("the token is pod {:?}'s, not {workload}'s", &*pod.name)),
        (true, None) => return denied("a token that is not bound to a pod speaks for no proxy".to_owned()),
    };
    Ok(SlotKey { workload, shape, identity: Some(identity.to_string().into()), pod_uid, claimed: None })
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
        drain_time: node::drain_time(&proxy.node),
    }
}

fn refused(denied: Denied) -> Refused {
    match denied {
        Denied::NotReady(reasons) => Refused::NotReady(reasons.join("; ")),
        Denied::Refused(
            refusal @ (Refusal::Unregistered(_) | Refusal::Identity { .. } | Refusal::OtherPod(_)),
        ) => Refused::PermissionDenied(refusal.to_string()),
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
    /// Until it is dropped.
    record: Option<Record>,
    metrics: Metrics,
    arrived: Arrived,
    closed: mpsc::UnboundedSender<SessionId>,
}

impl Events for Listener {
    fn event(&mut self, event: Event) {
        self.record.iter().for_each(|record| record.event(&event));
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
                journal.nacked(kind, Nack::new(resource, message));
            }
            Event::StaleNonce { kind: _ } => {
                self.metrics.expired_nonce.inc();
            }
            Event::Replacing => journal.replacing(),
            Event::Waiting(waiting) => journal.waiting(waiting),
        }
    }
}

impl Drop for Listener {
    fn drop(&mut self) {
        // It holds the snapshots, which the state's owner forgets once nobody does.
        self.record = None;
        // The state's owner may be gone already.
        let _ = self.closed.send(self.id);
    }
}
