//! Envoy's life: found, started, started again when it ends, drained when we end. What it enforces is not our business; that
//! nothing goes past it while it is down is `capture`'s.

use std::fs::OpenOptions;
use std::os::fd::OwnedFd;
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::sync::Arc;
use std::time::{Duration, Instant};

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use tokio::process::{Child, Command};
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;

use crate::admin;
use crate::args::AgentArgs;
use crate::capture::Plan;
use crate::health::Health;
use crate::sds::Secrets;
use crate::state::State;
use authn::schedule;

/// An Envoy that ran so long was no failed start.
const STABLE: Duration = Duration::from_secs(10);
/// Envoy may take so long to end when told to.
const GRACE: Duration = Duration::from_secs(5);
/// Older ones have known ways round RBAC.
const FLOOR: (u32, u32, u32) = (1, 39, 1);
/// How often it is looked whether an Envoy that is not our child still runs.
const LOOK: Duration = Duration::from_secs(1);
/// Follows `-c FILE`; by all three a process is known to be our Envoy.
const NO_HOT_RESTART: &str = "--disable-hot-restart";

#[derive(Debug, thiserror::Error)]
pub enum EnvoyError {
    #[error(
        "no Envoy: {0} cannot be run. Give --envoy PATH or set $ENVOY, or put `envoy` on PATH (in a checkout: scripts/get-envoy prints one)"
    )]
    Missing(String, #[source] std::io::Error),
    #[error("{0} does not say which Envoy it is")]
    Unknown(String),
    #[error("an Envoy of an earlier agent (process {0}) does not end")]
    Stubborn(i32),
    #[error("{what} {}", path.display())]
    File { what: &'static str, path: PathBuf, source: std::io::Error },
}

/// An Envoy that can be run.
#[derive(Clone, Debug)]
pub(crate) struct Envoy(PathBuf);

impl Envoy {
    /// `--envoy`, `$ENVOY`, then PATH. Says so if it is too old.
    pub(crate) async fn find(args: &AgentArgs) -> Result<Self, EnvoyError> {
        let path = args.envoy.clone().unwrap_or_else(|| PathBuf::from("envoy"));
        let name = path.display().to_string();
        let output = Command::new(&path)
            .arg("--version")
            .output()
            .await
            .map_err(|error| EnvoyError::Missing(name.clone(), error))?;
        let version = version(&String::from_utf8_lossy(&output.stdout)).ok_or(EnvoyError::Unknown(name))?;
        let (major, minor, patch) = version;
        tracing::info!(envoy = format!("{major}.{minor}.{patch}"), path = %path.display(), "Envoy");
        if version < FLOOR {
            tracing::warn!("this Envoy is older than 1.39.1 and has known ways round RBAC: use a newer one");
        }
        Ok(Self(path))
    }
}

/// The version in `envoy  version: HASH/1.39.3/Clean/RELEASE/BoringSSL`.
fn version(text: &str) -> Option<(u32, u32, u32)> {
    text.split('/').find_map(|part| {
        let mut numbers = part.split(['.', '-']).map(|number| number.parse().ok());
        Some((numbers.next()??, numbers.next()??, numbers.next()??))
    })
}

pub(crate) struct Supervisor {
    envoy: Envoy,
    bootstrap: PathBuf,
    admin_socket: PathBuf,
    log: Option<PathBuf>,
    log_level: String,
    concurrency: u32,
    drain_time: u64,
    uid: Option<u32>,
    /// What Envoy would be given.
    secrets: watch::Receiver<Secrets>,
    health: Arc<Health>,
}

impl Supervisor {
    pub(crate) fn new(
        args: &AgentArgs,
        envoy: Envoy,
        state: &State,
        bootstrap: PathBuf,
        plan: &Plan,
        secrets: watch::Receiver<Secrets>,
        health: Arc<Health>,
    ) -> Self {
        Self {
            envoy,
            bootstrap,
            admin_socket: state.admin_socket.clone(),
            log: args.envoy_log.clone(),
            log_level: args.envoy_log_level.clone(),
            concurrency: args.concurrency,
            drain_time: args.drain_time,
            uid: plan.proxy_uid(),
            secrets,
            health,
        }
    }

    /// Keeps an Envoy running until `stop`, then drains it.
    pub(crate) async fn run(mut self, stop: CancellationToken) -> Result<(), EnvoyError> {
        if !left_overs(&self.bootstrap).is_empty() {
            tracing::info!(
                "the Envoy of an earlier agent serves on until there is a certificate for a new one"
            );
            tokio::select! {
                () = stop.cancelled() => {}
                () = self.certificate_or_no_envoy() => {}
            }
            self.end_left_over().await?;
        }
        let mut failures = 0;
        while !stop.is_cancelled() {
            let started = Instant::now();
            let mut child = self.start()?;
            tokio::select! {
                () = stop.cancelled() => {
                    self.drain(&mut child).await;
                    return Ok(());
                }
                status = child.wait() => {
                    let status = status.map(|status| status.to_string()).unwrap_or_default();
                    tracing::error!(status, "Envoy ended; starting it again");
                }
            }
            self.health.envoy_restarted();
            failures = if started.elapsed() > STABLE { 1 } else { failures + 1 };
            // The first time at once: a killed Envoy should be back before anybody waits for it.
            let wait = if failures == 1 { Duration::ZERO } else { schedule::retry(failures, rand::random()) };
            tokio::select! {
                () = stop.cancelled() => {}
                () = tokio::time::sleep(wait) => {}
            }
        }
        Ok(())
    }

    /// An agent that comes back in the middle of an outage must not replace an Envoy that works by one that cannot.
    async fn certificate_or_no_envoy(&mut self) {
        loop {
            let certificate = self.secrets.wait_for(Secrets::has_certificate);
            if tokio::time::timeout(LOOK, certificate).await.is_ok() || left_overs(&self.bootstrap).is_empty()
            {
                return;
            }
        }
    }

    fn start(&self) -> Result<Child, EnvoyError> {
        // Envoy does not replace a socket of its predecessor.
        let _ = std::fs::remove_file(&self.admin_socket);
        let (out, err) = self.output()?;
        let mut command = Command::new(&self.envoy.0);
        command
            .arg("-c")
            .arg(&self.bootstrap)
            .args([NO_HOT_RESTART, "--drain-strategy", "immediate", "-l", &self.log_level])
            // Access logs are read by people and by `countersign demo`: not ten seconds late.
            .args(["--file-flush-interval-msec", "50"])
            .args(["--concurrency", &self.concurrency.to_string()])
            .args(["--drain-time-s", &self.drain_time.to_string()])
            .stdin(Stdio::null())
            .stdout(out)
            .stderr(err);
        if let Some(uid) = self.uid {
            command.uid(uid).gid(uid);
        }
        let name = || self.envoy.0.display().to_string();
        let child = command.spawn().map_err(|error| EnvoyError::Missing(name(), error))?;
        tracing::info!(pid = child.id(), "Envoy started");
        Ok(child)
    }

    /// Where Envoy writes. It opens that again as `/dev/stdout`, so it must belong to the user that it runs as.
    fn output(&self) -> Result<(Stdio, Stdio), EnvoyError> {
        let error = |source| EnvoyError::File {
            what: "cannot write Envoy's log",
            path: self.log.clone().unwrap_or_else(|| PathBuf::from("stderr")),
            source,
        };
        let out: OwnedFd = match (&self.log, self.uid) {
            (Some(path), _) => {
                let options = OpenOptions::new().append(true).create(true).mode(0o600).open(path);
                options.map_err(error)?.into()
            }
            // Whoever started us may have done so as another user.
            (None, None) if OpenOptions::new().append(true).open("/dev/stdout").is_ok() => {
                return Ok((Stdio::inherit(), Stdio::inherit()));
            }
            (None, _) => relay().map_err(error)?,
        };
        if let Some(uid) = self.uid {
            std::os::unix::fs::fchown(&out, Some(uid), Some(uid)).map_err(error)?;
        }
        Ok((out.try_clone().map_err(error)?.into(), out.into()))
    }

    /// Lets connections finish, then ends Envoy.
    async fn drain(&self, child: &mut Child) {
        // Clients are told to go elsewhere (connection: close, GOAWAY) while what is under way finishes.
        let failing = admin::request(&self.admin_socket, "POST", "/healthcheck/fail").await;
        let draining =
            admin::request(&self.admin_socket, "POST", "/drain_listeners?graceful&skip_exit").await;
        if failing.is_ok() && draining.is_ok() {
            tracing::info!(seconds = self.drain_time, "Envoy drains");
            tokio::select! {
                () = tokio::time::sleep(Duration::from_secs(self.drain_time)) => {}
                _ = child.wait() => return,
            }
        }
        if let Some(pid) = child.id().and_then(|pid| i32::try_from(pid).ok()) {
            // It may have ended by itself.
            let _ = kill(Pid::from_raw(pid), Signal::SIGTERM);
        }
        if tokio::time::timeout(GRACE, child.wait()).await.is_err() {
            tracing::warn!("Envoy does not end: killed");
            let _ = child.kill().await;
        }
    }

    /// Ends an Envoy that an agent which was killed left behind; it has protected the workload until now.
    async fn end_left_over(&self) -> Result<(), EnvoyError> {
        for pid in left_overs(&self.bootstrap) {
            let deadline = Instant::now() + GRACE;
            let mut signal = Signal::SIGTERM;
            while runs(pid, &self.bootstrap) {
                tracing::info!(pid, "ending the Envoy of an earlier agent");
                let _ = kill(Pid::from_raw(pid), signal);
                let waited = Instant::now();
                while runs(pid, &self.bootstrap) && waited.elapsed() < GRACE / 5 {
                    tokio::time::sleep(Duration::from_millis(5)).await;
                }
                signal = Signal::SIGKILL;
                if Instant::now() > deadline {
                    return Err(EnvoyError::Stubborn(pid));
                }
            }
        }
        Ok(())
    }
}

/// Envoys with our bootstrap. Looked for among all processes: a pid in a file may be missing or somebody else's by now.
fn left_overs(bootstrap: &Path) -> Vec<i32> {
    let processes = std::fs::read_dir("/proc").into_iter().flatten().flatten();
    processes
        .filter_map(|entry| entry.file_name().to_str()?.parse().ok())
        .filter(|pid| runs(*pid, bootstrap))
        .collect()
}

/// A pipe whose content goes to our stderr, until the other end is closed.
fn relay() -> std::io::Result<OwnedFd> {
    let (mut reader, writer) = std::io::pipe()?;
    let copy = move || std::io::copy(&mut reader, &mut std::io::stderr());
    std::thread::Builder::new().name("envoy-log".to_owned()).spawn(copy)?;
    Ok(writer.into())
}

/// Whether process `pid` is an Envoy that was started with our bootstrap, here and not in another container.
fn runs(pid: i32, bootstrap: &Path) -> bool {
    let command = std::fs::read(format!("/proc/{pid}/cmdline")).unwrap_or_default();
    let words: Vec<&[u8]> = command.split(|byte| *byte == 0).collect();
    let ours = [b"-c", bootstrap.as_os_str().as_encoded_bytes(), NO_HOT_RESTART.as_bytes()];
    let here = |kind: &str| {
        let of = |pid: &str| std::fs::read_link(format!("/proc/{pid}/ns/{kind}")).ok();
        // What the kernel does not show is not known to be elsewhere.
        of(&pid.to_string()).is_none_or(|theirs| Some(theirs) == of("self"))
    };
    words.windows(ours.len()).any(|found| found == ours) && here("mnt") && here("net")
}

#[cfg(test)]
mod tests;
