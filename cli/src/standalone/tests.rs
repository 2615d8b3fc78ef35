use super::settings::Settings;
use super::wiring::{Running, start};
use crate::listen::Listen;
use crate::monitoring::get;
use std::net::SocketAddr;
use std::time::{Duration, Instant};

mod ads;

/// A started control plane over temporary folders.
struct Plane {
    folder: tempfile::TempDir,
    running: Running,
}

impl Plane {
    async fn start(files: &[(&str, &str)]) -> Self {
        let folder = tempfile::tempdir().unwrap();
        let dir = folder.path().join("files");
        std::fs::create_dir(&dir).unwrap();
        for (name, text) in files {
            std::fs::write(dir.join(name), text).unwrap();
        }
        let any = Listen::At(SocketAddr::from(([127, 0, 0, 1], 0)));
        let settings = Settings {
            keys: crate::keys::KeysArgs::default(),
            dir,
            state: folder.path().join("state"),
            mesh_config: None,
            plaintext: any,
            secure: any,
            monitoring: any,
        };
        let running = start(settings).await.unwrap();
        Self { folder, running }
    }

    /// Replaces a file as editors do.
    fn save(&self, name: &str, text: &str) {
        let dir = self.folder.path().join("files");
        let new = dir.join(".new");
        std::fs::write(&new, text).unwrap();
        std::fs::rename(new, dir.join(name)).unwrap();
    }

    fn monitoring(&self) -> SocketAddr {
        self.running.addresses.monitoring.unwrap()
    }

    async fn page(&self, path: &str) -> (http::StatusCode, String) {
        get(self.monitoring(), path).await.unwrap()
    }

    async fn report(&self) -> controller::Report {
        serde_json::from_str(&self.page("/status").await.1).unwrap()
    }
}

/// Asks until it is so.
async fn until<T>(what: &str, mut ask: impl AsyncFnMut() -> Option<T>) -> T {
    let deadline = Instant::now() + Duration::from_secs(20);
    loop {
        if let Some(answer) = ask().await {
            return answer;
        }
        assert!(Instant::now() < deadline, "in vain: {what}");
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
}

const ORDERS: &str = "\
apiVersion: security.istio.io/v1
kind: AuthorizationPolicy
metadata: {name: orders-policy}
spec:
  rules:
  - to: [{operation: {methods: [GET], paths: [/orders]}}]
";

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn ready_comes_with_the_first_list_and_the_addresses_are_told() {
    let plane = Plane::start(&[("policy.yaml", ORDERS)]).await;
    until("ready", async || (plane.page("/ready").await.0 == 200).then_some(())).await;
    let state = plane.folder.path().join("state");
    let addresses: serde_json::Value =
        serde_json::from_slice(&std::fs::read(state.join("addresses.json")).unwrap()).unwrap();
    assert_eq!(addresses["monitoring"], plane.monitoring().to_string());
    let report = plane.report().await;
    assert!(report.ready);
    let [object] = &report.objects[..] else { panic!("{report:?}") };
    assert_eq!(
        (&*object.kind, &*object.namespace, &*object.name),
        ("AuthorizationPolicy", "default", "orders-policy")
    );
    let condition = |kind: &str| object.conditions.iter().find(|c| c.kind == kind).unwrap();
    assert_eq!(condition("Accepted").status, "True");
    assert_eq!(condition("Enforced").reason, "NoTargets");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_document_that_could_be_any_policy_keeps_it_from_being_ready_until_it_is_mended() {
    let plane = Plane::start(&[("policy.yaml", ORDERS), ("broken.yaml", "kind: [")]).await;
    let report = until("the finding", async || {
        let report = plane.report().await;
        (!report.unreadable.is_empty()).then_some(report)
    })
    .await;
    assert!(!report.ready && report.unreadable[0].origin.contains("broken.yaml"), "{report:?}");
    let (status, body) = plane.page("/ready").await;
    assert!(status == 503 && body.contains("broken.yaml:1"), "{body}");
    plane.save("broken.yaml", "");
    until("ready", async || (plane.page("/ready").await.0 == 200).then_some(())).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_folder_that_vanishes_freezes_what_is_in_force() {
    let plane = Plane::start(&[("policy.yaml", ORDERS)]).await;
    until("ready", async || (plane.page("/ready").await.0 == 200).then_some(())).await;
    let dir = plane.folder.path().join("files");
    std::fs::rename(&dir, plane.folder.path().join("elsewhere")).unwrap();
    until("not ready", async || (plane.page("/ready").await.0 == 503).then_some(())).await;
    assert_eq!(plane.report().await.objects.len(), 1, "nothing is forgotten");
    std::fs::rename(plane.folder.path().join("elsewhere"), &dir).unwrap();
    until("ready again", async || (plane.page("/ready").await.0 == 200).then_some(())).await;
    assert_eq!(plane.report().await.objects.len(), 1);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn every_monitoring_route_says_who_may_call() {
    let metrics = runtime::Metrics::new(crate::version::VERSION);
    let (_, changes) = tokio::sync::mpsc::channel(1);
    let (controller, _) = controller::Controller::start(&metrics, changes);
    let table = super::wiring::monitoring_server(metrics, controller, None).table();
    use runtime::http::Authn::{Loopback, Open};
    assert_eq!(
        table,
        [
            ("/healthz", Open),
            ("/ready", Open),
            ("/metrics", Open),
            ("/version", Open),
            ("/debug/log", Loopback),
            ("/status", Loopback)
        ]
    );
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn idle_connections_and_garbage_take_nothing_from_anybody() {
    let plane = Plane::start(&[("policy.yaml", ORDERS)]).await;
    until("ready", async || (plane.page("/ready").await.0 == 200).then_some(())).await;
    let addresses = plane.running.addresses;
    let ports = [addresses.plaintext, addresses.secure, addresses.monitoring].map(Option::unwrap);
    let mut idle = Vec::new();
    for _ in 0..300 {
        for port in [ports[0], ports[1]] {
            idle.push(tokio::net::TcpStream::connect(port).await.unwrap());
        }
    }
    for port in ports {
        let mut garbage = tokio::net::TcpStream::connect(port).await.unwrap();
        let _ = tokio::io::AsyncWriteExt::write_all(&mut garbage, &[0x16; 4096]).await;
    }
    ads::serves(&plane).await;
    assert_eq!(plane.page("/ready").await.0, 200);
}
