//! What the CA has done since it started, under the names that dashboards for Istio expect (semantics §8).
//!
//! Exposition is the runtime's business.

use std::sync::atomic::{AtomicI64, AtomicU64, Ordering};

/// Counters (and two gauges in Unix seconds) of one CA.
#[derive(Debug, Default)]
pub struct Counters {
    /// `citadel_server_csr_count`: requests that arrived.
    pub csr: AtomicU64,
    /// `citadel_server_authentication_failure_count`: no identity, or a token that was refused.
    pub authentication_failure: AtomicU64,
    /// `citadel_server_csr_parsing_err_count`: malformed requests or without proof of possession.
    pub csr_parsing_error: AtomicU64,
    /// `citadel_server_id_extraction_err_count`: callers whose identity may have no certificate.
    pub id_extraction_error: AtomicU64,
    /// `citadel_server_csr_sign_err_count`: signing failed.
    pub csr_sign_error: AtomicU64,
    /// `citadel_server_success_cert_issuance_count`: certificates handed out.
    pub issued: AtomicU64,
    /// `countersign_ca_rate_limited_count`: requests refused for their rate.
    pub rate_limited: AtomicU64,
    /// `countersign_ca_join_count`: join tokens redeemed.
    pub joined: AtomicU64,
    /// `citadel_server_root_cert_expiry_timestamp`.
    pub root_expiry: AtomicI64,
    /// `countersign_server_svid_expiry_timestamp`: the control plane's own certificate.
    pub own_expiry: AtomicI64,
}

impl Counters {
    pub(crate) fn add(counter: &AtomicU64) {
        counter.fetch_add(1, Ordering::Relaxed);
    }
}
