//! `countersign version`.

use std::process::ExitCode;

use serde::{Deserialize, Serialize};

use crate::cluster::Cluster;
use crate::monitoring::{MonitoringArgs, Target, get};
use crate::output::{OutputArgs, print};

/// What this binary is.
pub(crate) const VERSION: runtime::Version = runtime::Version::of("countersign");

/// Print what this binary is, and with --remote what runs in the control plane
#[derive(Debug, clap::Args)]
#[command(
    after_help = "Examples:\n  countersign version\n  countersign version -o json\n  countersign version --remote"
)]
pub(crate) struct VersionArgs {
    /// Also the version of each replica of the control plane
    #[arg(long)]
    remote: bool,
    #[command(flatten)]
    monitoring: MonitoringArgs,
    #[command(flatten)]
    output: OutputArgs,
}

/// What a control plane says of itself.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Remote {
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub(crate) pod: Option<String>,
    pub(crate) component: String,
    pub(crate) version: String,
    #[serde(default)]
    pub(crate) revision: String,
}

/// Both.
#[derive(Debug, Serialize)]
struct Versions {
    #[serde(flatten)]
    client: runtime::Version,
    #[serde(skip_serializing_if = "Option::is_none")]
    remote: Option<Vec<Remote>>,
}

pub(crate) async fn run(args: &VersionArgs) -> anyhow::Result<ExitCode> {
    let remote = match args.remote {
        false => None,
        true => Some(match args.monitoring.target().await? {
            Target::Here(address) => {
                let (status, body) = get(address, "/version").await?;
                anyhow::ensure!(status == http::StatusCode::OK, "http://{address}/version: {status}");
                vec![serde_json::from_str(&body)?]
            }
            Target::Cluster(cluster) => remote(&cluster).await?,
        }),
    };
    print(args.output.output, &Versions { client: VERSION, remote }, table)?;
    Ok(ExitCode::SUCCESS)
}

fn table(versions: &Versions) -> String {
    let mut text = format!("{}\n", versions.client);
    for Remote { pod, component, version, revision } in versions.remote.iter().flatten() {
        let place = pod.as_deref().unwrap_or("control plane");
        text += &crate::output::printable(&format!("{place}: {component} {version} ({revision})"));
        text.push('\n');
    }
    text
}

/// The version of every replica.
///
/// # Errors
/// If one of them does not answer.
pub(crate) async fn remote(cluster: &Cluster) -> anyhow::Result<Vec<Remote>> {
    let mut found = Vec::new();
    for replica in cluster.replicas().await? {
        let body = cluster.ask(&replica, "/version").await?;
        let remote: Remote = serde_json::from_str(&body)?;
        found.push(Remote { pod: Some(replica.pod), ..remote });
    }
    Ok(found)
}
