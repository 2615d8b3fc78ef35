//! The process's metrics in the OpenMetrics text format. Defines only what every process has; each crate registers its
//! own through [`Metrics::register`].

use std::fmt::Write as _;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Instant;

use prometheus_client::collector::Collector;
use prometheus_client::encoding::{DescriptorEncoder, EncodeMetric};
use prometheus_client::metrics::gauge::ConstGauge;
use prometheus_client::registry::Registry;

use crate::Version;

/// Media type of the text that [`Metrics::encode`] writes.
pub const CONTENT_TYPE: &str = "application/openmetrics-text; version=1.0.0; charset=utf-8";

/// A shared registry. Cloning shares it.
#[derive(Clone, Debug)]
pub struct Metrics {
    registry: Arc<Mutex<Registry>>,
}

impl Metrics {
    /// A registry that holds `process_*` and `countersign_build_info{version,revision}`.
    pub fn new(version: Version) -> Self {
        let mut registry = Registry::default();
        registry.register_collector(Box::new(Process { start: Instant::now(), version }));
        Self { registry: Arc::new(Mutex::new(registry)) }
    }

    /// Lets `f` add metrics. Registering a name twice shows it twice: each crate registers once, at start.
    pub fn register<T>(&self, f: impl FnOnce(&mut Registry) -> T) -> T {
        f(&mut self.registry.lock().unwrap_or_else(PoisonError::into_inner))
    }

    /// Everything, as text that ends with `# EOF`.
    pub fn encode(&self) -> String {
        let mut text = String::new();
        let registry = self.registry.lock().unwrap_or_else(PoisonError::into_inner);
        // Writing into a String cannot fail; a metric that fails to encode leaves the text cut short, which says so.
        if prometheus_client::encoding::text::encode(&mut text, &registry).is_err() {
            let _ = writeln!(text, "# encoding failed");
        }
        text
    }
}

/// Resident memory, uptime and build of this process, read when asked.
#[derive(Debug)]
struct Process {
    start: Instant,
    version: Version,
}

impl Collector for Process {
    fn encode(&self, mut encoder: DescriptorEncoder<'_>) -> Result<(), std::fmt::Error> {
        let mut gauge = |name: &str, help: &str, value: f64| {
            let gauge = ConstGauge::new(value);
            gauge.encode(encoder.encode_descriptor(name, help, None, gauge.metric_type())?)
        };
        gauge(
            "process_uptime_seconds",
            "Seconds since the process started",
            self.start.elapsed().as_secs_f64(),
        )?;
        if let Some(bytes) = resident_bytes() {
            gauge("process_resident_memory_bytes", "Resident memory in bytes", bytes as f64)?;
        }
        if let Some(count) = open_fds() {
            gauge("process_open_fds", "Open file descriptors", count as f64)?;
        }
        let info = ConstGauge::new(1_i64);
        let labels = [
            ("component", self.version.component),
            ("version", self.version.version),
            ("revision", self.version.revision),
        ];
        let mut family = encoder.encode_descriptor(
            "countersign_build_info",
            "What this build is",
            None,
            info.metric_type(),
        )?;
        info.encode(family.encode_family(&labels)?)
    }
}

/// Resident set size of this process in bytes; `None` where `/proc` does not tell (proc(5), `VmRSS`).
pub fn resident_bytes() -> Option<u64> {
    let status = std::fs::read_to_string("/proc/self/status").ok()?;
    let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:"))?;
    let kib: u64 = line.trim().strip_suffix("kB")?.trim().parse().ok()?;
    Some(kib * 1024)
}

fn open_fds() -> Option<usize> {
    Some(std::fs::read_dir("/proc/self/fd").ok()?.count())
}

#[cfg(test)]
mod tests {
    use super::*;
    use prometheus_client::metrics::counter::Counter;

    #[test]
    fn every_process_has_these() {
        let metrics = Metrics::new(Version::of("test"));
        let counter: Counter = Counter::default();
        metrics.register(|r| r.register("demo", "Demo", counter.clone()));
        counter.inc();
        let text = metrics.encode();
        for part in [
            "process_uptime_seconds ",
            "process_resident_memory_bytes ",
            "component=\"test\"",
            "demo_total 1",
            "# EOF",
        ] {
            assert!(text.contains(part), "{part} is missing in:\n{text}");
        }
    }
}
