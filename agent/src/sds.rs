//! Envoy's secret discovery on a Unix socket: `default` (the workload's certificate) and `ROOTCA` (the trust bundle). Answers
//! nobody but this user's and Envoy's processes; gets nothing itself.

mod secrets;
mod service;

use std::fs;
use std::io;
use std::os::unix::fs::{FileTypeExt, PermissionsExt};
use std::path::{Path, PathBuf};

use envoy_types::pb::envoy::service::secret::v3::secret_discovery_service_server::SecretDiscoveryServiceServer;
use tokio::net::{UnixListener, UnixStream};
use tokio::sync::watch;
use tokio_stream::StreamExt as _;
use tokio_stream::wrappers::UnixListenerStream;
use tokio_util::sync::CancellationToken;
use tonic::transport::Server as GrpcServer;

pub(crate) use secrets::{KeyPair, Secrets};

/// Streams of one connection, bytes of one request: Envoy needs two small ones.
const STREAMS: u32 = 64;
const MESSAGE_BYTES: usize = 64 << 10;

#[derive(Debug, thiserror::Error)]
pub enum SdsError {
    #[error("{} is there and is no socket", .0.display())]
    Taken(PathBuf),
    #[error("cannot serve certificates on {}", path.display())]
    Listen { path: PathBuf, source: io::Error },
}

/// The SDS server, bound.
pub(crate) struct Server {
    listener: UnixListener,
    uids: Vec<u32>,
    secrets: watch::Receiver<Secrets>,
}

impl Server {
    /// Binds `path`, replacing a socket that an earlier agent left. Only `uids` may connect.
    pub(crate) fn bind(
        path: &Path,
        uids: Vec<u32>,
        secrets: watch::Receiver<Secrets>,
    ) -> Result<Self, SdsError> {
        let error = |source| SdsError::Listen { path: path.to_owned(), source };
        match fs::symlink_metadata(path) {
            Ok(meta) if meta.file_type().is_socket() => fs::remove_file(path).map_err(error)?,
            Ok(_) => return Err(SdsError::Taken(path.to_owned())),
            Err(e) if e.kind() == io::ErrorKind::NotFound => {}
            Err(e) => return Err(error(e)),
        }
        let listener = UnixListener::bind(path).map_err(error)?;
        // The folder is 0700; the uid check below is what decides.
        let mode = if uids.len() > 1 { 0o666 } else { 0o600 };
        fs::set_permissions(path, fs::Permissions::from_mode(mode)).map_err(error)?;
        Ok(Self { listener, uids, secrets })
    }

    pub(crate) async fn run(self, stop: CancellationToken) -> Result<(), tonic::transport::Error> {
        let Self { listener, uids, secrets } = self;
        let incoming = UnixListenerStream::new(listener).filter(move |connection| match connection {
            Ok(stream) => allowed(stream, &uids),
            Err(_) => true,
        });
        let service = SecretDiscoveryServiceServer::new(service::Service::new(secrets, stop.clone()))
            .max_decoding_message_size(MESSAGE_BYTES);
        GrpcServer::builder()
            .max_concurrent_streams(STREAMS)
            .add_service(service)
            .serve_with_incoming_shutdown(incoming, stop.cancelled_owned())
            .await
    }
}

/// Whether the process at the other end may have our keys, by the kernel's word.
fn allowed(stream: &UnixStream, uids: &[u32]) -> bool {
    match stream.peer_cred() {
        Ok(peer) if uids.contains(&peer.uid()) => true,
        Ok(peer) => {
            tracing::warn!(
                uid = peer.uid(),
                pid = peer.pid(),
                "a process of another user asked for certificates: refused"
            );
            false
        }
        Err(error) => {
            tracing::warn!(%error, "a process whose user is not known asked for certificates: refused");
            false
        }
    }
}

#[cfg(test)]
mod tests;
