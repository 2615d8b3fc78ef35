//! What the trail counts.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::registry::Registry;

#[derive(Clone, Debug, Default)]
pub(super) struct Counters {
    pub(super) written: Counter,
    dropped: Counter,
    pub(super) failures: Counter,
    pub(super) failing: Gauge,
    /// Dropped and not yet said in the trail.
    pub(super) unsaid: Arc<AtomicU64>,
}

impl Counters {
    pub(super) fn dropped(&self) {
        self.dropped.inc();
        self.unsaid.fetch_add(1, Ordering::Relaxed);
    }

    pub(super) fn register(&self, registry: &mut Registry) {
        let Self { written, dropped, failures, failing, unsaid: _ } = self;
        registry.register("countersign_audit_events", "Lines written to the audit trail", written.clone());
        registry.register("countersign_audit_dropped", "Events that the audit trail lacks", dropped.clone());
        registry.register("countersign_audit_failures", "Failed writes of the audit trail", failures.clone());
        registry.register(
            "countersign_audit_failing",
            "1 while the audit trail cannot be written",
            failing.clone(),
        );
    }
}
