//! The table of decisions, each on a real Envoy: right and wrong identity, method, path, certificate, token, protocol.

use anyhow::Result;
use http::Method;
use serde_json::json;
use tests::here;
use tests::lab::{
    self, ALLOWED, Authority, Caller, Credential, DENIED, Family, Got, Lab, Leaf, PodId, PodSpec, Protocol,
    Signer, UNAUTHENTICATED, in_seconds, request,
};

/// Mesh-wide STRICT, deny by default, and what may be called on `orders`.
const POLICIES: &str = r#"
apiVersion: security.istio.io/v1
kind: PeerAuthentication
metadata: {name: default, namespace: istio-system}
spec:
  mtls: {mode: STRICT}
---
apiVersion: security.istio.io/v1
kind: AuthorizationPolicy
metadata: {name: deny-by-default, namespace: istio-system}
spec: {}
---
apiVersion: security.istio.io/v1beta1
kind: AuthorizationPolicy
metadata:
  name: orders-policy
spec:
  rules:
  - from:
    - source:
        principals: ["cluster.local/ns/default/sa/payment-service"]
    to:
    - operation:
        methods: ["POST"]
        paths: ["/orders/*"]
---
apiVersion: security.istio.io/v1
kind: AuthorizationPolicy
metadata: {name: account, namespace: default}
spec:
  rules:
  - from: [{source: {requestPrincipals: ["https://login.example/*"]}}]
    to: [{operation: {methods: [GET], paths: ["/account/*"]}}]
  - from: [{source: {requestPrincipals: ["https://login.example/*"]}}]
    to: [{operation: {paths: ["/countersign.echo.v1.Echo/Say"], ports: ["9090"]}}]
    when: [{key: "request.headers[x-tenant]", values: [acme]}]
---
apiVersion: security.istio.io/v1
kind: AuthorizationPolicy
metadata: {name: tcp, namespace: default}
spec:
  rules:
  - from: [{source: {principals: ["cluster.local/ns/default/sa/payment-service"]}}]
    to: [{operation: {ports: ["5432", "7777"]}}]
"#;

fn login(signer: &Signer) -> String {
    format!(
        "apiVersion: security.istio.io/v1\nkind: RequestAuthentication\nmetadata: {{name: login, namespace: \
         istio-system}}\nspec:\n  jwtRules:\n  - issuer: {}\n    jwks: '{}'\n",
        signer.issuer,
        signer.jwks()
    )
}

/// The same application twice: behind interception, and without it on an address 127.x of its own.
async fn orders(lab: &mut Lab, signer: &Signer) -> Result<[PodId; 2]> {
    lab.save("policies.yaml", POLICIES)?;
    lab.save("login.yaml", &login(signer))?;
    lab.start().await?;
    let spec = |name| {
        PodSpec::new("default", name)
            .port(8080, Protocol::Http)
            .port(9090, Protocol::Grpc)
            .port(5432, Protocol::Tcp)
            .port(5433, Protocol::Tcp)
            .port(6000, Protocol::Unnamed)
            .port(7777, Protocol::Undeclared)
    };
    let pods = lab.pods([spec("orders"), spec("orders-local").without_capture()]).await?;
    Ok([pods[0], pods[1]])
}

/// Each pod with the address families it has.
fn everywhere(pods: [PodId; 2]) -> [(PodId, Family); 3] {
    [(pods[0], Family::V4), (pods[0], Family::V6), (pods[1], Family::V4)]
}

fn post(path: &str) -> http::Request<bytes::Bytes> {
    request(Method::POST, path)
}

fn with_token(method: Method, path: &str, token: &str) -> http::Request<bytes::Bytes> {
    let mut request = request(method, path);
    request
        .headers_mut()
        .insert("authorization", format!("Bearer {token}").parse().expect("a token is ASCII"));
    request
}

/// Who may do what over HTTP.
#[test]
fn http_by_identity_method_and_path() {
    lab::run(here!(), async |lab| {
        let signer = Signer::new("https://login.example")?;
        let pods = orders(lab, &signer).await?;
        for (pod, family) in everywhere(pods) {
            let payment = lab.caller_to(pod, lab.identity("default", "payment-service")?);
            let gateway = lab.caller_to(pod, lab.identity("default", "gateway")?);
            let on = lab[pod].address(family, 8080);
            let rows: [(&Caller, Method, &str, Got); 9] = [
                (&payment, Method::POST, "/orders/1", ALLOWED),
                (&gateway, Method::POST, "/orders/1", DENIED),
                (&payment, Method::GET, "/orders/1", DENIED),
                (&payment, Method::POST, "/orders", DENIED),
                (&payment, Method::POST, "/ORDERS/1", DENIED),
                (&payment, Method::POST, "/orders/../admin", DENIED),
                (&payment, Method::POST, "/orders/%2e%2e/admin", DENIED),
                (&payment, Method::POST, "/admin?/orders/1", DENIED),
                (&payment, Method::POST, "/orders/1?x=y", ALLOWED),
            ];
            for (caller, method, path, expected) in rows {
                let answer = caller.send(on, request(method.clone(), path)).await;
                assert_eq!(answer.got, expected, "{method} {path} on {on}");
            }
            let seen = payment.send(on, post("/orders/1")).await.seen();
            assert_eq!(seen["peer"], "spiffe://cluster.local/ns/default/sa/payment-service");
        }
        Ok(())
    });
}

/// Only a valid certificate of this mesh gets as far as policy.
#[test]
fn certificates_good_and_bad() {
    lab::run(here!(), async |lab| {
        let signer = Signer::new("https://login.example")?;
        let pods = orders(lab, &signer).await?;
        let mesh = lab.authority()?;
        let foreign = Authority::new()?;
        let payment = Leaf::new(["spiffe://cluster.local/ns/default/sa/payment-service"]);
        let other_domain = Leaf::new(["spiffe://other.example/ns/default/sa/payment-service"]);
        let nobody = Leaf::new(Vec::<String>::new());
        for (name, credential, expected) in [
            ("a valid certificate", mesh.mint(&payment)?, ALLOWED),
            ("plaintext", Credential::Plaintext, Got::Closed),
            ("no certificate", Credential::Anonymous, Got::TlsRefused),
            ("expired", mesh.mint(&payment.clone().expired())?, Got::TlsRefused),
            ("not yet valid", mesh.mint(&payment.clone().not_yet_valid())?, Got::TlsRefused),
            ("a foreign CA", foreign.mint(&payment)?, Got::TlsRefused),
            ("another trust domain", mesh.mint(&other_domain)?, Got::TlsRefused),
            ("no name", mesh.mint(&nobody)?, Got::TlsRefused),
        ] {
            for (pod, family) in everywhere(pods) {
                let caller = lab.caller_to(pod, credential.clone());
                let on = lab[pod].address(family, 8080);
                assert_eq!(caller.send(on, post("/orders/1")).await.got, expected, "{name} on {on}");
            }
        }
        Ok(())
    });
}

/// Plaintext gets through no port whatsoever under STRICT, declared or not, over either family.
#[test]
fn plaintext_under_strict_reaches_no_port() {
    lab::run(here!(), async |lab| {
        let signer = Signer::new("https://login.example")?;
        let pods = orders(lab, &signer).await?;
        for (pod, family) in everywhere(pods) {
            let caller = lab.caller_to(pod, Credential::Plaintext);
            // Without capture 15001 is where the pod's own application asks its Envoy.
            let outbound = (pod == pods[0]).then_some(15001);
            for port in [8080, 9090, 5432, 5433, 6000, 7777, 15006].into_iter().chain(outbound) {
                let on = lab[pod].address(family, port);
                assert_eq!(caller.send(on, post("/orders/1")).await.got, Got::Closed, "HTTP to {on}");
                assert_eq!(caller.line(on, "hello").await, Got::Closed, "a line to {on}");
            }
        }
        Ok(())
    });
}

/// End users' tokens, and both at once with the caller's identity.
#[test]
fn tokens_missing_valid_expired_and_forged() {
    lab::run(here!(), async |lab| {
        let signer = Signer::new("https://login.example")?;
        let pods = orders(lab, &signer).await?;
        let forger = Signer::new("https://login.example")?;
        let stranger = Signer::new("https://other.example")?;
        let valid = signer.token(&json!({}))?;
        for pod in pods {
            let caller = lab.caller_to(pod, lab.identity("default", "gateway")?);
            let on = lab[pod].on(8080);
            for (name, token, expected) in [
                ("valid", valid.clone(), ALLOWED),
                ("expired", signer.token(&json!({ "exp": in_seconds(-3600) }))?, UNAUTHENTICATED),
                ("not yet valid", signer.token(&json!({ "nbf": in_seconds(3600) }))?, UNAUTHENTICATED),
                ("forged", forger.token(&json!({}))?, UNAUTHENTICATED),
                ("of an unknown issuer", stranger.token(&json!({}))?, UNAUTHENTICATED),
                ("nonsense", "a.b.c".to_owned(), UNAUTHENTICATED),
            ] {
                let got = caller.send(on, with_token(Method::GET, "/account/me", &token)).await.got;
                assert_eq!(got, expected, "{name} on {on}");
            }
            assert_eq!(caller.get(on, "/account/me").await.got, DENIED, "no token");
            let elsewhere = caller.send(on, with_token(Method::GET, "/orders/1", &valid)).await.got;
            assert_eq!(elsewhere, DENIED, "a token for another path");
        }
        Ok(())
    });
}

/// gRPC methods by identity, token and metadata.
#[test]
fn grpc_by_token_and_metadata() {
    lab::run(here!(), async |lab| {
        let signer = Signer::new("https://login.example")?;
        let pods = orders(lab, &signer).await?;
        let valid = format!("Bearer {}", signer.token(&json!({}))?);
        let expired = format!("Bearer {}", signer.token(&json!({ "exp": in_seconds(-3600) }))?);
        for pod in pods {
            let caller = lab.caller_to(pod, lab.identity("default", "gateway")?);
            let on = lab[pod].on(9090);
            let rows: [(&[(&'static str, &str)], Got); 5] = [
                (&[("authorization", &valid), ("x-tenant", "acme")], ALLOWED),
                (&[("authorization", &valid), ("x-tenant", "other")], DENIED),
                (&[("authorization", &valid)], DENIED),
                (&[("x-tenant", "acme")], DENIED),
                (&[("authorization", &expired), ("x-tenant", "acme")], UNAUTHENTICATED),
            ];
            for (metadata, expected) in rows {
                assert_eq!(caller.say(on, metadata).await, expected, "{metadata:?} on {on}");
            }
            let mut echo = caller.grpc(on).await.expect("a connection");
            assert_eq!(echo.stream(1, 1).await.err(), Some(DENIED), "another method");
        }
        Ok(())
    });
}

/// Raw TCP by identity and port, on declared and undeclared ports.
#[test]
fn tcp_by_identity_and_port() {
    lab::run(here!(), async |lab| {
        let signer = Signer::new("https://login.example")?;
        let pods = orders(lab, &signer).await?;
        for (pod, family) in everywhere(pods) {
            let payment = lab.caller_to(pod, lab.identity("default", "payment-service")?);
            let gateway = lab.caller_to(pod, lab.identity("default", "gateway")?);
            for (caller, port, expected) in [
                (&payment, 5432, Got::Line),
                (&payment, 7777, Got::Line),
                (&payment, 5433, Got::Closed),
                (&payment, 6000, Got::Closed),
                (&gateway, 5432, Got::Closed),
                (&gateway, 7777, Got::Closed),
            ] {
                let on = lab[pod].address(family, port);
                assert_eq!(caller.line(on, "hello").await, expected, "{on}");
            }
        }
        Ok(())
    });
}

/// Two sidecars talk mutual TLS without either application knowing, by the Service's address and the pod's own.
#[test]
fn applications_speak_plaintext_and_the_wire_is_mutual_tls() {
    lab::run(here!(), async |lab| {
        let signer = Signer::new("https://login.example")?;
        let [orders, _] = orders(lab, &signer).await?;
        let specs = ["payment", "gateway"].map(|name| PodSpec::new("default", name));
        let [payment, gateway] = specs;
        let pods = lab.pods([payment.account("payment-service"), gateway]).await?;
        // Their Envoys choose the service by its name, as for any HTTP.
        let to_orders = || post("http://orders.default:8080/orders/1");
        let service = std::net::SocketAddr::new(lab[orders].cluster_ip.into(), 8080);
        let database = std::net::SocketAddr::new(lab[orders].cluster_ip.into(), 5432);
        let [payment, gateway] =
            [pods[0], pods[1]].map(|pod| Caller::new(&lab[pod].at, Credential::Plaintext));
        lab.becomes(ALLOWED, async |_| payment.send(service, to_orders()).await.got).await?;
        let seen = payment.send(service, to_orders()).await.seen();
        assert_eq!(seen["peer"], "spiffe://cluster.local/ns/default/sa/payment-service");
        assert_eq!(gateway.send(service, to_orders()).await.got, DENIED);
        lab.becomes(Got::Line, async |_| payment.line(database, "hello").await).await?;
        assert_eq!(gateway.line(database, "hello").await, Got::Closed);
        Ok(())
    });
}
