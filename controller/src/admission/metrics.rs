//! What admission counts.

use prometheus_client::encoding::EncodeLabelSet;
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::metrics::histogram::Histogram;
use prometheus_client::registry::Registry;

#[derive(Clone, Debug, Hash, PartialEq, Eq, EncodeLabelSet)]
pub(super) struct ResultLabel {
    /// `allowed`, `denied`, or `error` for what is not a review.
    pub(super) result: &'static str,
}

#[derive(Clone, Debug)]
pub(super) struct Metrics {
    pub(super) reviews: Family<ResultLabel, Counter>,
    pub(super) seconds: Histogram,
    pub(super) refused: Counter,
    pub(super) certificate_expiry: Gauge,
}

impl Metrics {
    pub(super) fn new(registry: &mut Registry) -> Self {
        let metrics = Self {
            reviews: Family::default(),
            seconds: Histogram::new([0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.5]),
            refused: Counter::default(),
            certificate_expiry: Gauge::default(),
        };
        let Self { reviews, seconds, refused, certificate_expiry } = &metrics;
        registry.register("countersign_admission_reviews", "Answers to the API server", reviews.clone());
        registry.register("countersign_admission_seconds", "Time to answer a review", seconds.clone());
        registry.register(
            "countersign_admission_refused",
            "Webhook connections refused: too many, or no TLS",
            refused.clone(),
        );
        registry.register(
            "countersign_webhook_certificate_expiry_timestamp",
            "End of the webhook's certificate, Unix seconds",
            certificate_expiry.clone(),
        );
        metrics
    }
}
