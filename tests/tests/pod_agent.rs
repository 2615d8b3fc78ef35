//! The agent as it runs in a Kubernetes pod: the rules were made by another container, and it has no capability. STRICT and
//! default deny hold by both address families, the kubelet's probes pass, and without the rules it does not start.

use anyhow::{Context, Result, ensure};
use http::Method;
use tests::here;
use tests::lab::net::Family;
use tests::lab::{self, ALLOWED, DENIED, Lab, PodSpec, Protocol, request};

const POLICIES: &str = r#"
apiVersion: security.istio.io/v1
kind: PeerAuthentication
metadata: {name: default, namespace: istio-system}
spec:
  mtls: {mode: STRICT}
---
apiVersion: security.istio.io/v1
kind: AuthorizationPolicy
metadata: {name: allow, namespace: default}
spec:
  rules:
  - from: [{source: {principals: ["cluster.local/ns/default/sa/payment"]}}]
"#;

/// Like the kubelet: plain HTTP from outside of the pod; the status.
async fn plain(lab: &Lab, to: std::net::SocketAddr, path: &str) -> Result<String> {
    use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
    let mut stream = lab.outside.dial(to).await?;
    let request = format!("GET {path} HTTP/1.1\r\nhost: x\r\nconnection: close\r\n\r\n");
    stream.write_all(request.as_bytes()).await?;
    let mut answer = String::new();
    stream.read_to_string(&mut answer).await?;
    Ok(answer)
}

#[test]
fn an_agent_without_capabilities_protects_and_answers_the_kubelet() {
    lab::run(here!(), async |lab| -> Result<()> {
        lab.save("policies.yaml", POLICIES)?;
        lab.start().await?;
        let questions = r#"{
            "/app-health/app/livez": {"http": {"port": 8080, "path": "/live", "https": false, "headers": []}, "timeoutSeconds": 5},
            "/app-health/app/readyz": {"tcp": {"port": 8080}, "timeoutSeconds": 5},
            "/app-health/app/startupz": {"tcp": {"port": 8999}, "timeoutSeconds": 5}}"#;
        let mut spec = PodSpec::new("default", "orders").port(8080, Protocol::Http).like_a_pod();
        for arg in
            ["--monitoring-addr", "[::]:15020", "--health-addr", "[::]:15021", "--app-probes", questions]
        {
            spec = spec.agent_arg(arg);
        }
        let orders = lab.pod(spec).await?;
        let (payment, intruder) = (lab.identity("default", "payment")?, lab.identity("default", "intruder")?);
        let (payment, intruder) = (lab.caller(payment), lab.caller(intruder));
        for family in [Family::V4, Family::V6] {
            let on = lab[orders].address(family, 8080);
            lab.becomes(ALLOWED, async |_| payment.send(on, request(Method::GET, "/")).await.got).await?;
            ensure!(intruder.send(on, request(Method::GET, "/")).await.got == DENIED, "{family:?}");
            // Without TLS there is no way in ..
            let bare = plain(lab, on, "/").await;
            ensure!(bare.as_ref().map_or(true, String::is_empty), "{family:?}: {bare:?}");
            // .. but for the kubelet's questions.
            lab::until("it says that it is ready", async || {
                let answer = plain(lab, lab[orders].address(family, 15021), "/healthz/ready").await?;
                Ok(answer.starts_with("HTTP/1.1 200 ").then_some(()))
            })
            .await?;
            for (port, path, status) in [
                (15020, "/app-health/app/livez", "200"),
                (15020, "/app-health/app/readyz", "200"),
                (15020, "/app-health/app/startupz", "503"),
                (15020, "/app-health/app/other", "404"),
                (15020, "/debug/log", "403"),
                (15021, "/healthz/ready", "200"),
                (15021, "/metrics", "404"),
            ] {
                let answer = plain(lab, lab[orders].address(family, port), path).await?;
                ensure!(answer.starts_with(&format!("HTTP/1.1 {status} ")), "{family:?} {path}: {answer}");
            }
        }
        let page = plain(lab, lab[orders].on(15020), "/stats/prometheus").await?;
        for part in ["envoy_server_live", "countersign_agent_envoy_live 1"] {
            ensure!(page.contains(part), "{part} is missing");
        }
        // Its Envoy runs as it does.
        let pid = lab[orders].envoy_pid().context("an Envoy")?;
        let status = std::fs::read_to_string(format!("/proc/{pid}/status"))?;
        ensure!(status.contains("Uid:\t1337") && status.contains("CapEff:\t0000000000000000"), "{status}");
        Ok(())
    });
}

/// Rules that somebody took away are missed at the agent's next start, before anything of it answers.
#[test]
fn without_the_rules_it_does_not_start() {
    lab::run(here!(), async |lab| -> Result<()> {
        lab.save("policies.yaml", POLICIES)?;
        lab.start().await?;
        let orders =
            lab.pod(PodSpec::new("default", "orders").port(8080, Protocol::Http).like_a_pod()).await?;
        let removed =
            lab[orders].at.command("nft").args(["delete", "table", "inet", "countersign"]).status()?;
        ensure!(removed.success());
        let mut again = lab[orders].at.command("setpriv");
        again.args([
            "--reuid=1337",
            "--regid=1337",
            "--clear-groups",
            "--no-new-privs",
            "--inh-caps=-all",
            "--bounding-set=-all",
        ]);
        again.arg("--").arg(lab::programs::countersign()).args([
            "agent",
            "--capture",
            "external",
            "--workload",
            "default/orders",
        ]);
        again.arg("--trust-bundle").arg(lab[orders].folder.join("root-cert.pem"));
        again
            .arg("--sds-socket")
            .arg(lab[orders].folder.join("other/sds.sock"))
            .arg("--envoy")
            .arg(&lab.envoy);
        let output = again.output()?;
        let said = String::from_utf8_lossy(&output.stderr).into_owned();
        ensure!(!output.status.success() && said.contains("is not captured"), "{said}");
        // As root it would not be known as the proxy, whatever the rules are.
        let mut root = lab[orders].at.command(lab::programs::countersign());
        root.args(["agent", "--capture", "external", "--workload", "default/orders", "--trust-bundle", "x"]);
        let output = root.output()?;
        ensure!(!output.status.success(), "it runs as root");
        Ok(())
    });
}
