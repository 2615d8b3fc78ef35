//! Where the mesh is written: a folder of files or a Kubernetes API server. Writes as users, kubelets and controllers do;
//! reads nothing back.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Instant;

use anyhow::{Context as _, Result, bail};
use kube::Client;
use kube::config::{Config, KubeConfigOptions, Kubeconfig};
use serde_json::{Value, json};
use tokio::sync::Semaphore;
use tokio::task::JoinSet;

/// Writes under way at once.
const PARALLEL: usize = 16;
/// Field manager of everything written.
const MANAGER: &str = "countersign-bench";

/// A place for objects.
#[derive(Clone)]
pub enum Store {
    /// One file per object.
    Files(PathBuf),
    Kubernetes(Client),
}

impl std::fmt::Debug for Store {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Files(path) => f.debug_tuple("Files").field(path).finish(),
            Self::Kubernetes(_) => f.debug_struct("Kubernetes").finish_non_exhaustive(),
        }
    }
}

impl Store {
    /// The API server that a kubeconfig file names.
    ///
    /// # Errors
    /// If the file cannot be used.
    pub async fn kubernetes(kubeconfig: &Path) -> Result<Self> {
        let kubeconfig = Kubeconfig::read_from(kubeconfig)?;
        let config = Config::from_custom_kubeconfig(kubeconfig, &KubeConfigOptions::default()).await?;
        Ok(Self::Kubernetes(Client::try_from(config)?))
    }

    /// Creates every object of every round.
    ///
    /// # Errors
    /// What could not be written.
    pub async fn create(&self, rounds: Vec<Vec<Value>>) -> Result<()> {
        let pool = Arc::new(Semaphore::new(PARALLEL));
        for round in rounds {
            let mut tasks = JoinSet::new();
            for object in round {
                let permit = pool.clone().acquire_owned().await?;
                let store = self.clone();
                tasks.spawn(async move {
                    let _permit = permit;
                    store.put(&object).await
                });
            }
            while let Some(done) = tasks.join_next().await {
                done??;
            }
        }
        Ok(())
    }

    /// Creates or replaces an object, its status too. The moment at which the last of its writes was answered; for files,
    /// at which rename returned.
    ///
    /// # Errors
    /// What could not be written, naming the object.
    pub async fn put(&self, object: &Value) -> Result<Instant> {
        let written = match self {
            Self::Files(folder) => save(folder, object),
            Self::Kubernetes(client) => apply(client, object).await,
        };
        written.with_context(|| format!("{} {}", object["kind"], object["metadata"]["name"]))
    }

    /// Deletes an object at once; no error if it is not there.
    ///
    /// # Errors
    /// What could not be deleted.
    pub async fn delete(&self, object: &Value) -> Result<()> {
        match self {
            Self::Files(folder) => match std::fs::remove_file(file(folder, object)?) {
                Err(error) if error.kind() != std::io::ErrorKind::NotFound => Err(error.into()),
                _ => Ok(()),
            },
            Self::Kubernetes(client) => {
                let options = serde_json::to_vec(&json!({"gracePeriodSeconds": 0}))?;
                let request = http::Request::delete(path(object)?)
                    .header("content-type", "application/json")
                    .body(options)?;
                match client.request_text(request).await {
                    Err(kube::Error::Api(status)) if status.code == 404 => Ok(()),
                    other => {
                        other?;
                        Ok(())
                    }
                }
            }
        }
    }
}

fn file(folder: &Path, object: &Value) -> Result<PathBuf> {
    let text = |value: &Value| value.as_str().map(str::to_lowercase);
    let kind = text(&object["kind"]).context("a kind")?;
    let name = text(&object["metadata"]["name"]).context("a name")?;
    let namespace = text(&object["metadata"]["namespace"]).unwrap_or_else(|| "cluster".to_owned());
    Ok(folder.join(format!("{namespace}.{kind}.{name}.yaml")))
}

/// Whole or not at all, as editors do.
fn save(folder: &Path, object: &Value) -> Result<Instant> {
    let path = file(folder, object)?;
    let name = path.file_name().context("a file has a name")?.to_string_lossy();
    let new = path.with_file_name(format!(".{name}.new"));
    // JSON is YAML.
    std::fs::write(&new, serde_json::to_vec(object)?)?;
    std::fs::rename(&new, &path)?;
    Ok(Instant::now())
}

async fn apply(client: &Client, object: &Value) -> Result<Instant> {
    let path = path(object)?;
    let mut object = object.clone();
    let status = object.as_object_mut().and_then(|fields| fields.remove("status"));
    if object["kind"] == "Service"
        && let Some(spec) = object["spec"].as_object_mut()
    {
        // The API server gives addresses.
        spec.remove("clusterIP");
    }
    let request = http::Request::patch(format!("{path}?fieldManager={MANAGER}&force=true"))
        .header("content-type", "application/apply-patch+yaml")
        .body(serde_json::to_vec(&object)?)?;
    client.request_text(request).await?;
    if let Some(status) = status {
        let request = http::Request::patch(format!("{path}/status"))
            .header("content-type", "application/merge-patch+json")
            .body(serde_json::to_vec(&json!({"status": status}))?)?;
        client.request_text(request).await?;
    }
    Ok(Instant::now())
}

/// Where the API server has an object.
fn path(object: &Value) -> Result<String> {
    let api = object["apiVersion"].as_str().context("an apiVersion")?;
    let plural = match object["kind"].as_str().context("a kind")? {
        "Namespace" => "namespaces",
        "ServiceAccount" => "serviceaccounts",
        "Service" => "services",
        "EndpointSlice" => "endpointslices",
        "Pod" => "pods",
        "AuthorizationPolicy" => "authorizationpolicies",
        "PeerAuthentication" => "peerauthentications",
        "Sidecar" => "sidecars",
        other => bail!("no path is known for a {other}"),
    };
    let root = if api.contains('/') { "apis" } else { "api" };
    let name = object["metadata"]["name"].as_str().context("a name")?;
    Ok(match object["metadata"]["namespace"].as_str() {
        Some(namespace) => format!("/{root}/{api}/namespaces/{namespace}/{plural}/{name}"),
        None => format!("/{root}/{api}/{plural}/{name}"),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn objects_have_a_path_and_a_file_of_their_own() {
        let policy = json!({"apiVersion": "security.istio.io/v1", "kind": "AuthorizationPolicy",
                            "metadata": {"name": "a", "namespace": "n"}});
        assert_eq!(path(&policy).unwrap(), "/apis/security.istio.io/v1/namespaces/n/authorizationpolicies/a");
        let namespace = json!({"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": "n"}});
        assert_eq!(path(&namespace).unwrap(), "/api/v1/namespaces/n");
        let files = [&policy, &namespace].map(|object| file(Path::new("/d"), object).unwrap());
        assert_eq!(
            files,
            ["/d/n.authorizationpolicy.a.yaml", "/d/cluster.namespace.n.yaml"].map(PathBuf::from)
        );
        assert!(path(&json!({"apiVersion": "v1", "kind": "Secret", "metadata": {"name": "s"}})).is_err());
    }

    #[tokio::test]
    async fn files_are_replaced_as_a_whole_and_removed() {
        let folder = tempfile::tempdir().unwrap();
        let store = Store::Files(folder.path().to_owned());
        let object = |label: &str| {
            json!({"apiVersion": "v1", "kind": "Namespace",
                                          "metadata": {"name": "n", "labels": {"a": label}}})
        };
        store.put(&object("1")).await.unwrap();
        store.put(&object("2")).await.unwrap();
        let names: Vec<_> =
            std::fs::read_dir(folder.path()).unwrap().map(|e| e.unwrap().file_name()).collect();
        assert_eq!(names, ["cluster.namespace.n.yaml"]);
        let text = std::fs::read(folder.path().join(&names[0])).unwrap();
        assert_eq!(serde_json::from_slice::<Value>(&text).unwrap(), object("2"));
        store.delete(&object("2")).await.unwrap();
        store.delete(&object("2")).await.unwrap();
        assert_eq!(std::fs::read_dir(folder.path()).unwrap().count(), 0);
    }
}
