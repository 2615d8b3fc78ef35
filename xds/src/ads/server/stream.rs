//! One stream: its requests, the snapshots it follows, and the task that joins them.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Instant;

use envoy_types::pb::envoy::config::core::v3::Node;
use envoy_types::pb::envoy::service::discovery::v3::{DeltaDiscoveryRequest, DiscoveryRequest};
use spiffe::SpiffeId;
use tokio::sync::mpsc;
use tokio::time::timeout;
use tonic::{Code, Status, Streaming};

use super::admission::{Bucket, Place};
use super::body::Responses;
use super::service::Ads;
use super::{Failure, Peer, Proxy, Snapshots, Subscription, debug};
use crate::ads::node::{self, NodeId};
use crate::ads::session::{Response, Session, SessionError};
use crate::ads::wire::{DeltaDiscoveryResponse, DiscoveryResponse, Wire};
use crate::build::ProxyShape;

/// Responses that wait for the peer to read them: one per type and a few for errors.
const OUTGOING: usize = 8;
/// Characters of a node id that are written down.
const NODE_ID: usize = 512;

/// A request message of either variant.
pub(super) trait Message: prost::Message + Default + 'static {
    type Answer: Wire;
    fn node(&mut self) -> Option<Node>;
    fn type_url(&self) -> &str;
    /// What it asks for by name, in this message.
    fn names(&self) -> &[String];
    /// Of the response that it answers.
    fn nonce(&self) -> &str;
    fn apply(&self, session: &mut Session) -> Result<Vec<Response>, SessionError>;
}

impl Message for DiscoveryRequest {
    type Answer = DiscoveryResponse;

    fn node(&mut self) -> Option<Node> {
        self.node.take()
    }

    fn type_url(&self) -> &str {
        &self.type_url
    }

    fn names(&self) -> &[String] {
        &self.resource_names
    }

    fn nonce(&self) -> &str {
        &self.response_nonce
    }

    fn apply(&self, session: &mut Session) -> Result<Vec<Response>, SessionError> {
        session.sotw(self)
    }
}

impl Message for DeltaDiscoveryRequest {
    type Answer = DeltaDiscoveryResponse;

    fn node(&mut self) -> Option<Node> {
        self.node.take()
    }

    fn type_url(&self) -> &str {
        &self.type_url
    }

    fn names(&self) -> &[String] {
        &self.resource_names_subscribe
    }

    fn nonce(&self) -> &str {
        &self.response_nonce
    }

    fn apply(&self, session: &mut Session) -> Result<Vec<Response>, SessionError> {
        session.delta(self)
    }
}

/// Starts the stream's task; it ends with the stream, in either direction.
pub(super) fn open<S: Snapshots, M: Message>(
    ads: Ads<S>,
    peer: Peer,
    requests: Streaming<M>,
) -> Responses<M::Answer> {
    let (tx, rx) = mpsc::channel(OUTGOING);
    tokio::spawn(async move {
        let closed = tx.clone();
        let (address, identity) = (peer.address, peer.identity.clone());
        let mut node = String::new();
        tokio::select! {
            outcome = serve(&ads, peer, requests, &tx, &mut node) => {
                if let Err(failure) = outcome {
                    let status = Status::from(failure);
                    ended(&status, address, identity.as_ref(), &node);
                    // The peer may be gone already.
                    let _ = tx.send(Err(status)).await;
                }
            }
            // The peer reads no more.
            () = closed.closed() => {}
        }
    });
    Responses::new(rx)
}

/// Says why a stream ended; for the audit trail if it was refused.
fn ended(status: &Status, address: Option<SocketAddr>, identity: Option<&SpiffeId>, node: &str) {
    let (code, reason) = (status.code(), status.message());
    match code {
        Code::Unauthenticated | Code::PermissionDenied | Code::InvalidArgument | Code::ResourceExhausted => {
            let peer = address.map(|address| address.to_string()).unwrap_or_default();
            let identity = identity.map(ToString::to_string).unwrap_or_default();
            tracing::info!(target: "audit", peer, node, identity, ?code, reason, "stream refused");
        }
        _ => tracing::info!(?code, reason, node, "ADS stream ended"),
    }
}

pub(super) type Sender<W> = mpsc::Sender<Result<W, Status>>;

async fn serve<S: Snapshots, M: Message>(
    ads: &Ads<S>,
    peer: Peer,
    mut requests: Streaming<M>,
    tx: &Sender<M::Answer>,
    id: &mut String,
) -> Result<(), Failure> {
    let place: Place = ads.admission.admit(&peer)?;
    let first = timeout(ads.limits.first_message, requests.message()).await.map_err(|_| Failure::Silent)?;
    let Some(mut first) = first.map_err(Failure::Unreadable)? else { return Ok(()) };
    let node = first.node().ok_or(Failure::Node(node::NodeError::Missing))?;
    id.extend(node.id.chars().take(NODE_ID));
    if debug::is_debug(first.type_url()) {
        let _place = ads.admission.admit_tool(place)?;
        return debug::serve(ads, peer, first, requests, tx).await;
    }
    let proxy = Proxy {
        id: NodeId::parse(&node).map_err(Failure::Node)?,
        shape: ProxyShape::from_node(&node).map_err(Failure::Shape)?,
        peer,
        envoy_version: node::envoy_version(&node),
        node: Arc::new(node),
        delta: M::Answer::VARIANT == crate::ads::session::Variant::Delta,
    };
    let Subscription { snapshots, mut events } =
        ads.snapshots.subscribe(proxy).await.map_err(Failure::Refused)?;
    // Dropped before `events`, which tells that the stream is over.
    let mut snapshots = snapshots;
    let mut session = Session::new(M::Answer::VARIANT, snapshots.borrow_and_update().clone());
    let mut bucket = Bucket::new(ads.limits.requests_per_second, ads.limits.request_burst, Instant::now());
    let mut request = Some(first);
    loop {
        let responses = match request.take() {
            Some(request) if !bucket.take(Instant::now()) => {
                drop(request);
                return Err(Failure::Busy("too many requests on one stream"));
            }
            Some(request) => request.apply(&mut session).map_err(Failure::Session)?,
            None => session.update(snapshots.borrow_and_update().clone()),
        };
        session.take_events().into_iter().for_each(|event| events.event(event));
        for response in responses {
            if tx.send(Ok(M::Answer::from_response(response, &ads.identifier))).await.is_err() {
                return Ok(());
            }
        }
        tokio::select! {
            // A peer's request first: it may be the ACK that a waiting change needs.
            biased;
            message = requests.message() => match message.map_err(Failure::Unreadable)? {
                Some(message) => request = Some(message),
                None => return Ok(()),
            },
            changed = snapshots.changed() => changed.map_err(|_| Failure::Over)?,
        }
    }
}
