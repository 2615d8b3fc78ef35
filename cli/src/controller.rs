//! `countersign controller`.

use std::process::ExitCode;

/// Run the policy controller against a Kubernetes API server
#[derive(Debug, clap::Args)]
#[command(after_help = "Examples:\n  countersign controller")]
pub(crate) struct ControllerArgs {}

pub(crate) async fn run(args: ControllerArgs) -> anyhow::Result<ExitCode> {
    let ControllerArgs {} = args;
    anyhow::bail!("not built yet")
}
