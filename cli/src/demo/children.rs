//! The demo's child processes: each in a process group of its own, its output in a file, all of them gone when dropped.

use std::fs::File;
use std::io::{BufRead as _, Write as _};
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStdin, Command, ExitStatus, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use nix::sys::signal::{Signal, killpg};
use nix::unistd::Pid;

/// How long all of them together may take to end when asked to, before they are made to.
const GRACE: Duration = Duration::from_millis(1500);

#[derive(Debug)]
struct Running {
    name: String,
    group: Pid,
    child: Child,
    log: PathBuf,
}

/// Ends what was started, also in the middle of an error, and by way of a guard also if this process is killed.
#[derive(Debug)]
pub(super) struct Children {
    logs: PathBuf,
    running: Vec<Running>,
    guard: Guard,
}

impl Children {
    /// `temporary` is a folder that the guard removes in the end.
    ///
    /// # Errors
    /// If the guard cannot be run.
    pub(super) fn new(logs: &Path, temporary: Option<&Path>) -> Result<Self> {
        Ok(Self { logs: logs.to_owned(), running: Vec::new(), guard: Guard::start(temporary)? })
    }

    /// Starts this program again with `args`; what it prints goes to `NAME.log`.
    ///
    /// # Errors
    /// If it cannot be run.
    pub(super) fn start(&mut self, name: &str, args: impl IntoIterator<Item = String>) -> Result<()> {
        let log = self.logs.join(format!("{name}.log"));
        let file = File::options().create(true).append(true).open(&log)?;
        let mut command = Command::new(std::env::current_exe()?);
        command.args(args).process_group(0);
        command.stdin(Stdio::null()).stdout(file.try_clone()?).stderr(file);
        let child = command.spawn().with_context(|| format!("starting {name}"))?;
        let group = Pid::from_raw(i32::try_from(child.id())?);
        self.running.push(Running { name: name.to_owned(), group, child, log });
        self.guard.watch(group)
    }

    /// A child that has ended although it should not have: its name, how, and its last words.
    pub(super) fn ended(&mut self) -> Option<(String, ExitStatus, String)> {
        self.running.iter_mut().find_map(|running| {
            let status = running.child.try_wait().ok().flatten()?;
            let text = std::fs::read_to_string(&running.log).unwrap_or_default();
            let lines: Vec<&str> = text.lines().collect();
            Some((running.name.clone(), status, lines[lines.len().saturating_sub(8)..].join("\n")))
        })
    }
}

/// The other end of a pipe that closes when this process dies, however it dies.
#[derive(Debug)]
struct Guard {
    child: Child,
    /// `None` once it is dismissed.
    pipe: Option<ChildStdin>,
}

impl Guard {
    fn start(temporary: Option<&Path>) -> Result<Self> {
        let mut command = Command::new(std::env::current_exe()?);
        command.arg("demo-guard").args(temporary).process_group(0);
        command.stdin(Stdio::piped()).stdout(Stdio::null()).stderr(Stdio::null());
        let mut child = command.spawn().context("starting the guard")?;
        let pipe = child.stdin.take();
        Ok(Self { child, pipe })
    }

    fn watch(&mut self, group: Pid) -> Result<()> {
        let pipe = self.pipe.as_mut().context("the guard is dismissed")?;
        writeln!(pipe, "{group}").context("the guard ended")
    }

    /// Nothing is left to be killed.
    fn dismiss(&mut self) {
        if let Some(mut pipe) = self.pipe.take() {
            writeln!(pipe, "{DISMISSED}").ok();
        }
        self.child.wait().ok();
    }
}

/// How long the folder may resist being removed.
const REMOVAL: Duration = Duration::from_secs(5);
/// The last line that a guard which is not needed to kill reads.
const DISMISSED: &str = "dismissed";

/// Arguments of the hidden subcommand `countersign demo-guard`.
#[derive(clap::Args, Clone, Debug)]
pub(crate) struct GuardArgs {
    /// A folder to be removed in the end
    folder: Option<PathBuf>,
}

/// Reads process groups from standard input. When that is closed without a word, the demo was killed: then they are, too.
/// Removes the folder in any case.
pub(crate) fn guard(args: &GuardArgs) {
    let mut groups = Vec::new();
    let mut dismissed = false;
    for line in std::io::stdin().lock().lines().map_while(Result::ok) {
        dismissed = line == DISMISSED;
        groups.extend(line.parse().ok().map(Pid::from_raw));
    }
    for group in groups.into_iter().filter(|_| !dismissed) {
        killpg(group, Signal::SIGKILL).ok();
    }
    // The last of them may still be writing to it.
    let deadline = Instant::now() + REMOVAL;
    while let Some(folder) = args.folder.as_deref().filter(|folder| folder.exists()) {
        if std::fs::remove_dir_all(folder).is_err() && Instant::now() > deadline {
            return;
        }
        std::thread::sleep(Duration::from_millis(5));
    }
}

impl Drop for Children {
    fn drop(&mut self) {
        let signal = |running: &[Running], signal: Signal| {
            for running in running {
                // Already gone is as good.
                killpg(running.group, signal).ok();
            }
        };
        signal(&self.running, Signal::SIGTERM);
        let deadline = Instant::now() + GRACE;
        while Instant::now() < deadline
            && self.running.iter_mut().any(|r| matches!(r.child.try_wait(), Ok(None)))
        {
            std::thread::sleep(Duration::from_millis(10));
        }
        // Also what a child left behind in its group.
        signal(&self.running, Signal::SIGKILL);
        for running in &mut self.running {
            running.child.wait().ok();
        }
        self.guard.dismiss();
    }
}
