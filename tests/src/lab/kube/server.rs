//! The processes etcd and kube-apiserver with their keys and files. Knows nothing of what is stored.

use std::io::Write as _;
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::atomic::{AtomicU16, Ordering};
use std::sync::{Mutex, MutexGuard, OnceLock, PoisonError, mpsc};
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use base64::Engine as _;
use nix::sys::signal::Signal;
use rcgen::{BasicConstraints, CertificateParams, IsCa, Issuer, KeyPair, KeyUsagePurpose, SanType};
use sha2::{Digest as _, Sha256};

use crate::lab::Process;
use crate::lab::programs::root;

/// How long a start may take on a machine with a lot else to do.
pub(super) const PATIENCE: Duration = Duration::from_secs(60);
/// What would send local connections somewhere else.
pub(super) const PROXIES: [&str; 6] =
    ["HTTP_PROXY", "HTTPS_PROXY", "ALL_PROXY", "http_proxy", "https_proxy", "all_proxy"];
/// The API server's first port; etcd has the next two.
const PORT: u16 = 6443;

/// The folder with etcd, kube-apiserver and kubectl: `$KUBEBUILDER_ASSETS`, else what `scripts/get-kube` built.
///
/// # Errors
/// Says how to get them.
pub fn assets() -> Result<PathBuf, String> {
    if let Some(folder) = std::env::var_os("KUBEBUILDER_ASSETS").map(PathBuf::from) {
        let there = folder.join("kube-apiserver").is_file();
        return if there { Ok(folder) } else { Err(format!("no kube-apiserver in {}", folder.display())) };
    }
    let mut pins = Sha256::new();
    for file in ["tests/tools/kube/go.mod", "tests/tools/kube/go.sum", "scripts/get-kube"] {
        pins.update(std::fs::read(root().join(file)).unwrap_or_default());
    }
    let hash: String = pins.finalize().iter().take(8).map(|byte| format!("{byte:02x}")).collect();
    let folder = root().join(".cache/kube").join(hash);
    if folder.join("complete").is_file() {
        return Ok(folder);
    }
    Err(format!("no kube-apiserver in {}: run scripts/get-kube or set KUBEBUILDER_ASSETS", folder.display()))
}

/// A pair of processes and their folder.
#[derive(Debug)]
pub(super) struct Server {
    // In this order: what runs ends before its files go.
    apiserver: Mutex<Option<Process>>,
    _etcd: Process,
    folder: Folder,
    address: SocketAddr,
    etcd: SocketAddr,
    url: String,
    admin: String,
    ca: String,
}

impl Server {
    /// On a loopback address of this process's own, so that no port can be taken.
    pub(super) fn beside() -> Result<Self> {
        static USED: AtomicU16 = AtomicU16::new(0);
        let [_, a, b, c] = std::process::id().to_be_bytes();
        let ip = Ipv4Addr::new(127, 64 + a % 64, b, c);
        let port = PORT + 10 * USED.fetch_add(1, Ordering::Relaxed);
        let folder = tempfile::Builder::new().prefix("countersign-kube-").tempdir()?;
        Self::new(SocketAddr::from((ip, port)), ip.into(), Folder::temporary(folder.keep())?)
    }

    /// On a given address, in a folder that somebody else clears away.
    pub(super) fn at(ip: Ipv4Addr, folder: PathBuf) -> Result<Self> {
        std::fs::create_dir_all(&folder)?;
        Self::new(
            SocketAddr::from((ip, PORT)),
            Ipv4Addr::LOCALHOST.into(),
            Folder { path: folder, janitor: None },
        )
    }

    fn new(address: SocketAddr, etcd: IpAddr, folder: Folder) -> Result<Self> {
        let assets = assets().map_err(anyhow::Error::msg)?;
        let path = &folder.path;
        let ca = certificates(path, address.ip())?;
        let accounts = KeyPair::generate()?;
        private(&path.join("sa.key"), &accounts.serialize_pem())?;
        private(&path.join("sa.pub"), &accounts.public_key_pem())?;
        let admin = KeyPair::generate()?.serialize_der();
        let admin = base64::engine::general_purpose::URL_SAFE_NO_PAD.encode(Sha256::digest(admin));
        private(&path.join("tokens.csv"), &format!("{admin},admin,admin,\"system:masters\"\n"))?;
        let etcd = SocketAddr::new(etcd, address.port() + 1);
        let (clients, peers) =
            (format!("http://{etcd}"), format!("http://{}:{}", etcd.ip(), etcd.port() + 1));
        let mut command = dying(&assets.join("etcd"));
        command.arg("--data-dir").arg(path.join("etcd")).args(["--unsafe-no-fsync", "--log-level=warn"]);
        command.args(["--name=lab", &format!("--initial-cluster=lab={peers}")]);
        command
            .args([format!("--listen-peer-urls={peers}"), format!("--initial-advertise-peer-urls={peers}")]);
        command
            .args([format!("--listen-client-urls={clients}"), format!("--advertise-client-urls={clients}")]);
        let process = spawn("etcd", path, command)?;
        let server = Self {
            apiserver: Mutex::new(None),
            _etcd: process,
            address,
            etcd,
            url: format!("https://{address}"),
            admin,
            ca,
            folder,
        };
        server.start()?;
        Ok(server)
    }

    pub(super) fn start(&self) -> Result<()> {
        let mut running = self.apiserver();
        ensure!(running.is_none(), "the API server runs already");
        let path = &self.folder.path;
        let file = |name: &str| path.join(name).display().to_string();
        let mut command = dying(&assets().map_err(anyhow::Error::msg)?.join("kube-apiserver"));
        command.args([
            format!("--etcd-servers=http://{}", self.etcd),
            format!("--bind-address={}", self.address.ip()),
            format!("--advertise-address={}", self.address.ip()),
            format!("--secure-port={}", self.address.port()),
            format!("--tls-cert-file={}", file("apiserver.pem")),
            format!("--tls-private-key-file={}", file("apiserver.key")),
            format!("--service-account-key-file={}", file("sa.pub")),
            format!("--service-account-signing-key-file={}", file("sa.key")),
            format!("--token-auth-file={}", file("tokens.csv")),
            format!("--service-account-issuer={}", super::tokens::ISSUER),
        ]);
        command.args([
            "--authorization-mode=RBAC",
            "--service-cluster-ip-range=10.96.0.0/16",
            "--disable-admission-plugins=ServiceAccount",
            // Nobody needs endpoints of `kubernetes`, and a loopback address would be refused there.
            "--endpoint-reconciler-type=none",
            "--profiling=false",
        ]);
        *running = Some(spawn("kube-apiserver", path, command)?);
        Ok(())
    }

    pub(super) fn stop(&self) -> Result<()> {
        self.apiserver().take().context("the API server does not run")?.kill()?;
        Ok(())
    }

    pub(super) fn signal(&self, signal: Signal) -> Result<()> {
        self.apiserver().as_ref().context("the API server does not run")?.signal(signal)
    }

    pub(super) fn runs(&self) -> Result<()> {
        let ended = self.apiserver().as_mut().context("the API server does not run")?.ended();
        ensure!(ended.is_none(), "the API server ended: {ended:?}");
        Ok(())
    }

    pub(super) fn pid(&self) -> Option<i32> {
        self.apiserver().as_ref().map(Process::pid)
    }

    pub(super) fn tail(&self, lines: usize) -> String {
        self.apiserver().as_ref().map(|process| process.tail(lines)).unwrap_or_default()
    }

    fn apiserver(&self) -> MutexGuard<'_, Option<Process>> {
        self.apiserver.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(super) fn url(&self) -> &str {
        &self.url
    }

    pub(super) fn address(&self) -> SocketAddr {
        self.address
    }

    pub(super) fn folder(&self) -> &Path {
        &self.folder.path
    }

    pub(super) fn admin_token(&self) -> &str {
        &self.admin
    }

    pub(super) fn kubeconfig(&self, url: &str, token: &str) -> String {
        let ca = base64::engine::general_purpose::STANDARD.encode(&self.ca);
        format!(
            "apiVersion: v1\nkind: Config\ncurrent-context: lab\ncontexts:\n- name: lab\n  context: {{cluster: lab, user: \
             lab}}\nclusters:\n- name: lab\n  cluster: {{server: \"{url}\", certificate-authority-data: {ca}}}\nusers:\n- \
             name: lab\n  user: {{token: \"{token}\"}}\n"
        )
    }

    /// Through etcd's JSON gateway: its revision is in the header of any answer.
    pub(super) async fn compact(&self) -> Result<()> {
        let now = self.etcd("/v3/kv/range", &serde_json::json!({"key": "AA==", "count_only": true})).await?;
        let revision = now["header"]["revision"].clone();
        ensure!(!revision.is_null(), "etcd names no revision: {now}");
        let answer = self
            .etcd("/v3/kv/compaction", &serde_json::json!({"revision": revision, "physical": true}))
            .await?;
        ensure!(answer["error"].is_null(), "etcd: {answer}");
        Ok(())
    }

    async fn etcd(&self, path: &str, body: &serde_json::Value) -> Result<serde_json::Value> {
        let stream = tokio::net::TcpStream::connect(self.etcd).await?;
        let (mut sender, connection) =
            hyper::client::conn::http1::handshake(hyper_util::rt::TokioIo::new(stream)).await?;
        tokio::spawn(connection);
        let request = http::Request::post(path)
            .header(http::header::HOST, self.etcd.to_string())
            .body(http_body_util::Full::new(bytes::Bytes::from(body.to_string())))?;
        let answer = sender.send_request(request).await?;
        let body = http_body_util::BodyExt::collect(answer.into_body()).await?.to_bytes();
        Ok(serde_json::from_slice(&body)?)
    }
}

/// A serving certificate with its CA, which is returned.
fn certificates(folder: &Path, ip: IpAddr) -> Result<String> {
    let mut params = CertificateParams::new(Vec::new())?;
    params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
    let ca_key = KeyPair::generate()?;
    let ca = params.self_signed(&ca_key)?.pem();
    let issuer = Issuer::new(params, ca_key);
    let mut params =
        CertificateParams::new(vec!["localhost".to_owned(), "kubernetes.default.svc".to_owned()])?;
    params.subject_alt_names.extend([SanType::IpAddress(ip), SanType::IpAddress(Ipv4Addr::LOCALHOST.into())]);
    params.extended_key_usages = vec![rcgen::ExtendedKeyUsagePurpose::ServerAuth];
    let key = KeyPair::generate()?;
    private(&folder.join("apiserver.pem"), &params.signed_by(&key, &issuer)?.pem())?;
    private(&folder.join("apiserver.key"), &key.serialize_pem())?;
    Ok(ca)
}

/// Writes a file only its owner can read.
pub(in crate::lab) fn private(path: &Path, text: &str) -> Result<()> {
    let mut options = std::fs::OpenOptions::new();
    let mut file = options.write(true).create(true).truncate(true).mode(0o600).open(path)?;
    Ok(file.write_all(text.as_bytes())?)
}

/// A program that dies with the thread that starts it.
fn dying(program: &Path) -> Command {
    let mut command = Command::new("setpriv");
    command.args(["--pdeathsig", "KILL"]).arg(program);
    for proxy in PROXIES {
        command.env_remove(proxy);
    }
    command
}

/// Starts a process from a thread that ends only with this process: a parent-death signal is of the thread.
fn spawn(name: &str, logs: &Path, command: Command) -> Result<Process> {
    type Job = Box<dyn FnOnce() + Send>;
    static KEEPER: OnceLock<mpsc::Sender<Job>> = OnceLock::new();
    let keeper = KEEPER.get_or_init(|| {
        let (jobs, todo) = mpsc::channel::<Job>();
        std::thread::spawn(move || todo.iter().for_each(|job| job()));
        jobs
    });
    let (done, result) = mpsc::channel();
    let (name, logs) = (name.to_owned(), logs.to_owned());
    let job = Box::new(move || drop(done.send(Process::start(&name, &logs, command))));
    keeper.send(job).ok().context("the keeper thread ended")?;
    result.recv().context("the keeper thread ended")?
}

/// A folder that goes when this value does, or when this process does.
#[derive(Debug)]
struct Folder {
    path: PathBuf,
    janitor: Option<Child>,
}

impl Folder {
    /// The janitor is not told to go when the process is: it waits for the end of its input.
    fn temporary(path: PathBuf) -> Result<Self> {
        let script = "trap '' INT TERM HUP; read -r _; for _ in 1 2 3 4 5 6 7 8 9; do rm -rf -- \"$1\" && exit; sleep 0.2; done";
        let mut command = Command::new("sh");
        command.args(["-c", script, "janitor"]).arg(&path).current_dir("/");
        command.stdin(Stdio::piped()).stdout(Stdio::null()).stderr(Stdio::null());
        Ok(Self { path, janitor: Some(command.spawn().context("sh")?) })
    }
}

impl Drop for Folder {
    fn drop(&mut self) {
        let Some(mut janitor) = self.janitor.take() else { return };
        drop(janitor.stdin.take());
        janitor.wait().ok();
    }
}
