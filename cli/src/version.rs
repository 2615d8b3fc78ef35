//! `countersign version`.

use std::process::ExitCode;

use crate::output::{OutputArgs, print};

/// What this binary is.
pub(crate) const VERSION: runtime::Version = runtime::Version::of("countersign");

/// Print what this binary is
#[derive(Debug, clap::Args)]
#[command(after_help = "Examples:\n  countersign version\n  countersign version -o json")]
pub(crate) struct VersionArgs {
    #[command(flatten)]
    output: OutputArgs,
}

pub(crate) fn run(args: &VersionArgs) -> anyhow::Result<ExitCode> {
    print(args.output.output, &VERSION, |version| format!("{version}\n"))?;
    Ok(ExitCode::SUCCESS)
}
