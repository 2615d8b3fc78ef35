//! The HTTPS server: what it answers, and what nobody can do to it.

use std::net::SocketAddr;
use std::time::Duration;

use rustls::pki_types::pem::PemObject as _;
use rustls::pki_types::{CertificateDer, ServerName};
use serde_json::json;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;
use tokio_rustls::TlsConnector;
use tokio_rustls::client::TlsStream;

use super::*;
use crate::Controller;

const LONG: Duration = Duration::from_secs(20);

struct Server {
    address: SocketAddr,
    tls: TlsConnector,
    stop: CancellationToken,
    serving: tokio::task::JoinHandle<std::io::Result<()>>,
    metrics: runtime::Metrics,
}

async fn server(limits: Limits, trail: Trail) -> Server {
    let metrics = runtime::Metrics::new(runtime::Version::of("test"));
    let (_, changes) = tokio::sync::mpsc::channel(1);
    let (handle, _owner) = Controller::start(&metrics, changes);
    let settings = Settings {
        names: names("istio-system", None),
        revision: "default".into(),
        lifetimes: Lifetimes::default(),
        limits,
    };
    let webhook = Webhook::new(handle, trail, &metrics, settings);
    let authority = webhook.certificates().alone().unwrap();
    let mut roots = rustls::RootCertStore::empty();
    roots.add(CertificateDer::from_pem_slice(&authority).unwrap()).unwrap();
    let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
    let config =
        rustls::ClientConfig::builder_with_provider(provider).with_safe_default_protocol_versions().unwrap();
    let config = config.with_root_certificates(roots).with_no_client_auth();
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    let stop = CancellationToken::new();
    let serving = tokio::spawn(webhook.serve(listener, stop.clone()));
    Server { address, tls: TlsConnector::from(Arc::new(config)), stop, serving, metrics }
}

impl Server {
    async fn connect(&self) -> TlsStream<TcpStream> {
        let tcp = TcpStream::connect(self.address).await.unwrap();
        self.tls.connect(ServerName::try_from("localhost").unwrap(), tcp).await.unwrap()
    }

    /// Status line and body of the answer to `request`, after which the connection ends.
    async fn ask(&self, request: &[u8]) -> (String, String) {
        let mut tls = self.connect().await;
        let _ = tls.write_all(request).await;
        let mut answer = Vec::new();
        let read = tokio::time::timeout(LONG, tls.read_to_end(&mut answer));
        // Whoever sent too much may find the connection cut.
        let _ = read.await.expect("an answer");
        let text = String::from_utf8_lossy(&answer).into_owned();
        let (head, body) = text.split_once("\r\n\r\n").unwrap_or((&text, ""));
        (head.lines().next().unwrap_or_default().to_owned(), body.to_owned())
    }

    async fn post(&self, kind: &str, body: &str) -> (String, String) {
        let length = body.len();
        let head = format!(
            "POST /validate?timeout=5s HTTP/1.1\r\nhost: localhost\r\nconnection: close\r\ncontent-type: {kind}\r\ncontent-length: {length}\r\n\r\n"
        );
        self.ask((head + body).as_bytes()).await
    }
}

fn review(spec: &Value) -> String {
    json!({
        "apiVersion": "admission.k8s.io/v1", "kind": "AdmissionReview",
        "request": {
            "uid": "u", "kind": {"group": "security.istio.io", "version": "v1", "kind": "PeerAuthentication"},
            "namespace": "ns", "operation": "CREATE", "userInfo": {"username": "jane\n\u{1b}"}, "dryRun": true,
            "object": {
                "apiVersion": "security.istio.io/v1", "kind": "PeerAuthentication",
                "metadata": {"name": "p", "namespace": "ns"}, "spec": spec,
            },
        },
    })
    .to_string()
}

#[tokio::test]
async fn it_answers_reviews_and_nothing_else() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("audit");
    let trail = Trail::open(&path, runtime::audit::Options::default()).unwrap();
    let server = server(Limits::default(), trail.clone()).await;
    let good = review(&json!({"mtls": {"mode": "STRICT"}}));
    let (status, body) = server.post("application/json", &good).await;
    assert_eq!(status, "HTTP/1.1 200 OK");
    assert!(body.contains(r#""allowed":true"#), "{body}");
    let bad = review(&json!({"mtls": {"mode": "Strict"}}));
    let (_, body) = server.post("application/json; charset=utf-8", &bad).await;
    assert!(body.contains(r#""allowed":false"#) && body.contains("spec.mtls.mode"), "{body}");
    for (kind, body, expect) in [
        ("text/plain", good.as_str(), "415"),
        ("application/json", "garbage", "400"),
        ("application/json", "", "400"),
        ("application/json", "\u{0}\u{1}", "400"),
    ] {
        let (status, _) = server.post(kind, body).await;
        assert!(status.contains(expect), "{kind} {body}: {status}");
    }
    for (request, expect) in [
        ("GET /validate HTTP/1.1\r\nhost: a\r\nconnection: close\r\n\r\n", "405"),
        ("GET /debug HTTP/1.1\r\nhost: a\r\nconnection: close\r\n\r\n", "404"),
        ("GET /ready HTTP/1.1\r\nhost: a\r\nconnection: close\r\n\r\n", "200"),
        ("nonsense\r\n\r\n", "400"),
    ] {
        let (status, _) = server.ask(request.as_bytes()).await;
        assert!(status.contains(expect), "{request}: {status}");
    }
    assert!(trail.flush(LONG));
    let text = std::fs::read_to_string(&path).unwrap();
    assert!(text.contains(r#""kind":"PolicyAdmitted""#) && text.contains(r#""dryRun":true"#), "{text}");
    assert!(text.contains(r#""kind":"PolicyRejected""#) && !text.contains('\u{1b}'), "{text}");
    server.stop.cancel();
    tokio::time::timeout(LONG, server.serving).await.unwrap().unwrap().unwrap();
    assert!(server.metrics.encode().contains(r#"countersign_admission_reviews_total{result="allowed"} 1"#));
}

#[tokio::test]
async fn nobody_holds_or_fills_it() {
    let limits = Limits {
        connections: 8,
        handshake: Duration::from_millis(300),
        body: Duration::from_millis(300),
        ..Limits::default()
    };
    let server = server(limits, Trail::disabled()).await;
    let good = review(&json!({}));
    // Too large, told at once or while it comes.
    let huge = format!("{{\"x\": \"{}\"}}", "x".repeat(4 * 1024 * 1024));
    let (status, _) = server.post("application/json", &huge).await;
    assert!(status.contains("413") || status.is_empty(), "{status}");
    // A body that never comes.
    let head = "POST /validate HTTP/1.1\r\nhost: a\r\nconnection: close\r\ncontent-type: application/json\r\ncontent-length: 10\r\n\r\n{";
    let (status, _) = server.ask(head.as_bytes()).await;
    assert!(status.contains("408"), "{status}");
    // A header that never ends, and one that is too long.
    let (status, _) = server.ask(b"POST /validate HTTP/1.1\r\nhost: a\r\n").await;
    assert!(status.is_empty() || status.contains("408"), "{status}");
    let long = format!("GET /ready HTTP/1.1\r\nhost: a\r\nx: {}\r\n\r\n", "x".repeat(100_000));
    let (status, _) = server.ask(long.as_bytes()).await;
    assert!(status.is_empty() || status.contains("431"), "{status}");
    // Silent ones displace each other, and the API server still gets its answer.
    let mut silent = Vec::new();
    for _ in 0..64 {
        silent.push(TcpStream::connect(server.address).await.unwrap());
    }
    let (status, body) = server.post("application/json", &good).await;
    assert!(status.contains("200") && body.contains(r#""allowed":true"#), "{status} {body}");
    drop(silent);
    server.stop.cancel();
    tokio::time::timeout(LONG, server.serving).await.unwrap().unwrap().unwrap();
}

/// Deep nesting, and bodies whose sense is far larger than they are, cost an error.
#[tokio::test]
async fn evil_bodies_are_errors() {
    let server = server(Limits::default(), Trail::disabled()).await;
    let rules = format!("[{}]", vec!["{}"; 200_000].join(","));
    let many = review(&json!({"rules": "RULES"}))
        .replace("\"RULES\"", &rules)
        .replace("PeerAuthentication", "AuthorizationPolicy");
    let start = Instant::now();
    let (status, body) = server.post("application/json", &many).await;
    assert!(status.contains("200") && body.contains("at most 512 rules"), "{status} {}", &body[..200]);
    assert!(body.len() < 256 * 1024, "{}", body.len());
    assert!(start.elapsed() < Duration::from_secs(4), "{:?}", start.elapsed());
    let (status, _) = server.post("application/json", &"[".repeat(1_000_000)).await;
    assert!(status.contains("400"), "{status}");
}
