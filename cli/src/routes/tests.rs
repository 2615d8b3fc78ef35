use std::collections::BTreeSet;

use api::countersign::ca::v1::enrollment_server;
use api::countersign::receipts::v1::receipts_server;
use api::istio::v1::auth::istio_certificate_service_server;
use spiffe::SpiffeId;
use tonic::server::NamedService;
use tower::{Layer as _, Service as _};
use xds::ads::server::{Ads, Peer};

use super::*;

#[test]
fn each_route_is_there_once() {
    let rows: Vec<_> = ROUTES.iter().map(|route| (route.port as u8, route.path)).collect();
    let distinct: BTreeSet<_> = rows.iter().collect();
    assert_eq!(rows.len(), distinct.len());
}

/// The services that are mounted, and no others.
#[test]
fn every_service_is_in_the_table() {
    let services = [
        <Ads<controller::Handle> as NamedService>::NAME,
        istio_certificate_service_server::SERVICE_NAME,
        enrollment_server::SERVICE_NAME,
        receipts_server::SERVICE_NAME,
    ];
    let of = |port: Port| -> BTreeSet<&str> {
        let paths = ROUTES.iter().filter(|route| route.port == port).map(|route| route.path);
        paths.map(|path| path.trim_start_matches('/').split('/').next().unwrap_or("")).collect()
    };
    assert_eq!(of(Port::Secure), services.into_iter().collect());
    assert_eq!(of(Port::Plaintext), services.into_iter().take(1).collect());
    assert_eq!(of(Port::Ca), services.into_iter().skip(1).take(1).collect());
}

#[test]
fn the_monitoring_port_is_as_the_table_says() {
    let metrics = runtime::Metrics::new(crate::version::VERSION);
    let (_, changes) = tokio::sync::mpsc::channel(1);
    let (controller, _) = controller::Controller::start(&metrics, changes);
    let served = crate::standalone::wiring::monitoring_server(metrics, controller, None).table();
    let access = |authn| match authn {
        runtime::http::Authn::Open => Access::Anybody,
        runtime::http::Authn::Loopback => Access::Loopback,
    };
    let served: Vec<_> = served.into_iter().map(|(path, authn)| (path, access(authn))).collect();
    let table = ROUTES.iter().filter(|route| route.port == Port::Monitoring);
    assert_eq!(served, table.map(|route| (route.path, route.access)).collect::<Vec<_>>());
}

#[test]
fn the_webhook_is_as_the_table_says() {
    let table = ROUTES.iter().filter(|route| route.port == Port::Webhook).map(|route| route.path);
    assert_eq!(table.collect::<Vec<_>>(), controller::admission::ROUTES.map(|(_, path)| path));
}

/// `docs/reference/ports-and-files.md` shows the table. `BLESS=1 cargo test -p cli routes` writes it anew.
#[test]
fn the_page_shows_the_table() {
    let file = concat!(env!("CARGO_MANIFEST_DIR"), "/../docs/reference/ports-and-files.md");
    let page = std::fs::read_to_string(file).unwrap();
    let (begin, end) =
        ("<!-- routes: made by `BLESS=1 cargo test -p cli routes` -->\n", "<!-- end of routes -->\n");
    let (before, rest) = page.split_once(begin).expect("a place for the table");
    let (shown, after) = rest.split_once(end).expect("its end");
    if std::env::var_os("BLESS").is_some() {
        std::fs::write(file, format!("{before}{begin}{}{end}{after}", markdown())).unwrap();
        return;
    }
    assert!(shown == markdown(), "the routes are out of date: BLESS=1 cargo test -p cli routes");
}

/// What the gate says to a request for `path`; `Ok` if it lets it through.
async fn gated(port: Port, path: &str, peer: &Peer) -> Result<(), tonic::Code> {
    let peer = peer.clone();
    let own: SpiffeId = "spiffe://cluster.local/ns/istio-system/sa/countersign".parse().unwrap();
    let gate = Gate::new(port, move |_| peer.clone(), move || Some(own.clone()));
    let inner = tower::service_fn(async |_: http::Request<()>| {
        Ok::<_, std::convert::Infallible>(http::Response::new(tonic::body::Body::default()))
    });
    let request = http::Request::post(path).body(()).unwrap();
    let answer = gate.layer(inner).call(request).await.unwrap();
    match tonic::Status::from_header_map(answer.headers()) {
        None => Ok(()),
        Some(status) => Err(status.code()),
    }
}

#[tokio::test]
async fn the_gate_holds_the_ports_to_the_table() {
    use tonic::Code::{PermissionDenied, Unauthenticated, Unimplemented};
    let identity = |id: &str| Peer { identity: Some(id.parse().unwrap()), secure: true, ..Peer::default() };
    let (nobody, web) = (Peer::default(), identity("spiffe://cluster.local/ns/shop/sa/web"));
    let own = identity("spiffe://cluster.local/ns/istio-system/sa/countersign");
    let own_by_token = Peer { token: true, ..own.clone() };
    let other_domain = identity("spiffe://elsewhere/ns/istio-system/sa/countersign");
    let receipts = "/countersign.receipts.v1.Receipts/Watch";
    for (port, path, peer, expected) in [
        (Port::Plaintext, ADS, &nobody, Ok(())),
        (Port::Plaintext, CERTIFICATES, &web, Err(Unimplemented)),
        (Port::Plaintext, receipts, &own, Err(Unimplemented)),
        (Port::Secure, ADS, &nobody, Err(Unauthenticated)),
        (Port::Secure, DELTA_ADS, &web, Ok(())),
        (Port::Secure, CERTIFICATES, &nobody, Ok(())),
        (Port::Secure, receipts, &nobody, Err(Unauthenticated)),
        (Port::Secure, receipts, &web, Err(PermissionDenied)),
        (Port::Secure, receipts, &other_domain, Err(PermissionDenied)),
        (Port::Secure, receipts, &own_by_token, Err(PermissionDenied)),
        (Port::Secure, receipts, &own, Ok(())),
        (Port::Secure, "/grpc.reflection.v1.ServerReflection/ServerReflectionInfo", &own, Err(Unimplemented)),
        (Port::Secure, "/metrics", &own, Err(Unimplemented)),
        (Port::Ca, ADS, &own, Err(Unimplemented)),
        (Port::Ca, CERTIFICATES, &nobody, Ok(())),
    ] {
        assert_eq!(gated(port, path, peer).await, expected, "{port:?} {path} {peer:?}");
    }
}
