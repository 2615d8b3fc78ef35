//! An Envoy set up as any Istio-compatible agent would, without one: ADS in plaintext, certificates from a secret server
//! of the test's own, arriving connections redirected by nft. Its node may claim anything.

use std::io::Write as _;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::pin::Pin;
use std::process::Stdio;

use anyhow::{Context, Result, ensure};
use envoy_types::pb::envoy::config::core::v3::{DataSource, data_source::Specifier};
use envoy_types::pb::envoy::extensions::transport_sockets::tls::v3 as tls;
use envoy_types::pb::envoy::service::discovery::v3::{
    DeltaDiscoveryRequest, DeltaDiscoveryResponse, DiscoveryRequest, DiscoveryResponse,
};
use envoy_types::pb::envoy::service::secret::v3::secret_discovery_service_server::{
    SecretDiscoveryService, SecretDiscoveryServiceServer,
};
use envoy_types::pb::google::protobuf::Any;
use prost::Message as _;
use serde_json::{Value, json};
use tokio::net::UnixListener;
use tokio_stream::wrappers::{ReceiverStream, UnixListenerStream};
use tokio_stream::{Stream, StreamExt as _};
use tonic::{Request, Response, Status, Streaming};

use super::net::Namespace;
use super::process::Process;

/// Which Envoy, where, and what it says of itself.
#[derive(Debug)]
pub(super) struct Sidecar<'a> {
    pub(super) at: &'a Namespace,
    pub(super) namespace: &'a str,
    pub(super) name: &'a str,
    /// What the node's metadata says; not believed by anybody, one hopes.
    pub(super) claims: &'a Value,
    /// The control planes, any of which will do.
    pub(super) xds: &'a [SocketAddr],
    pub(super) folder: &'a Path,
}

/// Chain, key and roots as PEM.
#[derive(Clone, Debug)]
pub(super) struct Secrets {
    pub(super) chain: String,
    pub(super) key: String,
    pub(super) roots: String,
}

impl Sidecar<'_> {
    /// Starts the redirection, the secret server and Envoy.
    pub(super) fn start(&self, envoy: &Path, logs: &Path, secrets: Secrets) -> Result<Process> {
        redirect(self.at)?;
        let sds = self.folder.join("sds");
        std::fs::remove_file(&sds).ok();
        let listener = UnixListenerStream::new(UnixListener::bind(&sds)?);
        let server =
            tonic::transport::Server::builder().add_service(SecretDiscoveryServiceServer::new(secrets));
        tokio::spawn(server.serve_with_incoming(listener));
        self.run(envoy, logs)
    }

    /// Starts Envoy (again).
    pub(super) fn run(&self, envoy: &Path, logs: &Path) -> Result<Process> {
        let path = self.folder.join("bootstrap.json");
        std::fs::write(&path, self.bootstrap().to_string())?;
        let mut command = self.at.command(envoy);
        command.arg("-c").arg(path).args(["--concurrency", "1", "--disable-hot-restart", "-l", "warning"]);
        command.args(["--drain-time-s", "1", "--drain-strategy", "immediate"]);
        Process::start(&format!("{}-envoy", self.name), logs, command)
    }

    /// Where Envoy's admin interface listens.
    pub(super) fn admin(folder: &Path) -> PathBuf {
        folder.join("admin")
    }

    fn bootstrap(&self) -> Value {
        let Self { at, namespace, name, claims, xds, folder } = self;
        let ads = json!({"ads": {}, "initial_fetch_timeout": "0s", "resource_api_version": "V3"});
        let pipe = json!({"pipe": {"path": folder.join("sds")}});
        // Not by priority: Envoy leaves a priority only for hosts known to be bad, and nobody checks these.
        let address =
            |to: &SocketAddr| json!({"socket_address": {"address": to.ip(), "port_value": to.port()}});
        let xds: Vec<Value> = xds.iter().map(|to| json!({"endpoint": {"address": address(to)}})).collect();
        let mut metadata = json!({
            "NAME": name, "NAMESPACE": namespace, "INSTANCE_IPS": at.v4, "CLUSTER_ID": "Kubernetes",
            "ISTIO_VERSION": "1.31.0", "INTERCEPTION_MODE": "REDIRECT", "PROXY_CONFIG": {"drainDuration": "1s"},
        });
        for (key, value) in claims.as_object().into_iter().flatten() {
            metadata[key] = value.clone();
        }
        json!({
            "node": {
                "id": format!("sidecar~{}~{name}.{namespace}~{namespace}.svc.cluster.local", at.v4),
                "cluster": format!("{name}.{namespace}"), "metadata": metadata,
            },
            "layered_runtime": {"layers": [{"name": "static", "static_layer": {"re2.max_program_size.error_level": 32768}},
                                           {"name": "admin", "admin_layer": {}}]},
            "admin": {"address": {"pipe": {"path": Self::admin(folder), "mode": 0o600}}},
            "dynamic_resources": {"lds_config": ads, "cds_config": ads, "ads_config": {
                "api_type": "DELTA_GRPC", "transport_api_version": "V3", "set_node_on_first_message_only": true,
                "grpc_services": [{"envoy_grpc": {
                    "cluster_name": "xds-grpc",
                    "retry_policy": {"retry_back_off": {"base_interval": "0.2s", "max_interval": "2s"}},
                }}],
            }},
            "static_resources": {"clusters": [
                cluster("sds-grpc", &json!([{"lb_endpoints": [{"endpoint": {"address": pipe}}]}])),
                cluster("xds-grpc", &json!([{"lb_endpoints": xds}])),
            ]},
        })
    }
}

fn cluster(name: &str, endpoints: &Value) -> Value {
    let options = "envoy.extensions.upstreams.http.v3.HttpProtocolOptions";
    let keepalive = json!({"interval": "2s", "timeout": "2s"});
    json!({
        "name": name, "type": "STATIC", "connect_timeout": "1s",
        "typed_extension_protocol_options": {options: {
            "@type": format!("type.googleapis.com/{options}"),
            "explicit_http_config": {"http2_protocol_options": {"connection_keepalive": keepalive}},
        }},
        "load_assignment": {"cluster_name": name, "endpoints": endpoints},
    })
}

/// What arrives goes to Envoy's inbound listener.
fn redirect(at: &Namespace) -> Result<()> {
    let rules = "table inet lab {\n chain arriving {\n  type nat hook prerouting priority dstnat;\n  meta l4proto tcp redirect \
                 to :15006\n }\n}\n";
    let mut command = at.command("nft");
    let mut nft = command.args(["-f", "-"]).stdin(Stdio::piped()).stderr(Stdio::piped()).spawn()?;
    nft.stdin.take().context("stdin is piped")?.write_all(rules.as_bytes())?;
    let output = nft.wait_with_output()?;
    ensure!(output.status.success(), "nft: {}", String::from_utf8_lossy(&output.stderr));
    Ok(())
}

impl Secrets {
    fn secret(&self, name: &str) -> Any {
        let inline = |text: &str| {
            Some(DataSource {
                specifier: Some(Specifier::InlineString(text.to_owned())),
                ..DataSource::default()
            })
        };
        let kind = if name == "default" {
            tls::secret::Type::TlsCertificate(tls::TlsCertificate {
                certificate_chain: inline(&self.chain),
                private_key: inline(&self.key),
                ..tls::TlsCertificate::default()
            })
        } else {
            tls::secret::Type::ValidationContext(tls::CertificateValidationContext {
                trusted_ca: inline(&self.roots),
                ..tls::CertificateValidationContext::default()
            })
        };
        let secret = tls::Secret { name: name.to_owned(), r#type: Some(kind) };
        Any {
            type_url: "type.googleapis.com/envoy.extensions.transport_sockets.tls.v3.Secret".to_owned(),
            value: secret.encode_to_vec(),
        }
    }
}

type Answers<T> = Pin<Box<dyn Stream<Item = Result<T, Status>> + Send>>;

#[tonic::async_trait]
impl SecretDiscoveryService for Secrets {
    type DeltaSecretsStream = Answers<DeltaDiscoveryResponse>;
    type StreamSecretsStream = Answers<DiscoveryResponse>;

    async fn delta_secrets(
        &self,
        _: Request<Streaming<DeltaDiscoveryRequest>>,
    ) -> Result<Response<Self::DeltaSecretsStream>, Status> {
        Err(Status::unimplemented("state of the world only"))
    }

    /// One answer to each first request; nothing ever changes.
    async fn stream_secrets(
        &self,
        request: Request<Streaming<DiscoveryRequest>>,
    ) -> Result<Response<Self::StreamSecretsStream>, Status> {
        let (secrets, mut asked) = (self.clone(), request.into_inner());
        let (answers, stream) = tokio::sync::mpsc::channel(1);
        tokio::spawn(async move {
            while let Some(Ok(request)) = asked.next().await {
                if !request.response_nonce.is_empty() {
                    continue;
                }
                let answer = DiscoveryResponse {
                    version_info: "1".to_owned(),
                    nonce: "1".to_owned(),
                    type_url: request.type_url,
                    resources: request.resource_names.iter().map(|name| secrets.secret(name)).collect(),
                    ..DiscoveryResponse::default()
                };
                if answers.send(Ok(answer)).await.is_err() {
                    return;
                }
            }
        });
        Ok(Response::new(Box::pin(ReceiverStream::new(stream))))
    }

    async fn fetch_secrets(
        &self,
        _: Request<DiscoveryRequest>,
    ) -> Result<Response<DiscoveryResponse>, Status> {
        Err(Status::unimplemented("streams only"))
    }
}
