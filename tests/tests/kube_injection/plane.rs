//! `countersign controller` as a process that the API server calls by address, with the rights of the chart.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::process::Command;

use anyhow::{Context, Result, ensure};
use http_body_util::BodyExt as _;
use serde_json::{Value, json};
use tests::lab::kube::Kube;
use tests::lab::process::Process;
use tests::lab::programs::countersign;
use tests::lab::until;

const NAMESPACE: &str = "istio-system";
/// The settings of the injection.
pub(crate) const CONFIG: &str = "image: registry.example/countersign:1.2.3\n";

/// What the API server answered.
#[derive(Debug)]
pub(crate) struct Answer {
    pub(crate) status: u16,
    pub(crate) body: Value,
    pub(crate) warnings: Vec<String>,
}

pub(crate) struct Plane<'k> {
    kube: &'k Kube,
    webhook: SocketAddr,
    monitoring: SocketAddr,
    kubeconfig: PathBuf,
    folder: tempfile::TempDir,
    process: Option<Process>,
}

impl<'k> Plane<'k> {
    /// With the configuration of the chart, but for where it is called: an address outside of the cluster. Ready when the
    /// API server trusts the webhook and a pod can be made by it.
    pub(crate) async fn start(kube: &'k Kube) -> Result<Self> {
        kube.install_rights().await?;
        let token = kube.token(NAMESPACE, "countersign", "", None, 7200).await?;
        let free = || -> Result<SocketAddr> { Ok(std::net::TcpListener::bind("127.0.0.1:0")?.local_addr()?) };
        let folder = tempfile::tempdir()?;
        std::fs::write(folder.path().join("injection.yaml"), CONFIG)?;
        let kubeconfig = kube.kubeconfig("controller", &token)?;
        let mut plane =
            Self { kube, webhook: free()?, monitoring: free()?, kubeconfig, folder, process: None };
        plane.configure().await?;
        plane.run()?;
        let labels = [("istio-injection".to_owned(), "enabled".to_owned())].into();
        let ns = plane.namespace("trial", &labels).await?;
        let pod = json!({
            "apiVersion": "v1", "kind": "Pod", "metadata": {"generateName": "trial-"},
            "spec": {"containers": [{"name": "app", "image": "a"}]},
        });
        until("the API server is answered", async || {
            let process = plane.process.as_mut().context("the controller")?;
            let ended = process.ended();
            ensure!(ended.is_none(), "the controller ended: {ended:?}\n{}", process.tail(30));
            let answer = plane.post(&ns, &pod, "?dryRun=All").await?;
            // While there is no answer it is 500; anything else is one.
            ensure!([201, 500].contains(&answer.status), "{answer:?}");
            Ok((answer.status == 201).then_some(()))
        })
        .await
        .with_context(|| plane.process.as_ref().map(|process| process.tail(40)).unwrap_or_default())?;
        Ok(plane)
    }

    /// Installs what the chart would, with helm's braces filled in by hand: there is one value of each kind in it.
    async fn configure(&self) -> Result<()> {
        let path = concat!(
            env!("CARGO_MANIFEST_DIR"),
            "/../charts/countersign/templates/mutatingwebhookconfiguration.yaml"
        );
        let text = std::fs::read_to_string(path)?;
        let text: String =
            text.lines().filter(|line| !line.starts_with("{{-")).map(|line| line.to_owned() + "\n").collect();
        let text =
            text.replace("{{ .Release.Namespace }}", NAMESPACE).replace("{{ .Values.revision }}", "default");
        ensure!(!text.contains("{{"), "a placeholder that tests do not know: {text}");
        let mut object: Value = serde_yaml::from_str(&text)?;
        let hooks = object["webhooks"].as_array_mut().context("webhooks")?;
        // Off by default.
        hooks.retain(|hook| hook["name"] != "auto.injection.countersign.io");
        ensure!(hooks.len() == 4, "{hooks:?}");
        for hook in hooks {
            ensure!(hook["failurePolicy"] == "Fail" && hook["clientConfig"]["service"]["path"] == "/inject");
            hook["clientConfig"] = json!({"url": format!("https://{}/inject", self.webhook)});
        }
        self.kube.put(object).await?;
        Ok(())
    }

    pub(crate) fn run(&mut self) -> Result<()> {
        let mut command = Command::new(countersign());
        command.arg("controller").arg("--kubeconfig").arg(&self.kubeconfig);
        command.args(["--plaintext-addr", "off", "--secure-addr", "off", "--ca-addr", "off"]);
        command.arg("--webhook-addr").arg(self.webhook.to_string());
        command.arg("--monitoring-addr").arg(self.monitoring.to_string());
        command.arg("--injection-config").arg(self.folder.path().join("injection.yaml"));
        self.process = Some(Process::start("controller", self.folder.path(), command)?);
        Ok(())
    }

    /// SIGKILL.
    pub(crate) fn stop(&mut self) -> Result<()> {
        self.process.take().context("it runs")?.kill()?;
        Ok(())
    }

    /// A namespace with these labels and a default service account.
    pub(crate) async fn namespace(&self, name: &str, labels: &BTreeMap<String, String>) -> Result<String> {
        let metadata = json!({"name": name, "labels": labels});
        self.kube.put(json!({"apiVersion": "v1", "kind": "Namespace", "metadata": metadata})).await?;
        self.kube.service_account(name, "default").await?;
        Ok(name.to_owned())
    }

    pub(crate) async fn create(&self, ns: &str, pod: &Value) -> Result<Answer> {
        self.post(ns, pod, "").await
    }

    async fn post(&self, ns: &str, pod: &Value, query: &str) -> Result<Answer> {
        // As the API server's plug-in ServiceAccount does, which this one runs without.
        let mut pod = pod.clone();
        if pod["spec"]["serviceAccountName"].is_null() {
            pod["spec"]["serviceAccountName"] = "default".into();
        }
        let request = http::Request::post(format!("/api/v1/namespaces/{ns}/pods{query}"))
            .header("content-type", "application/json")
            .body(kube::client::Body::from(pod.to_string().into_bytes()))?;
        let response = self.kube.client().send(request).await?;
        let status = response.status().as_u16();
        let warnings = response.headers().get_all("warning").iter();
        let warnings = warnings.map(|value| String::from_utf8_lossy(value.as_bytes()).into_owned()).collect();
        let body = response.into_body().collect().await?.to_bytes();
        Ok(Answer { status, body: serde_json::from_slice(&body)?, warnings })
    }

    pub(crate) async fn metrics(&self) -> Result<String> {
        use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
        let mut stream = tokio::net::TcpStream::connect(self.monitoring).await?;
        stream.write_all(b"GET /metrics HTTP/1.1\r\nhost: localhost\r\nconnection: close\r\n\r\n").await?;
        let mut text = String::new();
        stream.read_to_string(&mut text).await?;
        Ok(text)
    }
}
