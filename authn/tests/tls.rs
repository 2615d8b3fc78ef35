//! Real TLS over loopback: who gets in, who does not, and what a handler is told.

#![allow(clippy::unwrap_used, reason = "a test: a failure here is its result")]

use std::{
    net::SocketAddr,
    sync::{Arc, atomic::Ordering},
    time::Duration,
};

use api::countersign::echo::v1::{
    SayRequest, SayResponse, StreamRequest,
    echo_client::EchoClient,
    echo_server::{Echo, EchoServer},
};
use authn::{
    ClientTrust, OwnSvid, client_config, connect,
    tls::{self, CountersHandle, Limits},
};
use rcgen::{CertificateParams, DistinguishedName, ExtendedKeyUsagePurpose, KeyUsagePurpose, SanType};
use rustls::ClientConfig;
use spiffe::{Authority, Mint, PrivateKey, SpiffeId, Svid, TrustDomain, Usage};
use time::{Duration as Span, OffsetDateTime};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::{TcpListener, TcpStream},
};
use tonic::{Request, Response, Status};

fn domain() -> TrustDomain {
    "cluster.local".parse().unwrap()
}

fn root() -> Authority {
    Authority::create(&domain(), OffsetDateTime::now_utc() - Span::days(1), Span::days(3650)).unwrap()
}

fn id(uri: &str) -> SpiffeId {
    uri.parse().unwrap()
}

fn server_id() -> SpiffeId {
    id("spiffe://cluster.local/ns/istio-system/sa/countersign")
}

fn svid_at(root: &Authority, uri: &str, usage: Usage, now: OffsetDateTime, lifetime: Span) -> Svid {
    let key = PrivateKey::generate().unwrap();
    let mint = Mint { id: id(uri), dns_names: Vec::new(), lifetime, usage };
    let issued = root.sign_own(&key, &mint, now).unwrap();
    Svid::new(vec![issued.certificate], key).unwrap()
}

fn svid(root: &Authority, uri: &str) -> Svid {
    svid_at(root, uri, Usage::ServerAndClient, OffsetDateTime::now_utc(), Span::HOUR)
}

/// Answers with the caller's identity, or "nobody".
struct WhoAmI;

#[tonic::async_trait]
impl Echo for WhoAmI {
    async fn say(&self, request: Request<SayRequest>) -> Result<Response<SayResponse>, Status> {
        assert!(authn::connection(&request).is_some_and(|connection| connection.peer.ip().is_loopback()));
        let text = authn::peer(&request).map_or("nobody".to_owned(), |peer| {
            assert!(!peer.certificate.is_empty() && !peer.serial.is_empty());
            peer.id.to_string()
        });
        Ok(Response::new(SayResponse { text, ..SayResponse::default() }))
    }

    type StreamStream = tokio_stream::Empty<Result<SayResponse, Status>>;

    async fn stream(&self, _: Request<StreamRequest>) -> Result<Response<Self::StreamStream>, Status> {
        Err(Status::unimplemented(""))
    }
}

struct Server {
    root: Authority,
    address: SocketAddr,
    own: Arc<OwnSvid>,
    trust: Arc<ClientTrust>,
    counters: CountersHandle,
}

impl Server {
    async fn start(limits: Limits) -> Self {
        let root = root();
        let own = OwnSvid::new(&svid(&root, server_id().as_str())).unwrap();
        let trust = ClientTrust::new(root.root(), vec![domain(), "old.example".parse().unwrap()]).unwrap();
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let config = tls::server_config(Arc::clone(&own), Arc::clone(&trust));
        let incoming = tls::serve(listener, config, limits);
        let (address, counters) = (incoming.local_addr().unwrap(), incoming.counters());
        let router = tls::grpc_server().add_service(EchoServer::new(WhoAmI));
        tokio::spawn(router.serve_with_incoming(incoming));
        Self { root, address, own, trust, counters }
    }

    fn client(&self, own: Option<&Svid>) -> Arc<ClientConfig> {
        let own = own.map_or_else(OwnSvid::empty, |svid| OwnSvid::new(svid).unwrap());
        client_config(self.root.root(), server_id(), own).unwrap()
    }

    async fn ask(&self, config: Arc<ClientConfig>) -> Result<String, Status> {
        let channel = connect(&self.address.to_string(), config, None)
            .await
            .map_err(|error| Status::unavailable(format!("{error:?}")))?;
        let answer = EchoClient::new(channel).say(SayRequest::default()).await?;
        Ok(answer.into_inner().text)
    }

    async fn ask_as(&self, svid: &Svid) -> Result<String, Status> {
        self.ask(self.client(Some(svid))).await
    }
}

async fn until(what: &str, condition: impl Fn() -> bool) {
    let waiting = async {
        while !condition() {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    };
    assert!(tokio::time::timeout(Duration::from_secs(20), waiting).await.is_ok(), "in vain for {what}");
}

#[tokio::test(flavor = "multi_thread")]
async fn the_identity_reaches_the_handler() {
    let server = Server::start(Limits::default()).await;
    assert_eq!(server.ask(server.client(None)).await.unwrap(), "nobody");
    for uri in ["spiffe://cluster.local/ns/shop/sa/orders", "spiffe://old.example/orders"] {
        assert_eq!(server.ask_as(&svid(&server.root, uri)).await.unwrap(), uri);
    }
    let agent = "spiffe://cluster.local/countersign/agent/shop/orders-1";
    let agent_svid = svid_at(&server.root, agent, Usage::Client, OffsetDateTime::now_utc(), Span::days(7));
    assert_eq!(server.ask_as(&agent_svid).await.unwrap(), agent);
    assert_eq!(server.counters.failed.load(Ordering::Relaxed), 0);
}

/// An SVID whose certificate `change` has spoilt, signed by `root`. Put together by hand, for [`Svid::new`] refuses it.
fn spoilt(root: &Authority, change: impl FnOnce(&mut CertificateParams)) -> Svid {
    let uri = "spiffe://cluster.local/ns/shop/sa/orders";
    let key = PrivateKey::generate().unwrap();
    let mut params = CertificateParams::default();
    params.distinguished_name = DistinguishedName::new();
    params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
    params.extended_key_usages =
        vec![ExtendedKeyUsagePurpose::ClientAuth, ExtendedKeyUsagePurpose::ServerAuth];
    params.subject_alt_names = vec![SanType::URI(uri.try_into().unwrap())];
    change(&mut params);
    let der = root.root().roots().next().unwrap().to_vec();
    let issuer = rcgen::Issuer::from_ca_cert_der(&der.into(), root.key().clone()).unwrap();
    let certificate = params.signed_by(&key, &issuer).unwrap().der().to_vec();
    Svid { leaf: svid(root, uri).leaf, chain: vec![certificate], key }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_certificate_that_proves_no_identity_of_ours_is_refused() {
    let server = Server::start(Limits::default()).await;
    let (now, orders) = (OffsetDateTime::now_utc(), "spiffe://cluster.local/ns/shop/sa/orders");
    let push = |name: SanType| move |params: &mut CertificateParams| params.subject_alt_names.push(name);
    let uri = |text: &str| SanType::URI(text.try_into().unwrap());
    let with = Usage::ServerAndClient;
    let root = &server.root;
    let mut other_key = svid(root, orders);
    other_key.key = PrivateKey::generate().unwrap();
    let cases = [
        ("foreign root", svid(&self::root(), orders)),
        ("ended", svid_at(root, orders, with, now - Span::hours(3), Span::HOUR)),
        ("not yet valid", svid_at(root, orders, with, now + Span::HOUR, Span::HOUR)),
        ("other trust domain", svid(root, "spiffe://evil.example/ns/shop/sa/orders")),
        ("suffix of a trust domain", svid(root, "spiffe://not.cluster.local/ns/shop/sa/orders")),
        ("two IDs", spoilt(root, push(uri("spiffe://cluster.local/ns/shop/sa/admin")))),
        ("NUL in the ID", spoilt(root, |p| p.subject_alt_names = vec![uri("spiffe://cluster.local/a\0b")])),
        ("no names", spoilt(root, |p| p.subject_alt_names.clear())),
        ("a web page", spoilt(root, |p| p.subject_alt_names = vec![uri("https://cluster.local/a")])),
        ("servers only", spoilt(root, |p| p.extended_key_usages = vec![ExtendedKeyUsagePurpose::ServerAuth])),
        ("no key usage", spoilt(root, |p| p.key_usages.clear())),
        ("somebody else's certificate", other_key),
    ];
    let count = cases.len() as u64;
    for (name, svid) in cases {
        assert!(server.ask_as(&svid).await.is_err(), "{name}");
    }
    until("all failures", || server.counters.failed.load(Ordering::Relaxed) >= count).await;
    assert!(server.ask_as(&spoilt(root, |_| {})).await.is_ok(), "the unspoilt one gets in");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_client_talks_to_the_expected_server_only() {
    let server = Server::start(Limits::default()).await;
    let refused = |config| async { server.ask(config).await.unwrap_err().to_string() };
    let foreign = client_config(root().root(), server_id(), OwnSvid::empty()).unwrap();
    assert!(refused(foreign).await.contains("UnknownIssuer"));
    let other = id("spiffe://cluster.local/ns/istio-system/sa/other");
    let other = client_config(server.root.root(), other, OwnSvid::empty()).unwrap();
    assert!(refused(other).await.contains("OtherServer"));
    // A certificate good for clients only does not make a server.
    let agent =
        svid_at(&server.root, server_id().as_str(), Usage::Client, OffsetDateTime::now_utc(), Span::HOUR);
    server.own.replace(&agent).unwrap();
    assert!(server.ask(server.client(None)).await.is_err());
    server.own.replace(&svid(&server.root, server_id().as_str())).unwrap();
    assert!(server.ask(server.client(None)).await.is_ok());
}

#[tokio::test(flavor = "multi_thread")]
async fn trust_is_replaced_while_running_and_no_session_outlives_it() {
    let server = Server::start(Limits::default()).await;
    let orders = svid(&server.root, "spiffe://cluster.local/ns/shop/sa/orders");
    let mut config = (*server.client(Some(&orders))).clone();
    config.resumption = rustls::client::Resumption::in_memory_sessions(8);
    let config = Arc::new(config);
    let new_root = root();
    let both = server.root.root().clone().union(new_root.root());
    server.trust.replace(&both, vec![domain()]).unwrap();
    assert!(server.ask(Arc::clone(&config)).await.is_ok());
    let of_new = svid(&new_root, "spiffe://cluster.local/ns/shop/sa/new");
    assert!(server.ask_as(&of_new).await.is_ok());
    server.trust.replace(new_root.root(), vec![domain()]).unwrap();
    assert!(server.ask(config).await.is_err(), "a resumed session skips verification");
    assert!(server.ask_as(&of_new).await.is_ok());
}

#[tokio::test(flavor = "multi_thread")]
async fn garbage_and_silence_harm_nobody() {
    let limits =
        Limits { handshake_timeout: Duration::from_millis(300), handshakes: 16, ..Limits::default() };
    let server = Server::start(limits).await;
    for garbage in
        [&b"GET / HTTP/1.1\r\n\r\n"[..], &[0; 4096], b"\x16\x03\x01\xff\xff", b"PRI * HTTP/2.0\r\n"]
    {
        let mut socket = TcpStream::connect(server.address).await.unwrap();
        let _ = socket.write_all(garbage).await;
        let mut answer = Vec::new();
        // Either end is fine (an alert, a reset, or the time limit), as long as there is one.
        let end = tokio::time::timeout(Duration::from_secs(10), socket.read_to_end(&mut answer)).await;
        assert!(end.is_ok(), "still open after {garbage:?}");
    }
    let mut silent = Vec::new();
    for _ in 0..300 {
        silent.push(TcpStream::connect(server.address).await.unwrap());
    }
    let orders = svid(&server.root, "spiffe://cluster.local/ns/shop/sa/orders");
    assert!(server.ask_as(&orders).await.is_ok());
    let load = |counter: &std::sync::atomic::AtomicU64| counter.load(Ordering::Relaxed);
    assert!(load(&server.counters.displaced) >= 300 - 17);
    until("the time limit", || load(&server.counters.timed_out) > 0).await;
    // All of them, displaced or timed out, see the end of their connection.
    for mut socket in silent {
        let end = tokio::time::timeout(Duration::from_secs(10), socket.read(&mut [0; 64])).await;
        assert!(matches!(end, Ok(Ok(0) | Err(_))));
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn idle_connections_without_identity_give_way_and_those_with_one_stay() {
    let server = Server::start(Limits { anonymous: 4, ..Limits::default() }).await;
    let address = server.address.to_string();
    let orders = svid(&server.root, "spiffe://cluster.local/ns/shop/sa/orders");
    let channel = connect(&address, server.client(Some(&orders)), None).await.unwrap();
    let mut identified = EchoClient::new(channel);
    identified.say(SayRequest::default()).await.unwrap();
    let mut idle = Vec::new();
    for _ in 0..12 {
        idle.push(authn::dial(&address, server.client(None), None).await.unwrap());
    }
    assert_eq!(server.ask(server.client(None)).await.unwrap(), "nobody");
    until("displacement", || server.counters.displaced.load(Ordering::Relaxed) >= 9).await;
    let mut oldest = idle.remove(0);
    let mut greeting = Vec::new();
    // The server's HTTP/2 settings may come first; the end must come.
    let end = tokio::time::timeout(Duration::from_secs(10), oldest.read_to_end(&mut greeting)).await;
    assert!(end.is_ok());
    identified.say(SayRequest::default()).await.unwrap();
    assert_eq!(server.counters.accepted.load(Ordering::Relaxed), 14);
}

#[tokio::test(flavor = "multi_thread")]
async fn one_certificate_cannot_take_all_places() {
    let server = Server::start(Limits { per_certificate: 2, ..Limits::default() }).await;
    let address = server.address.to_string();
    let orders = svid(&server.root, "spiffe://cluster.local/ns/shop/sa/orders");
    let first = connect(&address, server.client(Some(&orders)), None).await.unwrap();
    let second = connect(&address, server.client(Some(&orders)), None).await.unwrap();
    for channel in [&first, &second] {
        EchoClient::new(channel.clone()).say(SayRequest::default()).await.unwrap();
    }
    assert!(server.ask_as(&orders).await.is_err());
    assert!(server.ask_as(&svid(&server.root, "spiffe://cluster.local/ns/shop/sa/orders")).await.is_ok());
    // A channel may try again before it gives up.
    assert!(server.counters.refused.load(Ordering::Relaxed) >= 1);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_connection_ends_with_its_certificate() {
    let server = Server::start(Limits::default()).await;
    let now = OffsetDateTime::now_utc();
    let uri = "spiffe://cluster.local/ns/shop/sa/orders";
    let brief = svid_at(&server.root, uri, Usage::ServerAndClient, now, Span::seconds(3));
    let channel = connect(&server.address.to_string(), server.client(Some(&brief)), None).await.unwrap();
    let mut client = EchoClient::new(channel);
    client.say(SayRequest::default()).await.unwrap();
    until("the end", || server.counters.expired.load(Ordering::Relaxed) == 1).await;
    // The channel reconnects, and is refused with the ended certificate.
    assert!(client.say(SayRequest::default()).await.is_err());
}
