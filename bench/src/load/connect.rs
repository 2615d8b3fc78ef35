//! One gRPC stream over one HTTP/2 connection of its own, as a sidecar has it. Framing only; knows no messages.

use std::net::{IpAddr, SocketAddr};
use std::pin::Pin;
use std::sync::Arc;

use anyhow::{Context as _, Result, bail, ensure};
use bytes::{Buf as _, BufMut as _, Bytes, BytesMut};
use h2::client::ResponseFuture;
use h2::{RecvStream, SendStream};
use rustls::pki_types::ServerName;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::TcpSocket;

use super::proxy::Variant;

/// What a client lets a server send unread, of one stream and of the connection. As generous as Envoy: a sidecar that is
/// slow to read is not what is measured.
const STREAM_WINDOW: u32 = 16 << 20;
const CONNECTION_WINDOW: u32 = 24 << 20;
/// Bytes before a gRPC message: a flag and the length.
const PREFIX: usize = 5;
/// No control plane's response is longer.
const LONGEST: usize = 512 << 20;

/// Where the control plane is, and how it is reached.
#[derive(Clone, Debug)]
pub struct Target {
    pub address: SocketAddr,
    /// One source address per so many streams, so that neither ports nor limits per address run out; loopback only.
    pub spread: bool,
}

/// How one connection is made.
#[derive(Clone, Debug, Default)]
pub struct Dial {
    pub from: Option<IpAddr>,
    pub tls: Option<Arc<rustls::ClientConfig>>,
    /// Lets the server send no more than this unread, and reads nothing.
    pub window: Option<u32>,
}

impl Target {
    /// The address that stream `number` comes from.
    pub fn source(&self, number: usize) -> Option<IpAddr> {
        let block = u8::try_from(number / 1000 % 200).ok()?;
        (self.spread && self.address.ip().is_loopback()).then(|| [127, 200, 1, 1 + block].into())
    }
}

trait Transport: AsyncRead + AsyncWrite + Send + Unpin {}
impl<T: AsyncRead + AsyncWrite + Send + Unpin> Transport for T {}

/// An open stream.
pub struct Stream {
    send: SendStream<Bytes>,
    receive: Receive,
    buffer: BytesMut,
}

enum Receive {
    /// Some servers answer with headers only once they have something to say.
    Headers(Pin<Box<ResponseFuture>>),
    Body(RecvStream),
}

impl std::fmt::Debug for Stream {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Stream").finish_non_exhaustive()
    }
}

impl Stream {
    /// Connects and starts the call.
    ///
    /// # Errors
    /// If there is no connection.
    pub async fn open(target: &Target, dial: &Dial, variant: Variant) -> Result<Self> {
        let socket = if target.address.is_ipv4() { TcpSocket::new_v4()? } else { TcpSocket::new_v6()? };
        if let Some(from) = dial.from {
            socket.set_reuseaddr(true)?;
            socket.bind((from, 0).into())?;
        }
        let tcp = socket.connect(target.address).await.context("connecting")?;
        tcp.set_nodelay(true)?;
        let transport: Box<dyn Transport> = match &dial.tls {
            None => Box::new(tcp),
            Some(config) => {
                let name = ServerName::IpAddress(target.address.ip().into());
                let connector = tokio_rustls::TlsConnector::from(config.clone());
                Box::new(connector.connect(name, tcp).await.context("TLS")?)
            }
        };
        let (mut client, connection) = h2::client::Builder::new()
            .initial_window_size(dial.window.unwrap_or(STREAM_WINDOW))
            .initial_connection_window_size(
                dial.window.map_or(CONNECTION_WINDOW, |window| window.max(65_535)),
            )
            .enable_push(false)
            .handshake::<_, Bytes>(transport)
            .await
            .context("HTTP/2")?;
        // Ends with the stream: nothing else uses the connection.
        tokio::spawn(connection);
        let method = match variant {
            Variant::Delta => "DeltaAggregatedResources",
            Variant::Sotw => "StreamAggregatedResources",
        };
        let scheme = if dial.tls.is_some() { "https" } else { "http" };
        let request = http::Request::post(format!(
            "{scheme}://{}/envoy.service.discovery.v3.AggregatedDiscoveryService/{method}",
            target.address
        ))
        .header("content-type", "application/grpc")
        .header("te", "trailers")
        .body(())?;
        let (response, send) = client.send_request(request, false).context("HTTP/2")?;
        Ok(Self { send, receive: Receive::Headers(Box::pin(response)), buffer: BytesMut::new() })
    }

    /// Sends a message.
    ///
    /// # Errors
    /// If the stream has ended.
    pub fn send(&mut self, message: &[u8]) -> Result<()> {
        let mut framed = BytesMut::with_capacity(PREFIX + message.len());
        framed.put_u8(0);
        framed.put_u32(u32::try_from(message.len()).context("a request of 4 GiB")?);
        framed.put_slice(message);
        Ok(self.send.send_data(framed.freeze(), false)?)
    }

    /// The next message; `None` once the server has ended the stream in order. Cancel safe.
    ///
    /// # Errors
    /// If the stream broke, or the server ended it with a status.
    pub async fn next(&mut self) -> Result<Option<Bytes>> {
        loop {
            if let Some(message) = self.whole()? {
                return Ok(Some(message));
            }
            match &mut self.receive {
                Receive::Headers(response) => {
                    let (head, body) = response.await?.into_parts();
                    status(&head.headers)?;
                    ensure!(head.status == 200, "HTTP {}", head.status);
                    self.receive = Receive::Body(body);
                }
                Receive::Body(body) => match body.data().await {
                    Some(data) => {
                        let data = data?;
                        body.flow_control().release_capacity(data.len())?;
                        self.buffer.extend_from_slice(&data);
                    }
                    None => {
                        if let Some(trailers) = body.trailers().await? {
                            status(&trailers)?;
                        }
                        return Ok(None);
                    }
                },
            }
        }
    }

    /// A message that is there as a whole.
    fn whole(&mut self) -> Result<Option<Bytes>> {
        let Some((prefix, _)) = self.buffer.split_first_chunk::<PREFIX>() else { return Ok(None) };
        let [compressed, length @ ..] = *prefix;
        ensure!(compressed == 0, "a compressed message");
        let length = u32::from_be_bytes(length) as usize;
        ensure!(length <= LONGEST, "a message of {length} bytes");
        if self.buffer.len() < PREFIX + length {
            self.buffer.reserve(PREFIX + length - self.buffer.len());
            return Ok(None);
        }
        self.buffer.advance(PREFIX);
        let message = self.buffer.split_to(length).freeze();
        if self.buffer.is_empty() {
            // What is kept of the message must not keep this stream's next one in the same allocation.
            self.buffer = BytesMut::new();
        }
        Ok(Some(message))
    }
}

fn status(headers: &http::HeaderMap) -> Result<()> {
    match headers.get("grpc-status").map(http::HeaderValue::as_bytes) {
        None | Some(b"0") => Ok(()),
        Some(code) => {
            let message = headers.get("grpc-message").and_then(|m| m.to_str().ok()).unwrap_or_default();
            bail!("gRPC status {}: {message}", String::from_utf8_lossy(code))
        }
    }
}
