//! The demo's child processes: each in a process group of its own, its output in a file, all of them gone when dropped.

use std::fs::File;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
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

/// Ends what was started, also in the middle of an error. If this process is killed with SIGKILL, the kernel asks
/// the children to end (where `setpriv` is there to arrange it).
#[derive(Debug)]
pub(super) struct Children {
    logs: PathBuf,
    ends_with_parent: bool,
    running: Vec<Running>,
}

impl Children {
    pub(super) fn new(logs: &Path) -> Self {
        let found =
            Command::new("setpriv").arg("--version").stdout(Stdio::null()).stderr(Stdio::null()).status();
        Self {
            logs: logs.to_owned(),
            ends_with_parent: found.is_ok_and(|s| s.success()),
            running: Vec::new(),
        }
    }

    /// Starts this program again with `args`; what it prints goes to `NAME.log`.
    ///
    /// # Errors
    /// If it cannot be run.
    pub(super) fn start(&mut self, name: &str, args: impl IntoIterator<Item = String>) -> Result<()> {
        let program = std::env::current_exe()?;
        let mut command = if self.ends_with_parent {
            let mut command = Command::new("setpriv");
            command.args(["--pdeathsig", "TERM"]).arg(program);
            command
        } else {
            Command::new(program)
        };
        let log = self.logs.join(format!("{name}.log"));
        let file = File::options().create(true).append(true).open(&log)?;
        command.args(args).process_group(0);
        command.stdin(Stdio::null()).stdout(file.try_clone()?).stderr(file);
        let child = command.spawn().with_context(|| format!("starting {name}"))?;
        let group = Pid::from_raw(i32::try_from(child.id())?);
        self.running.push(Running { name: name.to_owned(), group, child, log });
        Ok(())
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
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_child_that_ends_is_noticed_with_its_last_words() {
        let folder = tempfile::tempdir().unwrap();
        let mut children = Children::new(folder.path());
        // The test executable itself: an unknown flag makes it say so and end.
        children.start("broken", ["--no-such-flag".to_owned()]).unwrap();
        let deadline = Instant::now() + Duration::from_secs(10);
        let ended = loop {
            match children.ended() {
                Some(ended) => break ended,
                None => assert!(Instant::now() < deadline),
            }
        };
        assert_eq!(ended.0, "broken");
        assert!(!ended.1.success() && ended.2.contains("no-such-flag"), "{ended:?}");
    }
}
