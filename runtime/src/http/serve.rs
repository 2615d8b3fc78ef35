//! HTTP/1.1 with limits: so many connections, so long for a header and an answer, so many bytes of body. Knows no route.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use axum::Router;
use axum::extract::{ConnectInfo, DefaultBodyLimit};
use axum::response::{IntoResponse, Response};
use http::StatusCode;
use hyper::body::Incoming;
use hyper_util::rt::{TokioIo, TokioTimer};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;
use tower::ServiceExt;

/// What one listener grants its callers.
#[derive(Clone, Copy, Debug)]
pub struct Limits {
    /// Connections at once; a further one is closed at once.
    pub connections: usize,
    /// For a request's header to arrive whole, and for an idle connection.
    pub header: Duration,
    /// For the answer to be made.
    pub request: Duration,
    /// Bytes of a request's body.
    pub body: usize,
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            connections: 128,
            header: Duration::from_secs(10),
            request: Duration::from_secs(10),
            body: 64 * 1024,
        }
    }
}

/// Waited after a failed accept, so that running out of descriptors does not become a busy loop.
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);

pub(super) async fn serve(
    router: Router,
    listener: TcpListener,
    limits: Limits,
    stop: CancellationToken,
) -> std::io::Result<()> {
    let router = router.layer(DefaultBodyLimit::max(limits.body));
    let slots = Arc::new(Semaphore::new(limits.connections));
    let mut connections = JoinSet::new();
    loop {
        let (stream, peer) = tokio::select! {
            () = stop.cancelled() => break,
            Some(_) = connections.join_next() => continue,
            accepted = listener.accept() => match accepted {
                Ok(accepted) => accepted,
                Err(error) => {
                    tracing::warn!(%error, "cannot accept a monitoring connection");
                    tokio::time::sleep(ACCEPT_PAUSE).await;
                    continue;
                }
            },
        };
        let Ok(slot) = slots.clone().try_acquire_owned() else {
            tracing::debug!(%peer, "monitoring connection refused: too many");
            continue;
        };
        connections.spawn(connection(router.clone(), stream, peer, limits, stop.clone(), slot));
    }
    while connections.join_next().await.is_some() {}
    Ok(())
}

async fn connection(
    router: Router,
    stream: TcpStream,
    peer: SocketAddr,
    limits: Limits,
    stop: CancellationToken,
    _slot: OwnedSemaphorePermit,
) {
    let service = hyper::service::service_fn(move |request| answer(router.clone(), request, peer, limits));
    let connection = hyper::server::conn::http1::Builder::new()
        .timer(TokioTimer::new())
        .header_read_timeout(limits.header)
        .max_buf_size(64 * 1024)
        .serve_connection(TokioIo::new(stream), service);
    let mut connection = std::pin::pin!(connection);
    let result = tokio::select! {
        result = connection.as_mut() => result,
        () = stop.cancelled() => {
            connection.as_mut().graceful_shutdown();
            connection.await
        }
    };
    if let Err(error) = result {
        tracing::debug!(%peer, %error, "monitoring connection");
    }
}

async fn answer(
    router: Router,
    request: http::Request<Incoming>,
    peer: SocketAddr,
    limits: Limits,
) -> Result<Response, std::convert::Infallible> {
    let mut request = request.map(axum::body::Body::new);
    request.extensions_mut().insert(ConnectInfo(peer));
    match tokio::time::timeout(limits.request, router.oneshot(request)).await {
        Ok(answer) => answer,
        Err(_) => Ok((StatusCode::SERVICE_UNAVAILABLE, "too slow\n").into_response()),
    }
}
