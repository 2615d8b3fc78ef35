use tokio::sync::watch;

use super::*;
use crate::sds::{KeyPair, Secrets, Server};
use crate::testing::{arguments, certificate, envoys};
use crate::{bootstrap, identity};

/// For Envoy to start, on a busy machine.
const LIMIT: Duration = Duration::from_secs(30);

#[test]
fn versions_are_read() {
    let text = "\n/x/envoy  version: 6eb0d2d97489/1.39.3/Clean/RELEASE/BoringSSL\n";
    assert_eq!(version(text), Some((1, 39, 3)));
    assert_eq!(version("h/1.40.0-dev/Modified/DEBUG/BoringSSL"), Some((1, 40, 0)));
    assert_eq!(version("something else"), None);
}

#[test]
fn only_a_process_with_our_bootstrap_is_ours() {
    let me = i32::try_from(std::process::id()).expect("small");
    assert!(!runs(me, Path::new("/nowhere/bootstrap.json")));
    assert!(!runs(i32::MAX, Path::new("/nowhere/bootstrap.json")));
    // An editor that has the file open is no Envoy.
    let dir = tempfile::tempdir().expect("a folder");
    let file = dir.path().join("envoy-bootstrap.json");
    let mut other = std::process::Command::new("sh")
        .args(["-c", "read wait", "-c"])
        .arg(&file)
        .stdin(Stdio::piped())
        .spawn()
        .expect("a shell");
    assert_eq!(left_overs(&file), [] as [i32; 0]);
    drop(other.stdin.take());
    other.wait().expect("it ends");
}

#[tokio::test]
async fn a_missing_envoy_is_explained() {
    let args = arguments(&["--trust-bundle", "b", "--workload", "a/b", "--envoy", "/nowhere/envoy"]);
    let error = Envoy::find(&args).await.expect_err("missing").to_string();
    assert!(
        error.contains("/nowhere/envoy") && error.contains("--envoy") && error.contains("$ENVOY"),
        "{error}"
    );
    let args = arguments(&["--trust-bundle", "b", "--workload", "a/b", "--envoy", "/bin/true"]);
    assert!(matches!(Envoy::find(&args).await, Err(EnvoyError::Unknown(_))));
}

/// A supervised Envoy that gets its certificate from an SDS server of this process; its control plane is away.
struct Scene {
    dir: tempfile::TempDir,
    envoy: PathBuf,
    stop: CancellationToken,
    secrets: watch::Sender<Secrets>,
}

impl Scene {
    fn new(envoy: PathBuf) -> Self {
        let dir = tempfile::tempdir().expect("a folder");
        let (secrets, served) = watch::channel(Secrets::default());
        let (chain, key, root) = certificate();
        std::fs::write(dir.path().join("root.pem"), &root).expect("written");
        secrets.send_modify(|s| s.set_bundle(root));
        secrets.send_modify(|s| s.set_certificate(Some(KeyPair { chain, key })));
        let stop = CancellationToken::new();
        let scene = Self { dir, envoy, stop: stop.clone(), secrets };
        let (_, state, plan, _) = scene.parts();
        let server = Server::bind(&state.sds_socket, plan.allowed_uids(), served).expect("bound");
        tokio::spawn(server.run(stop));
        scene
    }

    fn parts(&self) -> (AgentArgs, State, Plan, Arc<Health>) {
        let path = |name: &str| self.dir.path().join(name).to_str().expect("UTF-8").to_owned();
        let args = arguments(&[
            "--trust-bundle",
            &path("root.pem"),
            "--sds-socket",
            &path("run/sds.sock"),
            "--workload",
            "shop/orders",
            "--capture",
            "none",
            "--address",
            "127.0.0.1",
            "--server",
            "127.0.0.1:1",
            "--envoy",
            self.envoy.to_str().expect("UTF-8"),
            "--envoy-log",
            &path("envoy.log"),
            "--concurrency",
            "1",
            "--drain-time",
            "0",
        ]);
        let plan = Plan::new(&args).expect("a plan");
        let state = State::open(&args, plan.proxy_uid()).expect("folders");
        (args, state, plan, Arc::default())
    }

    /// Starts supervision, as a new agent does that sees `secrets`.
    async fn supervise(
        &self,
        secrets: watch::Receiver<Secrets>,
    ) -> (State, tokio::task::JoinHandle<Result<(), EnvoyError>>) {
        let (args, state, plan, health) = self.parts();
        let trust = identity::Trust::load(&args).expect("a bundle");
        let bootstrap = bootstrap::write(&args, &state, &trust, &plan).expect("a bootstrap");
        let envoy = Envoy::find(&args).await.expect("an Envoy");
        let supervisor = Supervisor::new(&args, envoy, &state, bootstrap, &plan, secrets, health);
        (state, tokio::spawn(supervisor.run(self.stop.clone())))
    }

    /// Waits for an Envoy other than `old` that has our certificate; its pid.
    async fn envoy(&self, state: &State, old: Option<i32>) -> i32 {
        let deadline = Instant::now() + LIMIT;
        loop {
            let certs = admin::request(&state.admin_socket, "GET", "/certs").await;
            let served =
                certs.is_ok_and(|answer| answer.rest.contains("spiffe://cluster.local/ns/shop/sa/orders"));
            match left_overs(&state.bootstrap).as_slice() {
                [pid] if served && Some(*pid) != old => return *pid,
                _ if Instant::now() > deadline => {
                    let log = std::fs::read_to_string(self.dir.path().join("envoy.log")).unwrap_or_default();
                    panic!("no new Envoy with a certificate; the log ends: {log}");
                }
                _ => tokio::time::sleep(Duration::from_millis(10)).await,
            }
        }
    }
}

/// Leaves nothing behind, also when an assertion fails.
impl Drop for Scene {
    fn drop(&mut self) {
        left_overs(&self.dir.path().join("run/envoy-bootstrap.json")).into_iter().for_each(kill_now);
    }
}

fn kill_now(pid: i32) {
    // It may have ended by itself.
    let _ = kill(Pid::from_raw(pid), Signal::SIGKILL);
}

#[tokio::test(flavor = "multi_thread")]
async fn envoy_gets_its_certificate_and_is_replaced_when_killed_or_left_behind() {
    let Some(envoy) = envoys().pop() else {
        return println!("skipped: no Envoy in .cache/envoy (scripts/get-envoy fetches one)");
    };
    let scene = Scene::new(envoy);
    let (state, agent) = scene.supervise(scene.secrets.subscribe()).await;
    let first = scene.envoy(&state, None).await;
    kill_now(first);
    let second = scene.envoy(&state, Some(first)).await;

    // The agent dies without a word: its Envoy goes on, until the next agent replaces it.
    agent.abort();
    assert!(agent.await.expect_err("aborted").is_cancelled());
    assert_eq!(left_overs(&state.bootstrap), [second], "goes on without an agent");
    let (own, seen) = watch::channel(Secrets::default());
    let (state, agent) = scene.supervise(seen).await;
    let early = tokio::time::timeout(LOOK * 2, scene.envoy(&state, Some(second))).await;
    assert!(early.is_err(), "not replaced yet");
    assert_eq!(left_overs(&state.bootstrap), [second], "as long as there is no certificate for another");
    let (chain, key, _) = certificate();
    own.send_modify(|s| s.set_certificate(Some(KeyPair { chain, key })));
    let third = scene.envoy(&state, Some(second)).await;

    // Only the owner may talk to its admin interface.
    use std::os::unix::fs::MetadataExt;
    let mode = |path: &Path| std::fs::metadata(path).expect("there").mode() & 0o777;
    assert_eq!((mode(&state.admin_socket), mode(&state.bootstrap)), (0o600, 0o600));

    scene.stop.cancel();
    agent.await.expect("no panic").expect("a clean end");
    assert!(!runs(third, &state.bootstrap), "ended with the agent");
}
