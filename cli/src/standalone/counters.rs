//! Shows the counters of the CA and of the TLS port as metrics, under Istio's names where there are some.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use authn::tls::CountersHandle;
use prometheus_client::collector::Collector;
use prometheus_client::encoding::{DescriptorEncoder, EncodeMetric};
use prometheus_client::metrics::gauge::ConstGauge;
use runtime::Metrics;

/// Adds the counters to the process's metrics.
pub(crate) fn register(metrics: &Metrics, ca: Arc<ca::Counters>, tls: CountersHandle) {
    metrics.register(|registry| registry.register_collector(Box::new(Counters { ca, tls })));
}

#[derive(Debug)]
struct Counters {
    ca: Arc<ca::Counters>,
    tls: CountersHandle,
}

impl Collector for Counters {
    fn encode(&self, mut encoder: DescriptorEncoder<'_>) -> Result<(), std::fmt::Error> {
        let ca::Counters {
            csr,
            authentication_failure,
            csr_parsing_error,
            id_extraction_error,
            csr_sign_error,
            issued,
            rate_limited,
            joined,
            root_expiry,
            own_expiry,
        } = &*self.ca;
        let authn::tls::Counters { accepted, failed, timed_out, displaced, refused, expired } = &*self.tls;
        let counters: [(&str, &str, &AtomicU64); 14] = [
            ("citadel_server_csr_count", "Certificate requests", csr),
            ("citadel_server_authentication_failure_count", "Callers without proof", authentication_failure),
            ("citadel_server_csr_parsing_err_count", "Malformed requests", csr_parsing_error),
            (
                "citadel_server_id_extraction_err_count",
                "Callers that may have no certificate",
                id_extraction_error,
            ),
            ("citadel_server_csr_sign_err_count", "Signing failures", csr_sign_error),
            ("citadel_server_success_cert_issuance_count", "Certificates issued", issued),
            ("countersign_ca_rate_limited_count", "Requests over the rate of their caller", rate_limited),
            ("countersign_ca_join_count", "Join tokens redeemed", joined),
            ("countersign_tls_accepted", "TCP connections to the TLS port", accepted),
            ("countersign_tls_failed", "Handshakes that failed", failed),
            ("countersign_tls_timed_out", "Handshakes that took too long", timed_out),
            ("countersign_tls_displaced", "Anonymous connections that gave way to newer ones", displaced),
            ("countersign_tls_refused", "Identified connections over a limit", refused),
            ("countersign_tls_expired", "Connections ended with their certificate", expired),
        ];
        let mut show = |name: &str, help: &str, value: i64| {
            let gauge = ConstGauge::new(value);
            gauge.encode(encoder.encode_descriptor(name, help, None, gauge.metric_type())?)
        };
        for (name, help, counter) in counters {
            show(name, help, i64::try_from(counter.load(Ordering::Relaxed)).unwrap_or(i64::MAX))?;
        }
        let root = root_expiry.load(Ordering::Relaxed);
        show("citadel_server_root_cert_expiry_timestamp", "End of the root, in Unix seconds", root)?;
        let own = own_expiry.load(Ordering::Relaxed);
        show("countersign_server_svid_expiry_timestamp", "End of our own certificate, in Unix seconds", own)
    }
}
