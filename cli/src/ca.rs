//! `countersign ca`.

use std::process::ExitCode;

/// Run the certificate authority for a cluster
#[derive(Debug, clap::Args)]
#[command(after_help = "Examples:\n  countersign ca")]
pub(crate) struct CaArgs {}

pub(crate) async fn run(args: CaArgs) -> anyhow::Result<ExitCode> {
    let CaArgs {} = args;
    anyhow::bail!("not built yet")
}
