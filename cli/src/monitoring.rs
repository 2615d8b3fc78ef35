//! Asks a running process at its monitoring address. Only HTTP GET with a deadline; no retries, those are `wait`'s.

use std::net::SocketAddr;
use std::time::Duration;

use anyhow::{Context, Result, bail};
use controller::Report;
use http_body_util::{BodyExt, Empty, Limited};
use hyper_util::rt::TokioIo;
use tokio::net::TcpStream;

/// For one question and its answer.
const DEADLINE: Duration = Duration::from_secs(10);
/// Bytes of an answer.
const LARGEST: usize = 256 << 20;

/// Flags of every command that asks a running process.
#[derive(Clone, Debug, clap::Args)]
pub(crate) struct MonitoringArgs {
    /// Monitoring address of the control plane; a bare port is on this machine. The status is told to callers on the
    /// same machine only
    #[arg(
        long,
        env = "COUNTERSIGN_MONITORING_ADDR",
        default_value = "127.0.0.1:15014",
        value_name = "ADDR",
        value_parser = address
    )]
    pub(crate) monitoring_addr: SocketAddr,
}

fn address(text: &str) -> Result<SocketAddr, String> {
    if let Ok(port) = text.parse::<u16>() {
        return Ok(([127, 0, 0, 1], port).into());
    }
    text.parse().map_err(|_| "not ADDRESS:PORT".to_owned())
}

/// Status and body of `GET path`.
///
/// # Errors
/// If nobody answers in time.
pub(crate) async fn get(addr: SocketAddr, path: &str) -> Result<(http::StatusCode, String)> {
    let question = async {
        let stream = TcpStream::connect(addr).await?;
        let (mut sender, connection) = hyper::client::conn::http1::handshake(TokioIo::new(stream)).await?;
        let connection = tokio::spawn(connection);
        let request = http::Request::get(path)
            .header(http::header::HOST, addr.to_string())
            .body(Empty::<hyper::body::Bytes>::new())?;
        let answer = sender.send_request(request).await?;
        let status = answer.status();
        let body = Limited::new(answer.into_body(), LARGEST).collect().await;
        connection.abort();
        let body = body.map_err(|error| anyhow::anyhow!(error))?.to_bytes();
        Ok::<_, anyhow::Error>((status, String::from_utf8_lossy(&body).into_owned()))
    };
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
pub(crate) async fn report(args: &MonitoringArgs) -> Result<Report> {
    let (status, body) = get(args.monitoring_addr, "/status").await?;
    if status != http::StatusCode::OK {
        bail!("http://{}/status: {status}: {}", args.monitoring_addr, body.trim());
    }
    serde_json::from_str(&body).context("the status cannot be read; is it of another version?")
}
