//! Asks the application, from inside of its network namespace, what the kubelet wants to know: by the address that the
//! kubelet would use, as a connection that Envoy would make, so that an application which serves others answers this too.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::time::Duration;

use http::header::{HeaderValue, USER_AGENT};
use http::uri::PathAndQuery;
use http::{HeaderMap, HeaderName, StatusCode};
use prost::Message;
use tokio::net::TcpSocket;
use tonic::transport::Endpoint;

use super::{Question, What};

/// Where our connections come from, so that they are not redirected (semantics §3.1).
const SOURCE_V4: Ipv4Addr = Ipv4Addr::new(127, 0, 0, 6);
const SOURCE_V6: Ipv6Addr = Ipv6Addr::new(0, 0, 0, 0, 0, 0, 0, 6);
/// Bytes of metrics that are read.
const PAGE: usize = 32 << 20;
const PAGE_TIMEOUT: Duration = Duration::from_secs(8);

/// grpc.health.v1.HealthCheckRequest
#[derive(Clone, PartialEq, Eq, Message)]
struct Check {
    #[prost(string, tag = "1")]
    service: String,
}

/// grpc.health.v1.HealthCheckResponse
#[derive(Clone, PartialEq, Eq, Message)]
struct Checked {
    #[prost(int32, tag = "1")]
    status: i32,
}

const SERVING: i32 = 1;

/// One application's.
#[derive(Debug)]
pub(super) struct Asker {
    address: IpAddr,
    source: Option<IpAddr>,
    client: reqwest::Client,
}

impl Asker {
    /// For the application at `address`, whose traffic is captured or not.
    pub(super) fn new(address: IpAddr, captured: bool) -> Result<Self, reqwest::Error> {
        let source = captured.then_some(match address {
            IpAddr::V4(_) => IpAddr::V4(SOURCE_V4),
            IpAddr::V6(_) => IpAddr::V6(SOURCE_V6),
        });
        let client = reqwest::Client::builder()
            .no_proxy()
            .redirect(reqwest::redirect::Policy::none())
            .local_address(source)
            .pool_max_idle_per_host(0)
            // As the kubelet does: it has no roots to check an application by, and learns a status at most.
            .tls_danger_accept_invalid_certs(true)
            .build()?;
        Ok(Self { address, source, client })
    }

    /// The answer's status.
    pub(super) async fn ask(
        &self,
        question: &Question,
        agent: Option<&HeaderValue>,
    ) -> Result<StatusCode, String> {
        let Question { what, timeout_seconds } = question;
        let patience = Duration::from_secs((*timeout_seconds).clamp(1, 300));
        let answer = async {
            match what {
                What::Http { port, path, https, headers } => {
                    self.http(*port, path, *https, headers, agent).await
                }
                What::Tcp { port } => self.tcp(*port).await,
                What::Grpc { port, service } => self.grpc(*port, service).await,
            }
        };
        tokio::time::timeout(patience, answer).await.map_err(|_| "too slow".to_owned())?
    }

    fn url(&self, scheme: &str, port: u16, path: &str) -> String {
        format!("{scheme}://{}{path}", SocketAddr::new(self.address, port))
    }

    async fn http(
        &self,
        port: u16,
        path: &str,
        https: bool,
        headers: &[(String, String)],
        agent: Option<&HeaderValue>,
    ) -> Result<StatusCode, String> {
        let mut all = HeaderMap::new();
        all.extend(agent.map(|agent| (USER_AGENT, agent.clone())));
        for (name, value) in headers {
            let name = HeaderName::try_from(name.as_str()).map_err(|error| error.to_string())?;
            let value = HeaderValue::try_from(value.as_str()).map_err(|error| error.to_string())?;
            // The kubelet's own words give way to those of the probe.
            if name == USER_AGENT {
                all.insert(name, value);
            } else {
                all.append(name, value);
            }
        }
        let url = self.url(if https { "https" } else { "http" }, port, path);
        let answer = self.client.get(url).headers(all).send().await;
        answer.map(|answer| answer.status()).map_err(|error| reason(&error))
    }

    async fn tcp(&self, port: u16) -> Result<StatusCode, String> {
        let connect = async {
            let socket = if self.address.is_ipv4() { TcpSocket::new_v4()? } else { TcpSocket::new_v6()? };
            if let Some(source) = self.source {
                socket.bind(SocketAddr::new(source, 0))?;
            }
            socket.connect(SocketAddr::new(self.address, port)).await
        };
        connect.await.map(|_| StatusCode::OK).map_err(|error| error.to_string())
    }

    async fn grpc(&self, port: u16, service: &str) -> Result<StatusCode, String> {
        let endpoint = Endpoint::from_shared(self.url("http", port, "")).map_err(|error| reason(&error))?;
        let channel = endpoint.local_address(self.source).connect().await.map_err(|error| reason(&error))?;
        let mut client = tonic::client::Grpc::new(channel);
        client.ready().await.map_err(|error| reason(&error))?;
        let path = PathAndQuery::from_static("/grpc.health.v1.Health/Check");
        let request = tonic::Request::new(Check { service: service.to_owned() });
        let codec = tonic_prost::ProstCodec::<Check, Checked>::default();
        let answer = client.unary(request, path, codec).await.map_err(|status| status.to_string())?;
        let serving = answer.get_ref().status == SERVING;
        Ok(if serving { StatusCode::OK } else { StatusCode::SERVICE_UNAVAILABLE })
    }

    /// The application's metrics, as text.
    pub(super) async fn page(&self, port: u16, path: &str) -> Result<String, String> {
        let request = self.client.get(self.url("http", port, path)).timeout(PAGE_TIMEOUT);
        text(request.header(http::header::ACCEPT, "text/plain;version=0.0.4").send().await).await
    }
}

/// The body of a good answer, up to a size.
pub(super) async fn text(answer: Result<reqwest::Response, reqwest::Error>) -> Result<String, String> {
    let mut answer = answer.and_then(reqwest::Response::error_for_status).map_err(|error| reason(&error))?;
    let mut bytes = Vec::new();
    while let Some(part) = answer.chunk().await.map_err(|error| reason(&error))? {
        if bytes.len() + part.len() > PAGE {
            return Err("too long".to_owned());
        }
        bytes.extend_from_slice(&part);
    }
    String::from_utf8(bytes).map_err(|_| "no text".to_owned())
}

/// The last cause, which says what happened.
fn reason(error: &dyn std::error::Error) -> String {
    let mut last = error;
    while let Some(source) = last.source() {
        last = source;
    }
    last.to_string()
}
