//! Named runs, one for each thing that is promised: what is set up, and what is compared with the goal.

use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context as _, Result};

use super::change::Change;
use super::mesh::Size;
use super::plane::{Ours, Source};
use super::report::{Changed, Goal, Report, machine, variant};
use super::run::{Plane, Run, Settings, create};
use super::store::Store;
use super::tls::Minter;

/// Where the mesh is.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, clap::ValueEnum)]
pub enum Backend {
    /// A folder, and `countersign standalone`
    #[default]
    Files,
    /// A kube-apiserver started for it, and `countersign controller`
    Kubernetes,
}

/// A promise.
#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
pub enum Name {
    /// 1,000 sidecars: all served
    Serve,
    /// Memory of a connected sidecar, plaintext
    Memory,
    /// Memory of a connected sidecar, mTLS (files only)
    MemoryMtls,
    /// A policy for a namespace of 1,000 sidecars
    NamespacePolicy,
    /// A policy for one service of 10 pods
    OneService,
    /// Edits that change nothing
    NoOp,
    /// The control plane restarted under 1,000 sidecars
    Restart,
    /// 10,000 sidecars, 10,000 policies, 1,000 services, narrowed
    TenThousand,
    /// A change among 10 and among 10,000 policies
    Policies,
    /// A pod's change among 100 and among 2,000 services
    Services,
    /// Start with 10,000 policies, 1,000 services, 10,000 pods
    StartUp,
    /// 1 % of the pods replaced each second, for a minute
    Churn,
}

/// What scenarios run with.
#[derive(Clone, Debug)]
pub struct Setting {
    /// `countersign`.
    pub binary: PathBuf,
    /// This program, for the floor.
    pub own: PathBuf,
    pub backend: Backend,
}

/// A run and what it is made of.
struct Stage {
    run: Run,
    source: Source,
    report: Report,
    // In this order: sidecars and control plane end first.
    _kube: Option<::tests::lab::kube::Kube>,
    _folder: tempfile::TempDir,
}

impl Setting {
    /// The mesh made and the control plane ready.
    async fn stage(&self, name: Name, settings: Settings, tls: bool) -> Result<Stage> {
        let backend = if tls { Backend::Files } else { self.backend };
        let folder = tempfile::Builder::new().prefix("countersign-bench-").tempdir()?;
        let (store, source, kube) = match backend {
            Backend::Files => {
                let dir = folder.path().join("mesh");
                std::fs::create_dir(&dir)?;
                (Store::Files(dir.clone()), Source::Files(dir), None)
            }
            Backend::Kubernetes => {
                let kube = ::tests::lab::kube::up().await?;
                let kubeconfig = kube.admin_kubeconfig()?;
                (Store::Kubernetes(kube.client()), Source::Kubernetes(kubeconfig), Some(kube))
            }
        };
        let mut report = Report {
            scenario: format!("{} ({})", name.text(), backend.text()),
            machine: machine(),
            source: backend.text().to_owned(),
            size: Some(settings.size),
            variant: variant(settings.variant),
            connect: Some(settings.connect),
            tls,
            ..Report::default()
        };
        let mesh = create(&store, settings.size).await?;
        let mut ours = Ours::new(&self.binary, source.clone(), tls)?;
        report.ready_seconds = Some(ours.start().await?.as_secs_f64());
        let minter = tls.then(|| Minter::of(&ours.state())).transpose()?;
        let run = Run::new(settings, mesh, store, Plane::Ours(Box::new(ours)), minter);
        report.ready_resident = run.plane.usage()?.map(|usage| usage.resident);
        Ok(Stage { run, source, report, _kube: kube, _folder: folder })
    }

    /// Runs a scenario.
    ///
    /// # Errors
    /// If something does not come about at all; a goal that is not held is no error.
    pub async fn run(&self, name: Name) -> Result<Vec<Report>> {
        match name {
            Name::Policies => self.policies().await,
            Name::Services => self.services().await,
            _ => Ok(vec![self.single(name).await?]),
        }
    }

    async fn single(&self, name: Name) -> Result<Report> {
        let (settings, tls, changes) = self.settings(name);
        let connects = settings.streams > 0;
        let mut stage = self.stage(name, settings, tls).await?;
        if connects {
            stage.report.connected = Some(stage.run.connect().await?);
        }
        for change in changes {
            stage.report.changes.push(stage.run.change(*change).await?);
        }
        if connects {
            stage.verify(&self.binary).await?;
        }
        let goals = goals(name, &stage.report);
        stage.report.goals = goals.context("a figure is missing")?;
        Ok(stage.report)
    }

    fn settings(&self, name: Name) -> (Settings, bool, &'static [Change]) {
        let brief = Settings { rest: Duration::ZERO, repeat: 20, ..Settings::default() };
        let large = Size {
            services: 1000,
            pods: 10,
            policies: 10_000,
            idle_policies: 0,
            namespaces: 50,
            narrowed: true,
        };
        match name {
            Name::Serve => (Settings { floor: Some(self.own.clone()), ..brief }, false, &[]),
            Name::Memory => (Settings::default(), false, &[]),
            Name::MemoryMtls => (Settings::default(), true, &[]),
            Name::NamespacePolicy => (brief, false, &[Change::Namespace]),
            Name::OneService => (brief, false, &[Change::NewPolicy, Change::OneService]),
            Name::NoOp => (brief, false, &[Change::Metadata]),
            Name::Restart => (brief, false, &[Change::Restart]),
            Name::TenThousand => {
                let settings = Settings { size: large, streams: 10_000, repeat: 20, ..Settings::default() };
                (settings, false, &[Change::OneService])
            }
            Name::StartUp => {
                let size = Size { narrowed: false, ..large };
                (Settings { size, streams: 0, ..brief }, false, &[])
            }
            Name::Churn => (brief, false, &[Change::Churn]),
            Name::Policies | Name::Services => (brief, false, &[]),
        }
    }

    /// What a change of one policy costs among ever more that have nothing to do with it.
    async fn policies(&self) -> Result<Vec<Report>> {
        let mut reports = Vec::new();
        for idle_policies in [10, 10_000] {
            let size = Size { idle_policies, ..Settings::default().size };
            reports.push(self.step(Name::Policies, size, 100, Change::OneService).await?);
        }
        compare(&mut reports, "CPU of a change, 10,000 idle policies against 10", 1.3)?;
        Ok(reports)
    }

    /// What a pod's change costs among ever more services, the proxies that need it being as many.
    async fn services(&self) -> Result<Vec<Report>> {
        let mut reports = Vec::new();
        for services in [100, 2000] {
            let size = Size {
                services,
                policies: services,
                pods: 5,
                namespaces: services / 20,
                narrowed: true,
                ..Settings::default().size
            };
            reports.push(self.step(Name::Services, size, 500, Change::PodIp).await?);
        }
        compare(&mut reports, "CPU of a pod's change, 2,000 services against 100", 1.3)?;
        Ok(reports)
    }

    async fn step(&self, name: Name, size: Size, streams: usize, change: Change) -> Result<Report> {
        let settings = Settings {
            size,
            streams,
            repeat: 100,
            rest: Duration::ZERO,
            quiet: Duration::from_millis(50),
            ..Settings::default()
        };
        let mut stage = self.stage(name, settings, false).await?;
        stage.report.connected = Some(stage.run.connect().await?);
        let changed = stage.run.change(change).await?;
        stage.report.changes.push(changed);
        stage.verify(&self.binary).await?;
        Ok(stage.report)
    }
}

impl Stage {
    async fn verify(&mut self, binary: &Path) -> Result<()> {
        let scratch = Some((binary.to_owned(), self.source.clone()));
        self.report.verified = Some(self.run.verify(scratch).await?);
        Ok(())
    }
}

/// Adds a goal to the last report: its change costs at most `most` times what the first one's does.
fn compare(reports: &mut [Report], what: &str, most: f64) -> Result<()> {
    let cost = |report: &Report| report.changes.first().and_then(|change| change.cpu_seconds);
    let costs: Vec<f64> = reports.iter().filter_map(cost).collect();
    let (Some(first), Some(last)) = (costs.first(), costs.last()) else {
        anyhow::bail!("no CPU time of the control plane");
    };
    let goal = Goal::at_most(what, "times", most, last / first.max(0.01));
    reports.last_mut().context("a report")?.goals.push(goal);
    Ok(())
}

/// What is promised, beside what `report` says; `None` if it does not say it.
fn goals(name: Name, report: &Report) -> Option<Vec<Goal>> {
    let connected = report.connected.as_ref();
    let memory = |most: f64| {
        let each = connected?.resident_per_proxy? as f64 / 1e3;
        Some(vec![Goal::at_most("resident memory of a sidecar", "kB", most, each)])
    };
    let last = report.changes.last();
    Some(match name {
        Name::Serve => {
            let (connected, floor) = (connected?, connected?.floor?);
            vec![
                Goal::at_most("CPU of the control plane", "s", 1.2, connected.cpu_seconds?),
                Goal::at_most(
                    "wall time against the floor",
                    "times",
                    1.3,
                    connected.wall_seconds / floor.wall_seconds,
                ),
                Goal::at_most("CPU of the driver", "s", 3.0, connected.driver_cpu_seconds),
            ]
        }
        Name::Memory => memory(60.0)?,
        Name::MemoryMtls => memory(100.0)?,
        Name::NamespacePolicy => latency_and_cpu(last?, 48.0, Some(0.05))?,
        Name::OneService => one_service(last?)?,
        Name::NoOp => {
            vec![Goal::exactly("responses to edits that change nothing", 0, last?.counts.responses)]
        }
        Name::Restart => {
            let sent = last?.counts.resource_bytes as f64 / 1e6;
            vec![Goal::at_most("resources sent after a restart", "MB", 1.0, sent)]
        }
        Name::TenThousand => {
            let connected = connected?;
            let mut goals = vec![
                Goal::at_most("all served", "s", 30.0, connected.wall_seconds),
                Goal::at_most("resident memory", "MB", 1000.0, connected.resident_after? as f64 / 1e6),
            ];
            goals.extend(latency_and_cpu(last?, 30.0, None)?);
            goals
        }
        Name::StartUp => vec![
            Goal::at_most("ready after", "s", 5.0, report.ready_seconds?),
            Goal::at_most("resident memory", "MB", 300.0, report.ready_resident? as f64 / 1e6),
        ],
        Name::Policies | Name::Services | Name::Churn => Vec::new(),
    })
}

fn latency_and_cpu(change: &Changed, p99: f64, cpu: Option<f64>) -> Option<Vec<Goal>> {
    let mut goals = vec![Goal::at_most("p99 from the write to the proxy", "ms", p99, change.latency?.p99)];
    if let Some(cpu) = cpu {
        let each = change.cpu_seconds? / change.repeats.max(1) as f64;
        goals.push(Goal::at_most("CPU of a change", "s", cpu, each));
    }
    Some(goals)
}

fn one_service(change: &Changed) -> Option<Vec<Goal>> {
    let repeats = change.repeats.max(1) as u64;
    let kilobytes = change.counts.bytes as f64 / repeats as f64 / 1e3;
    let mut goals = vec![
        Goal::exactly("responses in all", 10 * repeats, change.counts.responses),
        Goal::at_most("bytes of a change", "kB", 20.0, kilobytes),
    ];
    goals.extend(latency_and_cpu(change, 15.0, None)?);
    Some(goals)
}

impl Backend {
    pub fn text(self) -> &'static str {
        match self {
            Self::Files => "files",
            Self::Kubernetes => "kubernetes",
        }
    }
}

impl Name {
    /// As the command line writes it.
    pub fn text(self) -> String {
        clap::ValueEnum::to_possible_value(&self).map(|value| value.get_name().to_owned()).unwrap_or_default()
    }
}
