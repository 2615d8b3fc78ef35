//! A mesh in Kubernetes: the API server, controllers (each in a network namespace of its own, with a way to the API
//! server that can be cut), and pods whose Envoys they serve.
//!
//! ```no_run
//! use tests::lab::{self, ALLOWED, PodSpec, Protocol, cluster::Cluster};
//! # fn main() {
//! lab::run("module::name_of_the_test", async |lab| {
//!     let mut mesh = Cluster::new(lab).await?;
//!     mesh.kube.apply("...").await?;
//!     mesh.controller("one").await?;
//!     let orders = mesh.pod(PodSpec::new("default", "orders").port(8080, Protocol::Http), &["one"]).await?;
//!     let payment = mesh.identity("default", "payment")?;
//!     assert_eq!(mesh.caller(payment).get(mesh.on(orders, 8080), "/").await.got, ALLOWED);
//!     Ok(())
//! });
//! # }
//! ```

mod agent;
mod controller;

use std::net::{Ipv4Addr, SocketAddr};
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, ensure};
use base64::Engine as _;
use serde_json::{Value, json};

use super::client::{Answer, Caller, Got};
use super::kube::{Gate, Kube, Through};
use super::net::{BRIDGE, Namespace};
use super::pki::{Authority, Credential, Leaf};
use super::pod::{Pod, PodSpec, Protocol};
use super::process::Process;
use super::sidecar::{Secrets, Sidecar};
use super::{FOLDER, Lab, programs, until};

pub use agent::AgentPod;
pub use controller::Controller;

/// The control plane's namespace.
const ROOT: &str = "istio-system";
pub const PLAINTEXT: u16 = 15010;
pub const SECURE: u16 = 15012;
pub const MONITORING: u16 = 15014;

/// Everything one test with Kubernetes has.
#[derive(Debug)]
pub struct Cluster<'lab> {
    pub kube: Kube,
    pub lab: &'lab mut Lab,
    /// Signs the certificates of bare Envoys and callers.
    pub authority: Authority,
    controllers: Vec<Controller>,
    ca: Option<(Namespace, Process)>,
    pods: Vec<BarePod>,
}

/// Which pod.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct BareId(usize);

/// A pod with a bare Envoy: see [`super::sidecar`].
#[derive(Debug)]
pub struct BarePod {
    pub spec: PodSpec,
    pub at: Namespace,
    pub uid: String,
    pub envoy: Process,
    folder: PathBuf,
    claims: Value,
    xds: Vec<SocketAddr>,
    _app: Process,
}

impl<'lab> Cluster<'lab> {
    /// The API server, CRDs, the rights of the control plane's accounts, and nothing else yet.
    ///
    /// # Errors
    /// If it does not start.
    pub async fn new(lab: &'lab mut Lab) -> Result<Self> {
        lab.kube().await?;
        let kube = lab.kube.take().context("it was just started")?;
        kube.install_rights().await?;
        Ok(Self {
            kube,
            lab,
            authority: Authority::new()?,
            controllers: Vec::new(),
            ca: None,
            pods: Vec::new(),
        })
    }

    /// A controller, in a namespace called so, ready.
    ///
    /// # Errors
    /// If it does not get ready.
    pub async fn controller(&mut self, name: &str) -> Result<()> {
        self.controller_with(name, &["--webhook-addr", "off", "--ca-addr", "off", "--secure-addr", "off"])
            .await
    }

    /// The certificate authority, in a namespace of its own, ready.
    ///
    /// # Errors
    /// If it does not get ready.
    pub async fn ca(&mut self) -> Result<()> {
        let at = self.lab.network.namespace("ca")?;
        let token = self.kube.token(ROOT, "countersign-ca", "", None, 7200).await?;
        let kubeconfig = self.kube.kubeconfig("ca", &token)?;
        let mut command = at.command(programs::countersign());
        command.arg("ca").arg("--kubeconfig").arg(kubeconfig);
        command.args(["--addr", &format!("0.0.0.0:{SECURE}")]);
        command.args(["--monitoring-addr", &format!("0.0.0.0:{MONITORING}")]);
        let (_, process) = self.ca.insert((at.clone(), Process::start("ca", &self.lab.logs, command)?));
        until("the certificate authority is ready", async || {
            let ended = process.ended();
            ensure!(ended.is_none(), "the certificate authority ended: {ended:?}\n{}", process.tail(30));
            Ok((monitoring(&at, "/ready").await.got == Got::Status(200)).then_some(()))
        })
        .await?;
        // From now on the lab mints what this authority could have signed.
        let secret =
            self.kube.get("v1", "Secret", ROOT, "countersign-ca").await?.context("no Secret of the CA")?;
        let pem = |key: &str| -> Result<String> {
            let text =
                secret["data"][key].as_str().with_context(|| format!("no {key} in the CA's Secret"))?;
            Ok(String::from_utf8(base64::engine::general_purpose::STANDARD.decode(text)?)?)
        };
        self.authority = Authority::from_pem(pem("ca-cert.pem")?, &pem("ca-key.pem")?)?;
        Ok(())
    }

    /// A controller with a secure port, certified by [`Cluster::ca`], ready: one of several replicas.
    ///
    /// # Errors
    /// If it does not get ready.
    pub async fn replica(&mut self, name: &str) -> Result<()> {
        let (ca, _) = self.ca.as_ref().context("the certificate authority comes first")?;
        let (ca, secure) = (format!("{}:{SECURE}", ca.v4), format!("0.0.0.0:{SECURE}"));
        let arguments = ["--webhook-addr", "off", "--ca-addr", &ca, "--secure-addr", &secure];
        self.prepare_controller(name, &arguments).await?;
        let controller = self.at(name);
        controller
            .arguments
            .extend(["--advertise-addr".to_owned(), format!("{}:{SECURE}", controller.at.v4)]);
        controller.start()?;
        controller.ready().await
    }

    /// A controller with more arguments, ready.
    ///
    /// # Errors
    /// If it does not get ready.
    pub async fn controller_with(&mut self, name: &str, arguments: &[&str]) -> Result<()> {
        self.prepare_controller(name, arguments).await?;
        let controller = self.controllers.last_mut().context("it was just made")?;
        controller.start()?;
        controller.ready().await
    }

    /// A controller that has not been started.
    ///
    /// # Errors
    /// If no namespace or port can be had.
    pub async fn prepare_controller(&mut self, name: &str, arguments: &[&str]) -> Result<()> {
        let at = self.lab.network.namespace(&format!("ctl-{name}"))?;
        let gate = Gate::open_at(BRIDGE.into(), self.kube.address()).await?;
        let token = self.kube.token(ROOT, "countersign", "", None, 7200).await?;
        let kubeconfig = self.kube.kubeconfig_at(name, &gate.url(), &token)?;
        self.controllers.push(Controller {
            name: name.to_owned(),
            at,
            gate,
            process: None,
            kubeconfig,
            arguments: arguments.iter().map(|argument| (*argument).to_owned()).collect(),
            logs: self.lab.logs.clone(),
        });
        Ok(())
    }

    /// The controller called so.
    ///
    /// # Panics
    /// If there is none.
    pub fn at(&mut self, name: &str) -> &mut Controller {
        let found = self.controllers.iter_mut().find(|controller| controller.name == name);
        found.expect("a test names a controller it made")
    }

    /// A running pod whose Envoy is served by any of these controllers.
    ///
    /// # Errors
    /// If anything of it does not start in time.
    pub async fn pod(&mut self, spec: PodSpec, controllers: &[&str]) -> Result<BareId> {
        self.pod_claiming(spec, controllers, Value::Null).await
    }

    /// As [`Cluster::pod`], with more in its node metadata.
    ///
    /// # Errors
    /// If anything of it does not start in time.
    pub async fn pod_claiming(
        &mut self,
        spec: PodSpec,
        controllers: &[&str],
        claims: Value,
    ) -> Result<BareId> {
        let id = self.start_pod(spec, controllers, claims).await?;
        self.listening(id).await?;
        Ok(id)
    }

    /// Several pods at once, which is faster.
    ///
    /// # Errors
    /// If anything of them does not start in time.
    pub async fn pods(
        &mut self,
        specs: impl IntoIterator<Item = PodSpec>,
        controllers: &[&str],
    ) -> Result<Vec<BareId>> {
        let mut ids = Vec::new();
        for spec in specs {
            ids.push(self.start_pod(spec, controllers, Value::Null).await?);
        }
        for id in &ids {
            self.listening(*id).await?;
        }
        Ok(ids)
    }

    /// A pod that is not waited for.
    ///
    /// # Errors
    /// If anything of it cannot be started.
    pub async fn start_pod(&mut self, spec: PodSpec, controllers: &[&str], claims: Value) -> Result<BareId> {
        let at = self.lab.network.namespace(&spec.name)?;
        let folder = Path::new(FOLDER).join(&spec.name);
        std::fs::create_dir_all(&folder)?;
        let uid = objects(&self.kube, &spec, at.v4).await?;
        let app = Pod::start_app(&spec, &at, &folder, &self.lab.logs)?;
        let xds: Vec<_> = controllers.iter().map(|name| (self.at(name).at.v4, PLAINTEXT).into()).collect();
        let identity = format!("spiffe://cluster.local/ns/{}/sa/{}", spec.namespace, spec.service_account);
        let (chain, key) = self.authority.mint_pem(&Leaf::new([identity]))?;
        let secrets = Secrets { chain, key, roots: self.authority.root_pem.clone() };
        let sidecar = Sidecar {
            at: &at,
            namespace: &spec.namespace,
            name: &spec.name,
            claims: &claims,
            xds: &xds,
            folder: &folder,
        };
        let envoy = sidecar.start(&self.lab.envoy, &self.lab.logs, secrets)?;
        self.pods.push(BarePod { spec, at, uid, envoy, folder, claims, xds, _app: app });
        Ok(BareId(self.pods.len() - 1))
    }

    /// Waits until the pod's Envoy listens.
    ///
    /// # Errors
    /// If it does not in time.
    pub async fn listening(&mut self, BareId(id): BareId) -> Result<()> {
        let BarePod { spec, at, envoy, .. } = &mut self.pods[id];
        until(&format!("{}'s Envoy listens", spec.name), async || {
            let ended = envoy.ended();
            ensure!(ended.is_none(), "{} ended: {ended:?}\n{}", envoy.name, envoy.tail(20));
            Ok(at.dial((Ipv4Addr::LOCALHOST, 15006).into()).await.ok().map(drop))
        })
        .await
    }

    pub fn get(&self, BareId(id): BareId) -> &BarePod {
        &self.pods[id]
    }

    pub fn get_mut(&mut self, BareId(id): BareId) -> &mut BarePod {
        &mut self.pods[id]
    }

    /// A pod's address.
    pub fn on(&self, BareId(id): BareId, port: u16) -> SocketAddr {
        (self.pods[id].at.v4, port).into()
    }

    /// Starts the pod's Envoy again, over whatever is left of it.
    ///
    /// # Errors
    /// If it cannot be started.
    pub fn restart_envoy(&mut self, BareId(id): BareId) -> Result<()> {
        let BarePod { spec, at, uid: _, envoy, folder, claims, xds, _app: _ } = &mut self.pods[id];
        let (namespace, name) = (&spec.namespace, &spec.name);
        envoy.kill().ok();
        *envoy = Sidecar { at, namespace, name, claims, xds, folder }.run(&self.lab.envoy, &self.lab.logs)?;
        Ok(())
    }

    /// A page of the pod's Envoy's admin interface.
    ///
    /// # Errors
    /// If Envoy does not answer.
    pub async fn admin(&self, BareId(id): BareId, path: &str) -> Result<String> {
        let stream = tokio::net::UnixStream::connect(Sidecar::admin(&self.pods[id].folder)).await?;
        let (mut sender, connection) =
            hyper::client::conn::http1::handshake(hyper_util::rt::TokioIo::new(stream)).await?;
        tokio::spawn(connection);
        let request = http::Request::get(path).header(http::header::HOST, "envoy");
        let answer = sender.send_request(request.body(http_body_util::Empty::<bytes::Bytes>::new())?).await?;
        let body = http_body_util::BodyExt::collect(answer.into_body()).await?.to_bytes();
        Ok(String::from_utf8_lossy(&body).into_owned())
    }

    /// A valid certificate of the mesh for a service account.
    ///
    /// # Errors
    /// If a name cannot be put into a certificate.
    pub fn identity(&self, namespace: &str, account: &str) -> Result<Credential> {
        self.authority.mint(&Leaf::new([format!("spiffe://cluster.local/ns/{namespace}/sa/{account}")]))
    }

    /// A caller outside all pods.
    pub fn caller(&self, credential: Credential) -> Caller {
        self.lab.caller(credential)
    }

    /// Waits until `ask` is answered so.
    ///
    /// # Errors
    /// If it is not in time, with what it was instead.
    pub async fn becomes<T: PartialEq + std::fmt::Debug>(
        &self,
        expected: T,
        ask: impl AsyncFn(&Self) -> T,
    ) -> Result<()> {
        let mut last = None;
        let seen = until(&format!("{expected:?}"), async || {
            let got = ask(self).await;
            let same = got == expected;
            last = Some(got);
            Ok(same.then_some(()))
        })
        .await;
        seen.with_context(|| format!("it is {last:?}"))
    }

    /// A condition of a policy: `status reason: message`.
    ///
    /// # Errors
    /// As the API server does.
    pub async fn condition(
        &self,
        kind: &str,
        namespace: &str,
        name: &str,
        condition: &str,
    ) -> Result<String> {
        let object = self.kube.get("security.istio.io/v1", kind, namespace, name).await?;
        let Some(object) = object else { return Ok("no such policy".to_owned()) };
        let conditions = object["status"]["conditions"].as_array().cloned().unwrap_or_default();
        let Some(found) = conditions.into_iter().find(|c| c["type"] == condition) else {
            return Ok("no such condition".to_owned());
        };
        if found["observedGeneration"] != object["metadata"]["generation"] {
            return Ok("of another generation".to_owned());
        }
        let text = |field: &str| found[field].as_str().unwrap_or_default().to_owned();
        Ok(format!("{} {}: {}", text("status"), text("reason"), text("message")))
    }
}

async fn monitoring(at: &Namespace, path: &str) -> Answer {
    let mut request = super::get(path);
    request.headers_mut().insert(http::header::HOST, http::HeaderValue::from_static("localhost"));
    let caller = Caller::new(at, Credential::Plaintext);
    caller.send((Ipv4Addr::LOCALHOST, MONITORING).into(), request).await
}

/// The pod and its Service as the cluster holds them; the pod's UID.
async fn objects(kube: &Kube, spec: &PodSpec, ip: Ipv4Addr) -> Result<String> {
    let PodSpec { namespace, name, service_account, labels, ports, capture: _, agent_args: _ } = spec;
    let ip = ip.to_string();
    let mut labels: Vec<(&str, &str)> = labels.iter().map(|(key, value)| (&**key, &**value)).collect();
    labels.push(("security.istio.io/tlsMode", "istio"));
    let numbers: Vec<u16> = ports.iter().map(|(port, _)| *port).collect();
    let uid = kube.pod(namespace, name, service_account, &labels, &ip, &numbers).await?;
    let named: Vec<(String, u16)> = ports
        .iter()
        .filter_map(|(port, protocol)| match protocol {
            Protocol::Http => Some((format!("http-{port}"), *port)),
            Protocol::Grpc => Some((format!("grpc-{port}"), *port)),
            Protocol::Tcp => Some((format!("tcp-{port}"), *port)),
            Protocol::Unnamed => Some((format!("port-{port}"), *port)),
            Protocol::Undeclared => None,
        })
        .collect();
    if !named.is_empty() {
        let ports: Vec<_> = named.iter().map(|(name, port)| (&**name, *port, *port)).collect();
        kube.service(namespace, name, &ports, &[(name, &uid, &ip)]).await?;
    }
    Ok(uid)
}

/// The mesh configuration's ConfigMap.
pub fn mesh_config(text: &str) -> String {
    json!({
        "apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": "istio", "namespace": "istio-system"},
        "data": {"mesh": text},
    })
    .to_string()
}
