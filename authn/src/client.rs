//! gRPC channels to our own servers.
//!
//! Connects and proves both identities; retrying and backing off is the caller's business.

use std::{io, sync::Arc, time::Duration};

use hyper_util::rt::TokioIo;
use nix::sys::socket::{setsockopt, sockopt};
use rustls::{ClientConfig, pki_types::ServerName};
use tokio::net::{TcpSocket, TcpStream};
use tokio_rustls::{TlsConnector, client::TlsStream};
use tonic::transport::{Channel, Endpoint};

/// Longest time for name resolution, TCP and TLS together.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(5);
/// A server that answers no ping for interval plus timeout is given up.
const KEEPALIVE_INTERVAL: Duration = Duration::from_secs(20);
const KEEPALIVE_TIMEOUT: Duration = Duration::from_secs(10);

/// Opens TCP and TLS to `address` (`HOST:PORT`), trying each address of the name in turn.
///
/// `mark` is set on the socket (SO_MARK), so that traffic capture lets it pass; it needs CAP_NET_ADMIN.
pub async fn dial(
    address: &str,
    config: Arc<ClientConfig>,
    mark: Option<u32>,
) -> io::Result<TlsStream<TcpStream>> {
    let connect = async {
        let tcp = open(address, mark).await?;
        let name = ServerName::IpAddress(tcp.peer_addr()?.ip().into());
        TlsConnector::from(config).connect(name, tcp).await
    };
    tokio::time::timeout(CONNECT_TIMEOUT, connect).await?
}

async fn open(address: &str, mark: Option<u32>) -> io::Result<TcpStream> {
    let mut last = io::Error::new(io::ErrorKind::NotFound, format!("{address} has no address"));
    for address in tokio::net::lookup_host(address).await? {
        let socket = if address.is_ipv4() { TcpSocket::new_v4()? } else { TcpSocket::new_v6()? };
        if let Some(mark) = mark {
            setsockopt(&socket, sockopt::Mark, &mark)?;
        }
        socket.set_nodelay(true)?;
        match socket.connect(address).await {
            Ok(stream) => return Ok(stream),
            Err(error) => last = error,
        }
    }
    Err(last)
}

/// A channel to `address` (`HOST:PORT`), connected. It reconnects by itself when the connection is lost.
pub async fn connect(
    address: &str,
    config: Arc<ClientConfig>,
    mark: Option<u32>,
) -> Result<Channel, tonic::transport::Error> {
    endpoint(address)?.connect_with_connector(connector(address, config, mark)).await
}

/// The same, connecting at the first call.
pub fn connect_lazy(
    address: &str,
    config: Arc<ClientConfig>,
    mark: Option<u32>,
) -> Result<Channel, tonic::transport::Error> {
    Ok(endpoint(address)?.connect_with_connector_lazy(connector(address, config, mark)))
}

/// The scheme is http because TLS is the connector's, not tonic's.
fn endpoint(address: &str) -> Result<Endpoint, tonic::transport::Error> {
    Ok(Endpoint::from_shared(format!("http://{address}"))?
        .connect_timeout(CONNECT_TIMEOUT)
        .http2_keep_alive_interval(KEEPALIVE_INTERVAL)
        .keep_alive_timeout(KEEPALIVE_TIMEOUT)
        .keep_alive_while_idle(true))
}

fn connector(
    address: &str,
    config: Arc<ClientConfig>,
    mark: Option<u32>,
) -> impl tower::Service<http::Uri, Response = TokioIo<TlsStream<TcpStream>>, Error = io::Error, Future: Send>
+ Send
+ 'static {
    let address: Arc<str> = address.into();
    tower::service_fn(move |_uri: http::Uri| {
        let (address, config) = (Arc::clone(&address), Arc::clone(&config));
        async move { dial(&address, config, mark).await.map(TokioIo::new) }
    })
}
