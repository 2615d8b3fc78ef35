//! `countersign ca`: the certificate authority of a cluster, a process of its own with the only keys. Wires the parts
//! together; has no logic of its own.

pub(crate) mod counters;
mod domain;
mod rotate;
mod settings;
mod wiring;

use std::process::ExitCode;
use std::time::Duration;

use anyhow::Context;

use crate::cli::FINDING;

/// How long open requests get once the process is told to stop.
const DRAIN: Duration = Duration::from_secs(5);

/// Run the certificate authority of a cluster, or ask it for a new root
///
/// Signs certificates for workloads that prove themselves by service-account token or certificate, keeps its keys in the
/// Secret countersign-ca (or takes up Istio's Secret cacerts), and puts the roots into the ConfigMap istio-ca-root-cert of
/// every namespace. It is a process of its own, with rights of its own, so that nothing else ever holds a signing key.
#[derive(Debug, clap::Args)]
#[command(
    args_conflicts_with_subcommands = true,
    after_help = "Examples:\n  \
    countersign ca                                           # in a cluster, as its pod's service account\n  \
    countersign ca --kubeconfig ~/.kube/config --addr 127.0.0.1:15012 --monitoring-addr 127.0.0.1:15014\n  \
    countersign ca --config /etc/countersign-ca.yaml         # kubeconfig: .., namespace: .., addr: .., ..\n  \
    countersign ca rotate -n istio-system                    # a new root, step by step, without an outage"
)]
pub(crate) struct CaArgs {
    #[command(subcommand)]
    command: Option<Command>,
    #[command(flatten)]
    serve: settings::ServeArgs,
}

#[derive(Debug, clap::Subcommand)]
enum Command {
    Rotate(rotate::RotateArgs),
}

pub(crate) async fn run(args: CaArgs) -> anyhow::Result<ExitCode> {
    let CaArgs { command, serve } = args;
    match command {
        Some(Command::Rotate(args)) => return rotate::run(&args).await,
        None => {}
    }
    let settings = serve.settings()?;
    let signals = runtime::Signals::new().context("signal handlers")?;
    let files = runtime::limits::raise_open_files();
    tracing::info!(open_files = files, version = %crate::version::VERSION, "starting");
    let tasks = wiring::start(settings).await?;
    runtime::audit::started("ca", &crate::version::VERSION);
    let result = tasks.run(signals, DRAIN).await;
    let reason = result.as_ref().err().map_or_else(|| "asked to".to_owned(), ToString::to_string);
    runtime::audit::stopped("ca", &reason);
    match result {
        Ok(()) => Ok(ExitCode::SUCCESS),
        Err(error) => {
            tracing::error!(error = format!("{:#}", anyhow::Error::from(error)), "stopped");
            Ok(ExitCode::from(FINDING))
        }
    }
}
