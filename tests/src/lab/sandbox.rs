//! A test in a sandbox of its own: it runs itself again under `unshare`, with its own network, mounts and processes.
//!
//! Whatever the test starts or mounts ends with it, also when it is killed with SIGKILL: the kernel ends the process
//! namespace with its first process, and that one with its parent. Nothing here knows what is tested.

use std::io::Write;
use std::process::{Command, Output, Stdio};
use std::sync::OnceLock;
use std::time::Duration;

/// Set in the environment of the inner run.
const INSIDE: &str = "LAB_SANDBOX";
/// The inner run ends itself after this long, saying so.
pub(super) const LIMIT: Duration = Duration::from_secs(120);

/// Why a test cannot run here.
type Missing = String;

/// The name of the test that calls it, as the harness knows it. Only directly in a `#[test]` function.
#[macro_export]
macro_rules! here {
    () => {{
        fn here() {}
        let path = std::any::type_name_of_val(&here);
        let path = path.strip_suffix("::here").expect("the name of a nested function ends with its own");
        path.split_once("::").expect("a path begins with its crate").1
    }};
}

/// Calls `inside` in a sandbox: true if this process is the inner run (then `inside` has run), false for the outer
/// one, which has started the inner run and passed its result on.
pub(super) fn enter(test: &str, inside: impl FnOnce()) {
    if std::env::var_os(INSIDE).is_some() {
        prepare();
        inside();
        return;
    }
    let unshare = match ways() {
        Ok(unshare) => unshare,
        Err(missing) => return skip(test, missing),
    };
    let output = again(unshare, test).output().expect("unshare was found before");
    pass_on(test, &output);
}

/// Prints why a test does not run, or fails it where everything is supposed to be there.
pub(super) fn skip(test: &str, missing: &str) {
    let line = format!("skipped {test}: {missing}\n");
    assert!(std::env::var_os("CI").is_none(), "CI is set, so this must run, but: {missing}");
    // Straight to the terminal: the harness shows nothing of a test that passes.
    std::io::stderr().write_all(line.as_bytes()).ok();
}

/// The arguments of `unshare` that work here, tried once per test executable.
fn ways() -> Result<&'static [&'static str], &'static Missing> {
    static WAYS: OnceLock<Result<&'static [&'static str], Missing>> = OnceLock::new();
    const ROOT: &[&str] = &["--net", "--mount", "--pid", "--fork", "--kill-child", "--mount-proc"];
    const USER: &[&str] =
        &["--user", "--map-root-user", "--net", "--mount", "--pid", "--fork", "--kill-child", "--mount-proc"];
    let found = WAYS.get_or_init(|| {
        for tool in ["setpriv", "unshare", "nsenter", "mount", "ip", "nft"] {
            if !run_quietly(
                Command::new("sh").args(["-c", &format!("PATH=$PATH:/usr/sbin:/sbin command -v {tool}")]),
            ) {
                return Err(format!("no `{tool}` (Debian: apt-get install util-linux iproute2 nftables)"));
            }
        }
        let unprivileged = std::env::var_os("LAB_USERNS").is_some_and(|v| v == "1");
        if nix::unistd::geteuid().is_root()
            && !unprivileged
            && run_quietly(Command::new("unshare").args(ROOT).arg("true"))
        {
            return Ok(ROOT);
        }
        if run_quietly(Command::new("unshare").args(USER).arg("true")) {
            return Ok(USER);
        }
        Err("neither root nor allowed to make user namespaces (see sysctl kernel.unprivileged_userns_clone, \
             kernel.apparmor_restrict_unprivileged_userns, user.max_user_namespaces)"
            .to_owned())
    });
    found.as_ref().copied()
}

fn run_quietly(command: &mut Command) -> bool {
    command
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .status()
        .is_ok_and(|s| s.success())
}

/// This test executable again, for this one test, in a sandbox that ends with the calling thread.
fn again(unshare: &[&str], test: &str) -> Command {
    let mut command = Command::new("setpriv");
    command
        .args(["--pdeathsig", "KILL", "unshare"])
        .args(unshare)
        .arg(std::env::current_exe().expect("a running program has a path"))
        .args([test, "--exact", "--include-ignored", "--nocapture"])
        .env(INSIDE, "1")
        .env("RUST_BACKTRACE", std::env::var_os("RUST_BACKTRACE").unwrap_or_else(|| "0".into()))
        .env("PATH", format!("{}:/usr/sbin:/sbin", std::env::var("PATH").unwrap_or_default()))
        .stdin(Stdio::null());
    command
}

#[expect(clippy::print_stdout, reason = "the harness shows it if the test fails")]
fn pass_on(test: &str, output: &Output) {
    let text = String::from_utf8_lossy(&output.stdout);
    print!("{text}{}", String::from_utf8_lossy(&output.stderr));
    if let Some(line) = text.lines().find(|line| line.starts_with("skipped ")) {
        std::io::stderr().write_all(format!("{line}\n").as_bytes()).ok();
    }
    assert!(output.status.success(), "{test} failed in its sandbox ({}): see above", output.status);
    // A name that matches no test would otherwise pass without having run.
    assert!(text.contains("1 passed"), "the sandbox did not run {test}");
}

/// The inside of a fresh sandbox: a private `/run` (network namespaces, sockets, logs) and a loopback that is up.
fn prepare() {
    for line in ["mount -t tmpfs -o mode=755 tmpfs /run", "ip link set lo up"] {
        let mut words = line.split(' ');
        let status = Command::new(words.next().expect("a line has a first word")).args(words).status();
        assert!(status.is_ok_and(|s| s.success()), "{line}");
    }
    std::thread::spawn(|| {
        std::thread::sleep(LIMIT);
        std::io::stderr().write_all(format!("not finished after {LIMIT:?}\n").as_bytes()).ok();
        std::process::exit(1);
    });
}
