use super::*;
use std::io::{Read, Write};
use std::time::Duration;

fn monitoring(ready: Result<(), Reasons>) -> Monitoring {
    let version = Version::of("test");
    Monitoring::new(version.clone(), Metrics::new(version), move || ready.clone()).route(Route {
        path: "/status",
        authn: Authn::Loopback,
        handler: get(async || "secret of this machine"),
    })
}

struct Served {
    addr: SocketAddr,
    stop: CancellationToken,
    task: tokio::task::JoinHandle<std::io::Result<()>>,
}

async fn start(monitoring: Monitoring) -> Served {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let addr = listener.local_addr().unwrap();
    let stop = CancellationToken::new();
    let task = tokio::spawn(monitoring.serve(listener, stop.clone()));
    Served { addr, stop, task }
}

/// Sends bytes and reads until the server closes.
fn raw(addr: SocketAddr, request: &str) -> String {
    let mut stream = std::net::TcpStream::connect(addr).unwrap();
    stream.set_read_timeout(Some(Duration::from_secs(10))).unwrap();
    stream.write_all(request.as_bytes()).unwrap();
    let mut answer = String::new();
    let _ = stream.read_to_string(&mut answer);
    answer
}

async fn fetch(addr: SocketAddr, path: &str, host: &str) -> String {
    let request = format!("GET {path} HTTP/1.1\r\nHost: {host}\r\nConnection: close\r\n\r\n");
    tokio::task::spawn_blocking(move || raw(addr, &request)).await.unwrap()
}

#[tokio::test(flavor = "multi_thread")]
async fn the_common_routes_answer() {
    let served = start(monitoring(Err(vec!["first list".into()]))).await;
    let not_ready = fetch(served.addr, "/ready", "localhost").await;
    assert!(not_ready.starts_with("HTTP/1.1 503") && not_ready.contains("- first list"), "{not_ready}");
    for (path, part) in [("/healthz", "ok"), ("/metrics", "# EOF"), ("/version", "\"component\":\"test\"")] {
        let answer = fetch(served.addr, path, "anything.example").await;
        assert!(answer.starts_with("HTTP/1.1 200") && answer.contains(part), "{path}: {answer}");
    }
    assert!(fetch(served.addr, "/debug", "localhost").await.starts_with("HTTP/1.1 404"));
    served.stop.cancel();
    served.task.await.unwrap().unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn loopback_routes_ask_for_a_loopback_name() {
    let served = start(monitoring(Ok(()))).await;
    for host in ["localhost", "LOCALHOST:15014", "127.0.0.1:1", "127.9.9.9", "[::1]:15014"] {
        let answer = fetch(served.addr, "/status", host).await;
        assert!(answer.starts_with("HTTP/1.1 200"), "{host}: {answer}");
    }
    for host in ["rebound.example", "10.0.0.1", "localhost.example", "", "127.0.0.1.example", "a@b@c"] {
        let answer = fetch(served.addr, "/status", host).await;
        assert!(answer.starts_with("HTTP/1.1 403"), "{host}: {answer}");
    }
}

#[test]
fn a_peer_from_elsewhere_is_refused_whatever_name_it_asks_for() {
    let request = |peer: &str| {
        let mut request = Request::new(axum::body::Body::empty());
        request.headers_mut().insert("host", "localhost".parse().unwrap());
        request.extensions_mut().insert(ConnectInfo(peer.parse::<SocketAddr>().unwrap()));
        request
    };
    assert!(from_loopback(&request("127.0.0.1:9")));
    assert!(from_loopback(&request("[::ffff:127.0.0.1]:9")));
    assert!(!from_loopback(&request("10.0.0.9:9")));
    assert!(!from_loopback(&request("[2001:db8::1]:9")));
    assert!(!from_loopback(&Request::new(axum::body::Body::empty())), "unknown peers are strangers");
}

#[test]
fn the_table_says_who_may_call() {
    let table = monitoring(Ok(())).table();
    let open: Vec<_> = table.iter().filter(|(_, a)| *a == Authn::Open).map(|(p, _)| *p).collect();
    assert_eq!(open, ["/healthz", "/ready", "/metrics", "/version"], "nothing else is for everybody");
}

#[tokio::test(flavor = "multi_thread")]
async fn too_many_connections_and_slow_headers_are_closed() {
    let mut monitoring = monitoring(Ok(()));
    monitoring.limits.connections = 1;
    monitoring.limits.header = Duration::from_millis(200);
    let served = start(monitoring).await;
    let addr = served.addr;
    let first = tokio::net::TcpStream::connect(addr).await.unwrap();
    // The second connection is closed without an answer while the first one holds the only slot ..
    let refused =
        tokio::task::spawn_blocking(move || raw(addr, "GET /healthz HTTP/1.1\r\nHost: x\r\n\r\n")).await;
    assert_eq!(refused.unwrap(), "");
    // .. which the silent first one loses after its time for a header.
    first.readable().await.unwrap();
    let mut buffer = [0; 256];
    let ended = first.try_read(&mut buffer);
    assert!(matches!(ended, Ok(0)) || buffer.starts_with(b"HTTP/1.1 408"), "{ended:?}");
}

#[test]
fn readiness_collects_every_reason() {
    let one = |reason: Option<&'static str>| -> Check {
        Box::new(move || reason.map_or(Ok(()), |r| Err(vec![r.to_owned()])))
    };
    assert_eq!(Readiness::of(vec![one(None)]).get(), Ok(()));
    let both = Readiness::of(vec![one(Some("a")), one(None), one(Some("b"))]);
    assert_eq!(both.get(), Err(vec!["a".to_owned(), "b".to_owned()]));
}
