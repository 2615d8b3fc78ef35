//! Starting the shop: control plane, applications, and an agent with its Envoy for each workload.

use std::io::Write as _;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use tokio::net::TcpStream;

use super::call::{self, Calls, Outcome};
use super::children::Children;
use super::rows::{ROWS, Row};
use super::shop::{DATABASE, FORWARD, Shop, WORKLOADS, Workload};

/// How long one stage of starting may take.
const PATIENCE: Duration = Duration::from_secs(30);
const SECURE: u16 = 15012;
const PLAINTEXT: u16 = 15010;
const MONITORING: u16 = 15014;

/// Says on standard error what is going on, and when.
#[derive(Debug)]
pub(super) struct Progress(Instant);

impl Progress {
    pub(super) fn new() -> Self {
        Self(Instant::now())
    }

    pub(super) fn say(&self, what: &str) {
        // Progress is for people; a closed standard error is no reason to fail.
        writeln!(std::io::stderr(), "[{:4.1} s] {what}", self.0.elapsed().as_secs_f64()).ok();
    }
}

/// The Envoy to use: `--envoy` or `$ENVOY`, else the one on the PATH, else one that `make demo` has fetched.
///
/// # Errors
/// If there is none, with how to get one.
pub(super) fn find_envoy(given: Option<PathBuf>) -> Result<PathBuf> {
    if let Some(envoy) = given {
        ensure!(envoy.is_file(), "{} is no file", envoy.display());
        return Ok(envoy);
    }
    let on_path = std::env::var_os("PATH");
    let on_path = on_path.iter().flat_map(std::env::split_paths).map(|folder| folder.join("envoy"));
    // Newest first, as far as names tell.
    let mut cached: Vec<PathBuf> = std::fs::read_dir(".cache/envoy")
        .into_iter()
        .flatten()
        .flatten()
        .map(|e| e.path().join("envoy"))
        .collect();
    cached.sort_unstable_by(|a, b| b.cmp(a));
    on_path.chain(cached).find(|path| path.is_file()).context(
        "no Envoy found: `make demo` (or scripts/get-envoy) fetches one; or name yours with --envoy or $ENVOY",
    )
}

/// What `envoy --version` says, shortened to the number.
///
/// # Errors
/// If it does not run.
pub(super) fn envoy_version(envoy: &Path) -> Result<String> {
    let output =
        Command::new(envoy).arg("--version").output().with_context(|| envoy.display().to_string())?;
    let text = String::from_utf8_lossy(&output.stdout);
    // envoy  version: HASH/1.39.3/Clean/RELEASE/BoringSSL
    let numbers = text.split("version:").nth(1).and_then(|text| text.split('/').nth(1));
    numbers.map(str::to_owned).context("envoy --version says no version")
}

/// Starts the control plane and waits until it is ready.
///
/// # Errors
/// If it ends or is not ready in time.
pub(super) async fn control_plane(shop: &Shop, children: &mut Children) -> Result<()> {
    let path = |path: PathBuf| path.display().to_string();
    let args = [
        ("--dir", path(shop.files())),
        ("--state", path(shop.state())),
        ("--mesh-config", path(shop.mesh_config())),
        ("--secure-addr", shop.control(SECURE).to_string()),
        ("--plaintext-addr", shop.control(PLAINTEXT).to_string()),
        ("--monitoring-addr", shop.control(MONITORING).to_string()),
    ];
    let args = args.into_iter().flat_map(|(flag, value)| [flag.to_owned(), value]);
    children.start("control-plane", std::iter::once("standalone".to_owned()).chain(args))?;
    wait(children, "the control plane to be ready", async || {
        ready(shop).await && shop.state().join("root-cert.pem").is_file()
    })
    .await
}

/// Whether the control plane says that it is ready.
async fn ready(shop: &Shop) -> bool {
    call::get(monitoring(shop), "/ready").await.0 == Outcome::Http(200)
}

/// Starts the applications.
///
/// # Errors
/// If one cannot be started.
pub(super) fn applications(shop: &Shop, children: &mut Children) -> Result<()> {
    for workload in &WORKLOADS {
        std::fs::create_dir_all(shop.run(workload))?;
        if let Some(args) = shop.app_args(workload) {
            children.start(workload.name, args)?;
        }
    }
    Ok(())
}

/// Starts an agent with its Envoy for each workload and waits until all listen.
///
/// # Errors
/// If one ends or does not listen in time.
pub(super) async fn agents(shop: &Shop, envoy: &Path, children: &mut Children) -> Result<()> {
    for workload in &WORKLOADS {
        let token = shop.run(workload).join("join-token");
        join_token(shop, workload, &token)?;
        children.start(&format!("{}-agent", workload.name), agent_args(shop, workload, envoy, &token))?;
    }
    for workload in &WORKLOADS {
        let served = workload.serves.iter().map(|(port, _)| *port);
        for port in served.chain([FORWARD]) {
            let address = shop.on(workload.name, port);
            let what = format!("the Envoy of {} to listen on port {port}", workload.name);
            wait(children, &what, async || TcpStream::connect(address).await.is_ok()).await?;
        }
    }
    for (caller, port) in database_callers() {
        let address = shop.on(caller, port);
        wait(children, "the way to the database", async || TcpStream::connect(address).await.is_ok()).await?;
    }
    Ok(())
}

/// Everybody may try; the database's Envoy decides.
fn database_callers() -> impl Iterator<Item = (&'static str, u16)> {
    ["inventory", "orders", "intruder"]
        .into_iter()
        .flat_map(|caller| DATABASE.map(|(_, local)| (caller, local)))
}

fn join_token(shop: &Shop, workload: &Workload, file: &Path) -> Result<()> {
    let name = format!("{}/{}", workload.namespace, workload.name);
    let mut command = Command::new(std::env::current_exe()?);
    command.args(["join-token", "create", "--workload", &name, "--state"]).arg(shop.state());
    let output = command.output().context("join-token create")?;
    ensure!(output.status.success(), "join-token create: {}", String::from_utf8_lossy(&output.stderr));
    let mut options = std::fs::OpenOptions::new();
    std::os::unix::fs::OpenOptionsExt::mode(options.write(true).create_new(true), 0o600);
    options.open(file)?.write_all(&output.stdout)?;
    Ok(())
}

fn agent_args(shop: &Shop, workload: &Workload, envoy: &Path, token: &Path) -> Vec<String> {
    let run = shop.run(workload);
    let path = |path: &Path| path.display().to_string();
    let mut args = vec!["agent".to_owned()];
    let mut add = |flag: &str, value: String| args.extend([flag.to_owned(), value]);
    add("--server", shop.control(SECURE).to_string());
    add("--trust-bundle", path(&shop.state().join("root-cert.pem")));
    add("--join-token-file", path(token));
    add("--workload", format!("{}/{}", workload.namespace, workload.name));
    add("--address", shop.on(workload.name, 0).ip().to_string());
    add("--capture", "none".to_owned());
    add("--sds-socket", path(&run.join("agent/sds.sock")));
    add("--state", path(&run.join("state")));
    add("--envoy", path(envoy));
    add("--envoy-log", path(&shop.access_log(workload.name)));
    for (port, _) in workload.serves {
        add("--app", format!("{port}=unix:{}", shop.socket(workload, *port).display()));
    }
    for (port, local) in DATABASE {
        add("--upstream", format!("database.stock:{port}={}", shop.on(workload.name, local)));
    }
    args
}

/// Makes every call that must succeed until it does: an Envoy that listens may still wait for its neighbours'
/// addresses. What still fails in the end is left for the table to show.
///
/// # Errors
/// If a child ended.
pub(super) async fn warm_up(calls: &Calls, children: &mut Children) -> Result<()> {
    let good = |row: &&Row| matches!(row.expected, Outcome::Http(200) | Outcome::Grpc(0) | Outcome::Answered);
    let deadline = Instant::now() + PATIENCE / 3;
    for row in ROWS.iter().filter(good) {
        while Instant::now() < deadline
            && calls.make(row.caller, row.how, "warm-up").await.outcome != row.expected
        {
            alive(children)?;
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    }
    Ok(())
}

/// Polls until `ask` says yes.
async fn wait(children: &mut Children, what: &str, ask: impl AsyncFn() -> bool) -> Result<()> {
    let started = Instant::now();
    while !ask().await {
        alive(children)?;
        ensure!(started.elapsed() < PATIENCE, "waited {PATIENCE:?} for {what}");
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    Ok(())
}

/// # Errors
/// If a child has ended, with its last words.
pub(super) fn alive(children: &mut Children) -> Result<()> {
    if let Some((name, status, words)) = children.ended() {
        bail!("{name} ended ({status}):\n{words}");
    }
    Ok(())
}

/// Where to look at the control plane.
pub(super) fn monitoring(shop: &Shop) -> SocketAddr {
    shop.control(MONITORING)
}
