//! Ports that are guarded in more than one way, and clients that choose how they are treated.

use std::time::Duration;

use anyhow::{Context, Result};
use serde_json::json;
use tests::here;
use tests::lab::{
    self, ALLOWED, Caller, Credential, DENIED, Family, Got, Lab, PodId, PodSpec, Protocol, Signer,
};
use tokio::io::{AsyncReadExt, AsyncWriteExt};

use super::wire::{ask, get};

/// Far longer than the detection of a protocol takes here.
const PATIENCE: Duration = Duration::from_secs(30);

async fn scene(lab: &mut Lab, policies: &str) -> Result<PodId> {
    lab.save("policies.yaml", policies)?;
    lab.control.mesh("protocolDetectionTimeout: 300ms\n")?;
    lab.start().await?;
    let spec = PodSpec::new("default", "app")
        .port(8080, Protocol::Http)
        .port(8081, Protocol::Http)
        .port(5432, Protocol::Tcp)
        .port(5433, Protocol::Tcp)
        .port(6000, Protocol::Unnamed)
        .port(7777, Protocol::Undeclared);
    lab.pod(spec).await
}

/// Several ports with a mode of their own, each of which counts for itself (release note 54146).
#[test]
fn several_strict_ports_are_each_strict() {
    const STRICT: &str = r#"
apiVersion: security.istio.io/v1
kind: PeerAuthentication
metadata: {name: app, namespace: default}
spec:
  selector: {matchLabels: {app: app}}
  mtls: {mode: PERMISSIVE}
  portLevelMtls:
    8080: {mode: STRICT}
    8081: {mode: STRICT}
    5432: {mode: STRICT}
    7777: {mode: STRICT}
    80: {mode: DISABLE}
"#;
    lab::run(here!(), async |lab| {
        let app = scene(lab, STRICT).await?;
        let plaintext = lab.caller(Credential::Plaintext);
        for family in [Family::V4, Family::V6] {
            let on = |port| lab[app].address(family, port);
            for port in [8080, 8081, 7777] {
                assert_eq!(plaintext.get(on(port), "/").await.got, Got::Closed, "HTTP to {}", on(port));
            }
            for port in [8080, 8081, 5432, 7777] {
                assert_eq!(plaintext.line(on(port), "hello").await, Got::Closed, "a line to {}", on(port));
            }
            assert_eq!(plaintext.get(on(6000), "/").await.got, ALLOWED);
            assert_eq!(plaintext.line(on(5433), "hello").await, Got::Line);
        }
        Ok(())
    });
}

/// Who begins a handshake and does not go on is plaintext to Envoy after a while; under STRICT nobody takes that
/// (semantics §10.15). The same where nothing at all is said.
#[test]
fn a_slow_hello_is_no_way_past_strict() {
    const STRICT: &str = "
apiVersion: security.istio.io/v1
kind: PeerAuthentication
metadata: {name: default, namespace: istio-system}
spec: {mtls: {mode: STRICT}}
";
    lab::run(here!(), async |lab| {
        let app = scene(lab, STRICT).await?;
        let plaintext = lab.caller(Credential::Plaintext);
        for family in [Family::V4, Family::V6] {
            for port in [8080, 5432, 6000, 7777] {
                for hello in [b"".as_slice(), b"\x16", b"\x16\x03\x01\x02\x00\x01", b"G"] {
                    let on = lab[app].address(family, port);
                    let mut stream = plaintext.connect(on, &[]).await.expect("TCP");
                    stream.write_all(hello).await?;
                    let mut answer = Vec::new();
                    let end = async {
                        // Whoever is let in after all would be answered.
                        let closed = stream.read_buf(&mut answer).await;
                        closed.map_or(true, |n| n == 0)
                    };
                    let closed = tokio::time::timeout(PATIENCE, end).await;
                    assert!(closed.context("closed at last")?, "{on} after {hello:?} said {answer:?}");
                }
            }
        }
        Ok(())
    });
}

/// Whoever has a certificate of the mesh chooses by ALPN whether a port without a declared protocol takes it for HTTP.
/// As TCP nothing is allowed by an HTTP rule, and everything denied by one (semantics §10.1, §10.2, §10.14).
#[test]
fn choosing_tcp_by_alpn_is_no_way_past_http_rules() {
    let signer = Signer::new("https://login.example").unwrap();
    let policies = format!(
        r#"
apiVersion: security.istio.io/v1
kind: RequestAuthentication
metadata: {{name: login, namespace: default}}
spec:
  jwtRules: [{{issuer: "https://login.example", jwks: '{}'}}]
---
apiVersion: security.istio.io/v1
kind: AuthorizationPolicy
metadata: {{name: allow, namespace: default}}
spec:
  rules:
  - to: [{{operation: {{ports: ["6000"], paths: [/open]}}}}]
  - from: [{{source: {{requestPrincipals: ["*"]}}}}]
    to: [{{operation: {{ports: ["6000", "7777"]}}}}]
  - to: [{{operation: {{ports: ["5432", "8080", "5433"]}}}}]
---
apiVersion: security.istio.io/v1
kind: AuthorizationPolicy
metadata: {{name: deny, namespace: default}}
spec:
  action: DENY
  rules:
  - to: [{{operation: {{ports: ["5432", "8080"], methods: [DELETE]}}}}]
"#,
        signer.jwks()
    );
    lab::run(here!(), async |lab| {
        let app = scene(lab, &policies).await?;
        let token = format!("Bearer {}", signer.token(&json!({}))?);
        let with_token = get("/x", &[("authorization", token.as_bytes())]);
        let alpn = |alpn: &'static [&'static str]| -> Result<Caller> {
            Ok(Caller { alpn: Some(alpn), ..lab.caller(lab.identity("default", "client")?) })
        };
        let on = |port| lab[app].on(port);
        let http = alpn(&["istio-http/1.1"])?;
        assert_eq!(ask(&http, on(6000), &get("/open", &[])).await.got, ALLOWED);
        assert_eq!(ask(&http, on(6000), &get("/x", &[])).await.got, DENIED);
        assert_eq!(ask(&http, on(6000), &with_token).await.got, ALLOWED);
        assert_eq!(ask(&http, on(7777), &with_token).await.got, ALLOWED);
        for other in [&["istio"] as &[&str], &["istio-peer-exchange"], &["http/1.1"], &["h2"], &["x"], &[]] {
            let caller = alpn(other)?;
            for port in [6000, 7777] {
                for request in [get("/open", &[]), with_token.clone(), b"hello\n".to_vec()] {
                    let got = ask(&caller, on(port), &request).await.got;
                    let refused = [Got::Closed, Got::TlsRefused, DENIED].contains(&got);
                    let as_http = other == ["http/1.1"] && got == ALLOWED && request != b"hello\n";
                    assert!(refused || as_http, "{other:?} to {port}: {got}");
                }
            }
        }
        // A DENY of a method denies every connection that has none, on its ports and no others.
        assert_eq!(http.get(on(8080), "/").await.got, ALLOWED);
        assert_eq!(http.line(on(5432), "hello").await, Got::Closed);
        assert_eq!(lab.caller(lab.identity("default", "client")?).line(on(5433), "hello").await, Got::Line);
        Ok(())
    });
}
