//! Starting and stopping a real Envoy.

use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};

use tokio::io::{AsyncReadExt, AsyncWriteExt};

use super::pki::Identity;
use super::serve::Server;

/// `$ENVOY`, or one that the project has fetched; `None` (said aloud) if there is neither.
pub(crate) fn binary() -> Option<PathBuf> {
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
    pub(crate) dir: tempfile::TempDir,
    pub(crate) server: Server,
}

impl Envoy {
    /// Starts one with `identity`; `None` if there is no Envoy here.
    pub(crate) async fn start(identity: &Identity, roots: &str) -> Option<Self> {
        let binary = binary()?;
        let server = Server::start(identity, roots).await;
        let dir = tempfile::tempdir().unwrap();
        let bootstrap = dir.path().join("bootstrap.json");
        std::fs::write(&bootstrap, self::bootstrap(&server, dir.path()).to_string()).unwrap();
        let log = std::fs::File::create(dir.path().join("envoy.log")).unwrap();
        let child = Command::new(binary)
            .args(["--disable-hot-restart", "--concurrency", "1", "--drain-time-s", "1"])
            .args(["--file-flush-interval-msec", "20"])
            .args(["--drain-strategy", "immediate", "-l", "warning", "-c"])
            .arg(&bootstrap)
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(log)
            .spawn()
            .unwrap();
        Some(Self { child, dir, server })
    }

    /// What the admin interface says about `path`.
    pub(crate) async fn admin(&self, path: &str) -> String {
        let mut stream = tokio::net::UnixStream::connect(self.dir.path().join("admin")).await.unwrap();
        let request = format!("GET {path} HTTP/1.1\r\nhost: envoy\r\nconnection: close\r\n\r\n");
        stream.write_all(request.as_bytes()).await.unwrap();
        let mut answer = String::new();
        stream.read_to_string(&mut answer).await.unwrap();
        answer
    }

    /// E.g. `1.39.3`.
    pub(crate) fn version(&self) -> String {
        let out = Command::new(binary().unwrap()).arg("--version").output().unwrap();
        String::from_utf8_lossy(&out.stdout).split('/').rev().nth(3).unwrap_or_default().to_owned()
    }

    pub(crate) fn log(&self) -> String {
        std::fs::read_to_string(self.dir.path().join("envoy.log")).unwrap_or_default()
    }

    /// Waits until the log holds `text`; panics with the log if it never does.
    pub(crate) async fn logged(&self, text: &str) {
        for _ in 0..300 {
            if self.log().contains(text) {
                return;
            }
            tokio::time::sleep(std::time::Duration::from_millis(10)).await;
        }
        panic!("{text} is not in\n{}", self.log());
    }
}

impl Drop for Envoy {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
        if std::thread::panicking() {
            eprintln!("{}", self.log());
        }
    }
}

fn bootstrap(server: &Server, dir: &Path) -> serde_json::Value {
    let cluster = |name: &str| {
        serde_json::json!({
            "name": name, "type": "STATIC", "connect_timeout": "1s",
            "typed_extension_protocol_options": {"envoy.extensions.upstreams.http.v3.HttpProtocolOptions": {
                "@type": "type.googleapis.com/envoy.extensions.upstreams.http.v3.HttpProtocolOptions",
                "explicit_http_config": {"http2_protocol_options": {}}}},
            "load_assignment": {"cluster_name": name, "endpoints": [{"lb_endpoints": [{"endpoint": {"address":
                {"socket_address": {"address": server.address.ip().to_string(), "port_value": server.address.port()}}}}]}]}
        })
    };
    let ads = serde_json::json!({"ads": {}, "initial_fetch_timeout": "0s", "resource_api_version": "V3"});
    serde_json::json!({
        "node": {"id": "sidecar~127.0.0.1~test.foo~foo.svc.cluster.local", "cluster": "test"},
        "admin": {"address": {"pipe": {"path": dir.join("admin")}}},
        "layered_runtime": {"layers": [{"name": "static", "static_layer": {"re2.max_program_size.error_level": 32768}}]},
        "dynamic_resources": {"lds_config": ads, "cds_config": ads, "ads_config": {
            "api_type": "GRPC", "transport_api_version": "V3", "set_node_on_first_message_only": true,
            "grpc_services": [{"envoy_grpc": {"cluster_name": "ads"}}]}},
        "static_resources": {"clusters": [cluster("ads"), cluster("sds-grpc")]},
    })
}
