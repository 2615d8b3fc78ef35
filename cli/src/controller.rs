//! `countersign controller`: the policy controller over a Kubernetes API server, inside a cluster or beside one. Wires the
//! parts together; has no logic of its own. Holds no CA key: certificates come from `countersign ca`.

mod replica;
mod secure;
mod secure_metrics;
mod settings;
mod source_metrics;
mod wiring;

use std::process::ExitCode;
use std::time::Duration;

use anyhow::Context;

pub(crate) use settings::{AuditLog, ControllerArgs};

use crate::cli::FINDING;

/// How long open streams and requests get once the process is told to stop.
const DRAIN: Duration = Duration::from_secs(5);

pub(crate) async fn run(args: ControllerArgs) -> anyhow::Result<ExitCode> {
    let settings = args.settings()?;
    let signals = runtime::Signals::new().context("signal handlers")?;
    let files = runtime::limits::raise_open_files();
    tracing::info!(open_files = files, version = %crate::version::VERSION, "starting");
    let tasks = wiring::start(settings).await?;
    runtime::audit::started("controller", &crate::version::VERSION);
    let result = tasks.run(signals, DRAIN).await;
    let reason = result.as_ref().err().map_or_else(|| "asked to".to_owned(), ToString::to_string);
    runtime::audit::stopped("controller", &reason);
    match result {
        Ok(()) => Ok(ExitCode::SUCCESS),
        Err(error) => {
            tracing::error!(error = format!("{:#}", anyhow::Error::from(error)), "stopped");
            Ok(ExitCode::from(FINDING))
        }
    }
}
