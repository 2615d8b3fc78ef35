//! Envoy's secret discovery on a Unix socket: `default` (the workload's certificate), `ROOTCA` (the trust bundle), and files
//! that DestinationRules name. Answers nobody but this user's and Envoy's processes; gets nothing itself.

mod files;
mod secrets;
mod service;

use std::fs;
use std::io;
use std::os::unix::fs::FileTypeExt;
use std::path::{Path, PathBuf};

use envoy_types::pb::envoy::service::secret::v3::secret_discovery_service_server::SecretDiscoveryServiceServer;
use nix::fcntl::AT_FDCWD;
use nix::sys::stat::{FchmodatFlags, Mode, fchmodat};
use tokio::net::UnixListener;
use tokio::sync::watch;
use tokio_stream::wrappers::UnixListenerStream;
use tokio_util::sync::CancellationToken;
use tonic::service::interceptor::InterceptedService;
use tonic::transport::Server as GrpcServer;
use tonic::transport::server::UdsConnectInfo;
use tonic::{Request, Status};

pub(crate) use secrets::{KeyPair, Secrets};

/// Streams of one connection, bytes of one request: Envoy needs two small ones.
const STREAMS: u32 = 64;
const MESSAGE_BYTES: usize = 64 << 10;
const HEADER_BYTES: u32 = 16 << 10;

#[derive(Debug, thiserror::Error)]
pub enum SdsError {
    #[error("{} is there and is no socket", .0.display())]
    Taken(PathBuf),
    #[error("another agent serves certificates on {}", .0.display())]
    InUse(PathBuf),
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
    /// Binds `path` (0600), replacing a socket that an earlier agent left. Only processes of `uids` are answered;
    /// the last of them gets the socket.
    pub(crate) fn bind(
        path: &Path,
        uids: Vec<u32>,
        secrets: watch::Receiver<Secrets>,
    ) -> Result<Self, SdsError> {
        let error = |source| SdsError::Listen { path: path.to_owned(), source };
        match fs::symlink_metadata(path) {
            // Only a socket that nobody listens on is a left-over.
            Ok(meta) if meta.file_type().is_socket() => match std::os::unix::net::UnixStream::connect(path) {
                Ok(_) => return Err(SdsError::InUse(path.to_owned())),
                Err(_) => fs::remove_file(path).map_err(error)?,
            },
            Ok(_) => return Err(SdsError::Taken(path.to_owned())),
            Err(e) if e.kind() == io::ErrorKind::NotFound => {}
            Err(e) => return Err(error(e)),
        }
        let listener = UnixListener::bind(path).map_err(error)?;
        // The folder may be the other user's: a name in it is never followed elsewhere.
        let mode = Mode::S_IRUSR | Mode::S_IWUSR;
        fchmodat(AT_FDCWD, path, mode, FchmodatFlags::NoFollowSymlink).map_err(|e| error(e.into()))?;
        std::os::unix::fs::lchown(path, uids.last().copied(), None).map_err(error)?;
        Ok(Self { listener, uids, secrets })
    }

    pub(crate) async fn run(self, stop: CancellationToken) -> Result<(), tonic::transport::Error> {
        let Self { listener, uids, secrets } = self;
        let service = SecretDiscoveryServiceServer::new(service::Service::new(secrets, stop.clone()))
            .max_decoding_message_size(MESSAGE_BYTES);
        // An accept that fails (no descriptors left) is tonic's to retry.
        GrpcServer::builder()
            .max_concurrent_streams(STREAMS)
            .http2_max_header_list_size(HEADER_BYTES)
            .add_service(InterceptedService::new(service, move |request| allowed(request, &uids)))
            .serve_with_incoming_shutdown(UnixListenerStream::new(listener), stop.cancelled_owned())
            .await
    }
}

/// Lets through only what a process of `uids` sent, by the kernel's word (SO_PEERCRED).
fn allowed(request: Request<()>, uids: &[u32]) -> Result<Request<()>, Status> {
    let peer = request.extensions().get::<UdsConnectInfo>().and_then(|info| info.peer_cred);
    match peer {
        Some(peer) if uids.contains(&peer.uid()) => Ok(request),
        Some(peer) => {
            let (uid, pid) = (peer.uid(), peer.pid());
            tracing::warn!(uid, pid, "a process of another user asked for certificates: refused");
            Err(Status::permission_denied(format!("certificates are not for user {uid}")))
        }
        None => Err(Status::permission_denied("certificates are not for a user that is not known")),
    }
}

#[cfg(test)]
mod tests;
