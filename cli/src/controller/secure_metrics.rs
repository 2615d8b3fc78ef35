//! Shows the controller's own certificate and its relay as metrics.

use std::sync::Arc;
use std::sync::atomic::Ordering;

use authn::svid_client::Standing;
use ca::RelayCounters;
use prometheus_client::collector::Collector;
use prometheus_client::encoding::{DescriptorEncoder, EncodeMetric};
use prometheus_client::metrics::counter::ConstCounter;
use prometheus_client::metrics::gauge::ConstGauge;
use runtime::Metrics;
use tokio::sync::watch;

/// Adds them to the process's metrics.
pub(super) fn register(metrics: &Metrics, standing: watch::Receiver<Standing>, relayed: Arc<RelayCounters>) {
    metrics.register(|registry| registry.register_collector(Box::new(Secure { standing, relayed })));
}

#[derive(Debug)]
struct Secure {
    standing: watch::Receiver<Standing>,
    relayed: Arc<RelayCounters>,
}

impl Collector for Secure {
    fn encode(&self, mut encoder: DescriptorEncoder<'_>) -> Result<(), std::fmt::Error> {
        let until = match &*self.standing.borrow() {
            Standing::Without(_) => 0,
            Standing::With { until, failure: _ } => until.unix_timestamp(),
        };
        let gauge = ConstGauge::new(until);
        let name = "countersign_server_svid_expiry_timestamp";
        let help = "End of our own certificate, in Unix seconds";
        gauge.encode(encoder.encode_descriptor(name, help, None, gauge.metric_type())?)?;
        let RelayCounters { relayed, refused, failed } = &*self.relayed;
        for (name, help, value) in [
            ("countersign_relay_requests", "Certificate requests relayed", relayed),
            ("countersign_relay_refused", "Certificate requests not relayed", refused),
            ("countersign_relay_failed", "Certificate requests that brought no certificate", failed),
        ] {
            let counter = ConstCounter::new(value.load(Ordering::Relaxed));
            counter.encode(encoder.encode_descriptor(name, help, None, counter.metric_type())?)?;
        }
        Ok(())
    }
}
