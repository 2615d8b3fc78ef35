//! Shows what the authority counts about root ConfigMaps and tokens as metrics.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use authn::token::TokenReviewer;
use ca::cluster::RootCounters;
use prometheus_client::collector::Collector;
use prometheus_client::encoding::{DescriptorEncoder, EncodeMetric};
use prometheus_client::metrics::counter::ConstCounter;
use prometheus_client::metrics::gauge::ConstGauge;
use runtime::Metrics;

/// Adds the counters of a process that judges tokens to its metrics.
pub(crate) fn register_tokens(metrics: &Metrics, reviewer: Arc<TokenReviewer>) {
    metrics.register(|registry| registry.register_collector(Box::new(Tokens(reviewer))));
}

/// Adds the counters of the root ConfigMaps to the process's metrics.
pub(super) fn register_roots(metrics: &Metrics, roots: Arc<RootCounters>) {
    metrics.register(|registry| registry.register_collector(Box::new(Roots(roots))));
}

fn counters(
    encoder: &mut DescriptorEncoder<'_>,
    counters: &[(&str, &str, &AtomicU64)],
) -> Result<(), std::fmt::Error> {
    for (name, help, value) in counters {
        let counter = ConstCounter::new(value.load(Ordering::Relaxed));
        counter.encode(encoder.encode_descriptor(name, help, None, counter.metric_type())?)?;
    }
    Ok(())
}

#[derive(Debug)]
struct Tokens(Arc<TokenReviewer>);

impl Collector for Tokens {
    fn encode(&self, mut encoder: DescriptorEncoder<'_>) -> Result<(), std::fmt::Error> {
        let authn::token::Counters { reviewed, remembered, refused, limited, unavailable } =
            self.0.counters();
        counters(
            &mut encoder,
            &[
                ("countersign_token_reviews", "Tokens that the API server was asked about", reviewed),
                ("countersign_token_reviews_remembered", "Tokens whose answer was still known", remembered),
                ("countersign_tokens_refused", "Tokens that were not believed", refused),
                ("countersign_tokens_limited", "Tokens not looked at: too many refused ones", limited),
                ("countersign_token_reviews_failed", "Tokens that could not be reviewed", unavailable),
            ],
        )
    }
}

#[derive(Debug)]
struct Roots(Arc<RootCounters>);

impl Collector for Roots {
    fn encode(&self, mut encoder: DescriptorEncoder<'_>) -> Result<(), std::fmt::Error> {
        let RootCounters { writes, failures, missing } = &*self.0;
        counters(
            &mut encoder,
            &[
                ("countersign_ca_root_configmap_writes", "Root ConfigMaps written", writes),
                ("countersign_ca_root_configmap_failures", "Root ConfigMaps not written", failures),
            ],
        )?;
        let gauge = ConstGauge::new(missing.load(Ordering::Relaxed));
        let help = "Namespaces whose root ConfigMap is not as it should be";
        let name = "countersign_ca_root_configmaps_missing";
        gauge.encode(encoder.encode_descriptor(name, help, None, gauge.metric_type())?)
    }
}
