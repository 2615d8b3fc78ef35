//! What the kubelet runs in an agent's container beside the agent: waiting until the workload is ready, and telling callers
//! to go elsewhere before it ends. Judges nothing itself.

use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use clap::Subcommand;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;

use crate::admin;

/// Between two looks.
const PAUSE: Duration = Duration::from_millis(100);
/// For one look.
const LOOK: Duration = Duration::from_secs(2);

/// What a pod's lifecycle hooks call in the agent's container
#[derive(Clone, Debug, Subcommand)]
pub enum Sidecar {
    /// Wait until the agent beside says that the workload is ready
    #[command(after_help = "Examples:\n  countersign sidecar wait --timeout 60")]
    Wait {
        /// Port of /healthz/ready
        #[arg(long, env = "COUNTERSIGN_HEALTH_PORT", value_name = "PORT", default_value_t = 15021)]
        port: u16,
        /// Seconds until it is given up
        #[arg(long, env = "COUNTERSIGN_WAIT_TIMEOUT", value_name = "SECONDS", default_value_t = 300)]
        timeout: u64,
    },
    /// Have Envoy tell its callers to go elsewhere; what is under way goes on, and new calls are still served
    #[command(after_help = "Examples:\n  countersign sidecar drain")]
    Drain {
        /// The agent's socket, beside which Envoy's is
        #[arg(
            long,
            env = "COUNTERSIGN_SDS_SOCKET",
            value_name = "PATH",
            default_value = "/run/countersign/sds.sock"
        )]
        sds_socket: PathBuf,
    },
}

#[derive(Debug, thiserror::Error)]
pub enum SidecarError {
    #[error("the workload is not ready after {0} s")]
    NotReady(u64),
    #[error("Envoy cannot be told")]
    Envoy(#[source] std::io::Error),
    #[error("Envoy answers {0}")]
    Answer(u16),
}

/// Does it.
///
/// # Errors
/// If it cannot be done (in time).
pub async fn run(what: Sidecar) -> Result<(), SidecarError> {
    match what {
        Sidecar::Wait { port, timeout } => wait(port, timeout).await,
        Sidecar::Drain { sds_socket } => drain(&sds_socket).await,
    }
}

async fn wait(port: u16, timeout: u64) -> Result<(), SidecarError> {
    let end = Instant::now() + Duration::from_secs(timeout);
    loop {
        if matches!(tokio::time::timeout(LOOK, ready(port)).await, Ok(Ok(true))) {
            return Ok(());
        }
        if Instant::now() >= end {
            return Err(SidecarError::NotReady(timeout));
        }
        tokio::time::sleep(PAUSE).await;
    }
}

async fn ready(port: u16) -> std::io::Result<bool> {
    let mut stream = TcpStream::connect(("127.0.0.1", port)).await?;
    stream.write_all(b"GET /healthz/ready HTTP/1.1\r\nhost: localhost\r\nconnection: close\r\n\r\n").await?;
    let mut answer = Vec::new();
    stream.take(1024).read_to_end(&mut answer).await?;
    Ok(answer.starts_with(b"HTTP/1.1 200"))
}

async fn drain(sds_socket: &Path) -> Result<(), SidecarError> {
    let socket = sds_socket.with_file_name(crate::state::ADMIN_SOCKET);
    let answer = admin::request(&socket, "POST", "/healthcheck/fail").await.map_err(SidecarError::Envoy)?;
    if answer.status == 200 { Ok(()) } else { Err(SidecarError::Answer(answer.status)) }
}
