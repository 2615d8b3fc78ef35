//! What the API server needs of a node for port-forwarding: a TLS port that takes WebSockets, and connects them to a port of
//! this machine. Nothing else of a kubelet.

use std::net::SocketAddr;
use std::sync::Arc;

use anyhow::{Context, Result};
use futures::{SinkExt as _, StreamExt as _};
use rustls::pki_types::{PrivateKeyDer, PrivatePkcs8KeyDer};
use serde_json::json;
use tests::lab::kube::Kube;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::{TcpListener, TcpStream};
use tokio_rustls::TlsAcceptor;
use tokio_rustls::server::TlsStream;
use tokio_tungstenite::tungstenite::Message;
use tokio_tungstenite::tungstenite::handshake::server::{Request, Response};
use tokio_util::task::AbortOnDropHandle;

/// The data and the error channel of the only port.
const DATA: u8 = 0;
const ERROR: u8 = 1;

/// The node that the lab's pods are on, until it is dropped.
pub(crate) struct Kubelet(#[expect(dead_code, reason = "ends with it")] AbortOnDropHandle<()>);

impl Kubelet {
    /// Forwards the port that is asked for to `target`, whichever pod is named; any other port is refused as by a
    /// kubelet.
    pub(crate) async fn start(kube: &Kube, port: u16, target: SocketAddr) -> Result<Self> {
        let listener = TcpListener::bind("127.0.0.1:0").await?;
        let endpoint = listener.local_addr()?;
        kube.put(json!({
            "apiVersion": "v1", "kind": "Node", "metadata": {"name": "node-0"},
            "status": {
                "addresses": [{"type": "InternalIP", "address": endpoint.ip()}],
                "daemonEndpoints": {"kubeletEndpoint": {"Port": endpoint.port()}},
            },
        }))
        .await?;
        let acceptor = acceptor()?;
        let serving = async move {
            while let Ok((stream, _)) = listener.accept().await {
                let acceptor = acceptor.clone();
                tokio::spawn(async move {
                    let stream = acceptor.accept(stream).await.context("TLS")?;
                    forward(stream, port, target).await
                });
            }
        };
        Ok(Self(AbortOnDropHandle::new(tokio::spawn(serving))))
    }
}

fn acceptor() -> Result<TlsAcceptor> {
    let key = rcgen::KeyPair::generate()?;
    let params = rcgen::CertificateParams::new(vec!["127.0.0.1".to_owned()])?;
    let certificate = params.self_signed(&key)?.der().clone();
    let key = PrivateKeyDer::Pkcs8(PrivatePkcs8KeyDer::from(key.serialize_der()));
    let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
    let config =
        rustls::ServerConfig::builder_with_provider(provider).with_safe_default_protocol_versions()?;
    let config = config.with_no_client_auth().with_single_cert(vec![certificate], key)?;
    Ok(TlsAcceptor::from(Arc::new(config)))
}

async fn forward(stream: TlsStream<TcpStream>, port: u16, target: SocketAddr) -> Result<()> {
    let mut asked = 0;
    #[expect(clippy::result_large_err, reason = "the trait's type")]
    let answer = |request: &Request, mut response: Response| {
        let query = request.uri().query().unwrap_or_default();
        let ports = query.split('&').find_map(|part| part.strip_prefix("port="));
        asked = ports.and_then(|ports| ports.parse().ok()).unwrap_or(0);
        response.headers_mut().insert("sec-websocket-protocol", "v4.channel.k8s.io".parse().expect("a name"));
        Ok(response)
    };
    let socket = tokio_tungstenite::accept_hdr_async(stream, answer).await?;
    let (mut send, mut received) = socket.split();
    for channel in [DATA, ERROR] {
        let [low, high] = u16::to_le_bytes(asked);
        send.send(Message::binary(vec![channel, low, high])).await?;
    }
    if asked != port {
        let mut error = vec![ERROR];
        error.extend(format!("nothing listens on {asked}").into_bytes());
        send.send(Message::binary(error)).await?;
        return Ok(send.close().await?);
    }
    let (mut from_pod, mut to_pod) = TcpStream::connect(target).await?.into_split();
    let inwards = async {
        while let Some(Ok(message)) = received.next().await {
            let data = message.into_data();
            if data.first() == Some(&DATA) {
                to_pod.write_all(&data[1..]).await?;
            }
        }
        anyhow::Ok(())
    };
    let outwards = async {
        let mut buffer = vec![0; 16 * 1024];
        loop {
            let read = from_pod.read(&mut buffer).await?;
            if read == 0 {
                return anyhow::Ok(send.close().await?);
            }
            let mut message = vec![DATA];
            message.extend(&buffer[..read]);
            send.send(Message::binary(message)).await?;
        }
    };
    tokio::select! {
        done = inwards => done,
        done = outwards => done,
    }
}
