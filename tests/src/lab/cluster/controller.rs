//! One replica of the controller: started, killed, cut off, looked at.

use std::path::PathBuf;
use std::process::Command;

use anyhow::{Context, Result, ensure};
use nix::sys::signal::Signal;

use super::{
    Answer, Gate, Got, MONITORING, Namespace, PLAINTEXT, Process, Through, monitoring, programs, until,
};

/// One replica of the controller.
#[derive(Debug)]
pub struct Controller {
    pub name: String,
    pub at: Namespace,
    /// Its way to the API server.
    pub gate: Gate,
    pub process: Option<Process>,
    pub(super) kubeconfig: PathBuf,
    pub(super) arguments: Vec<String>,
    pub(super) logs: PathBuf,
}

impl Controller {
    /// Starts it (again); it is not waited for.
    ///
    /// # Errors
    /// If it cannot be started.
    pub fn start(&mut self) -> Result<()> {
        self.process = None;
        let mut command: Command = self.at.command(programs::countersign());
        // Replicas on one machine would have one name.
        command.env("POD_NAME", format!("countersign-{}", self.name));
        command.arg("controller").arg("--kubeconfig").arg(&self.kubeconfig);
        command.args(["--mesh-config-map", "istio-system/istio"]);
        command.args(["--plaintext-addr", &format!("0.0.0.0:{PLAINTEXT}")]);
        command.args(["--monitoring-addr", &format!("0.0.0.0:{MONITORING}")]);
        command.args(&self.arguments);
        self.process = Some(Process::start(&format!("controller-{}", self.name), &self.logs, command)?);
        Ok(())
    }

    /// Waits until it says that it is ready.
    ///
    /// # Errors
    /// If it ends, or is not ready in time.
    pub async fn ready(&mut self) -> Result<()> {
        until(&format!("controller {} is ready", self.name), async || {
            let ended = self.process.as_mut().and_then(Process::ended);
            ensure!(ended.is_none(), "controller {} ended: {ended:?}\n{}", self.name, self.tail(30));
            Ok((self.monitoring("/ready").await.got == Got::Status(200)).then_some(()))
        })
        .await
        .with_context(|| self.tail(30))
    }

    /// SIGKILL.
    ///
    /// # Errors
    /// If it does not run.
    pub fn kill(&mut self) -> Result<()> {
        self.process.take().context("the controller is not running")?.kill()?;
        Ok(())
    }

    /// # Errors
    /// If it does not run.
    pub fn signal(&self, signal: Signal) -> Result<()> {
        self.process.as_ref().context("the controller is not running")?.signal(signal)
    }

    /// Whether it reaches the API server.
    pub fn cut(&self, through: Through) {
        self.gate.set(through);
    }

    /// A page of its monitoring address, as somebody on its machine sees it.
    pub async fn monitoring(&self, path: &str) -> Answer {
        monitoring(&self.at, path).await
    }

    /// Resident memory in bytes.
    ///
    /// # Errors
    /// If it does not run.
    pub fn resident(&self) -> Result<u64> {
        let pid = self.process.as_ref().context("the controller is not running")?.pid();
        let status = std::fs::read_to_string(format!("/proc/{pid}/status"))?;
        let line = status.lines().find(|line| line.starts_with("VmRSS:")).context("VmRSS")?;
        let kilobytes: u64 = line.split_whitespace().nth(1).context("a number")?.parse()?;
        Ok(kilobytes << 10)
    }

    /// Its last lines.
    pub fn tail(&self, lines: usize) -> String {
        self.process.as_ref().map(|process| process.tail(lines)).unwrap_or_default()
    }
}
