//! Keeps the webhooks' certificate in a Secret that all replicas share, and its authorities in the
//! ValidatingWebhookConfiguration and the MutatingWebhookConfiguration, live: whoever changes any of them sees it put
//! right. Knows neither what a certificate looks like nor when it ends: that is [`Keys`]'s.

use std::collections::BTreeMap;
use std::fmt::Debug;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use futures::StreamExt as _;
use futures::stream::BoxStream;
use k8s_openapi::ByteString;
use k8s_openapi::api::admissionregistration::v1::{
    MutatingWebhookConfiguration, ValidatingWebhookConfiguration, WebhookClientConfig,
};
use k8s_openapi::api::core::v1::Secret;
use kube::api::{ObjectMeta, Patch, PatchParams, PostParams};
use kube::runtime::{WatchStreamExt as _, watcher};
use kube::{Api, Client, Resource};
use rand::Rng as _;
use serde::de::DeserializeOwned;
use serde_json::json;

/// Name of the Secret.
pub const SECRET: &str = "countersign-webhook";
/// Passed over to look again, if no watch says anything before: a right to watch may be missing.
const LOOK: Duration = Duration::from_secs(30);
/// First and longest pause after a failure.
const PAUSE: (Duration, Duration) = (Duration::from_millis(100), Duration::from_secs(2));
/// Attempts to write the Secret before another replica's writes are waited out.
const ATTEMPTS: usize = 5;

/// A Secret's data.
pub type Data = BTreeMap<String, Vec<u8>>;

/// The webhook's keys, as bytes in a Secret.
pub trait Keys: Send + Sync + 'static {
    /// What should be stored at `now` instead of `stored`; `None` to leave it. Only called when every authority of
    /// `stored` is known to the API server.
    fn next(&self, stored: Option<&Data>, now: SystemTime) -> Option<Data>;

    /// Puts what is stored into use: the authorities (PEM) that the API server must accept from now on.
    ///
    /// # Errors
    /// Why it cannot be used.
    fn adopt(&self, stored: &Data, now: SystemTime) -> Result<Vec<u8>, String>;
}

/// Where things are.
#[derive(Clone)]
pub struct Settings {
    pub client: Client,
    /// Of the Secret.
    pub namespace: String,
    /// Name of the ValidatingWebhookConfiguration and the MutatingWebhookConfiguration whose every webhook is ours.
    pub configuration: String,
    /// Longest time between two looks; [`LOOK`] if `None`.
    pub look: Option<Duration>,
}

impl Debug for Settings {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Settings")
            .field("namespace", &self.namespace)
            .field("configuration", &self.configuration)
            .finish_non_exhaustive()
    }
}

/// Why a pass could not be finished; the next one begins anew.
#[derive(Debug, thiserror::Error)]
enum Failed {
    #[error("{doing}")]
    Api { doing: &'static str, source: Box<kube::Error> },
    #[error("the Secret was changed by others at each attempt")]
    Contended,
}

/// Never ends. Nothing that fails here is an error of the process: admission goes on with what it has.
pub async fn keep(settings: Settings, keys: Arc<dyn Keys>) {
    let keeper = Keeper::new(&settings, keys);
    let mut changes = keeper.changes();
    let mut pause = PAUSE.0;
    let mut failing = false;
    loop {
        match keeper.pass().await {
            Ok(()) => {
                if failing {
                    tracing::info!("the webhook's certificate is kept again");
                }
                (pause, failing) = (PAUSE.0, false);
                wait(&mut changes, settings.look.unwrap_or(LOOK)).await;
            }
            Err(error) => {
                let cause = std::error::Error::source(&error).map(ToString::to_string);
                if failing {
                    tracing::debug!(%error, cause, "the webhook's certificate cannot be kept");
                } else {
                    tracing::warn!(%error, cause, "the webhook's certificate cannot be kept");
                }
                failing = true;
                tokio::time::sleep(jittered(pause)).await;
                pause = (pause * 2).min(PAUSE.1);
            }
        }
    }
}

fn jittered(pause: Duration) -> Duration {
    pause.mul_f64(rand::rng().random_range(0.75..1.25))
}

/// Until something changed, at most `longest`.
async fn wait(changes: &mut BoxStream<'static, ()>, longest: Duration) {
    // Watches never end; if they did, the looks at intervals would go on.
    let _ = tokio::time::timeout(longest, changes.next()).await;
}

/// A kind of object that names webhooks.
trait Configuration: Resource<DynamicType = ()> + Clone + Debug + DeserializeOwned + Send + 'static {
    fn webhooks(&self) -> Vec<(&str, &WebhookClientConfig)>;
}

impl Configuration for ValidatingWebhookConfiguration {
    fn webhooks(&self) -> Vec<(&str, &WebhookClientConfig)> {
        self.webhooks.iter().flatten().map(|hook| (&*hook.name, &hook.client_config)).collect()
    }
}

impl Configuration for MutatingWebhookConfiguration {
    fn webhooks(&self) -> Vec<(&str, &WebhookClientConfig)> {
        self.webhooks.iter().flatten().map(|hook| (&*hook.name, &hook.client_config)).collect()
    }
}

struct Keeper {
    secrets: Api<Secret>,
    validating: Api<ValidatingWebhookConfiguration>,
    mutating: Api<MutatingWebhookConfiguration>,
    configuration: String,
    keys: Arc<dyn Keys>,
}

impl Keeper {
    fn new(settings: &Settings, keys: Arc<dyn Keys>) -> Self {
        let Settings { client, namespace, configuration, look: _ } = settings;
        Self {
            secrets: Api::namespaced(client.clone(), namespace),
            validating: Api::all(client.clone()),
            mutating: Api::all(client.clone()),
            configuration: configuration.clone(),
            keys,
        }
    }

    /// One item per change of the Secret or a configuration; errors are waited out (and logged) here.
    fn changes(&self) -> BoxStream<'static, ()> {
        let only = |name: &str| watcher::Config::default().fields(&format!("metadata.name={name}"));
        let secret = watcher(self.secrets.clone(), only(SECRET)).default_backoff();
        let validating = watcher(self.validating.clone(), only(&self.configuration)).default_backoff();
        let mutating = watcher(self.mutating.clone(), only(&self.configuration)).default_backoff();
        let told = |event: Result<(), watcher::Error>| async move {
            event.inspect_err(|error| tracing::debug!(%error, "watching the webhook's objects")).ok()
        };
        let secret = secret.map(|event| event.map(drop)).filter_map(told);
        let validating = validating.map(|event| event.map(drop)).filter_map(told);
        let mutating = mutating.map(|event| event.map(drop)).filter_map(told);
        futures::stream::select_all([secret.boxed(), validating.boxed(), mutating.boxed()]).boxed()
    }

    /// Brings everything up to date: what is stored is used and trusted before it is replaced.
    async fn pass(&self) -> Result<(), Failed> {
        for _ in 0..ATTEMPTS {
            let secret = self.secrets.get_opt(SECRET).await.map_err(api("reading the Secret"))?;
            let stored = secret.as_ref().map(data);
            if let Some(stored) = &stored {
                self.publish(stored).await?;
            }
            let Some(next) = self.keys.next(stored.as_ref(), SystemTime::now()) else { return Ok(()) };
            match self.store(secret, &next).await {
                Ok(()) => return self.publish(&next).await,
                Err(kube::Error::Api(status)) if status.code == 409 => {}
                Err(error) => return Err(api("writing the Secret")(error)),
            }
        }
        Err(Failed::Contended)
    }

    /// Creates or replaces the Secret, if nobody else did meanwhile.
    async fn store(&self, old: Option<Secret>, data: &Data) -> Result<(), kube::Error> {
        let data = data.iter().map(|(key, value)| (key.clone(), ByteString(value.clone()))).collect();
        let post = PostParams::default();
        match old {
            Some(old) => {
                self.secrets.replace(SECRET, &post, &Secret { data: Some(data), ..old }).await?;
                tracing::info!("the webhook's certificate was renewed");
            }
            None => {
                let secret = Secret {
                    metadata: ObjectMeta { name: Some(SECRET.to_owned()), ..ObjectMeta::default() },
                    type_: Some("kubernetes.io/tls".to_owned()),
                    data: Some(data),
                    ..Secret::default()
                };
                self.secrets.create(&post, &secret).await?;
                tracing::info!("the webhook's certificate was made");
            }
        }
        Ok(())
    }

    /// Uses what is stored, and has the API server trust it.
    async fn publish(&self, stored: &Data) -> Result<(), Failed> {
        match self.keys.adopt(stored, SystemTime::now()) {
            Ok(bundle) => {
                let bundle = ByteString(bundle);
                self.trust(&self.validating, &bundle).await?;
                self.trust(&self.mutating, &bundle).await
            }
            Err(why) => {
                tracing::warn!(%why, "the webhook's stored certificate cannot be used");
                Ok(())
            }
        }
    }

    async fn trust<K: Configuration>(&self, api_of: &Api<K>, bundle: &ByteString) -> Result<(), Failed> {
        let found =
            api_of.get_opt(&self.configuration).await.map_err(api("reading a webhook's configuration"))?;
        let Some(found) = found else {
            tracing::debug!(name = %self.configuration, kind = %K::kind(&()), "there is no such configuration");
            return Ok(());
        };
        let hooks = found.webhooks();
        let stale = hooks.into_iter().filter(|(_, client)| client.ca_bundle.as_ref() != Some(bundle));
        // The list's merge key is the name: everything else stays as it is.
        let webhooks: Vec<_> =
            stale.map(|(name, _)| json!({"name": name, "clientConfig": {"caBundle": bundle}})).collect();
        if webhooks.is_empty() {
            return Ok(());
        }
        let metadata = json!({"resourceVersion": found.meta().resource_version});
        let patch = Patch::Strategic(json!({"metadata": metadata, "webhooks": webhooks}));
        let patched = api_of.patch(&self.configuration, &PatchParams::default(), &patch).await;
        patched.map_err(api("patching a webhook's configuration"))?;
        tracing::info!(name = %self.configuration, kind = %K::kind(&()), "the API server was told the webhook's authorities");
        Ok(())
    }
}

fn api(doing: &'static str) -> impl Fn(kube::Error) -> Failed {
    move |source| Failed::Api { doing, source: Box::new(source) }
}

fn data(secret: &Secret) -> Data {
    secret.data.iter().flatten().map(|(key, value)| (key.clone(), value.0.clone())).collect()
}
