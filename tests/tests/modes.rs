//! The same decisions however policy is delivered and whatever the port's mTLS mode: DENY before ALLOW, PERMISSIVE and
//! DISABLE ports, inlined policy, state-of-the-world xDS.

use http::Method;
use tests::here;
use tests::lab::{self, ALLOWED, Credential, DENIED, Got, PodSpec, Protocol, get, request};

const DENY: &str = r#"
apiVersion: security.istio.io/v1
kind: AuthorizationPolicy
metadata: {name: allow, namespace: default}
spec:
  rules:
  - from: [{source: {namespaces: [default]}}]
    to: [{operation: {notPaths: ["/internal/*"]}}]
---
apiVersion: security.istio.io/v1
kind: AuthorizationPolicy
metadata: {name: deny, namespace: default}
spec:
  action: DENY
  rules:
  - to: [{operation: {paths: ["/admin", "/admin/*"]}}]
  - from: [{source: {notPrincipals: ["*"]}}]
    to: [{operation: {methods: [DELETE]}}]
  - when: [{key: "request.headers[x-forbidden]", values: ["*"]}]
"#;

/// DENY wins, ALLOW narrows, and that is so for extension configs, inlined policy and both variants of xDS.
#[test]
fn deny_before_allow_however_policy_is_delivered() {
    lab::run(here!(), async |lab| {
        lab.save("policies.yaml", DENY)?;
        lab.start().await?;
        let spec = |name| PodSpec::new("default", name).port(8080, Protocol::Http);
        let pods = lab
            .pods([
                spec("ecds"),
                spec("inline").agent_arg("--inline-policy"),
                spec("sotw").agent_arg("--xds-protocol").agent_arg("sotw"),
                spec("local").without_capture(),
            ])
            .await?;
        for pod in pods {
            let on = lab[pod].on(8080);
            let friend = lab.caller_to(pod, lab.identity("default", "a")?);
            let stranger = lab.caller_to(pod, lab.identity("other", "a")?);
            let plaintext = lab.caller_to(pod, Credential::Plaintext);
            let mut forbidden = get("/");
            forbidden.headers_mut().insert("x-forbidden", http::HeaderValue::from_static("yes"));
            for (name, caller, request, expected) in [
                ("a friend", &friend, get("/"), ALLOWED),
                ("a friend who deletes", &friend, request(Method::DELETE, "/"), ALLOWED),
                ("what is denied by path", &friend, get("/admin"), DENIED),
                ("with a query", &friend, get("/admin?x=/"), DENIED),
                ("with a dot", &friend, get("/x/../admin/a"), DENIED),
                ("what is not allowed by path", &friend, get("/internal/a"), DENIED),
                ("what is denied by header", &friend, forbidden, DENIED),
                ("another namespace", &stranger, get("/"), DENIED),
                ("nobody", &plaintext, get("/"), DENIED),
                ("nobody who deletes", &plaintext, request(Method::DELETE, "/"), DENIED),
            ] {
                let got = caller.send(on, request).await.got;
                assert_eq!(got, expected, "{name} on {}", lab[pod].spec.name);
            }
        }
        Ok(())
    });
}

const PORTS: &str = r#"
apiVersion: security.istio.io/v1
kind: PeerAuthentication
metadata: {name: app, namespace: default}
spec:
  selector: {matchLabels: {app: app}}
  mtls: {mode: STRICT}
  portLevelMtls:
    8081: {mode: PERMISSIVE}
    8082: {mode: DISABLE}
    9001: {mode: PERMISSIVE}
"#;

/// Each port has its own mode; a port without one has the workload's.
#[test]
fn every_port_has_its_mode() {
    lab::run(here!(), async |lab| {
        lab.save("ports.yaml", PORTS)?;
        lab.start().await?;
        let spec = PodSpec::new("default", "app")
            .port(8080, Protocol::Http)
            .port(8081, Protocol::Http)
            .port(8082, Protocol::Http)
            .port(9000, Protocol::Tcp)
            .port(9001, Protocol::Tcp);
        let app = lab.pod(spec).await?;
        let identity = lab.caller(lab.identity("default", "a")?);
        let plaintext = lab.caller(Credential::Plaintext);
        for family in [lab::Family::V4, lab::Family::V6] {
            let on = |port| lab[app].address(family, port);
            for (port, with, without) in
                [(8080, ALLOWED, Got::Closed), (8081, ALLOWED, ALLOWED), (8082, Got::TlsRefused, ALLOWED)]
            {
                assert_eq!(identity.get(on(port), "/").await.got, with, "mutual TLS to {}", on(port));
                assert_eq!(plaintext.get(on(port), "/").await.got, without, "plaintext to {}", on(port));
            }
            for (port, without) in [(9000, Got::Closed), (9001, Got::Line)] {
                assert_eq!(identity.line(on(port), "hello").await, Got::Line, "mutual TLS to {}", on(port));
                assert_eq!(plaintext.line(on(port), "hello").await, without, "plaintext to {}", on(port));
            }
        }
        Ok(())
    });
}
