//! Whether the workload is ready, and the numbers behind it. Written by the other parts, judged here.

use std::path::PathBuf;
use std::sync::atomic::{AtomicBool, AtomicI64, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use prometheus_client::encoding::EncodeMetric;
use prometheus_client::metrics::counter::ConstCounter;
use prometheus_client::metrics::gauge::ConstGauge;
use prometheus_client::registry::Registry;
use time::OffsetDateTime;
use tokio_util::sync::CancellationToken;

use crate::admin;

/// How often Envoy is asked.
const INTERVAL: Duration = Duration::from_millis(250);

/// Seconds since the epoch are 0 where there is nothing.
#[derive(Debug, Default)]
pub(crate) struct Health {
    workload_expires: AtomicI64,
    agent_expires: AtomicI64,
    renewals: AtomicU64,
    failures: AtomicU64,
    renewal_alert: AtomicBool,
    envoy_live: AtomicBool,
    /// Envoy has an xDS stream. Not needed for readiness: without a control plane all goes on as it was.
    xds_connected: AtomicBool,
    envoy_restarts: AtomicU64,
    /// Pages of Envoy's or the application's numbers that could not be had.
    scrape_failures: AtomicU64,
    last_failure: Mutex<String>,
}

impl Health {
    pub(crate) fn renewed(&self, not_after: OffsetDateTime) {
        self.workload_expires.store(not_after.unix_timestamp(), Ordering::Relaxed);
        self.renewals.fetch_add(1, Ordering::Relaxed);
        self.say(String::new());
    }

    pub(crate) fn agent_expires(&self, not_after: Option<OffsetDateTime>) {
        let at = not_after.map_or(0, OffsetDateTime::unix_timestamp);
        self.agent_expires.store(at, Ordering::Relaxed);
    }

    pub(crate) fn renewal_alert(&self, alert: bool) {
        self.renewal_alert.store(alert, Ordering::Relaxed);
    }

    pub(crate) fn expired(&self) {
        self.workload_expires.store(0, Ordering::Relaxed);
    }

    pub(crate) fn failed(&self, why: &str) {
        self.failures.fetch_add(1, Ordering::Relaxed);
        self.say(why.to_owned());
    }

    pub(crate) fn envoy_restarted(&self) {
        self.envoy_restarts.fetch_add(1, Ordering::Relaxed);
        self.envoy_live.store(false, Ordering::Relaxed);
    }

    pub(crate) fn scrape_failed(&self) {
        self.scrape_failures.fetch_add(1, Ordering::Relaxed);
    }

    fn say(&self, why: String) {
        *self.last_failure.lock().unwrap_or_else(PoisonError::into_inner) = why;
    }

    /// A valid certificate and a live Envoy.
    pub(crate) fn ready(&self) -> Result<(), Vec<String>> {
        let mut reasons = Vec::new();
        if self.workload_expires.load(Ordering::Relaxed) <= OffsetDateTime::now_utc().unix_timestamp() {
            let why = self.last_failure.lock().unwrap_or_else(PoisonError::into_inner);
            reasons.push(format!("no valid workload certificate: {why}"));
        }
        if !self.envoy_live.load(Ordering::Relaxed) {
            reasons.push("Envoy has not got its configuration yet".to_owned());
        }
        if reasons.is_empty() { Ok(()) } else { Err(reasons) }
    }

    pub(crate) fn register(self: &Arc<Self>, registry: &mut Registry) {
        registry.register_collector(Box::new(Collector(self.clone())));
    }
}

#[derive(Debug)]
struct Collector(Arc<Health>);

impl prometheus_client::collector::Collector for Collector {
    fn encode(
        &self,
        mut encoder: prometheus_client::encoding::DescriptorEncoder<'_>,
    ) -> Result<(), std::fmt::Error> {
        let health = &self.0;
        let now = OffsetDateTime::now_utc().unix_timestamp();
        let left = |at: &AtomicI64| (at.load(Ordering::Relaxed) - now).max(0);
        let gauges = [
            (
                "countersign_agent_workload_svid_seconds_left",
                "Until the workload certificate expires",
                left(&health.workload_expires),
            ),
            (
                "countersign_agent_svid_seconds_left",
                "Until the agent's own certificate expires",
                left(&health.agent_expires),
            ),
            (
                "countersign_agent_renewal_alert",
                "1 while there is no certificate, or renewal fails and less than a third of its life is left",
                health.renewal_alert.load(Ordering::Relaxed).into(),
            ),
            (
                "countersign_agent_envoy_live",
                "Envoy runs and has its configuration",
                health.envoy_live.load(Ordering::Relaxed).into(),
            ),
            (
                "countersign_agent_xds_connected",
                "Envoy is connected to the control plane",
                health.xds_connected.load(Ordering::Relaxed).into(),
            ),
        ];
        for (name, help, value) in gauges {
            let gauge = ConstGauge::new(value);
            gauge.encode(encoder.encode_descriptor(name, help, None, gauge.metric_type())?)?;
        }
        let counters = [
            ("countersign_agent_renewals", "Workload certificates received", &health.renewals),
            ("countersign_agent_renewal_failures", "Requests that brought no certificate", &health.failures),
            (
                "countersign_agent_envoy_restarts",
                "Times that Envoy was started again",
                &health.envoy_restarts,
            ),
            (
                "countersign_agent_scrape_failures",
                "Pages of Envoy's or the application's metrics that could not be had",
                &health.scrape_failures,
            ),
        ];
        for (name, help, value) in counters {
            let counter = ConstCounter::new(value.load(Ordering::Relaxed));
            counter.encode(encoder.encode_descriptor(name, help, None, counter.metric_type())?)?;
        }
        Ok(())
    }
}

/// Asks Envoy and keeps `ready_file` as true as it can, until `stop`.
pub(crate) async fn watch(
    health: Arc<Health>,
    admin_socket: PathBuf,
    ready_file: Option<PathBuf>,
    stop: CancellationToken,
) -> Result<(), std::convert::Infallible> {
    let mut was_ready = false;
    loop {
        let live =
            admin::request(&admin_socket, "GET", "/ready").await.is_ok_and(|answer| answer.status == 200);
        health.envoy_live.store(live, Ordering::Relaxed);
        let stats =
            admin::request(&admin_socket, "GET", "/stats?filter=^control_plane.connected_state$").await;
        let connected = stats.is_ok_and(|answer| answer.rest.contains("control_plane.connected_state: 1"));
        health.xds_connected.store(connected, Ordering::Relaxed);
        let ready = health.ready();
        if ready.is_ok() != was_ready {
            was_ready = ready.is_ok();
            match ready {
                Ok(()) => tracing::info!("ready"),
                Err(reasons) => tracing::warn!(?reasons, "not ready"),
            }
            if let Some(file) = &ready_file {
                let result = if was_ready { std::fs::write(file, b"") } else { std::fs::remove_file(file) };
                if let Err(error) = result {
                    tracing::warn!(%error, file = %file.display(), "the ready file cannot be changed");
                }
            }
        }
        tokio::select! {
            () = stop.cancelled() => break,
            () = tokio::time::sleep(INTERVAL) => {}
        }
    }
    if let Some(file) = ready_file.filter(|_| was_ready) {
        let _ = std::fs::remove_file(file);
    }
    Ok(())
}
