//! Where the process's token and the roots come from.

use std::{
    io::Read,
    path::{Path, PathBuf},
    pin::Pin,
    time::Duration,
};

use k8s_openapi::api::{
    authentication::v1::{TokenRequest, TokenRequestSpec},
    core::v1::{ConfigMap, ServiceAccount},
};
use kube::{
    Api, Client,
    api::PostParams,
    runtime::watcher::{self, watch_object},
};
use spiffe::{BundleError, TrustBundle};
use tokio::time::Instant;
use tokio_stream::{Stream, StreamExt as _};
use zeroize::Zeroizing;

use crate::token::{AUDIENCE, MAX_TOKEN_BYTES};

/// Istio's ConfigMap of roots and its key (semantics §6.7).
const CONFIG_MAP: &str = "istio-ca-root-cert";
const KEY: &str = "root-cert.pem";
/// Life of a token that is asked for.
const TOKEN_SECONDS: i64 = 3600;
/// How often a file of roots is looked at.
const LOOK: Duration = Duration::from_secs(1);
/// Pause after a watch failed.
const PAUSE: Duration = Duration::from_secs(1);
/// For a request to the API server.
const TIMEOUT: Duration = Duration::from_secs(5);
/// Longest file of roots in bytes.
const MAX_ROOTS: u64 = 256 * 1024;

/// Why there is no token, or are no roots.
#[derive(Debug, thiserror::Error)]
pub enum SourceError {
    #[error("cannot read {}", path.display())]
    File { path: PathBuf, source: std::io::Error },
    #[error("{} holds no token", .0.display())]
    NoToken(PathBuf),
    #[error("the API server gives no token")]
    Request(#[source] kube::Error),
    #[error("the API server does not answer in time")]
    Timeout,
    #[error("the API server's answer holds no token")]
    Empty,
    #[error("the ConfigMap {CONFIG_MAP} cannot be watched")]
    Watch(#[source] Box<watcher::Error>),
    #[error("there is no ConfigMap {CONFIG_MAP} in the namespace {0}")]
    NoConfigMap(String),
    #[error("{0} holds no roots")]
    Roots(String, #[source] BundleError),
}

/// The process's own service-account token, for the audience `istio-ca`.
#[derive(Clone)]
pub enum TokenSource {
    /// A projected token, replaced by the kubelet in time; read anew each time.
    File(PathBuf),
    /// Asked of the API server, outside a cluster. Needs the right to create `serviceaccounts/token`.
    Request { client: Client, namespace: String, service_account: String },
}

impl std::fmt::Debug for TokenSource {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::File(path) => f.debug_tuple("File").field(path).finish(),
            Self::Request { .. } => f.debug_struct("Request").finish_non_exhaustive(),
        }
    }
}

impl TokenSource {
    /// The token.
    pub async fn read(&self) -> Result<Zeroizing<String>, SourceError> {
        match self {
            Self::File(path) => read_token(path),
            Self::Request { client, namespace, service_account } => {
                let accounts: Api<ServiceAccount> = Api::namespaced(client.clone(), namespace);
                let spec = TokenRequestSpec {
                    audiences: vec![AUDIENCE.to_owned()],
                    expiration_seconds: Some(TOKEN_SECONDS),
                    ..TokenRequestSpec::default()
                };
                let request = TokenRequest { spec, ..TokenRequest::default() };
                let params = PostParams::default();
                let answer = accounts.create_token_request(service_account, &params, &request);
                let answer = tokio::time::timeout(TIMEOUT, answer).await.map_err(|_| SourceError::Timeout)?;
                let status = answer.map_err(SourceError::Request)?.status.ok_or(SourceError::Empty)?;
                Ok(Zeroizing::new(status.token))
            }
        }
    }
}

/// The token in `path`, without the white space around it.
pub fn read_token(path: &Path) -> Result<Zeroizing<String>, SourceError> {
    let error = |source| SourceError::File { path: path.to_owned(), source };
    let file = std::fs::File::open(path).map_err(error)?;
    // Sized once: a string that grows leaves unwiped copies behind.
    let mut text = Zeroizing::new(String::with_capacity(MAX_TOKEN_BYTES + 2));
    file.take(MAX_TOKEN_BYTES as u64 + 1).read_to_string(&mut text).map_err(error)?;
    match text.trim() {
        "" => Err(SourceError::NoToken(path.to_owned())),
        _ if text.len() > MAX_TOKEN_BYTES => Err(SourceError::NoToken(path.to_owned())),
        token => Ok(Zeroizing::new(token.to_owned())),
    }
}

/// Where the trusted roots are.
#[derive(Clone)]
pub enum RootSource {
    /// PEM, followed.
    File(PathBuf),
    /// The ConfigMap `istio-ca-root-cert` in `namespace`, followed.
    ConfigMap { client: Client, namespace: String },
}

impl std::fmt::Debug for RootSource {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::File(path) => f.debug_tuple("File").field(path).finish(),
            Self::ConfigMap { namespace, .. } => f.debug_tuple("ConfigMap").field(namespace).finish(),
        }
    }
}

type Maps = Pin<Box<dyn Stream<Item = watcher::Result<Option<ConfigMap>>> + Send>>;

/// Roots as they come.
pub(super) enum Following {
    File { path: PathBuf, seen: Option<Result<Vec<u8>, std::io::ErrorKind>> },
    ConfigMap { maps: Maps, namespace: String, next: Instant },
}

impl RootSource {
    pub(super) fn follow(&self) -> Following {
        match self {
            Self::File(path) => Following::File { path: path.clone(), seen: None },
            Self::ConfigMap { client, namespace } => Following::ConfigMap {
                maps: Box::pin(watch_object(Api::namespaced(client.clone(), namespace), CONFIG_MAP)),
                namespace: namespace.clone(),
                next: Instant::now(),
            },
        }
    }
}

impl Following {
    /// The roots after a change, or why there are none. May be dropped and called again.
    pub(super) async fn next(&mut self) -> Result<TrustBundle, SourceError> {
        match self {
            Self::File { path, seen } => loop {
                let read = read_roots(path);
                let new = read.as_ref().map(Clone::clone).map_err(std::io::Error::kind);
                if seen.as_ref() != Some(&new) {
                    *seen = Some(new);
                    let text = read.map_err(|source| SourceError::File { path: path.clone(), source })?;
                    return roots(&path.display().to_string(), &text);
                }
                tokio::time::sleep(LOOK).await;
            },
            Self::ConfigMap { maps, namespace, next } => {
                tokio::time::sleep_until(*next).await;
                match maps.next().await {
                    Some(Ok(Some(map))) => {
                        let text = map.data.and_then(|mut data| data.remove(KEY)).unwrap_or_default();
                        roots(CONFIG_MAP, text.as_bytes())
                    }
                    Some(Ok(None)) => Err(SourceError::NoConfigMap(namespace.clone())),
                    Some(Err(error)) => {
                        *next = Instant::now() + PAUSE;
                        Err(SourceError::Watch(Box::new(error)))
                    }
                    // The stream has no end.
                    None => std::future::pending().await,
                }
            }
        }
    }
}

fn read_roots(path: &Path) -> std::io::Result<Vec<u8>> {
    let mut text = Vec::new();
    std::fs::File::open(path)?.take(MAX_ROOTS).read_to_end(&mut text)?;
    Ok(text)
}

fn roots(name: &str, text: &[u8]) -> Result<TrustBundle, SourceError> {
    TrustBundle::from_pem(text).map_err(|error| SourceError::Roots(name.to_owned(), error))
}
