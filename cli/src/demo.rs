//! The demo: a zero-trust shop on this machine, each workload behind a real Envoy, and a table of what is let through.
//!
//! It starts the same processes that a user would start and looks at them from outside. It needs no root: capture is
//! `none`, addresses are 127.x, applications listen on Unix sockets. It holds no policy logic of its own.

pub(crate) mod app;
mod call;
mod children;
mod credentials;
mod live;
mod log;
mod model;
mod report;
mod rows;
mod shop;
mod start;
mod table;
mod watch;

use std::io::Write as _;
use std::path::PathBuf;
use std::process::ExitCode;

use anyhow::{Context, Result, bail};

use call::Calls;
use children::Children;
pub(crate) use children::{GuardArgs, guard};
use credentials::{Login, Mint};
use report::Report;
use shop::Shop;
use start::Progress;

/// Run a zero-trust shop on this machine, each workload behind a real Envoy, and print what is let through
#[derive(clap::Args, Clone, Debug)]
#[command(after_help = "Examples:\n  countersign demo\n  countersign demo --watch --dir ./shop\n  \
                        countersign demo -o json --envoy /usr/bin/envoy")]
pub(crate) struct DemoArgs {
    /// Leave it running until Ctrl-C, and print commands to play with
    #[arg(long)]
    keep: bool,
    /// Leave it running, and print the rows that change whenever a file is saved
    #[arg(long)]
    watch: bool,
    /// The Envoy to run (default: the one on the PATH, else one in .cache/envoy)
    #[arg(long, env = "ENVOY", value_name = "FILE")]
    envoy: Option<PathBuf>,
    /// Where to put the files; kept afterwards (default: a temporary folder)
    #[arg(long, value_name = "DIR")]
    dir: Option<PathBuf>,
    /// How to print the result
    #[arg(short, long, value_enum, default_value_t = Output::Table)]
    output: Output,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
enum Output {
    Table,
    Json,
}

/// Runs the demo. The exit code is the number of rows that failed (at most 100).
///
/// # Errors
/// If it cannot be started.
pub(crate) async fn run(args: DemoArgs) -> Result<ExitCode> {
    let mut terminate = tokio::signal::unix::signal(tokio::signal::unix::SignalKind::terminate())?;
    tokio::select! {
        result = show(args) => result,
        _ = terminate.recv() => bail!("told to end"),
        interrupted = tokio::signal::ctrl_c() => {
            interrupted?;
            // The convention of shells for a process that SIGINT ended.
            Ok(ExitCode::from(130))
        }
    }
}

/// The working folder: removed in the end unless it is to be kept.
enum Folder {
    Given(PathBuf),
    Temporary(tempfile::TempDir),
}

impl Folder {
    fn new(args: &DemoArgs) -> Result<Self> {
        if let Some(dir) = &args.dir {
            std::fs::create_dir_all(dir)?;
            let used = std::fs::read_dir(dir)?.next().is_some();
            anyhow::ensure!(!used, "{} is not empty: your files would be overwritten", dir.display());
            return Ok(Self::Given(dir.canonicalize()?));
        }
        let folder = tempfile::Builder::new().prefix("countersign-demo-").tempdir()?;
        Ok(if args.keep { Self::Given(folder.keep()) } else { Self::Temporary(folder) })
    }

    /// The folder, if it is to be removed in the end.
    fn temporary(&self) -> Option<&std::path::Path> {
        match self {
            Self::Given(_) => None,
            Self::Temporary(folder) => Some(folder.path()),
        }
    }

    fn path(&self) -> &std::path::Path {
        match self {
            Self::Given(path) => path,
            Self::Temporary(folder) => folder.path(),
        }
    }
}

async fn show(args: DemoArgs) -> Result<ExitCode> {
    let progress = Progress::new();
    let envoy = start::find_envoy(args.envoy.clone())?;
    let version = start::envoy_version(&envoy)?;
    let folder = Folder::new(&args)?;
    let login = Login::new()?;
    let shop = Shop::write(folder.path(), &login.jwks())?;
    progress.say(&format!("wrote the shop's policies to {}", shop.files().display()));
    // Dropped before the folder: processes end first.
    let mut children = Children::new(&shop.logs(), folder.temporary())?;
    start::applications(&shop, &mut children)?;
    start::control_plane(&shop, &mut children).await?;
    progress.say("the control plane is ready");
    start::agents(&shop, &envoy, &mut children).await?;
    progress.say(&format!("{} workloads run, each behind its own Envoy {version}", shop::WORKLOADS.len()));
    let mint = Mint::new(&shop.state()).context("the CA of the demo's control plane")?;
    let calls = Calls { shop, login, mint };
    start::warm_up(&calls, &mut children).await?;
    progress.say("calling");
    let mut report = Report::make(&calls, version).await;
    report.live(&calls).await;
    start::alive(&mut children)?;
    progress.say("done");
    print(&match args.output {
        Output::Table => report.text(),
        Output::Json => report.json()?,
    })?;
    let code = ExitCode::from(u8::try_from(report.failed()).unwrap_or(100).min(100));
    if args.keep || args.watch {
        print(&report::invitation(&calls.shop, args.watch))?;
        stay(&calls, &mut children, report, args.watch).await?;
    }
    Ok(code)
}

/// Until Ctrl-C, which [`run`] handles.
async fn stay(calls: &Calls, children: &mut Children, mut report: Report, watch: bool) -> Result<()> {
    let mut files = watch::Files::of(&calls.shop.files());
    loop {
        tokio::select! {
            names = files.changed() => {
                if watch {
                    print(&report.again(calls, &names).await)?;
                }
            }
            () = tokio::time::sleep(std::time::Duration::from_secs(1)) => {}
        }
        start::alive(children)?;
    }
}

fn print(text: &str) -> Result<()> {
    let mut out = std::io::stdout().lock();
    out.write_all(text.as_bytes())?;
    Ok(out.flush()?)
}
