//! `countersign-bench`: the load driver and its scenarios on the command line.
#![expect(clippy::print_stdout, clippy::print_stderr, reason = "what it measures is its output")]

use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context as _, Result, bail};
use bench::load::change::Change;
use bench::load::floor::{Recording, serve};
use bench::load::mesh::{Mesh, Size};
use bench::load::plane::{Ours, Source};
use bench::load::proxy::Variant;
use bench::load::report::{Report, machine, variant};
use bench::load::run::{Connect, Plane, Run, Settings, create};
use bench::load::scenario::{Backend, Name, Setting};
use bench::load::store::Store;
use bench::load::tls::Minter;
use clap::{Parser, Subcommand, ValueEnum};

#[derive(Debug, Parser)]
#[command(about = "Measures ADS control planes with many sidecars that are none")]
struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Make a mesh, connect sidecars, apply changes and report
    Load(Box<LoadArgs>),
    /// Run named scenarios and print what is promised beside what is measured
    Scenario(ScenarioArgs),
    /// Serve a recording (started by `load --floor`)
    #[command(hide = true)]
    Replay { address: SocketAddr, recording: PathBuf },
}

#[derive(Debug, clap::Args)]
struct LoadArgs {
    /// ADS server that runs already
    #[arg(long, value_name = "ADDR", required_unless_present = "serve")]
    target: Option<SocketAddr>,
    /// Its process, for CPU and memory
    #[arg(long)]
    pid: Option<u32>,
    /// Start this `countersign` instead, over --dir or --kubeconfig
    #[arg(long, value_name = "PROGRAM", conflicts_with = "target")]
    serve: Option<PathBuf>,
    /// Make the mesh in this folder
    #[arg(long, value_name = "DIR", required_unless_present = "kubeconfig")]
    dir: Option<PathBuf>,
    /// Make the mesh in this API server
    #[arg(long, value_name = "FILE", conflicts_with = "dir")]
    kubeconfig: Option<PathBuf>,
    /// The mesh is there already
    #[arg(long)]
    no_create: bool,
    #[command(flatten)]
    size: Size,
    /// Sidecars
    #[arg(long, default_value_t = 1000)]
    streams: usize,
    #[arg(long, value_enum, default_value_t)]
    xds_type: Variant,
    #[arg(long, value_enum, default_value_t)]
    connect: Connect,
    /// TLS with certificates minted from the ca-key.pem and root-cert.pem of this folder; with --serve the control plane's
    /// own folder if none is named
    #[arg(long, value_name = "CA_DIR", num_args = 0..=1, default_missing_value = "")]
    mtls: Option<PathBuf>,
    /// What to do then, in this order
    #[arg(long, value_enum, value_delimiter = ',')]
    changes: Vec<Change>,
    /// Times that each change is made
    #[arg(long, default_value_t = 5)]
    repeat: usize,
    #[arg(long, default_value_t = 60)]
    churn_seconds: u64,
    /// Milliseconds without a response after which a change is over
    #[arg(long, default_value_t = 500)]
    quiet: u64,
    /// Seconds before memory is looked at
    #[arg(long, default_value_t = 10)]
    rest: u64,
    /// Also replay the same bytes from a trivial server
    #[arg(long)]
    floor: bool,
    /// Sidecars besides that never acknowledge
    #[arg(long, default_value_t = 0)]
    never_ack: usize,
    /// Sidecars besides that never read
    #[arg(long, default_value_t = 0)]
    never_read: usize,
    /// Sidecars whose state is compared with a fresh one's at the end
    #[arg(long, default_value_t = 20)]
    sample: usize,
    #[arg(long, short, value_enum, default_value_t)]
    output: Output,
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, ValueEnum)]
enum Output {
    #[default]
    Table,
    Json,
}

#[derive(Debug, clap::Args)]
struct ScenarioArgs {
    /// Which; all of them if none is named
    #[arg(value_enum)]
    names: Vec<Name>,
    #[arg(long, value_enum, value_delimiter = ',', default_values_t = [Backend::Files])]
    backend: Vec<Backend>,
    /// The control plane [default: beside this program]
    #[arg(long)]
    serve: Option<PathBuf>,
    /// Write NAME-BACKEND.json and .txt here
    #[arg(long, value_name = "DIR")]
    results: Option<PathBuf>,
}

fn main() -> Result<()> {
    runtime::limits::raise_open_files();
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build()?;
    runtime.block_on(async {
        match Cli::parse().command {
            Command::Load(args) => load(*args).await,
            Command::Scenario(args) => scenarios(args).await,
            Command::Replay { address, recording } => {
                let listener = tokio::net::TcpListener::bind(address).await?;
                serve(listener, Recording::load(&recording)?).await
            }
        }
    })
}

async fn load(args: LoadArgs) -> Result<()> {
    let settings = args.settings()?;
    let (store, source) = match (&args.dir, &args.kubeconfig) {
        (Some(dir), _) => (Store::Files(dir.clone()), Source::Files(dir.clone())),
        (None, Some(file)) => (Store::kubernetes(file).await?, Source::Kubernetes(file.clone())),
        (None, None) => bail!("neither --dir nor --kubeconfig"),
    };
    let mesh = if args.no_create { Mesh::new(args.size) } else { create(&store, args.size).await? };
    let mut report = Report {
        machine: machine(),
        source: if args.dir.is_some() { "files".to_owned() } else { "kubernetes".to_owned() },
        size: Some(args.size),
        variant: variant(args.xds_type),
        connect: Some(args.connect),
        tls: args.mtls.is_some(),
        ..Report::default()
    };
    let plane = match (&args.serve, args.target) {
        (Some(binary), _) => {
            let mut ours = Ours::new(binary, source.clone(), args.mtls.is_some())?;
            report.ready_seconds = Some(ours.start().await?.as_secs_f64());
            Plane::Ours(Box::new(ours))
        }
        (None, Some(address)) => Plane::Other { address, pid: args.pid },
        (None, None) => bail!("neither --serve nor --target"),
    };
    report.ready_resident = plane.usage()?.map(|usage| usage.resident);
    let minter = args.minter(&plane)?;
    let mut run = Run::new(settings, mesh, store, plane, minter);
    report.connected = Some(run.connect().await?);
    for change in &args.changes {
        report.changes.push(run.change(*change).await?);
    }
    report.verified = Some(run.verify(args.serve.map(|binary| (binary, source))).await?);
    match args.output {
        Output::Table => print!("{report}"),
        Output::Json => println!("{}", report.json()?),
    }
    Ok(())
}

impl LoadArgs {
    fn settings(&self) -> Result<Settings> {
        Ok(Settings {
            size: self.size,
            streams: self.streams,
            variant: self.xds_type,
            connect: self.connect,
            never_ack: self.never_ack,
            never_read: self.never_read,
            quiet: Duration::from_millis(self.quiet),
            rest: Duration::from_secs(self.rest),
            repeat: self.repeat,
            churn: Duration::from_secs(self.churn_seconds),
            floor: self.floor.then(std::env::current_exe).transpose()?,
            sample: self.sample,
            ..Settings::default()
        })
    }

    fn minter(&self, plane: &Plane) -> Result<Option<Minter>> {
        let Some(folder) = &self.mtls else { return Ok(None) };
        let own = folder.as_os_str().is_empty();
        match plane {
            Plane::Ours(ours) if own => Minter::of(&ours.state()).map(Some),
            Plane::Other { .. } if own => bail!("--mtls needs the CA's folder"),
            _ => Minter::of(folder).map(Some),
        }
    }
}

async fn scenarios(args: ScenarioArgs) -> Result<()> {
    let own = std::env::current_exe()?;
    let binary = args.serve.unwrap_or_else(|| own.with_file_name("countersign"));
    let names = if args.names.is_empty() { Name::value_variants().to_vec() } else { args.names };
    for backend in args.backend {
        let setting = Setting { binary: binary.clone(), own: own.clone(), backend };
        for name in &names {
            match setting.run(*name).await {
                Ok(reports) => show(&reports, *name, backend, args.results.as_deref())?,
                Err(error) => eprintln!("scenario {} ({}): {error:#}", name.text(), backend.text()),
            }
        }
    }
    Ok(())
}

fn show(reports: &[Report], name: Name, backend: Backend, results: Option<&Path>) -> Result<()> {
    let text: Vec<String> = reports.iter().map(ToString::to_string).collect();
    let text = text.join("\n");
    println!("{text}");
    if let Some(folder) = results {
        let file = folder.join(format!("{}-{}", name.text(), backend.text()));
        std::fs::write(file.with_extension("txt"), &text).context("writing the results")?;
        std::fs::write(file.with_extension("json"), serde_json::to_string_pretty(reports)? + "\n")?;
    }
    Ok(())
}
