//! `countersign check`.

use std::process::ExitCode;

/// Look for what is wrong with an installation
#[derive(Debug, clap::Args)]
#[command(after_help = "Examples:\n  countersign check")]
pub(crate) struct CheckArgs {}

pub(crate) async fn run(args: CheckArgs) -> anyhow::Result<ExitCode> {
    let CheckArgs {} = args;
    anyhow::bail!("not built yet")
}
