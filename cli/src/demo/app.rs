//! The application behind each Envoy of the demo and of the end-to-end tests: it answers with what it saw of a call.
//!
//! Speaks HTTP/1.1 and HTTP/2 without TLS, gRPC and lines over raw TCP, on any number of listeners. It knows nothing
//! of certificates, tokens or policies: whatever is refused, an Envoy in front of it refused.

mod grpc;
mod http;
mod next;
mod tcp;

use std::fmt;
use std::io::{self, Cursor};
use std::net::SocketAddr;
use std::os::unix::fs::{DirBuilderExt, FileTypeExt, MetadataExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::str::FromStr;
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context, Result, bail};
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite};
use tokio::net::{TcpListener, UnixListener};
use tokio::sync::Semaphore;
use tokio::task::JoinSet;

use next::Next;

/// Connections served at once, over all listeners; more wait to be accepted.
const MAX_CONNECTIONS: usize = 4096;

/// Arguments of the hidden subcommand `countersign demo-app`.
#[derive(clap::Args, Clone, Debug)]
pub(crate) struct AppArgs {
    /// The name it answers with
    #[arg(long)]
    pub(crate) name: String,
    /// PROTOCOL=ADDR:PORT or PROTOCOL=unix:PATH with PROTOCOL http (HTTP/1.1, HTTP/2, gRPC), grpc, tcp (lines) or auto; can be repeated
    #[arg(long = "listen", value_name = "PROTOCOL=ADDR", required = true)]
    pub(crate) listen: Vec<Listen>,
    /// GET requests below PREFIX are also sent on: PREFIX=http://HOST:PORT/PATH or PREFIX=tcp://ADDR:PORT; can be repeated
    #[arg(long = "next", value_name = "PREFIX=URL")]
    pub(crate) next: Vec<Next>,
    /// The HTTP forward proxy through which requests are sent on (default: straight to the host of the URL)
    #[arg(long, value_name = "ADDR:PORT")]
    pub(crate) proxy: Option<SocketAddr>,
}

/// What a listener speaks.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Speaks {
    /// HTTP/1.1 and HTTP/2 with prior knowledge, gRPC by content type.
    Http,
    /// Lines, each answered by one line.
    Tcp,
    /// HTTP if the first bytes look like it, else lines.
    Auto,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Address {
    Tcp(SocketAddr),
    Unix(PathBuf),
}

/// One `--listen`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Listen {
    pub(crate) speaks: Speaks,
    pub(crate) address: Address,
}

impl FromStr for Listen {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let (protocol, address) = text.split_once('=').unwrap_or(("http", text));
        let speaks = match protocol {
            "http" | "grpc" => Speaks::Http,
            "tcp" => Speaks::Tcp,
            "auto" => Speaks::Auto,
            other => return Err(format!("unknown protocol {other}: http, grpc, tcp or auto")),
        };
        let address = match address.strip_prefix("unix:") {
            Some(path) => Address::Unix(path.into()),
            None => Address::Tcp(address.parse().map_err(|e| format!("{address}: {e}"))?),
        };
        Ok(Self { speaks, address })
    }
}

impl fmt::Display for Listen {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let protocol = match self.speaks {
            Speaks::Http => "http",
            Speaks::Tcp => "tcp",
            Speaks::Auto => "auto",
        };
        match &self.address {
            Address::Tcp(address) => write!(f, "{protocol}={address}"),
            Address::Unix(path) => write!(f, "{protocol}=unix:{}", path.display()),
        }
    }
}

/// What every connection of one application shares.
#[derive(Debug)]
struct App {
    name: String,
    next: Vec<Next>,
    proxy: Option<SocketAddr>,
}

/// A connection of either family.
trait Io: AsyncRead + AsyncWrite + Send + Unpin {}
impl<T: AsyncRead + AsyncWrite + Send + Unpin> Io for T {}
type Stream = Box<dyn Io>;

enum Listener {
    Tcp(TcpListener),
    Unix(UnixListener),
}

impl Listener {
    async fn open(address: &Address) -> io::Result<Self> {
        match address {
            Address::Tcp(address) => Ok(Self::Tcp(TcpListener::bind(address).await?)),
            Address::Unix(path) => Ok(Self::Unix(bind_unix(path)?)),
        }
    }

    async fn accept(&self) -> io::Result<Stream> {
        match self {
            Self::Tcp(listener) => {
                let (stream, _) = listener.accept().await?;
                stream.set_nodelay(true)?;
                Ok(Box::new(stream))
            }
            Self::Unix(listener) => Ok(Box::new(listener.accept().await?.0)),
        }
    }
}

/// Serves until the process is told to stop.
///
/// # Errors
/// If a listener cannot be opened.
pub(crate) async fn run(args: AppArgs) -> Result<()> {
    let AppArgs { name, listen, next, proxy } = args;
    let app = Arc::new(App { name, next, proxy });
    let room = Arc::new(Semaphore::new(MAX_CONNECTIONS));
    let mut listeners = JoinSet::new();
    for Listen { speaks, address } in listen {
        let listener = Listener::open(&address).await.with_context(|| format!("listening on {address:?}"))?;
        listeners.spawn(serve_listener(listener, speaks, app.clone(), room.clone()));
    }
    let mut terminate = tokio::signal::unix::signal(tokio::signal::unix::SignalKind::terminate())?;
    tokio::select! {
        _ = terminate.recv() => Ok(()),
        _ = tokio::signal::ctrl_c() => Ok(()),
        Some(ended) = listeners.join_next() => bail!("a listener ended: {ended:?}"),
    }
}

/// Accepts for as long as the process lives. Dropping it closes its connections.
async fn serve_listener(listener: Listener, speaks: Speaks, app: Arc<App>, room: Arc<Semaphore>) {
    let mut connections = JoinSet::new();
    while let Ok(permit) = room.clone().acquire_owned().await {
        match listener.accept().await {
            Ok(stream) => {
                let app = app.clone();
                connections.spawn(async move {
                    serve(stream, speaks, app).await;
                    drop(permit);
                });
            }
            // Out of descriptors, or the peer is gone already: neither lasts.
            Err(_) => tokio::time::sleep(Duration::from_millis(10)).await,
        }
        while connections.try_join_next().is_some() {}
    }
}

/// One connection to its end. Whatever goes wrong with it is the peer's business.
async fn serve(mut stream: Stream, speaks: Speaks, app: Arc<App>) {
    match speaks {
        Speaks::Http => http::serve(stream, app).await,
        Speaks::Tcp => tcp::serve(stream, &app).await,
        Speaks::Auto => {
            let mut first = [0; 4];
            if stream.read_exact(&mut first).await.is_err() {
                return;
            }
            let (read, write) = tokio::io::split(stream);
            let whole = tokio::io::join(Cursor::new(first).chain(read), write);
            if http::begins(first) {
                http::serve(Box::new(whole), app).await;
            } else {
                tcp::serve(Box::new(whole), &app).await;
            }
        }
    }
}

/// A socket only its owner can reach: mode 0600 in a folder of mode 0700, which is made if it is not there.
fn bind_unix(path: &Path) -> io::Result<UnixListener> {
    let folder = path.parent().unwrap_or(Path::new("."));
    match std::fs::DirBuilder::new().mode(0o700).create(folder) {
        Ok(()) => {}
        Err(e) if e.kind() == io::ErrorKind::AlreadyExists => {
            let found = std::fs::metadata(folder)?;
            if found.mode() & 0o077 != 0 || found.uid() != nix::unistd::geteuid().as_raw() {
                let why =
                    format!("{} is open to others: it must be yours and of mode 0700", folder.display());
                return Err(io::Error::new(io::ErrorKind::PermissionDenied, why));
            }
        }
        Err(e) => return Err(e),
    }
    if std::fs::symlink_metadata(path).is_ok_and(|found| found.file_type().is_socket()) {
        std::fs::remove_file(path)?;
    }
    let listener = UnixListener::bind(path)?;
    std::fs::set_permissions(path, std::fs::Permissions::from_mode(0o600))?;
    Ok(listener)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn listeners_are_written_as_protocol_and_address() {
        for (text, speaks, address) in [
            ("127.0.0.1:80", Speaks::Http, Address::Tcp("127.0.0.1:80".parse().unwrap())),
            ("grpc=[::1]:9", Speaks::Http, Address::Tcp("[::1]:9".parse().unwrap())),
            ("tcp=unix:/a/b", Speaks::Tcp, Address::Unix("/a/b".into())),
            ("auto=0.0.0.0:1", Speaks::Auto, Address::Tcp("0.0.0.0:1".parse().unwrap())),
        ] {
            assert_eq!(text.parse(), Ok(Listen { speaks, address }), "{text}");
        }
        assert!("udp=1.1.1.1:1".parse::<Listen>().is_err());
        assert!("http=somewhere".parse::<Listen>().is_err());
    }

    #[tokio::test]
    async fn a_socket_is_its_owners_alone_and_no_open_folder_is_taken() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("app/http");
        let _listener = bind_unix(&path).unwrap();
        let mode = |p: &Path| std::fs::metadata(p).unwrap().mode() & 0o777;
        assert_eq!((mode(&path), mode(path.parent().unwrap())), (0o600, 0o700));
        let open = folder.path().join("open");
        std::fs::DirBuilder::new().mode(0o755).create(&open).unwrap();
        assert!(bind_unix(&open.join("http")).is_err());
    }
}
