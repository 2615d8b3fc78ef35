//! The API server, its CRDs or the controller go away under traffic: no decision changes, nobody is let in, and what
//! was missed is in force soon after they are back.

use std::net::SocketAddr;
use std::time::{Duration, Instant};

use anyhow::{Result, ensure};
use http::Method;
use tests::here;
use tests::lab::cluster::{AgentPod, Cluster};
use tests::lab::kube::Through;
use tests::lab::traffic::{Flow, Traffic};
use tests::lab::{self, ALLOWED, Credential, DENIED, Got, Lab, PodSpec, Protocol, request};

/// Changes that were missed are in force so soon after the API server is back.
const MISSED: Duration = Duration::from_secs(5);

const POLICIES: &str = r"
apiVersion: security.istio.io/v1
kind: PeerAuthentication
metadata: {name: default, namespace: istio-system}
spec:
  mtls: {mode: STRICT}
---
apiVersion: security.istio.io/v1
kind: AuthorizationPolicy
metadata: {name: allow, namespace: default}
spec:
  rules:
  - from: [{source: {principals: [cluster.local/ns/default/sa/payment]}}]
    to: [{operation: {methods: [POST], paths: [/orders/*]}}]
";

/// One pod, one controller, and callers that are let in or not.
struct Scene<'lab> {
    mesh: Cluster<'lab>,
    orders: SocketAddr,
    /// In a scene with the certificate authority.
    _agent: Option<AgentPod>,
}

impl<'lab> Scene<'lab> {
    async fn new(lab: &'lab mut Lab) -> Result<Self> {
        let mut mesh = Cluster::new(lab).await?;
        mesh.kube.apply(POLICIES).await?;
        mesh.controller("one").await?;
        let orders = mesh.pod(orders(), &["one"]).await?;
        let orders = mesh.on(orders, 8080);
        Ok(Self { mesh, orders, _agent: None })
    }

    /// As an injected sidecar runs: an agent with a service-account token, on the secure port.
    async fn secure(lab: &'lab mut Lab) -> Result<Self> {
        let mut mesh = Cluster::new(lab).await?;
        mesh.ca().await?;
        mesh.kube.apply(POLICIES).await?;
        mesh.replica("one").await?;
        let agent = mesh.agent_pod(orders(), "one").await?;
        let scene = Self { mesh, orders: agent.on(8080), _agent: Some(agent) };
        scene.mesh.becomes(ALLOWED, async |_| scene.got("payment").await).await?;
        Ok(scene)
    }

    fn flow(&self, name: &'static str, credential: Credential, expected: &[Got]) -> Flow {
        Flow {
            name,
            caller: self.mesh.caller(credential),
            to: self.orders,
            request: request(Method::POST, "/orders/1"),
            expected: expected.to_vec(),
        }
    }

    /// Steady state is the only state: what is allowed never fails, what is refused never passes.
    fn steady(&self) -> Result<Traffic> {
        Ok(Traffic::start([
            self.flow("payment", self.mesh.identity("default", "payment")?, &[ALLOWED]),
            self.flow("intruder", self.mesh.identity("default", "intruder")?, &[DENIED]),
            self.flow("plaintext", Credential::Plaintext, &[Got::Closed]),
        ]))
    }

    async fn got(&self, account: &str) -> Got {
        let caller = self.mesh.caller(self.mesh.identity("default", account).expect("a certificate"));
        caller.send(self.orders, request(Method::POST, "/orders/1")).await.got
    }

    /// Payment is out and the auditor in: what was written while nobody could see it.
    async fn missed_change(&self) -> Result<()> {
        self.mesh.kube.apply(&POLICIES.replace("sa/payment", "sa/auditor")).await?;
        self.mesh.kube.delete(&POLICIES[..POLICIES.find("---").unwrap_or_default()]).await
    }

    async fn change_is_felt(&self, back: Instant) -> Result<()> {
        self.mesh.becomes(DENIED, async |_| self.got("payment").await).await?;
        self.mesh.becomes(ALLOWED, async |_| self.got("auditor").await).await?;
        let plaintext = self.mesh.caller(Credential::Plaintext);
        let to = self.orders;
        // STRICT is gone with its policy; the caller without a name is now refused by the other one.
        self.mesh
            .becomes(DENIED, async |_| plaintext.send(to, request(Method::POST, "/orders/1")).await.got)
            .await?;
        ensure!(back.elapsed() < MISSED, "missed changes were in force after {:?}", back.elapsed());
        Ok(())
    }

    async fn ready(&mut self, expected: u16) -> Result<()> {
        let controller = self.mesh.at("one");
        lab::until(&format!("/ready is {expected}"), async || {
            Ok((controller.monitoring("/ready").await.got == Got::Status(expected)).then_some(()))
        })
        .await
    }
}

fn orders() -> PodSpec {
    PodSpec::new("default", "orders").port(8080, Protocol::Http)
}

async fn wait(traffic: &Traffic, time: Duration) -> Result<()> {
    let started = Instant::now();
    while started.elapsed() < time {
        traffic.fine()?;
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    Ok(())
}

/// The API server is killed, its watch history compacted, and it comes back with changes the controller has not seen.
async fn stopped(mut scene: Scene<'_>, time: Duration) -> Result<()> {
    let traffic = scene.steady()?;
    scene.mesh.kube.stop()?;
    wait(&traffic, time).await?;
    // It comes back for everybody else first, so that there is something to miss.
    scene.mesh.at("one").cut(Through::Closed);
    scene.mesh.kube.start().await?;
    traffic.end().await?;
    scene.missed_change().await?;
    scene.mesh.kube.compact().await?;
    assert_eq!(scene.got("payment").await, ALLOWED);
    scene.mesh.at("one").cut(Through::Everything);
    scene.change_is_felt(Instant::now()).await?;
    scene.ready(200).await
}

#[test]
fn a_stopped_api_server_changes_no_decision() {
    lab::run(here!(), async |lab| stopped(Scene::secure(lab).await?, Duration::from_secs(20)).await);
}

/// The same for a whole minute.
#[test]
#[ignore = "a minute long: scripts/test long"]
fn a_minute_without_the_api_server_changes_no_decision() {
    lab::run(here!(), async |lab| stopped(Scene::secure(lab).await?, Duration::from_secs(60)).await);
}

/// Partitioned without a word: connections stay open and nothing comes. The API server forgets what it could have resent.
#[test]
fn a_silent_api_server_changes_no_decision() {
    lab::run(here!(), async |lab| {
        let scene = &mut Scene::new(lab).await?;
        let traffic = scene.steady()?;
        scene.mesh.at("one").cut(Through::Silent);
        wait(&traffic, Duration::from_secs(10)).await?;
        traffic.end().await?;
        scene.missed_change().await?;
        scene.mesh.kube.compact().await?;
        assert_eq!(scene.got("payment").await, ALLOWED);
        scene.mesh.at("one").cut(Through::Everything);
        scene.change_is_felt(Instant::now()).await
    });
}

/// History is compacted while the controller is connected, and its watches broken: it starts again from a full list.
#[test]
fn compacted_history_is_survived() {
    lab::run(here!(), async |lab| {
        let scene = &mut Scene::new(lab).await?;
        let traffic = scene.steady()?;
        for round in 0..3 {
            let path = format!("/round/{round}");
            scene.mesh.at("one").cut(Through::Closed);
            scene.mesh.kube.apply(&POLICIES.replace("/orders/*", &format!("/orders/*, {path}"))).await?;
            scene.mesh.kube.compact().await?;
            scene.mesh.kube.stop()?;
            scene.mesh.kube.start().await?;
            scene.mesh.at("one").cut(Through::Everything);
            scene.ready(200).await?;
            let caller = scene.mesh.caller(scene.mesh.identity("default", "payment")?);
            let to = scene.orders;
            let ask = async |_: &Cluster<'_>| caller.send(to, request(Method::POST, &path)).await.got;
            scene.mesh.becomes(ALLOWED, ask).await?;
        }
        traffic.end().await?;
        Ok(())
    });
}

/// Someone removes the CRDs, and with them every policy: what is in force stays, the controller is not ready and says why;
/// when they are back, it is their content that counts.
#[test]
fn uninstalled_crds_open_nothing() {
    lab::run(here!(), async |lab| {
        let scene = &mut Scene::new(lab).await?;
        let traffic = scene.steady()?;
        scene.mesh.kube.uninstall_crds().await?;
        scene.ready(503).await?;
        wait(&traffic, Duration::from_secs(5)).await?;
        // A controller that starts now knows nothing, serves nothing and does not say that it is ready.
        scene.mesh.at("one").kill()?;
        scene.mesh.at("one").start()?;
        wait(&traffic, Duration::from_secs(3)).await?;
        assert_ne!(scene.mesh.at("one").monitoring("/ready").await.got, Got::Status(200));
        scene.mesh.kube.install_crds().await?;
        scene.mesh.kube.apply(POLICIES).await?;
        scene.ready(200).await?;
        wait(&traffic, Duration::from_secs(1)).await?;
        traffic.end().await?;
        scene.missed_change().await?;
        scene.change_is_felt(Instant::now()).await
    });
}

/// kill -9 of the controller, again and again.
#[test]
fn a_controller_killed_in_a_loop_changes_no_decision() {
    lab::run(here!(), async |lab| {
        let scene = &mut Scene::secure(lab).await?;
        let traffic = scene.steady()?;
        for round in 0..12_u64 {
            scene.mesh.at("one").kill()?;
            scene.mesh.at("one").start()?;
            // At every stage of its start, and after it.
            wait(&traffic, Duration::from_millis(round * 60)).await?;
            if round % 4 == 3 {
                scene.mesh.at("one").ready().await?;
                wait(&traffic, Duration::from_millis(300)).await?;
            }
        }
        scene.mesh.at("one").ready().await?;
        traffic.end().await?;
        scene.missed_change().await?;
        scene.change_is_felt(Instant::now()).await
    });
}

/// Whoever starts while the API server is away waits for it: not ready, nothing served, then everything.
#[test]
fn a_controller_that_starts_without_an_api_server_waits() {
    lab::run(here!(), async |lab| {
        let scene = &mut Scene::new(lab).await?;
        let traffic = scene.steady()?;
        scene.mesh.at("one").kill()?;
        scene.mesh.kube.stop()?;
        scene.mesh.at("one").start()?;
        wait(&traffic, Duration::from_secs(3)).await?;
        assert_ne!(scene.mesh.at("one").monitoring("/ready").await.got, Got::Status(200));
        scene.mesh.kube.start().await?;
        scene.ready(200).await?;
        wait(&traffic, Duration::from_millis(500)).await?;
        traffic.end().await?;
        Ok(())
    });
}
