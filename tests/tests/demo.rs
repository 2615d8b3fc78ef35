//! `countersign demo` as a newcomer runs it: without root, from one command, leaving nothing behind.

use std::io::Read;
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use serde_json::Value;
use tests::here;
use tests::lab::process::command_line;
use tests::lab::{self, programs};

const PATIENCE: Duration = Duration::from_secs(60);

/// The demo with its temporary folder in `tmp`, so that whatever it starts or writes can be found.
fn demo(envoy: &Path, tmp: &Path, args: &[&str]) -> Command {
    let mut command = Command::new(programs::countersign());
    command.arg("demo").args(args).env("ENVOY", envoy).env("TMPDIR", tmp).env("NO_COLOR", "1");
    command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
    command
}

/// The processes of this machine that were started with something in `folder`.
fn processes_of(folder: &Path) -> Vec<String> {
    let folder = folder.to_str().expect("a temporary folder has a plain name");
    let pids = std::fs::read_dir("/proc").expect("/proc").flatten();
    let pids = pids.filter_map(|entry| entry.file_name().to_str().and_then(|name| name.parse().ok()));
    pids.map(command_line).filter(|line| line.contains(folder)).collect()
}

#[track_caller]
fn nothing_left(tmp: &Path) {
    let deadline = Instant::now() + PATIENCE;
    let files =
        || std::fs::read_dir(tmp).expect("a folder").flatten().map(|e| e.file_name()).collect::<Vec<_>>();
    while !(processes_of(tmp).is_empty() && files().is_empty()) && Instant::now() < deadline {
        std::thread::sleep(Duration::from_millis(10));
    }
    assert_eq!((processes_of(tmp), files()), (Vec::new(), Vec::new()));
}

#[track_caller]
fn wait_until(what: &str, child: &mut Child, mut ask: impl FnMut() -> bool) {
    let deadline = Instant::now() + PATIENCE;
    while !ask() {
        assert!(child.try_wait().expect("a child").is_none(), "the demo ended before {what}");
        assert!(Instant::now() < deadline, "not seen: {what}");
        std::thread::sleep(Duration::from_millis(20));
    }
}

/// Every row is as expected, and says who decided.
#[test]
fn every_row_passes() {
    let Some(envoy) = lab::envoy_or_skip(here!()) else { return };
    let tmp = tempfile::tempdir().expect("a folder");
    let output = demo(&envoy, tmp.path(), &["-o", "json"]).output().expect("the demo runs");
    let progress = String::from_utf8_lossy(&output.stderr);
    let report: Value = serde_json::from_slice(&output.stdout).unwrap_or_else(|e| panic!("{e}\n{progress}"));
    let rows = report["rows"].as_array().expect("rows");
    let failed: Vec<&Value> = rows.iter().filter(|row| row["passed"] != true).collect();
    assert!(failed.is_empty(), "{failed:#?}\n{progress}");
    assert!(output.status.success(), "{}\n{progress}", output.status);
    assert!(rows.len() > 18, "{} rows", rows.len());
    for row in rows {
        let decided = row["decided_by"].as_str().expect("text");
        assert!(!decided.is_empty() && !decided.contains("not in the access log"), "{row}");
    }
    assert_eq!((report["failed"].as_u64(), report["passed"].as_u64()), (Some(0), Some(rows.len() as u64)));
    let denied = report["live"]["denied_after_ms"].as_f64().expect("a time");
    assert!(denied > 0.0 && denied < 2000.0, "{denied} ms");
    nothing_left(tmp.path());
}

/// Ctrl-C at any time ends everything that was started, and the temporary folder goes with it; so does SIGKILL.
#[test]
fn an_interrupted_or_killed_demo_leaves_nothing() {
    let Some(envoy) = lab::envoy_or_skip(here!()) else { return };
    for (signal, seen_first) in [
        (Signal::SIGINT, "standalone"),
        (Signal::SIGTERM, "envoy-bootstrap"),
        (Signal::SIGKILL, "envoy-bootstrap"),
    ] {
        let tmp = tempfile::tempdir().expect("a folder");
        let mut child = demo(&envoy, tmp.path(), &["--watch"]).spawn().expect("the demo runs");
        wait_until(seen_first, &mut child, || {
            processes_of(tmp.path()).iter().any(|line| line.contains(seen_first))
        });
        kill(Pid::from_raw(i32::try_from(child.id()).expect("a pid")), signal).expect("it runs");
        assert!(!child.wait().expect("a child").success());
        nothing_left(tmp.path());
    }
}

/// `--watch` prints what an edit changes.
#[test]
fn watch_prints_the_rows_that_an_edit_changes() {
    let Some(envoy) = lab::envoy_or_skip(here!()) else { return };
    let tmp = tempfile::tempdir().expect("a folder");
    let folder = tmp.path().join("shop-of-mine");
    let mut child = demo(&envoy, tmp.path(), &["--watch", "--dir", folder.to_str().expect("plain")])
        .spawn()
        .expect("the demo");
    let mut out = child.stdout.take().expect("piped");
    let (sender, said) = std::sync::mpsc::channel();
    std::thread::spawn(move || {
        let mut piece = [0; 4096];
        while let Ok(n @ 1..) = out.read(&mut piece) {
            if sender.send(String::from_utf8_lossy(&piece[..n]).into_owned()).is_err() {
                return;
            }
        }
    });
    let mut text = String::new();
    let mut read = |needle: &str, child: &mut Child| {
        wait_until(needle, child, || {
            text.extend(said.try_iter());
            // What is looked for next must come after it.
            text.find(needle).is_some_and(|at| text.drain(..at + needle.len()).next().is_some())
        });
    };
    read("open until Ctrl-C", &mut child);
    let policy = folder.join("shop/policies/orders-policy.yaml");
    let old = std::fs::read_to_string(&policy).expect("the policy");
    std::fs::write(&policy, old.replace("\"POST\"", "\"POST\", \"DELETE\"")).expect("the edit");
    read("saved, and changed", &mut child);
    read("orders DELETE /orders/42", &mut child);
    std::fs::write(&policy, old.replace("methods", "metods")).expect("a slip");
    read("metods", &mut child);
    read("last good version", &mut child);
    std::fs::write(&policy, &old).expect("the edit");
    read("saved, and changed", &mut child);
    read("orders DELETE /orders/42", &mut child);
    kill(Pid::from_raw(i32::try_from(child.id()).expect("a pid")), Signal::SIGTERM).expect("it runs");
    child.wait().expect("a child");
    assert!(policy.is_file(), "a folder that was asked for is kept");
}
