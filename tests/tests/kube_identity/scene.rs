//! A real API server with a real `countersign ca` before it, running with the rights of its chart and no others.

use std::net::{SocketAddr, TcpListener};
use std::path::PathBuf;
use std::process::Command;
use std::sync::Arc;

use anyhow::{Context, Result, ensure};
use api::istio::v1::auth::istio_certificate_service_client::IstioCertificateServiceClient;
use api::istio::v1::auth::{IstioCertificateRequest, IstioCertificateResponse};
use authn::{OwnSvid, client_config};
use ca::cluster::rights::{Scope, rules};
use serde_json::json;
use spiffe::{PrivateKey, SigningRequest, SpiffeId, Svid, TrustBundle};
use tests::lab::kube::Kube;
use tests::lab::{Process, programs, until};
use tonic::transport::Channel;
use tonic::{Request, Status};

pub(crate) const ROOT: &str = "istio-system";
pub(crate) const CA: &str = "spiffe://cluster.local/ns/istio-system/sa/countersign-ca";
pub(crate) const CONTROLLER: &str = "spiffe://cluster.local/ns/istio-system/sa/countersign";

/// An address of this machine that nobody listens on.
pub(crate) fn free_address() -> Result<SocketAddr> {
    Ok(TcpListener::bind("127.0.0.1:0")?.local_addr()?)
}

pub(crate) fn id(namespace: &str, account: &str) -> SpiffeId {
    format!("spiffe://cluster.local/ns/{namespace}/sa/{account}").parse().expect("an ID")
}

/// One process of the certificate authority.
#[derive(Debug)]
pub(crate) struct CaProcess {
    pub(crate) process: Process,
    pub(crate) address: SocketAddr,
    pub(crate) monitoring: SocketAddr,
}

/// The service account of the CA with what the chart grants; its kubeconfig.
pub(crate) async fn ca_account(kube: &Kube) -> Result<PathBuf> {
    let subject = json!([{"kind": "ServiceAccount", "name": "countersign-ca", "namespace": ROOT}]);
    let api = "rbac.authorization.k8s.io/v1";
    let role =
        |kind: &str| json!({"apiGroup": "rbac.authorization.k8s.io", "kind": kind, "name": "countersign-ca"});
    let (name, local) =
        (json!({"name": "countersign-ca"}), json!({"name": "countersign-ca", "namespace": ROOT}));
    for object in [
        json!({"apiVersion": api, "kind": "ClusterRole", "metadata": name, "rules": rules(Scope::Cluster)}),
        json!({"apiVersion": api, "kind": "ClusterRoleBinding", "metadata": name, "subjects": subject, "roleRef": role("ClusterRole")}),
        json!({"apiVersion": api, "kind": "Role", "metadata": local, "rules": rules(Scope::Namespace)}),
        json!({"apiVersion": api, "kind": "RoleBinding", "metadata": local, "subjects": subject, "roleRef": role("Role")}),
    ] {
        kube.put(object).await?;
    }
    kube.kubeconfig_of(ROOT, "countersign-ca").await
}

/// Starts one more process.
pub(crate) async fn start_ca(
    kube: &Kube,
    name: &str,
    kubeconfig: &std::path::Path,
    more: &[&str],
) -> Result<CaProcess> {
    let (address, monitoring) = (free_address()?, free_address()?);
    let mut command = Command::new(programs::countersign());
    command
        .args(["ca", "--addr", &address.to_string(), "--monitoring-addr", &monitoring.to_string()])
        .arg("--kubeconfig")
        .arg(kubeconfig)
        .args(more)
        .env_remove("POD_NAMESPACE");
    let process = Process::start(name, kube.folder(), command)?;
    Ok(CaProcess { process, address, monitoring })
}

impl CaProcess {
    /// `/ready` with its reasons.
    pub(crate) async fn ready(&self) -> Result<(u16, String)> {
        http_get(self.monitoring, "/ready").await
    }

    pub(crate) async fn wait_ready(&mut self) -> Result<()> {
        until("the CA is ready", async || {
            ensure!(self.process.ended().is_none(), "the CA ended:\n{}", self.process.tail(20));
            Ok(self.ready().await.ok().filter(|(status, _)| *status == 200).map(drop))
        })
        .await
        .with_context(|| self.process.tail(20))
    }
}

/// Plain HTTP/1.1, by hand: the answer's status and body.
pub(crate) async fn http_get(address: SocketAddr, path: &str) -> Result<(u16, String)> {
    use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
    let mut stream = tokio::net::TcpStream::connect(address).await?;
    let request = format!("GET {path} HTTP/1.1\r\nhost: localhost\r\nconnection: close\r\n\r\n");
    stream.write_all(request.as_bytes()).await?;
    let mut answer = String::new();
    stream.read_to_string(&mut answer).await?;
    let status = answer.split(' ').nth(1).and_then(|status| status.parse().ok()).context("a status")?;
    Ok((status, answer))
}

/// What the ConfigMap of `namespace` says; `None` if there is none.
pub(crate) async fn published(kube: &Kube, namespace: &str) -> Result<Option<String>> {
    let map = kube.get("v1", "ConfigMap", namespace, "istio-ca-root-cert").await?;
    Ok(map.and_then(|map| Some(map["data"]["root-cert.pem"].as_str()?.to_owned())))
}

/// The roots that a pod of `namespace` would trust.
pub(crate) async fn roots(kube: &Kube, namespace: &str) -> Result<TrustBundle> {
    let text = until("the roots are published", async || published(kube, namespace).await).await?;
    Ok(TrustBundle::from_pem(text.as_bytes())?)
}

/// An Envoy's agent, an attacker, or the control plane, as a client of the CA.
#[derive(Clone, Debug)]
pub(crate) struct Client {
    pub(crate) address: SocketAddr,
    pub(crate) server: SpiffeId,
    pub(crate) roots: TrustBundle,
    pub(crate) own: Arc<OwnSvid>,
}

impl Client {
    pub(crate) fn new(address: SocketAddr, server: &str, roots: &TrustBundle) -> Self {
        let server = server.parse().expect("an ID");
        Self { address, server, roots: roots.clone(), own: OwnSvid::empty() }
    }

    /// The same with a client certificate.
    pub(crate) fn with(&self, svid: &Svid) -> Self {
        Self { own: OwnSvid::new(svid).expect("usable"), ..self.clone() }
    }

    pub(crate) async fn channel(&self) -> Result<Channel> {
        let config = client_config(&self.roots, self.server.clone(), self.own.clone())?;
        Ok(authn::connect(&self.address.to_string(), config, None).await?)
    }

    /// CreateCertificate as Istio's agent asks, with more headers if need be.
    pub(crate) async fn call(
        &self,
        csr: String,
        token: Option<&str>,
        headers: &[(&'static str, &str)],
    ) -> Result<Result<Vec<String>, Status>> {
        let mut request =
            Request::new(IstioCertificateRequest { csr, validity_duration: 86_400, metadata: None });
        request.metadata_mut().insert("clusterid", "Kubernetes".parse()?);
        if let Some(token) = token {
            request.metadata_mut().insert("authorization", format!("Bearer {token}").parse()?);
        }
        for (name, value) in headers {
            request.metadata_mut().insert(*name, value.parse()?);
        }
        let mut client = IstioCertificateServiceClient::new(self.channel().await?);
        let answer = client.create_certificate(request).await;
        Ok(answer.map(|answer| {
            let IstioCertificateResponse { cert_chain } = answer.into_inner();
            cert_chain
        }))
    }

    /// A certificate for a new key: the SVID and the chain as answered.
    pub(crate) async fn certificate(
        &self,
        token: Option<&str>,
    ) -> Result<Result<(Svid, Vec<String>), Status>> {
        let key = PrivateKey::generate()?;
        let chain = self.call(SigningRequest::create(&key)?, token, &[]).await?;
        Ok(match chain {
            Ok(chain) => Ok((Svid::from_pem(&chain.concat(), key)?, chain)),
            Err(status) => Err(status),
        })
    }

    pub(crate) async fn svid(&self, token: Option<&str>) -> Result<Svid> {
        Ok(self.certificate(token).await?.map_err(|status| anyhow::anyhow!("{status:?}"))?.0)
    }

    /// The refusal's code.
    pub(crate) async fn refusal(&self, token: Option<&str>) -> Result<tonic::Code> {
        match self.certificate(token).await? {
            Ok((svid, _)) => anyhow::bail!("got a certificate for {}", svid.leaf.id),
            Err(status) => Ok(status.code()),
        }
    }
}

/// A pod with a token as the kubelet projects it.
pub(crate) async fn pod_with_token(
    kube: &Kube,
    namespace: &str,
    name: &str,
    account: &str,
) -> Result<(String, String)> {
    let uid = kube.pod(namespace, name, account, &[("app", account)], "10.9.9.9", &[]).await?;
    let token = kube.token(namespace, account, "istio-ca", Some((name, &uid)), 3600).await?;
    Ok((uid, token))
}

/// Handshakes with real TLS between certificate holders: a server with `server`, a client with `client`, both trusting
/// `roots`.
pub(crate) async fn handshake(server: &Svid, client: &Svid, roots: &TrustBundle) -> Result<()> {
    let domain = "cluster.local".parse().expect("a domain");
    let trust = authn::ClientTrust::new(roots, vec![domain])?;
    let config = authn::tls::server_config(OwnSvid::new(server)?, trust);
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await?;
    let address = listener.local_addr()?.to_string();
    let acceptor = tokio_rustls::TlsAcceptor::from(config);
    let accepted = async {
        let (stream, _) = listener.accept().await?;
        let stream = acceptor.accept(stream).await.context("the server's side")?;
        ensure!(stream.get_ref().1.peer_certificates().is_some(), "no client certificate");
        anyhow::Ok(())
    };
    let config = client_config(roots, server.leaf.id.clone(), OwnSvid::new(client)?)?;
    let dialled = async { authn::dial(&address, config, None).await.context("the client's side") };
    let (accepted, dialled) = tokio::join!(accepted, dialled);
    accepted?;
    drop(dialled?);
    Ok(())
}

/// An operator's root and an intermediate below it, as Istio's Secret `cacerts`.
pub(crate) fn cacerts(name: &str) -> Result<serde_json::Value> {
    use rcgen::{BasicConstraints, CertificateParams, DnType, IsCa, Issuer, KeyPair, KeyUsagePurpose};
    let params = |what: &str| {
        let mut params = CertificateParams::default();
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        params.key_usages = vec![KeyUsagePurpose::KeyCertSign];
        params.distinguished_name.push(DnType::CommonName, format!("{name} {what}"));
        params
    };
    let (root, root_key) = (params("root"), KeyPair::generate()?);
    let root_pem = root.self_signed(&root_key)?.pem();
    let key = KeyPair::generate()?;
    let pem = params("intermediate").signed_by(&key, &Issuer::from_params(&root, &root_key))?.pem();
    Ok(json!({
        "apiVersion": "v1", "kind": "Secret", "metadata": {"name": "cacerts", "namespace": ROOT},
        "stringData": {
            "ca-cert.pem": pem, "ca-key.pem": key.serialize_pem(),
            "cert-chain.pem": format!("{pem}{root_pem}"), "root-cert.pem": root_pem,
        },
    }))
}
