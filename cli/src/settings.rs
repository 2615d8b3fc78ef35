//! What the processes' settings have in common: how a configuration file is read, and what is not told.

use std::path::{Path, PathBuf};
use std::str::FromStr;

use anyhow::{Context, Result, bail};
use serde::Deserialize;
use serde::de::DeserializeOwned;
use source::kubernetes::MeshSource;

/// Reads a configuration file; an empty one says nothing.
///
/// # Errors
/// If it cannot be read, or holds a key or value that `T` does not know.
pub(crate) fn read<T: DeserializeOwned + Default>(path: &Path) -> Result<T> {
    let text = std::fs::read_to_string(path).with_context(|| path.display().to_string())?;
    if text.trim().is_empty() {
        return Ok(T::default());
    }
    serde_yaml::from_str(&text).with_context(|| path.display().to_string())
}

/// The namespace that a process of the control plane runs in.
pub(crate) fn own_namespace(told: Option<String>) -> String {
    let pod = || std::env::var("POD_NAMESPACE").ok().filter(|namespace| !namespace.is_empty());
    told.or_else(pod).unwrap_or_else(|| "istio-system".to_owned())
}

/// The revision that a process of the control plane is of.
pub(crate) fn own_revision(told: Option<String>) -> String {
    told.filter(|name| !name.is_empty()).unwrap_or_else(|| crds::DEFAULT_REVISION.to_owned())
}

/// `NAMESPACE/NAME`.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
#[serde(try_from = "String")]
pub(crate) struct ConfigMapName {
    namespace: String,
    name: String,
}

impl FromStr for ConfigMapName {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        match text.split_once('/') {
            Some((namespace, name)) if !namespace.is_empty() && !name.is_empty() && !name.contains('/') => {
                Ok(Self { namespace: namespace.to_owned(), name: name.to_owned() })
            }
            _ => Err(format!("{text:?} is not NAMESPACE/NAME")),
        }
    }
}

impl TryFrom<String> for ConfigMapName {
    type Error = String;

    fn try_from(text: String) -> Result<Self, String> {
        text.parse()
    }
}

/// A ConfigMap or a file, as far as either is told.
pub(crate) type Mesh = (Option<ConfigMapName>, Option<PathBuf>);

/// Where the mesh configuration is. A flag of either form beats the file's of the other; where nothing is told it is the
/// ConfigMap `istio` of `namespace`.
///
/// # Errors
/// If both forms are told in the same place.
pub(crate) fn mesh_source(flags: Mesh, file: Mesh, namespace: &str) -> Result<MeshSource> {
    Ok(match if flags == (None, None) { file } else { flags } {
        (Some(_), Some(_)) => bail!("mesh-config-map and mesh-config exclude each other"),
        (Some(ConfigMapName { namespace, name }), None) => MeshSource::ConfigMap { namespace, name },
        (None, Some(path)) => MeshSource::File(path),
        (None, None) => MeshSource::ConfigMap { namespace: namespace.to_owned(), name: "istio".to_owned() },
    })
}
