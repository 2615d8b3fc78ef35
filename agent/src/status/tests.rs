use axum::Router;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};

use super::*;

/// An application that says what it was asked.
async fn app() -> u16 {
    async fn echo(uri: Uri, headers: HeaderMap) -> Response {
        let header =
            |name: &str| headers.get(name).map(|v| String::from_utf8_lossy(v.as_bytes()).into_owned());
        let asked = uri.to_string();
        let good = asked == "/live?x=1&y=%20"
            && header("x-mine").as_deref() == Some("a b")
            && header("host").as_deref() == Some("me")
            && header("authorization").is_none()
            && header("user-agent").as_deref() == Some("kube-probe/1.36");
        match uri.path() {
            "/moved" => {
                (StatusCode::FOUND, [("location", "http://127.0.0.1:1/")], "secret body").into_response()
            }
            "/ill" => (StatusCode::IM_A_TEAPOT, "secret body").into_response(),
            "/metrics" => "# TYPE app_x gauge\napp_x 5\nprocess_x 1\n# EOF\n".into_response(),
            "/slow" => std::future::pending::<Response>().await,
            _ if good => "secret body".into_response(),
            _ => (StatusCode::BAD_REQUEST, asked).into_response(),
        }
    }
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let port = listener.local_addr().unwrap().port();
    tokio::spawn(async move { axum::serve(listener, Router::new().fallback(echo)).await });
    port
}

async fn get(port: u16, path: &str) -> (u16, String) {
    let mut stream = tokio::net::TcpStream::connect(("127.0.0.1", port)).await.unwrap();
    let request = format!(
        "GET {path} HTTP/1.1\r\nhost: x\r\nconnection: close\r\nuser-agent: kube-probe/1.36\r\nauthorization: Bearer evil\r\n\r\n"
    );
    stream.write_all(request.as_bytes()).await.unwrap();
    let mut answer = String::new();
    stream.read_to_string(&mut answer).await.unwrap();
    (answer[9..12].parse().unwrap(), answer)
}

async fn agent(extra: &[&str]) -> (u16, u16, Tasks) {
    let free = || std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
    let (monitoring, health_addr) = (free(), free());
    let (monitoring_text, health_text) = (monitoring.to_string(), health_addr.to_string());
    let folder = tempfile::tempdir().unwrap();
    let socket = folder.path().join("run/sds.sock").to_str().unwrap().to_owned();
    let mut line = vec![
        "--trust-bundle",
        "x",
        "--workload",
        "a/b",
        "--capture",
        "none",
        "--address",
        "127.0.0.1",
        "--monitoring-addr",
        &monitoring_text,
        "--health-addr",
        &health_text,
        "--sds-socket",
        &socket,
    ];
    line.extend(extra);
    let args = crate::testing::arguments(&line);
    let state = State::open(&args, None).unwrap();
    let mut tasks = Tasks::new();
    start(&args, &state, &Arc::new(Health::default()), &mut tasks).await.unwrap();
    (monitoring.port(), health_addr.port(), tasks)
}

#[tokio::test]
async fn the_kubelets_questions_reach_the_application_and_nothing_else_does() {
    runtime::tls::install_provider();
    let app = app().await;
    let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let closed = listener.local_addr().unwrap().port();
    drop(listener);
    let http = |path: &str| serde_json::json!({"http": {"port": app, "path": path, "https": false, "headers": []}, "timeoutSeconds": 1});
    let questions = serde_json::json!({
        "/app-health/web/livez": {"http": {"port": app, "path": "/live?x=1&y=%20", "https": false,
                                           "headers": [["X-Mine", "a b"], ["Host", "me"]]}, "timeoutSeconds": 5},
        "/app-health/web/readyz": {"tcp": {"port": app}, "timeoutSeconds": 1},
        "/app-health/web/startupz": {"tcp": {"port": closed}, "timeoutSeconds": 1},
        "/app-health/moved/livez": http("/moved"),
        "/app-health/ill/livez": http("/ill"),
        "/app-health/slow/livez": http("/slow"),
        "/app-health/grpc/livez": {"grpc": {"port": closed, "service": ""}, "timeoutSeconds": 1},
        "/app-lifecycle/web/prestop/5ec2e7": {"tcp": {"port": app}, "timeoutSeconds": 1},
    })
    .to_string();
    let metrics = format!("{app}/metrics");
    let (port, health, _tasks) = agent(&["--app-probes", &questions, "--app-metrics", &metrics]).await;
    for (path, expected) in [
        ("/app-health/web/livez", 200),
        ("/app-health/web/livez?path=/admin", 200),
        ("/app-health/web/readyz", 200),
        ("/app-health/web/startupz", 503),
        ("/app-health/moved/livez", 200),
        ("/app-health/ill/livez", 418),
        ("/app-health/slow/livez", 503),
        ("/app-health/grpc/livez", 503),
        ("/app-health/other/livez", 404),
        ("/app-lifecycle/web/prestop/5ec2e7", 200),
        ("/app-lifecycle/web/prestop/guess", 404),
        ("/app-lifecycle/web/prestop", 404),
        ("/healthz/ready", 503),
    ] {
        let (status, answer) = get(port, path).await;
        assert_eq!(status, expected, "{path}: {answer}");
        assert!(!answer.contains("secret body"), "{path}: {answer}");
    }
    let (status, page) = get(port, "/stats/prometheus").await;
    assert_eq!(status, 200);
    for line in ["app_x 5\n", "process_x 1\n", "countersign_agent_envoy_live 0\n"] {
        assert!(page.contains(line), "{line}: {page}");
    }
    assert!(!page.contains("# EOF") && !page.contains("process_resident_memory_bytes"), "{page}");
    // The other port tells whether it is ready, and nothing else.
    assert_eq!(get(health, "/healthz/ready").await.0, 503);
    for path in ["/metrics", "/debug/log", "/app-health/web/livez", "/stats/prometheus"] {
        assert_eq!(get(health, path).await.0, 404, "{path}");
    }
}

#[test]
fn what_the_injection_did_not_write_is_refused() {
    for bad in ["", "[]", r#"{"/a": {"timeoutSeconds": 1}}"#, r#"{"/a": {"exec": {}, "timeoutSeconds": 1}}"#]
    {
        assert!(bad.parse::<Questions>().is_err(), "{bad}");
    }
    for bad in ["", "80", "/m", "x/m", "0/m"] {
        assert!(bad.parse::<AppMetrics>().is_err(), "{bad}");
    }
}
