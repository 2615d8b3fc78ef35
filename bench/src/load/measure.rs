//! Counting and comparing: what a process has used, how latencies are spread. Decides nothing.

use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use anyhow::{Context as _, Result};
use serde::Serialize;

/// What a process has used so far, and holds now.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Usage {
    /// User and system time.
    pub cpu: Duration,
    /// Resident memory in bytes.
    pub resident: u64,
}

/// The kernel's unit of processor time in `/proc`: the same on every Linux that matters.
const TICKS: u64 = 100;

impl Usage {
    /// Of the process `pid`.
    ///
    /// # Errors
    /// If there is none.
    pub fn of(pid: u32) -> Result<Self> {
        let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).context("the process has ended")?;
        let status = std::fs::read_to_string(format!("/proc/{pid}/status"))?;
        Ok(Self { cpu: cpu(&stat).context("/proc/PID/stat")?, resident: resident(&status).context("VmRSS")? })
    }

    /// Of this process.
    ///
    /// # Errors
    /// If `/proc` is not there.
    pub fn own() -> Result<Self> {
        Self::of(std::process::id())
    }
}

fn cpu(stat: &str) -> Option<Duration> {
    // The command's name may hold spaces and parentheses.
    let fields: Vec<&str> = stat.rsplit_once(')')?.1.split_whitespace().collect();
    let ticks = |at: usize| fields.get(at)?.parse::<u64>().ok();
    Some(Duration::from_millis((ticks(11)? + ticks(12)?) * 1000 / TICKS))
}

fn resident(status: &str) -> Option<u64> {
    let line = status.lines().find(|line| line.starts_with("VmRSS:"))?;
    Some(line.split_whitespace().nth(1)?.parse::<u64>().ok()? << 10)
}

/// What has come in, on all streams together.
#[derive(Debug, Default)]
pub struct Counters {
    pub responses: AtomicU64,
    pub resources: AtomicU64,
    /// Of resources, without envelopes.
    pub resource_bytes: AtomicU64,
    /// Of whole messages.
    pub bytes: AtomicU64,
    /// Streams that had to be opened again, or could not be.
    pub retries: AtomicU64,
}

/// [`Counters`] at one moment, or the difference between two.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
pub struct Counts {
    pub responses: u64,
    pub resources: u64,
    pub resource_bytes: u64,
    pub bytes: u64,
    pub retries: u64,
}

impl Counters {
    pub fn read(&self) -> Counts {
        let Self { responses, resources, resource_bytes, bytes, retries } = self;
        let get = |counter: &AtomicU64| counter.load(Ordering::Relaxed);
        Counts {
            responses: get(responses),
            resources: get(resources),
            resource_bytes: get(resource_bytes),
            bytes: get(bytes),
            retries: get(retries),
        }
    }
}

impl std::ops::Sub for Counts {
    type Output = Self;

    fn sub(self, earlier: Self) -> Self {
        Self {
            responses: self.responses - earlier.responses,
            resources: self.resources - earlier.resources,
            resource_bytes: self.resource_bytes - earlier.resource_bytes,
            bytes: self.bytes - earlier.bytes,
            retries: self.retries - earlier.retries,
        }
    }
}

/// How latencies are spread, in milliseconds.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize)]
pub struct Spread {
    pub count: usize,
    pub first: f64,
    pub p50: f64,
    pub p99: f64,
    pub max: f64,
}

impl Spread {
    /// Of all of them; `None` if there are none.
    pub fn of(mut latencies: Vec<Duration>) -> Option<Self> {
        latencies.sort_unstable();
        let at = |share: f64| {
            // The nearest rank: the smallest value that so many are not above.
            let rank = (share * latencies.len() as f64).ceil() as usize;
            let latency = latencies.get(rank.clamp(1, latencies.len().max(1)) - 1)?;
            Some(latency.as_secs_f64() * 1000.0)
        };
        Some(Self { count: latencies.len(), first: at(0.0)?, p50: at(0.5)?, p99: at(0.99)?, max: at(1.0)? })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn percentiles_are_of_the_nearest_rank() {
        let ms = |n| Duration::from_millis(n);
        let all = |spread: Spread| (spread.count, spread.first, spread.p50, spread.p99, spread.max);
        assert_eq!(Spread::of(vec![]), None);
        assert_eq!(Spread::of(vec![ms(7)]).map(all), Some((1, 7.0, 7.0, 7.0, 7.0)));
        let hundred = (1..=100).rev().map(ms).collect();
        assert_eq!(Spread::of(hundred).map(all), Some((100, 1.0, 50.0, 99.0, 100.0)));
        let thousand = (1..=1000).map(ms).collect();
        assert_eq!(Spread::of(thousand).map(all), Some((1000, 1.0, 500.0, 990.0, 1000.0)));
    }

    #[test]
    fn proc_is_read_whatever_a_command_is_called() {
        let stat = "17 (a) b (c)) S 1 17 17 0 -1 4194560 1 0 0 0 250 31 0 0 20 0 3 0 99 1 2";
        assert_eq!(cpu(stat), Some(Duration::from_millis(2810)));
        assert_eq!(resident("Name:\tx\nVmRSS:\t  2048 kB\n"), Some(2 << 20));
        assert_eq!((cpu("17 x"), resident("Name: x")), (None, None));
        assert!(Usage::own().unwrap().resident > 0);
    }
}
