//! What the certificate authority is told, by flag, environment, configuration file or default, in this order.

use std::path::PathBuf;
use std::time::Duration;

use anyhow::{Context, Result};
use serde::Deserialize;
use source::kubernetes::MeshSource;
use spiffe::TrustDomain;

use crate::controller::AuditLog;
use crate::listen::Listen;
use crate::settings::{self, ConfigMapName};

/// From "the new root is everywhere" to the first certificate under it: the longest life of a certificate, after which
/// every agent has been told of the new root with a certificate, too.
const GRACE: Duration = Duration::from_secs(24 * 60 * 60);

#[derive(Clone, Debug, Default, clap::Args)]
pub(crate) struct ServeArgs {
    /// How to reach the API server: a kubeconfig file, or the pod's own service account [default: in-cluster]
    #[arg(long, env = "COUNTERSIGN_KUBECONFIG", value_name = "FILE|in-cluster")]
    kubeconfig: Option<PathBuf>,
    /// Certificates over TLS [default: 0.0.0.0:15012]
    #[arg(long, env = "COUNTERSIGN_ADDR", value_name = "ADDR|off")]
    addr: Option<Listen>,
    /// /ready, /metrics and /version; `off` for none [default: 0.0.0.0:15014]
    #[arg(long, env = "COUNTERSIGN_MONITORING_ADDR", value_name = "ADDR|off")]
    monitoring_addr: Option<Listen>,
    /// The control plane's own namespace, which holds the keys [default: $POD_NAMESPACE, else istio-system]
    #[arg(long, env = "COUNTERSIGN_NAMESPACE", value_name = "NS")]
    namespace: Option<String>,
    /// The controller's revision: its certificate is also good for istiod-REVISION.NS.svc [default: default]
    #[arg(long, env = "COUNTERSIGN_REVISION", value_name = "NAME")]
    revision: Option<String>,
    /// Trust domain to sign for [default: the mesh configuration's]
    #[arg(long, env = "COUNTERSIGN_TRUST_DOMAIN", value_name = "DOMAIN")]
    trust_domain: Option<TrustDomain>,
    /// ConfigMap with the MeshConfig under the key `mesh`, for its trust domain; Istio's defaults while it is absent
    /// [default: the control plane's namespace and `istio`]
    #[arg(long, env = "COUNTERSIGN_MESH_CONFIG_MAP", value_name = "NS/NAME", conflicts_with = "mesh_config")]
    mesh_config_map: Option<ConfigMapName>,
    /// MeshConfig file instead of a ConfigMap
    #[arg(long, env = "COUNTERSIGN_MESH_CONFIG", value_name = "FILE")]
    mesh_config: Option<PathBuf>,
    /// How long to wait between a new root being in every namespace and the first certificate under it. Shorter than 24h,
    /// agents that learn of roots only with their next certificate may be cut off for a while [default: 24h]
    #[arg(long, env = "COUNTERSIGN_ROTATION_GRACE", value_name = "DURATION", value_parser = crate::duration::parse)]
    rotation_grace: Option<Duration>,
    /// File for the audit trail: every certificate issued or refused, every change of keys; `off` for none [default: off]
    #[arg(long, env = "COUNTERSIGN_AUDIT_LOG", value_name = "FILE|off")]
    audit_log: Option<AuditLog>,
    /// YAML file with these settings, named as the flags; flags and environment win
    #[arg(long, env = "COUNTERSIGN_CONFIG", value_name = "FILE")]
    config: Option<PathBuf>,
}

/// The configuration file. Every key is optional there, as every flag is.
#[derive(Debug, Default, Deserialize)]
#[serde(rename_all = "kebab-case", deny_unknown_fields, default)]
struct File {
    kubeconfig: Option<PathBuf>,
    addr: Option<Listen>,
    monitoring_addr: Option<Listen>,
    namespace: Option<String>,
    revision: Option<String>,
    trust_domain: Option<String>,
    mesh_config_map: Option<ConfigMapName>,
    mesh_config: Option<PathBuf>,
    rotation_grace: Option<String>,
    audit_log: Option<AuditLog>,
}

/// Where the trust domain comes from.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum DomainSource {
    Fixed(TrustDomain),
    Mesh(MeshSource),
}

/// Everything decided.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Settings {
    /// `None`: the pod's own service account.
    pub(crate) kubeconfig: Option<PathBuf>,
    pub(crate) addr: Listen,
    pub(crate) monitoring: Listen,
    pub(crate) namespace: String,
    pub(crate) revision: String,
    pub(crate) domain: DomainSource,
    pub(crate) grace: time::Duration,
    pub(crate) audit_log: AuditLog,
}

impl ServeArgs {
    /// # Errors
    /// If the configuration file cannot be read, or something in it.
    pub(crate) fn settings(self) -> Result<Settings> {
        let file = self.config.as_deref().map(settings::read::<File>).transpose()?.unwrap_or_default();
        let namespace = settings::own_namespace(self.namespace.or(file.namespace));
        let fixed = match (self.trust_domain, file.trust_domain) {
            (Some(domain), _) => Some(domain),
            (None, Some(text)) => Some(text.parse().with_context(|| format!("trust-domain {text:?}"))?),
            (None, None) => None,
        };
        let mesh = settings::mesh_source(
            (self.mesh_config_map, self.mesh_config),
            (file.mesh_config_map, file.mesh_config),
            &namespace,
        )?;
        let domain = fixed.map_or(DomainSource::Mesh(mesh), DomainSource::Fixed);
        let grace = match (self.rotation_grace, file.rotation_grace) {
            (Some(grace), _) => grace,
            (None, Some(text)) => {
                crate::duration::parse(&text).map_err(anyhow::Error::msg).context("rotation-grace")?
            }
            (None, None) => GRACE,
        };
        let kubeconfig = self.kubeconfig.or(file.kubeconfig);
        Ok(Settings {
            kubeconfig: kubeconfig.filter(|path| path.as_os_str() != "in-cluster"),
            addr: self.addr.or(file.addr).unwrap_or(Listen::everywhere(15012)),
            monitoring: self.monitoring_addr.or(file.monitoring_addr).unwrap_or(Listen::everywhere(15014)),
            namespace,
            revision: settings::own_revision(self.revision.or(file.revision)),
            domain,
            grace: grace.try_into().context("rotation-grace is too long")?,
            audit_log: self.audit_log.or(file.audit_log).unwrap_or(AuditLog::Off),
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn from_file(text: &str, args: ServeArgs) -> Result<Settings> {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("config.yaml");
        std::fs::write(&path, text).unwrap();
        ServeArgs { config: Some(path), ..args }.settings()
    }

    #[test]
    fn flags_win_over_the_file_and_the_file_over_defaults() {
        let text = "kubeconfig: in-cluster\nnamespace: mesh\naddr: 127.0.0.1:1\ntrust-domain: example.org\nrotation-grace: 5m\n";
        let args = ServeArgs { addr: Some("127.0.0.1:2".parse().unwrap()), ..ServeArgs::default() };
        let settings = from_file(text, args).unwrap();
        assert_eq!((settings.kubeconfig, settings.namespace.as_str()), (None, "mesh"));
        assert_eq!(settings.addr, Listen::At(([127, 0, 0, 1], 2).into()));
        assert_eq!(settings.monitoring, Listen::everywhere(15014));
        assert_eq!(settings.domain, DomainSource::Fixed("example.org".parse().unwrap()));
        assert_eq!(settings.grace, time::Duration::minutes(5));
        let bare = from_file("namespace: mesh\n", ServeArgs::default()).unwrap();
        assert_eq!(
            bare.domain,
            DomainSource::Mesh(MeshSource::ConfigMap { namespace: "mesh".into(), name: "istio".into() })
        );
        assert_eq!((bare.grace, bare.revision.as_str()), (time::Duration::DAY, "default"));
    }

    #[test]
    fn mistakes_are_named() {
        for (text, part) in [
            ("adr: /x", "adr"),
            ("trust-domain: A/b", "A/b"),
            ("mesh-config-map: name", "NAMESPACE/NAME"),
            ("mesh-config-map: a/b\nmesh-config: /m", "exclude"),
            ("rotation-grace: soon", "soon"),
        ] {
            let error = format!("{:#}", from_file(text, ServeArgs::default()).unwrap_err());
            assert!(error.contains(part), "{text}: {error}");
        }
    }
}
