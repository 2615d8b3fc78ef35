//! Whether a pod lives, asked of the API server when it matters.

use std::{future::Future, pin::Pin, time::Duration};

use k8s_openapi::api::core::v1::Pod;
use kube::{Api, Client, api::ListParams};

/// For one question.
const TIMEOUT: Duration = Duration::from_secs(5);

/// What counts of a pod.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PodFacts {
    pub uid: String,
    pub service_account: String,
    /// Neither succeeded nor failed: its containers may run.
    pub lives: bool,
}

/// The API server could not be asked.
pub type NoPods = Box<dyn std::error::Error + Send + Sync>;

/// An answer under way.
pub type Asking<'a, T> = Pin<Box<dyn Future<Output = Result<T, NoPods>> + Send + 'a>>;

/// Who knows the pods: the API server, or a test's stand-in.
pub trait Pods: Send + Sync + 'static {
    /// The pod of that name; `None` if there is none.
    fn pod<'a>(&'a self, namespace: &'a str, name: &'a str) -> Asking<'a, Option<PodFacts>>;

    /// Whether any pod in `namespace` that lives runs as `service_account`.
    fn service_account_in_use<'a>(&'a self, namespace: &'a str, service_account: &'a str)
    -> Asking<'a, bool>;
}

/// The API server's pods.
#[derive(Clone)]
pub struct KubePods(Client);

impl std::fmt::Debug for KubePods {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("KubePods").finish_non_exhaustive()
    }
}

impl KubePods {
    /// Needs the rights to get and list pods.
    pub fn new(client: Client) -> Self {
        Self(client)
    }

    fn api(&self, namespace: &str) -> Api<Pod> {
        Api::namespaced(self.0.clone(), namespace)
    }
}

fn facts(pod: Pod) -> PodFacts {
    let Pod { metadata, spec, status } = pod;
    let phase = status.and_then(|status| status.phase);
    PodFacts {
        uid: metadata.uid.unwrap_or_default(),
        service_account: spec.and_then(|spec| spec.service_account_name).unwrap_or_default(),
        lives: !matches!(phase.as_deref(), Some("Succeeded" | "Failed")),
    }
}

async fn in_time<T>(question: impl Future<Output = Result<T, kube::Error>>) -> Result<T, NoPods> {
    Ok(tokio::time::timeout(TIMEOUT, question).await??)
}

impl Pods for KubePods {
    fn pod<'a>(&'a self, namespace: &'a str, name: &'a str) -> Asking<'a, Option<PodFacts>> {
        Box::pin(async move { Ok(in_time(self.api(namespace).get_opt(name)).await?.map(facts)) })
    }

    fn service_account_in_use<'a>(
        &'a self,
        namespace: &'a str,
        service_account: &'a str,
    ) -> Asking<'a, bool> {
        Box::pin(async move {
            // A name with a comma or an equals sign would be read as another question.
            let plain = |byte: u8| byte.is_ascii_alphanumeric() || byte == b'-' || byte == b'.';
            if !service_account.bytes().all(plain) {
                return Ok(false);
            }
            let fields = format!(
                "spec.serviceAccountName={service_account},status.phase!=Succeeded,status.phase!=Failed"
            );
            let one = ListParams::default().fields(&fields).limit(1);
            Ok(!in_time(self.api(namespace).list(&one)).await?.items.is_empty())
        })
    }
}
