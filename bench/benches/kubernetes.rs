//! From the API server's answer to a policy's write to a request refused, and to `Enforced` in the policy's status, in 20
//! real Envoys over live keep-alive connections; and a start with a thousand pods and a thousand policies. Prints a table;
//! decides nothing. `cargo bench -p bench --bench kubernetes`.
#![expect(clippy::print_stdout, reason = "what it measures is its output")]

use std::time::{Duration, Instant};

use anyhow::{Result, ensure};
use bench::join_all;
use tests::lab::cluster::{BareId, Cluster};
use tests::lab::{self, ALLOWED, DENIED, Got, PodSpec, Protocol};

const PROXIES: usize = 20;
const CHANGES: usize = 60;
/// Between two requests of one connection: twenty clients that never pause would measure how two cores are shared.
const PAUSE: Duration = Duration::from_millis(2);
/// A change that takes longer is a failure of the measurement.
const LIMIT: Duration = Duration::from_secs(5);

const ARGUMENTS: [&str; 6] = ["--webhook-addr", "off", "--ca-addr", "off", "--secure-addr", "off"];

fn main() {
    lab::run("kubernetes", async |lab| {
        let mut mesh = Cluster::new(lab).await?;
        mesh.kube.thousand().await?;
        start(&mut mesh).await?;
        enforcement(&mut mesh).await
    });
    // What the sandbox that runs us looks for.
    println!("test result: ok. 1 passed; 0 failed");
}

/// Ready after its start, with a thousand of each in the API server.
async fn start(mesh: &mut Cluster<'_>) -> Result<()> {
    mesh.prepare_controller("one", &ARGUMENTS).await?;
    let mut times = Vec::new();
    for _ in 0..5 {
        let started = Instant::now();
        mesh.at("one").start()?;
        mesh.at("one").ready().await?;
        times.push(started.elapsed());
    }
    times.sort();
    println!("start -> ready with 1,000 pods, 1,000 policies, seconds: median {:.2}", times[2].as_secs_f64());
    println!("  resident after that: {} MB", mesh.at("one").resident()? >> 20);
    Ok(())
}

async fn enforcement(mesh: &mut Cluster<'_>) -> Result<()> {
    mesh.kube.apply(&deny("/other")).await?;
    let spec = |n| PodSpec::new("default", &format!("app-{n}")).port(8080, Protocol::Http);
    let pods: Vec<BareId> = mesh.pods((0..PROXIES).map(spec), &["one"]).await?;
    let caller = mesh.caller(mesh.identity("default", "caller")?);
    let mut connections = Vec::new();
    for pod in &pods {
        let on = mesh.on(*pod, 8080);
        mesh.becomes(ALLOWED, async |_| caller.get(on, "/").await.got).await?;
        connections.push(caller.http1(on).await.map_err(|got| anyhow::anyhow!("{got}"))?);
    }
    let (mut felts, mut told) = (Vec::new(), Vec::new());
    for change in 0..CHANGES {
        // Idle in between, as people's edits are.
        tokio::time::sleep(PAUSE * 50).await;
        let (path, expected) = if change % 2 == 0 { ("/", DENIED) } else { ("/other", ALLOWED) };
        mesh.kube.apply(&deny(path)).await?;
        let written = Instant::now();
        let (latencies, status) = tokio::join!(
            join_all(connections.iter_mut().map(|connection| felt(connection, expected, written))),
            enforced(mesh, written)
        );
        for latency in latencies {
            felts.push(latency?);
        }
        told.push(status?);
    }
    println!("written -> felt, {CHANGES} changes x {PROXIES} Envoys, milliseconds:\n  {}", quantiles(felts));
    println!("written -> Enforced True, {CHANGES} changes, milliseconds:\n  {}", quantiles(told));
    println!("  resident after that: {} MB", mesh.at("one").resident()? >> 20);
    Ok(())
}

/// Of HTTP alone: a policy that reaches TCP ports, too, counts as enforced only when their old connections have ended.
fn deny(path: &str) -> String {
    format!(
        "apiVersion: security.istio.io/v1\nkind: AuthorizationPolicy\nmetadata: {{name: deny, namespace: default}}\nspec:\n  \
         action: DENY\n  rules:\n  - to: [{{operation: {{paths: [{path}], ports: ['8080']}}}}]\n"
    )
}

/// How long after `written` the first request is answered as `expected`, on this very connection.
async fn felt(connection: &mut lab::Http, expected: Got, written: Instant) -> Result<Duration> {
    loop {
        let got = connection.get("/").await.got;
        if got == expected {
            return Ok(written.elapsed());
        }
        ensure!(got == ALLOWED || got == DENIED, "the connection did not live through it: {got}");
        ensure!(written.elapsed() < LIMIT, "not felt after {LIMIT:?}");
        tokio::time::sleep(PAUSE).await;
    }
}

/// How long after `written` the policy's status says of this generation that it is enforced.
async fn enforced(mesh: &Cluster<'_>, written: Instant) -> Result<Duration> {
    loop {
        let condition = mesh.condition("AuthorizationPolicy", "default", "deny", "Enforced").await?;
        if condition.starts_with("True ") {
            return Ok(written.elapsed());
        }
        ensure!(written.elapsed() < LIMIT, "not told after {LIMIT:?}: {condition}");
        tokio::time::sleep(PAUSE).await;
    }
}

fn quantiles(mut latencies: Vec<Duration>) -> String {
    latencies.sort();
    let at = |part: f64| latencies[((latencies.len() - 1) as f64 * part) as usize].as_secs_f64() * 1000.0;
    format!("p50 {:.1}  p90 {:.1}  p99 {:.1}  max {:.1}", at(0.5), at(0.9), at(0.99), at(1.0))
}
