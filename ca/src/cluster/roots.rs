//! The ConfigMap `istio-ca-root-cert` of every namespace (semantics §6.7): made, kept as it should be, and the word on
//! whether all have the same. Every replica does it; only what differs is written, so they do not disturb each other.

use std::{
    collections::{BTreeMap, BTreeSet, HashMap},
    sync::{
        Arc,
        atomic::{AtomicI64, AtomicU64, Ordering},
    },
    time::{Duration, Instant},
};

use authn::limit::{Limiter, Rate};
use k8s_openapi::api::core::v1::{ConfigMap, Namespace};
use kube::{
    Api, Client,
    api::{Patch, PatchParams},
    runtime::watcher::Event,
};
use sha2::{Digest, Sha256};
use tokio::{sync::watch, task::JoinSet};

use super::follow::Following;

/// Istio's names.
pub const CONFIG_MAP: &str = "istio-ca-root-cert";
pub const KEY: &str = "root-cert.pem";
/// Namespaces that run no workloads (as Istio has it).
const WITHOUT: [&str; 3] = ["kube-public", "kube-node-lease", "local-path-storage"];
const MANAGER: &str = "countersign-ca";
/// Writes under way at once.
const WRITES: usize = 16;
/// For one write.
const TIMEOUT: Duration = Duration::from_secs(5);
/// Until what failed is tried again.
const RETRY: Duration = Duration::from_millis(500);
/// Writes of one namespace: somebody else who keeps writing the same ConfigMap must not make us flood the API server.
const REPAIRS: Rate = Rate { burst: 10, refill: Duration::from_secs(5) };

/// What has happened so far.
#[derive(Debug, Default)]
pub struct RootCounters {
    /// `countersign_ca_root_configmap_writes`.
    pub writes: AtomicU64,
    /// `countersign_ca_root_configmap_failures`.
    pub failures: AtomicU64,
    /// `countersign_ca_root_configmaps_missing`: namespaces whose ConfigMap is not as it should be.
    pub missing: AtomicI64,
}

type Hash = [u8; 32];

fn hash(text: &str) -> Hash {
    Sha256::digest(text).into()
}

/// What is known. No I/O.
#[derive(Debug, Default)]
struct Known {
    /// Namespaces that should have the ConfigMap.
    namespaces: BTreeSet<String>,
    /// Namespace → hash of what its ConfigMap says; `None` if that has no such key.
    maps: BTreeMap<String, Option<Hash>>,
    /// The first full lists have come.
    namespaces_complete: bool,
    maps_complete: bool,
    listing: BTreeSet<String>,
    listing_maps: BTreeMap<String, Option<Hash>>,
}

impl Known {
    fn namespace(&mut self, event: Event<Namespace>) {
        let wanted = |namespace: &Namespace| {
            let ending = namespace.metadata.deletion_timestamp.is_some()
                || namespace
                    .status
                    .as_ref()
                    .is_some_and(|status| status.phase.as_deref() == Some("Terminating"));
            let name = namespace.metadata.name.clone().unwrap_or_default();
            (!ending && !WITHOUT.contains(&name.as_str()), name)
        };
        match event {
            Event::Init => self.listing.clear(),
            Event::InitApply(namespace) => {
                if let (true, name) = wanted(&namespace) {
                    // Already now: the others need not wait for the end of the list.
                    self.namespaces.insert(name.clone());
                    self.listing.insert(name);
                }
            }
            Event::InitDone => {
                self.namespaces = std::mem::take(&mut self.listing);
                self.namespaces_complete = true;
            }
            Event::Apply(namespace) => {
                match wanted(&namespace) {
                    (true, name) => self.namespaces.insert(name),
                    (false, name) => self.namespaces.remove(&name),
                };
            }
            Event::Delete(namespace) => {
                let name = namespace.metadata.name.unwrap_or_default();
                self.namespaces.remove(&name);
                self.maps.remove(&name);
            }
        }
    }

    fn map(&mut self, event: Event<ConfigMap>) {
        match event {
            Event::Init => self.listing_maps.clear(),
            Event::InitApply(map) => {
                let (namespace, content) = content(map);
                self.listing_maps.insert(namespace, content);
            }
            Event::InitDone => {
                self.maps = std::mem::take(&mut self.listing_maps);
                self.maps_complete = true;
            }
            Event::Apply(map) => {
                let (namespace, content) = content(map);
                self.maps.insert(namespace, content);
            }
            Event::Delete(map) => {
                self.maps.remove(&content(map).0);
            }
        }
    }

    /// Namespaces whose ConfigMap is not `wanted`.
    fn wrong(&self, wanted: Hash) -> impl Iterator<Item = &String> {
        self.namespaces.iter().filter(move |name| self.maps.get(*name) != Some(&Some(wanted)))
    }

    fn complete(&self) -> bool {
        self.namespaces_complete && self.maps_complete
    }
}

fn content(map: ConfigMap) -> (String, Option<Hash>) {
    let text = map.data.as_ref().and_then(|data| data.get(KEY));
    (map.metadata.namespace.unwrap_or_default(), text.map(|text| hash(text)))
}

/// Keeps the ConfigMaps.
pub struct Roots {
    client: Client,
    bundle: watch::Receiver<Arc<str>>,
    published: watch::Sender<Option<Arc<str>>>,
    counters: Arc<RootCounters>,
}

impl std::fmt::Debug for Roots {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Roots").finish_non_exhaustive()
    }
}

impl Roots {
    /// Publishes `bundle` (PEM), also after it changed.
    pub fn new(client: Client, bundle: watch::Receiver<Arc<str>>, counters: Arc<RootCounters>) -> Self {
        Self { client, bundle, published: watch::Sender::new(None), counters }
    }

    /// The bundle that every namespace has; `None` while not all have the same.
    pub fn published(&self) -> watch::Receiver<Option<Arc<str>>> {
        self.published.subscribe()
    }

    /// For ever.
    pub async fn run(mut self) -> std::convert::Infallible {
        let mut namespaces = Following::new(Api::<Namespace>::all(self.client.clone()), "", "namespaces");
        let fields = format!("metadata.name={CONFIG_MAP}");
        let mut maps = Following::new(Api::<ConfigMap>::all(self.client.clone()), &fields, "root ConfigMaps");
        let mut known = Known::default();
        let mut writes = Writes::default();
        let mut retry = tokio::time::interval(RETRY);
        retry.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
        loop {
            tokio::select! {
                event = namespaces.next() => known.namespace(event),
                event = maps.next() => known.map(event),
                Ok(()) = self.bundle.changed() => {}
                Some(written) = writes.running.join_next() => {
                    if let Ok((namespace, outcome)) = written {
                        self.written(&namespace, outcome, &mut known, &mut writes);
                    }
                }
                _ = retry.tick() => writes.later.clear(),
            }
            // Before the ConfigMaps' list is there, everything would look wrong.
            if known.maps_complete {
                self.repair(&known, &mut writes);
            }
        }
    }

    fn repair(&mut self, known: &Known, writes: &mut Writes) {
        let bundle = self.bundle.borrow_and_update().clone();
        let wanted = hash(&bundle);
        let wrong: Vec<&String> = known.wrong(wanted).collect();
        self.counters.missing.store(i64::try_from(wrong.len()).unwrap_or(i64::MAX), Ordering::Relaxed);
        let published = (wrong.is_empty() && known.complete()).then(|| bundle.clone());
        self.published.send_if_modified(|last| {
            let changed = *last != published;
            *last = published;
            changed
        });
        for namespace in wrong {
            if writes.running.len() >= WRITES {
                break;
            }
            if writes.busy.contains(namespace) || writes.later.contains(namespace) {
                continue;
            }
            if !writes.rate.take(namespace, Instant::now()) {
                if writes.restless.insert(namespace.clone()) {
                    tracing::warn!(
                        namespace,
                        "somebody else keeps changing {CONFIG_MAP}: it is put right less often"
                    );
                }
                writes.later.insert(namespace.clone());
                continue;
            }
            writes.busy.insert(namespace.clone());
            writes.running.spawn(write(self.client.clone(), namespace.clone(), bundle.clone()));
        }
    }

    fn written(
        &self,
        namespace: &str,
        outcome: Result<Hash, WriteError>,
        known: &mut Known,
        writes: &mut Writes,
    ) {
        writes.busy.remove(namespace);
        match outcome {
            Ok(content) => {
                self.counters.writes.fetch_add(1, Ordering::Relaxed);
                // The watch will say the same, later.
                known.maps.insert(namespace.to_owned(), Some(content));
            }
            Err(error) => {
                self.counters.failures.fetch_add(1, Ordering::Relaxed);
                tracing::warn!(
                    namespace,
                    error = &error as &dyn std::error::Error,
                    "{CONFIG_MAP} cannot be written"
                );
                writes.later.insert(namespace.to_owned());
            }
        }
    }
}

struct Writes {
    running: JoinSet<(String, Result<Hash, WriteError>)>,
    busy: BTreeSet<String>,
    /// Not before the next retry.
    later: BTreeSet<String>,
    rate: Limiter<String>,
    /// Warned of.
    restless: BTreeSet<String>,
}

impl Default for Writes {
    fn default() -> Self {
        let (busy, later, restless) = Default::default();
        Self { running: JoinSet::new(), busy, later, rate: Limiter::new(REPAIRS), restless }
    }
}

#[derive(Debug, thiserror::Error)]
enum WriteError {
    #[error("the API server refuses")]
    Api(#[source] kube::Error),
    #[error("the API server does not answer in time")]
    Timeout,
}

async fn write(client: Client, namespace: String, bundle: Arc<str>) -> (String, Result<Hash, WriteError>) {
    let maps: Api<ConfigMap> = Api::namespaced(client, &namespace);
    let labels: HashMap<&str, &str> = HashMap::from([
        ("istio.io/config", "true"),
        ("app.kubernetes.io/managed-by", MANAGER),
        ("app.kubernetes.io/part-of", "countersign"),
    ]);
    let patch = serde_json::json!({
        "apiVersion": "v1",
        "kind": "ConfigMap",
        "metadata": {"name": CONFIG_MAP, "labels": labels},
        "data": {KEY: &*bundle},
    });
    let params = PatchParams::apply(MANAGER).force();
    let patch = Patch::Apply(&patch);
    let patched = maps.patch(CONFIG_MAP, &params, &patch);
    let outcome = match tokio::time::timeout(TIMEOUT, patched).await {
        Ok(Ok(_)) => Ok(hash(&bundle)),
        Ok(Err(error)) => Err(WriteError::Api(error)),
        Err(_) => Err(WriteError::Timeout),
    };
    (namespace, outcome)
}

#[cfg(test)]
mod tests {
    use k8s_openapi::api::core::v1::NamespaceStatus;
    use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;

    use super::*;

    fn namespace(name: &str, phase: &str) -> Namespace {
        let metadata = ObjectMeta { name: Some(name.to_owned()), ..ObjectMeta::default() };
        let status = NamespaceStatus { phase: Some(phase.to_owned()), ..NamespaceStatus::default() };
        Namespace { metadata, status: Some(status), ..Namespace::default() }
    }

    fn map(namespace: &str, content: Option<&str>) -> ConfigMap {
        let metadata = ObjectMeta { namespace: Some(namespace.to_owned()), ..ObjectMeta::default() };
        let data = content.map(|content| [(KEY.to_owned(), content.to_owned())].into());
        ConfigMap { metadata, data, ..ConfigMap::default() }
    }

    fn wrong(known: &Known) -> Vec<&str> {
        known.wrong(hash("roots")).map(String::as_str).collect()
    }

    #[test]
    fn every_namespace_that_lives_is_to_have_the_roots() {
        let mut known = Known::default();
        known.namespace(Event::Init);
        for (name, phase) in
            [("a", "Active"), ("b", "Active"), ("going", "Terminating"), ("kube-public", "Active")]
        {
            known.namespace(Event::InitApply(namespace(name, phase)));
        }
        known.namespace(Event::InitDone);
        assert!(!known.complete());
        known.map(Event::Init);
        known.map(Event::InitApply(map("a", Some("roots"))));
        known.map(Event::InitDone);
        assert!(known.complete());
        assert_eq!(wrong(&known), ["b"]);
        for (content, expected) in [(Some("others"), vec!["b"]), (None, vec!["b"]), (Some("roots"), vec![])] {
            known.map(Event::Apply(map("b", content)));
            assert_eq!(wrong(&known), expected, "{content:?}");
        }
        known.map(Event::Delete(map("a", None)));
        assert_eq!(wrong(&known), ["a"]);
        known.namespace(Event::Apply(namespace("a", "Terminating")));
        known.namespace(Event::Apply(namespace("c", "Active")));
        assert_eq!(wrong(&known), ["c"]);
        known.namespace(Event::Delete(namespace("c", "Active")));
        assert_eq!(wrong(&known), [""; 0]);
    }

    /// Lists come again after a lost watch: what is not in them any more is gone, and nothing is forgotten meanwhile.
    #[test]
    fn a_new_list_replaces_what_was_known() {
        let mut known = Known::default();
        for round in [["a", "b"], ["b", "c"]] {
            known.namespace(Event::Init);
            known.map(Event::Init);
            for name in round {
                known.namespace(Event::InitApply(namespace(name, "Active")));
                known.map(Event::InitApply(map(name, Some("roots"))));
            }
            known.namespace(Event::InitDone);
            known.map(Event::InitDone);
        }
        assert_eq!(known.namespaces, BTreeSet::from(["b".to_owned(), "c".to_owned()]));
        assert_eq!(known.maps.len(), 2);
    }
}
