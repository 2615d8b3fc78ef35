//! How the tools for people reach a cluster: with the user's own kubeconfig and rights, never with more. Finds the control
//! plane's pods and asks their monitoring ports through the API server's port-forwarding, which arrives from loopback
//! inside the pod. Reads only.

mod forward;

use std::path::PathBuf;
use std::time::Duration;

use anyhow::{Context, Result, bail};
use controller::Report;
use k8s_openapi::api::core::v1::Pod;
use kube::api::{Api, ListParams};
use kube::config::{KubeConfigOptions, Kubeconfig};
use kube::{Client, Config, ResourceExt};

pub(crate) use forward::get;

/// For one question to the API server.
pub(crate) const DEADLINE: Duration = Duration::from_secs(10);
/// The monitoring port of every controller.
const MONITORING: u16 = 15014;
/// What the control plane's pods are labelled with; Istio's tools look for `app=istiod`.
const PODS: &str = "app in (countersign,istiod)";

/// Flags of every command that asks a cluster.
#[derive(Clone, Debug, Default, clap::Args)]
pub(crate) struct ClusterArgs {
    /// Ask the cluster of this kubeconfig file [default: $KUBECONFIG, else ~/.kube/config]
    #[arg(long, value_name = "FILE")]
    pub(crate) kubeconfig: Option<PathBuf>,
    /// Context of the kubeconfig file [default: its current one]
    #[arg(long, value_name = "NAME")]
    pub(crate) context: Option<String>,
}

/// A cluster, and the namespace of the control plane in it.
#[derive(Clone)]
pub(crate) struct Cluster {
    pub(crate) client: Client,
    pub(crate) namespace: String,
}

impl std::fmt::Debug for Cluster {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Cluster").field("namespace", &self.namespace).finish_non_exhaustive()
    }
}

impl ClusterArgs {
    /// A cluster is asked for by name.
    pub(crate) fn given(&self) -> bool {
        let Self { kubeconfig, context } = self;
        kubeconfig.is_some() || context.is_some()
    }

    /// # Errors
    /// If there is no kubeconfig, or it cannot be used. Nothing is asked of the cluster yet.
    pub(crate) async fn connect(&self, namespace: &str) -> Result<Cluster> {
        let Self { kubeconfig, context } = self;
        let file = match kubeconfig {
            Some(path) => Kubeconfig::read_from(path),
            None => Kubeconfig::read(),
        };
        let file = file.context("no usable kubeconfig; name one with --kubeconfig")?;
        let options = KubeConfigOptions { context: context.clone(), ..KubeConfigOptions::default() };
        let mut config = Config::from_custom_kubeconfig(file, &options).await.context("the kubeconfig")?;
        config.connect_timeout = Some(DEADLINE);
        Ok(Cluster { client: Client::try_from(config)?, namespace: namespace.to_owned() })
    }
}

/// One replica of the controller.
#[derive(Clone, Debug)]
pub(crate) struct Replica {
    pub(crate) pod: String,
    pub(crate) ready: bool,
}

impl Cluster {
    /// The control plane's pods that run.
    ///
    /// # Errors
    /// If they may not be listed.
    pub(crate) async fn replicas(&self) -> Result<Vec<Replica>> {
        let pods: Api<Pod> = Api::namespaced(self.client.clone(), &self.namespace);
        let running = ListParams::default().labels(PODS).fields("status.phase=Running");
        let pods = timely(pods.list(&running)).await.context("the control plane's pods")?;
        let ready = |pod: &Pod| {
            let conditions = pod.status.iter().flat_map(|status| status.conditions.iter().flatten());
            conditions.into_iter().any(|c| c.type_ == "Ready" && c.status == "True")
        };
        let replica = |pod: &Pod| Replica { pod: pod.name_any(), ready: ready(pod) };
        Ok(pods.iter().filter(|pod| pod.metadata.deletion_timestamp.is_none()).map(replica).collect())
    }

    /// The answer of one replica's monitoring port.
    ///
    /// # Errors
    /// If it does not answer, or answers otherwise than with 200.
    pub(crate) async fn ask(&self, replica: &Replica, path: &str) -> Result<String> {
        let pod = &replica.pod;
        let asked = get(self, pod, MONITORING, path);
        let (status, body) = asked.await.with_context(|| format!("pod {}/{pod}", self.namespace))?;
        if status != http::StatusCode::OK {
            bail!("pod {}/{pod}: {path}: {status}: {}", self.namespace, body.trim());
        }
        Ok(body)
    }

    /// What every replica says, by pod.
    ///
    /// # Errors
    /// If there is none, or one of them does not answer: half an answer would look like a whole one.
    pub(crate) async fn reports(&self) -> Result<Vec<(String, Report)>> {
        let replicas = self.replicas().await?;
        if replicas.is_empty() {
            bail!(
                "no pod of the control plane runs in namespace {} (labels {PODS}); name another with \
                 --control-plane-namespace",
                self.namespace
            );
        }
        let mut reports = Vec::new();
        for replica in replicas {
            let body = self.ask(&replica, "/status").await?;
            let report = serde_json::from_str(&body)
                .with_context(|| format!("the status of {}; is it of another version?", replica.pod))?;
            reports.push((replica.pod, report));
        }
        Ok(reports)
    }
}

/// `asked`, but not for ever.
///
/// # Errors
/// What it says, or that nothing came in time.
pub(crate) async fn timely<T>(asked: impl Future<Output = kube::Result<T>>) -> Result<T> {
    match tokio::time::timeout(DEADLINE, asked).await {
        Ok(answer) => answer.map_err(plain),
        Err(_) => bail!("the API server did not answer within {} s", DEADLINE.as_secs()),
    }
}

/// The API server's own words, where it has some.
fn plain(error: kube::Error) -> anyhow::Error {
    match error {
        kube::Error::Api(status) if !status.message.is_empty() => {
            anyhow::Error::msg(status.message.clone()).context(Code(status.code))
        }
        other => other.into(),
    }
}

/// The HTTP status of a refusal, kept for [`code`].
#[derive(Debug)]
struct Code(u16);

impl std::fmt::Display for Code {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "the API server says {}", self.0)
    }
}

/// The HTTP status that the API server refused with; `None` if it did not get to say one.
pub(crate) fn code(error: &anyhow::Error) -> Option<u16> {
    error.downcast_ref::<Code>().map(|code| code.0)
}
