//! Clients that may be anyone, from any loopback address, and send exactly what a case says.

use std::collections::HashMap;
use std::net::{Ipv4Addr, SocketAddr};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer, ServerName};
use tests::lab::{AnyServer, Authority, Leaf};
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};
use tokio::net::{TcpSocket, TcpStream};

use super::case::{Outcome, Wire};

const PATIENCE: Duration = Duration::from_secs(30);

pub(crate) trait Stream: AsyncRead + AsyncWrite + Unpin + Send {}
impl<T: AsyncRead + AsyncWrite + Unpin + Send> Stream for T {}

/// What two requests need in common to travel on one connection.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(crate) struct Peer {
    port: u16,
    source: Ipv4Addr,
    names: Vec<String>,
    sni: String,
    kind: Kind,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
enum Kind {
    Http1,
    Http2,
    Tcp,
}

impl Peer {
    pub(crate) fn of(wire: &Wire) -> Self {
        let kind = match (wire.tcp, wire.http2) {
            (true, _) => Kind::Tcp,
            (false, true) => Kind::Http2,
            (false, false) => Kind::Http1,
        };
        let Wire { port, source, peer, sni, .. } = wire;
        Self { port: *port, source: *source, names: peer.clone(), sni: sni.clone(), kind }
    }

    fn alpn(&self) -> Alpn {
        match self.kind {
            Kind::Http1 => &["istio-http/1.1", "istio", "http/1.1"],
            Kind::Http2 => &["istio-h2", "istio", "h2"],
            Kind::Tcp => &["istio-peer-exchange", "istio"],
        }
    }
}

type Alpn = &'static [&'static str];

type Configs = HashMap<(Vec<String>, Alpn), Arc<rustls::ClientConfig>>;

/// Issues certificates once per list of names.
pub(crate) struct Clients {
    authority: Authority,
    configs: Mutex<Configs>,
}

impl Clients {
    pub(crate) fn new(authority: Authority) -> Self {
        Self { authority, configs: Mutex::default() }
    }

    fn config(&self, peer: &Peer) -> Arc<rustls::ClientConfig> {
        let key = (peer.names.clone(), peer.alpn());
        let mut configs = self.configs.lock().unwrap();
        if configs.len() > 5000 {
            configs.clear();
        }
        configs.entry(key).or_insert_with(|| Arc::new(self.make(peer))).clone()
    }

    fn make(&self, peer: &Peer) -> rustls::ClientConfig {
        let (certificate, key) = self.authority.mint_pem(&Leaf::new(peer.names.clone())).unwrap();
        let chain = CertificateDer::pem_slice_iter(certificate.as_bytes()).collect::<Result<_, _>>().unwrap();
        let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
        let mut config = rustls::ClientConfig::builder_with_provider(provider.clone())
            .with_protocol_versions(&[&rustls::version::TLS13])
            .unwrap()
            .dangerous()
            .with_custom_certificate_verifier(Arc::new(AnyServer(provider)))
            .with_client_auth_cert(chain, PrivateKeyDer::from_pem_slice(key.as_bytes()).unwrap())
            .unwrap();
        config.alpn_protocols = peer.alpn().iter().map(|p| p.as_bytes().to_vec()).collect();
        config.resumption = rustls::client::Resumption::disabled();
        config
    }

    async fn connect(&self, to: Ipv4Addr, peer: &Peer) -> std::io::Result<Box<dyn Stream>> {
        let socket = TcpSocket::new_v4()?;
        socket.bind(SocketAddr::new(peer.source.into(), 0))?;
        let tcp: TcpStream = socket.connect(SocketAddr::new(to.into(), peer.port)).await?;
        tcp.set_nodelay(true)?;
        if peer.names.is_empty() {
            return Ok(Box::new(tcp));
        }
        let name = match peer.sni.as_str() {
            "" => ServerName::from(std::net::IpAddr::V4(to)),
            name => ServerName::try_from(name.to_owned()).expect("the generator makes names"),
        };
        let connector = tokio_rustls::TlsConnector::from(self.config(peer));
        Ok(Box::new(connector.connect(name, tcp).await?))
    }

    /// Sends what can share one connection, one after the other. `None` is a request that cannot be sent at all.
    pub(crate) async fn converse(
        &self,
        to: Ipv4Addr,
        peer: &Peer,
        requests: &[Sent<'_>],
    ) -> Vec<Option<(Outcome, String)>> {
        match peer.kind {
            Kind::Tcp => {
                let mut all = Vec::new();
                for _ in requests {
                    all.push(Some((self.bytes(to, peer).await, String::new())));
                }
                all
            }
            Kind::Http1 => self.http1(to, peer, requests).await,
            Kind::Http2 => self.http2(to, peer, requests).await,
        }
    }

    async fn bytes(&self, to: Ipv4Addr, peer: &Peer) -> Outcome {
        let talk = async {
            let mut stream = self.connect(to, peer).await?;
            stream.write_all(b"hello\n").await?;
            let mut buffer = [0; 6];
            stream.read_exact(&mut buffer).await?;
            std::io::Result::Ok(buffer)
        };
        match patiently(talk).await {
            Ok(buffer) if &buffer == b"hello\n" => Outcome::Echoed,
            Ok(other) => panic!("{other:?} came back"),
            Err(_) => Outcome::Closed,
        }
    }

    async fn http1(
        &self,
        to: Ipv4Addr,
        peer: &Peer,
        requests: &[Sent<'_>],
    ) -> Vec<Option<(Outcome, String)>> {
        let mut open: Option<Box<dyn Stream>> = None;
        let mut all = Vec::new();
        for request in requests {
            let text = request.text();
            let head = request.wire.method == "HEAD";
            // A connection that was kept may have been closed meanwhile; only a new one tells.
            let kept = match &mut open {
                Some(stream) => patiently(exchange(stream, &text, head)).await.ok(),
                None => None,
            };
            let answer = match kept {
                Some(answer) => Ok(answer),
                None => {
                    let fresh = async {
                        let mut stream = self.connect(to, peer).await?;
                        let answer = exchange(&mut stream, &text, head).await?;
                        open = Some(stream);
                        std::io::Result::Ok(answer)
                    };
                    patiently(fresh).await
                }
            };
            all.push(Some(match answer {
                Ok((status, body)) => (Outcome::Status(status), body),
                Err(_) => {
                    open = None;
                    (Outcome::Closed, String::new())
                }
            }));
        }
        all
    }

    async fn http2(
        &self,
        to: Ipv4Addr,
        peer: &Peer,
        requests: &[Sent<'_>],
    ) -> Vec<Option<(Outcome, String)>> {
        let mut open = None;
        let mut all = Vec::new();
        for request in requests {
            let Some(request) = request.http2() else {
                all.push(None);
                continue;
            };
            let answer = async {
                let mut sender: hyper::client::conn::http2::SendRequest<String> = match open.take() {
                    Some(sender) => sender,
                    None => {
                        let stream = hyper_util::rt::TokioIo::new(self.connect(to, peer).await?);
                        let executor = hyper_util::rt::TokioExecutor::new();
                        let handshake = hyper::client::conn::http2::handshake(executor, stream).await;
                        let (sender, connection) = handshake.map_err(std::io::Error::other)?;
                        tokio::spawn(connection);
                        sender
                    }
                };
                let answer = sender.send_request(request).await.map_err(std::io::Error::other)?;
                Ok((answer.status().as_u16(), sender))
            };
            all.push(Some(match patiently(answer).await {
                Ok((status, sender)) => {
                    open = Some(sender);
                    (Outcome::Status(status), String::new())
                }
                Err(_) => (Outcome::Closed, String::new()),
            }));
        }
        all
    }
}

/// One request as it travels, token included.
#[derive(Clone, Debug)]
pub(crate) struct Sent<'w> {
    pub(crate) wire: &'w Wire,
    pub(crate) path: String,
    pub(crate) headers: Vec<(String, String)>,
}

impl Sent<'_> {
    fn text(&self) -> Vec<u8> {
        let Wire { method, host, .. } = self.wire;
        let mut text = format!("{method} {} HTTP/1.1\r\nhost: {host}\r\n", self.path);
        if matches!(method.as_str(), "POST" | "PUT" | "PATCH") {
            text.push_str("content-length: 0\r\n");
        }
        for (name, value) in &self.headers {
            text.push_str(&format!("{name}: {value}\r\n"));
        }
        text.push_str("\r\n");
        text.into_bytes()
    }

    fn http2(&self) -> Option<http::Request<String>> {
        let uri: http::Uri = format!("http://{}{}", self.wire.host, self.path).parse().ok()?;
        // What the library would send otherwise is not what was asked for.
        if uri.path_and_query()?.as_str() != self.path || uri.authority()?.as_str() != self.wire.host {
            return None;
        }
        let mut request = http::Request::builder().method(self.wire.method.as_str()).uri(uri);
        for (name, value) in &self.headers {
            request = request.header(name, value);
        }
        request.body(String::new()).ok()
    }
}

async fn patiently<T>(what: impl Future<Output = std::io::Result<T>>) -> std::io::Result<T> {
    tokio::time::timeout(PATIENCE, what).await.expect("an answer or an end in time")
}

async fn exchange(stream: &mut Box<dyn Stream>, text: &[u8], head: bool) -> std::io::Result<(u16, String)> {
    stream.write_all(text).await?;
    let mut seen = Vec::new();
    let mut buffer = [0; 4096];
    loop {
        let n = stream.read(&mut buffer).await?;
        if n == 0 {
            return Err(std::io::ErrorKind::UnexpectedEof.into());
        }
        seen.extend_from_slice(&buffer[..n]);
        let text = String::from_utf8_lossy(&seen);
        let Some((lines, body)) = text.split_once("\r\n\r\n") else { continue };
        let length = lines
            .lines()
            .filter_map(|line| line.split_once(':'))
            .find(|(name, _)| name.eq_ignore_ascii_case("content-length"))
            .map_or(0, |(_, value)| value.trim().parse().unwrap());
        if head || body.len() >= length {
            let status = lines.split(' ').nth(1).and_then(|s| s.parse().ok());
            return Ok((status.ok_or(std::io::ErrorKind::InvalidData)?, body.to_owned()));
        }
    }
}
