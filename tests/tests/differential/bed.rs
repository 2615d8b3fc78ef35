//! Many workloads behind one Envoy, and the comparison itself.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::net::{Ipv4Addr, SocketAddr};
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};

use futures::StreamExt;
use mesh::{Workload, WorkloadKind};
use serde_json::{Value, json};
use tests::lab::{Authority, Leaf, Signer, in_seconds};
use xds::build::{AppAddress, Capture, Inbound, ProxyShape};

use super::case::{self, Case, Expected, Fault, Mesh, Outcome, Ready, Run, Token, Wire};
use super::client::{Clients, Peer, Sent};
use super::coverage::{features, settings};
use super::envoy::Envoy;

/// Cases whose requests are sent at the same time.
const AT_ONCE: usize = 12;

/// Workloads of one bed before its addresses are used again; every other one, for a policy may name the neighbour.
const ADDRESSES: u32 = 8_000;
/// Beds in one process.
const BEDS: u32 = 4;
static NUMBER: AtomicU32 = AtomicU32::new(0);

pub(crate) struct Bed {
    envoy: Envoy,
    clients: Arc<Clients>,
    app: SocketAddr,
    signer: Signer,
    jwks: String,
    forger: Signer,
    tokens: HashMap<String, String>,
    /// One workload without policy for each normalisation: says what Envoy makes of a path.
    mirrors: BTreeMap<&'static str, Ipv4Addr>,
    paths: HashMap<(String, String), Option<String>>,
    number: u32,
    next: u32,
    refused: Vec<String>,
}

/// One comparison that could be made.
#[derive(Clone, Debug)]
pub(crate) struct Judged {
    /// The case's place in the batch, and the request's in the case.
    pub(crate) which: (usize, usize),
    pub(crate) focus: String,
    /// Rows, operators and polarities in the rules that are enforced on the workload, and its settings.
    pub(crate) features: Arc<BTreeSet<String>>,
    pub(crate) tcp: bool,
    pub(crate) mutual: bool,
    pub(crate) http2: bool,
    pub(crate) outcome: Outcome,
}

/// One that failed: the case with just this request.
#[derive(Clone, Debug)]
pub(crate) struct Wrong {
    pub(crate) case: Case,
    pub(crate) expected: Expected,
    pub(crate) envoy: Outcome,
}

impl Wrong {
    pub(crate) fn kind(&self) -> (String, Outcome, Outcome) {
        let tcp = self.case.requests[0].tcp;
        (self.case.focus.clone(), self.expected.outcome(tcp), self.envoy)
    }
}

/// What is sent, path and headers, and what should come of it; `None` if it cannot be described.
type Planned = (String, Vec<(String, String)>, Option<Expected>);

/// What a case's conversation is made of.
struct Prepared {
    ready: Ready,
    requests: Vec<Planned>,
}

impl Bed {
    pub(crate) async fn new() -> Self {
        let authority = Authority::new().unwrap();
        let own = authority.mint_pem(&Leaf::new(["spiffe://cluster.local/ns/foo/sa/test"])).unwrap();
        let mut others = Vec::new();
        for (provider, status) in case::AUTHORIZERS {
            others.push((case::cluster(provider), super::app::authorizer(status).await));
        }
        let envoy = Envoy::start(own, &authority.root_pem, &others).await;
        let signer = Signer::new("https://login.example").unwrap();
        let mut bed = Self {
            envoy,
            clients: Arc::new(Clients::new(authority)),
            app: super::app::start().await,
            jwks: signer.jwks(),
            signer,
            forger: Signer::new("https://login.example").unwrap(),
            tokens: HashMap::new(),
            mirrors: BTreeMap::new(),
            paths: HashMap::new(),
            number: NUMBER.fetch_add(1, Ordering::Relaxed),
            next: 0,
            refused: Vec::new(),
        };
        assert!(bed.number < BEDS, "there are addresses for {BEDS} beds");
        for normalization in ["NONE", "BASE", "MERGE_SLASHES", "DECODE_AND_MERGE_SLASHES"] {
            let address = bed.address();
            let mesh = Mesh { normalization: normalization.to_owned(), ..Mesh::default() };
            let ready = Case { mesh, ..Case::default() }.ready(Run { address, jwks: "" }).unwrap();
            bed.add(normalization, &ready, &[case::HTTP]);
            bed.mirrors.insert(normalization, address);
        }
        bed.envoy.keep();
        bed
    }

    pub(crate) fn jwks(&self) -> &str {
        &self.jwks
    }

    /// What Envoy did not take although admission does.
    pub(crate) fn refused(&self) -> &[String] {
        &self.refused
    }

    /// A loopback address that nothing else uses: the process id keeps test processes apart, a number the beds of one.
    fn address(&mut self) -> Ipv4Addr {
        self.next = (self.next + 1) % ADDRESSES;
        let [_, _, high, low] = ((self.number * ADDRESSES + self.next) * 2).to_be_bytes();
        Ipv4Addr::new(127, 128 + (std::process::id() % 120) as u8, high, low)
    }

    fn add(&mut self, name: &str, ready: &Ready, ports: &[u16]) {
        let workload = Workload {
            namespace: "foo".into(),
            name: "test".into(),
            kind: WorkloadKind::Pod,
            labels: case::workload().labels,
            service_account: "test".into(),
            addresses: vec![ready.address.into()],
            named_ports: BTreeMap::new(),
            mutual_tls: true,
            ready: true,
            created: 0,
            uid: None,
        };
        let app = AppAddress::Tcp { host: self.app.ip().to_string().into(), port: self.app.port() };
        let declared = case::ports();
        // Policies may name further ports; their applications are never reached.
        let apps =
            (0..=u16::MAX).map(|port| (port, app.clone())).filter(|(port, _)| ports.contains(port)).collect();
        let own = xds::build::own(&Inbound {
            mesh: &ready.mesh,
            workload: &workload,
            ports: &declared,
            policy: &ready.policy,
            shape: &ProxyShape {
                capture: Capture::None { apps, upstreams: BTreeMap::new() },
                inline_policy: !ready.ecds,
                ipv6: false,
            },
            providers: &case::providers(),
            logs: &mesh::Logs::of_mesh(&ready.mesh).server,
        });
        let needed: BTreeSet<String> = ports.iter().map(|port| format!("inbound|{port}||")).collect();
        let own: Vec<_> = own
            .into_iter()
            .filter(|(kind, r)| *kind != xds::ResourceType::Cluster || needed.contains(&*r.name))
            .collect();
        self.envoy.add(name, &own, ports);
    }

    fn ready(&mut self, cases: &[Case]) -> Vec<Ready> {
        let jwks = self.jwks.clone();
        let ready = |case: &Case| {
            let run = Run { address: self.address(), jwks: &jwks };
            case.ready(run).unwrap_or_else(|why| panic!("{why}: {case:#?}"))
        };
        cases.iter().map(ready).collect()
    }

    /// Puts all cases in force at once, on every port, and gives what Envoy refuses of it.
    pub(crate) async fn load(&mut self, cases: &[Case]) -> Vec<String> {
        for (i, ready) in self.ready(cases).iter().enumerate() {
            self.add(&format!("{}-{i}", ready.address), ready, &[case::HTTP, case::AUTO, case::TCP]);
        }
        self.envoy.load().await
    }

    /// Only what was decided differently.
    pub(crate) async fn disagreements(&mut self, cases: Vec<Case>) -> Vec<Wrong> {
        self.judge(cases).await.1
    }

    /// Puts all cases in force at once and compares every request.
    pub(crate) async fn judge(&mut self, cases: Vec<Case>) -> (Vec<Judged>, Vec<Wrong>) {
        let ready = self.ready(&cases);
        for (i, (case, ready)) in cases.iter().zip(&ready).enumerate() {
            let ports: BTreeSet<u16> = case.requests.iter().map(|wire| wire.port).collect();
            let name = format!("{}-{i}", ready.address);
            self.add(&name, ready, &ports.into_iter().collect::<Vec<_>>());
        }
        let start = std::time::Instant::now();
        let refused = self.envoy.load().await;
        if std::env::var_os("TIMES").is_some() {
            eprintln!("load of {}: {:?}", cases.len(), start.elapsed());
        }
        let taken = |ready: &Ready| !refused.iter().any(|line| line.contains(&format!("{}-", ready.address)));
        for (case, _) in cases.iter().zip(&ready).filter(|(_, ready)| !taken(ready)) {
            self.refused.push(format!("{refused:?}: {}", serde_json::to_string(&case.policies).unwrap()));
        }
        if !refused.is_empty() && self.refused.is_empty() {
            self.refused.push(format!("{refused:?}"));
        }
        self.learn_paths(&cases).await;
        let mut prepared = Vec::new();
        let all = cases.into_iter().zip(ready).enumerate();
        for (i, (case, ready)) in all.filter(|(_, (_, ready))| taken(ready)) {
            let requests = case.requests.iter().map(|wire| self.prepare(wire, &case.mesh, &ready)).collect();
            prepared.push((i, case, Prepared { ready, requests }));
        }
        let start = std::time::Instant::now();
        let clients = &self.clients;
        let answers = prepared.into_iter().map(|(i, case, prepared)| {
            let clients = clients.clone();
            // On the workers, all of them.
            tokio::spawn(async move { compare(&clients, i, &case, prepared).await })
        });
        let mut all = (Vec::new(), Vec::new());
        let mut answers = futures::stream::iter(answers).buffer_unordered(AT_ONCE);
        while let Some(answer) = answers.next().await {
            let (judged, wrong) = answer.unwrap();
            all.0.extend(judged);
            all.1.extend(wrong);
        }
        if std::env::var_os("TIMES").is_some() {
            eprintln!("{} requests: {:?}", all.0.len(), start.elapsed());
        }
        all
    }

    fn prepare(&mut self, wire: &Wire, mesh: &Mesh, ready: &Ready) -> Planned {
        let jwt = wire.token.as_ref().map(|token| self.jwt(token)).unwrap_or_default();
        let (path, headers) = wire.sent(|_| jwt.clone());
        let normalised = self.paths.get(&(mesh.normalization.clone(), wire.path.clone())).cloned().flatten();
        let normalised = if wire.tcp { Some(String::new()) } else { normalised };
        let expected = normalised.and_then(|path| wire.expected(ready, &path, headers.clone()));
        (path, headers, expected)
    }

    fn jwt(&mut self, token: &Token) -> String {
        let claims = Value::Object(token.claims.clone());
        let key = format!("{:?} {claims}", token.fault);
        if let Some(known) = self.tokens.get(&key) {
            return known.clone();
        }
        let mut claims = claims;
        claims["exp"] = json!(in_seconds(if token.fault == Fault::Expired { -3600 } else { 36000 }));
        let made = match token.fault {
            Fault::None | Fault::Expired => self.signer.sign(&claims).unwrap(),
            Fault::Forged => self.forger.sign(&claims).unwrap(),
            Fault::Garbage => "a.b.c".to_owned(),
        };
        if self.tokens.len() > 20_000 {
            self.tokens.clear();
        }
        self.tokens.insert(key, made.clone());
        made
    }

    /// Asks the workloads without policy what becomes of each new path.
    async fn learn_paths(&mut self, cases: &[Case]) {
        if self.paths.len() > 200_000 {
            self.paths.clear();
        }
        let mut new: BTreeMap<&str, BTreeSet<&str>> = BTreeMap::new();
        for case in cases {
            for wire in case.requests.iter().filter(|wire| !wire.tcp) {
                let key = (case.mesh.normalization.clone(), wire.path.clone());
                if !self.paths.contains_key(&key) {
                    new.entry(&case.mesh.normalization).or_default().insert(&wire.path);
                }
            }
        }
        for (mesh, paths) in new {
            let to = self.mirrors[mesh];
            let wires: Vec<Wire> =
                paths.into_iter().map(|path| Wire { path: path.to_owned(), ..Wire::default() }).collect();
            let sent: Vec<Sent<'_>> = wires
                .iter()
                .map(|wire| Sent { wire, path: wire.path.clone(), headers: Vec::new() })
                .collect();
            let answers = self.clients.converse(to, &Peer::of(&wires[0]), &sent).await;
            for (wire, answer) in wires.iter().zip(answers) {
                let seen =
                    answer.filter(|(outcome, _)| *outcome == Outcome::Status(200)).map(|(_, body)| body);
                self.paths.insert((mesh.to_owned(), wire.path.clone()), seen);
            }
        }
    }
}

async fn compare(clients: &Clients, i: usize, case: &Case, prepared: Prepared) -> (Vec<Judged>, Vec<Wrong>) {
    let Prepared { ready, requests } = prepared;
    let mut features = features(&ready.policy);
    features.extend(settings(case, &ready.policy));
    let features = Arc::new(features);
    let mut by_peer: HashMap<Peer, Vec<(usize, Sent<'_>, Expected)>> = HashMap::new();
    for (j, (wire, (path, headers, expected))) in case.requests.iter().zip(requests).enumerate() {
        if let Some(expected) = expected {
            by_peer.entry(Peer::of(wire)).or_default().push((j, Sent { wire, path, headers }, expected));
        }
    }
    let (mut judged, mut wrong) = (Vec::new(), Vec::new());
    for (peer, requests) in by_peer {
        let sent: Vec<Sent<'_>> = requests.iter().map(|(_, sent, _)| sent.clone()).collect();
        let answers = clients.converse(ready.address, &peer, &sent).await;
        for ((j, sent, expected), answer) in requests.iter().zip(answers) {
            let Some((envoy, _)) = answer else { continue };
            let wire = sent.wire;
            // Not understood, so no policy saw it.
            if envoy == Outcome::Status(400) {
                continue;
            }
            judged.push(Judged {
                which: (i, *j),
                focus: case.focus.clone(),
                features: features.clone(),
                tcp: wire.tcp,
                mutual: !wire.peer.is_empty(),
                http2: wire.http2,
                outcome: envoy,
            });
            if !expected.agrees(envoy, wire.tcp) {
                let case = Case { requests: vec![wire.clone()], ..case.clone() };
                wrong.push(Wrong { case, expected: expected.clone(), envoy });
            }
        }
    }
    (judged, wrong)
}
