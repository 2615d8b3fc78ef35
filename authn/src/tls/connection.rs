//! One accepted connection.

use std::{
    fmt, io,
    net::SocketAddr,
    pin::Pin,
    sync::Arc,
    task::{Context, Poll},
};

use time::OffsetDateTime;
use tokio::{
    io::{AsyncRead, AsyncWrite, ReadBuf},
    net::TcpStream,
};
use tokio_rustls::server::TlsStream;
use tonic::transport::server::Connected;

use super::table::{Counters, Place};
use crate::ConnectionInfo;

/// A TLS connection whose peer is known. Reading and writing fail when it has to give way or its certificate ends.
pub struct Connection {
    tls: TlsStream<TcpStream>,
    peer: SocketAddr,
    place: Arc<Place>,
    /// Ready when the connection must end.
    end: Pin<Box<dyn Future<Output = End> + Send>>,
    ended: Option<End>,
}

#[derive(Clone, Copy)]
enum End {
    Displaced,
    Expired,
}

impl From<End> for io::Error {
    fn from(end: End) -> Self {
        let reason = match end {
            End::Displaced => "displaced by newer connections",
            End::Expired => "the client certificate has ended",
        };
        Self::new(io::ErrorKind::ConnectionAborted, reason)
    }
}

impl Connection {
    pub(super) fn new(tls: TlsStream<TcpStream>, peer: SocketAddr, place: Place) -> Self {
        let evicted = place.evicted();
        let left = place.certificate().map(|identity| identity.ends_at() - OffsetDateTime::now_utc());
        let end = Box::pin(async move {
            match (evicted, left) {
                (Some(evicted), _) => {
                    evicted.cancelled_owned().await;
                    End::Displaced
                }
                (None, left) => {
                    tokio::time::sleep(left.unwrap_or_default().try_into().unwrap_or_default()).await;
                    End::Expired
                }
            }
        });
        Self { tls, peer, place: Arc::new(place), end, ended: None }
    }

    fn poll_end(&mut self, context: &mut Context<'_>) -> Option<End> {
        if self.ended.is_none()
            && let Poll::Ready(end) = self.end.as_mut().poll(context)
        {
            self.ended = Some(end);
            if matches!(end, End::Expired) {
                Counters::add(&self.place.counters().expired);
            }
        }
        self.ended
    }
}

impl fmt::Debug for Connection {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Connection").field("peer", &self.peer).finish_non_exhaustive()
    }
}

impl Connected for Connection {
    type ConnectInfo = ConnectionInfo;

    fn connect_info(&self) -> ConnectionInfo {
        ConnectionInfo::new(self.peer, self.place.certificate(), &self.place)
    }
}

// All three ask for the end, since a connection that waits for its peer to read does not read itself.
impl AsyncRead for Connection {
    fn poll_read(
        self: Pin<&mut Self>,
        context: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let this = self.get_mut();
        match this.poll_end(context) {
            Some(end) => Poll::Ready(Err(end.into())),
            None => Pin::new(&mut this.tls).poll_read(context, buffer),
        }
    }
}

impl AsyncWrite for Connection {
    fn poll_write(self: Pin<&mut Self>, context: &mut Context<'_>, data: &[u8]) -> Poll<io::Result<usize>> {
        let this = self.get_mut();
        match this.poll_end(context) {
            Some(end) => Poll::Ready(Err(end.into())),
            None => Pin::new(&mut this.tls).poll_write(context, data),
        }
    }

    fn poll_flush(self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        let this = self.get_mut();
        match this.poll_end(context) {
            Some(end) => Poll::Ready(Err(end.into())),
            None => Pin::new(&mut this.tls).poll_flush(context),
        }
    }

    fn poll_shutdown(self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.get_mut().tls).poll_shutdown(context)
    }
}
