//! From saving a policy file to a request refused, in 20 real Envoys, over live keep-alive connections; and what the control
//! plane uses for it. Prints a table; decides nothing. `cargo bench -p bench --bench enforcement`.
#![expect(clippy::print_stdout, reason = "what it measures is its output")]

use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, ensure};
use bench::join_all;
use tests::lab::{self, ALLOWED, DENIED, Got, Lab, PodId, PodSpec, Protocol};

const PROXIES: usize = 20;
const CHANGES: usize = 120;
/// Between two requests of one connection: twenty clients that never pause would measure how two cores are shared.
const PAUSE: Duration = Duration::from_millis(2);
/// A change that takes longer is a failure of the measurement.
const LIMIT: Duration = Duration::from_secs(5);

fn main() {
    lab::run("enforcement", async |lab| {
        let pods = start(lab).await?;
        let mut latencies = Vec::with_capacity(PROXIES * CHANGES);
        let caller = lab.identity("default", "caller")?;
        let mut connections = Vec::new();
        for pod in &pods {
            let connection = lab.caller_to(*pod, caller.clone()).http1(lab[*pod].on(8080)).await;
            connections.push(connection.map_err(|got| anyhow::anyhow!("{got}"))?);
        }
        for change in 0..CHANGES {
            // Idle in between, as people's edits are.
            tokio::time::sleep(PAUSE * 25).await;
            let (accounts, expected) = if change % 2 == 0 { ("other", DENIED) } else { ("caller", ALLOWED) };
            lab.save("allow.yaml", &allow(accounts))?;
            let saved = Instant::now();
            let waits = connections.iter_mut().map(|connection| felt(connection, expected, saved));
            for latency in join_all(waits).await {
                latencies.push(latency?);
            }
        }
        report(lab, latencies)
    });
    // What the sandbox that runs us looks for.
    println!("test result: ok. 1 passed; 0 failed");
}

async fn start(lab: &mut Lab) -> Result<Vec<PodId>> {
    lab.save("strict.yaml", STRICT)?;
    lab.save("allow.yaml", &allow("caller"))?;
    lab.start().await?;
    let spec = |n| PodSpec::new("default", &format!("app-{n}")).port(8080, Protocol::Http).without_capture();
    let pods = lab.pods((0..PROXIES).map(spec)).await?;
    let caller = lab.identity("default", "caller")?;
    for pod in &pods {
        let on = lab[*pod].on(8080);
        lab.becomes(ALLOWED, async |lab: &Lab| lab.caller_to(*pod, caller.clone()).get(on, "/").await.got)
            .await?;
    }
    Ok(pods)
}

const STRICT: &str = "apiVersion: security.istio.io/v1\nkind: PeerAuthentication\nmetadata: {name: default, namespace: \
                      istio-system}\nspec:\n  mtls: {mode: STRICT}\n";

fn allow(account: &str) -> String {
    format!(
        "apiVersion: security.istio.io/v1\nkind: AuthorizationPolicy\nmetadata: {{name: allow, namespace: default}}\nspec:\n  \
         rules:\n  - from: [{{source: {{principals: [\"cluster.local/ns/default/sa/{account}\"]}}}}]\n"
    )
}

/// How long after `saved` the first request is answered as `expected`, on this very connection.
async fn felt(connection: &mut lab::Http, expected: Got, saved: Instant) -> Result<Duration> {
    loop {
        let got = connection.get("/").await.got;
        if got == expected {
            return Ok(saved.elapsed());
        }
        ensure!(got == ALLOWED || got == DENIED, "the connection did not live through it: {got}");
        ensure!(saved.elapsed() < LIMIT, "not felt after {LIMIT:?}");
        tokio::time::sleep(PAUSE).await;
    }
}

fn report(lab: &Lab, mut latencies: Vec<Duration>) -> Result<()> {
    latencies.sort();
    let at = |part: f64| latencies[((latencies.len() - 1) as f64 * part) as usize].as_secs_f64() * 1000.0;
    let pid = lab.control.process.as_ref().context("the control plane runs")?.pid();
    let status = std::fs::read_to_string(format!("/proc/{pid}/status"))?;
    let resident = status.lines().find_map(|line| line.strip_prefix("VmRSS:")).unwrap_or("?").trim();
    println!("saved -> felt, {CHANGES} changes x {PROXIES} Envoys, milliseconds:");
    println!("  p50 {:.1}  p90 {:.1}  p99 {:.1}  max {:.1}", at(0.5), at(0.9), at(0.99), at(1.0));
    println!("control plane resident memory: {resident}");
    Ok(())
}
