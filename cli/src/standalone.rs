//! `countersign standalone`: the whole control plane in one process over a folder of files. Wires the parts together;
//! has no logic of its own.

pub(crate) mod counters;
mod files;
pub(crate) mod secure;
mod settings;
pub(crate) mod wiring;

use std::process::ExitCode;

use anyhow::Context;

pub(crate) use settings::StandaloneArgs;

use crate::cli::FINDING;

/// How long open streams and requests get once the process is told to stop.
const DRAIN: std::time::Duration = std::time::Duration::from_secs(5);

pub(crate) async fn run(args: StandaloneArgs) -> anyhow::Result<ExitCode> {
    let settings = args.settings()?;
    let signals = runtime::Signals::new().context("signal handlers")?;
    let files = runtime::limits::raise_open_files();
    tracing::info!(open_files = files, version = %crate::version::VERSION, "starting");
    let wiring::Running { tasks, addresses } = wiring::start(settings).await?;
    tracing::info!(?addresses, "listening");
    match tasks.run(signals, DRAIN).await {
        Ok(()) => Ok(ExitCode::SUCCESS),
        Err(error) => {
            tracing::error!(error = format!("{:#}", anyhow::Error::from(error)), "stopped");
            Ok(ExitCode::from(FINDING))
        }
    }
}

#[cfg(test)]
mod tests;
