//! One call as one of the shop's workloads makes it, and what came of it. Nothing is retried.

use std::error::Error;
use std::fmt;
use std::net::SocketAddr;
use std::sync::Arc;
use std::task::{Context as Task, Poll};
use std::time::{Duration, Instant};

use anyhow::Result;
use api::countersign::echo::v1::SayRequest;
use api::countersign::echo::v1::echo_client::EchoClient;
use bytes::Bytes;
use http::{Request, Response, header};
use http_body_util::{BodyExt, Full};
use hyper::body::Incoming;
use hyper::client::conn::{http1, http2};
use hyper_util::rt::{TokioExecutor, TokioIo};
use rustls::ClientConfig;
use rustls::pki_types::ServerName;
use tokio::io::{AsyncBufReadExt, AsyncRead, AsyncWrite, AsyncWriteExt, BufReader};
use tokio::net::TcpStream;
use tokio::task::JoinHandle;
use tokio_rustls::TlsConnector;
use tonic::body::Body;

use super::credentials::{Certificate, Login, Mint, Token};
use super::shop::{DATABASE, FORWARD, Shop};

/// How long one call may take.
const TIMEOUT: Duration = Duration::from_secs(5);

/// How a call is made.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum How {
    /// HTTP/1.1 through the caller's own Envoy.
    Http { to: &'static str, method: &'static str, path: &'static str, token: Option<Token> },
    /// gRPC `Say` through the caller's own Envoy.
    Say { to: &'static str, token: Option<Token>, tenant: Option<&'static str> },
    /// A line to a port of the database through the caller's own Envoy.
    Line { port: u16 },
    /// `POST /orders/42` straight at the Envoy of orders: with TLS, or without.
    Direct { tls: Option<Certificate> },
}

/// What came of a call.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Outcome {
    Http(u16),
    /// A status code of gRPC.
    Grpc(i32),
    /// A line came back.
    Answered,
    /// The connection was closed without an answer.
    Closed,
    TlsRefused,
    /// Never expected.
    Failed(String),
}

impl fmt::Display for Outcome {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Http(status) => write!(f, "{status}"),
            Self::Grpc(0) => f.pad("OK"),
            Self::Grpc(7) => f.pad("DENIED (7)"),
            Self::Grpc(16) => f.pad("UNAUTH (16)"),
            Self::Grpc(code) => write!(f, "gRPC {code}"),
            Self::Answered => f.pad("answered"),
            Self::Closed => f.pad("closed"),
            Self::TlsRefused => f.pad("TLS refused"),
            Self::Failed(why) => f.pad(why),
        }
    }
}

/// A call that was made.
#[derive(Clone, Debug)]
pub(super) struct Made {
    pub(super) outcome: Outcome,
    pub(super) latency: Duration,
    /// Finds the call in an access log.
    pub(super) id: String,
    /// The caller's end of a connection straight to the called Envoy.
    pub(super) from: Option<SocketAddr>,
    /// The TLS alert that refused it.
    pub(super) alert: Option<String>,
    pub(super) body: String,
}

/// Makes calls.
#[derive(Debug)]
pub(super) struct Calls {
    pub(super) shop: Shop,
    pub(super) login: Login,
    pub(super) mint: Mint,
}

/// Why there was no answer.
struct Refused {
    outcome: Outcome,
    alert: Option<String>,
}

impl Refused {
    /// A TLS alert if there is one among the causes, else a closed connection.
    fn from(error: &(dyn Error + 'static)) -> Self {
        let mut cause = Some(error);
        while let Some(error) = cause {
            let inner = error.downcast_ref::<std::io::Error>().and_then(std::io::Error::get_ref);
            let tls = error.downcast_ref().or_else(|| inner.and_then(|e| e.downcast_ref::<rustls::Error>()));
            if let Some(tls) = tls {
                return Self { outcome: Outcome::TlsRefused, alert: Some(alert(tls)) };
            }
            if let Some(found @ Self { outcome: Outcome::TlsRefused, .. }) = inner.map(|e| Self::from(e)) {
                return found;
            }
            cause = error.source();
        }
        Self { outcome: Outcome::Closed, alert: None }
    }
}

/// `AlertReceived(CertificateExpired)` as words.
fn alert(error: &rustls::Error) -> String {
    let rustls::Error::AlertReceived(alert) = error else { return error.to_string() };
    let mut words = String::new();
    for letter in format!("{alert:?}").chars() {
        if letter.is_uppercase() && !words.is_empty() {
            words.push(' ');
        }
        words.extend(letter.to_lowercase());
    }
    words.replace("c a", "CA")
}

trait Io: AsyncRead + AsyncWrite + Send + Unpin {}
impl<T: AsyncRead + AsyncWrite + Send + Unpin> Io for T {}

impl Calls {
    /// Makes the call as `caller`; `id` marks it in access logs.
    pub(super) async fn make(&self, caller: &str, how: How, id: &str) -> Made {
        let started = Instant::now();
        let mut from = None;
        let exchange = async {
            match how {
                How::Http { to, method, path, token } => self.http(caller, to, method, path, token, id).await,
                How::Say { to, token, tenant } => self.say(caller, to, token, tenant, id).await,
                How::Line { port } => self.line(caller, port).await,
                How::Direct { tls } => self.direct(tls, id, &mut from).await,
            }
        };
        let answer = match tokio::time::timeout(TIMEOUT, exchange).await {
            Ok(answer) => answer,
            Err(_) => Err(Refused { outcome: Outcome::Failed("no answer".to_owned()), alert: None }),
        };
        let latency = started.elapsed();
        let (outcome, body, alert) = match answer {
            Ok((outcome, body)) => (outcome, body, None),
            Err(Refused { outcome, alert }) => (outcome, String::new(), alert),
        };
        Made { outcome, latency, id: id.to_owned(), from, alert, body }
    }

    async fn http(
        &self,
        caller: &str,
        to: &str,
        method: &str,
        path: &str,
        token: Option<Token>,
        id: &str,
    ) -> Result<(Outcome, String), Refused> {
        let stream = dial(self.shop.on(caller, FORWARD)).await?;
        let mut request = Request::builder().method(method).uri(path).header(header::HOST, to);
        request = request.header("x-request-id", id);
        if let Some(token) = token {
            request = request.header(header::AUTHORIZATION, self.bearer(token)?);
        }
        let mut connection = Connection::over(stream).await?;
        connection.send(request.body(Full::default()).map_err(|e| Refused::from(&e))?).await
    }

    async fn say(
        &self,
        caller: &str,
        to: &str,
        token: Option<Token>,
        tenant: Option<&str>,
        id: &str,
    ) -> Result<(Outcome, String), Refused> {
        let stream = dial(self.shop.on(caller, FORWARD)).await?;
        let (sender, driver) = http2::handshake(TokioExecutor::new(), TokioIo::new(stream))
            .await
            .map_err(|e| Refused::from(&e))?;
        let driver = tokio::spawn(async move { drop(driver.await) });
        let origin = format!("http://{to}").parse().map_err(|e: http::uri::InvalidUri| Refused::from(&e))?;
        let mut client = EchoClient::with_origin(OneConnection(sender), origin);
        let mut request = tonic::Request::new(SayRequest { text: "hello".to_owned() });
        let mut add = |name: &'static str, value: &str| {
            let value = value.parse().expect("tokens and names of tenants are ASCII");
            request.metadata_mut().insert(name, value);
        };
        add("x-request-id", id);
        if let Some(token) = token {
            add("authorization", &self.bearer(token)?);
        }
        if let Some(tenant) = tenant {
            add("x-tenant", tenant);
        }
        let answer = client.say(request).await;
        driver.abort();
        Ok(match answer {
            Ok(answer) => (Outcome::Grpc(0), answer.into_inner().text),
            Err(status) => (Outcome::Grpc(status.code() as i32), status.message().to_owned()),
        })
    }

    async fn line(&self, caller: &str, port: u16) -> Result<(Outcome, String), Refused> {
        let local = DATABASE.iter().find(|(own, _)| *own == port).expect("a port of the database").1;
        let mut stream = BufReader::new(dial(self.shop.on(caller, local)).await?);
        stream.get_mut().write_all(b"get 42\n").await.map_err(|e| Refused::from(&e))?;
        let mut answer = String::new();
        stream.read_line(&mut answer).await.map_err(|e| Refused::from(&e))?;
        let outcome = if answer.ends_with('\n') { Outcome::Answered } else { Outcome::Closed };
        Ok((outcome, answer))
    }

    async fn direct(
        &self,
        tls: Option<Certificate>,
        id: &str,
        from: &mut Option<SocketAddr>,
    ) -> Result<(Outcome, String), Refused> {
        let mut connection = self.connect_to_orders(tls, from).await?;
        connection.send(order("POST", id)).await
    }

    /// A keep-alive connection straight to the Envoy of orders.
    async fn connect_to_orders(
        &self,
        tls: Option<Certificate>,
        from: &mut Option<SocketAddr>,
    ) -> Result<Connection, Refused> {
        let stream = dial(self.shop.on("orders", 8080)).await?;
        *from = stream.local_addr().ok();
        match tls {
            Some(which) => {
                let failed =
                    |e: anyhow::Error| Refused { outcome: Outcome::Failed(e.to_string()), alert: None };
                Connection::over(handshake(self.mint.client(which).map_err(failed)?, stream).await?).await
            }
            None => Connection::over(stream).await,
        }
    }

    /// A keep-alive connection straight to the Envoy of orders, with the payment service's own certificate.
    ///
    /// # Errors
    /// What there was instead.
    pub(super) async fn live(&self) -> Result<Connection, Outcome> {
        self.connect_to_orders(Some(Certificate::Payment), &mut None).await.map_err(|refused| refused.outcome)
    }

    fn bearer(&self, token: Token) -> Result<String, Refused> {
        let token = self.login.token(token);
        token
            .map(|token| format!("Bearer {token}"))
            .map_err(|e| Refused { outcome: Outcome::Failed(e.to_string()), alert: None })
    }
}

/// `METHOD /orders/42` for the Envoy of orders.
pub(super) fn order(method: &str, id: &str) -> Request<Full<Bytes>> {
    let request =
        Request::builder().method(method).uri("/orders/42").header(header::HOST, "orders.default:8080");
    request.header("x-request-id", id).body(Full::default()).expect("fixed parts are valid")
}

/// The status and the body of a GET; [`Outcome::Closed`] if nobody listens.
pub(super) async fn get(address: SocketAddr, path: &str) -> (Outcome, String) {
    let exchange = async {
        let mut connection = Connection::over(dial(address).await?).await?;
        let request = Request::get(path).header(header::HOST, address.to_string()).body(Full::default());
        connection.send(request.map_err(|e| Refused::from(&e))?).await
    };
    exchange.await.unwrap_or_else(|refused| (refused.outcome, String::new()))
}

async fn dial(to: SocketAddr) -> Result<TcpStream, Refused> {
    let stream = TcpStream::connect(to).await.map_err(|e| Refused::from(&e))?;
    stream.set_nodelay(true).map_err(|e| Refused::from(&e))?;
    Ok(stream)
}

async fn handshake(config: ClientConfig, stream: TcpStream) -> Result<impl Io, Refused> {
    let name = ServerName::try_from("orders.default.svc.cluster.local").expect("a valid name");
    TlsConnector::from(Arc::new(config)).connect(name, stream).await.map_err(|error| {
        let Refused { outcome: _, alert } = Refused::from(&error);
        Refused { outcome: Outcome::TlsRefused, alert }
    })
}

/// One HTTP/1.1 connection.
#[derive(Debug)]
pub(super) struct Connection {
    sender: http1::SendRequest<Full<Bytes>>,
    /// Moves the bytes; it alone learns why a connection broke.
    driver: Option<JoinHandle<hyper::Result<()>>>,
}

impl Connection {
    async fn over(stream: impl Io + 'static) -> Result<Self, Refused> {
        let (sender, driver) = http1::handshake(TokioIo::new(stream)).await.map_err(|e| Refused::from(&e))?;
        Ok(Self { sender, driver: Some(tokio::spawn(driver)) })
    }

    async fn send(&mut self, request: Request<Full<Bytes>>) -> Result<(Outcome, String), Refused> {
        let exchange = async {
            self.sender.ready().await?;
            let response = self.sender.send_request(request).await?;
            let outcome = Outcome::Http(response.status().as_u16());
            let body = response.into_body().collect().await?.to_bytes();
            Ok::<_, hyper::Error>((outcome, String::from_utf8_lossy(&body).into_owned()))
        };
        match exchange.await {
            Ok(answer) => Ok(answer),
            Err(error) => match self.driver.take() {
                Some(driver) => match driver.await {
                    Ok(Err(cause)) => Err(Refused::from(&cause)),
                    _ => Err(Refused::from(&error)),
                },
                None => Err(Refused::from(&error)),
            },
        }
    }

    /// One more request on the same connection.
    pub(super) async fn again(&mut self, request: Request<Full<Bytes>>) -> Outcome {
        self.send(request).await.map_or_else(|refused| refused.outcome, |(outcome, _)| outcome)
    }
}

impl Drop for Connection {
    fn drop(&mut self) {
        if let Some(driver) = &self.driver {
            driver.abort();
        }
    }
}

/// gRPC over one HTTP/2 connection that is never opened again.
struct OneConnection(http2::SendRequest<Body>);

impl tonic::codegen::Service<Request<Body>> for OneConnection {
    type Response = Response<Incoming>;
    type Error = hyper::Error;
    type Future = std::pin::Pin<Box<dyn Future<Output = Result<Self::Response, Self::Error>> + Send>>;

    fn poll_ready(&mut self, task: &mut Task<'_>) -> Poll<Result<(), hyper::Error>> {
        self.0.poll_ready(task)
    }

    fn call(&mut self, request: Request<Body>) -> Self::Future {
        Box::pin(self.0.send_request(request))
    }
}
