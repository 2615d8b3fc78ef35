//! `countersign crds`.

use std::process::ExitCode;

/// Print the custom resource definitions
#[derive(Debug, clap::Args)]
#[command(after_help = "Examples:\n  countersign crds")]
pub(crate) struct CrdsArgs {}

pub(crate) fn run(args: &CrdsArgs) -> anyhow::Result<ExitCode> {
    let CrdsArgs {} = args;
    anyhow::bail!("not built yet")
}
