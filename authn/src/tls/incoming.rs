//! The accept loop and its handshakes.

use std::{
    io,
    net::SocketAddr,
    pin::Pin,
    sync::Arc,
    task::{Context, Poll},
    time::Duration,
};

use rustls::ServerConfig;
use tokio::{
    net::{TcpListener, TcpStream},
    sync::mpsc,
    task::JoinSet,
};
use tokio_rustls::TlsAcceptor;
use tokio_stream::Stream;
use tokio_util::task::AbortOnDropHandle;

use super::{
    Connection, Limits,
    table::{Counters, Table},
    waiting::Waiting,
};
use crate::PeerIdentity;

/// Finished handshakes that wait for tonic to take them.
const READY: usize = 64;
/// Pause after `accept` failed, which is when the process is out of file descriptors.
const ACCEPT_PAUSE: Duration = Duration::from_millis(20);

/// Verified connections, for tonic's `serve_with_incoming`.
#[derive(Debug)]
pub struct Incoming {
    ready: mpsc::Receiver<Connection>,
    table: Arc<Table>,
    address: Option<SocketAddr>,
    /// Ends the accept loop and its handshakes with us.
    _accepting: AbortOnDropHandle<()>,
}

impl Incoming {
    pub(super) fn start(listener: TcpListener, config: Arc<ServerConfig>, limits: Limits) -> Self {
        let table = Table::new(limits);
        let address = listener.local_addr().ok();
        let (sender, ready) = mpsc::channel(READY);
        let acceptor = Acceptor { tls: TlsAcceptor::from(config), table: Arc::clone(&table), ready: sender };
        let accepting = AbortOnDropHandle::new(tokio::spawn(acceptor.run(listener)));
        Self { ready, table, address, _accepting: accepting }
    }

    /// The address listened on.
    pub fn local_addr(&self) -> Option<SocketAddr> {
        self.address
    }

    /// What has happened so far. The handle outlives the stream.
    pub fn counters(&self) -> CountersHandle {
        CountersHandle(Arc::clone(&self.table))
    }
}

/// Reads the [`Counters`] of a listener.
#[derive(Clone, Debug)]
pub struct CountersHandle(Arc<Table>);

impl std::ops::Deref for CountersHandle {
    type Target = Counters;

    fn deref(&self) -> &Counters {
        &self.0.counters
    }
}

impl Stream for Incoming {
    type Item = io::Result<Connection>;

    fn poll_next(self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Option<Self::Item>> {
        self.get_mut().ready.poll_recv(context).map(|connection| connection.map(Ok))
    }
}

#[derive(Clone)]
struct Acceptor {
    tls: TlsAcceptor,
    table: Arc<Table>,
    ready: mpsc::Sender<Connection>,
}

impl Acceptor {
    async fn run(self, listener: TcpListener) {
        let mut handshakes = JoinSet::new();
        let mut waiting = Waiting::new(self.table.limits().handshakes);
        let mut failing = false;
        loop {
            let full = waiting.is_full();
            let accepted = tokio::select! {
                accepted = listener.accept(), if !full => accepted,
                Some(_) = handshakes.join_next() => continue,
                () = waiting.oldest_is_due(), if full => {
                    self.displace(&mut waiting);
                    continue;
                }
            };
            // Said once per series: the log must not be what a flood fills.
            if let (Err(error), false) = (&accepted, failing) {
                tracing::warn!(%error, "cannot accept connections");
            }
            failing = accepted.is_err();
            match accepted {
                Ok((tcp, peer)) => {
                    Counters::add(&self.table.counters.accepted);
                    waiting.push(handshakes.spawn(self.clone().handshake(tcp, peer)));
                }
                Err(_) => {
                    self.displace(&mut waiting);
                    self.table.displace_oldest();
                    tokio::time::sleep(ACCEPT_PAUSE).await;
                }
            }
        }
    }

    fn displace(&self, waiting: &mut Waiting) {
        if waiting.displace() {
            Counters::add(&self.table.counters.displaced);
        }
    }

    async fn handshake(self, tcp: TcpStream, peer: SocketAddr) {
        let counters = &self.table.counters;
        // Without it every small gRPC frame would wait for the last one's acknowledgement.
        if let Err(error) = tcp.set_nodelay(true) {
            tracing::debug!(%peer, %error, "connection lost before its handshake");
            return;
        }
        let handshake = self.tls.accept(tcp);
        let tls = match tokio::time::timeout(self.table.limits().handshake_timeout, handshake).await {
            Ok(Ok(tls)) => tls,
            Ok(Err(error)) => {
                Counters::add(&counters.failed);
                tracing::debug!(%peer, %error, "TLS handshake failed");
                return;
            }
            Err(_) => {
                Counters::add(&counters.timed_out);
                tracing::debug!(%peer, "TLS handshake took too long");
                return;
            }
        };
        let leaf = tls.get_ref().1.peer_certificates().and_then(|chain| chain.first());
        // The verifier has parsed it before; a failure here would be ours, and must not look like "no certificate".
        let identity = match leaf.map(|leaf| PeerIdentity::of_verified(leaf)).transpose() {
            Ok(identity) => identity.map(Arc::new),
            Err(error) => {
                Counters::add(&counters.failed);
                tracing::error!(%peer, %error, "a verified certificate cannot be read");
                return;
            }
        };
        let Some(place) = self.table.enter(identity) else {
            tracing::warn!(%peer, "connection refused: too many");
            return;
        };
        // Fails only when the stream is gone, and the connection goes with it.
        let _ = self.ready.send(Connection::new(tls, peer, place)).await;
    }
}
