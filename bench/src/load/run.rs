//! A run: makes the mesh, connects the sidecars, applies changes, compares with a control plane that starts from scratch.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::{Duration, Instant};

use ::tests::lab::Process;
use anyhow::{Context as _, Result, ensure};

use super::connect::{Dial, Target};
use super::fleet::{Fleet, Manners, Member, Seen};
use super::floor::Recording;
use super::measure::Usage;
use super::mesh::{Mesh, Size};
use super::plane::{Ours, Source};
use super::proxy::Variant;
use super::report::{Connected, Floor, Verified};
use super::store::Store;
use super::tls::Minter;

/// How the sidecars come.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, clap::ValueEnum, serde::Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Connect {
    /// All at once.
    #[default]
    Storm,
    /// Two hundred a second.
    Ramp,
}

const RAMP: Duration = Duration::from_millis(5);

/// What a run is made of.
#[derive(Clone, Debug)]
pub struct Settings {
    pub size: Size,
    pub streams: usize,
    pub variant: Variant,
    pub connect: Connect,
    /// Sidecars besides that never acknowledge, and that never read.
    pub never_ack: usize,
    pub never_read: usize,
    /// Nothing has come for so long: a change is over.
    pub quiet: Duration,
    /// How long the control plane is left alone before its memory is looked at.
    pub rest: Duration,
    /// How long anything may take.
    pub patience: Duration,
    pub repeat: usize,
    pub churn: Duration,
    /// This program, for the floor; `None`: no floor.
    pub floor: Option<PathBuf>,
    /// Sidecars whose state is compared with a fresh one's.
    pub sample: usize,
}

impl Default for Settings {
    fn default() -> Self {
        let size =
            Size { services: 100, pods: 10, policies: 100, idle_policies: 0, namespaces: 1, narrowed: false };
        Self {
            size,
            streams: 1000,
            variant: Variant::Delta,
            connect: Connect::Storm,
            never_ack: 0,
            never_read: 0,
            quiet: Duration::from_millis(500),
            rest: Duration::from_secs(10),
            patience: Duration::from_secs(120),
            repeat: 5,
            churn: Duration::from_secs(60),
            floor: None,
            sample: 20,
        }
    }
}

/// The control plane under test.
#[derive(Debug)]
pub enum Plane {
    Ours(Box<Ours>),
    /// Somebody else's, at that address; its process, if it is on this machine.
    Other {
        address: SocketAddr,
        pid: Option<u32>,
    },
}

impl Plane {
    /// # Errors
    /// If it does not run.
    pub fn usage(&self) -> Result<Option<Usage>> {
        match self {
            Self::Ours(ours) => Ok(Some(Usage::of(ours.pid()?)?)),
            Self::Other { pid, .. } => pid.map(Usage::of).transpose(),
        }
    }
}

/// A mesh with its sidecars.
#[derive(Debug)]
pub struct Run {
    pub settings: Settings,
    pub mesh: Mesh,
    pub store: Store,
    pub plane: Plane,
    pub fleet: Fleet,
    /// How many well-mannered streams there are; the others come after them.
    pub streams: usize,
    minter: Option<Arc<Minter>>,
    target: Target,
    /// Changes so far, so that each has content that was never there.
    pub(super) serial: u64,
    /// What was written before the clock of a change started.
    pub(super) prepared: Vec<serde_json::Value>,
}

impl Run {
    /// With the mesh made and nobody connected. `minter`: over TLS, each sidecar with a certificate of its own.
    pub fn new(settings: Settings, mesh: Mesh, store: Store, plane: Plane, minter: Option<Minter>) -> Self {
        let address = match (&plane, &minter) {
            (Plane::Ours(ours), None) => ours.plaintext(),
            (Plane::Ours(ours), Some(_)) => ours.secure(),
            (Plane::Other { address, .. }, _) => *address,
        };
        let target = Target { address, spread: true };
        let fleet = Fleet::new(target.clone(), settings.floor.is_some());
        let minter = minter.map(Arc::new);
        Self {
            settings,
            mesh,
            store,
            plane,
            fleet,
            streams: 0,
            minter,
            target,
            serial: 0,
            prepared: Vec::new(),
        }
    }

    /// The pod that stream `number` is beside.
    pub fn pod_of(&self, number: usize) -> usize {
        number % self.mesh.pods.len()
    }

    /// The numbers of the well-mannered streams beside pods of which `which` says so.
    pub fn streams_of(&self, which: impl Fn(usize) -> bool) -> Vec<usize> {
        (0..self.streams).filter(|number| which(self.pod_of(*number))).collect()
    }

    pub(super) fn member(&self, number: usize, manners: Manners) -> Result<Member> {
        let pod = self.pod_of(number);
        let tls = self.minter.as_ref().map(|minter| minter.client(&self.mesh.identity(pod))).transpose()?;
        let window = (manners == Manners::NeverReads).then_some(1);
        let dial = Dial { from: self.target.source(number), tls, window };
        Ok(Member { manners, ..Member::new(self.settings.variant, self.mesh.node(pod), dial) })
    }

    /// Connects everybody, and waits until all are served.
    ///
    /// # Errors
    /// If they are not in time.
    pub async fn connect(&mut self) -> Result<Connected> {
        let (all, bad) = (self.settings.streams, (self.settings.never_ack, self.settings.never_read));
        let manners = std::iter::repeat_n(Manners::Good, all)
            .chain(std::iter::repeat_n(Manners::NeverAcks, bad.0))
            .chain(std::iter::repeat_n(Manners::NeverReads, bad.1));
        // Certificates are made before the clock starts.
        let members = manners.enumerate().map(|(number, manners)| self.member(number, manners));
        let members: Vec<Member> = members.collect::<Result<_>>()?;
        let (plane, driver) = (self.plane.usage()?, Usage::own()?);
        let counts = self.fleet.counters().read();
        let started = Instant::now();
        for member in members {
            self.fleet.add(member);
            if self.settings.connect == Connect::Ramp {
                tokio::time::sleep(RAMP).await;
            }
        }
        self.streams = all;
        let served = self.fleet.wait(Seen::Served, 0..all, self.settings.patience).await?;
        let wall = served.iter().max().map(|at| at.duration_since(started)).unwrap_or_default();
        let (after, driver_after) = (self.plane.usage()?, Usage::own()?);
        self.fleet.settled(self.settings.quiet).await;
        let counts = self.fleet.counters().read() - counts;
        tokio::time::sleep(self.settings.rest).await;
        let rested = self.plane.usage()?;
        let floor = self.floor().await?;
        let cpu = plane.zip(after).map(|(before, after)| (after.cpu - before.cpu).as_secs_f64());
        let resident = plane.zip(rested).map(|(before, after)| (before.resident, after.resident));
        Ok(Connected {
            streams: all,
            wall_seconds: wall.as_secs_f64(),
            cpu_seconds: cpu,
            driver_cpu_seconds: (driver_after.cpu - driver.cpu).as_secs_f64(),
            resident_before: resident.map(|(before, _)| before),
            resident_after: resident.map(|(_, after)| after),
            resident_per_proxy: resident
                .map(|(before, after)| after.saturating_sub(before) / (all as u64).max(1)),
            counts,
            floor,
        })
    }

    /// The same load from a server that only replays.
    async fn floor(&self) -> Result<Option<Floor>> {
        let Some(program) = &self.settings.floor else { return Ok(None) };
        let folder = tempfile::tempdir()?;
        let file = folder.path().join("recording");
        Recording::save(&file, self.settings.variant, &self.fleet.recorded())?;
        let address: SocketAddr = match self.target.address {
            SocketAddr::V4(v4) => (*v4.ip(), 15099).into(),
            SocketAddr::V6(v6) => (*v6.ip(), 15099).into(),
        };
        let mut command = std::process::Command::new("setpriv");
        command.args(["--pdeathsig", "KILL"]).arg(program).arg("replay").arg(address.to_string()).arg(&file);
        let process = Process::start("replay", folder.path(), command)?;
        let pid = u32::try_from(process.pid())?;
        ::tests::lab::until("the replaying server listens", async || {
            Ok(tokio::net::TcpStream::connect(address).await.ok())
        })
        .await?;
        let mut fleet = Fleet::new(Target { address, spread: true }, false);
        let target = Target { address, spread: true };
        let node = self.mesh.node(0);
        let (server, driver, started) = (Usage::of(pid)?, Usage::own()?, Instant::now());
        for number in 0..self.streams {
            let dial = Dial { from: target.source(number), ..Dial::default() };
            fleet.add(Member::new(self.settings.variant, node.clone(), dial));
            if self.settings.connect == Connect::Ramp {
                tokio::time::sleep(RAMP).await;
            }
        }
        let served = fleet.wait(Seen::Served, 0..self.streams, self.settings.patience).await?;
        let wall = served.iter().max().map(|at| at.duration_since(started)).unwrap_or_default();
        Ok(Some(Floor {
            wall_seconds: wall.as_secs_f64(),
            cpu_seconds: (Usage::of(pid)?.cpu - server.cpu).as_secs_f64(),
            driver_cpu_seconds: (Usage::own()?.cpu - driver.cpu).as_secs_f64(),
        }))
    }

    /// Compares what a sample of sidecars holds with what the same sidecars get from a control plane that starts now (one
    /// of ours), or on a fresh stream (another one).
    ///
    /// # Errors
    /// If they differ for good, naming the first difference.
    pub async fn verify(&self, binary: Option<(PathBuf, Source)>) -> Result<Verified> {
        let mut fresh = match binary {
            Some((binary, source)) => Some(Ours::new(&binary, source, false)?),
            None => None,
        };
        let address = match &mut fresh {
            Some(ours) => {
                ours.start().await?;
                ours.plaintext()
            }
            None => self.target.address,
        };
        let count = self.settings.sample.min(self.streams);
        let sample: Vec<usize> = (0..count).map(|n| n * self.streams / count.max(1)).collect();
        let mut fleet = Fleet::new(Target { address, spread: true }, false);
        for number in &sample {
            let mut member = self.member(*number, Manners::Good)?;
            if fresh.is_some() {
                member.dial.tls = None;
            }
            fleet.add(member);
        }
        fleet.wait(Seen::Served, 0..sample.len(), self.settings.patience).await?;
        let started = Instant::now();
        loop {
            let difference = sample.iter().enumerate().find_map(|(at, number)| {
                let (old, new) =
                    (self.fleet.member(*number).lock().content(), fleet.member(at).lock().content());
                first_difference(&old, &new).map(|what| format!("stream {number}: {what}"))
            });
            let Some(difference) = difference else { break };
            ensure!(
                started.elapsed() < self.settings.patience,
                "not what a fresh control plane gives: {difference}"
            );
            tokio::time::sleep(self.settings.quiet / 10).await;
        }
        let resources = sample.iter().map(|number| self.fleet.member(*number).lock().content().len()).sum();
        Ok(Verified { sidecars: sample.len(), resources, from_scratch: fresh.is_some() })
    }
}

fn first_difference<K: Ord + std::fmt::Debug>(
    old: &BTreeMap<K, u64>,
    new: &BTreeMap<K, u64>,
) -> Option<String> {
    let keys = old.keys().chain(new.keys());
    let differs = |key: &&K| old.get(key) != new.get(key);
    let first = keys.clone().find(differs)?;
    let how = match (old.get(first), new.get(first)) {
        (Some(_), None) => "only on the long-lived stream",
        (None, Some(_)) => "only on the fresh stream",
        _ => "other content",
    };
    Some(format!("{first:?}: {how} ({} against {})", old.len(), new.len()))
}

/// Makes the mesh.
///
/// # Errors
/// What could not be written.
pub async fn create(store: &Store, size: Size) -> Result<Mesh> {
    let mesh = Mesh::new(size);
    store.create(mesh.rounds()).await.context("making the mesh")?;
    Ok(mesh)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_difference_is_named() {
        let map = |pairs: &[(&'static str, u64)]| pairs.iter().copied().collect::<BTreeMap<_, _>>();
        let base = map(&[("a", 1), ("b", 2)]);
        assert_eq!(first_difference(&base, &base.clone()), None);
        for (other, part) in [
            (map(&[("a", 1)]), "only on the long-lived stream"),
            (map(&[("a", 1), ("b", 2), ("c", 3)]), "only on the fresh stream"),
            (map(&[("a", 1), ("b", 3)]), "other content"),
        ] {
            assert!(first_difference(&base, &other).unwrap().contains(part));
        }
    }
}
