//! The plaintext port: xDS without TLS, for this machine. A connection that says nothing gives way to newer ones and is
//! closed after a while, and there are only so many, so that idle ones take nothing from the other ports. Authenticates
//! nobody.

use std::io;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;

use authn::tls::Waiting;
use controller::Handle;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{OwnedSemaphorePermit, Semaphore, mpsc};
use tokio_stream::wrappers::ReceiverStream;
use tokio_util::sync::CancellationToken;
use tokio_util::task::AbortOnDropHandle;
use tonic::transport::server::{Connected, TcpConnectInfo};
use xds::ads::server::{Ads, Peer};

use crate::routes::{Gate, Port};

/// Connections at once that have said something, at least and at most; a further one is closed at once.
const CONNECTIONS: (usize, usize) = (256, 20_000);
/// Connections at once that have not; a further one ends the oldest.
const SILENT: usize = 64;
/// For the first byte to arrive.
const FIRST_BYTE: Duration = Duration::from_secs(5);
/// Waited after a failed accept, so that running out of descriptors does not become a busy loop.
const PAUSE: Duration = Duration::from_millis(100);

/// A connection that holds one of the places.
#[derive(Debug)]
pub(crate) struct Connection {
    stream: TcpStream,
    _place: OwnedSemaphorePermit,
}

/// Connections that have said something. Dropping it closes the listener.
#[derive(Debug)]
pub(crate) struct Incoming {
    ready: ReceiverStream<io::Result<Connection>>,
    _accepting: AbortOnDropHandle<()>,
}

impl Incoming {
    pub(crate) fn start(listener: TcpListener) -> Self {
        let (sender, receiver) = mpsc::channel(16);
        let accepting = AbortOnDropHandle::new(tokio::spawn(accept(listener, sender)));
        Self { ready: ReceiverStream::new(receiver), _accepting: accepting }
    }
}

/// Serves xDS on `listener` until `stop`.
///
/// # Errors
/// If the server fails.
pub(crate) async fn serve(
    ads: Ads<Handle>,
    listener: TcpListener,
    stop: CancellationToken,
) -> Result<(), tonic::transport::Error> {
    let incoming = Incoming::start(listener);
    authn::tls::grpc_server()
        .layer(Gate::new(Port::Plaintext, peer, || None))
        .add_service(ads)
        .serve_with_incoming_shutdown(incoming, stop.cancelled_owned())
        .await
}

impl tokio_stream::Stream for Incoming {
    type Item = io::Result<Connection>;

    fn poll_next(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Self::Item>> {
        Pin::new(&mut self.ready).poll_next(cx)
    }
}

async fn accept(listener: TcpListener, ready: mpsc::Sender<io::Result<Connection>>) {
    let places = Arc::new(Semaphore::new(connections(runtime::limits::open_files())));
    // Ends with this task.
    let mut silent = tokio::task::JoinSet::new();
    let mut waiting = Waiting::new(SILENT);
    loop {
        let full = waiting.is_full();
        let accepted = tokio::select! {
            accepted = listener.accept(), if !full => accepted,
            Some(_) = silent.join_next() => continue,
            () = waiting.oldest_is_due(), if full => {
                waiting.displace();
                continue;
            }
        };
        let stream = match accepted {
            Ok((stream, _)) => stream,
            Err(error) => {
                tracing::warn!(%error, "cannot accept a plaintext connection");
                tokio::time::sleep(PAUSE).await;
                continue;
            }
        };
        waiting.push(silent.spawn(admit(stream, places.clone(), ready.clone())));
    }
}

/// As many as leave half of the files to the other ports.
fn connections(files: Option<u64>) -> usize {
    let (least, most) = CONNECTIONS;
    files.map_or(least, |files| usize::try_from(files / 2).unwrap_or(most).clamp(least, most))
}

/// Hands a connection on once it says something and there is a place.
async fn admit(stream: TcpStream, places: Arc<Semaphore>, ready: mpsc::Sender<io::Result<Connection>>) {
    let spoke = tokio::time::timeout(FIRST_BYTE, stream.peek(&mut [0])).await;
    if let (Ok(Ok(1)), Ok(place)) = (spoke, places.try_acquire_owned()) {
        let _ = stream.set_nodelay(true);
        // Nobody takes it if the server is stopping.
        let _ = ready.send(Ok(Connection { stream, _place: place })).await;
    }
}

/// What the transport knows of a peer on this port.
pub(crate) fn peer(extensions: &http::Extensions) -> Peer {
    let info = extensions.get::<TcpConnectInfo>();
    Peer { address: info.and_then(TcpConnectInfo::remote_addr), ..Peer::default() }
}

impl Connected for Connection {
    type ConnectInfo = TcpConnectInfo;

    fn connect_info(&self) -> TcpConnectInfo {
        self.stream.connect_info()
    }
}

impl AsyncRead for Connection {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_read(cx, buffer)
    }
}

impl AsyncWrite for Connection {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.stream).poll_write(cx, bytes)
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_shutdown(cx)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buffers: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.stream).poll_write_vectored(cx, buffers)
    }

    fn is_write_vectored(&self) -> bool {
        self.stream.is_write_vectored()
    }
}

#[cfg(test)]
mod tests {
    #[test]
    fn half_of_the_files_are_left_to_others() {
        let cases = [
            (None, 256),
            (Some(256), 256),
            (Some(1024), 512),
            (Some(1 << 20), 20_000),
            (Some(u64::MAX), 20_000),
        ];
        for (files, wanted) in cases {
            assert_eq!(super::connections(files), wanted, "{files:?}");
        }
    }
}
