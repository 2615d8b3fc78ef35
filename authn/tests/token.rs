//! Bearer tokens over real TLS, reviewed by a stand-in for the API server: what a handler is told, and that a flood of idle
//! connections does not displace who has shown one.

#![allow(clippy::unwrap_used, reason = "a test: a failure here is its result")]

use std::{net::SocketAddr, sync::atomic::Ordering, time::Duration};

use api::countersign::echo::v1::{
    SayRequest, SayResponse, StreamRequest,
    echo_client::EchoClient,
    echo_server::{Echo, EchoServer},
};
use authn::{
    ClientTrust, OwnSvid, client_config, connect,
    tls::{self, CountersHandle, Limits},
    token::{Review, Reviewing, TokenLayer, TokenReviewer},
};
use base64::{Engine, engine::general_purpose::URL_SAFE_NO_PAD};
use k8s_openapi::api::authentication::v1::{TokenReviewStatus, UserInfo};
use spiffe::{Authority, Mint, PrivateKey, Svid, TrustDomain, Usage};
use time::{Duration as Span, OffsetDateTime};
use tokio::net::TcpListener;
use tonic::{Code, Request, Response, Status, transport::Channel};

const SERVER: &str = "spiffe://cluster.local/ns/istio-system/sa/countersign";
const ORDERS: &str = "spiffe://cluster.local/ns/shop/sa/orders";

fn domain() -> TrustDomain {
    "cluster.local".parse().unwrap()
}

fn svid(root: &Authority, uri: &str) -> Svid {
    let key = PrivateKey::generate().unwrap();
    let mint = Mint {
        id: uri.parse().unwrap(),
        dns_names: Vec::new(),
        lifetime: Span::HOUR,
        usage: Usage::ServerAndClient,
    };
    let issued = root.sign_own(&key, &mint, OffsetDateTime::now_utc()).unwrap();
    Svid::new(vec![issued.certificate], key).unwrap()
}

/// Knows tokens that are signed `good`.
struct Known;

impl Review for Known {
    fn review<'a>(&'a self, token: &'a str, audience: &'a str) -> Reviewing<'a> {
        Box::pin(async move {
            Ok(TokenReviewStatus {
                audiences: Some(vec![audience.to_owned()]),
                authenticated: Some(token.ends_with(".good")),
                error: None,
                user: Some(UserInfo {
                    groups: Some(vec!["system:serviceaccounts".to_owned()]),
                    username: Some("system:serviceaccount:pay:payment".to_owned()),
                    ..UserInfo::default()
                }),
            })
        })
    }
}

fn token(signature: &str) -> String {
    let exp = OffsetDateTime::now_utc().unix_timestamp() + 3600;
    let claims = format!(r#"{{"aud":["istio-ca"],"exp":{exp}}}"#);
    format!("e30.{}.{signature}", URL_SAFE_NO_PAD.encode(claims))
}

/// Says by what the caller is known.
struct WhoAmI;

#[tonic::async_trait]
impl Echo for WhoAmI {
    async fn say(&self, request: Request<SayRequest>) -> Result<Response<SayResponse>, Status> {
        let certificate = authn::peer(&request).map(|peer| format!("certificate {}", peer.id));
        let token = authn::token_identity(&request)
            .map(|identity| format!("token {}", identity.spiffe_id(&domain()).unwrap()));
        let text = [certificate, token].into_iter().flatten().collect::<Vec<_>>().join(", ");
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
    counters: CountersHandle,
}

impl Server {
    async fn start(limits: Limits) -> Self {
        let now = OffsetDateTime::now_utc() - Span::DAY;
        let root = Authority::create(&domain(), now, Span::days(3650)).unwrap();
        let own = OwnSvid::new(&svid(&root, SERVER)).unwrap();
        let trust = ClientTrust::new(root.root(), vec![domain()]).unwrap();
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let incoming = tls::serve(listener, tls::server_config(own, trust), limits);
        let (address, counters) = (incoming.local_addr().unwrap(), incoming.counters());
        let router = tls::grpc_server()
            .layer(TokenLayer::new(TokenReviewer::new(Known)))
            .add_service(EchoServer::new(WhoAmI));
        tokio::spawn(router.serve_with_incoming(incoming));
        Self { root, address, counters }
    }

    async fn channel(&self, own: Option<&Svid>) -> Channel {
        let own = own.map_or_else(OwnSvid::empty, |svid| OwnSvid::new(svid).unwrap());
        let config = client_config(self.root.root(), SERVER.parse().unwrap(), own).unwrap();
        connect(&self.address.to_string(), config, None).await.unwrap()
    }
}

async fn ask(channel: &Channel, headers: &[String]) -> Result<String, Code> {
    let mut request = Request::new(SayRequest::default());
    for header in headers {
        request.metadata_mut().append("authorization", header.parse().unwrap());
    }
    let answer = EchoClient::new(channel.clone()).say(request).await;
    answer.map(|answer| answer.into_inner().text).map_err(|status| status.code())
}

#[tokio::test(flavor = "multi_thread")]
async fn a_token_is_an_identity_only_where_there_is_no_certificate() {
    let server = Server::start(Limits::default()).await;
    let bearer = |signature: &str| format!("Bearer {}", token(signature));
    let anonymous = server.channel(None).await;
    assert_eq!(ask(&anonymous, &[]).await.unwrap(), "");
    assert_eq!(
        ask(&anonymous, &[bearer("good")]).await.unwrap(),
        "token spiffe://cluster.local/ns/pay/sa/payment"
    );
    // A token of one request is not the next one's.
    assert_eq!(ask(&anonymous, &[]).await.unwrap(), "");
    for headers in [
        vec![bearer("forged")],
        vec!["Bearer".to_owned()],
        vec!["Basic YTpi".to_owned()],
        vec![bearer("good"), bearer("good")],
        vec![bearer("good"), bearer("forged")],
    ] {
        assert_eq!(ask(&anonymous, &headers).await, Err(Code::Unauthenticated), "{headers:?}");
    }
    let orders = server.channel(Some(&svid(&server.root, ORDERS))).await;
    for headers in [vec![], vec![bearer("good")], vec![bearer("forged")]] {
        assert_eq!(ask(&orders, &headers).await.unwrap(), format!("certificate {ORDERS}"), "{headers:?}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_flood_of_idle_connections_displaces_nobody_who_has_shown_a_token() {
    let server = Server::start(Limits { anonymous: 4, ..Limits::default() }).await;
    let good = [format!("Bearer {}", token("good"))];
    let payment = server.channel(None).await;
    assert!(ask(&payment, &good).await.is_ok());
    let mut idle = Vec::new();
    for _ in 0..12 {
        let config = client_config(server.root.root(), SERVER.parse().unwrap(), OwnSvid::empty()).unwrap();
        idle.push(authn::dial(&server.address.to_string(), config, None).await.unwrap());
    }
    let displaced = async {
        while server.counters.displaced.load(Ordering::Relaxed) < 8 {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    };
    tokio::time::timeout(Duration::from_secs(20), displaced).await.unwrap();
    assert!(ask(&payment, &good).await.is_ok());
    // By the same connection: the channel has not dialled again.
    assert_eq!(server.counters.accepted.load(Ordering::Relaxed), 13);
}
