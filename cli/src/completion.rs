//! `countersign completion`.

use std::process::ExitCode;

/// Print a script that completes this command line in a shell
#[derive(Debug, clap::Args)]
#[command(after_help = "Examples:\n  source <(countersign completion bash)\n  \
                        countersign completion zsh > ~/.zfunc/_countersign")]
pub(crate) struct CompletionArgs {
    shell: clap_complete::Shell,
}

pub(crate) fn run(args: &CompletionArgs, mut command: clap::Command) -> anyhow::Result<ExitCode> {
    let mut script = Vec::new();
    clap_complete::generate(args.shell, &mut command, "countersign", &mut script);
    crate::output::text(&String::from_utf8(script)?)?;
    Ok(ExitCode::SUCCESS)
}
