//! A workload that calls its own Service: the call may come back to itself, and then its own policy judges it.

use http::Method;
use tests::here;
use tests::lab::{self, ALLOWED, Caller, Credential, DENIED, Family, PodSpec, Protocol, request};

const POLICIES: &str = r#"
apiVersion: security.istio.io/v1
kind: PeerAuthentication
metadata: {name: default, namespace: istio-system}
spec:
  mtls: {mode: STRICT}
---
apiVersion: security.istio.io/v1
kind: AuthorizationPolicy
metadata: {name: orders, namespace: default}
spec:
  rules:
  - from: [{source: {principals: ["cluster.local/ns/default/sa/orders"]}}]
    to: [{operation: {paths: ["/own"]}}]
"#;

#[test]
fn a_call_to_its_own_service_is_mutual_tls_to_itself() {
    lab::run(here!(), async |lab| {
        lab.save("policies.yaml", POLICIES)?;
        lab.start().await?;
        let orders = lab.pod(PodSpec::new("default", "orders").port(8080, Protocol::Http)).await?;
        let app = Caller::new(&lab[orders].at, Credential::Plaintext);
        let service = std::net::SocketAddr::from((lab[orders].cluster_ip, 8080));
        let call = |path| {
            let host = ("host", "orders.default.svc.cluster.local:8080");
            let mut request = request(Method::GET, path);
            request.headers_mut().insert(host.0, host.1.parse().expect("a header"));
            app.send(service, request)
        };
        lab.becomes(ALLOWED, async |_| call("/own").await.got).await?;
        assert_eq!(call("/other").await.got, DENIED);
        // From outside, over both families, the application is still reached, and still only by the right identity.
        for family in [Family::V4, Family::V6] {
            let on = lab[orders].address(family, 8080);
            let identity = lab.caller(lab.identity("default", "orders")?);
            assert_eq!(identity.send(on, request(Method::GET, "/own")).await.got, ALLOWED);
            assert_eq!(identity.send(on, request(Method::GET, "/other")).await.got, DENIED);
        }
        Ok(())
    });
}
