//! Against a certificate authority of the test's own, over real TLS.

use std::collections::BTreeSet;
use std::path::Path;
use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};

use api::countersign::ca::v1::enrollment_server::{Enrollment, EnrollmentServer};
use api::countersign::ca::v1::{AgentCredential, JoinRequest, RenewRequest};
use api::istio::v1::auth::istio_certificate_service_server::{
    IstioCertificateService, IstioCertificateServiceServer,
};
use api::istio::v1::auth::{IstioCertificateRequest, IstioCertificateResponse};
use authn::{ClientTrust, tls};
use spiffe::{Authority as Root, Mint, SigningRequest, Usage};
use tempfile::TempDir;
use tokio::net::TcpListener;
use tonic::{Request, Response, Status};

use super::*;

const AGENT: &str = "spiffe://cluster.local/countersign/agent/shop/orders";
const WORKLOAD: &str = "spiffe://cluster.local/ns/shop/sa/orders";
const SERVER: &str = "spiffe://cluster.local/ns/istio-system/sa/countersign";
const LIMIT: Duration = Duration::from_secs(20);

/// The authority's side.
struct Fake {
    root: Root,
    /// Join tokens that can still be redeemed.
    tokens: Mutex<BTreeSet<String>>,
    /// Lifetime of agent and workload certificates, seconds.
    lifetimes: (AtomicU32, AtomicU32),
    down: AtomicBool,
    joins: AtomicU32,
    renewals: AtomicU32,
    /// The pod's token that is known, and how often it was shown.
    pod_token: Mutex<String>,
    by_token: AtomicU32,
}

impl Fake {
    fn sign(&self, csr: &str, uri: &str, lifetime: &AtomicU32, usage: Usage) -> Result<Vec<String>, Status> {
        if self.down.load(Ordering::SeqCst) {
            return Err(Status::unavailable("down"));
        }
        let request = SigningRequest::from_pem(csr).map_err(|e| Status::invalid_argument(e.to_string()))?;
        let lifetime = time::Duration::seconds(lifetime.load(Ordering::SeqCst).into());
        let mint = Mint { id: uri.parse().expect("an ID"), dns_names: Vec::new(), lifetime, usage };
        let issued = self.root.sign(&request, &mint, OffsetDateTime::now_utc()).expect("signed");
        Ok(vec![issued.to_pem(), self.root.root().to_pem()])
    }

    fn agent(&self, csr: &str) -> Result<Response<AgentCredential>, Status> {
        let cert_chain = self.sign(csr, AGENT, &self.lifetimes.0, Usage::Client)?;
        Ok(Response::new(AgentCredential { cert_chain, workload_id: WORKLOAD.to_owned() }))
    }
}

struct Shared(Arc<Fake>);

fn caller<T>(request: &Request<T>) -> Option<String> {
    authn::peer(request).map(|peer| peer.id.to_string())
}

#[tonic::async_trait]
impl Enrollment for Shared {
    async fn join(&self, request: Request<JoinRequest>) -> Result<Response<AgentCredential>, Status> {
        let JoinRequest { token, csr, workload } = request.into_inner();
        assert_eq!(workload, "shop/orders");
        self.0.joins.fetch_add(1, Ordering::SeqCst);
        if !self.0.tokens.lock().expect("no panic").remove(&token) {
            return Err(Status::permission_denied("no such token"));
        }
        self.0.agent(&csr)
    }

    async fn renew(&self, request: Request<RenewRequest>) -> Result<Response<AgentCredential>, Status> {
        assert_eq!(caller(&request).as_deref(), Some(AGENT));
        self.0.renewals.fetch_add(1, Ordering::SeqCst);
        self.0.agent(&request.into_inner().csr)
    }
}

#[tonic::async_trait]
impl IstioCertificateService for Shared {
    async fn create_certificate(
        &self,
        request: Request<IstioCertificateRequest>,
    ) -> Result<Response<IstioCertificateResponse>, Status> {
        match request.metadata().get("authorization") {
            None => assert!([Some(AGENT), Some(WORKLOAD)].contains(&caller(&request).as_deref())),
            Some(token) => {
                assert_eq!(caller(&request), None);
                let known = format!("Bearer {}", self.0.pod_token.lock().expect("no panic"));
                if token.as_bytes() != known.as_bytes() {
                    return Err(Status::unauthenticated("no such token"));
                }
                self.0.by_token.fetch_add(1, Ordering::SeqCst);
            }
        }
        let csr = request.into_inner().csr;
        let cert_chain = self.0.sign(&csr, WORKLOAD, &self.0.lifetimes.1, Usage::ServerAndClient)?;
        Ok(Response::new(IstioCertificateResponse { cert_chain }))
    }
}

struct Scene {
    dir: TempDir,
    fake: Arc<Fake>,
    address: String,
}

fn new_root() -> Root {
    let domain = "cluster.local".parse().expect("a domain");
    let start = OffsetDateTime::now_utc() - time::Duration::DAY;
    Root::create(&domain, start, time::Duration::days(3650)).expect("a root")
}

impl Scene {
    async fn new(token: Option<&str>) -> Self {
        let root = new_root();
        let key = PrivateKey::generate().expect("a key");
        let mint = Mint {
            id: SERVER.parse().expect("an ID"),
            dns_names: Vec::new(),
            lifetime: time::Duration::HOUR,
            usage: Usage::ServerAndClient,
        };
        let issued = root.sign_own(&key, &mint, OffsetDateTime::now_utc()).expect("signed");
        let own = OwnSvid::new(&Svid::new(vec![issued.certificate], key).expect("an SVID")).expect("usable");
        let domain = "cluster.local".parse().expect("a domain");
        let trust = ClientTrust::new(root.root(), vec![domain]).expect("trust");
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("bound");
        let address = listener.local_addr().expect("an address").to_string();
        let dir = tempfile::tempdir().expect("a folder");
        std::fs::write(dir.path().join("root.pem"), root.root().to_pem()).expect("written");
        std::fs::write(dir.path().join("token"), format!("{}\n", token.unwrap_or("spent"))).expect("written");
        let fake = Arc::new(Fake {
            root,
            tokens: Mutex::new(token.map(str::to_owned).into_iter().collect()),
            lifetimes: (AtomicU32::new(7 * 86_400), AtomicU32::new(3600)),
            down: AtomicBool::new(false),
            joins: AtomicU32::new(0),
            renewals: AtomicU32::new(0),
            pod_token: Mutex::new("first".to_owned()),
            by_token: AtomicU32::new(0),
        });
        let incoming = tls::serve(listener, tls::server_config(own, trust), tls::Limits::default());
        let router = tls::grpc_server()
            .add_service(EnrollmentServer::new(Shared(fake.clone())))
            .add_service(IstioCertificateServiceServer::new(Shared(fake.clone())));
        tokio::spawn(router.serve_with_incoming(incoming));
        Self { dir, fake, address }
    }

    fn file(&self, name: &str) -> String {
        self.dir.path().join(name).to_str().expect("UTF-8").to_owned()
    }

    fn start(&self, token: bool) -> Life {
        let (bundle, sds, token_file) =
            (self.file("root.pem"), self.file("sds/sds.sock"), self.file("token"));
        let mut line = vec!["--server", &self.address, "--trust-bundle", &bundle];
        line.extend(["--workload", "shop/orders", "--capture", "none", "--sds-socket", &sds]);
        if token {
            line.extend(["--join-token-file", &token_file]);
        }
        self.live(&line)
    }

    /// As in a pod.
    fn start_by_token(&self, workload: &str) -> Life {
        let (bundle, sds, token) =
            (self.file("root.pem"), self.file("sds/sds.sock"), self.file("istio-token"));
        let mut line = vec!["--ca-addr", &self.address, "--ca-id", SERVER, "--trust-bundle", &bundle];
        line.extend([
            "--workload",
            workload,
            "--capture",
            "none",
            "--sds-socket",
            &sds,
            "--token-file",
            &token,
        ]);
        self.live(&line)
    }

    fn live(&self, line: &[&str]) -> Life {
        let args = crate::testing::arguments(line);
        let state = State::open(&args, None).expect("folders");
        let trust = Trust::load(&args).expect("a bundle");
        assert_eq!(trust.server_id.as_str(), SERVER);
        let (secrets, served) = watch::channel(Secrets::default());
        let health = Arc::new(Health::default());
        let stop = CancellationToken::new();
        let identity = Identity::new(&args, state, trust, None, secrets, health.clone());
        let task = tokio::spawn(identity.run(stop.clone()));
        Life { served, health, stop, task }
    }
}

/// One run of the agent's identity.
struct Life {
    served: watch::Receiver<Secrets>,
    health: Arc<Health>,
    stop: CancellationToken,
    task: tokio::task::JoinHandle<Result<(), std::convert::Infallible>>,
}

impl Life {
    async fn until(&mut self, what: &str, condition: impl FnMut(&Secrets) -> bool) {
        let changed = tokio::time::timeout(LIMIT, self.served.wait_for(condition)).await;
        drop(changed.unwrap_or_else(|_| panic!("not in time: {what}")).expect("it runs"));
    }

    async fn end(self) {
        self.stop.cancel();
        self.task.await.expect("no panic").expect("infallible");
    }

    fn reasons(&self) -> String {
        self.health.ready().expect_err("not ready").join("; ")
    }
}

async fn eventually(what: &str, mut condition: impl FnMut() -> bool) {
    let deadline = tokio::time::Instant::now() + LIMIT;
    while !condition() {
        assert!(tokio::time::Instant::now() < deadline, "not in time: {what}");
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
}

#[tokio::test]
async fn joins_once_and_comes_back_by_its_own_certificate() {
    let scene = Scene::new(Some("once")).await;
    let mut first = scene.start(true);
    first.until("a certificate", Secrets::has_certificate).await;
    assert!(!first.reasons().contains("certificate"), "only Envoy is missing");
    // As by kill -9: nothing is told to stop.
    first.task.abort();
    let stored = Path::new(&scene.file("sds")).join("agent-svid.pem");
    let before = std::fs::read(&stored).expect("stored");
    for token in [true, false] {
        let mut next = scene.start(token);
        next.until("a certificate again", Secrets::has_certificate).await;
        next.end().await;
    }
    assert_eq!(scene.fake.joins.load(Ordering::SeqCst), 1);
    assert_eq!(std::fs::read(&stored).expect("stored"), before, "used as it is until its half life");
}

#[tokio::test]
async fn a_spent_or_missing_token_is_said_and_a_new_one_taken_up() {
    let scene = Scene::new(None).await;
    let no_token = scene.start(false);
    eventually("the missing token is named", || no_token.reasons().contains("--join-token-file")).await;
    no_token.end().await;
    let mut life = scene.start(true);
    eventually("the refusal is told", || life.reasons().contains("no such token")).await;
    scene.fake.tokens.lock().expect("no panic").insert("fresh".to_owned());
    std::fs::write(scene.file("token"), "fresh").expect("written");
    life.until("a certificate", Secrets::has_certificate).await;
    life.end().await;
}

#[tokio::test]
async fn another_root_is_not_believed() {
    let scene = Scene::new(Some("once")).await;
    std::fs::write(scene.file("root.pem"), new_root().root().to_pem()).expect("written");
    let mut life = scene.start(true);
    eventually("the refusal is told", || life.reasons().contains("cannot be reached")).await;
    assert_eq!(scene.fake.joins.load(Ordering::SeqCst), 0, "the token was not shown to a stranger");
    // A bundle that cannot be read changes nothing; the right one is taken up without a restart.
    std::fs::write(scene.file("root.pem"), "garbage").expect("written");
    std::fs::write(scene.file("root.pem"), scene.fake.root.root().to_pem()).expect("written");
    life.until("a certificate", Secrets::has_certificate).await;
    life.end().await;
}

#[tokio::test]
async fn agent_certificates_are_renewed_with_a_new_key_and_kept() {
    let scene = Scene::new(Some("once")).await;
    // With the two minutes of backdating the half life of these is over at once.
    scene.fake.lifetimes.0.store(60, Ordering::SeqCst);
    let mut life = scene.start(true);
    life.until("a certificate", Secrets::has_certificate).await;
    let first = std::fs::read(scene.file("sds/agent-svid.pem")).expect("stored");
    eventually("renewed", || scene.fake.renewals.load(Ordering::SeqCst) > 0).await;
    eventually("kept", || std::fs::read(scene.file("sds/agent-svid.pem")).expect("stored") != first).await;
    life.end().await;
    assert_eq!(scene.fake.joins.load(Ordering::SeqCst), 1);
}

#[tokio::test]
async fn an_expired_certificate_is_not_served_and_not_ready_until_there_is_another() {
    let scene = Scene::new(Some("once")).await;
    scene.fake.lifetimes.1.store(2, Ordering::SeqCst);
    let mut life = scene.start(true);
    life.until("a certificate", Secrets::has_certificate).await;
    scene.fake.down.store(true, Ordering::SeqCst);
    life.until("it is taken away", |secrets| !secrets.has_certificate()).await;
    assert!(life.reasons().contains("no valid workload certificate"), "{}", life.reasons());
    scene.fake.lifetimes.1.store(3600, Ordering::SeqCst);
    scene.fake.down.store(false, Ordering::SeqCst);
    life.until("another one", Secrets::has_certificate).await;
    life.end().await;
}

#[tokio::test]
async fn in_a_pod_its_token_is_shown_as_it_is_at_the_time() {
    let scene = Scene::new(None).await;
    let missing = scene.start_by_token("shop/orders");
    eventually("the missing token is named", || missing.reasons().contains("istio-token")).await;
    missing.end().await;
    std::fs::write(scene.file("istio-token"), "first\n").expect("written");
    // Half of the life of these is over at once, with the two minutes of backdating.
    scene.fake.lifetimes.1.store(60, Ordering::SeqCst);
    let mut life = scene.start_by_token("shop/orders");
    life.until("a certificate", Secrets::has_certificate).await;
    // The kubelet replaces it.
    std::fs::write(scene.file("istio-token"), "second\n").expect("written");
    *scene.fake.pod_token.lock().expect("no panic") = "second".to_owned();
    let before = scene.fake.by_token.load(Ordering::SeqCst);
    eventually("renewed by the new one", || scene.fake.by_token.load(Ordering::SeqCst) > before).await;
    assert!(!Path::new(&scene.file("sds/agent-svid.pem")).exists(), "nothing is stored");
    life.end().await;
    assert_eq!(scene.fake.joins.load(Ordering::SeqCst) + scene.fake.renewals.load(Ordering::SeqCst), 0);
}

#[tokio::test]
async fn a_certificate_of_another_namespace_is_not_taken() {
    let scene = Scene::new(None).await;
    std::fs::write(scene.file("istio-token"), "first\n").expect("written");
    let life = scene.start_by_token("other/orders");
    eventually("the wrong identity is named", || life.reasons().contains("namespace other")).await;
    life.end().await;
}
