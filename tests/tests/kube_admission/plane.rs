//! A control plane as far as admission needs one: the Kubernetes source, the owner of the state, the webhook, the keeper of
//! its certificate, and the audit trail. And a client that sees warnings.

use std::net::SocketAddr;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context, Result, bail, ensure};
use controller::admission::{Lifetimes, Limits, Settings, Webhook, names};
use controller::{Controller, Handle};
use http_body_util::BodyExt as _;
use runtime::audit::{Options, Trail};
use serde_json::{Value, json};
use source::kubernetes::webhook;
use source::kubernetes::{Counters, MeshSource, Scope};
use tests::lab::kube::Kube;
use tests::lab::until;
use tokio::net::TcpListener;
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;

pub(crate) const NAMESPACE: &str = "istio-system";
pub(crate) const CONFIGURATION: &str = "countersign-istio-system";

pub(crate) fn lifetimes(certificate: Duration, settle: Duration) -> Lifetimes {
    Lifetimes { certificate, settle }
}

/// One replica. Ends when dropped.
pub(crate) struct Replica {
    pub(crate) address: SocketAddr,
    pub(crate) metrics: runtime::Metrics,
    handle: Handle,
    stop: CancellationToken,
    tasks: JoinSet<()>,
    trail: Trail,
    path: PathBuf,
    _folder: tempfile::TempDir,
}

impl Replica {
    pub(crate) async fn start(kube: &Kube, lifetimes: Lifetimes) -> Result<Self> {
        let keeper = keeper(kube).await?;
        runtime::tls::install_provider();
        let metrics = runtime::Metrics::new(runtime::Version::of("test"));
        let folder = tempfile::tempdir()?;
        let path = folder.path().join("audit.jsonl");
        let trail = Trail::open(&path, Options::default())?;
        let (sender, changes) = tokio::sync::mpsc::channel(4096);
        let (handle, owner) = Controller::audited(&metrics, changes, trail.clone());
        let mut tasks = JoinSet::new();
        tasks.spawn(async { drop(owner.await) });
        let client = source::kubernetes::client(Some(&kube.admin_kubeconfig()?)).await?;
        let mesh = MeshSource::ConfigMap { namespace: NAMESPACE.into(), name: "istio".into() };
        let watched = source::kubernetes::Settings {
            client,
            mesh,
            revision: "default".into(),
            counters: Arc::new(Counters::default()),
        };
        tasks.spawn(source::kubernetes::watch(watched, sender));
        let names = names(NAMESPACE, None);
        let settings = Settings { names, revision: "default".into(), lifetimes, limits: Limits::default() };
        let webhook = Webhook::new(handle.clone(), trail.clone(), &metrics, settings);
        let kept = webhook::Settings {
            client: source::kubernetes::client(Some(&keeper)).await?,
            namespace: NAMESPACE.into(),
            configuration: CONFIGURATION.into(),
            look: (lifetimes.settle < Duration::from_secs(60)).then_some(Duration::from_millis(200)),
        };
        tasks.spawn(webhook::keep(kept, webhook.certificates()));
        let listener = TcpListener::bind("127.0.0.1:0").await?;
        let address = listener.local_addr()?;
        let stop = CancellationToken::new();
        let serving = webhook.serve(listener, stop.clone());
        tasks.spawn(async { drop(serving.await) });
        Ok(Self { address, metrics, handle, stop, tasks, trail, path, _folder: folder })
    }

    async fn stop(mut self) {
        self.stop.cancel();
        self.tasks.shutdown().await;
    }
}

pub(crate) struct Plane<'k> {
    kube: &'k Kube,
    lifetimes: Lifetimes,
    pub(crate) replica: Replica,
}

/// What the API server answered.
#[derive(Debug)]
pub(crate) struct Answer {
    pub(crate) status: u16,
    pub(crate) body: Value,
    pub(crate) warnings: Vec<String>,
}

impl<'k> Plane<'k> {
    pub(crate) async fn start(kube: &'k Kube) -> Result<Self> {
        Self::with(kube, Lifetimes::default()).await
    }

    /// With the configuration of the chart, but for where it is called: a URL outside of the cluster.
    pub(crate) async fn with(kube: &'k Kube, lifetimes: Lifetimes) -> Result<Self> {
        let replica = Replica::start(kube, lifetimes).await?;
        let plane = Self { kube, lifetimes, replica };
        plane.point_at(plane.replica.address).await?;
        plane.kube.namespace("judged").await?;
        plane.writable("judged").await?;
        Ok(plane)
    }

    /// Writes the configuration anew, as `helm upgrade` does; caBundle is the keeper's.
    pub(crate) async fn point_at(&self, address: SocketAddr) -> Result<()> {
        let path = concat!(
            env!("CARGO_MANIFEST_DIR"),
            "/../charts/countersign/templates/validatingwebhookconfiguration.yaml"
        );
        let text = std::fs::read_to_string(path)?;
        let lines = text.lines().filter(|line| !line.starts_with("{{-"));
        let text = lines.collect::<Vec<_>>().join("\n");
        let text =
            text.replace("{{ .Release.Namespace }}", NAMESPACE).replace("{{ .Values.revision }}", "default");
        ensure!(!text.contains("{{"), "a placeholder that tests do not know: {text}");
        let mut object: Value = serde_yaml::from_str(&text)?;
        for hook in object["webhooks"].as_array_mut().context("webhooks")? {
            ensure!(
                hook["failurePolicy"] == "Fail" && hook["clientConfig"]["service"]["path"] == "/validate"
            );
            hook["clientConfig"] = json!({"url": format!("https://{address}/validate")});
        }
        self.kube.put(object).await?;
        Ok(())
    }

    pub(crate) async fn stop_replica(&mut self) -> Result<()> {
        let standby = Replica::start(self.kube, self.lifetimes).await?;
        std::mem::replace(&mut self.replica, standby).stop().await;
        // The other one is not called by anybody: the configuration names the address of the one that is gone.
        Ok(())
    }

    /// A replica elsewhere; the configuration follows, as a Service's endpoints do.
    pub(crate) async fn start_replica(&mut self) -> Result<()> {
        self.point_at(self.replica.address).await
    }

    /// Until the controller has its first list.
    pub(crate) async fn ready(&self) -> Result<()> {
        until("the controller is ready", async || Ok(self.replica.handle.ready().ok())).await
    }

    /// Until the API server calls the webhook, trusts it, and lets a good policy pass and no bad one.
    pub(crate) async fn writable(&self, ns: &str) -> Result<()> {
        let good =
            policy("security.istio.io/v1", "PeerAuthentication", ns, "probe", "{mtls: {mode: STRICT}}");
        let bad = policy("security.istio.io/v1", "AuthorizationPolicy", ns, "probe", "{action: DENY}");
        until("the webhook answers", async || {
            let (good, bad) = (self.dry(&good).await?, self.dry(&bad).await?);
            Ok((good.status == 201 && bad.status == 400).then_some(()))
        })
        .await
    }

    pub(crate) async fn write(&self, object: &Value) -> Result<Answer> {
        self.post(object, "").await
    }

    /// As `kubectl --dry-run=server` writes.
    pub(crate) async fn dry(&self, object: &Value) -> Result<Answer> {
        self.post(object, "?dryRun=All").await
    }

    async fn post(&self, object: &Value, query: &str) -> Result<Answer> {
        let text = |value: &Value| value.as_str().map(str::to_owned).context("text");
        let (api, kind) = (text(&object["apiVersion"])?, text(&object["kind"])?);
        let plural = match &*kind {
            "AuthorizationPolicy" => "authorizationpolicies".to_owned(),
            kind => kind.to_lowercase() + "s",
        };
        let ns = text(&object["metadata"]["namespace"])?;
        let request = http::Request::post(format!("/apis/{api}/namespaces/{ns}/{plural}{query}"))
            .header("content-type", "application/json")
            .body(kube::client::Body::from(object.to_string().into_bytes()))?;
        let response = self.kube.client().send(request).await?;
        let status = response.status().as_u16();
        let warnings = response.headers().get_all("warning").iter();
        // `299 - "TEXT"`
        let warning = |value: &http::HeaderValue| {
            let text = String::from_utf8_lossy(value.as_bytes()).into_owned();
            let text =
                text.split_once('"').map_or(text.clone(), |(_, text)| text.trim_end_matches('"').to_owned());
            text.replace("\\\"", "\"")
        };
        let warnings = warnings.map(warning).collect();
        let body = response.into_body().collect().await?.to_bytes();
        Ok(Answer { status, body: serde_json::from_slice(&body)?, warnings })
    }

    /// What `kubectl apply` prints, warnings among it.
    pub(crate) fn kubectl_apply(&self, object: &Value) -> Result<String> {
        let kubectl = tests::lab::kube::assets().map_err(anyhow::Error::msg)?.join("kubectl");
        let file = self.kube.folder().join("applied.json");
        std::fs::write(&file, object.to_string())?;
        let mut command = std::process::Command::new(kubectl);
        command.arg("--kubeconfig").arg(self.kube.admin_kubeconfig()?).env("HOME", self.kube.folder());
        for proxy in ["HTTP_PROXY", "HTTPS_PROXY", "http_proxy", "https_proxy", "ALL_PROXY", "all_proxy"] {
            command.env_remove(proxy);
        }
        let output = command.args(["apply", "-f"]).arg(file).output()?;
        let printed = [output.stdout, output.stderr].concat();
        Ok(String::from_utf8_lossy(&printed).into_owned())
    }

    /// The lines of a kind in the audit trail.
    pub(crate) fn trail(&self, kind: &str) -> Result<Vec<Value>> {
        ensure!(self.replica.trail.flush(Duration::from_secs(10)), "the trail is not written");
        let text = std::fs::read_to_string(&self.replica.path)?;
        let lines: Vec<Value> = text.lines().map(serde_json::from_str).collect::<Result<_, _>>()?;
        Ok(lines.into_iter().filter(|line| line["kind"] == kind).collect())
    }

    /// The trail is whole. What was just written may still add lines to it: it is looked at again until it stands still
    /// for as long as that takes.
    pub(crate) fn verify(&self) -> Result<()> {
        let trail = &self.replica.trail;
        for _ in 0..100 {
            ensure!(trail.flush(Duration::from_secs(10)), "the trail is not written");
            let head = trail.head().map(|(_, hash)| hash);
            let report = runtime::audit::verify(std::slice::from_ref(&self.replica.path), head)
                .map_err(|(_, error)| error)?;
            if report.whole {
                return Ok(());
            }
            ensure!(trail.flush(Duration::from_secs(10)), "the trail is not written");
            ensure!(trail.head().map(|(_, hash)| hash) != head, "{report:?}");
        }
        bail!("the trail does not stand still")
    }
}

pub(crate) fn policy(api: &str, kind: &str, ns: &str, name: &str, spec: &str) -> Value {
    let spec: Value = serde_yaml::from_str(spec).expect("YAML");
    let metadata = json!({"name": name, "namespace": ns});
    json!({"apiVersion": api, "kind": kind, "metadata": metadata, "spec": spec})
}

/// The kubeconfig of a service account that may do what the table of rights says of the webhook's objects, and no more.
async fn keeper(kube: &Kube) -> Result<PathBuf> {
    let of_webhook = |right: &source::kubernetes::Right| {
        right
            .resources
            .iter()
            .any(|resource| ["secrets", "validatingwebhookconfigurations"].contains(resource))
    };
    let rules = |scope| -> Vec<Value> {
        let rights = source::kubernetes::rights()
            .into_iter()
            .filter(|right| right.scope == scope && of_webhook(right));
        let rule = |right: source::kubernetes::Right| {
            let names: Vec<String> =
                right.names.iter().map(|name| name.replace("{namespace}", NAMESPACE)).collect();
            json!({"apiGroups": [right.api_group], "resources": right.resources, "verbs": right.verbs, "resourceNames": names})
        };
        rights.map(rule).collect()
    };
    let rbac = "rbac.authorization.k8s.io/v1";
    let subject = json!([{"kind": "ServiceAccount", "name": "keeper", "namespace": NAMESPACE}]);
    for (kind, scope) in [("ClusterRole", Scope::Cluster), ("Role", Scope::Namespace)] {
        let rules = rules(scope);
        ensure!(!rules.is_empty(), "no {kind}");
        let metadata = json!({"name": "keeper", "namespace": NAMESPACE});
        kube.put(json!({"apiVersion": rbac, "kind": kind, "metadata": metadata, "rules": rules})).await?;
        let role = json!({"apiGroup": "rbac.authorization.k8s.io", "kind": kind, "name": "keeper"});
        let binding = format!("{kind}Binding");
        kube.put(json!({"apiVersion": rbac, "kind": binding, "metadata": metadata, "roleRef": role, "subjects": subject}))
            .await?;
    }
    kube.kubeconfig_of(NAMESPACE, "keeper").await
}
