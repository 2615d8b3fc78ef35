//! The CA's keys in the cluster: read or made once, followed, and changed step by step. Every replica signs with what the
//! Secret says, and any of them may take the next step: the Secret's version lets only one through.

use std::{collections::BTreeMap, sync::Arc, time::Duration};

use k8s_openapi::api::core::v1::Secret;
use kube::{Api, Client, api::PostParams, runtime::watcher::Event};
use spiffe::TrustDomain;
use time::OffsetDateTime;
use tokio::sync::watch;

use super::{
    follow::Following,
    material::{Material, MaterialError, Origin, State},
    rotation::{Timing, Wish, gentler, step},
};
use crate::{Issuer, Lifetimes};

/// Our Secret.
pub const SECRET: &str = "countersign-ca";
/// The operator's, as Istio has it.
pub const PLUGGED: &str = "cacerts";
/// Annotation of our Secret that asks for a new root: `soon`, or `now` to skip the grace.
pub const ROTATE: &str = "countersign.io/rotate";
/// How often the clock is looked at.
const TICK: Duration = Duration::from_millis(500);
/// For one request.
const TIMEOUT: Duration = Duration::from_secs(10);
/// Replicas that start at once make each other read again.
const ATTEMPTS: usize = 5;

/// Why there are no keys.
#[derive(Debug, thiserror::Error)]
pub enum KeysError {
    #[error("the Secret {0} cannot be read or written")]
    Secret(&'static str, #[source] kube::Error),
    #[error("the Secret {0} cannot be used")]
    Material(&'static str, #[source] MaterialError),
    #[error("the API server did not answer in time about the Secret {0}")]
    Timeout(&'static str),
    #[error("the Secret {SECRET} comes and goes")]
    Restless,
}

/// The keys of a cluster's CA.
pub struct Keys {
    secrets: Api<Secret>,
    namespace: String,
    domain: TrustDomain,
    timing: Timing,
    issuer: Arc<Issuer>,
    state: State,
    /// The Secret's resource version.
    version: Option<String>,
    /// What the operator asked for by annotation.
    rotate: Option<bool>,
    plugged: Option<Material>,
    /// Others' notes on the Secret.
    annotations: BTreeMap<String, String>,
    labels: BTreeMap<String, String>,
    /// The last write failed.
    failing: bool,
    bundle: watch::Sender<Arc<str>>,
}

impl std::fmt::Debug for Keys {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Keys").field("domain", &self.domain).finish_non_exhaustive()
    }
}

impl Keys {
    /// Reads the keys for `domain` in `namespace`; makes them if there are none: from the Secret `cacerts` if that is
    /// there. Replicas that start at once get the same.
    pub async fn open(
        client: Client,
        namespace: &str,
        domain: &TrustDomain,
        lifetimes: Lifetimes,
        grace: time::Duration,
    ) -> Result<Self, KeysError> {
        let secrets: Api<Secret> = Api::namespaced(client, namespace);
        let (state, version) = read_or_create(&secrets, namespace, domain).await?;
        let unusable = |error| KeysError::Material(SECRET, error);
        let authority = state.signer.authority().map_err(unusable)?;
        let issuer = Issuer::new(domain.clone(), authority, lifetimes);
        issuer.rotate(state.signer.authority().map_err(unusable)?, &state.others().map_err(unusable)?);
        let bundle = watch::Sender::new(state.bundle().map_err(unusable)?.to_pem().into());
        let timing = Timing { grace, leaf: lifetimes.workload_max };
        Ok(Self {
            secrets,
            namespace: namespace.to_owned(),
            domain: domain.clone(),
            timing,
            issuer,
            state,
            version,
            rotate: None,
            plugged: None,
            annotations: BTreeMap::new(),
            labels: BTreeMap::new(),
            failing: false,
            bundle,
        })
    }

    /// Signs with these keys, also after they changed.
    pub fn issuer(&self) -> Arc<Issuer> {
        Arc::clone(&self.issuer)
    }

    /// What everybody is to trust, as PEM.
    pub fn bundle(&self) -> watch::Receiver<Arc<str>> {
        self.bundle.subscribe()
    }

    /// Follows both Secrets and changes roots step by step, for ever. `published` holds the bundle that every namespace
    /// has; `None` while not all have the same.
    pub async fn run(mut self, mut published: watch::Receiver<Option<Arc<str>>>) -> std::convert::Infallible {
        let named = |name: &str| format!("metadata.name={name}");
        let mut own = Following::new(self.secrets.clone(), &named(SECRET), "Secret countersign-ca");
        let mut plugged = Following::new(self.secrets.clone(), &named(PLUGGED), "Secret cacerts");
        let (mut seen, mut known) = (false, false);
        // The signer that waits for its publication must not be forgotten because nobody changes anything.
        let mut tick = tokio::time::interval(TICK);
        tick.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
        loop {
            tokio::select! {
                event = own.next() => match event {
                    Event::Init => seen = false,
                    Event::InitApply(secret) => {
                        seen = true;
                        self.take(&secret);
                    }
                    // Our own writes come back, perhaps after the next one.
                    Event::Apply(secret) if self.is_older(&secret) => {}
                    Event::Apply(secret) => {
                        let foreign = State::from_secret(&secret, &self.domain)
                            .ok()
                            .and_then(|state| gentler(&self.state, &state));
                        match foreign {
                            Some(gentler) => self.soften(&secret, gentler).await,
                            None => self.take(&secret),
                        }
                    }
                    Event::Delete(_) => self.restore().await,
                    Event::InitDone if !seen => self.restore().await,
                    Event::InitDone => {}
                },
                event = plugged.next() => match event {
                    Event::Init => {}
                    Event::Apply(secret) | Event::InitApply(secret) => self.plug(&secret),
                    Event::Delete(_) => self.plugged = None,
                    Event::InitDone => known = true,
                },
                Ok(()) = published.changed() => {}
                _ = tick.tick() => {}
            }
            if known {
                let everywhere = published.borrow_and_update().clone();
                let all = everywhere.as_ref() == Some(&*self.bundle.borrow());
                self.advance(all).await;
            }
        }
    }

    /// Takes over what the Secret says. What cannot be used changes nothing.
    fn take(&mut self, secret: &Secret) {
        self.remember(secret);
        let adopted = State::from_secret(secret, &self.domain).and_then(|state| self.adopt(state));
        if let Err(error) = adopted {
            let error = &error as &dyn std::error::Error;
            tracing::error!(error, secret = SECRET, "the Secret cannot be used: the last keys stay");
        }
    }

    /// Somebody has put other keys into the Secret: a hand, or a replica that started just when it was deleted. What would
    /// cut off every workload is made a change of roots like any other.
    async fn soften(&mut self, secret: &Secret, gentler: State) {
        tracing::warn!(
            secret = SECRET,
            "the Secret has other keys now: they sign once everybody trusts them"
        );
        self.remember(secret);
        self.write(gentler).await;
    }

    fn remember(&mut self, secret: &Secret) {
        let metadata = &secret.metadata;
        self.version.clone_from(&metadata.resource_version);
        let mut annotations = metadata.annotations.clone().unwrap_or_default();
        self.rotate = annotations.remove(ROTATE).map(|when| when == "now");
        self.annotations = annotations;
        self.labels = metadata.labels.clone().unwrap_or_default();
    }

    fn is_older(&self, secret: &Secret) -> bool {
        let number =
            |version: &Option<String>| version.as_ref().and_then(|version| version.parse::<u128>().ok());
        number(&secret.metadata.resource_version) < number(&self.version)
    }

    fn adopt(&mut self, state: State) -> Result<(), MaterialError> {
        if state == self.state {
            return Ok(());
        }
        let (authority, others, bundle) = (state.signer.authority()?, state.others()?, state.bundle()?);
        tracing::info!(
            target: "audit",
            roots = bundle.roots().len(), new_signer = state.signer != self.state.signer,
            successor = state.next.is_some(), origin = ?state.origin, "the certificate authority's keys changed"
        );
        self.issuer.rotate(authority, &others);
        self.bundle.send_replace(bundle.to_pem().into());
        self.state = state;
        Ok(())
    }

    fn plug(&mut self, secret: &Secret) {
        match Material::plugged(secret, &self.domain) {
            Ok(material) => self.plugged = Some(material),
            Err(error) => {
                let error = &error as &dyn std::error::Error;
                tracing::error!(error, secret = PLUGGED, "the Secret cannot be used: the last keys stay");
            }
        }
    }

    /// Our Secret is gone: what we sign with is put back, since another root would cut off every workload.
    async fn restore(&mut self) {
        tracing::warn!(secret = SECRET, "the Secret is gone: putting it back");
        self.version = None;
        self.write(self.state.clone()).await;
    }

    async fn advance(&mut self, published: bool) {
        let wish = match (&self.plugged, self.rotate) {
            (Some(material), rotate) => {
                if rotate.is_some() {
                    tracing::warn!(
                        "a plugged certificate authority is changed by its Secret {PLUGGED}, not by rotation"
                    );
                }
                Wish::Plugged(material.clone())
            }
            (None, Some(at_once)) => Wish::New { at_once },
            (None, None) => Wish::Keep,
        };
        let now = OffsetDateTime::now_utc();
        match step(&self.state, wish, published, &self.domain, now, self.timing) {
            Ok(Some(state)) => self.write(state).await,
            // The wish is fulfilled already, or cannot be: it is taken away.
            Ok(None) if self.rotate.is_some() => self.write(self.state.clone()).await,
            Ok(None) => {}
            Err(error) => {
                tracing::error!(error = &error as &dyn std::error::Error, "the roots cannot be changed");
            }
        }
    }

    /// Writes `state` and takes it over, unless another replica was faster: then the watch brings its word.
    async fn write(&mut self, state: State) {
        let secret = state.to_secret(&self.namespace, SECRET, self.version.as_deref()).map(|mut secret| {
            // What others have noted on it stays.
            secret.metadata.annotations = Some(self.annotations.clone());
            let labels = secret.metadata.labels.get_or_insert_default();
            for (key, value) in &self.labels {
                labels.entry(key.clone()).or_insert_with(|| value.clone());
            }
            secret
        });
        let written = match secret {
            Ok(secret) if self.version.is_some() => {
                in_time(self.secrets.replace(SECRET, &PostParams::default(), &secret)).await
            }
            Ok(secret) => in_time(self.secrets.create(&PostParams::default(), &secret)).await,
            Err(error) => Err(KeysError::Material(SECRET, error)),
        };
        match written {
            Ok(secret) => {
                self.failing = false;
                self.take(&secret);
            }
            Err(KeysError::Secret(_, kube::Error::Api(status))) if matches!(status.code, 404 | 409) => {}
            // Once a series: it is tried again at every tick.
            Err(error) if !std::mem::replace(&mut self.failing, true) => {
                tracing::error!(error = &error as &dyn std::error::Error, "the keys cannot be written");
            }
            Err(_) => {}
        }
    }
}

async fn in_time<T>(request: impl Future<Output = Result<T, kube::Error>>) -> Result<T, KeysError> {
    let answer = tokio::time::timeout(TIMEOUT, request).await.map_err(|_| KeysError::Timeout(SECRET))?;
    answer.map_err(|error| KeysError::Secret(SECRET, error))
}

async fn read_or_create(
    secrets: &Api<Secret>,
    namespace: &str,
    domain: &TrustDomain,
) -> Result<(State, Option<String>), KeysError> {
    for _ in 0..ATTEMPTS {
        if let Some(secret) = in_time(secrets.get_opt(SECRET)).await? {
            let state = State::from_secret(&secret, domain);
            return Ok((
                state.map_err(|e| KeysError::Material(SECRET, e))?,
                secret.metadata.resource_version,
            ));
        }
        let state = match in_time(secrets.get_opt(PLUGGED)).await? {
            Some(secret) => {
                let plugged = Material::plugged(&secret, domain);
                State::new(plugged.map_err(|e| KeysError::Material(PLUGGED, e))?, Origin::Plugged)
            }
            None => {
                let own = Material::create(domain, OffsetDateTime::now_utc());
                State::new(own.map_err(|e| KeysError::Material(SECRET, e))?, Origin::Own)
            }
        };
        let secret = state.to_secret(namespace, SECRET, None).map_err(|e| KeysError::Material(SECRET, e))?;
        match in_time(secrets.create(&PostParams::default(), &secret)).await {
            Ok(secret) => {
                tracing::info!(target: "audit", secret = SECRET, namespace, "made the certificate authority's keys");
                return Ok((state, secret.metadata.resource_version));
            }
            // Another replica was faster: its root is the root.
            Err(KeysError::Secret(_, kube::Error::Api(status))) if status.code == 409 => {}
            Err(error) => return Err(error),
        }
    }
    Err(KeysError::Restless)
}
