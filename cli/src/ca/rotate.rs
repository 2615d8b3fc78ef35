//! `countersign ca rotate`: asks the running certificate authority for a new root, by an annotation on its Secret. The key
//! is made there; nothing of it comes here.

use std::io::Write as _;
use std::process::ExitCode;

use anyhow::{Context, Result};
use k8s_openapi::api::core::v1::Secret;
use kube::Api;
use kube::api::{Patch, PatchParams};

use crate::cluster::{ClusterArgs, timely};
use crate::settings::own_namespace;

/// Ask the certificate authority of a cluster for a new root
///
/// The new root is put into every namespace first; the old one signs until all have had time to learn of it, and is trusted
/// until its last certificate has ended. Needs the right to patch the Secret countersign-ca.
#[derive(Debug, clap::Args)]
#[command(after_help = "Examples:\n  \
    countersign ca rotate -n istio-system\n  \
    countersign ca rotate -n istio-system --now     # the old key is lost or stolen: sign with the new one as soon as it is everywhere")]
pub(crate) struct RotateArgs {
    #[command(flatten)]
    cluster: ClusterArgs,
    /// The control plane's namespace [default: $POD_NAMESPACE, else istio-system]
    #[arg(long, short, value_name = "NS")]
    namespace: Option<String>,
    /// Do not wait for agents that learn of roots only with their next certificate
    #[arg(long)]
    now: bool,
}

pub(super) async fn run(args: &RotateArgs) -> Result<ExitCode> {
    let RotateArgs { cluster, namespace, now } = args;
    let cluster = cluster.connect(&own_namespace(namespace.clone())).await?;
    let secrets: Api<Secret> = Api::namespaced(cluster.client.clone(), &cluster.namespace);
    let when = if *now { "now" } else { "soon" };
    let patch = serde_json::json!({"metadata": {"annotations": {ca::cluster::ROTATE: when}}});
    let patch = Patch::Merge(&patch);
    let params = PatchParams::default();
    timely(secrets.patch_metadata(ca::cluster::SECRET, &params, &patch))
        .await
        .with_context(|| format!("Secret {}/{}", cluster.namespace, ca::cluster::SECRET))?;
    writeln!(
        std::io::stdout(),
        "asked for; watch it in the log of countersign-ca, or: kubectl -n {} get secret {} -o yaml",
        cluster.namespace,
        ca::cluster::SECRET
    )?;
    Ok(ExitCode::SUCCESS)
}
