//! HTTPS for one caller that matters among any number that do not: TLS with a certificate that may change at any time,
//! HTTP/1.1 and HTTP/2, and a limit on everything. When there are too many connections, the oldest gives way, so that a
//! flood displaces itself. Knows nothing of policies.

use std::collections::VecDeque;
use std::convert::Infallible;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use http::{Method, Request, Response, StatusCode, header};
use http_body_util::{BodyExt as _, Full};
use hyper::body::{Body as _, Incoming};
use hyper::service::service_fn;
use hyper_util::rt::{TokioExecutor, TokioIo, TokioTimer};
use rustls::ServerConfig;
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::Semaphore;
use tokio::task::{AbortHandle, JoinSet};
use tokio::time::timeout;
use tokio_rustls::TlsAcceptor;
use tokio_rustls::server::TlsStream;
use tokio_util::sync::CancellationToken;

use super::Webhook;

/// What there is to ask, and how. Everybody who reaches the port may: the API server shows no certificate.
pub const ROUTES: [(&str, &str); 3] = [("POST", "/validate"), ("POST", INJECT), ("GET", "/ready")];
/// Asks for a pod with its sidecar.
const INJECT: &str = "/inject";

/// What the port grants its callers.
#[derive(Clone, Copy, Debug)]
pub struct Limits {
    /// Connections at once, unfinished handshakes among them; one more ends the oldest.
    pub connections: usize,
    /// For the handshake, and for a request's header to arrive whole.
    pub handshake: Duration,
    /// For a request's body to arrive whole.
    pub body: Duration,
    /// For an answer to be made; the API server waits 5 seconds.
    pub answer: Duration,
    /// After which a connection ends when its answers are sent.
    pub age: Duration,
    /// Bytes of a body. etcd takes objects of 1.5 MiB, and an update brings two.
    pub body_bytes: usize,
    /// Bytes of all bodies that are arriving or being worked on.
    pub all_bytes: usize,
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            connections: 256,
            handshake: Duration::from_secs(5),
            body: Duration::from_secs(3),
            answer: Duration::from_secs(4),
            age: Duration::from_secs(600),
            body_bytes: 3 * 1024 * 1024 + 64 * 1024,
            all_bytes: 32 * 1024 * 1024,
        }
    }
}

/// Waited after a failed accept, so that running out of descriptors does not become a busy loop.
const ACCEPT_PAUSE: Duration = Duration::from_millis(20);
/// HTTP/2 requests at once on one connection.
const STREAMS: u32 = 64;
/// Bytes of a request's header.
const HEADER_BYTES: usize = 16 * 1024;

#[derive(Clone)]
struct Shared {
    webhook: Webhook,
    tls: TlsAcceptor,
    /// Bytes that bodies may still take.
    room: Arc<Semaphore>,
    stop: CancellationToken,
}

pub(super) async fn serve(
    webhook: Webhook,
    listener: TcpListener,
    stop: CancellationToken,
) -> std::io::Result<()> {
    let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
    let config = ServerConfig::builder_with_provider(provider).with_safe_default_protocol_versions();
    let config = config.map_err(std::io::Error::other)?.with_no_client_auth();
    let mut config = config.with_cert_resolver(webhook.certificates());
    config.alpn_protocols = vec![b"h2".to_vec(), b"http/1.1".to_vec()];
    let room = Arc::new(Semaphore::new(webhook.limits.all_bytes));
    let shared = Shared { webhook, tls: TlsAcceptor::from(Arc::new(config)), room, stop: stop.clone() };
    let mut connections = JoinSet::new();
    let mut order: VecDeque<AbortHandle> = VecDeque::new();
    loop {
        let accepted = tokio::select! {
            () = stop.cancelled() => break,
            Some(_) = connections.join_next() => continue,
            accepted = listener.accept() => accepted,
        };
        order.retain(|connection| !connection.is_finished());
        match accepted {
            Ok((stream, peer)) => {
                while order.len() >= shared.webhook.limits.connections.max(1) {
                    displace(&shared, &mut order);
                }
                order.push_back(connections.spawn(connection(shared.clone(), stream, peer)));
            }
            Err(error) => {
                tracing::debug!(%error, "cannot accept a webhook connection");
                displace(&shared, &mut order);
                tokio::time::sleep(ACCEPT_PAUSE).await;
            }
        }
    }
    // Whoever is slow must not hold up the end of the process.
    let patience = shared.webhook.limits.answer;
    let all = async { while connections.join_next().await.is_some() {} };
    let _ = timeout(patience, all).await;
    Ok(())
}

fn displace(shared: &Shared, order: &mut VecDeque<AbortHandle>) {
    if let Some(oldest) = order.pop_front() {
        oldest.abort();
        shared.webhook.metrics.refused.inc();
    }
}

async fn connection(shared: Shared, stream: TcpStream, peer: SocketAddr) {
    let limits = shared.webhook.limits;
    // Answers are small, and the API server waits for them.
    let _ = stream.set_nodelay(true);
    let tls = match timeout(limits.handshake, shared.tls.accept(stream)).await {
        Ok(Ok(tls)) => tls,
        Ok(Err(error)) => {
            shared.webhook.metrics.refused.inc();
            return tracing::debug!(%peer, %error, "webhook handshake failed");
        }
        Err(_) => {
            shared.webhook.metrics.refused.inc();
            return tracing::debug!(%peer, "webhook handshake took too long");
        }
    };
    let result = if tls.get_ref().1.alpn_protocol() == Some(b"h2") {
        second(shared, tls, peer).await
    } else {
        first(shared, tls, peer).await
    };
    if let Err(error) = result {
        tracing::debug!(%peer, %error, "webhook connection");
    }
}

/// Until the process is to stop, or the connection is old.
async fn end(shared: &Shared) {
    tokio::select! {
        () = shared.stop.cancelled() => {}
        () = tokio::time::sleep(shared.webhook.limits.age) => {}
    }
}

async fn first(shared: Shared, tls: TlsStream<TcpStream>, peer: SocketAddr) -> hyper::Result<()> {
    let service = {
        let shared = shared.clone();
        service_fn(move |request| respond(shared.clone(), request, peer))
    };
    let mut builder = hyper::server::conn::http1::Builder::new();
    builder
        .timer(TokioTimer::new())
        .header_read_timeout(shared.webhook.limits.handshake)
        .max_buf_size(HEADER_BYTES);
    let mut connection = std::pin::pin!(builder.serve_connection(TokioIo::new(tls), service));
    tokio::select! {
        result = connection.as_mut() => return result,
        () = end(&shared) => connection.as_mut().graceful_shutdown(),
    }
    connection.await
}

async fn second(shared: Shared, tls: TlsStream<TcpStream>, peer: SocketAddr) -> hyper::Result<()> {
    let service = {
        let shared = shared.clone();
        service_fn(move |request| respond(shared.clone(), request, peer))
    };
    let mut builder = hyper::server::conn::http2::Builder::new(TokioExecutor::new());
    builder
        .timer(TokioTimer::new())
        .keep_alive_interval(Duration::from_secs(20))
        .keep_alive_timeout(Duration::from_secs(10))
        .max_concurrent_streams(STREAMS)
        .max_header_list_size(u32::try_from(HEADER_BYTES).unwrap_or(u32::MAX))
        .max_pending_accept_reset_streams(32);
    let mut connection = std::pin::pin!(builder.serve_connection(TokioIo::new(tls), service));
    tokio::select! {
        result = connection.as_mut() => return result,
        () = end(&shared) => connection.as_mut().graceful_shutdown(),
    }
    connection.await
}

type Answer = Response<Full<Bytes>>;

async fn respond(shared: Shared, request: Request<Incoming>, peer: SocketAddr) -> Result<Answer, Infallible> {
    let known = ROUTES.iter().filter(|(_, path)| *path == request.uri().path()).collect::<Vec<_>>();
    if known.is_empty() {
        return Ok(text(StatusCode::NOT_FOUND, "not found\n"));
    }
    if !known.iter().any(|(method, _)| *method == request.method().as_str()) {
        return Ok(text(StatusCode::METHOD_NOT_ALLOWED, "another method is needed\n"));
    }
    if request.method() == Method::GET {
        let ready = shared.webhook.ready();
        return Ok(match ready {
            true => text(StatusCode::OK, "ready\n"),
            false => text(StatusCode::SERVICE_UNAVAILABLE, "there is no certificate yet\n"),
        });
    }
    Ok(judge(shared, request, peer).await.unwrap_or_else(|refusal| refusal))
}

async fn judge(shared: Shared, request: Request<Incoming>, peer: SocketAddr) -> Result<Answer, Answer> {
    let json = request.headers().get(header::CONTENT_TYPE).is_some_and(|kind| {
        kind.to_str()
            .is_ok_and(|kind| kind.split(';').next().is_some_and(|kind| kind.trim() == "application/json"))
    });
    if !json {
        return Err(text(StatusCode::UNSUPPORTED_MEDIA_TYPE, "application/json is understood\n"));
    }
    let limits = shared.webhook.limits;
    let inject = request.uri().path() == INJECT;
    let (body, _room) = match timeout(limits.body, collect(&shared, request.into_body())).await {
        Ok(body) => body?,
        Err(_) => return Err(text(StatusCode::REQUEST_TIMEOUT, "the body did not arrive in time\n")),
    };
    let caller = peer.ip().to_canonical();
    let answer = async {
        match inject {
            true => shared.webhook.inject(body).await,
            false => shared.webhook.review(body, caller).await,
        }
    };
    match timeout(limits.answer, answer).await {
        Ok(Ok(review)) => {
            let mut response = text(StatusCode::OK, review.to_string());
            let kind = header::HeaderValue::from_static("application/json");
            response.headers_mut().insert(header::CONTENT_TYPE, kind);
            Ok(response)
        }
        Ok(Err(why)) => {
            tracing::warn!(%peer, ?why, "not an admission review");
            Err(text(StatusCode::BAD_REQUEST, why + "\n"))
        }
        Err(_) => Err(text(StatusCode::SERVICE_UNAVAILABLE, "too busy\n")),
    }
}

/// Gives back its bytes when the request is answered.
type Room = Vec<tokio::sync::OwnedSemaphorePermit>;

/// The whole body; what it takes of the common room grows as it arrives, so that promising much costs others nothing.
async fn collect(shared: &Shared, mut body: Incoming) -> Result<(Vec<u8>, Room), Answer> {
    let limit = shared.webhook.limits.body_bytes;
    let too_large = || text(StatusCode::PAYLOAD_TOO_LARGE, format!("a body has at most {limit} bytes\n"));
    if body.size_hint().lower() > limit as u64 {
        return Err(too_large());
    }
    let (mut bytes, mut room) = (Vec::new(), Room::new());
    while let Some(frame) = body.frame().await {
        let frame = frame.map_err(|_| text(StatusCode::BAD_REQUEST, "the body broke off\n"))?;
        let Ok(data) = frame.into_data() else { continue };
        if bytes.len() + data.len() > limit {
            return Err(too_large());
        }
        let count = u32::try_from(data.len()).unwrap_or(u32::MAX);
        let taken = shared.room.clone().try_acquire_many_owned(count);
        room.push(taken.map_err(|_| text(StatusCode::SERVICE_UNAVAILABLE, "too busy\n"))?);
        bytes.extend_from_slice(&data);
    }
    Ok((bytes, room))
}

fn text(status: StatusCode, text: impl Into<String>) -> Answer {
    let mut response = Response::new(Full::new(Bytes::from(text.into())));
    *response.status_mut() = status;
    response
}
