//! What our configuration costs Envoy: latency it adds and processor time per request over live keep-alive connections, and
//! memory, with 0, 100 and 1,000 policies on one workload. Prints a table for docs/performance.md; decides nothing.
//! `cargo bench -p bench --bench proxy_cost`.
#![expect(clippy::print_stdout, reason = "what it measures is its output")]

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::net::{Ipv4Addr, SocketAddr};
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, ensure};
use bench::join_all;
use crds::{Content, Object};
use mesh::{InboundPort, MeshConfig, Workload, WorkloadKind};
use policy::{PolicySet, Scope, WorkloadKey};
use tests::lab::{self, ALLOWED, Caller, Credential, DENIED, Lab, PodId, PodSpec, Protocol};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use xds::ResourceType;
use xds::build::{Capture, Inbound, ProxyShape};

/// Policies on the workload; every other one is a DENY, and each asks for an identity, a method and a path.
const COUNTS: [usize; 3] = [0, 100, 1_000];
/// Keep-alive connections that ask one request after the other.
const CONNECTIONS: usize = 4;
const WARM: Duration = Duration::from_secs(2);
const MEASURED: Duration = Duration::from_secs(10);
/// Clock ticks of `/proc/PID/stat` (`getconf CLK_TCK`): 100 on every Linux of today.
const TICKS: u64 = 100;

fn main() {
    lab::run("proxy_cost", measure);
    // What the sandbox that runs us looks for.
    println!("test result: ok. 1 passed; 0 failed");
}

async fn measure(lab: &mut Lab) -> Result<()> {
    lab.save("strict.yaml", STRICT)?;
    lab.save("policies.yaml", &policies(0))?;
    lab.start().await?;
    let pod = lab.pod(PodSpec::new("default", "app").port(8080, Protocol::Http).without_capture()).await?;
    let bare = lab.bare_pod(PodSpec::new("default", "bare").port(8080, Protocol::Http)).await?;
    println!(
        "| on the way | p50 | p99 | added p50 | added p99 | Envoy's CPU per request | Envoy resident | its heap | policies as sent | RBAC filters |"
    );
    println!("|---|---|---|---|---|---|---|---|---|---|");
    let direct = Caller::new(&lab[bare].at, Credential::Plaintext);
    let direct = load(&direct, (Ipv4Addr::LOCALHOST, 8080).into(), None).await?;
    println!("| nothing | {} | {} | – | – | – | – | – | – | – |", ms(direct.at(0.5)), ms(direct.at(0.99)));
    let caller = lab.caller_to(pod, lab.identity("default", "caller")?);
    let envoy = lab[pod].envoy_pid().context("an Envoy")?;
    let mut empty = None;
    for count in COUNTS {
        lab.save("policies.yaml", &policies(count))?;
        in_force(lab, pod, &caller, count).await?;
        let with = load(&caller, lab[pod].on(8080), Some(envoy)).await?;
        let (sent, filters) = sent(count)?;
        let (resident, heap) = (resident(envoy)?, heap(lab, pod).await?);
        println!(
            "| Envoy, mutual TLS, {count} policies | {} | {} | {} | {} | {:.0} µs | {:.1} MB | {:.2} MB | {:.1} KB | {filters} |",
            ms(with.at(0.5)),
            ms(with.at(0.99)),
            ms(with.at(0.5).saturating_sub(direct.at(0.5))),
            ms(with.at(0.99).saturating_sub(direct.at(0.99))),
            with.cpu.as_secs_f64() * 1e6 / with.latencies.len() as f64,
            resident as f64 / 1e6,
            heap as f64 / 1e6,
            sent as f64 / 1e3,
        );
        let (heap_before, sent_before) = *empty.get_or_insert((heap, sent));
        if count > 0 {
            let grown = heap as f64 - heap_before as f64;
            println!(
                "  {count} policies: the heap grew by {:.2} MB, {:.1} bytes for each byte sent",
                grown / 1e6,
                grown / (sent - sent_before) as f64
            );
        }
    }
    Ok(())
}

const STRICT: &str = "apiVersion: security.istio.io/v1\nkind: PeerAuthentication\nmetadata: {name: default, namespace: \
                      istio-system}\nspec:\n  mtls: {mode: STRICT}\n";

/// None of these matches but the last, so that each request is held against all of them; and the mark by which one sees
/// that they are in force.
fn policies(count: usize) -> String {
    let mut text = String::new();
    let mut policy = |name: &str, action: &str, account: &str, path: &str| {
        let _ = write!(
            text,
            "---\napiVersion: security.istio.io/v1\nkind: AuthorizationPolicy\nmetadata: {{name: {name}, namespace: default}}\n\
             spec:\n  action: {action}\n  rules:\n  - from: [{{source: {{principals: [\"cluster.local/ns/default/sa/{account}\"]}}}}]\n    \
             to: [{{operation: {{methods: [GET], paths: [\"{path}\"]}}}}]\n"
        );
    };
    for i in 0..count {
        let action = if i % 2 == 0 { "DENY" } else { "ALLOW" };
        policy(&format!("policy-{i:04}"), action, &format!("somebody-{i}"), &format!("/api/{i}/*"));
    }
    if count > 0 {
        policy("zz-caller", "ALLOW", "caller", "/*");
        policy("zz-mark", "DENY", "caller", &format!("/mark-{count}"));
    }
    text
}

async fn in_force(lab: &Lab, pod: PodId, caller: &Caller, count: usize) -> Result<()> {
    let on = lab[pod].on(8080);
    let mark = format!("/mark-{count}");
    if count > 0 {
        lab.becomes(DENIED, async |_: &Lab| caller.get(on, &mark).await.got).await?;
    }
    lab.becomes(ALLOWED, async |_: &Lab| caller.get(on, "/").await.got).await
}

struct Measured {
    /// Sorted.
    latencies: Vec<Duration>,
    cpu: Duration,
}

impl Measured {
    fn at(&self, part: f64) -> Duration {
        self.latencies[((self.latencies.len() - 1) as f64 * part) as usize]
    }
}

async fn load(caller: &Caller, to: SocketAddr, envoy: Option<i32>) -> Result<Measured> {
    let mut connections = Vec::new();
    for _ in 0..CONNECTIONS {
        connections.push(caller.http1(to).await.map_err(|got| anyhow::anyhow!("{got}"))?);
    }
    let mut cpu = Duration::ZERO;
    let mut latencies = Vec::new();
    for duration in [WARM, MEASURED] {
        let before = envoy.map(processor).transpose()?;
        let end = Instant::now() + duration;
        let runs = join_all(connections.iter_mut().map(|connection| ask(connection, end))).await;
        latencies = runs.into_iter().collect::<Result<Vec<_>>>()?.concat();
        if let (Some(envoy), Some(before)) = (envoy, before) {
            cpu = processor(envoy)?.saturating_sub(before);
        }
    }
    latencies.sort();
    ensure!(latencies.len() > 100, "only {} requests", latencies.len());
    Ok(Measured { latencies, cpu })
}

async fn ask(connection: &mut lab::Http, end: Instant) -> Result<Vec<Duration>> {
    let mut latencies = Vec::new();
    while Instant::now() < end {
        let start = Instant::now();
        let got = connection.get("/").await.got;
        latencies.push(start.elapsed());
        ensure!(got == ALLOWED, "{got}");
    }
    Ok(latencies)
}

/// User and system time of a process so far (proc_pid_stat(5), fields 14 and 15).
fn processor(pid: i32) -> Result<Duration> {
    let stat = std::fs::read_to_string(format!("/proc/{pid}/stat"))?;
    let (_, fields) = stat.rsplit_once(") ").context("stat")?;
    let times = fields.split(' ').skip(11).take(2).map(str::parse::<u64>);
    let ticks: u64 = times.sum::<Result<u64, _>>()?;
    Ok(Duration::from_millis(ticks * 1000 / TICKS))
}

fn resident(pid: i32) -> Result<u64> {
    let status = std::fs::read_to_string(format!("/proc/{pid}/status"))?;
    let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:")).context("VmRSS")?;
    let kilobytes: u64 = line.split_whitespace().next().context("a number")?.parse()?;
    Ok(kilobytes << 10)
}

/// Bytes that Envoy itself counts as allocated.
async fn heap(lab: &Lab, pod: PodId) -> Result<u64> {
    let socket = lab[pod].folder.join("sds/envoy-admin.sock");
    let mut stream =
        tokio::net::UnixStream::connect(&socket).await.with_context(|| format!("{}", socket.display()))?;
    stream.write_all(b"GET /memory HTTP/1.1\r\nhost: envoy\r\nconnection: close\r\n\r\n").await?;
    let mut answer = String::new();
    stream.read_to_string(&mut answer).await?;
    let number = answer.split("\"allocated\": \"").nth(1).and_then(|rest| rest.split('"').next());
    Ok(number.with_context(|| answer.clone())?.parse()?)
}

/// Bytes of the extension configs that these policies become, and how many of them are RBAC filters.
fn sent(count: usize) -> Result<(usize, usize)> {
    let mut set = PolicySet::new(Scope::default());
    for document in crds::read(&format!("{STRICT}{}", policies(count)), "policies.yaml") {
        match document.content {
            Content::Object(object) => match *object {
                Object::PeerAuthentication(policy) => set.put_peer(policy.into()),
                Object::AuthorizationPolicy(policy) => set.put_authorization(policy.into()),
                other => anyhow::bail!("{other:?}"),
            },
            other => anyhow::bail!("{other:?}"),
        }
    }
    let labels = BTreeMap::from([("app".to_owned(), "app".to_owned())]);
    let policy =
        policy::resolve(&set, &WorkloadKey { namespace: "default".into(), labels: labels.clone().into() });
    let workload = Workload {
        namespace: "default".into(),
        name: "app".into(),
        kind: WorkloadKind::Pod,
        labels: labels.into(),
        service_account: "app".into(),
        addresses: vec![Ipv4Addr::LOCALHOST.into()],
        named_ports: BTreeMap::new(),
        mutual_tls: true,
        ready: true,
        created: 0,
        uid: None,
    };
    let own = xds::build::own(&Inbound {
        mesh: &MeshConfig::default(),
        workload: &workload,
        ports: &[InboundPort { port: 8080, protocol: mesh::Protocol::Http, app: None }],
        policy: &policy,
        shape: &ProxyShape {
            capture: Capture::None { apps: BTreeMap::new(), upstreams: BTreeMap::new() },
            inline_policy: false,
            ipv6: false,
        },
        providers: &BTreeMap::new(),
        logs: &[],
    });
    let extensions = own.iter().filter(|(kind, _)| *kind == ResourceType::Extension);
    let (mut bytes, mut filters) = (0, 0);
    for (_, resource) in extensions {
        bytes += resource.any.len();
        let rbac = b"envoy.extensions.filters.http.rbac.v3.RBAC";
        filters += usize::from(resource.any.windows(rbac.len()).any(|window| window == rbac));
    }
    Ok((bytes, filters))
}

fn ms(duration: Duration) -> String {
    format!("{:.2} ms", duration.as_secs_f64() * 1e3)
}
