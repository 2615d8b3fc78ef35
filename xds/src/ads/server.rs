//! The gRPC side of ADS: takes a stream's first message, asks [`Snapshots`] for what it is to have, and carries messages
//! between the stream and its [`Session`]. Limits what a peer can cost. Knows no policy; who may have what is the
//! implementor's answer.

mod admission;
mod body;
mod debug;
mod service;
mod stream;

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use envoy_types::pb::envoy::config::core::v3::Node;
use spiffe::SpiffeId;
use tokio::sync::watch;
use tonic::{Code, Status};

use super::node::{NodeError, NodeId};
use super::session::{Event, SessionError};
use crate::Snapshot;
use crate::build::{ProxyShape, ShapeError};

pub use service::Ads;

/// Who is at the other end of a connection, as far as the transport has verified it.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Peer {
    /// From the verified client certificate or token; `None` on plaintext or without either.
    pub identity: Option<SpiffeId>,
    /// The identity was shown by a service-account token, not by a certificate.
    pub token: bool,
    /// The pod that the token is bound to; `None` for certificates, and for tokens that any holder may use.
    pub pod: Option<PodBinding>,
    pub address: Option<SocketAddr>,
    /// The connection is TLS.
    pub secure: bool,
}

/// The pod that a token was issued to: that name alone, and only while the pod of that UID lives.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PodBinding {
    pub name: Arc<str>,
    pub uid: Arc<str>,
}

/// A proxy that opens a stream: what it says of itself, and what is known of it.
#[derive(Clone, Debug)]
pub struct Proxy {
    pub id: NodeId,
    pub shape: ProxyShape,
    pub peer: Peer,
    /// Envoy's version, as it says.
    pub envoy_version: Option<(u32, u32, u32)>,
    /// The whole node, metadata included.
    pub node: Arc<Node>,
    pub delta: bool,
}

/// What an accepted proxy gets.
pub struct Subscription {
    /// The latest snapshot. The stream ends when the sender is dropped.
    pub snapshots: watch::Receiver<Arc<Snapshot>>,
    /// Told what happens in the session; dropped when the stream ends.
    pub events: Box<dyn Events>,
}

impl std::fmt::Debug for Subscription {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Subscription").finish_non_exhaustive()
    }
}

/// Listens to one session. Must not block.
pub trait Events: Send + 'static {
    fn event(&mut self, event: Event);
}

/// Why a proxy gets nothing.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Refused {
    #[error("a client certificate is needed")]
    Unauthenticated,
    #[error("{0}")]
    PermissionDenied(String),
    /// The first full list is not there yet, or something blocks it.
    #[error("not ready: {0}")]
    NotReady(String),
    #[error("{0}")]
    Busy(&'static str),
    #[error("{0}")]
    Invalid(String),
}

/// What a tool asks for on a stream of its own (semantics §6.8): it is no proxy, and gets no snapshots.
#[derive(Clone, Debug)]
pub struct Question {
    pub peer: Peer,
    /// `istio.io/debug/..`.
    pub type_url: String,
    pub names: Vec<String>,
}

/// A part of the answer to a [`Question`].
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Fact {
    pub name: String,
    /// An encoded `google.protobuf.Any`.
    pub any: Bytes,
}

/// Where sessions get their snapshots from.
pub trait Snapshots: Send + Sync + 'static {
    /// Decides whether `proxy` may have its configuration, and gives it. May take as long as the implementor bounds it;
    /// dropped when the stream ends.
    fn subscribe(&self, proxy: Proxy) -> impl Future<Output = Result<Subscription, Refused>> + Send;

    /// Decides whether the peer may know, and answers. By default nobody may.
    fn debug(&self, question: Question) -> impl Future<Output = Result<Vec<Fact>, Refused>> + Send {
        let _ = question;
        std::future::ready(Err(Refused::PermissionDenied("no debug types are served here".to_owned())))
    }
}

/// What one process and one peer may cost.
#[derive(Clone, Copy, Debug)]
pub struct Limits {
    /// Streams at once.
    pub streams: usize,
    /// Streams at once of one verified identity (or, without one, of one address).
    pub streams_per_peer: usize,
    /// New streams a second, and how many may come at once after a pause.
    pub new_streams_per_second: u32,
    pub burst: u32,
    /// Bytes of one request.
    pub message_bytes: usize,
    /// How long a stream may stay silent at first.
    pub first_message: Duration,
    /// Requests a second on one stream, and how many may come at once.
    pub requests_per_second: u32,
    pub request_burst: u32,
    /// Tools' streams at once, of all peers together and of one, and how long one may be silent.
    pub tools: usize,
    pub tools_per_peer: usize,
    pub tool_silence: Duration,
    /// Tools' questions a second, and how many may come at once, of all peers together.
    pub questions_per_second: u32,
    pub question_burst: u32,
    /// Bytes of one answer to a tool.
    pub answer_bytes: usize,
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            streams: 20_000,
            streams_per_peer: 4096,
            new_streams_per_second: 1000,
            burst: 5000,
            message_bytes: 4 << 20,
            first_message: Duration::from_secs(10),
            requests_per_second: 1000,
            request_burst: 20_000,
            tools: 32,
            tools_per_peer: 4,
            tool_silence: Duration::from_secs(60),
            questions_per_second: 5,
            question_burst: 30,
            answer_bytes: 64 << 20,
        }
    }
}

/// The one place where refusals become gRPC status.
pub(super) enum Failure {
    Refused(Refused),
    Node(NodeError),
    Shape(ShapeError),
    Session(SessionError),
    Busy(&'static str),
    Silent,
    /// No message of the protocol, or one beyond the limit; or the peer went away.
    Unreadable(Status),
    /// The proxy is to have no snapshots any more: its registration changed, or the process stops.
    Over,
}

impl From<Failure> for Status {
    fn from(failure: Failure) -> Self {
        let (code, message) = match failure {
            Failure::Refused(refused) => {
                let code = match refused {
                    Refused::Unauthenticated => Code::Unauthenticated,
                    Refused::PermissionDenied(_) => Code::PermissionDenied,
                    Refused::NotReady(_) => Code::Unavailable,
                    Refused::Busy(_) => Code::ResourceExhausted,
                    Refused::Invalid(_) => Code::InvalidArgument,
                };
                (code, refused.to_string())
            }
            Failure::Node(error) => (Code::InvalidArgument, error.to_string()),
            Failure::Shape(error) => (Code::InvalidArgument, error.to_string()),
            Failure::Session(error) => (Code::InvalidArgument, error.to_string()),
            Failure::Busy(what) => (Code::ResourceExhausted, what.to_owned()),
            Failure::Silent => (Code::DeadlineExceeded, "no request came".to_owned()),
            Failure::Unreadable(status) => return status,
            Failure::Over => (Code::Unavailable, "no longer served here; connect again".to_owned()),
        };
        Self::new(code, message)
    }
}
