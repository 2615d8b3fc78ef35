//! The controller's metrics: Istio's names where dashboards expect them (semantics §8), ours where Istio has none.
//! Counts only; no label ever holds text from an object or a proxy's error.
//!
//! Istio's counters have no `_total` suffix, which this library would add: they are exposed as gauges that only grow.

use std::sync::Arc;
use std::sync::atomic::AtomicU64;
use std::time::Instant;

use prometheus_client::collector::Collector;
use prometheus_client::encoding::{DescriptorEncoder, EncodeLabelSet, EncodeMetric};
use prometheus_client::metrics::counter::{ConstCounter, Counter};
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::{ConstGauge, Gauge};
use prometheus_client::metrics::histogram::Histogram;
use prometheus_client::registry::Registry;
use xds::ResourceType;

/// A counter under a name without `_total`.
type Grows = Gauge<u64, AtomicU64>;

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
pub(crate) struct TypeLabel {
    pub(crate) r#type: &'static str,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
pub(crate) struct VersionLabel {
    pub(crate) version: String,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
pub(crate) struct KindLabel {
    pub(crate) kind: &'static str,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
pub(crate) struct ResultLabel {
    pub(crate) result: &'static str,
}

/// Where the keys of other people's tokens stand; the first two have Istio's names.
#[derive(Debug)]
pub(crate) struct KeySets(pub(crate) Arc<authn::jwks::Counters>);

impl Collector for KeySets {
    fn encode(&self, mut encoder: DescriptorEncoder<'_>) -> Result<(), std::fmt::Error> {
        let authn::jwks::Summary { fetched, failed, fresh, stale, missing, oldest } =
            self.0.summary(Instant::now());
        for (name, help, value) in [
            ("pilot_jwks_resolver_network_fetch_success", "Key sets fetched", fetched),
            ("pilot_jwks_resolver_network_fetch_fail", "Fetches of key sets that failed", failed),
        ] {
            let counter = ConstCounter::new(value);
            counter.encode(encoder.encode_descriptor(name, help, None, counter.metric_type())?)?;
        }
        for (name, help, value) in [
            ("countersign_jwks_fresh", "Key sets whose last fetch succeeded", fresh),
            ("countersign_jwks_stale", "Key sets whose last fetch failed, earlier keys in use", stale),
            ("countersign_jwks_missing", "Key sets that there are no keys of: tokens are refused", missing),
            (
                "countersign_jwks_oldest_seconds",
                "Since the oldest keys in use were fetched",
                oldest.as_secs(),
            ),
        ] {
            let gauge = ConstGauge::new(i64::try_from(value).unwrap_or(i64::MAX));
            gauge.encode(encoder.encode_descriptor(name, help, None, gauge.metric_type())?)?;
        }
        Ok(())
    }
}

#[derive(Clone, Debug)]
pub(crate) struct Metrics {
    /// Connected proxies, by the version their agent names. Only versions that look like one become a label.
    pub(crate) xds: Family<VersionLabel, Gauge>,
    pub(crate) pushes: Family<TypeLabel, Grows>,
    /// Bytes of the resources in one response, by type.
    pub(crate) config_size: Family<TypeLabel, Histogram>,
    pub(crate) expired_nonce: Grows,
    pub(crate) rejects: Family<TypeLabel, Grows>,
    pub(crate) inbound_updates: Family<TypeLabel, Grows>,
    pub(crate) push_triggers: Family<TypeLabel, Grows>,
    pub(crate) services: Gauge,
    /// Seconds from a change's arrival to a proxy's acknowledgement of what it led to.
    pub(crate) convergence: Histogram,
    /// Seconds that one batch took to compute and publish.
    pub(crate) commit: Histogram,
    pub(crate) objects: Family<KindLabel, Gauge>,
    pub(crate) objects_with_errors: Gauge,
    pub(crate) ready: Gauge,
    pub(crate) frozen: Gauge,
    pub(crate) failures: Gauge,
    pub(crate) below_floor: Gauge,
    pub(crate) refused: Counter,
    pub(crate) held: Gauge,
    pub(crate) published: Counter,
    pub(crate) status_leader: Gauge,
    pub(crate) status_writes: Family<ResultLabel, Counter>,
    pub(crate) replicas_unreachable: Gauge,
}

impl Metrics {
    pub(crate) fn new(registry: &mut Registry) -> Self {
        let metrics = Self::unregistered();
        let Self {
            xds,
            pushes,
            config_size,
            expired_nonce,
            rejects,
            inbound_updates,
            push_triggers,
            services,
            convergence,
            commit,
            objects,
            objects_with_errors,
            ready,
            frozen,
            failures,
            below_floor,
            refused,
            held,
            published,
            status_leader,
            status_writes,
            replicas_unreachable,
        } = metrics.clone();
        let info = Family::<VersionLabel, Gauge>::default();
        info.get_or_create(&VersionLabel { version: env!("CARGO_PKG_VERSION").to_owned() }).set(1);
        registry.register("pilot_info", "Version of the control plane", info);
        registry.register("pilot_xds", "Connected proxies", xds);
        registry.register("pilot_xds_pushes", "Responses sent, by type", pushes);
        registry.register(
            "pilot_xds_config_size_bytes",
            "Bytes of one response's resources, by type",
            config_size,
        );
        registry.register(
            "pilot_xds_expired_nonce",
            "Answers to something older than the last response",
            expired_nonce,
        );
        registry.register("pilot_total_xds_rejects", "Responses that a proxy refused, by type", rejects);
        registry.register("pilot_inbound_updates", "Changes received from the source", inbound_updates);
        registry.register(
            "pilot_push_triggers",
            "Batches that led to a publication, by what they held",
            push_triggers,
        );
        registry.register("pilot_services", "Services known", services);
        registry.register(
            "pilot_proxy_convergence_time",
            "Seconds from a change to its acknowledgement",
            convergence,
        );
        registry.register(
            "countersign_commit_seconds",
            "Seconds to compute and publish one batch of changes",
            commit,
        );
        registry.register_collector(Box::new(Uptime(Instant::now())));
        registry.register("countersign_objects", "Objects known, by kind", objects);
        registry.register(
            "countersign_objects_with_errors",
            "Objects that could not be fully read",
            objects_with_errors,
        );
        registry.register("countersign_ready", "1 if /ready says so", ready);
        registry.register(
            "countersign_frozen",
            "1 while the source is lost and its last state is kept",
            frozen,
        );
        registry.register(
            "countersign_translation_failures",
            "Subjects whose translation failed by a bug",
            failures,
        );
        registry.register(
            "countersign_proxies_below_floor",
            "Proxies whose Envoy has known policy bypasses",
            below_floor,
        );
        registry.register("countersign_streams_refused", "Streams refused by the controller", refused);
        registry.register(
            "countersign_streams_held",
            "Streams that wait for their workload's registration",
            held,
        );
        registry.register(
            "countersign_snapshots_published",
            "Snapshots in which some byte was new",
            published,
        );
        registry.register("countersign_status_leader", "1 while this replica writes status", status_leader);
        registry.register("countersign_status_writes", "Statuses written or found equal", status_writes);
        registry.register(
            "countersign_replicas_unreachable",
            "Announced replicas whose receipts cannot be heard, as seen by the one that writes status",
            replicas_unreachable,
        );
        metrics
    }

    fn unregistered() -> Self {
        let seconds = |buckets: &'static [f64]| Histogram::new(buckets.iter().copied());
        Self {
            xds: Family::default(),
            pushes: Family::default(),
            config_size: Family::new_with_constructor(|| Histogram::new([1.0, 10e3, 1e6, 4e6, 10e6, 40e6])),
            expired_nonce: Grows::default(),
            rejects: Family::default(),
            inbound_updates: Family::default(),
            push_triggers: Family::default(),
            services: Gauge::default(),
            // Istio's buckets begin at 0.1 s; most of what happens here is below that.
            convergence: seconds(&[
                0.001, 0.005, 0.01, 0.025, 0.05, 0.1, 0.5, 1.0, 3.0, 5.0, 10.0, 20.0, 30.0,
            ]),
            commit: seconds(&[0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.5, 1.0, 5.0]),
            objects: Family::default(),
            objects_with_errors: Gauge::default(),
            ready: Gauge::default(),
            frozen: Gauge::default(),
            failures: Gauge::default(),
            below_floor: Gauge::default(),
            refused: Counter::default(),
            held: Gauge::default(),
            published: Counter::default(),
            status_leader: Gauge::default(),
            status_writes: Family::default(),
            replicas_unreachable: Gauge::default(),
        }
    }

    pub(crate) fn pushed(&self, kind: ResourceType, bytes: usize) {
        let label = TypeLabel { r#type: kind.short() };
        self.pushes.get_or_create(&label).inc();
        self.config_size.get_or_create(&label).observe(bytes as f64);
    }

    pub(crate) fn rejected(&self, kind: ResourceType) {
        self.rejects.get_or_create(&TypeLabel { r#type: kind.short() }).inc();
    }
}

/// Istio's name for the age of the process.
#[derive(Debug)]
struct Uptime(Instant);

impl Collector for Uptime {
    fn encode(&self, mut encoder: DescriptorEncoder<'_>) -> Result<(), std::fmt::Error> {
        let age = ConstGauge::new(self.0.elapsed().as_secs_f64());
        let name = "istiod_uptime_seconds";
        age.encode(encoder.encode_descriptor(name, "Seconds since start", None, age.metric_type())?)
    }
}

/// A version as a label: digits, dots and a short suffix; anything else is `unknown`, so that a proxy cannot fill memory
/// with label values of its choice.
pub(crate) fn version_label(version: &str) -> String {
    let plain = version.len() <= 24
        && version.starts_with(|c: char| c.is_ascii_digit())
        && version.chars().all(|c| c.is_ascii_alphanumeric() || matches!(c, '.' | '-'));
    if plain { version.to_owned() } else { "unknown".to_owned() }
}
