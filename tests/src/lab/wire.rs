//! What really goes over the wire to an endpoint: a server of the test's own that looks at the first bytes of each connection
//! before anything answers them, and then is whoever the test says, or passes everything on to a real pod.
//!
//! It enforces nothing: it asks for a certificate of the mesh and takes any, so that whatever a client's proxy refuses, the
//! proxy refused.

use std::io;
use std::net::SocketAddr;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use anyhow::{Context, Result};
use bytes::Bytes;
use http::{Request, Response};
use http_body_util::Full;
use hyper::body::Incoming;
use hyper::service::service_fn;
use hyper_util::rt::{TokioExecutor, TokioIo};
use rustls::server::Acceptor;
use tokio::io::{AsyncBufReadExt, AsyncRead, AsyncWrite, AsyncWriteExt, BufReader};
use tokio::net::TcpStream;
use tokio::sync::watch;
use tokio::task::JoinSet;

use super::Lab;
use super::net::Namespace;
use super::pki::Leaf;

/// How long a client may take to send its first bytes.
const FIRST: Duration = Duration::from_secs(5);
/// Enough for any ClientHello.
const HELLO: usize = 16 * 1024;

/// What a connection began with.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum First {
    Tls {
        /// Empty: none was named.
        sni: String,
        alpn: Vec<String>,
    },
    Http1,
    Http2,
    /// Whatever else was sent.
    Bytes,
    /// Nothing came, or not yet.
    Nothing,
}

impl First {
    pub fn is_tls(&self) -> bool {
        matches!(self, Self::Tls { .. })
    }

    /// Bytes that anybody on the way can read.
    pub fn is_plaintext(&self) -> bool {
        matches!(self, Self::Http1 | Self::Http2 | Self::Bytes)
    }
}

/// One connection.
#[derive(Clone, Debug)]
pub struct Seen {
    /// The port it came to.
    pub port: u16,
    pub first: First,
    /// Whose certificate the client showed, once the handshake was done.
    pub peer: Option<String>,
    /// Requests or lines that arrived. What is passed on is not looked into.
    pub requests: usize,
    /// Whether it still is open.
    pub open: bool,
}

/// What becomes of a connection once its first bytes were seen.
#[derive(Clone, Debug)]
enum Server {
    /// Answered with the name, over TLS with this configuration or in plaintext, as the client begins.
    Answers { name: Arc<str>, tls: Arc<rustls::ServerConfig> },
    /// Passed on to the same port of that address.
    PassesOn { from: Namespace, to: std::net::Ipv4Addr },
}

/// The server, until it is dropped.
#[derive(Debug)]
pub struct Wire {
    pub at: Namespace,
    shared: Arc<Shared>,
    _tasks: JoinSet<()>,
}

#[derive(Debug)]
struct Shared {
    server: Mutex<Server>,
    seen: Mutex<Vec<Seen>>,
    /// Grows when open connections are to end.
    turn: watch::Sender<u64>,
}

impl Wire {
    /// Answers on these ports at `at` as the SPIFFE ID `identity`: HTTP/1.1 and HTTP/2 with 200 and the identity, anything
    /// else line by line.
    ///
    /// # Errors
    /// If a port is taken, or no certificate can be made.
    pub async fn answering(lab: &Lab, at: &Namespace, ports: &[u16], identity: &str) -> Result<Self> {
        Self::start(at, ports, answers(lab, identity)?).await
    }

    /// Passes everything on from `at` to the same ports of `to`, once its first bytes were seen.
    ///
    /// # Errors
    /// If a port is taken.
    pub async fn passing_on(at: &Namespace, ports: &[u16], to: &Namespace) -> Result<Self> {
        Self::start(at, ports, Server::PassesOn { from: at.clone(), to: to.v4 }).await
    }

    async fn start(at: &Namespace, ports: &[u16], server: Server) -> Result<Self> {
        let turn = watch::Sender::new(0);
        let shared = Arc::new(Shared { server: Mutex::new(server), seen: Mutex::default(), turn });
        let mut tasks = JoinSet::new();
        for port in ports {
            let listener = at.listen(SocketAddr::from((at.v4, *port))).await?;
            let (port, shared) = (*port, shared.clone());
            tasks.spawn(async move {
                let mut connections = JoinSet::new();
                while let Ok((stream, _)) = listener.accept().await {
                    stream.set_nodelay(true).ok();
                    connections.spawn(connection(stream, port, shared.clone()));
                    while connections.try_join_next().is_some() {}
                }
            });
        }
        Ok(Self { at: at.clone(), shared, _tasks: tasks })
    }

    /// Somebody else answers at this address from now on: open connections end, as when one pod makes way for another.
    ///
    /// # Errors
    /// If no certificate can be made.
    pub fn becomes(&self, lab: &Lab, identity: &str) -> Result<()> {
        *lock(&self.shared.server) = answers(lab, identity)?;
        self.shared.turn.send_modify(|turn| *turn += 1);
        Ok(())
    }

    /// Every connection so far, in order.
    pub fn seen(&self) -> Vec<Seen> {
        lock(&self.shared.seen).clone()
    }

    /// Those that came to one port.
    pub fn seen_on(&self, port: u16) -> Vec<Seen> {
        let mut seen = self.seen();
        seen.retain(|seen| seen.port == port);
        seen
    }

    /// Requests and lines that arrived, over all connections.
    pub fn requests(&self) -> usize {
        self.seen().iter().map(|seen| seen.requests).sum()
    }
}

fn answers(lab: &Lab, identity: &str) -> Result<Server> {
    let mesh = lab.authority()?;
    let credential = mesh.mint(&Leaf::new([identity.to_owned()]))?;
    let alpn = ["istio-h2", "h2", "istio-http/1.1", "http/1.1", "istio-peer-exchange", "istio"];
    let tls = credential.server(&mesh.root_pem, &alpn)?.context("a server needs a certificate")?;
    Ok(Server::Answers { name: identity.into(), tls: Arc::new(tls) })
}

fn lock<T>(mutex: &Mutex<T>) -> std::sync::MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// One connection's line in the record.
#[derive(Clone, Debug)]
struct Record(Arc<Shared>, usize);

impl Record {
    fn edit(&self, edit: impl FnOnce(&mut Seen)) {
        edit(&mut lock(&self.0.seen)[self.1]);
    }
}

async fn connection(mut stream: TcpStream, port: u16, shared: Arc<Shared>) {
    // Who answers is settled when the connection comes, not when its first bytes do.
    let mut turn = shared.turn.subscribe();
    let server = lock(&shared.server).clone();
    let record = {
        let mut seen = lock(&shared.seen);
        seen.push(Seen { port, first: First::Nothing, peer: None, requests: 0, open: true });
        Record(shared.clone(), seen.len() - 1)
    };
    let first = tokio::time::timeout(FIRST, first(&stream)).await;
    let first = first.ok().and_then(Result::ok).unwrap_or(First::Nothing);
    record.edit(|seen| seen.first = first.clone());
    let serve = async {
        match server {
            Server::Answers { name, tls } => answer(stream, &first, &name, tls, &record).await,
            Server::PassesOn { from, to } => {
                if let Ok(mut on) = from.dial((to, port).into()).await {
                    tokio::io::copy_bidirectional(&mut stream, &mut on).await.ok();
                }
            }
        }
    };
    tokio::select! {
        () = serve => {}
        _ = turn.changed() => {}
    }
    record.edit(|seen| seen.open = false);
}

/// Looks without taking anything away.
async fn first(stream: &TcpStream) -> io::Result<First> {
    let mut buffer = vec![0; HELLO];
    loop {
        let read = stream.peek(&mut buffer).await?;
        let bytes = &buffer[..read];
        match bytes {
            [] => return Ok(First::Nothing),
            [0x16, ..] => {
                if let Some(hello) = hello(bytes) {
                    return Ok(hello);
                }
            }
            _ if bytes.starts_with(b"PRI * HTTP/2.0") => return Ok(First::Http2),
            _ if bytes.windows(9).any(|w| w == b" HTTP/1.1") => return Ok(First::Http1),
            _ if bytes.contains(&b'\n') => return Ok(First::Bytes),
            _ => {}
        }
        // More is on its way; what is there already would wake us at once.
        tokio::time::sleep(Duration::from_millis(1)).await;
    }
}

/// `None`: not all of it is there yet.
fn hello(mut bytes: &[u8]) -> Option<First> {
    let mut acceptor = Acceptor::default();
    acceptor.read_tls(&mut bytes).ok()?;
    match acceptor.accept() {
        Ok(Some(accepted)) => {
            let hello = accepted.client_hello();
            let alpn = hello.alpn().into_iter().flatten();
            let alpn = alpn.map(|name| String::from_utf8_lossy(name).into_owned()).collect();
            Some(First::Tls { sni: hello.server_name().unwrap_or_default().to_owned(), alpn })
        }
        Ok(None) => None,
        Err(_) => Some(First::Bytes),
    }
}

async fn answer(
    stream: TcpStream,
    first: &First,
    name: &Arc<str>,
    tls: Arc<rustls::ServerConfig>,
    record: &Record,
) {
    match first {
        First::Nothing => {}
        First::Http1 | First::Http2 => http(stream, name, record).await,
        First::Bytes => lines(stream, name, record).await,
        First::Tls { .. } => {
            let Ok(stream) = tokio_rustls::TlsAcceptor::from(tls).accept(stream).await else { return };
            let (_, session) = stream.get_ref();
            let leaf = session.peer_certificates().and_then(<[_]>::first);
            let peer = leaf.and_then(|leaf| spiffe::Leaf::parse(leaf).ok());
            record.edit(|seen| seen.peer = peer.map(|svid| svid.id.as_str().to_owned()));
            let is_http = session.alpn_protocol().is_some_and(|name| {
                [b"istio-h2".as_slice(), b"h2", b"istio-http/1.1", b"http/1.1"].contains(&name)
            });
            if is_http {
                http(stream, name, record).await;
            } else {
                lines(stream, name, record).await;
            }
        }
    }
}

async fn http(
    stream: impl AsyncRead + AsyncWrite + Send + Unpin + 'static,
    name: &Arc<str>,
    record: &Record,
) {
    let service = service_fn(|_: Request<Incoming>| {
        record.edit(|seen| seen.requests += 1);
        let answer = Response::new(Full::new(Bytes::from(name.to_string())));
        async move { Ok::<_, std::convert::Infallible>(answer) }
    });
    let server = hyper_util::server::conn::auto::Builder::new(TokioExecutor::new());
    server.serve_connection(TokioIo::new(stream), service).await.ok();
}

async fn lines(stream: impl AsyncRead + AsyncWrite + Unpin, name: &str, record: &Record) {
    let mut stream = BufReader::new(stream);
    loop {
        let mut line = String::new();
        match stream.read_line(&mut line).await {
            Ok(1..) => {}
            _ => return,
        }
        record.edit(|seen| seen.requests += 1);
        if stream.get_mut().write_all(format!("{name}> {line}").as_bytes()).await.is_err() {
            return;
        }
    }
}
