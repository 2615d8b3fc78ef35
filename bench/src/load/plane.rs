//! The control plane that is measured: one that runs already, or one of ours that is started here, stopped and started again.

use std::io::{Read as _, Write as _};
use std::net::{Ipv4Addr, SocketAddr, TcpStream};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::atomic::{AtomicU16, Ordering};
use std::time::{Duration, Instant};

use ::tests::lab::Process;
use anyhow::{Context as _, Result, ensure};

/// How long a start may take.
const PATIENCE: Duration = Duration::from_secs(120);

/// What a control plane of ours serves.
#[derive(Clone, Debug)]
pub enum Source {
    Files(PathBuf),
    Kubernetes(PathBuf),
}

/// A control plane that was started here.
#[derive(Debug)]
pub struct Ours {
    binary: PathBuf,
    source: Source,
    folder: tempfile::TempDir,
    secure: bool,
    ip: Ipv4Addr,
    process: Option<Process>,
}

impl Ours {
    /// Not started yet. It listens on a loopback address of its own. `secure`: it also listens with TLS (files only).
    ///
    /// # Errors
    /// If there is no folder for its state.
    pub fn new(binary: &Path, source: Source, secure: bool) -> Result<Self> {
        static USED: AtomicU16 = AtomicU16::new(0);
        let [_, a, b, c] = std::process::id().to_be_bytes();
        let ip = Ipv4Addr::new(127, 128 + (a % 8) * 8 + USED.fetch_add(1, Ordering::Relaxed) as u8 % 8, b, c);
        let folder = tempfile::Builder::new().prefix("countersign-bench-").tempdir()?;
        Ok(Self { binary: binary.to_owned(), source, folder, secure, ip, process: None })
    }

    pub fn plaintext(&self) -> SocketAddr {
        (self.ip, 15010).into()
    }

    pub fn secure(&self) -> SocketAddr {
        (self.ip, 15012).into()
    }

    fn monitoring(&self) -> SocketAddr {
        (self.ip, 15014).into()
    }

    /// Where its certificate authority's key is.
    pub fn state(&self) -> PathBuf {
        self.folder.path().join("state")
    }

    /// Starts it (again) and waits until it is ready; how long that took.
    ///
    /// # Errors
    /// If it ends, or is not ready in time.
    pub async fn start(&mut self) -> Result<Duration> {
        self.process = None;
        let started = Instant::now();
        let process = Process::start("countersign", self.folder.path(), self.command())?;
        self.process = Some(process);
        loop {
            let ended = self.process.as_mut().and_then(Process::ended);
            ensure!(ended.is_none(), "the control plane ended: {ended:?}\n{}", self.tail());
            if self.get("/ready").is_ok_and(|answer| answer.starts_with("HTTP/1.1 200")) {
                return Ok(started.elapsed());
            }
            ensure!(started.elapsed() < PATIENCE, "not ready after {PATIENCE:?}\n{}", self.tail());
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    }

    fn command(&self) -> Command {
        // It ends with us, also when we are killed.
        let mut command = Command::new("setpriv");
        command.args(["--pdeathsig", "KILL"]).arg(&self.binary);
        let secure = if self.secure { self.secure().to_string() } else { "off".to_owned() };
        match &self.source {
            Source::Files(dir) => {
                command.arg("standalone").arg("--dir").arg(dir).arg("--state").arg(self.state());
            }
            Source::Kubernetes(kubeconfig) => {
                command.arg("controller").arg("--kubeconfig").arg(kubeconfig);
                command.args(["--webhook-addr", "off", "--ca-addr", "off"]);
                command.env("POD_NAME", format!("countersign-{}", self.ip));
            }
        }
        command.args(["--secure-addr", &secure]);
        command.args(["--plaintext-addr", &self.plaintext().to_string()]);
        command.args(["--monitoring-addr", &self.monitoring().to_string()]);
        command
    }

    /// SIGKILL.
    pub fn kill(&mut self) {
        self.process = None;
    }

    /// # Errors
    /// If it does not run.
    pub fn pid(&self) -> Result<u32> {
        let process = self.process.as_ref().context("the control plane is not running")?;
        Ok(u32::try_from(process.pid())?)
    }

    /// Its last lines.
    pub fn tail(&self) -> String {
        self.process.as_ref().map(|process| process.tail(20)).unwrap_or_default()
    }

    /// A page of its monitoring address, head included.
    ///
    /// # Errors
    /// If it does not answer.
    pub fn get(&self, path: &str) -> Result<String> {
        let mut tcp = TcpStream::connect(self.monitoring())?;
        tcp.set_read_timeout(Some(Duration::from_secs(5)))?;
        tcp.write_all(
            format!("GET {path} HTTP/1.1\r\nhost: localhost\r\nconnection: close\r\n\r\n").as_bytes(),
        )?;
        let mut answer = String::new();
        tcp.read_to_string(&mut answer)?;
        Ok(answer)
    }
}
