//! What the controller is told, by flag, environment, configuration file or default, in this order.

use std::path::PathBuf;
use std::str::FromStr;

use anyhow::Result;
use ipnet::IpNet;
use serde::Deserialize;
use source::kubernetes::MeshSource;

use crate::keys::{KeysArgs, Span};
use crate::listen::Listen;
use crate::settings::{self, ConfigMapName};

/// Run the policy controller against a Kubernetes API server
///
/// Watches policies, Pods and Services, serves xDS to Envoys, checks policies before they are stored (admission webhook),
/// and writes into each policy's status where it is enforced. Runs in a cluster or beside one. It holds no CA key: the
/// certificate of its TLS port comes from `countersign ca`.
#[derive(Clone, Debug, Default, clap::Args)]
#[command(after_help = "Examples:\n  \
    countersign controller                                   # in a cluster, as its pod's service account\n  \
    countersign controller --kubeconfig ~/.kube/config --secure-addr off --webhook-addr off\n  \
    countersign controller --config /etc/countersign.yaml    # kubeconfig: .., namespace: .., ca-addr: .., ..")]
pub(crate) struct ControllerArgs {
    /// How to reach the API server: a kubeconfig file, or the pod's own service account [default: in-cluster]
    #[arg(long, env = "COUNTERSIGN_KUBECONFIG", value_name = "FILE|in-cluster")]
    kubeconfig: Option<Kubeconfig>,
    /// The control plane's own namespace [default: $POD_NAMESPACE, else istio-system]
    #[arg(long, env = "COUNTERSIGN_NAMESPACE", value_name = "NS")]
    namespace: Option<String>,
    /// Objects with the label istio.io/rev of another revision are ignored [default: default]
    #[arg(long, env = "COUNTERSIGN_REVISION", value_name = "NAME")]
    revision: Option<String>,
    /// ConfigMap with the MeshConfig under the key `mesh`, followed live; Istio's defaults while it is absent
    /// [default: the control plane's namespace and `istio`]
    #[arg(long, env = "COUNTERSIGN_MESH_CONFIG_MAP", value_name = "NS/NAME", conflicts_with = "mesh_config")]
    mesh_config_map: Option<ConfigMapName>,
    /// MeshConfig file instead of a ConfigMap, followed live
    #[arg(long, env = "COUNTERSIGN_MESH_CONFIG", value_name = "FILE")]
    mesh_config: Option<PathBuf>,
    /// xDS without TLS and without authentication; `off` for none [default: 127.0.0.1:15010]
    #[arg(long, env = "COUNTERSIGN_PLAINTEXT_ADDR", value_name = "ADDR|off")]
    plaintext_addr: Option<Listen>,
    /// xDS, certificate requests and receipts over TLS; `off` for none [default: 0.0.0.0:15012]
    #[arg(long, env = "COUNTERSIGN_SECURE_ADDR", value_name = "ADDR|off")]
    secure_addr: Option<Listen>,
    /// /ready, /metrics, /version and (for callers on this machine) /status; `off` for none [default: 0.0.0.0:15014]
    #[arg(long, env = "COUNTERSIGN_MONITORING_ADDR", value_name = "ADDR|off")]
    monitoring_addr: Option<Listen>,
    /// Admission webhook over TLS; `off` for none [default: 0.0.0.0:15017]
    #[arg(long, env = "COUNTERSIGN_WEBHOOK_ADDR", value_name = "ADDR|off")]
    webhook_addr: Option<Listen>,
    /// The ValidatingWebhookConfiguration and MutatingWebhookConfiguration that are told our certificate's authority
    /// [default: countersign-NS]
    #[arg(long, env = "COUNTERSIGN_WEBHOOK_CONFIGURATION", value_name = "NAME")]
    webhook_configuration: Option<String>,
    /// Host name or address by which the API server calls the webhook, if not by its Service
    #[arg(long, env = "COUNTERSIGN_WEBHOOK_HOST", value_name = "HOST")]
    webhook_host: Option<String>,
    /// Settings of the injection of sidecars (YAML), followed live; without, the webhook refuses to inject
    #[arg(long, env = "COUNTERSIGN_INJECTION_CONFIG", value_name = "FILE")]
    injection_config: Option<PathBuf>,
    /// Certificate authority, HOST:PORT; with `off` the TLS port stays shut [default: countersign-ca.NS.svc:15012]
    #[arg(long, env = "COUNTERSIGN_CA_ADDR", value_name = "HOST:PORT|off")]
    ca_addr: Option<CaAddr>,
    /// This process's service-account token for the certificate authority (audience istio-ca); outside a cluster, one is
    /// asked of the API server [default: /var/run/secrets/tokens/istio-token]
    #[arg(long, env = "COUNTERSIGN_TOKEN_FILE", value_name = "FILE")]
    token_file: Option<PathBuf>,
    /// Where the other replicas reach the TLS port of this one [default: $POD_IP or the address listened on]
    #[arg(long, env = "COUNTERSIGN_ADVERTISE_ADDR", value_name = "HOST:PORT")]
    advertise_addr: Option<String>,
    /// File for the audit trail: who changed which policy, and every refusal; `off` for none [default: off]
    #[arg(long, env = "COUNTERSIGN_AUDIT_LOG", value_name = "FILE|off")]
    audit_log: Option<AuditLog>,
    #[command(flatten)]
    keys: KeysArgs,
    /// YAML file with these settings, named as the flags; flags and environment win
    #[arg(long, env = "COUNTERSIGN_CONFIG", value_name = "FILE")]
    config: Option<PathBuf>,
}

/// How the API server is reached.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
#[serde(from = "PathBuf")]
pub(crate) enum Kubeconfig {
    InCluster,
    File(PathBuf),
}

impl From<PathBuf> for Kubeconfig {
    fn from(path: PathBuf) -> Self {
        if path.as_os_str() == "in-cluster" { Self::InCluster } else { Self::File(path) }
    }
}

impl FromStr for Kubeconfig {
    type Err = std::convert::Infallible;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        Ok(PathBuf::from(text).into())
    }
}

/// The certificate authority's address.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
#[serde(try_from = "String")]
pub(crate) enum CaAddr {
    Off,
    At(String),
}

impl FromStr for CaAddr {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        if text.eq_ignore_ascii_case("off") {
            return Ok(Self::Off);
        }
        match text.rsplit_once(':') {
            Some((host, port)) if !host.is_empty() && port.parse::<u16>().is_ok_and(|port| port > 0) => {
                Ok(Self::At(text.to_owned()))
            }
            _ => Err(format!("{text:?} is neither HOST:PORT nor off")),
        }
    }
}

impl TryFrom<String> for CaAddr {
    type Error = String;

    fn try_from(text: String) -> Result<Self, String> {
        text.parse()
    }
}

/// Where the audit trail goes.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
#[serde(from = "PathBuf")]
pub(crate) enum AuditLog {
    Off,
    File(PathBuf),
}

impl From<PathBuf> for AuditLog {
    fn from(path: PathBuf) -> Self {
        if path.as_os_str().eq_ignore_ascii_case("off") { Self::Off } else { Self::File(path) }
    }
}

impl FromStr for AuditLog {
    type Err = std::convert::Infallible;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        Ok(PathBuf::from(text).into())
    }
}

/// The configuration file. Every key is optional there, as every flag is.
#[derive(Debug, Default, Deserialize)]
#[serde(rename_all = "kebab-case", deny_unknown_fields, default)]
struct File {
    kubeconfig: Option<Kubeconfig>,
    namespace: Option<String>,
    revision: Option<String>,
    mesh_config_map: Option<ConfigMapName>,
    mesh_config: Option<PathBuf>,
    plaintext_addr: Option<Listen>,
    secure_addr: Option<Listen>,
    monitoring_addr: Option<Listen>,
    webhook_addr: Option<Listen>,
    webhook_configuration: Option<String>,
    webhook_host: Option<String>,
    injection_config: Option<PathBuf>,
    ca_addr: Option<CaAddr>,
    token_file: Option<PathBuf>,
    advertise_addr: Option<String>,
    audit_log: Option<AuditLog>,
    jwks_ca: Option<PathBuf>,
    jwks_proxy: Option<String>,
    jwks_block: Vec<IpNet>,
    jwks_refresh: Option<Span>,
    jwks_max_age: Option<Span>,
}

/// Everything decided.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Settings {
    pub(crate) kubeconfig: Kubeconfig,
    pub(crate) namespace: String,
    pub(crate) revision: String,
    pub(crate) mesh: MeshSource,
    pub(crate) plaintext: Listen,
    pub(crate) secure: Listen,
    pub(crate) monitoring: Listen,
    pub(crate) webhook: Listen,
    pub(crate) webhook_configuration: String,
    pub(crate) webhook_host: Option<String>,
    pub(crate) injection_config: Option<PathBuf>,
    pub(crate) ca: CaAddr,
    pub(crate) token_file: PathBuf,
    pub(crate) advertise: Option<String>,
    pub(crate) audit_log: AuditLog,
    pub(crate) keys: KeysArgs,
}

impl ControllerArgs {
    /// # Errors
    /// If the configuration file cannot be read, or names two sources of the mesh configuration.
    pub(crate) fn settings(self) -> Result<Settings> {
        let file = self.config.as_deref().map(settings::read::<File>).transpose()?.unwrap_or_default();
        let namespace = settings::own_namespace(self.namespace.or(file.namespace));
        let mesh = settings::mesh_source(
            (self.mesh_config_map, self.mesh_config),
            (file.mesh_config_map, file.mesh_config),
            &namespace,
        )?;
        let ca = self.ca_addr.or(file.ca_addr);
        let token_file = self.token_file.or(file.token_file);
        let keys = KeysArgs {
            jwks_ca: file.jwks_ca,
            jwks_proxy: file.jwks_proxy,
            jwks_block: file.jwks_block,
            jwks_refresh: file.jwks_refresh,
            jwks_max_age: file.jwks_max_age,
        };
        Ok(Settings {
            keys: self.keys.or(keys),
            kubeconfig: self.kubeconfig.or(file.kubeconfig).unwrap_or(Kubeconfig::InCluster),
            revision: settings::own_revision(self.revision.or(file.revision)),
            mesh,
            plaintext: self.plaintext_addr.or(file.plaintext_addr).unwrap_or(Listen::local(15010)),
            secure: self.secure_addr.or(file.secure_addr).unwrap_or(Listen::everywhere(15012)),
            monitoring: self.monitoring_addr.or(file.monitoring_addr).unwrap_or(Listen::everywhere(15014)),
            webhook: self.webhook_addr.or(file.webhook_addr).unwrap_or(Listen::everywhere(15017)),
            webhook_configuration: self
                .webhook_configuration
                .or(file.webhook_configuration)
                .unwrap_or_else(|| format!("countersign-{namespace}")),
            webhook_host: self.webhook_host.or(file.webhook_host),
            injection_config: self.injection_config.or(file.injection_config),
            ca: ca.unwrap_or_else(|| CaAddr::At(format!("countersign-ca.{namespace}.svc:15012"))),
            token_file: token_file.unwrap_or_else(|| PathBuf::from("/var/run/secrets/tokens/istio-token")),
            advertise: self.advertise_addr.or(file.advertise_addr),
            audit_log: self.audit_log.or(file.audit_log).unwrap_or(AuditLog::Off),
            namespace,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn from_file(text: &str, args: ControllerArgs) -> Result<Settings> {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("config.yaml");
        std::fs::write(&path, text).unwrap();
        ControllerArgs { config: Some(path), ..args }.settings()
    }

    #[test]
    fn flags_win_over_the_file_and_the_file_over_defaults() {
        let text =
            "kubeconfig: /k\nnamespace: mesh\nca-addr: \"off\"\nsecure-addr: 127.0.0.1:1\nmesh-config: /m\n";
        let args = ControllerArgs {
            secure_addr: Some("127.0.0.1:2".parse().unwrap()),
            mesh_config_map: Some("a/b".parse().unwrap()),
            ..ControllerArgs::default()
        };
        let settings = from_file(text, args).unwrap();
        assert_eq!(settings.kubeconfig, Kubeconfig::File("/k".into()));
        assert_eq!(settings.namespace, "mesh");
        assert_eq!(settings.ca, CaAddr::Off);
        assert_eq!(settings.secure, Listen::At(([127, 0, 0, 1], 2).into()));
        assert_eq!(settings.mesh, MeshSource::ConfigMap { namespace: "a".into(), name: "b".into() });
        assert_eq!(settings.plaintext, Listen::local(15010));
        let mesh = from_file(text, ControllerArgs::default()).unwrap().mesh;
        assert_eq!(mesh, MeshSource::File("/m".into()));
        let bare = from_file("namespace: mesh\n", ControllerArgs::default()).unwrap();
        assert_eq!(bare.ca, CaAddr::At("countersign-ca.mesh.svc:15012".into()));
        assert_eq!(bare.mesh, MeshSource::ConfigMap { namespace: "mesh".into(), name: "istio".into() });
    }

    #[test]
    fn mistakes_are_named() {
        for (text, part) in [
            ("kubeconfigg: /x", "kubeconfigg"),
            ("ca-addr: somewhere", "somewhere"),
            ("ca-addr: host:0", "host:0"),
            ("mesh-config-map: name", "NAMESPACE/NAME"),
            ("mesh-config-map: a/b\nmesh-config: /m", "exclude"),
        ] {
            let error = format!("{:#}", from_file(text, ControllerArgs::default()).unwrap_err());
            assert!(error.contains(part), "{text}: {error}");
        }
    }
}
