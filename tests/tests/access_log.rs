//! What somebody finds in the log who looks for why a request was refused, on real Envoys: one line for each class of
//! refusal; and that Telemetry decides who writes what.

use anyhow::{Result, ensure};
use http::Method;
use serde_json::{Value, json};
use tests::here;
use tests::lab::{
    self, ALLOWED, Caller, Credential, DENIED, Got, Lab, Leaf, PodId, PodSpec, Protocol, Signer,
    UNAUTHENTICATED, get, in_seconds, request, until,
};

#[path = "access_log/filters.rs"]
mod filters;

const POLICIES: &str = r#"
apiVersion: security.istio.io/v1
kind: PeerAuthentication
metadata: {name: default, namespace: istio-system}
spec: {mtls: {mode: STRICT}}
---
apiVersion: security.istio.io/v1
kind: AuthorizationPolicy
metadata: {name: callers, namespace: default}
spec:
  rules:
  - from: [{source: {principals: ["cluster.local/ns/default/sa/web", "cluster.local/ns/default/sa/payment"]}}]
    to: [{operation: {paths: ["/open/*", "/checked/*", "/audited"]}}, {operation: {ports: ["5432"]}}]
---
apiVersion: security.istio.io/v1
kind: AuthorizationPolicy
metadata: {name: no-secrets, namespace: default}
spec:
  action: DENY
  rules:
  - to: [{operation: {paths: ["/open/secret"]}}]
---
apiVersion: security.istio.io/v1
kind: AuthorizationPolicy
metadata: {name: look, namespace: default}
spec:
  action: AUDIT
  rules:
  - to: [{operation: {paths: ["/audited"]}}]
---
apiVersion: security.istio.io/v1
kind: AuthorizationPolicy
metadata: {name: ask, namespace: default}
spec:
  action: CUSTOM
  provider: {name: authorizer}
  rules:
  - to: [{operation: {paths: ["/checked/*"]}}]
"#;

const MESH: &str = "accessLogFile: /dev/stdout\naccessLogEncoding: JSON\nextensionProviders:\n- name: authorizer\n  \
                    envoyExtAuthzHttp: {service: authorizer.default.svc.cluster.local, port: 8080, pathPrefix: \
                    /no-such-page, timeout: 5s}\n";

/// The lines that the pod's Envoy has written, and its agent with it.
fn lines(lab: &Lab, pod: PodId) -> Vec<Value> {
    let log = lab.logs.join(format!("{}-agent.log", lab[pod].spec.name));
    let text = std::fs::read_to_string(log).unwrap_or_default();
    text.lines()
        .filter_map(|line| serde_json::from_str::<Value>(line).ok())
        .filter(|line| line.get("response_code").is_some())
        .collect()
}

fn matches(line: &Value, wanted: &[(&str, &str)]) -> bool {
    wanted.iter().all(|(field, part)| match &line[*field] {
        Value::String(text) => text.contains(part),
        other => other.to_string().contains(part),
    })
}

/// Waits for a line in which each of these fields contains its text.
async fn line(lab: &Lab, pod: PodId, wanted: &[(&str, &str)]) -> Result<Value> {
    until(&format!("a line with {wanted:?}"), async || {
        Ok(lines(lab, pod).into_iter().find(|line| matches(line, wanted)))
    })
    .await
}

fn login(signer: &Signer) -> String {
    format!(
        "apiVersion: security.istio.io/v1\nkind: RequestAuthentication\nmetadata: {{name: login, namespace: \
         default}}\nspec:\n  jwtRules:\n  - issuer: {}\n    jwks: '{}'\n",
        signer.issuer,
        signer.jwks()
    )
}

fn orders() -> PodSpec {
    PodSpec::new("default", "orders").port(8080, Protocol::Http).port(5432, Protocol::Tcp)
}

/// A request that is refused, and what its line says.
type Refusal<'a> = (&'a str, &'a Caller, http::Request<bytes::Bytes>, Got, &'a [(&'a str, &'a str)]);

#[test]
fn every_class_of_refusal_has_its_line() {
    lab::run(here!(), async |lab| {
        let signer = Signer::new("https://login.example")?;
        lab.control.mesh(MESH)?;
        lab.save("policies.yaml", POLICIES)?;
        lab.save("login.yaml", &login(&signer))?;
        lab.start().await?;
        let authorizer = PodSpec::new("default", "authorizer").port(8080, Protocol::Http);
        let pods = lab.pods([orders(), authorizer]).await?;
        let orders = pods[0];
        let mesh = lab.authority()?;
        let web = lab.caller(lab.identity("default", "web")?);
        let stranger = lab.caller(lab.identity("default", "stranger")?);
        let plaintext = lab.caller(Credential::Plaintext);
        let elsewhere = Leaf::new(["spiffe://other.example/ns/default/sa/web"]);
        let elsewhere = lab.caller(mesh.mint(&elsewhere)?);
        let expired = signer.token(&json!({ "exp": in_seconds(-3600) }))?;
        let mut with_token = get("/open/token");
        with_token.headers_mut().insert("authorization", format!("Bearer {expired}").parse()?);
        let on = lab[orders].on(8080);
        lab.becomes(ALLOWED, async |_| web.get(on, "/open/1").await.got).await?;
        let rows: [Refusal<'_>; 7] = [
            (
                "a DENY rule, by name",
                &web,
                get("/open/secret"),
                DENIED,
                &[
                    ("path", "/open/secret"),
                    ("response_code", "403"),
                    (
                        "response_code_details",
                        "rbac_access_denied_matched_policy[ns[default]-policy[no-secrets]-rule[0]]",
                    ),
                    ("http_policy", "ns[default]-policy[no-secrets]-rule[0]"),
                ],
            ),
            (
                "no ALLOW rule",
                &stranger,
                get("/open/2"),
                DENIED,
                &[
                    ("response_code_details", "rbac_access_denied_matched_policy[none]"),
                    ("downstream_peer_uri_san", "spiffe://cluster.local/ns/default/sa/stranger"),
                ],
            ),
            (
                "a bad token, and why",
                &web,
                with_token,
                UNAUTHENTICATED,
                &[
                    ("path", "/open/token"),
                    ("response_code_details", "jwt_authn_access_denied{Jwt_is_expired}"),
                ],
            ),
            (
                "the authorizer's word",
                &web,
                get("/checked/1"),
                DENIED,
                &[("path", "/checked/1"), ("response_code_details", "ext_authz"), ("response_flags", "UAEX")],
            ),
            (
                "plaintext under STRICT",
                &plaintext,
                get("/open/3"),
                Got::Closed,
                &[("response_code_details", "filter_chain_not_found"), ("response_flags", "NR")],
            ),
            (
                "another trust domain",
                &elsewhere,
                get("/open/4"),
                Got::TlsRefused,
                &[
                    ("downstream_transport_failure_reason", "CERTIFICATE_VERIFY_FAILED"),
                    ("filter_chain", "mtls-http"),
                ],
            ),
            ("what AUDIT saw", &web, get("/audited"), ALLOWED, &[("path", "/audited"), ("audit", "true")]),
        ];
        for (name, caller, request, expected, wanted) in rows {
            ensure!(caller.send(on, request).await.got == expected, "{name}");
            line(lab, orders, wanted).await?;
        }
        // What AUDIT does not name carries no hint.
        let plain = line(lab, orders, &[("path", "/open/1"), ("response_code", "200")]).await?;
        assert!(plain["audit"] != true && plain["audit"] != "true", "{plain}");
        ensure!(stranger.line(lab[orders].on(5432), "hello").await == Got::Closed, "a line over TCP");
        // A path says nothing over TCP, so the DENY rule denies every connection there.
        let rule = "rbac_access_denied_matched_policy[ns[default]-policy[no-secrets]-rule[0]]";
        let tcp = [("filter_chain", "mtls-tcp"), ("connection_termination_details", rule)];
        line(lab, orders, &tcp).await?;
        Ok(())
    });
}

/// The caller's own log says why it could not call: the server is not who it should be.
#[test]
fn the_client_says_why_it_did_not_reach_the_server() {
    lab::run(here!(), async |lab| {
        lab.control.mesh(MESH)?;
        lab.start().await?;
        let pods = lab.pods([orders(), PodSpec::new("default", "web")]).await?;
        let (orders, web) = (pods[0], pods[1]);
        let app = Caller::new(&lab[web].at, Credential::Plaintext);
        let service = std::net::SocketAddr::new(lab[orders].cluster_ip.into(), 8080);
        let ask = || request(Method::GET, "http://orders.default:8080/");
        lab.becomes(ALLOWED, async |_| app.send(service, ask()).await.got).await?;
        // The registry now gives the address to another identity.
        let objects = lab.control.files.join("pod-default-orders.yaml");
        let text = std::fs::read_to_string(&objects)?;
        lab.save(
            "pod-default-orders.yaml",
            &text.replace("serviceAccountName: orders", "serviceAccountName: other"),
        )?;
        lab.becomes(Got::Status(503), async |_| app.send(service, ask()).await.got).await?;
        let wanted = [
            ("response_code", "503"),
            ("response_flags", "UF"),
            ("upstream_transport_failure_reason", "CERTIFICATE_VERIFY_FAILED"),
            ("upstream_cluster", "outbound|8080||orders.default"),
        ];
        line(lab, web, &wanted).await?;
        Ok(())
    });
}

fn telemetry(namespace: &str, name: &str, spec: &str) -> String {
    format!(
        "apiVersion: telemetry.istio.io/v1\nkind: Telemetry\nmetadata: {{name: {name}, namespace: {namespace}}}\nspec: {spec}\n"
    )
}

/// Whether a request is logged. "No" is believed after a wait that is longer than Envoy keeps a line back.
async fn is_logged(lab: &Lab, pod: PodId, caller: &Caller, path: &str) -> bool {
    caller.get(lab[pod].on(8080), path).await;
    let written = |path: &str| lines(lab, pod).iter().any(|line| line["path"] == path);
    for _ in 0..60 {
        if written(path) {
            return true;
        }
        tokio::time::sleep(std::time::Duration::from_millis(5)).await;
    }
    false
}

#[test]
fn telemetry_decides_who_writes_what() {
    lab::run(here!(), async |lab| {
        lab.control.mesh(MESH)?;
        lab.save("all.yaml", &telemetry("default", "all", "{accessLogging: [{disabled: true}]}"))?;
        lab.start().await?;
        let pods = lab.pods([orders(), PodSpec::new("default", "web").port(8080, Protocol::Http)]).await?;
        let (orders, web) = (pods[0], pods[1]);
        let caller = lab.caller(Credential::Plaintext);
        let mut call = 0;
        let mut path = |what: &str| {
            call += 1;
            format!("/{what}/{call}")
        };
        assert!(!is_logged(lab, orders, &caller, &path("a")).await, "disabled in the namespace");
        // The workload's own beats its namespace's, for it alone.
        let own = "{selector: {matchLabels: {app: orders}}, accessLogging: [{disabled: false}]}";
        lab.save("own.yaml", &telemetry("default", "own", own))?;
        until("the workload's own Telemetry counts", async || {
            Ok(is_logged(lab, orders, &caller, &path("b")).await.then_some(()))
        })
        .await?;
        assert!(!is_logged(lab, web, &caller, &path("c")).await, "the other is still disabled");
        let own = "{selector: {matchLabels: {app: orders}}, accessLogging: [{filter: {expression: \
                   \"request.url_path.startsWith('/wanted')\"}}]}";
        lab.save("own.yaml", &telemetry("default", "own", own))?;
        until("only what the filter wants is written", async || {
            Ok((!is_logged(lab, orders, &caller, &path("b")).await).then_some(()))
        })
        .await?;
        assert!(!is_logged(lab, orders, &caller, &path("other")).await);
        caller.get(lab[orders].on(8080), "/wanted/1").await;
        line(lab, orders, &[("path", "/wanted/1")]).await?;
        // One that cannot be understood changes nothing, and the status says so.
        let broken = own.replace("startsWith", "matches");
        lab.save("own.yaml", &telemetry("default", "own", &broken))?;
        until("the status names what is wrong", async || {
            let status = lab.control.monitoring("/status").await.body;
            Ok((status.contains("LastGoodVersionKept") && status.contains("no function `matches`"))
                .then_some(()))
        })
        .await?;
        // Its last good version is in force.
        caller.get(lab[orders].on(8080), "/wanted/2").await;
        line(lab, orders, &[("path", "/wanted/2")]).await?;
        assert!(!is_logged(lab, orders, &caller, "/other/2").await);
        // Policy goes on reaching that listener.
        lab.save("strict.yaml", POLICIES.split("---").next().unwrap_or_default())?;
        lab.becomes(Got::Closed, async |lab| caller.get(lab[orders].on(8080), "/wanted/3").await.got).await?;
        line(lab, orders, &[("response_code_details", "filter_chain_not_found")]).await?;
        Ok(())
    });
}
