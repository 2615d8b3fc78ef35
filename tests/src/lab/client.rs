//! Clients that dial from any namespace with any certificate, and say what came of it as an outside observer sees it.
//!
//! One connection is one value: nothing reconnects or retries behind a test's back.

use std::error::Error;
use std::fmt;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context, Result};
use bytes::Bytes;
use http::{Method, Request, Response};
use http_body_util::{BodyExt, Full};
use hyper::body::Incoming;
use hyper_util::rt::{TokioExecutor, TokioIo};
use rustls::pki_types::ServerName;
use tokio::io::{AsyncBufReadExt, AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt, BufReader};
use tokio::task::JoinHandle;

use super::grpc::{Echo, OneConnection};
use super::net::Namespace;
use super::pki::Credential;

/// How long one answer may take.
const ANSWER: Duration = Duration::from_secs(5);

/// How long a broken connection may take to say why.
const LAST_WORDS: Duration = Duration::from_millis(200);

/// What a caller saw.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Got {
    /// An HTTP status; for gRPC 200, 403 (PERMISSION_DENIED) or 401 (UNAUTHENTICATED).
    Status(u16),
    /// Another gRPC code.
    Grpc(i32),
    /// The handshake failed, or an alert followed it.
    TlsRefused,
    /// The connection was closed or reset without an answer.
    Closed,
    /// A whole line came back over raw TCP.
    Line,
    /// No answer in time: never an expected outcome.
    Timeout,
}

pub const ALLOWED: Got = Got::Status(200);
pub const DENIED: Got = Got::Status(403);
pub const UNAUTHENTICATED: Got = Got::Status(401);

impl fmt::Display for Got {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Status(status) => write!(f, "{status}"),
            Self::Grpc(code) => write!(f, "grpc-status {code}"),
            Self::TlsRefused => f.write_str("TLS refused"),
            Self::Closed => f.write_str("closed"),
            Self::Line => f.write_str("a line"),
            Self::Timeout => f.write_str("no answer"),
        }
    }
}

impl Got {
    /// What an error says: a TLS alert if there is one among its causes, else a closed connection.
    pub(super) fn from_error(error: &(dyn Error + 'static)) -> Self {
        let mut cause = Some(error);
        while let Some(error) = cause {
            let inner = error.downcast_ref::<std::io::Error>().and_then(std::io::Error::get_ref);
            if error.is::<rustls::Error>() || inner.is_some_and(|e| e.is::<rustls::Error>()) {
                return Self::TlsRefused;
            }
            if let Some(inner) = inner
                && let found @ Self::TlsRefused = Self::from_error(inner)
            {
                return found;
            }
            cause = error.source();
        }
        Self::Closed
    }
}

/// An answer with what came with it.
#[derive(Clone, Debug)]
pub struct Answer {
    pub got: Got,
    pub body: String,
}

impl Answer {
    fn failed(got: Got) -> Self {
        Self { got, body: String::new() }
    }

    /// What the application said it saw; null for an answer that is not the application's.
    pub fn seen(&self) -> serde_json::Value {
        serde_json::from_str(&self.body).unwrap_or_default()
    }
}

/// Somebody who calls: where from and with what.
#[derive(Clone, Debug)]
pub struct Caller {
    pub from: Namespace,
    pub credential: Credential,
    /// What the ClientHello names; a sidecar would say `outbound_.PORT_._.HOST`.
    pub sni: String,
    /// Instead of what a sidecar offers for the protocol.
    pub alpn: Option<&'static [&'static str]>,
}

/// A connection, with TLS or without.
pub trait Io: AsyncRead + AsyncWrite + Send + Unpin {}
impl<T: AsyncRead + AsyncWrite + Send + Unpin> Io for T {}

const HTTP1: &[&str] = &["istio-http/1.1", "istio", "http/1.1"];
const HTTP2: &[&str] = &["istio-h2", "istio", "h2"];
const TCP: &[&str] = &["istio"];

impl Caller {
    pub fn new(from: &Namespace, credential: Credential) -> Self {
        let sni = "outbound_.80_._.app.default.svc.cluster.local".to_owned();
        Self { from: from.clone(), credential, sni, alpn: None }
    }

    /// A connection for bytes that no other method here would send.
    ///
    /// # Errors
    /// What the caller saw instead of a connection.
    pub async fn connect(&self, to: SocketAddr, alpn: &[&str]) -> Result<Box<dyn Io>, Got> {
        let stream = self.from.dial(to).await.map_err(|_| Got::Closed)?;
        let tls =
            self.credential.tls(self.alpn.unwrap_or(alpn)).expect("a key fits the certificate made with it");
        let Some(config) = tls else { return Ok(Box::new(stream)) };
        let name = ServerName::try_from(self.sni.clone()).expect("a test names a valid host");
        let handshake = tokio_rustls::TlsConnector::from(Arc::new(config)).connect(name, stream);
        match tokio::time::timeout(ANSWER, handshake).await {
            Ok(Ok(stream)) => Ok(Box::new(stream)),
            // A server that closes instead of answering a ClientHello refuses the handshake as well.
            Ok(Err(_)) => Err(Got::TlsRefused),
            Err(_) => Err(Got::Timeout),
        }
    }

    /// A keep-alive connection.
    ///
    /// # Errors
    /// What the caller saw instead of a connection.
    pub async fn http1(&self, to: SocketAddr) -> Result<Http, Got> {
        let stream = self.connect(to, HTTP1).await?;
        let (sender, connection) = hyper::client::conn::http1::handshake(TokioIo::new(stream))
            .await
            .map_err(|e| Got::from_error(&e))?;
        Ok(Http { sender: Sender::One(sender), driver: tokio::spawn(connection), ended: None })
    }

    /// An HTTP/2 connection (prior knowledge).
    ///
    /// # Errors
    /// What the caller saw instead of a connection.
    pub async fn http2(&self, to: SocketAddr) -> Result<Http, Got> {
        let stream = self.connect(to, HTTP2).await?;
        let (sender, connection) =
            hyper::client::conn::http2::handshake(TokioExecutor::new(), TokioIo::new(stream))
                .await
                .map_err(|e| Got::from_error(&e))?;
        Ok(Http { sender: Sender::Two(sender), driver: tokio::spawn(connection), ended: None })
    }

    /// The echo service over a connection of its own.
    ///
    /// # Errors
    /// What the caller saw instead of a connection.
    pub async fn grpc(&self, to: SocketAddr) -> Result<Echo, Got> {
        let stream = self.connect(to, HTTP2).await?;
        let (sender, connection) =
            hyper::client::conn::http2::handshake(TokioExecutor::new(), TokioIo::new(stream))
                .await
                .map_err(|e| Got::from_error(&e))?;
        // It ends with its last sender.
        tokio::spawn(async move { drop(connection.await) });
        Ok(Echo::new(OneConnection(sender)))
    }

    /// A raw TCP connection for lines.
    ///
    /// # Errors
    /// What the caller saw instead of a connection.
    pub async fn lines(&self, to: SocketAddr) -> Result<Lines, Got> {
        Ok(Lines(BufReader::new(self.connect(to, TCP).await?)))
    }

    /// One GET over a connection of its own.
    pub async fn get(&self, to: SocketAddr, path: &str) -> Answer {
        self.send(to, get(path)).await
    }

    /// One HTTP/1.1 request over a connection of its own.
    pub async fn send(&self, to: SocketAddr, request: Request<Bytes>) -> Answer {
        match self.http1(to).await {
            Ok(mut connection) => connection.send(request).await,
            Err(got) => Answer::failed(got),
        }
    }

    /// One line over a connection of its own.
    pub async fn line(&self, to: SocketAddr, line: &str) -> Got {
        match self.lines(to).await {
            Ok(mut connection) => connection.ask(line).await,
            Err(got) => got,
        }
    }

    /// Sends bytes as they are over a connection of their own, and reads one HTTP/1.1 answer of a stated length, or what
    /// comes until the peer closes.
    pub async fn exchange(&self, to: SocketAddr, bytes: &[u8]) -> Result<Vec<u8>, Got> {
        let mut stream = self.connect(to, HTTP1).await?;
        // A peer that refuses may have closed already; what it said can still be read.
        stream.write_all(bytes).await.ok();
        let mut answer = Vec::new();
        while !is_whole(&answer) {
            match tokio::time::timeout(ANSWER, stream.read_buf(&mut answer)).await {
                Ok(Ok(1..)) => {}
                Ok(Ok(0)) => break,
                Ok(Err(error)) if answer.is_empty() => return Err(Got::from_error(&error)),
                Ok(Err(_)) => break,
                Err(_) => return Err(Got::Timeout),
            }
        }
        Ok(answer)
    }

    /// Sends bytes as they are and reads until the peer closes or is silent for `patience`.
    pub async fn raw(&self, to: SocketAddr, bytes: &[u8], patience: Duration) -> Vec<u8> {
        let Ok(mut stream) = self.connect(to, TCP).await else { return Vec::new() };
        // A peer that refuses may have closed already; what it said can still be read.
        stream.write_all(bytes).await.ok();
        let mut answer = Vec::new();
        while let Ok(Ok(1..)) = tokio::time::timeout(patience, stream.read_buf(&mut answer)).await {}
        answer
    }
}

/// Whether this is an HTTP/1.1 answer up to the end of its body, as far as its `content-length` says so.
fn is_whole(answer: &[u8]) -> bool {
    let Some(end) = answer.windows(4).position(|four| four == b"\r\n\r\n") else { return false };
    let head = String::from_utf8_lossy(&answer[..end]).to_ascii_lowercase();
    let length = head.lines().find_map(|line| line.strip_prefix("content-length: ")?.trim().parse().ok());
    length.is_some_and(|length: usize| answer.len() >= end + 4 + length)
}

/// A GET of the test application's usual host.
pub fn get(path: &str) -> Request<Bytes> {
    request(Method::GET, path)
}

/// # Panics
/// If `path` is none.
pub fn request(method: Method, path: &str) -> Request<Bytes> {
    let uri = if path.starts_with('/') { format!("http://app.example{path}") } else { path.to_owned() };
    Request::builder().method(method).uri(uri).body(Bytes::new()).expect("a test writes valid requests")
}

/// One HTTP connection.
#[derive(Debug)]
pub struct Http {
    sender: Sender,
    /// Moves the bytes; it alone learns why a connection broke.
    driver: JoinHandle<hyper::Result<()>>,
    /// What it said when it ended.
    ended: Option<Got>,
}

#[derive(Debug)]
enum Sender {
    One(hyper::client::conn::http1::SendRequest<Full<Bytes>>),
    Two(hyper::client::conn::http2::SendRequest<Full<Bytes>>),
}

impl Http {
    /// Sends a request and reads the whole answer.
    pub async fn send(&mut self, request: Request<Bytes>) -> Answer {
        let exchange = async {
            let response = self.open(request).await?;
            let status = response.status().as_u16();
            let body = match response.into_body().collect().await {
                Ok(body) => body.to_bytes(),
                Err(error) => return Err(self.broken(&error).await),
            };
            Ok(Answer { got: Got::Status(status), body: String::from_utf8_lossy(&body).into_owned() })
        };
        match tokio::time::timeout(ANSWER, exchange).await {
            Ok(Ok(answer)) => answer,
            Ok(Err(got)) => Answer::failed(got),
            Err(_) => Answer::failed(Got::Timeout),
        }
    }

    /// Sends a GET and reads the whole answer.
    pub async fn get(&mut self, path: &str) -> Answer {
        self.send(get(path)).await
    }

    /// Sends a request and leaves the answer's body to the caller.
    ///
    /// # Errors
    /// What the caller saw instead of an answer.
    pub async fn open(&mut self, request: Request<Bytes>) -> Result<Response<Incoming>, Got> {
        let (mut parts, body) = request.into_parts();
        let sent = match &mut self.sender {
            Sender::One(sender) => {
                // HTTP/1.1 to a server names the path only (RFC 9112 §3.2.1).
                if let Some(authority) = parts.uri.authority() {
                    let host = authority.as_str().parse().expect("an authority is a header value");
                    parts.headers.entry(http::header::HOST).or_insert(host);
                }
                let path = parts.uri.path_and_query().map_or("/", |p| p.as_str());
                parts.uri = path.parse().expect("it was part of a URI");
                match sender.ready().await {
                    Ok(()) => sender.send_request(Request::from_parts(parts, Full::new(body))).await,
                    Err(error) => Err(error),
                }
            }
            Sender::Two(sender) => match sender.ready().await {
                Ok(()) => sender.send_request(Request::from_parts(parts, Full::new(body))).await,
                Err(error) => Err(error),
            },
        };
        match sent {
            Ok(response) => Ok(response),
            Err(error) => Err(self.broken(&error).await),
        }
    }

    /// Why an exchange failed: what the connection ended with if it did, else `error`.
    async fn broken(&mut self, error: &hyper::Error) -> Got {
        if let Some(ended) = self.ended {
            return ended;
        }
        // A reset stream leaves an HTTP/2 connection open.
        let Ok(ended) = tokio::time::timeout(LAST_WORDS, &mut self.driver).await else {
            return Got::from_error(error);
        };
        let got = match ended {
            Ok(Err(cause)) => Got::from_error(&cause),
            _ => Got::from_error(error),
        };
        self.ended = Some(got);
        got
    }

    /// Whether the connection can take another request.
    pub fn is_open(&self) -> bool {
        !self.driver.is_finished()
    }
}

impl Drop for Http {
    fn drop(&mut self) {
        self.driver.abort();
    }
}

/// One raw TCP connection.
pub struct Lines(BufReader<Box<dyn Io>>);

impl fmt::Debug for Lines {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Lines").finish_non_exhaustive()
    }
}

impl Lines {
    /// Sends a line: [`Got::Line`] if the application's answer to it came back.
    pub async fn ask(&mut self, line: &str) -> Got {
        let exchange = async {
            self.0.get_mut().write_all(format!("{line}\n").as_bytes()).await?;
            let mut answer = String::new();
            self.0.read_line(&mut answer).await?;
            std::io::Result::Ok(answer)
        };
        match tokio::time::timeout(ANSWER, exchange).await {
            Ok(Ok(answer)) if answer.ends_with(&format!("> {line}\n")) => Got::Line,
            Ok(Ok(_)) => Got::Closed,
            Ok(Err(e)) => Got::from_error(&e),
            Err(_) => Got::Timeout,
        }
    }
}

/// The parts of a streaming answer as they come; see [`next`].
pub type Body = Incoming;

/// The next piece of a streaming body within `patience`: `None` if the stream ended or was cut.
///
/// # Errors
/// If nothing came in time.
pub async fn next(body: &mut Body, patience: Duration) -> Result<Option<Bytes>> {
    let frame = tokio::time::timeout(patience, body.frame()).await.context("a stream fell silent")?;
    Ok(frame.and_then(Result::ok).and_then(|frame| frame.into_data().ok()))
}
