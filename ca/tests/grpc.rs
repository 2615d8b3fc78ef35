//! The CA as callers see it: gRPC over real TLS.

#![allow(clippy::unwrap_used, reason = "a test: a failure here is its result")]

use std::{
    collections::BTreeMap,
    io::{self, Write},
    sync::{
        Arc, LazyLock, Mutex,
        atomic::{AtomicBool, Ordering},
    },
};

use api::{
    countersign::ca::v1::{AgentCredential, JoinRequest, RenewRequest, enrollment_client::EnrollmentClient},
    istio::v1::auth::{
        IstioCertificateRequest, istio_certificate_service_client::IstioCertificateServiceClient,
    },
};
use authn::{ClientTrust, OwnSvid, client_config, connect, tls};
use ca::{
    Ca, Counters, Issuer, JoinTokens, Lifetimes, NotReady, Registry, ServerIdentity, Storage, WorkloadName,
};
use rcgen::{CertificateParams, DnType, SanType};
use spiffe::{Authority, Leaf, Mint, PrivateKey, SigningRequest, Svid, TrustBundle, TrustDomain, Usage};
use tempfile::TempDir;
use time::{Duration, OffsetDateTime};
use tokio::net::{TcpListener, TcpStream};
use tonic::{Code, Status, transport::Channel};

/// Workloads by "NAMESPACE/NAME", shared with the test.
#[derive(Clone, Default)]
struct Workloads {
    service_accounts: Arc<Mutex<BTreeMap<String, String>>>,
    complete: Arc<AtomicBool>,
}

impl Workloads {
    fn ready(&self) -> Result<(), NotReady> {
        if self.complete.load(Ordering::Relaxed) { Ok(()) } else { Err(NotReady) }
    }

    fn set(&self, name: &str, service_account: Option<&str>) {
        let mut known = self.service_accounts.lock().unwrap();
        match service_account {
            Some(service_account) => known.insert(name.to_owned(), service_account.to_owned()),
            None => known.remove(name),
        };
    }
}

impl Registry for Workloads {
    fn service_account(&self, namespace: &str, name: &str) -> Result<Option<String>, NotReady> {
        self.ready()?;
        Ok(self.service_accounts.lock().unwrap().get(&format!("{namespace}/{name}")).cloned())
    }

    fn service_account_in_use(&self, namespace: &str, service_account: &str) -> Result<bool, NotReady> {
        self.ready()?;
        let prefix = format!("{namespace}/");
        let known = self.service_accounts.lock().unwrap();
        Ok(known.iter().any(|(name, account)| name.starts_with(&prefix) && account == service_account))
    }
}

struct Fixture {
    _dir: TempDir,
    tokens: JoinTokens,
    workloads: Workloads,
    issuer: Arc<Issuer>,
    counters: Arc<Counters>,
    identity: ServerIdentity,
    address: String,
}

fn domain() -> TrustDomain {
    "cluster.local".parse().unwrap()
}

async fn fixture() -> Fixture {
    LazyLock::force(&LOG);
    let dir = tempfile::tempdir().unwrap();
    let storage = Storage::open(dir.path()).unwrap();
    let authority = storage.authority(&domain(), OffsetDateTime::now_utc()).unwrap();
    let issuer = Issuer::new(domain(), authority, Lifetimes::default());
    let (counters, workloads) = (Arc::new(Counters::default()), Workloads::default());
    workloads.complete.store(true, Ordering::Relaxed);
    workloads.set("shop/orders-1", Some("orders"));
    let identity = ServerIdentity::start(Arc::clone(&issuer), "istio-system", Arc::clone(&counters)).unwrap();
    let trust = ClientTrust::new(&issuer.bundle(), vec![domain(), "old.example".parse().unwrap()]).unwrap();
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap().to_string();
    let incoming = tls::serve(listener, tls::server_config(identity.own(), trust), tls::Limits::default());
    let tokens = storage.join_tokens();
    let ca = Ca::new(Arc::clone(&issuer), tokens.clone(), workloads.clone(), Arc::clone(&counters));
    let router = tls::grpc_server().add_service(ca.enrollment()).add_service(ca.certificates());
    tokio::spawn(router.serve_with_incoming(incoming));
    Fixture { _dir: dir, tokens, workloads, issuer, counters, identity, address }
}

fn csr(key: &PrivateKey) -> String {
    SigningRequest::create(key).unwrap()
}

fn new_csr() -> String {
    csr(&PrivateKey::generate().unwrap())
}

/// The SVID in an answer, which must end with the root.
fn svid(chain: &[String], key: &PrivateKey) -> Svid {
    assert!(chain.len() >= 2, "Istio's agents take one element for a failure");
    TrustBundle::from_pem(chain.last().unwrap().as_bytes()).unwrap();
    Svid::from_pem(&chain.concat(), key.clone()).unwrap()
}

impl Fixture {
    async fn channel(&self, own: Option<&Svid>) -> Channel {
        let own = own.map_or_else(OwnSvid::empty, |svid| OwnSvid::new(svid).unwrap());
        let config = client_config(&self.issuer.bundle(), self.identity.id().clone(), own).unwrap();
        connect(&self.address, config, None).await.unwrap()
    }

    fn token(&self, workload: &str) -> String {
        let workload: WorkloadName = workload.parse().unwrap();
        self.tokens.create(&workload, ca::DEFAULT_TTL, OffsetDateTime::now_utc()).unwrap().to_string()
    }

    async fn join(&self, token: &str, workload: &str, csr: String) -> Result<AgentCredential, Status> {
        let request = JoinRequest { token: token.into(), csr, workload: workload.into() };
        let mut client = EnrollmentClient::new(self.channel(None).await);
        client.join(request).await.map(tonic::Response::into_inner)
    }

    async fn agent(&self) -> Svid {
        let key = PrivateKey::generate().unwrap();
        let answer = self.join(&self.token("shop/orders-1"), "shop/orders-1", csr(&key)).await.unwrap();
        assert_eq!(answer.workload_id, "spiffe://cluster.local/ns/shop/sa/orders");
        svid(&answer.cert_chain, &key)
    }

    async fn renew(&self, own: Option<&Svid>, csr: String) -> Result<AgentCredential, Status> {
        let mut client = EnrollmentClient::new(self.channel(own).await);
        client.renew(RenewRequest { csr }).await.map(tonic::Response::into_inner)
    }

    async fn certificate(
        &self,
        own: Option<&Svid>,
        request: IstioCertificateRequest,
    ) -> Result<Vec<String>, Status> {
        let mut client = IstioCertificateServiceClient::new(self.channel(own).await);
        Ok(client.create_certificate(request).await?.into_inner().cert_chain)
    }

    async fn workload(&self, own: &Svid) -> Result<Svid, Status> {
        let key = PrivateKey::generate().unwrap();
        let chain = self.certificate(Some(own), asking(csr(&key), 0)).await?;
        Ok(svid(&chain, &key))
    }

    /// An SVID of the CA's making for any identity, past the services.
    fn minted(&self, uri: &str) -> Svid {
        self.issuer.own(uri.parse().unwrap(), Vec::new(), OffsetDateTime::now_utc()).unwrap()
    }
}

fn asking(csr: String, validity_duration: i64) -> IstioCertificateRequest {
    IstioCertificateRequest { csr, validity_duration, metadata: None }
}

fn code<T: std::fmt::Debug>(result: Result<T, Status>) -> Code {
    result.unwrap_err().code()
}

#[tokio::test(flavor = "multi_thread")]
async fn from_token_to_agent_to_workload() {
    let fixture = fixture().await;
    let agent = fixture.agent().await;
    assert_eq!(agent.leaf.id.as_str(), "spiffe://cluster.local/countersign/agent/shop/orders-1");
    let lifetime = agent.leaf.lifetime() - spiffe::BACKDATE;
    assert_eq!(lifetime, Duration::days(7));
    let workload = fixture.workload(&agent).await.unwrap();
    assert_eq!(workload.leaf.id.as_str(), "spiffe://cluster.local/ns/shop/sa/orders");
    assert_eq!(workload.leaf.lifetime() - spiffe::BACKDATE, Duration::HOUR);
    let again = fixture.workload(&workload).await.unwrap();
    assert_eq!(again.leaf.id, workload.leaf.id);
    assert_ne!(again.leaf.serial, workload.leaf.serial);
    let key = PrivateKey::generate().unwrap();
    let renewed = fixture.renew(Some(&agent), csr(&key)).await.unwrap();
    assert_eq!(svid(&renewed.cert_chain, &key).leaf.id, agent.leaf.id);
    assert_eq!(renewed.workload_id, "spiffe://cluster.local/ns/shop/sa/orders");
    let count = |counter: &std::sync::atomic::AtomicU64| counter.load(Ordering::Relaxed);
    assert_eq!((count(&fixture.counters.csr), count(&fixture.counters.issued)), (4, 4));
    assert_eq!(count(&fixture.counters.joined), 1);
    assert!(fixture.counters.root_expiry.load(Ordering::Relaxed) > 0);
}

/// A request by `key` for everything that somebody could wish for.
fn greedy(key: &PrivateKey) -> String {
    let mut params = CertificateParams::new(vec!["istiod.istio-system.svc".to_owned()]).unwrap();
    params.distinguished_name.push(DnType::CommonName, "spiffe://cluster.local/ns/bank/sa/admin");
    let uri = |text: &str| SanType::URI(text.try_into().unwrap());
    params.subject_alt_names.push(uri("spiffe://cluster.local/ns/bank/sa/admin"));
    params.subject_alt_names.push(uri("spiffe://cluster.local/ns/shop/sa/orders\0.evil"));
    params.is_ca = rcgen::IsCa::Ca(rcgen::BasicConstraints::Unconstrained);
    params.serialize_request(key).unwrap().pem().unwrap()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_request_for_somebody_elses_identity_gets_the_callers() {
    let fixture = fixture().await;
    let key = PrivateKey::generate().unwrap();
    let joined = fixture.join(&fixture.token("shop/orders-1"), "shop/orders-1", greedy(&key)).await.unwrap();
    let agent = svid(&joined.cert_chain, &key);
    assert_eq!(agent.leaf.id.as_str(), "spiffe://cluster.local/countersign/agent/shop/orders-1");
    let chain = fixture.certificate(Some(&agent), asking(greedy(&key), 0)).await.unwrap();
    let Leaf { id, dns_names, .. } = svid(&chain, &key).leaf;
    assert_eq!(id.as_str(), "spiffe://cluster.local/ns/shop/sa/orders");
    assert!(dns_names.is_empty());
}

#[tokio::test(flavor = "multi_thread")]
async fn all_token_failures_look_the_same_and_only_success_uses_a_token_up() {
    let fixture = fixture().await;
    let (token, orders) = (fixture.token("shop/orders-1"), "shop/orders-1");
    let past = OffsetDateTime::now_utc() - Duration::HOUR;
    let ended = fixture.tokens.create(&orders.parse().unwrap(), Duration::MINUTE, past).unwrap().to_string();
    let used = fixture.token(orders);
    fixture.join(&used, orders, new_csr()).await.unwrap();
    let unknown = "A".repeat(43);
    fixture.workloads.set("shop/payment-1", Some("payment"));
    let mut seen = Vec::new();
    for (token, workload) in [
        (ended.as_str(), orders),
        (used.as_str(), orders),
        (unknown.as_str(), orders),
        ("", orders),
        ("../used/x", orders),
        (token.as_str(), "shop/payment-1"),
        (token.as_str(), "shop/unregistered"),
    ] {
        let status = fixture.join(token, workload, new_csr()).await.unwrap_err();
        seen.push((status.code(), status.message().to_owned()));
    }
    assert!(
        seen.iter().all(|one| *one == (Code::Unauthenticated, "the join token is not valid".to_owned())),
        "{seen:?}"
    );
    // Bad requests of a caller with a good token.
    assert_eq!(code(fixture.join(&token, orders, "nonsense".into()).await), Code::InvalidArgument);
    assert_eq!(code(fixture.join(&token, "orders-1", new_csr()).await), Code::InvalidArgument);
    fixture.workloads.complete.store(false, Ordering::Relaxed);
    assert_eq!(code(fixture.join(&token, orders, new_csr()).await), Code::Unavailable);
    fixture.workloads.complete.store(true, Ordering::Relaxed);
    fixture.workloads.set(orders, None);
    assert_eq!(code(fixture.join(&token, orders, new_csr()).await), Code::PermissionDenied);
    fixture.workloads.set(orders, Some("orders"));
    fixture.join(&token, orders, new_csr()).await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn of_parallel_joins_with_one_token_one_wins() {
    let fixture = Arc::new(fixture().await);
    let token = fixture.token("shop/orders-1");
    let joins: Vec<_> = (0..20)
        .map(|_| {
            let (fixture, token) = (Arc::clone(&fixture), token.clone());
            tokio::spawn(async move { fixture.join(&token, "shop/orders-1", new_csr()).await.is_ok() })
        })
        .collect();
    let mut wins = 0;
    for join in joins {
        wins += u32::from(join.await.unwrap());
    }
    assert_eq!(wins, 1);
}

#[tokio::test(flavor = "multi_thread")]
async fn guessing_tokens_is_stopped() {
    let fixture = fixture().await;
    let token = fixture.token("shop/orders-1");
    let mut codes = Vec::new();
    for _ in 0..12 {
        codes.push(code(fixture.join(&"A".repeat(43), "shop/orders-1", new_csr()).await));
    }
    assert_eq!(codes[0], Code::Unauthenticated);
    assert_eq!(codes[11], Code::ResourceExhausted);
    assert_eq!(code(fixture.join(&token, "shop/orders-1", new_csr()).await), Code::ResourceExhausted);
    assert!(fixture.counters.rate_limited.load(Ordering::Relaxed) > 0);
    // Callers with an identity do not suffer from it.
    assert!(fixture.workload(&fixture.minted("spiffe://cluster.local/ns/shop/sa/orders")).await.is_ok());
}

#[tokio::test(flavor = "multi_thread")]
async fn requests_that_are_malformed_unproven_or_too_greedy_are_refused() {
    let fixture = fixture().await;
    let agent = fixture.agent().await;
    let asked = async |request| code(fixture.certificate(Some(&agent), request).await);
    let ten_years = 10 * 365 * 24 * 3600;
    assert_eq!(asked(asking(new_csr(), ten_years)).await, Code::InvalidArgument);
    assert_eq!(asked(asking(new_csr(), i64::MAX)).await, Code::InvalidArgument);
    assert_eq!(asked(asking(String::new(), 0)).await, Code::InvalidArgument);
    assert_eq!(asked(asking("x".repeat(20_000), 0)).await, Code::InvalidArgument);
    assert_eq!(asked(asking("x".repeat(100_000), 0)).await, Code::OutOfRange);
    // A request with another key than signed it.
    let (mine, theirs) = (PrivateKey::generate().unwrap(), PrivateKey::generate().unwrap());
    let mut stolen = CertificateParams::default().serialize_request(&mine).unwrap().der().to_vec();
    let key = mine.public_key_der();
    let at = stolen.windows(key.len()).position(|window| window == key).unwrap();
    stolen[at..at + key.len()].copy_from_slice(&theirs.public_key_der());
    let body = base64::Engine::encode(&base64::engine::general_purpose::STANDARD, stolen);
    let pem = format!("-----BEGIN CERTIFICATE REQUEST-----\n{body}\n-----END CERTIFICATE REQUEST-----\n");
    assert_eq!(asked(asking(pem, 0)).await, Code::InvalidArgument);
    for key in ["ImpersonatedIdentity", "CertSigner"] {
        let value = prost_types::Value { kind: Some(prost_types::value::Kind::StringValue("x".into())) };
        let metadata = prost_types::Struct { fields: [(key.to_owned(), value)].into() };
        let request = IstioCertificateRequest { metadata: Some(metadata), ..asking(new_csr(), 0) };
        assert_eq!(asked(request).await, Code::InvalidArgument, "{key}");
    }
    assert!(fixture.certificate(Some(&agent), asking(new_csr(), 24 * 3600)).await.is_ok());
}

#[tokio::test(flavor = "multi_thread")]
async fn who_may_not_have_a_certificate_gets_none() {
    let fixture = fixture().await;
    let minted = |uri| fixture.minted(uri);
    assert_eq!(code(fixture.certificate(None, asking(new_csr(), 0)).await), Code::Unauthenticated);
    assert_eq!(code(fixture.renew(None, new_csr()).await), Code::Unauthenticated);
    for uri in [
        "spiffe://cluster.local/ns/shop/sa/unused",
        "spiffe://cluster.local/ns/bank/sa/orders",
        "spiffe://cluster.local/ns/istio-system/sa/countersign",
        "spiffe://cluster.local/countersign/agent/shop/unregistered",
        "spiffe://cluster.local/orders",
        "spiffe://old.example/ns/shop/sa/orders",
        "spiffe://old.example/countersign/agent/shop/orders-1",
    ] {
        assert_eq!(code(fixture.workload(&minted(uri)).await), Code::PermissionDenied, "{uri}");
        assert_eq!(code(fixture.renew(Some(&minted(uri)), new_csr()).await), Code::PermissionDenied, "{uri}");
    }
    // A workload's SVID does not make an agent.
    let workload = minted("spiffe://cluster.local/ns/shop/sa/orders");
    assert_eq!(code(fixture.renew(Some(&workload), new_csr()).await), Code::PermissionDenied);
}

#[tokio::test(flavor = "multi_thread")]
async fn certificates_of_others_do_not_connect() {
    let fixture = fixture().await;
    let now = OffsetDateTime::now_utc();
    let id = "spiffe://cluster.local/ns/shop/sa/orders".parse().unwrap();
    let mint = Mint { id, dns_names: Vec::new(), lifetime: Duration::HOUR, usage: Usage::ServerAndClient };
    let foreign = Authority::create(&domain(), now, Duration::DAY).unwrap();
    let key = PrivateKey::generate().unwrap();
    let issued = foreign.sign_own(&key, &mint, now).unwrap();
    let foreign = OwnSvid::new(&Svid::new(vec![issued.certificate], key).unwrap()).unwrap();
    let config = client_config(&fixture.issuer.bundle(), fixture.identity.id().clone(), foreign).unwrap();
    // With TLS 1.3 the refusal may reach the client only after its first request.
    if let Ok(channel) = connect(&fixture.address, config, None).await {
        let answer =
            IstioCertificateServiceClient::new(channel).create_certificate(asking(new_csr(), 0)).await;
        assert!(answer.is_err());
    }
    assert_eq!(fixture.counters.csr.load(Ordering::Relaxed), 0, "no request reached the service");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_workload_that_is_gone_renews_nothing() {
    let fixture = fixture().await;
    let agent = fixture.agent().await;
    let workload = fixture.workload(&agent).await.unwrap();
    fixture.workloads.set("shop/orders-1", Some("other"));
    let moved = fixture.workload(&agent).await.unwrap();
    assert_eq!(moved.leaf.id.as_str(), "spiffe://cluster.local/ns/shop/sa/other", "the registration decides");
    assert_eq!(code(fixture.workload(&workload).await), Code::PermissionDenied);
    fixture.workloads.set("shop/orders-1", None);
    assert_eq!(code(fixture.workload(&agent).await), Code::PermissionDenied);
    assert_eq!(code(fixture.renew(Some(&agent), new_csr()).await), Code::PermissionDenied);
    fixture.workloads.complete.store(false, Ordering::Relaxed);
    for result in [code(fixture.workload(&agent).await), code(fixture.workload(&workload).await)] {
        assert_eq!(result, Code::Unavailable, "unknown yet is not gone");
    }
    fixture.workloads.complete.store(true, Ordering::Relaxed);
    fixture.workloads.set("shop/orders-1", Some(""));
    assert_eq!(code(fixture.workload(&agent).await), Code::PermissionDenied);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_stock_tls_client_reaches_us_by_dns_name_with_tls_1_2_and_1_3() {
    let fixture = fixture().await;
    let mut roots = rustls::RootCertStore::empty();
    for root in fixture.issuer.bundle().roots() {
        roots.add(root.into()).unwrap();
    }
    for version in [&rustls::version::TLS12, &rustls::version::TLS13] {
        let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
        let config = rustls::ClientConfig::builder_with_provider(provider)
            .with_protocol_versions(&[version])
            .unwrap()
            .with_root_certificates(roots.clone())
            .with_no_client_auth();
        for name in ["localhost", "countersign.istio-system.svc", "istiod.istio-system.svc"] {
            let connector = tokio_rustls::TlsConnector::from(Arc::new(config.clone()));
            let tcp = TcpStream::connect(&fixture.address).await.unwrap();
            let tls = connector.connect(name.try_into().unwrap(), tcp).await.unwrap();
            assert_eq!(tls.get_ref().1.protocol_version(), Some(version.version));
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn our_own_certificate_follows_a_new_root() {
    let fixture = fixture().await;
    let old = fixture.issuer.bundle();
    let next = Authority::create(&domain(), OffsetDateTime::now_utc(), Duration::days(30)).unwrap();
    let only_new = next.root().clone();
    fixture.issuer.rotate(next, std::slice::from_ref(&old));
    let config = client_config(&only_new, fixture.identity.id().clone(), OwnSvid::empty()).unwrap();
    let connected = async {
        while authn::dial(&fixture.address, Arc::clone(&config), None).await.is_err() {
            tokio::time::sleep(std::time::Duration::from_millis(5)).await;
        }
    };
    tokio::time::timeout(std::time::Duration::from_secs(10), connected).await.unwrap();
}

/// Everything that the tests of this process log. Shared, since a subscriber per test misses events of other threads.
#[derive(Clone, Default)]
struct Log(Arc<Mutex<Vec<u8>>>);

static LOG: LazyLock<Log> = LazyLock::new(|| {
    let log = Log::default();
    let writer = log.clone();
    let subscriber = tracing_subscriber::fmt()
        .with_env_filter("trace,h2=info,hyper=info,hyper_util=info,tower=info")
        .with_ansi(false)
        .with_writer(move || writer.clone());
    tracing::subscriber::set_global_default(subscriber.finish()).unwrap();
    log
});

impl Write for Log {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.0.lock().unwrap().extend_from_slice(bytes);
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn every_issuance_is_in_the_log_and_no_secret_is() {
    let fixture = fixture().await;
    let (token, key) = (fixture.token("shop/orders-1"), PrivateKey::generate().unwrap());
    let answer = fixture.join(&token, "shop/orders-1", csr(&key)).await.unwrap();
    let agent = svid(&answer.cert_chain, &key);
    let workload = fixture.workload(&agent).await.unwrap();
    fixture.join(&token, "shop/orders-1", csr(&key)).await.unwrap_err();
    let text = String::from_utf8(LOG.0.lock().unwrap().clone()).unwrap();
    let line = |words: &[&str]| text.lines().any(|line| words.iter().all(|word| line.contains(word)));
    assert!(line(&["audit", "issued", "Join", &agent.leaf.serial, agent.leaf.id.as_str(), "127.0.0.1"]));
    let caller = format!("caller=\"{}\"", agent.leaf.id);
    assert!(line(&["audit", "issued", &workload.leaf.serial, workload.leaf.id.as_str(), &caller]));
    assert!(line(&["audit", "refused", "Join", "Unauthenticated"]));
    assert!(!text.contains(&token), "the token is in the log");
    for key in [&key, &workload.key] {
        let pem = key.to_pem();
        assert!(!text.contains(pem.lines().nth(1).unwrap()), "a key is in the log");
    }
}
