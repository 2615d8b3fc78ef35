//! A real Envoy that gets everything by ADS, an application behind it, and a client.

use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::atomic::{AtomicU8, Ordering};
use std::time::Duration;

use serde_json::Value;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream, UnixStream};

/// `$ENVOY`, or one that the project has fetched; `None` (said aloud) if there is neither.
fn binary() -> Option<PathBuf> {
    if let Some(path) = std::env::var_os("ENVOY").filter(|p| !p.is_empty()) {
        return Some(path.into());
    }
    let cache = Path::new(env!("CARGO_MANIFEST_DIR")).parent().unwrap().join(".cache/envoy");
    let versions = std::fs::read_dir(cache).into_iter().flatten().flatten();
    let found = versions.map(|v| v.path().join("envoy")).filter(|p| p.is_file()).max();
    if found.is_none() {
        eprintln!("skipped: no Envoy in $ENVOY or .cache/envoy (`make test` fetches one)");
    }
    found
}

pub(crate) struct Envoy {
    child: Child,
    dir: tempfile::TempDir,
}

impl Envoy {
    /// One that asks `server` in the given way (`GRPC` or `DELTA_GRPC`); `None` if there is no Envoy here.
    pub(crate) fn start(server: SocketAddr, api_type: &str) -> Option<Self> {
        let binary = binary()?;
        let dir = tempfile::tempdir().unwrap();
        let bootstrap = dir.path().join("bootstrap.json");
        std::fs::write(&bootstrap, self::bootstrap(server, api_type, dir.path()).to_string()).unwrap();
        let log = std::fs::File::create(dir.path().join("envoy.log")).unwrap();
        let child = Command::new(binary)
            .args(["--disable-hot-restart", "--concurrency", "1", "-l", "warning", "-c"])
            .arg(&bootstrap)
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(log)
            .spawn()
            .unwrap();
        Some(Self { child, dir })
    }

    /// What the admin interface says at `path`; `None` while it does not answer.
    pub(crate) async fn admin(&self, path: &str) -> Option<String> {
        let mut stream = UnixStream::connect(self.dir.path().join("admin")).await.ok()?;
        let request = format!("GET {path} HTTP/1.1\r\nhost: envoy\r\nconnection: close\r\n\r\n");
        stream.write_all(request.as_bytes()).await.ok()?;
        let mut answer = String::new();
        stream.read_to_string(&mut answer).await.ok()?;
        // In chunks, each after its length.
        let mut rest = answer.split_once("\r\n\r\n")?.1;
        let mut body = String::new();
        while let Some((length, more)) = rest.split_once("\r\n") {
            let (chunk, more) = more.split_at_checked(usize::from_str_radix(length, 16).ok()?)?;
            body.push_str(chunk);
            rest = more.trim_start_matches("\r\n");
        }
        Some(body)
    }

    /// The clusters in use (not those kept aside) by name, as the configuration dump has them.
    pub(crate) async fn active_clusters(&self) -> Vec<Value> {
        let dump = self.admin("/config_dump?resource=dynamic_active_clusters").await.unwrap_or_default();
        let dump: Value = serde_json::from_str(&dump).unwrap_or_default();
        let clusters = dump["configs"].as_array().cloned().unwrap_or_default();
        clusters.into_iter().map(|c| c["cluster"].clone()).collect()
    }
}

impl Drop for Envoy {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
        if std::thread::panicking() {
            let log = std::fs::read_to_string(self.dir.path().join("envoy.log"));
            eprintln!("{}", log.unwrap_or_default());
        }
    }
}

fn bootstrap(server: SocketAddr, api_type: &str, dir: &Path) -> Value {
    let ads = serde_json::json!({"ads": {}, "initial_fetch_timeout": "0s", "resource_api_version": "V3"});
    serde_json::json!({
        "node": {"id": "sidecar~127.0.0.1~test.foo~foo.svc.cluster.local", "cluster": "test"},
        "admin": {"address": {"pipe": {"path": dir.join("admin")}}},
        "dynamic_resources": {"lds_config": ads, "cds_config": ads, "ads_config": {
            "api_type": api_type, "transport_api_version": "V3", "set_node_on_first_message_only": true,
            "grpc_services": [{"envoy_grpc": {"cluster_name": "ads"}}]}},
        "static_resources": {"clusters": [{
            "name": "ads", "type": "STATIC", "connect_timeout": "1s",
            "typed_extension_protocol_options": {"envoy.extensions.upstreams.http.v3.HttpProtocolOptions": {
                "@type": "type.googleapis.com/envoy.extensions.upstreams.http.v3.HttpProtocolOptions",
                "explicit_http_config": {"http2_protocol_options": {}}}},
            "load_assignment": {"cluster_name": "ads", "endpoints": [{"lb_endpoints": [{"endpoint": {"address":
                {"socket_address": {"address": server.ip().to_string(), "port_value": server.port()}}}}]}]}
        }]},
    })
}

/// An address to listen on that nobody else uses, neither in this process nor in another.
pub(crate) fn own_address() -> SocketAddr {
    static NEXT: AtomicU8 = AtomicU8::new(1);
    let last = NEXT.fetch_add(1, Ordering::Relaxed);
    let id = std::process::id();
    ([127, 192 + (id >> 8 & 0x3f) as u8, (id & 0xff) as u8, last], 8080).into()
}

/// Waits until `check` gives something.
pub(crate) async fn until<T, F: Future<Output = Option<T>>>(what: &str, mut check: impl FnMut() -> F) -> T {
    for _ in 0..1000 {
        if let Some(found) = check().await {
            return found;
        }
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    panic!("never: {what}");
}

/// An application that answers every request with 200.
pub(crate) async fn app() -> SocketAddr {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    tokio::spawn(async move {
        while let Ok((mut stream, _)) = listener.accept().await {
            tokio::spawn(async move {
                while head(&mut stream).await.is_some() {
                    let answer = b"HTTP/1.1 200 OK\r\ncontent-length: 0\r\n\r\n";
                    if stream.write_all(answer).await.is_err() {
                        return;
                    }
                }
            });
        }
    });
    address
}

/// Everything up to an empty line; `None` at the end.
async fn head(stream: &mut TcpStream) -> Option<String> {
    let mut seen = Vec::new();
    while !seen.ends_with(b"\r\n\r\n") {
        seen.push(stream.read_u8().await.ok()?);
    }
    Some(String::from_utf8_lossy(&seen).into_owned())
}

/// A connection that stays open over many requests.
pub(crate) struct Client(TcpStream);

impl Client {
    pub(crate) async fn connect(address: SocketAddr) -> Self {
        Self(until("a connection", || async { TcpStream::connect(address).await.ok() }).await)
    }

    /// The status of one request.
    pub(crate) async fn get(&mut self, path: &str) -> u16 {
        let request = format!("GET {path} HTTP/1.1\r\nhost: test\r\n\r\n");
        self.0.write_all(request.as_bytes()).await.unwrap();
        let head = head(&mut self.0).await.expect("an answer on the same connection");
        let length = head.lines().find_map(|line| line.strip_prefix("content-length: "));
        let mut body = vec![0; length.map_or(0, |length| length.parse().unwrap())];
        self.0.read_exact(&mut body).await.unwrap();
        head.split(' ').nth(1).unwrap().parse().unwrap()
    }
}
