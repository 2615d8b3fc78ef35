//! Shows what the watches of the API server count. Counts nothing itself.

use std::sync::Arc;

use prometheus_client::collector::Collector;
use prometheus_client::encoding::{DescriptorEncoder, EncodeLabelSet, EncodeMetric};
use prometheus_client::metrics::gauge::ConstGauge;
use runtime::Metrics;
use source::kubernetes::Counters;

/// Adds them to the process's metrics; once.
pub(crate) fn register(metrics: &Metrics, counters: Arc<Counters>) {
    metrics.register(|registry| registry.register_collector(Box::new(Shown(counters))));
}

#[derive(Debug)]
struct Shown(Arc<Counters>);

/// Labels of one number.
#[derive(Clone, Debug, EncodeLabelSet)]
struct EventLabels {
    r#type: &'static str,
    event: &'static str,
}

#[derive(Clone, Debug, EncodeLabelSet)]
struct KindLabels {
    group: String,
    kind: String,
}

impl Collector for Shown {
    fn encode(&self, mut encoder: DescriptorEncoder<'_>) -> Result<(), std::fmt::Error> {
        let counters = &*self.0;
        let mut show = |name: &str, help: &str, value: u64| {
            let gauge = ConstGauge::new(i64::try_from(value).unwrap_or(i64::MAX));
            gauge.encode(encoder.encode_descriptor(name, help, None, gauge.metric_type())?)
        };
        show("countersign_source_relists", "Full lists after the first one", counters.relists.get())?;
        show(
            "countersign_source_watch_errors",
            "Lists and watches that failed",
            counters.watch_errors.get(),
        )?;
        show(
            "countersign_source_definitions_lost",
            "Definitions that went away while their objects were in force",
            counters.definitions_lost.get(),
        )?;
        show(
            "countersign_source_orphans",
            "Objects kept whose definition was uninstalled",
            counters.orphans.get(),
        )?;
        let kind = ConstGauge::new(0_i64).metric_type();
        let mut events = encoder.encode_descriptor(
            "pilot_k8s_cfg_events",
            "Changes of objects, by kind and event",
            None,
            kind,
        )?;
        for (kind, happened, count) in counters.events() {
            let labels = EventLabels { r#type: kind.as_str(), event: happened.as_str() };
            let gauge = ConstGauge::new(i64::try_from(count).unwrap_or(i64::MAX));
            gauge.encode(events.encode_family(&labels)?)?;
        }
        let help = "Objects of kinds that have no effect here";
        let mut unimplemented =
            encoder.encode_descriptor("countersign_unimplemented_objects", help, None, kind)?;
        for (group, kind, count) in counters.unimplemented() {
            let labels = KindLabels { group: group.to_string(), kind: kind.to_string() };
            let gauge = ConstGauge::new(i64::try_from(count).unwrap_or(i64::MAX));
            gauge.encode(unimplemented.encode_family(&labels)?)?;
        }
        Ok(())
    }
}
