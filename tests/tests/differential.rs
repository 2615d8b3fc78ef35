//! `policy::evaluate` against a real Envoy that `xds::build` configured: generated policies, and requests on their edges.
//!
//! Cases are put in front of one Envoy a batch at a time, each workload on an address of its own. Any disagreement is
//! made small and kept in `tests/differential/regressions`, which is replayed first on every run.
//!
//! `DECISIONS` says how many to compare, `FUZZ_SECONDS` for how long instead, `FUZZ_STATE` where the place in the sequence
//! of seeds is kept, `FAIL_FAST` that the first disagreement ends it as it is. What is not compared: authorizers asked by
//! gRPC, gateways, outbound traffic, and requests that no policy can see (Envoy answers 400).

#![allow(clippy::unwrap_used, clippy::print_stderr, reason = "a test panics, and says how far it came")]

#[path = "differential/accepted.rs"]
mod accepted;
#[path = "differential/ads.rs"]
mod ads;
#[path = "differential/app.rs"]
mod app;
#[path = "differential/bed.rs"]
mod bed;
#[path = "differential/case.rs"]
mod case;
#[path = "differential/client.rs"]
mod client;
#[path = "differential/coverage.rs"]
mod coverage;
#[path = "differential/edges.rs"]
mod edges;
#[path = "differential/envoy.rs"]
mod envoy;
#[path = "differential/laws.rs"]
mod laws;
#[path = "differential/policies.rs"]
mod policies;
#[path = "differential/regressions.rs"]
mod regressions;
#[path = "differential/shrink.rs"]
mod shrink;
#[path = "differential/wild.rs"]
mod wild;
#[path = "differential/words.rs"]
mod words;

use std::time::{Duration, Instant};

use bed::Bed;
use coverage::Coverage;

/// Cases in one load of configuration.
const BATCH: usize = 80;

/// How many decisions, or how long.
#[derive(Clone, Copy, Debug)]
enum Goal {
    Decisions(usize),
    Until(Instant),
}

impl Goal {
    fn from_environment() -> Self {
        let number = |name: &str| std::env::var(name).ok().map(|text| text.parse::<u64>().expect(name));
        match number("FUZZ_SECONDS") {
            Some(seconds) => Self::Until(Instant::now() + Duration::from_secs(seconds)),
            None => Self::Decisions(number("DECISIONS").unwrap_or(20_000).try_into().unwrap()),
        }
    }

    fn reached(self, decisions: usize) -> bool {
        match self {
            Self::Decisions(wanted) => decisions >= wanted,
            Self::Until(end) => Instant::now() >= end,
        }
    }
}

/// The sequence of seeds: fixed for a test, continued from a file for the fuzzer.
struct Seeds {
    next: u64,
    /// What all runs before this one have compared.
    before: u64,
    file: Option<std::path::PathBuf>,
}

impl Seeds {
    /// `state` is the variable that names the file: the next seed, and how much was compared so far.
    fn new(state: &str) -> Self {
        let file = std::env::var_os(state).map(std::path::PathBuf::from);
        let kept = file.as_ref().and_then(|file| std::fs::read_to_string(file).ok()).unwrap_or_default();
        let mut numbers = kept.split_whitespace().map(|number| number.parse().expect("a number"));
        Self { next: numbers.next().unwrap_or(0), before: numbers.next().unwrap_or(0), file }
    }

    fn next(&mut self) -> u64 {
        self.next += 1;
        self.next
    }

    /// After a batch is done, so that one that was interrupted is done again. `compared` is this run's; gives that of all.
    fn keep(&self, compared: u64) -> u64 {
        let whole = self.before + compared;
        let Some(file) = &self.file else { return whole };
        std::fs::create_dir_all(file.parent().unwrap()).unwrap();
        let new = file.with_extension("new");
        std::fs::write(&new, format!("{} {whole}\n", self.next)).unwrap();
        std::fs::rename(new, file).unwrap();
        whole
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn evaluate_and_envoy_decide_alike() {
    let mut bed = Bed::new().await;
    let mut failures = Vec::new();
    for (name, case) in regressions::all() {
        let wrong = bed.disagreements(vec![case]).await;
        failures.extend(wrong.into_iter().map(|wrong| format!("regression {name}: {wrong:#?}")));
    }
    assert!(failures.is_empty(), "{}", failures.join("\n\n"));
    let (goal, mut seeds, mut coverage) =
        (Goal::from_environment(), Seeds::new("FUZZ_STATE"), Coverage::default());
    let fail_fast = std::env::var_os("FAIL_FAST").is_some();
    let start = Instant::now();
    while !goal.reached(coverage.decisions) && failures.len() < 5 {
        let cases = (0..BATCH).map(|_| policies::case(seeds.next(), bed.jwks())).collect();
        let (judged, wrong) = bed.judge(cases).await;
        judged.iter().for_each(|judged| coverage.add(judged));
        assert!(!fail_fast || wrong.is_empty(), "{:#?}", wrong[0]);
        let mut kinds = std::collections::BTreeSet::new();
        for wrong in wrong {
            // One of each kind: the rest is most often the same mistake.
            if kinds.insert(wrong.kind()) && kinds.len() <= 3 {
                let small = shrink::shrink(&mut bed, wrong).await;
                let kept = regressions::keep(&small);
                failures.push(format!("kept as {}: {small:#?}", kept.display()));
            }
        }
        let whole = seeds.keep(coverage.decisions as u64);
        coverage.batches += 1;
        if coverage.batches.is_multiple_of(5) {
            eprintln!("{}; {whole} in all", coverage.summary(start.elapsed()));
        }
    }
    eprintln!("{}", coverage.summary(start.elapsed()));
    assert!(failures.is_empty(), "{}", failures.join("\n\n"));
    // Every object that admission accepts is one that Envoy takes.
    assert!(bed.refused().is_empty(), "Envoy refused what admission accepts: {:#?}", bed.refused());
    // A short run says nothing about shares.
    if coverage.decisions >= 20_000 {
        coverage.check();
    }
}
