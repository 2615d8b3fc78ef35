//! The changes: what is written, who is to get what, and what it cost.

use std::time::{Duration, Instant};

use anyhow::{Context as _, Result};
use serde_json::{Value, json};

use super::fleet::{Manners, Seen};
use super::measure::{Counts, Spread};
use super::mesh::mesh_mtls;
use super::proxy::Probe;
use super::report::Changed;
use super::run::{Plane, Run};
use super::wire::Kind;

/// What is done to the mesh.
#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
pub enum Change {
    /// A policy for one service edited
    OneService,
    /// A new policy for one service, a different one each time
    NewPolicy,
    /// A policy for a whole namespace edited
    Namespace,
    /// PeerAuthentication of the mesh: STRICT and PERMISSIVE in turn
    MeshMtls,
    /// Another address of one pod
    PodIp,
    /// A label with which a policy selects one pod
    PodLabel,
    /// Annotations, and the same object again
    Metadata,
    /// One in a hundred pods replaced each second
    Churn,
    /// The control plane killed and started again
    Restart,
}

impl Change {
    pub fn name(self) -> &'static str {
        match self {
            Self::OneService => "one-service",
            Self::NewPolicy => "new-policy",
            Self::Namespace => "namespace",
            Self::MeshMtls => "mesh-mtls",
            Self::PodIp => "pod-ip",
            Self::PodLabel => "pod-label",
            Self::Metadata => "metadata",
            Self::Churn => "churn",
            Self::Restart => "restart",
        }
    }
}

/// One write, or several that belong together, and what becomes of it.
struct Step {
    writes: Vec<Value>,
    probe: Probe,
    /// Streams that are to see it.
    expected: Vec<usize>,
}

impl Run {
    /// Applies a change as often as the settings say; what it cost, of all times together.
    ///
    /// # Errors
    /// If it is not seen everywhere in time.
    pub async fn change(&mut self, change: Change) -> Result<Changed> {
        let changed = match change {
            Change::Churn => self.churn().await,
            Change::Restart => self.restart().await,
            _ => self.steps(change).await,
        };
        changed.with_context(|| change.name())
    }

    async fn steps(&mut self, change: Change) -> Result<Changed> {
        let repeat = self.settings.repeat;
        self.prepare(change).await?;
        let mut latencies = Vec::new();
        let mut expected = 0;
        let meter = self.meter()?;
        for time in 0..repeat {
            let Step { writes, probe, expected: streams } = self.step(change, time);
            expected += streams.len();
            self.fleet.forget();
            let number = self.fleet.watch(probe);
            let mut written = Instant::now();
            for object in &writes {
                written = self.store.put(object).await?;
            }
            let seen = self.fleet.wait(Seen::Arrived(number), streams, self.settings.patience).await?;
            // One may have it before its writer has its answer.
            latencies.extend(seen.into_iter().map(|at| at.saturating_duration_since(written)));
            self.fleet.settled(self.settings.quiet).await;
        }
        Ok(Changed { latency: Spread::of(latencies), expected, ..self.metered(change, repeat, &meter)? })
    }

    /// What has to be there before the clock starts.
    async fn prepare(&mut self, change: Change) -> Result<()> {
        match change {
            // A new policy also changes listeners; once the second one has come, so have those.
            Change::OneService | Change::Namespace | Change::Metadata => {
                for _ in 0..2 {
                    let edit = if change == Change::Metadata { Change::OneService } else { change };
                    let Step { writes, probe, expected } = self.step(edit, 0);
                    let number = self.fleet.watch(probe);
                    for object in &writes {
                        self.store.put(object).await?;
                    }
                    self.fleet.wait(Seen::Arrived(number), expected, self.settings.patience).await?;
                    self.prepared = writes;
                }
            }
            Change::PodLabel => {
                self.serial += 1;
                let policy = self.mesh.deny_special(&format!("special-{}", self.serial));
                self.store.put(&policy).await?;
            }
            Change::MeshMtls => {
                self.store.put(&mesh_mtls("PERMISSIVE")).await?;
            }
            Change::NewPolicy | Change::PodIp | Change::Churn | Change::Restart => {}
        }
        self.fleet.settled(self.settings.quiet).await;
        Ok(())
    }

    /// The change for the `time`th time.
    fn step(&mut self, change: Change, time: usize) -> Step {
        self.serial += 1;
        let serial = self.serial;
        let marker = format!("marker-{serial}-");
        let probe = Probe::marker(&marker);
        match change {
            Change::OneService => {
                let writes = vec![self.mesh.deny_service(0, &marker)];
                Step { writes, probe, expected: self.streams_of(|pod| self.mesh.pods[pod].service == 0) }
            }
            Change::NewPolicy => {
                let service = time % self.mesh.size.services.max(1);
                let mut policy = self.mesh.deny_service(service, &marker);
                policy["metadata"]["name"] = json!(format!("new-{serial}"));
                let expected = self.streams_of(|pod| self.mesh.pods[pod].service == service);
                Step { writes: vec![policy], probe, expected }
            }
            Change::Namespace => {
                let here = self.mesh.namespace(0);
                let inside = |pod: usize| self.mesh.namespace(self.mesh.pods[pod].service) == here;
                Step {
                    writes: vec![self.mesh.deny_namespace(&marker)],
                    probe,
                    expected: self.streams_of(inside),
                }
            }
            Change::MeshMtls => {
                let mode = if time.is_multiple_of(2) { "STRICT" } else { "PERMISSIVE" };
                let probe = Probe::Changed(Kind::Listener, "virtualInbound");
                Step { writes: vec![mesh_mtls(mode)], probe, expected: self.streams_of(|_| true) }
            }
            Change::PodIp => {
                let ip = self.mesh.address();
                self.mesh.pods[0].ip = ip;
                let writes = vec![self.mesh.pod(0), self.mesh.slice(0)];
                let expected = self.streams_of(|pod| self.mesh.sees(pod, 0));
                Step { writes, probe: Probe::marker(&ip.to_string()), expected }
            }
            Change::PodLabel => {
                let here = self.mesh.namespace(0);
                let plain = |pod: &usize| {
                    let it = &self.mesh.pods[*pod];
                    !it.special && self.mesh.namespace(it.service) == here
                };
                let pod = (0..self.mesh.pods.len()).find(plain).unwrap_or(0);
                self.mesh.pods[pod].special = true;
                let expected = self.streams_of(|other| other == pod);
                Step { writes: vec![self.mesh.pod(pod)], probe: Probe::marker("/special-"), expected }
            }
            Change::Metadata | Change::Churn | Change::Restart => {
                let mut writes = vec![self.mesh.pod(1), self.mesh.service(0)];
                writes.extend(self.prepared.iter().cloned());
                for object in &mut writes {
                    object["metadata"]["annotations"]["bench.countersign.io/serial"] =
                        json!(serial.to_string());
                }
                // As it was written last.
                writes.push(self.mesh.slice(0));
                Step { writes, probe: Probe::Nothing, expected: Vec::new() }
            }
        }
    }

    async fn churn(&mut self) -> Result<Changed> {
        let (started, length) = (Instant::now(), self.settings.churn);
        let meter = self.meter()?;
        let each = (self.mesh.pods.len() / 100).max(1);
        let (mut latencies, mut expected, mut next, mut rounds) = (Vec::new(), 0, 0, 0);
        while started.elapsed() < length {
            let round = Instant::now();
            let pods: Vec<usize> = (next..next + each).map(|n| n % self.mesh.pods.len()).collect();
            next += each;
            rounds += 1;
            let last = pods.last().copied().context("a mesh without pods")?;
            let olds: Vec<Value> = pods.iter().map(|pod| self.mesh.pod(*pod)).collect();
            for pod in &pods {
                let ip = self.mesh.address();
                let it = &mut self.mesh.pods[*pod];
                (it.ip, it.generation, it.special) = (ip, it.generation + 1, false);
            }
            let service = self.mesh.pods[last].service;
            let streams = self.streams_of(|pod| !pods.contains(&pod) && self.mesh.sees(pod, service));
            expected += streams.len();
            self.fleet.forget();
            let number = self.fleet.watch(Probe::marker(&self.mesh.pods[last].ip.to_string()));
            let written = self.replace(&pods, &olds).await?;
            let seen = self.fleet.wait(Seen::Arrived(number), streams, self.settings.patience).await?;
            latencies.extend(seen.into_iter().map(|at| at.saturating_duration_since(written)));
            tokio::time::sleep(Duration::from_secs(1).saturating_sub(round.elapsed())).await;
        }
        self.fleet.settled(self.settings.quiet).await;
        Ok(Changed {
            latency: Spread::of(latencies),
            expected,
            ..self.metered(Change::Churn, rounds, &meter)?
        })
    }

    /// New pods in the place of old ones, their sidecars with them.
    async fn replace(&mut self, pods: &[usize], olds: &[Value]) -> Result<Instant> {
        let mut services: Vec<usize> = Vec::new();
        for (pod, old) in pods.iter().zip(olds) {
            self.store.put(&self.mesh.pod(*pod)).await?;
            self.store.delete(old).await?;
            services.push(self.mesh.pods[*pod].service);
            for number in self.streams_of(|other| other == *pod) {
                let member = self.member(number, Manners::Good)?;
                self.fleet.replace(number, member);
            }
        }
        services.dedup();
        let mut written = Instant::now();
        for service in services {
            written = self.store.put(&self.mesh.slice(service)).await?;
        }
        Ok(written)
    }

    /// Kill, start, and everybody comes back with what they have.
    async fn restart(&mut self) -> Result<Changed> {
        let Plane::Ours(ours) = &mut self.plane else {
            anyhow::bail!("only a control plane that was started here can be started again");
        };
        self.fleet.forget();
        let before = self.fleet.counters().read();
        ours.kill();
        let killed = Instant::now();
        let ready = ours.start().await?;
        let back = self.fleet.wait(Seen::Open, 0..self.streams, self.settings.patience).await?;
        self.fleet.settled(self.settings.quiet * 4).await;
        let counts = self.fleet.counters().read() - before;
        let usage = self.plane.usage()?;
        Ok(Changed {
            name: Change::Restart.name(),
            repeats: 1,
            expected: self.streams,
            latency: Spread::of(back.into_iter().map(|at| at.saturating_duration_since(killed)).collect()),
            counts,
            cpu_seconds: usage.map(|usage| usage.cpu.as_secs_f64()),
            driver_cpu_seconds: 0.0,
            resident: usage.map(|usage| usage.resident),
            ready_seconds: Some(ready.as_secs_f64()),
        })
    }

    fn meter(&self) -> Result<Meter> {
        let cpu = self.plane.usage()?.map(|usage| usage.cpu);
        let driver = super::measure::Usage::own()?.cpu;
        Ok(Meter { cpu, driver, counts: self.fleet.counters().read() })
    }

    fn metered(&self, change: Change, repeats: usize, since: &Meter) -> Result<Changed> {
        let (usage, now) = (self.plane.usage()?, self.meter()?);
        let seconds = |now: Duration, then: Duration| (now - then).as_secs_f64();
        Ok(Changed {
            name: change.name(),
            repeats,
            expected: 0,
            latency: None,
            counts: now.counts - since.counts,
            cpu_seconds: now.cpu.zip(since.cpu).map(|(now, then)| seconds(now, then)),
            driver_cpu_seconds: seconds(now.driver, since.driver),
            resident: usage.map(|usage| usage.resident),
            ready_seconds: None,
        })
    }
}

/// Where counters stood.
struct Meter {
    cpu: Option<Duration>,
    driver: Duration,
    counts: Counts,
}
