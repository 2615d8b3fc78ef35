//! What standalone mode is told, by flag, environment, configuration file or default, in this order.

use std::path::PathBuf;

use anyhow::{Context, Result};
use ipnet::IpNet;
use serde::Deserialize;

use crate::keys::{KeysArgs, Span};
use crate::listen::Listen;
use crate::settings;

/// Run the whole control plane in one process over a folder of YAML files
///
/// Watches the folder, serves xDS to Envoys on two ports (plaintext for this machine, TLS for the mesh), issues workload
/// certificates on the TLS port, and tells how it is on the monitoring port.
#[derive(Clone, Debug, Default, clap::Args)]
#[command(after_help = "Examples:\n  \
    countersign standalone --dir ./policies --state ./state\n  \
    countersign standalone --dir ./policies --state ./state --mesh-config mesh.yaml --plaintext-addr off\n  \
    countersign standalone --config /etc/countersign.yaml    # dir: /etc/policies, state: /var/lib/countersign, ..")]
pub(crate) struct StandaloneArgs {
    /// Folder of policies, services and workloads (YAML or JSON, read recursively, followed live)
    #[arg(long, env = "COUNTERSIGN_DIR", value_name = "DIR")]
    dir: Option<PathBuf>,
    /// Folder for the certificate authority's key and root certificate, and join tokens; made if missing
    #[arg(long, env = "COUNTERSIGN_STATE", value_name = "DIR")]
    state: Option<PathBuf>,
    /// MeshConfig file, followed live [default: Istio's defaults]
    #[arg(long, env = "COUNTERSIGN_MESH_CONFIG", value_name = "FILE")]
    mesh_config: Option<PathBuf>,
    /// xDS without TLS and without authentication; `off` for none [default: 127.0.0.1:15010]
    #[arg(long, env = "COUNTERSIGN_PLAINTEXT_ADDR", value_name = "ADDR|off")]
    plaintext_addr: Option<Listen>,
    /// xDS and certificates over TLS; `off` for none [default: 0.0.0.0:15012]
    #[arg(long, env = "COUNTERSIGN_SECURE_ADDR", value_name = "ADDR|off")]
    secure_addr: Option<Listen>,
    /// /ready, /metrics, /version and (for callers on this machine) /status; `off` for none [default: 127.0.0.1:15014]
    #[arg(long, env = "COUNTERSIGN_MONITORING_ADDR", value_name = "ADDR|off")]
    monitoring_addr: Option<Listen>,
    #[command(flatten)]
    keys: KeysArgs,
    /// YAML file with these settings, named as the flags; flags and environment win
    #[arg(long, env = "COUNTERSIGN_CONFIG", value_name = "FILE")]
    config: Option<PathBuf>,
}

/// The configuration file. Every key is optional there, as every flag is.
#[derive(Debug, Default, Deserialize)]
#[serde(rename_all = "kebab-case", deny_unknown_fields, default)]
struct File {
    dir: Option<PathBuf>,
    state: Option<PathBuf>,
    mesh_config: Option<PathBuf>,
    plaintext_addr: Option<Listen>,
    secure_addr: Option<Listen>,
    monitoring_addr: Option<Listen>,
    jwks_ca: Option<PathBuf>,
    jwks_proxy: Option<String>,
    jwks_block: Vec<IpNet>,
    jwks_refresh: Option<Span>,
    jwks_max_age: Option<Span>,
}

/// Everything decided.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Settings {
    pub(crate) dir: PathBuf,
    pub(crate) state: PathBuf,
    pub(crate) mesh_config: Option<PathBuf>,
    pub(crate) plaintext: Listen,
    pub(crate) secure: Listen,
    pub(crate) monitoring: Listen,
    pub(crate) keys: KeysArgs,
}

impl StandaloneArgs {
    /// # Errors
    /// If the configuration file cannot be read, or a setting without default is missing.
    pub(crate) fn settings(self) -> Result<Settings> {
        let Self { dir, state, mesh_config, plaintext_addr, secure_addr, monitoring_addr, keys, config } =
            self;
        let file = config.as_deref().map(settings::read::<File>).transpose()?.unwrap_or_default();
        let from_file = KeysArgs {
            jwks_ca: file.jwks_ca,
            jwks_proxy: file.jwks_proxy,
            jwks_block: file.jwks_block,
            jwks_refresh: file.jwks_refresh,
            jwks_max_age: file.jwks_max_age,
        };
        Ok(Settings {
            keys: keys.or(from_file),
            dir: dir.or(file.dir).context("--dir is missing")?,
            state: state.or(file.state).context("--state is missing")?,
            mesh_config: mesh_config.or(file.mesh_config),
            plaintext: plaintext_addr.or(file.plaintext_addr).unwrap_or(Listen::local(15010)),
            secure: secure_addr.or(file.secure_addr).unwrap_or(Listen::everywhere(15012)),
            monitoring: monitoring_addr.or(file.monitoring_addr).unwrap_or(Listen::local(15014)),
        })
    }
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use super::*;

    #[test]
    fn flags_win_over_the_file_and_the_file_over_defaults() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("config.yaml");
        std::fs::write(
            &path,
            "dir: /from/file\nstate: /state\nplaintext-addr: \"off\"\nsecure-addr: 127.0.0.1:1\n",
        )
        .unwrap();
        let args = StandaloneArgs {
            dir: Some("/from/flag".into()),
            secure_addr: Some("127.0.0.1:2".parse().unwrap()),
            config: Some(path.clone()),
            ..StandaloneArgs::default()
        };
        let settings = args.settings().unwrap();
        assert_eq!(settings.dir, Path::new("/from/flag"));
        assert_eq!(settings.state, Path::new("/state"));
        assert_eq!(settings.plaintext, Listen::Off);
        assert_eq!(settings.secure, Listen::At(([127, 0, 0, 1], 2).into()));
        assert_eq!(settings.monitoring, Listen::At(([127, 0, 0, 1], 15014).into()));
        for (text, part) in [("dirr: /x", "dirr"), ("secure-addr: everywhere", "everywhere")] {
            std::fs::write(&path, text).unwrap();
            let args = StandaloneArgs { config: Some(path.clone()), ..StandaloneArgs::default() };
            assert!(format!("{:#}", args.settings().unwrap_err()).contains(part));
        }
        assert!(StandaloneArgs::default().settings().is_err());
    }
}
