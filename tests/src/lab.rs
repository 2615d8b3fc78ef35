//! Pods as network namespaces, each with a real Envoy started by our own agent, and a control plane over files.
//!
//! ```no_run
//! use tests::lab::{self, ALLOWED, PodSpec, Protocol};
//! # fn main() {
//! lab::run("module::name_of_the_test", async |lab| {
//!     lab.save("policy.yaml", "...")?;
//!     lab.start().await?;
//!     let orders = lab.pod(PodSpec::new("default", "orders").port(8080, Protocol::Http)).await?;
//!     let caller = lab.caller(lab.identity("default", "payment")?);
//!     lab.becomes(ALLOWED, async |lab| caller.get(lab[orders].on(8080), "/").await.got).await
//! });
//! # }
//! ```
//! Each test is its own sandbox ([`here!`](crate::here) names it): as root or, where the kernel lets anybody, in a user
//! namespace (`LAB_USERNS=1` forces that). Nothing is left behind, also by a test that is killed. Waiting is always for
//! a condition. `LAB_LOGS=1` with `--nocapture` shows the logs of a test that passes, too. Without Envoy or the tools a test is skipped with a printed reason, or fails where `CI` is set.

pub mod client;
pub mod cluster;
pub mod control;
pub mod grpc;
pub mod jwt;
pub mod kube;
pub mod net;
pub mod pki;
pub mod pod;
pub mod process;
pub mod programs;
mod sandbox;
pub mod sidecar;
pub mod traffic;
pub mod wire;

use std::fmt;
use std::net::Ipv4Addr;
use std::ops::{Index, IndexMut};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};

pub use client::{ALLOWED, Answer, Caller, DENIED, Got, Http, UNAUTHENTICATED, get, next, request};
pub use control::ControlPlane;
pub use jwt::{Signer, in_seconds};
pub use net::{Family, Namespace, Network};
pub use pki::{AnyServer, Authority, Credential, Leaf};
pub use pod::{Capture, Pod, PodSpec, Protocol};
pub use process::Process;
pub use wire::{First, Seen, Wire};

/// How long a condition may take to come true.
const PATIENCE: Duration = Duration::from_secs(20);
/// Everything lives here, in the sandbox's own `/run`.
const FOLDER: &str = "/run/lab";
const MESH: &str = "accessLogFile: /dev/stdout\naccessLogEncoding: JSON\n";

/// Everything one test has.
#[derive(Debug)]
pub struct Lab {
    pub network: Network,
    pub control: ControlPlane,
    /// Where clients that are no pods dial from.
    pub outside: Namespace,
    pub envoy: PathBuf,
    pub logs: PathBuf,
    /// The API server, once [`Lab::kube`] was called.
    pub kube: Option<kube::Kube>,
    /// The namespace of all pods without capture, once there is one.
    local: Option<Namespace>,
    pods: Vec<Pod>,
}

/// Which pod.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct PodId(usize);

impl Index<PodId> for Lab {
    type Output = Pod;

    fn index(&self, PodId(id): PodId) -> &Pod {
        &self.pods[id]
    }
}

impl IndexMut<PodId> for Lab {
    fn index_mut(&mut self, PodId(id): PodId) -> &mut Pod {
        &mut self.pods[id]
    }
}

/// Runs a test's body in a sandbox of its own. `test` is its exact name: [`here!`](crate::here).
///
/// # Panics
/// If the body fails; the ends of all logs are printed.
pub fn run(test: &str, body: impl AsyncFnOnce(&mut Lab) -> Result<()>) {
    let envoy = match programs::envoy() {
        Ok(envoy) => envoy,
        Err(missing) => return sandbox::skip(test, &missing),
    };
    programs::countersign();
    sandbox::enter(test, || {
        let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build();
        runtime.expect("a runtime").block_on(async {
            let mut lab = Lab::new(&envoy).expect("a network");
            if let Err(why) = body(&mut lab).await {
                lab.show_logs();
                panic!("{why:?}");
            }
            if std::env::var_os("LAB_LOGS").is_some() {
                lab.show_logs();
            }
        });
    });
}

/// Envoy, for a test that needs no sandbox; `None` after saying why there is none.
///
/// # Panics
/// If there is none and `CI` is set.
pub fn envoy_or_skip(test: &str) -> Option<PathBuf> {
    programs::envoy().map_err(|missing| sandbox::skip(test, &missing)).ok()
}

impl Lab {
    fn new(envoy: &Path) -> Result<Self> {
        let folder = Path::new(FOLDER);
        let logs = folder.join("logs");
        std::fs::create_dir_all(&logs)?;
        let mut network = Network::new()?;
        let control = ControlPlane::new(network.namespace("control")?, folder, &logs)?;
        let outside = network.namespace("outside")?;
        control.mesh(MESH)?;
        let envoy = within_reach(envoy, &folder.join("envoy"))?;
        Ok(Self { network, control, outside, envoy, logs, kube: None, local: None, pods: Vec::new() })
    }

    /// Starts the control plane. Files saved before are its first list.
    ///
    /// # Errors
    /// If it does not get ready.
    pub async fn start(&mut self) -> Result<()> {
        self.control.start().await
    }

    /// The API server, started at the first call, at the bridge's address: the test and all pods reach it.
    ///
    /// # Errors
    /// If it does not start.
    pub async fn kube(&mut self) -> Result<&kube::Kube> {
        if self.kube.is_none() {
            self.kube = Some(kube::Kube::in_sandbox(net::BRIDGE, Path::new(FOLDER).join("kube")).await?);
        }
        self.kube.as_ref().context("it was just started")
    }

    /// See [`ControlPlane::save`].
    ///
    /// # Errors
    /// If it cannot be written.
    pub fn save(&self, name: &str, text: &str) -> Result<()> {
        self.control.save(name, text)
    }

    /// A running pod whose Envoy has taken its configuration.
    ///
    /// # Errors
    /// If anything of it does not start in time.
    pub async fn pod(&mut self, spec: PodSpec) -> Result<PodId> {
        let id = self.prepare(spec)?;
        self.start_agent(id)?;
        self.listening(id).await?;
        Ok(id)
    }

    /// Several pods at once, which is faster.
    ///
    /// # Errors
    /// If anything of them does not start in time.
    pub async fn pods(&mut self, specs: impl IntoIterator<Item = PodSpec>) -> Result<Vec<PodId>> {
        let mut ids = Vec::new();
        for spec in specs {
            ids.push(self.prepare(spec)?);
        }
        for id in &ids {
            self.start_agent(*id)?;
        }
        for id in &ids {
            self.listening(*id).await?;
        }
        Ok(ids)
    }

    /// A pod without agent and Envoy, and without a control plane: only its application answers.
    ///
    /// # Errors
    /// If the application does not start.
    pub async fn bare_pod(&mut self, spec: PodSpec) -> Result<PodId> {
        let (at, ports) = (self.network.namespace(&spec.name)?, spec.ports.clone());
        let folder = Path::new(FOLDER).join(&spec.name);
        let app = Pod::start_app(&spec, &at, &folder, &self.logs)?;
        self.pods.push(Pod {
            spec,
            at: at.clone(),
            cluster_ip: Ipv4Addr::UNSPECIFIED,
            folder,
            app,
            agent: None,
        });
        for (port, _) in ports {
            let address = std::net::SocketAddr::from((Ipv4Addr::LOCALHOST, port));
            until("the application listens", async || Ok(at.dial(address).await.ok().map(drop))).await?;
        }
        Ok(PodId(self.pods.len() - 1))
    }

    /// Everything of a pod but its agent.
    fn prepare(&mut self, spec: PodSpec) -> Result<PodId> {
        let at = match spec.capture {
            Capture::Nft | Capture::External => self.network.namespace(&spec.name)?,
            Capture::None => self.local()?,
        };
        let cluster_ip = Ipv4Addr::new(10, 96, 0, u8::try_from(self.pods.len())? + 1);
        let folder = Path::new(FOLDER).join(&spec.name);
        std::fs::create_dir_all(&folder)?;
        self.save(&format!("pod-{}-{}.yaml", spec.namespace, spec.name), &spec.objects(&at, cluster_ip)?)?;
        Pod::join_token(&spec, &self.control.state, &folder)?;
        let app = Pod::start_app(&spec, &at, &folder, &self.logs)?;
        self.pods.push(Pod { spec, at, cluster_ip, folder, app, agent: None });
        Ok(PodId(self.pods.len() - 1))
    }

    /// The namespace of pods without capture, as the next of them sees it: with an address of its own.
    fn local(&mut self) -> Result<Namespace> {
        let shared = match &self.local {
            Some(shared) => shared.clone(),
            None => self.local.insert(self.network.namespace("local")?).clone(),
        };
        Ok(Namespace { v4: Ipv4Addr::new(127, 8, 0, u8::try_from(self.pods.len())? + 1), ..shared })
    }

    /// Starts the pod's agent, in place of the one it has (if it still runs, that one is killed).
    ///
    /// # Errors
    /// If it cannot be started.
    pub fn start_agent(&mut self, PodId(id): PodId) -> Result<()> {
        let Self { network: _, control, outside: _, envoy, logs, kube: _, local: _, pods } = self;
        pods[id].start_agent(control, envoy, logs)
    }

    /// Waits until the pod's Envoy holds its listeners: an inbound one is open.
    ///
    /// # Errors
    /// If it does not happen in time.
    pub async fn listening(&mut self, id: PodId) -> Result<()> {
        let pod = &mut self[id];
        let at = pod.at.clone();
        let name = pod.spec.name.clone();
        let listening = match (pod.spec.capture, pod.spec.ports.first()) {
            (Capture::None, Some((port, _))) => pod.on(*port),
            (Capture::None, None) => pod.on(15001),
            (Capture::Nft | Capture::External, _) => std::net::SocketAddr::from((Ipv4Addr::LOCALHOST, 15006)),
        };
        let agent = pod.agent.as_mut().context("no agent")?;
        until(&format!("{name}'s Envoy listens"), async || {
            let ended = agent.ended();
            anyhow::ensure!(ended.is_none(), "the agent of {name} ended: {ended:?}\n{}", agent.tail(20));
            let inbound = at.dial(listening).await;
            Ok(inbound.ok().map(drop))
        })
        .await
    }

    /// A caller outside all pods.
    pub fn caller(&self, credential: Credential) -> Caller {
        Caller::new(&self.outside, credential)
    }

    /// A caller that can reach the pod: outside, or in the pod's own namespace where its address is 127.x.
    pub fn caller_to(&self, pod: PodId, credential: Credential) -> Caller {
        match self[pod].spec.capture {
            Capture::Nft | Capture::External => self.caller(credential),
            Capture::None => Caller::new(&self[pod].at, credential),
        }
    }

    /// The mesh's own CA.
    ///
    /// # Errors
    /// If the control plane never ran.
    pub fn authority(&self) -> Result<Authority> {
        Authority::of_state(&self.control.state)
    }

    /// A valid certificate of the mesh for a service account.
    ///
    /// # Errors
    /// If the control plane never ran.
    pub fn identity(&self, namespace: &str, account: &str) -> Result<Credential> {
        self.authority()?.mint(&Leaf::new([format!("spiffe://cluster.local/ns/{namespace}/sa/{account}")]))
    }

    /// Waits until `ask` is answered so.
    ///
    /// # Errors
    /// If it is not in time, with what it was instead.
    pub async fn becomes<T: PartialEq + fmt::Debug>(
        &self,
        expected: T,
        ask: impl AsyncFn(&Self) -> T,
    ) -> Result<()> {
        let started = Instant::now();
        loop {
            let got = ask(self).await;
            if got == expected {
                return Ok(());
            }
            if started.elapsed() > PATIENCE {
                bail!("still {got:?} instead of {expected:?} after {PATIENCE:?}");
            }
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    }

    #[expect(clippy::print_stdout, reason = "the harness shows it if the test fails")]
    fn show_logs(&self) {
        let folders = [self.logs.clone(), Path::new(FOLDER).join("kube")];
        let files = folders.iter().filter_map(|folder| std::fs::read_dir(folder).ok()).flatten().flatten();
        let mut files: Vec<PathBuf> = files
            .map(|entry| entry.path())
            .filter(|path| path.extension().is_some_and(|e| e == "log"))
            .collect();
        files.sort();
        for file in files {
            println!("---- {} ----\n{}", file.display(), process::tail(&file, 40));
        }
    }
}

/// Shows `program` at `here` as well: Envoy runs as a user who may not enter the folder it lies in.
fn within_reach(program: &Path, here: &Path) -> Result<PathBuf> {
    std::fs::write(here, "")?;
    let status = std::process::Command::new("mount").arg("--bind").args([program, here]).status()?;
    anyhow::ensure!(status.success(), "mount --bind {} {}: {status}", program.display(), here.display());
    Ok(here.to_owned())
}

/// Polls until `ask` gives a value.
///
/// # Errors
/// If it fails, or gives none in time.
pub async fn until<T>(what: &str, ask: impl AsyncFnMut() -> Result<Option<T>>) -> Result<T> {
    within(PATIENCE, what, ask).await
}

/// As [`until`], with a patience of its own.
///
/// # Errors
/// If it fails, or gives none in time.
pub async fn within<T>(
    patience: Duration,
    what: &str,
    mut ask: impl AsyncFnMut() -> Result<Option<T>>,
) -> Result<T> {
    let started = Instant::now();
    loop {
        if let Some(value) = ask().await.with_context(|| format!("waiting until {what}"))? {
            return Ok(value);
        }
        if started.elapsed() > patience {
            bail!("not seen within {patience:?}: {what}");
        }
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
}
