//! Pods: a namespace, the application, and an agent with its Envoy in front of it.

use std::fmt::Write as _;
use std::io::Write as _;
use std::net::SocketAddr;
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result, ensure};

use super::net::{Family, Namespace};
use super::process::{Process, command_line};
use super::{ControlPlane, programs};

/// What the application speaks on a port, and what a Service calls it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Protocol {
    Http,
    Grpc,
    Tcp,
    /// A Service port whose name says nothing.
    Unnamed,
    /// In no Service at all.
    Undeclared,
}

/// How traffic gets to the Envoy.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
pub enum Capture {
    #[default]
    Nft,
    /// As in a Kubernetes pod: rules made beforehand, and an agent as user 1337 without any capability.
    External,
    None,
}

impl Capture {
    fn name(self) -> &'static str {
        match self {
            Self::Nft => "nft",
            Self::External => "external",
            Self::None => "none",
        }
    }
}

/// A pod to be. The Service has the pod's name and selects its label `app`.
#[derive(Clone, Debug)]
pub struct PodSpec {
    pub namespace: String,
    pub name: String,
    pub service_account: String,
    pub labels: Vec<(String, String)>,
    pub ports: Vec<(u16, Protocol)>,
    pub capture: Capture,
    /// More arguments for `countersign agent`.
    pub agent_args: Vec<String>,
}

impl PodSpec {
    /// A pod with an account of its own name, labelled `app: NAME`, without ports.
    pub fn new(namespace: &str, name: &str) -> Self {
        Self {
            namespace: namespace.to_owned(),
            name: name.to_owned(),
            service_account: name.to_owned(),
            labels: vec![("app".to_owned(), name.to_owned())],
            ports: Vec::new(),
            capture: Capture::Nft,
            agent_args: Vec::new(),
        }
    }

    #[must_use]
    pub fn account(mut self, name: &str) -> Self {
        name.clone_into(&mut self.service_account);
        self
    }

    #[must_use]
    pub fn port(mut self, port: u16, protocol: Protocol) -> Self {
        self.ports.push((port, protocol));
        self
    }

    /// Without interception: an address 127.x of its own in a namespace shared with all such pods.
    #[must_use]
    pub fn without_capture(mut self) -> Self {
        self.capture = Capture::None;
        self
    }

    /// As in a Kubernetes pod: see [`Capture::External`].
    #[must_use]
    pub fn like_a_pod(mut self) -> Self {
        self.capture = Capture::External;
        self
    }

    #[must_use]
    pub fn agent_arg(mut self, arg: &str) -> Self {
        self.agent_args.push(arg.to_owned());
        self
    }

    /// The Pod and its Service as the cluster would hold them.
    pub(super) fn objects(&self, at: &Namespace, cluster_ip: std::net::Ipv4Addr) -> Result<String> {
        let Self { namespace, name, service_account, labels, ports, capture, agent_args: _ } = self;
        let mut text = String::new();
        let labels: String = labels.iter().map(|(k, v)| format!("    {k}: {v}\n")).collect();
        write!(
            text,
            "apiVersion: v1\nkind: Pod\nmetadata:\n  name: {name}\n  namespace: {namespace}\n  labels:\n{labels}    \
             security.istio.io/tlsMode: istio\nspec:\n  serviceAccountName: {service_account}\n  containers:\n  - name: app\n    \
             image: app\n",
        )?;
        if !ports.is_empty() {
            text.push_str("    ports:\n");
        }
        for (port, _) in ports {
            writeln!(text, "    - containerPort: {port}")?;
        }
        let (v4, v6) = (at.v4, at.v6);
        write!(text, "status:\n  phase: Running\n  podIP: {v4}\n  podIPs:\n  - ip: {v4}\n")?;
        if *capture != Capture::None {
            writeln!(text, "  - ip: \"{v6}\"")?;
        }
        text.push_str("  conditions:\n  - type: Ready\n    status: \"True\"\n");
        let declared: Vec<_> =
            ports.iter().filter(|(_, protocol)| *protocol != Protocol::Undeclared).collect();
        if declared.is_empty() {
            return Ok(text);
        }
        write!(
            text,
            "---\napiVersion: v1\nkind: Service\nmetadata:\n  name: {name}\n  namespace: {namespace}\nspec:\n  \
             clusterIP: {cluster_ip}\n  selector:\n    app: {name}\n  ports:\n",
        )?;
        for (port, protocol) in declared {
            let kind = match protocol {
                Protocol::Http => "http",
                Protocol::Grpc => "grpc",
                Protocol::Tcp => "tcp",
                Protocol::Unnamed | Protocol::Undeclared => "port",
            };
            writeln!(
                text,
                "  - name: {kind}-{port}\n    port: {port}\n    targetPort: {port}\n    protocol: TCP"
            )?;
        }
        Ok(text)
    }
}

/// A running pod.
#[derive(Debug)]
pub struct Pod {
    pub spec: PodSpec,
    pub at: Namespace,
    pub cluster_ip: std::net::Ipv4Addr,
    /// Sockets and state of the agent; logs are beside it.
    pub folder: PathBuf,
    pub app: Process,
    pub agent: Option<Process>,
}

impl Pod {
    pub fn address(&self, family: Family, port: u16) -> SocketAddr {
        SocketAddr::new(self.at.address(family), port)
    }

    /// IPv4.
    pub fn on(&self, port: u16) -> SocketAddr {
        self.address(Family::V4, port)
    }

    /// The pod's own identity.
    pub fn spiffe_id(&self) -> String {
        format!("spiffe://cluster.local/ns/{}/sa/{}", self.spec.namespace, self.spec.service_account)
    }

    /// The application: every port from the start, TCP where it is called so, else whatever comes.
    pub(super) fn start_app(spec: &PodSpec, at: &Namespace, folder: &Path, logs: &Path) -> Result<Process> {
        let mut command = at.command(programs::countersign());
        command.args(["demo-app", "--name", &spec.name]);
        for (port, protocol) in &spec.ports {
            let address = match spec.capture {
                Capture::Nft | Capture::External => format!("[::]:{port}"),
                Capture::None => format!("unix:{}", Self::socket(folder, *port).display()),
            };
            let speaks = match protocol {
                Protocol::Http | Protocol::Grpc => "http",
                Protocol::Tcp => "tcp",
                Protocol::Unnamed | Protocol::Undeclared => "auto",
            };
            command.args(["--listen", &format!("{speaks}={address}")]);
        }
        Process::start(&format!("{}-app", spec.name), logs, command)
    }

    /// Where the application serves a port without capture, so that nothing goes round Envoy.
    fn socket(folder: &Path, port: u16) -> PathBuf {
        folder.join("app").join(port.to_string())
    }

    /// It has a join token for its first start and its own key afterwards.
    pub(super) fn start_agent(&mut self, control: &ControlPlane, envoy: &Path, logs: &Path) -> Result<()> {
        self.agent = None;
        let mut command = match self.spec.capture {
            Capture::External => self.captured()?,
            Capture::Nft | Capture::None => self.at.command(programs::countersign()),
        };
        let workload = format!("{}/{}", self.spec.namespace, self.spec.name);
        command
            .args(["agent", "--server", &control.secure_address()])
            .arg("--trust-bundle")
            .arg(self.roots(control)?)
            .arg("--join-token-file")
            .arg(self.folder.join("join-token"))
            .args(["--workload", &workload])
            .args(["--capture", self.spec.capture.name()])
            .arg("--sds-socket")
            .arg(self.folder.join("sds/sds.sock"))
            .arg("--state")
            .arg(self.folder.join("state"))
            .arg("--envoy")
            .arg(envoy)
            .args(&self.spec.agent_args);
        if self.spec.capture == Capture::None {
            command.arg("--address").arg(self.at.v4.to_string());
            for (port, _) in &self.spec.ports {
                command
                    .arg("--app")
                    .arg(format!("{port}=unix:{}", Self::socket(&self.folder, *port).display()));
            }
        }
        self.agent = Some(Process::start(&format!("{}-agent", self.spec.name), logs, command)?);
        Ok(())
    }

    /// The root certificate, where the agent can read it.
    fn roots(&self, control: &ControlPlane) -> Result<PathBuf> {
        let path = control.state.join("root-cert.pem");
        if self.spec.capture != Capture::External {
            return Ok(path);
        }
        let own = self.folder.join("root-cert.pem");
        std::fs::copy(path, &own)?;
        Ok(own)
    }

    /// Captures as an init container does, and returns what the agent is started with: user 1337, no capability, and none
    /// to be had. What is the pod's is that user's.
    fn captured(&self) -> Result<Command> {
        let mut capture = self.at.command(programs::countersign());
        let output = capture.arg("capture").output().context("countersign capture")?;
        ensure!(output.status.success(), "countersign capture: {}", String::from_utf8_lossy(&output.stderr));
        for path in [self.folder.clone(), self.folder.join("join-token")] {
            std::os::unix::fs::chown(&path, Some(1337), Some(1337))
                .with_context(|| path.display().to_string())?;
        }
        let mut command = self.at.command("setpriv");
        command.args(["--reuid=1337", "--regid=1337", "--clear-groups", "--no-new-privs"]);
        command.args(["--inh-caps=-all", "--bounding-set=-all", "--"]).arg(programs::countersign());
        Ok(command)
    }

    /// The agent.
    ///
    /// # Panics
    /// If it was not started.
    pub fn agent(&self) -> &Process {
        self.agent.as_ref().expect("the agent was started")
    }

    /// The pid of its Envoy, if the agent has one now.
    pub fn envoy_pid(&self) -> Option<i32> {
        self.agent.as_ref()?.children().into_iter().find(|pid| command_line(*pid).contains("envoy"))
    }

    /// A join token for this pod, as an administrator would hand it out.
    pub(super) fn join_token(spec: &PodSpec, state: &Path, folder: &Path) -> Result<()> {
        let output = Command::new(programs::countersign())
            .args([
                "join-token",
                "create",
                "--workload",
                &format!("{}/{}", spec.namespace, spec.name),
                "--state",
            ])
            .arg(state)
            .output()
            .context("countersign join-token")?;
        ensure!(output.status.success(), "join-token create: {}", String::from_utf8_lossy(&output.stderr));
        let mut options = std::fs::OpenOptions::new();
        let mut file = options.write(true).create_new(true).mode(0o600).open(folder.join("join-token"))?;
        Ok(file.write_all(&output.stdout)?)
    }
}
