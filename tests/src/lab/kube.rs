//! A real kube-apiserver with its etcd for one test, or for all tests of a binary.
//!
//! Three ways in; each takes [`here!`](crate::here), skips with a printed reason where the binaries are missing (and
//! fails where `CI` is set), and prints the API server's last lines if the body fails:
//! ```no_run
//! use tests::here;
//! use tests::lab::{self, kube};
//! // 1. One API server for all tests of this binary, each in namespaces of its own (no root, no network namespaces).
//! kube::shared("name_of_the_test", async |kube| {
//!     let ns = kube.fresh_namespace("shop").await?;
//!     kube.apply(&format!("apiVersion: v1\nkind: ConfigMap\nmetadata: {{name: a, namespace: {ns}}}\n")).await
//! });
//! // 2. One of its own: it may be stopped, started, paused, compacted.
//! kube::own("name_of_the_test", async |kube| {
//!     kube.stop()?;
//!     kube.start().await
//! });
//! // 3. Beside pods with Envoys: `lab.kube()` starts one that pods reach, too.
//! lab::run("name_of_the_test", async |lab| {
//!     let kube = lab.kube().await?;
//!     Ok(())
//! });
//! ```
//! What is there: RBAC, a static administrator (`system:masters`), keys for service-account tokens made at run time,
//! all CRDs of [`Kube::install_crds`], the namespace `istio-system`. What is not: controllers (no garbage collection, a
//! deleted namespace stays Terminating, EndpointSlices are made by [`Kube::service`]), kubelets ([`Kube::pod`] says
//! that pods run), the `ServiceAccount` admission plugin.
//!
//! | what | how |
//! |---|---|
//! | talk to it | [`Kube::client`], [`Kube::kubectl`], [`Kube::get`] |
//! | write | [`Kube::apply`] (several documents; a `status` in them is written, too), [`Kube::delete`] |
//! | pods and services | [`Kube::namespace`], [`Kube::pod`], [`Kube::delete_pod`], [`Kube::service`] |
//! | identities | [`Kube::install_rights`], [`Kube::token`], [`Kube::mint_token`] (any lifetime), [`Kube::kubeconfig`], [`Kube::kubeconfig_of`] |
//! | outages | [`Kube::stop`], [`Kube::start`], [`Kube::signal`], [`Kube::compact`], [`Kube::gate`] |
//!
//! Everything dies with the test, also by SIGKILL: the children by a parent-death signal of a thread that lives as long
//! as the process, the files by a shell that waits for the end of a pipe.

mod crds;
mod gate;
mod objects;
mod rbac;
mod server;
mod tokens;

use std::collections::HashMap;
use std::path::PathBuf;
use std::process::Command;
use std::sync::{Arc, Mutex, OnceLock};

use anyhow::{Context, Result, ensure};
use kube::Client;
use kube::config::{Config, KubeConfigOptions, Kubeconfig};
use nix::sys::signal::Signal;

pub use gate::{Gate, Through};
pub use server::assets;
pub(in crate::lab) use server::private;
pub use tokens::Claims;

use server::Server;

/// A running API server, seen from one tokio runtime.
pub struct Kube {
    server: Arc<Server>,
    client: Client,
    kinds: Mutex<HashMap<kube::core::GroupVersionKind, objects::Kind>>,
}

impl std::fmt::Debug for Kube {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Kube").field("server", &self.server).finish_non_exhaustive()
    }
}

/// Runs `body` with the API server that all tests of this binary share.
///
/// # Panics
/// If the body fails.
pub fn shared(test: &str, body: impl AsyncFnOnce(&Kube) -> Result<()>) {
    static SHARED: OnceLock<Result<Arc<Server>, String>> = OnceLock::new();
    if let Err(missing) = assets() {
        return super::sandbox::skip(test, &missing);
    }
    runtime().block_on(async {
        let server = tokio::task::block_in_place(|| {
            SHARED.get_or_init(|| {
                // On a runtime of its own: this one ends with the test.
                let started = std::thread::spawn(|| runtime().block_on(new(Server::beside)));
                match started.join().expect("starting the API server") {
                    Ok(kube) => Ok(kube.server),
                    Err(error) => Err(format!("{error:?}")),
                }
            })
        });
        let server = server.as_ref().unwrap_or_else(|error| panic!("no API server: {error}"));
        let kube = Kube::of(server.clone()).await.expect("a client");
        judge(&kube, body(&kube).await);
    });
}

/// Runs `body` with an API server of its own.
///
/// # Panics
/// If the body fails.
pub fn own(test: &str, body: impl AsyncFnOnce(&Kube) -> Result<()>) {
    if let Err(missing) = assets() {
        return super::sandbox::skip(test, &missing);
    }
    runtime().block_on(async {
        let kube = new(Server::beside).await.expect("an API server");
        judge(&kube, body(&kube).await);
    });
}

/// An API server for a program that is no test; it ends when the value is dropped.
///
/// # Errors
/// If the binaries are missing, or it does not start.
pub async fn up() -> Result<Kube> {
    new(Server::beside).await
}

fn runtime() -> tokio::runtime::Runtime {
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build();
    runtime.expect("a runtime")
}

/// An API server with CRDs and the root namespace.
async fn new(server: impl FnOnce() -> Result<Server>) -> Result<Kube> {
    let kube = Kube::of(Arc::new(server()?)).await?;
    kube.ready().await?;
    kube.install_crds().await?;
    kube.namespace("istio-system").await?;
    Ok(kube)
}

#[expect(clippy::print_stdout, reason = "the harness shows it if the test fails")]
fn judge(kube: &Kube, outcome: Result<()>) {
    if let Err(why) = outcome {
        println!("---- kube-apiserver ----\n{}", kube.tail(20));
        panic!("{why:?}");
    }
}

impl Kube {
    /// Beside the pods of a sandbox, on its bridge.
    pub(super) async fn in_sandbox(ip: std::net::Ipv4Addr, folder: PathBuf) -> Result<Self> {
        new(|| Server::at(ip, folder)).await
    }

    async fn of(server: Arc<Server>) -> Result<Self> {
        let kubeconfig = Kubeconfig::from_yaml(&server.kubeconfig(server.url(), server.admin_token()))?;
        let mut config = Config::from_custom_kubeconfig(kubeconfig, &KubeConfigOptions::default()).await?;
        // It is on this machine, whatever the environment says.
        config.proxy_url = None;
        Ok(Self { client: Client::try_from(config)?, server, kinds: Mutex::default() })
    }

    /// The administrator.
    pub fn client(&self) -> Client {
        self.client.clone()
    }

    /// `https://IP:PORT`.
    pub fn url(&self) -> &str {
        self.server.url()
    }

    /// Where it listens.
    pub fn address(&self) -> std::net::SocketAddr {
        self.server.address()
    }

    /// Where kubeconfigs, keys and logs lie.
    pub fn folder(&self) -> &std::path::Path {
        self.server.folder()
    }

    /// A kubeconfig file (mode 0600) of the administrator.
    ///
    /// # Errors
    /// If it cannot be written.
    pub fn admin_kubeconfig(&self) -> Result<PathBuf> {
        self.kubeconfig("admin", self.server.admin_token())
    }

    /// A kubeconfig file (mode 0600) that shows `token`; the same name is the same file.
    ///
    /// # Errors
    /// If it cannot be written.
    pub fn kubeconfig(&self, name: &str, token: &str) -> Result<PathBuf> {
        self.kubeconfig_at(name, self.url(), token)
    }

    /// As [`Kube::kubeconfig`], for another address of the same API server ([`Gate::url`]).
    ///
    /// # Errors
    /// If it cannot be written.
    pub fn kubeconfig_at(&self, name: &str, url: &str, token: &str) -> Result<PathBuf> {
        let path = self.folder().join(format!("{name}.kubeconfig"));
        private(&path, &self.server.kubeconfig(url, token))?;
        Ok(path)
    }

    /// The administrator's bearer token, for a client of another kind.
    pub fn admin_token(&self) -> &str {
        self.server.admin_token()
    }

    /// `kubectl` as the administrator: what it printed.
    ///
    /// # Errors
    /// If it fails, with what it said.
    pub fn kubectl<S: AsRef<std::ffi::OsStr>>(&self, args: impl IntoIterator<Item = S>) -> Result<String> {
        let mut command = Command::new(assets().map_err(anyhow::Error::msg)?.join("kubectl"));
        command.arg("--kubeconfig").arg(self.admin_kubeconfig()?);
        command.arg("--cache-dir").arg(self.folder().join("kubectl")).env("HOME", self.folder());
        for proxy in server::PROXIES {
            command.env_remove(proxy);
        }
        let output = command.args(args).output().context("kubectl")?;
        let said = String::from_utf8_lossy(&output.stderr);
        ensure!(output.status.success(), "kubectl: {}: {said}", output.status);
        Ok(String::from_utf8(output.stdout)?)
    }

    /// SIGKILL to the API server (etcd goes on). Only one of one's own.
    ///
    /// # Errors
    /// If it is stopped already.
    pub fn stop(&self) -> Result<()> {
        self.server.stop()
    }

    /// Starts it again, and waits until it is ready.
    ///
    /// # Errors
    /// If it is not in time.
    pub async fn start(&self) -> Result<()> {
        self.server.start()?;
        self.ready().await
    }

    /// A signal to the API server: SIGSTOP makes it silent, SIGCONT lets it go on.
    ///
    /// # Errors
    /// If it does not run.
    pub fn signal(&self, signal: Signal) -> Result<()> {
        self.server.signal(signal)
    }

    /// Waits until `/readyz` says so.
    ///
    /// # Errors
    /// If it ends, or is not ready in time.
    pub async fn ready(&self) -> Result<()> {
        super::within(server::PATIENCE, "the API server is ready", async || {
            self.server.runs()?;
            let request = http::Request::get("/readyz").body(Vec::new())?;
            Ok(self.client.request_text(request).await.is_ok().then_some(()))
        })
        .await
        .with_context(|| self.tail(20))
    }

    /// Makes etcd forget all history before now: whoever asks for an older resource version is told 410 Gone once the
    /// API server's own cache does not hold it (after a restart it holds none).
    ///
    /// # Errors
    /// If etcd refuses.
    pub async fn compact(&self) -> Result<()> {
        self.server.compact().await
    }

    /// An address in front of the API server that can be cut off, for a client that must lose it while the test does not.
    ///
    /// # Errors
    /// If no port can be had.
    pub async fn gate(&self) -> Result<Gate> {
        Gate::open(self.address()).await
    }

    /// Peak resident memory and such are read by pid.
    pub fn pid(&self) -> Option<i32> {
        self.server.pid()
    }

    /// The API server's last lines.
    pub fn tail(&self, lines: usize) -> String {
        self.server.tail(lines)
    }
}
