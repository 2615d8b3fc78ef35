//! What questions are asked of: the objects of files or of a cluster, resolved as the control plane resolves them. Keys of
//! RequestAuthentications are taken to be there, for the tokens of a described request are taken to be good.

use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context, Result, bail};
use controller::offline::Offline;
use mesh::MeshConfig;
use source::Change;
use source::kubernetes::{Counters, MeshSource, Settings, watch};
use tokio::sync::mpsc;
use tokio::time::Instant;

use crate::cluster::ClusterArgs;
use crate::translate::input::Input;

/// For the next news of the full list of everything.
const PATIENCE: Duration = Duration::from_secs(15);

/// Flags of every command that asks about policies.
#[derive(Clone, Debug, Default, clap::Args)]
pub(crate) struct WorldArgs {
    /// File or folder with policies, workloads and services; `-` is standard input; repeatable. Without it the cluster
    /// is asked
    #[arg(short = 'f', long = "file", value_name = "FILE|DIR", conflicts_with_all = ["kubeconfig", "context"])]
    pub(crate) files: Vec<PathBuf>,
    /// MeshConfig file, with --file [default: Istio's defaults]
    #[arg(long, env = "COUNTERSIGN_MESH_CONFIG", value_name = "FILE")]
    pub(crate) mesh_config: Option<PathBuf>,
    #[command(flatten)]
    pub(crate) cluster: ClusterArgs,
    /// Namespace of the control plane, whose ConfigMap `istio` has the mesh configuration
    #[arg(long, default_value = "istio-system", value_name = "NAMESPACE")]
    pub(crate) control_plane_namespace: String,
}

/// Everything, resolved on demand.
#[derive(Debug)]
pub(crate) struct World {
    pub(crate) offline: Offline,
    /// Nothing had to be read as closed.
    pub(crate) understood: bool,
}

impl World {
    pub(crate) fn of(input: Input) -> Self {
        let Input { mesh, objects, origins: _, findings: _, understood } = input;
        Self { offline: Offline::assuming_keys(mesh, objects), understood }
    }

    pub(crate) fn mesh(&self) -> &MeshConfig {
        self.offline.mesh()
    }
}

impl WorldArgs {
    /// # Errors
    /// If a file cannot be read, or the cluster does not tell everything in time.
    pub(crate) async fn read(&self) -> Result<World> {
        let mut input = Input::with(self.mesh_config.as_deref())?;
        self.fill(&mut input).await?;
        Ok(World::of(input))
    }

    /// Adds all there is to `input`.
    ///
    /// # Errors
    /// As [`Self::read`].
    pub(crate) async fn fill(&self, input: &mut Input) -> Result<()> {
        let Self { files, mesh_config: _, cluster, control_plane_namespace } = self;
        if files.is_empty() {
            from_cluster(input, cluster, control_plane_namespace).await?;
        }
        for file in files {
            input.add(file)?;
        }
        Ok(())
    }
}

/// The same full list that the control plane starts with.
async fn from_cluster(input: &mut Input, cluster: &ClusterArgs, namespace: &str) -> Result<()> {
    let cluster = cluster.connect(namespace).await.context("name files with -f, or a cluster")?;
    let settings = Settings {
        client: cluster.client,
        mesh: MeshSource::ConfigMap { namespace: namespace.to_owned(), name: "istio".to_owned() },
        revision: crds::DEFAULT_REVISION.into(),
        counters: Arc::new(Counters::default()),
    };
    let (sender, mut changes) = mpsc::channel(1024);
    // Ends when nobody listens any more, at the end of this function.
    let _watch = tokio::spawn(watch(settings, sender));
    let mut waiting = None;
    let mut deadline = Instant::now() + PATIENCE;
    while let Ok(Some(change)) = tokio::time::timeout_at(deadline, changes.recv()).await {
        match change {
            Change::Synced => return Ok(()),
            // That something is waited for is no news of it.
            Change::Frozen(reason) => {
                waiting = reason;
                continue;
            }
            Change::Mesh(mesh) => input.mesh = *mesh,
            other => input.change(other),
        }
        deadline = Instant::now() + PATIENCE;
    }
    let reason = waiting.unwrap_or_else(|| "it does not say why".to_owned());
    bail!("the cluster did not tell everything: {reason}")
}
