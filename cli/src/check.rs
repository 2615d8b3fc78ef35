//! `countersign check`: looks for what is wrong with an installation, in groups, and names for each finding the section of
//! the troubleshooting page that says what to do. Changes nothing: what it has to try, it tries as a dry run.

mod api;
mod certificates;
mod control_plane;
mod definitions;
mod kinds;
mod policies;
mod proxies;
mod report;
mod rights;
mod webhook;

use std::process::ExitCode;
use std::time::Duration;

use tokio::time::Instant;

use crate::cli::FINDING;
use crate::cluster::{Cluster, ClusterArgs};
use crate::output;
use report::{Format, Level, Report};

/// Between two rounds of `--wait`.
const PAUSE: Duration = Duration::from_secs(1);

/// Look for what is wrong with an installation, or with --pre for what would be in its way
///
/// Asks the API server as you, and changes nothing. Exits with 1 if something is wrong.
#[derive(Debug, clap::Args)]
#[command(
    after_help = "Examples:\n  countersign check --pre                  # before installing: may you, and is the way free?\n  \
                        countersign check\n  \
                        countersign check --wait 2m -o short     # after installing\n  \
                        countersign check --context prod -n istio-system -o json"
)]
pub(crate) struct CheckArgs {
    /// Before an installation: whether it can be made
    #[arg(long)]
    pre: bool,
    #[command(flatten)]
    cluster: ClusterArgs,
    /// Namespace of the control plane
    #[arg(
        short,
        long,
        visible_short_alias = 'i',
        env = "COUNTERSIGN_NAMESPACE",
        default_value = "istio-system",
        value_name = "NS"
    )]
    namespace: String,
    /// Check again until nothing is wrong, so long at most
    #[arg(long, value_parser = crate::duration::parse, value_name = "DURATION")]
    wait: Option<Duration>,
    /// From which level on something counts as wrong for the exit code
    #[arg(long, value_enum, default_value_t = Threshold::Error, value_name = "LEVEL")]
    failure_threshold: Threshold,
    /// How to print; short shows only what is not right
    #[arg(short, long, value_enum, default_value_t = Format::Table, env = "COUNTERSIGN_CHECK_OUTPUT")]
    output: Format,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
enum Threshold {
    Warning,
    Error,
}

impl Threshold {
    fn level(self) -> Level {
        match self {
            Self::Warning => Level::Warning,
            Self::Error => Level::Error,
        }
    }
}

pub(crate) async fn run(args: CheckArgs) -> anyhow::Result<ExitCode> {
    let CheckArgs { pre, cluster, namespace, wait, failure_threshold, output } = args;
    let cluster = cluster.connect(&namespace).await?;
    let deadline = wait.map(|wait| Instant::now() + wait);
    let report = loop {
        let report = if pre { before(&cluster).await } else { installed(&cluster).await };
        let again = deadline.is_some_and(|deadline| Instant::now() < deadline);
        if !again || report.worst() < failure_threshold.level() {
            break report;
        }
        tokio::time::sleep(PAUSE).await;
    };
    output::text(&report.print(output)?)?;
    Ok(if report.worst() < failure_threshold.level() { ExitCode::SUCCESS } else { ExitCode::from(FINDING) })
}

/// Whether an installation can be made.
async fn before(cluster: &Cluster) -> Report {
    let mut report = Report::default();
    let api = api::check(cluster).await;
    let reachable = api.passed();
    report.add(api);
    if reachable {
        report.add(definitions::before(cluster).await);
        report.add(rights::before(cluster).await);
        report.add(control_plane::before(cluster).await);
        report.add(kinds::check(cluster).await);
    }
    report
}

/// Whether an installation works.
async fn installed(cluster: &Cluster) -> Report {
    let mut report = Report::default();
    let api = api::check(cluster).await;
    let reachable = api.passed();
    report.add(api);
    if reachable {
        report.add(definitions::check(cluster).await);
        report.add(rights::check(cluster).await);
        report.add(control_plane::check(cluster).await);
        report.add(certificates::check(cluster).await);
        report.add(webhook::check(cluster).await);
        report.add(proxies::check(cluster).await);
        report.add(policies::check(cluster).await);
        report.add(kinds::check(cluster).await);
    }
    report
}
