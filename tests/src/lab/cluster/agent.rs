//! Pods with our own agent: by service-account token to the certificate authority and the secure port, captured by nft,
//! as an injected sidecar would run. The lab is the kubelet: it puts the token and the roots where the agent looks.

use std::path::{Path, PathBuf};

use anyhow::{Context, Result, ensure};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

use super::{Cluster, FOLDER, Namespace, Pod, PodSpec, Process, SECURE, objects, programs, until};
use crate::lab::kube::private;
use crate::lab::process::command_line;

/// How long a token is valid, seconds.
const TOKEN: u32 = 3600;

/// A pod with an agent.
#[derive(Debug)]
pub struct AgentPod {
    pub spec: PodSpec,
    pub at: Namespace,
    pub uid: String,
    pub folder: PathBuf,
    pub agent: Option<Process>,
    server: String,
    ca: String,
    envoy: PathBuf,
    logs: PathBuf,
    _app: Process,
}

impl Cluster<'_> {
    /// A running pod whose agent talks to this replica's secure port; its Envoy listens.
    ///
    /// # Errors
    /// If anything of it does not start in time.
    pub async fn agent_pod(&mut self, spec: PodSpec, replica: &str) -> Result<AgentPod> {
        let mut pod = self.prepare_agent_pod(spec, replica).await?;
        pod.start()?;
        pod.listening().await?;
        Ok(pod)
    }

    /// Everything of a pod but its agent.
    ///
    /// # Errors
    /// If anything of it does not start in time.
    pub async fn prepare_agent_pod(&mut self, spec: PodSpec, replica: &str) -> Result<AgentPod> {
        let at = self.lab.network.namespace(&spec.name)?;
        let folder = Path::new(FOLDER).join(&spec.name);
        std::fs::create_dir_all(&folder)?;
        let uid = objects(&self.kube, &spec, at.v4).await?;
        let app = Pod::start_app(&spec, &at, &folder, &self.lab.logs)?;
        let bound = Some((&*spec.name, &*uid));
        let token = self.kube.token(&spec.namespace, &spec.service_account, "istio-ca", bound, TOKEN).await?;
        private(&folder.join("token"), &token)?;
        let roots = until("the roots are in the pod's namespace", async || {
            let map = self.kube.get("v1", "ConfigMap", &spec.namespace, "istio-ca-root-cert").await?;
            Ok(map.and_then(|map| map["data"]["root-cert.pem"].as_str().map(str::to_owned)))
        })
        .await?;
        private(&folder.join("roots.pem"), &roots)?;
        let (ca, _) = self.ca.as_ref().context("the certificate authority comes first")?;
        let ca = format!("{}:{SECURE}", ca.v4);
        let server = format!("{}:{SECURE}", self.at(replica).at.v4);
        let (envoy, logs) = (self.lab.envoy.clone(), self.lab.logs.clone());
        Ok(AgentPod { spec, at, uid, folder, agent: None, server, ca, envoy, logs, _app: app })
    }
}

impl AgentPod {
    /// Starts the agent (again).
    ///
    /// # Errors
    /// If it cannot be started.
    pub fn start(&mut self) -> Result<()> {
        self.agent = None;
        let mut command = self.at.command(programs::countersign());
        command.args(["agent", "--server", &self.server, "--ca-addr", &self.ca]);
        command.arg("--token-file").arg(self.folder.join("token"));
        command.arg("--trust-bundle").arg(self.folder.join("roots.pem"));
        command.args(["--workload", &format!("{}/{}", self.spec.namespace, self.spec.name)]);
        command.args(["--capture", "nft"]);
        command.arg("--sds-socket").arg(self.folder.join("sds/sds.sock"));
        command.arg("--state").arg(self.folder.join("state"));
        command.arg("--envoy").arg(&self.envoy).args(&self.spec.agent_args);
        self.agent = Some(Process::start(&format!("{}-agent", self.spec.name), &self.logs, command)?);
        Ok(())
    }

    /// Waits until its Envoy listens.
    ///
    /// # Errors
    /// If it does not in time.
    pub async fn listening(&mut self) -> Result<()> {
        let Self { spec, at, agent, .. } = self;
        let agent = agent.as_mut().context("the agent was started")?;
        until(&format!("{}'s Envoy listens", spec.name), async || {
            let ended = agent.ended();
            ensure!(ended.is_none(), "{} ended: {ended:?}\n{}", agent.name, agent.tail(20));
            Ok(at.dial((std::net::Ipv4Addr::LOCALHOST, 15006).into()).await.ok().map(drop))
        })
        .await
    }

    /// An address of the pod.
    pub fn on(&self, port: u16) -> std::net::SocketAddr {
        (self.at.v4, port).into()
    }

    /// SIGKILL to its Envoy, which the agent starts again.
    ///
    /// # Errors
    /// If there is none.
    pub fn kill_envoy(&self) -> Result<()> {
        let children = self.agent.as_ref().context("no agent")?.children();
        let envoy =
            children.into_iter().find(|pid| command_line(*pid).contains("envoy")).context("no Envoy")?;
        Ok(kill(Pid::from_raw(envoy), Signal::SIGKILL)?)
    }
}
