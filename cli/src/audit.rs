//! `countersign audit`.

use std::process::ExitCode;

/// Work with audit trails
#[derive(Debug, clap::Subcommand)]
pub(crate) enum Audit {
    /// Check that no line of an audit trail was changed, removed or added
    #[command(after_help = "Examples:\n  countersign audit verify audit.jsonl")]
    Verify {},
}

pub(crate) fn run(command: Audit) -> anyhow::Result<ExitCode> {
    let Audit::Verify {} = command;
    anyhow::bail!("not built yet")
}
