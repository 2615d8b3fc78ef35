//! Asks a running control plane: at its monitoring address, or through a cluster. Only HTTP GET with a deadline; no
//! retries, those are `wait`'s.

use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::time::Duration;

use anyhow::{Context, Result, bail};
use controller::Report;
use http_body_util::{BodyExt, Empty, Limited};
use hyper_util::rt::TokioIo;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::TcpStream;

use crate::cluster::{Cluster, ClusterArgs};
use crate::plugin;

/// For one question and its answer.
const DEADLINE: Duration = Duration::from_secs(10);
/// Bytes of an answer.
const LARGEST: usize = 256 << 20;

/// The monitoring address where nobody says otherwise.
const DEFAULT: SocketAddr = SocketAddr::new(IpAddr::V4(Ipv4Addr::LOCALHOST), 15014);
/// To see whether somebody listens on this machine.
const PROBE: Duration = Duration::from_millis(300);

/// Flags of every command that asks a control plane: the one on this machine, or that of a cluster.
#[derive(Clone, Debug, clap::Args)]
pub(crate) struct MonitoringArgs {
    /// Ask the control plane at this monitoring address; a bare port is on this machine. The status is told to callers on
    /// the same machine only [default: 127.0.0.1:15014 if somebody listens there, else the cluster of the kubeconfig]
    #[arg(
        long,
        env = "COUNTERSIGN_MONITORING_ADDR",
        value_name = "ADDR",
        value_parser = address
    )]
    pub(crate) monitoring_addr: Option<SocketAddr>,
    #[command(flatten)]
    pub(crate) cluster: ClusterArgs,
    /// Namespace of the control plane in the cluster
    #[arg(
        short = 'i',
        long,
        env = "COUNTERSIGN_NAMESPACE",
        default_value = "istio-system",
        value_name = "NS"
    )]
    pub(crate) control_plane_namespace: String,
}

/// Which control plane is asked.
#[derive(Clone, Debug)]
pub(crate) enum Target {
    Here(SocketAddr),
    Cluster(Cluster),
}

impl MonitoringArgs {
    /// By flags; without any, as kubectl's plugin the cluster, else this machine if somebody answers there or there is no
    /// kubeconfig.
    ///
    /// # Errors
    /// If a cluster is asked for and there is no usable kubeconfig.
    pub(crate) async fn target(&self) -> Result<Target> {
        let connect = || self.cluster.connect(&self.control_plane_namespace);
        // The address may come from the environment, a cluster is always asked for on purpose.
        if self.cluster.given() {
            return Ok(Target::Cluster(connect().await?));
        }
        if let Some(address) = self.monitoring_addr {
            return Ok(Target::Here(address));
        }
        if plugin::called() != plugin::Called::Countersign {
            return Ok(Target::Cluster(connect().await?));
        }
        if matches!(tokio::time::timeout(PROBE, TcpStream::connect(DEFAULT)).await, Ok(Ok(_))) {
            return Ok(Target::Here(DEFAULT));
        }
        Ok(connect().await.map_or(Target::Here(DEFAULT), Target::Cluster))
    }

    /// The address on this machine, where no cluster is asked for.
    pub(crate) fn here(&self) -> Option<SocketAddr> {
        let plugin = plugin::called() != plugin::Called::Countersign;
        let default = (!plugin).then_some(DEFAULT);
        if self.cluster.given() { None } else { self.monitoring_addr.or(default) }
    }
}

impl Target {
    /// What each replica says; without a name on this machine.
    ///
    /// # Errors
    /// If one of them does not answer, or says no.
    pub(crate) async fn reports(&self) -> Result<Vec<(Option<String>, Report)>> {
        match self {
            Self::Here(address) => Ok(vec![(None, report(*address).await?)]),
            Self::Cluster(cluster) => {
                Ok(cluster.reports().await?.into_iter().map(|(pod, report)| (Some(pod), report)).collect())
            }
        }
    }
}

fn address(text: &str) -> Result<SocketAddr, String> {
    if let Ok(port) = text.parse::<u16>() {
        return Ok(([127, 0, 0, 1], port).into());
    }
    text.parse().map_err(|_| "not ADDRESS:PORT".to_owned())
}

/// Status and body of `GET path` on a connection that is open, from `host`. Has no deadline of its own.
///
/// # Errors
/// If the answer is none, or too long.
pub(crate) async fn ask(
    stream: impl AsyncRead + AsyncWrite + Unpin + Send + 'static,
    host: String,
    path: &str,
) -> Result<(http::StatusCode, String)> {
    let (mut sender, connection) = hyper::client::conn::http1::handshake(TokioIo::new(stream)).await?;
    let connection = tokio::spawn(connection);
    let request =
        http::Request::get(path).header(http::header::HOST, host).body(Empty::<hyper::body::Bytes>::new())?;
    let answer = sender.send_request(request).await?;
    let status = answer.status();
    let body = Limited::new(answer.into_body(), LARGEST).collect().await;
    connection.abort();
    let body = body.map_err(|error| anyhow::anyhow!(error))?.to_bytes();
    Ok((status, String::from_utf8_lossy(&body).into_owned()))
}

/// Status and body of `GET path`.
///
/// # Errors
/// If nobody answers in time.
pub(crate) async fn get(addr: SocketAddr, path: &str) -> Result<(http::StatusCode, String)> {
    let question = async { ask(TcpStream::connect(addr).await?, addr.to_string(), path).await };
    tokio::time::timeout(DEADLINE, question)
        .await
        .context("no answer in time")
        .flatten()
        .with_context(|| format!("http://{addr}{path}"))
}

/// What `/status` says.
///
/// # Errors
/// If nobody answers, or says no.
pub(crate) async fn report(address: SocketAddr) -> Result<Report> {
    let (status, body) = get(address, "/status").await?;
    if status != http::StatusCode::OK {
        bail!("http://{address}/status: {status}: {}", body.trim());
    }
    serde_json::from_str(&body).context("the status cannot be read; is it of another version?")
}
