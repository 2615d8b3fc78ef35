//! The client of the API server that all of the control plane uses. It does not retry: who asks does.

use std::path::{Path, PathBuf};
use std::time::Duration;

use http::header::{HeaderValue, USER_AGENT};
use kube::config::{KubeConfigOptions, Kubeconfig};
use kube::{Client, Config};

/// How long connecting may take, TLS included.
const CONNECT: Duration = Duration::from_secs(5);
/// How long a request may take to be sent.
const WRITE: Duration = Duration::from_secs(15);

/// Why there is no client.
#[derive(Debug, thiserror::Error)]
pub enum ClientError {
    #[error("{}", path.display())]
    Kubeconfig { path: PathBuf, source: kube::config::KubeconfigError },
    #[error("the pod's service account")]
    InCluster(#[from] kube::config::InClusterError),
    #[error("a client for the API server cannot be made")]
    Client(#[from] kube::Error),
}

/// A client for the API server that `kubeconfig` names, or, with `None`, for that of the cluster that this process runs
/// in, as the pod's service account. Needs the TLS provider of `runtime::tls`.
///
/// Answers have no time limit, as a watch is one long answer: who asks sets one.
///
/// # Errors
/// If the kubeconfig or the service account's files cannot be read. Nothing is connected to yet.
pub async fn client(kubeconfig: Option<&Path>) -> Result<Client, ClientError> {
    let config = match kubeconfig {
        None => Config::incluster()?,
        Some(path) => {
            let error = |source| ClientError::Kubeconfig { path: path.to_owned(), source };
            let file = Kubeconfig::read_from(path).map_err(error)?;
            Config::from_custom_kubeconfig(file, &KubeConfigOptions::default()).await.map_err(error)?
        }
    };
    Ok(Client::try_from(configured(config))?)
}

fn configured(mut config: Config) -> Config {
    config.connect_timeout = Some(CONNECT);
    config.read_timeout = None;
    config.write_timeout = Some(WRITE);
    config.default_retry = false;
    config.headers.push((USER_AGENT, HeaderValue::from_static("countersign")));
    if config.accept_invalid_certs {
        tracing::warn!(
            server = %config.cluster_url,
            "the kubeconfig skips the verification of the API server's certificate: whoever is on the way to it can \
             change every policy"
        );
    }
    if config.cluster_url.scheme_str() == Some("http") {
        tracing::warn!(server = %config.cluster_url, "the API server is asked without TLS");
    }
    config
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_kubeconfig_that_cannot_be_used_is_named() {
        let error = client(Some(Path::new("/nowhere/config"))).await.err().expect("there is none");
        assert_eq!(error.to_string(), "/nowhere/config");
        assert!(std::error::Error::source(&error).is_some());
    }

    #[test]
    fn what_every_client_has() {
        let config = configured(Config::new("https://10.0.0.1:6443".parse().unwrap()));
        assert_eq!((config.connect_timeout, config.read_timeout), (Some(CONNECT), None));
        assert!(!config.default_retry && config.headers.iter().any(|(name, _)| name == USER_AGENT));
    }
}
