//! What a run found out, as JSON and as a table for people.

use std::fmt::{self, Display, Write as _};

use serde::Serialize;

use super::measure::{Counts, Spread};
use super::mesh::Size;
use super::proxy::Variant;
use super::run::Connect;

/// The load of a replaying server.
#[derive(Clone, Copy, Debug, PartialEq, Serialize)]
pub struct Floor {
    pub wall_seconds: f64,
    pub cpu_seconds: f64,
    pub driver_cpu_seconds: f64,
}

/// From nobody connected to all served.
#[derive(Clone, Copy, Debug, PartialEq, Serialize)]
pub struct Connected {
    pub streams: usize,
    pub wall_seconds: f64,
    /// Of the control plane; `None` if its process is not here.
    pub cpu_seconds: Option<f64>,
    pub driver_cpu_seconds: f64,
    pub resident_before: Option<u64>,
    pub resident_after: Option<u64>,
    pub resident_per_proxy: Option<u64>,
    pub counts: Counts,
    pub floor: Option<Floor>,
}

/// One kind of change, all repetitions together.
#[derive(Clone, Copy, Debug, PartialEq, Serialize)]
pub struct Changed {
    pub name: &'static str,
    pub repeats: usize,
    /// Streams that were to see it, summed over the repetitions; all did.
    pub expected: usize,
    pub latency: Option<Spread>,
    pub counts: Counts,
    pub cpu_seconds: Option<f64>,
    pub driver_cpu_seconds: f64,
    pub resident: Option<u64>,
    /// Restart only: from the start of the process to ready.
    pub ready_seconds: Option<f64>,
}

/// Nothing differed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
pub struct Verified {
    pub sidecars: usize,
    pub resources: usize,
    /// Against a control plane started for it; else against fresh streams of the same one.
    pub from_scratch: bool,
}

/// Something promised, and what was measured.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Goal {
    pub what: String,
    pub goal: String,
    pub measured: String,
    pub held: bool,
}

impl Goal {
    pub fn at_most(what: &str, unit: &str, goal: f64, measured: f64) -> Self {
        Self {
            what: what.to_owned(),
            goal: format!("≤ {goal} {unit}"),
            measured: format!("{measured:.3} {unit}"),
            held: measured <= goal,
        }
    }

    pub fn exactly(what: &str, goal: u64, measured: u64) -> Self {
        let (goal_text, measured_text) = (goal.to_string(), measured.to_string());
        Self { what: what.to_owned(), goal: goal_text, measured: measured_text, held: goal == measured }
    }
}

/// Everything.
#[derive(Clone, Debug, Default, Serialize)]
pub struct Report {
    pub scenario: String,
    pub machine: String,
    pub source: String,
    pub size: Option<Size>,
    pub variant: String,
    pub connect: Option<Connect>,
    pub tls: bool,
    /// From the start of the process to ready.
    pub ready_seconds: Option<f64>,
    pub ready_resident: Option<u64>,
    pub connected: Option<Connected>,
    pub changes: Vec<Changed>,
    pub verified: Option<Verified>,
    pub goals: Vec<Goal>,
}

/// This machine, in words.
pub fn machine() -> String {
    let read = |path: &str| std::fs::read_to_string(path).unwrap_or_default();
    let field = |text: &str, name: &str| {
        let line = text.lines().find(|line| line.starts_with(name)).unwrap_or_default();
        line.split_once(':').map(|(_, value)| value.trim().to_owned()).unwrap_or_default()
    };
    let cores = std::thread::available_parallelism().map_or(0, std::num::NonZero::get);
    let memory: u64 = field(&read("/proc/meminfo"), "MemTotal").trim_end_matches(" kB").parse().unwrap_or(0);
    let (kernel, load) = (read("/proc/sys/kernel/osrelease"), read("/proc/loadavg"));
    let load = load.split(' ').next().unwrap_or_default().to_owned();
    format!(
        "{cores} cores, {} GiB, {}, Linux {}, load average at the start {load}",
        memory >> 20,
        std::env::consts::ARCH,
        kernel.trim()
    )
}

impl Report {
    /// # Errors
    /// Never: every part can be JSON.
    pub fn json(&self) -> serde_json::Result<String> {
        serde_json::to_string_pretty(self)
    }
}

fn megabytes(bytes: u64) -> String {
    format!("{:.1} MB", bytes as f64 / 1e6)
}

impl Display for Report {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if !self.scenario.is_empty() {
            writeln!(f, "scenario {}", self.scenario)?;
        }
        writeln!(f, "{}", self.machine)?;
        if let Some(Size { services, pods, policies, idle_policies, namespaces, narrowed }) = self.size {
            let tls = if self.tls { "mTLS" } else { "plaintext" };
            let narrowed = if narrowed { ", each proxy narrowed to its namespace" } else { "" };
            let idle = if idle_policies > 0 {
                format!(" and {idle_policies} that select nobody")
            } else {
                String::new()
            };
            writeln!(
                f,
                "{services} services x {pods} pods, {policies} policies{idle}, {namespaces} namespaces{narrowed}; {}, {}, {tls}",
                self.source, self.variant
            )?;
        }
        if let Some(ready) = self.ready_seconds {
            let resident = self.ready_resident.map(megabytes).unwrap_or_default();
            writeln!(f, "start -> ready: {ready:.2} s, {resident} resident")?;
        }
        if let Some(connected) = &self.connected {
            connected.write(f)?;
        }
        if !self.changes.is_empty() {
            writeln!(f, "{}", table(&self.changes))?;
        }
        if let Some(Verified { sidecars, resources, from_scratch }) = self.verified {
            let with = if from_scratch { "a control plane started from scratch" } else { "fresh streams" };
            writeln!(f, "{sidecars} sidecars ({resources} resources) hold exactly what {with} gives")?;
        }
        for Goal { what, goal, measured, held } in &self.goals {
            let held = if *held { "held" } else { "NOT HELD" };
            writeln!(f, "{what}: goal {goal}, measured {measured}: {held}")?;
        }
        Ok(())
    }
}

impl Connected {
    fn write(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { streams, wall_seconds, cpu_seconds, driver_cpu_seconds, counts, floor, .. } = self;
        let cpu = cpu_seconds.map(|cpu| format!("{cpu:.2}")).unwrap_or_else(|| "?".to_owned());
        writeln!(
            f,
            "{streams} sidecars served: {wall_seconds:.2} s; CPU-s: control plane {cpu}, driver {driver_cpu_seconds:.2}; \
             {} responses, {}, {} retries",
            counts.responses,
            megabytes(counts.bytes),
            counts.retries
        )?;
        if let Some(Floor { wall_seconds, cpu_seconds, driver_cpu_seconds }) = floor {
            writeln!(
                f,
                "  floor (the same bytes replayed): {wall_seconds:.2} s; CPU-s: server {cpu_seconds:.2}, driver {driver_cpu_seconds:.2}"
            )?;
        }
        if let (Some(before), Some(after), Some(each)) =
            (self.resident_before, self.resident_after, self.resident_per_proxy)
        {
            let each = each as f64 / 1e3;
            writeln!(f, "  resident: {} -> {} ({each:.1} kB a proxy)", megabytes(before), megabytes(after))?;
        }
        Ok(())
    }
}

fn table(changes: &[Changed]) -> String {
    let mut text = format!(
        "{:<12}{:>7}{:>10}{:>9}{:>9}{:>9}{:>9}{:>11}{:>12}{:>9}",
        "change", "times", "expected", "first", "p50", "p99", "max ms", "responses", "bytes", "CPU-s"
    );
    for change in changes {
        let per = |total: u64| total as f64 / change.repeats.max(1) as f64;
        let latency = |of: fn(&Spread) -> f64| {
            change
                .latency
                .as_ref()
                .map(|spread| format!("{:.1}", of(spread)))
                .unwrap_or_else(|| "-".to_owned())
        };
        let cpu = change.cpu_seconds.map(|cpu| format!("{:.3}", cpu / change.repeats.max(1) as f64));
        // Writing to a string cannot fail.
        let _ = write!(
            text,
            "\n{:<12}{:>7}{:>10.0}{:>9}{:>9}{:>9}{:>9}{:>11.1}{:>12.0}{:>9}",
            change.name,
            change.repeats,
            per(change.expected as u64),
            latency(|s| s.first),
            latency(|s| s.p50),
            latency(|s| s.p99),
            latency(|s| s.max),
            per(change.counts.responses),
            per(change.counts.bytes),
            cpu.unwrap_or_else(|| "?".to_owned())
        );
    }
    text + "\n(expected, responses, bytes and CPU-s: for each time)"
}

/// As the command line writes it.
pub fn variant(variant: Variant) -> String {
    match variant {
        Variant::Delta => "delta".to_owned(),
        Variant::Sotw => "sotw".to_owned(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_report_says_everything_in_both_forms() {
        let spread = Spread { count: 10, first: 1.0, p50: 2.0, p99: 3.0, max: 4.5 };
        let changed = Changed {
            name: "one-service",
            repeats: 2,
            expected: 20,
            latency: Some(spread),
            counts: Counts { responses: 20, bytes: 4000, ..Counts::default() },
            cpu_seconds: Some(0.02),
            driver_cpu_seconds: 0.01,
            resident: Some(1),
            ready_seconds: None,
        };
        let report = Report {
            changes: vec![changed],
            goals: vec![Goal::exactly("responses", 10, 10), Goal::at_most("p99", "ms", 2.0, 3.0)],
            ..Report::default()
        };
        let text = report.to_string();
        for part in [
            "one-service",
            "4.5",
            "10.0",
            "2000",
            "0.010",
            "goal 10, measured 10: held",
            "3.000 ms: NOT HELD",
        ] {
            assert!(text.contains(part), "{part} in\n{text}");
        }
        let json: serde_json::Value = serde_json::from_str(&report.json().unwrap()).unwrap();
        assert_eq!(json["changes"][0]["counts"]["responses"], 20);
        assert_eq!(json["goals"][1]["held"], false);
    }
}
