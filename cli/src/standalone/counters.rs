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
    metrics.register(|registry| registry.register_collector(Box::new(Authority(ca))));
    register_tls(metrics, tls);
}

/// Those of a TLS port alone.
pub(crate) fn register_tls(metrics: &Metrics, tls: CountersHandle) {
    metrics.register(|registry| registry.register_collector(Box::new(Tls(tls))));
}

fn show(
    encoder: &mut DescriptorEncoder<'_>,
    name: &str,
    help: &str,
    value: i64,
) -> Result<(), std::fmt::Error> {
    let gauge = ConstGauge::new(value);
    gauge.encode(encoder.encode_descriptor(name, help, None, gauge.metric_type())?)
}

fn show_all(
    encoder: &mut DescriptorEncoder<'_>,
    counters: &[(&str, &str, &AtomicU64)],
) -> Result<(), std::fmt::Error> {
    for (name, help, counter) in counters {
        let value = i64::try_from(counter.load(Ordering::Relaxed)).unwrap_or(i64::MAX);
        show(encoder, name, help, value)?;
    }
    Ok(())
}

#[derive(Debug)]
struct Authority(Arc<ca::Counters>);

impl Collector for Authority {
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
        } = &*self.0;
        let counters: [(&str, &str, &AtomicU64); 8] = [
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
        ];
        show_all(&mut encoder, &counters)?;
        let root = root_expiry.load(Ordering::Relaxed);
        let name = "citadel_server_root_cert_expiry_timestamp";
        show(&mut encoder, name, "End of the root, in Unix seconds", root)?;
        let own = own_expiry.load(Ordering::Relaxed);
        let name = "countersign_server_svid_expiry_timestamp";
        show(&mut encoder, name, "End of our own certificate, in Unix seconds", own)
    }
}

#[derive(Debug)]
struct Tls(CountersHandle);

impl Collector for Tls {
    fn encode(&self, mut encoder: DescriptorEncoder<'_>) -> Result<(), std::fmt::Error> {
        let authn::tls::Counters { accepted, failed, timed_out, displaced, refused, expired } = &*self.0;
        let counters: [(&str, &str, &AtomicU64); 6] = [
            ("countersign_tls_accepted", "TCP connections to the TLS port", accepted),
            ("countersign_tls_failed", "Handshakes that failed", failed),
            ("countersign_tls_timed_out", "Handshakes that took too long", timed_out),
            ("countersign_tls_displaced", "Anonymous connections that gave way to newer ones", displaced),
            ("countersign_tls_refused", "Identified connections over a limit", refused),
            ("countersign_tls_expired", "Connections ended with their certificate", expired),
        ];
        show_all(&mut encoder, &counters)
    }
}
