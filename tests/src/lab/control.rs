//! The control plane under test: `countersign standalone` in a namespace of its own, over a folder of files.

use std::path::{Path, PathBuf};

use anyhow::{Context, Result, ensure};

use super::client::{Caller, Got};
use super::net::Namespace;
use super::pki::Credential;
use super::process::Process;
use super::{programs, until};

/// A control plane; its process can be killed and started again.
#[derive(Debug)]
pub struct ControlPlane {
    pub at: Namespace,
    /// The watched folder.
    pub files: PathBuf,
    pub state: PathBuf,
    pub process: Option<Process>,
    /// More arguments.
    pub args: Vec<String>,
    logs: PathBuf,
}

const SECURE: u16 = 15012;
const PLAINTEXT: u16 = 15010;
const MONITORING: u16 = 15014;

impl ControlPlane {
    pub(super) fn new(at: Namespace, folder: &Path, logs: &Path) -> Result<Self> {
        let (files, state) = (folder.join("files"), folder.join("state"));
        std::fs::create_dir_all(&files)?;
        Ok(Self { at, files, state, process: None, args: Vec::new(), logs: logs.to_owned() })
    }

    /// What agents connect to.
    pub fn secure_address(&self) -> String {
        format!("{}:{SECURE}", self.at.v4)
    }

    /// Starts it (again) and waits until it says it is ready.
    ///
    /// # Errors
    /// If it ends, or is not ready in time.
    pub async fn start(&mut self) -> Result<()> {
        self.process = None;
        let mut command = self.at.command(programs::countersign());
        command.arg("standalone").arg("--dir").arg(&self.files).arg("--state").arg(&self.state);
        command.arg("--mesh-config").arg(self.mesh_config());
        command.args(["--secure-addr", &format!("0.0.0.0:{SECURE}")]);
        command.args(["--plaintext-addr", &format!("127.0.0.1:{PLAINTEXT}")]);
        command.args(["--monitoring-addr", &format!("0.0.0.0:{MONITORING}")]).args(&self.args);
        self.process = Some(Process::start("control-plane", &self.logs, command)?);
        until("the control plane is ready", async || {
            let ended = self.process.as_mut().and_then(Process::ended);
            ensure!(ended.is_none(), "the control plane ended: {ended:?}");
            let ready = self.monitoring("/ready").await.got == Got::Status(200);
            Ok((ready && self.state.join("root-cert.pem").is_file()).then_some(()))
        })
        .await
    }

    /// SIGKILL.
    ///
    /// # Errors
    /// If it does not run.
    pub fn kill(&mut self) -> Result<()> {
        self.process.take().context("the control plane is not running")?.kill()?;
        Ok(())
    }

    /// A page of the monitoring address.
    pub async fn monitoring(&self, path: &str) -> super::client::Answer {
        let caller = Caller::new(&self.at, Credential::Plaintext);
        // By loopback, in address and name: not everything is said to callers from elsewhere.
        let mut request = super::get(path);
        request.headers_mut().insert(http::header::HOST, http::HeaderValue::from_static("localhost"));
        caller.send((std::net::Ipv4Addr::LOCALHOST, MONITORING).into(), request).await
    }

    fn mesh_config(&self) -> PathBuf {
        self.files.with_file_name("mesh.yaml")
    }

    /// Replaces the mesh configuration.
    ///
    /// # Errors
    /// If it cannot be written.
    pub fn mesh(&self, text: &str) -> Result<()> {
        save(&self.mesh_config(), text)
    }

    /// Saves a file in the watched folder as an editor does: whole or not at all.
    ///
    /// # Errors
    /// If it cannot be written.
    pub fn save(&self, name: &str, text: &str) -> Result<()> {
        save(&self.files.join(name), text)
    }

    /// # Errors
    /// If there is no such file.
    pub fn remove(&self, name: &str) -> Result<()> {
        Ok(std::fs::remove_file(self.files.join(name))?)
    }
}

fn save(path: &Path, text: &str) -> Result<()> {
    let name = path.file_name().context("a file has a name")?.to_string_lossy();
    let new = path.with_file_name(format!(".{name}.new"));
    std::fs::write(&new, text)?;
    std::fs::rename(&new, path)?;
    Ok(())
}
