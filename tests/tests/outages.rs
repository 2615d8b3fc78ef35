//! Whatever is killed or fed with garbage: no decision changes, nobody is let in, and everything comes back by itself.

use std::time::Duration;

use anyhow::{Context, Result, ensure};
use http::Method;
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use tests::here;
use tests::lab::{self, ALLOWED, Caller, Credential, DENIED, Got, Lab, PodId, PodSpec, Protocol, request};

const POLICIES: &str = r#"
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
  - from: [{source: {principals: ["cluster.local/ns/default/sa/payment-service"]}}]
    to: [{operation: {methods: [POST], paths: ["/orders/*"]}}]
"#;

/// A pod, one caller that is let in and those that are not.
struct Scene {
    orders: PodId,
    payment: Caller,
    intruder: Caller,
    plaintext: Caller,
}

impl Scene {
    async fn new(lab: &mut Lab) -> Result<Self> {
        lab.save("policies.yaml", POLICIES)?;
        lab.start().await?;
        let orders = lab.pod(PodSpec::new("default", "orders").port(8080, Protocol::Http)).await?;
        let payment = lab.caller(lab.identity("default", "payment-service")?);
        let intruder = lab.caller(lab.identity("default", "intruder")?);
        Ok(Self { orders, payment, intruder, plaintext: lab.caller(Credential::Plaintext) })
    }

    async fn allowed(&self, lab: &Lab) -> Got {
        self.payment.send(lab[self.orders].on(8080), request(Method::POST, "/orders/1")).await.got
    }

    /// What steady state refuses is refused, or not answered at all.
    async fn nothing_admitted(&self, lab: &Lab) -> Result<()> {
        let on = lab[self.orders].on(8080);
        for caller in [&self.intruder, &self.plaintext] {
            let got = caller.send(on, request(Method::POST, "/orders/1")).await.got;
            ensure!(got != ALLOWED, "{:?} was let in", caller.credential);
        }
        Ok(())
    }

    /// Steady state, decision by decision.
    async fn steady(&self, lab: &Lab) -> Result<()> {
        let on = lab[self.orders].on(8080);
        assert_eq!(self.allowed(lab).await, ALLOWED);
        assert_eq!(self.intruder.send(on, request(Method::POST, "/orders/1")).await.got, DENIED);
        assert_eq!(self.plaintext.send(on, request(Method::POST, "/orders/1")).await.got, Got::Closed);
        Ok(())
    }

    /// Waits for steady state; nothing is admitted meanwhile.
    async fn recovers(&self, lab: &Lab) -> Result<()> {
        lab::until("the allowed call is answered again", async || {
            self.nothing_admitted(lab).await?;
            Ok((self.allowed(lab).await == ALLOWED).then_some(()))
        })
        .await?;
        self.steady(lab).await
    }
}

/// Without a control plane everything goes on as it was; when it is back, changes are felt again.
#[test]
fn a_dead_control_plane_changes_no_decision() {
    lab::run(here!(), async |lab| {
        let scene = Scene::new(lab).await?;
        scene.steady(lab).await?;
        let mut open = scene.payment.http1(lab[scene.orders].on(8080)).await.expect("HTTP/1.1");
        lab.control.kill()?;
        for _ in 0..20 {
            scene.steady(lab).await?;
            assert_eq!(open.send(request(Method::POST, "/orders/1")).await.got, ALLOWED);
        }
        // Changed while nobody looks: in force once somebody does, without a restart of anything else.
        lab.save("policies.yaml", &POLICIES.replace("payment-service", "intruder"))?;
        lab.start().await?;
        lab.becomes(DENIED, async |lab| scene.allowed(lab).await).await?;
        lab.save("policies.yaml", POLICIES)?;
        lab.becomes(ALLOWED, async |lab| scene.allowed(lab).await).await?;
        assert_eq!(
            open.send(request(Method::POST, "/orders/1")).await.got,
            ALLOWED,
            "the connection lived through it"
        );
        scene.steady(lab).await
    });
}

/// An Envoy that restarts while there is no control plane admits nothing, and recovers when there is one.
#[test]
fn an_envoy_that_restarts_without_a_control_plane_admits_nothing() {
    lab::run(here!(), async |lab| {
        let scene = Scene::new(lab).await?;
        scene.steady(lab).await?;
        lab.control.kill()?;
        let old = kill_envoy(lab, scene.orders)?;
        lab::until("the agent has started another Envoy", async || {
            scene.nothing_admitted(lab).await?;
            Ok(lab[scene.orders].envoy_pid().filter(|pid| *pid != old))
        })
        .await?;
        for _ in 0..20 {
            scene.nothing_admitted(lab).await?;
        }
        lab.start().await?;
        scene.recovers(lab).await
    });
}

fn kill_envoy(lab: &Lab, pod: PodId) -> Result<i32> {
    let pid = lab[pod].envoy_pid().context("no Envoy")?;
    kill(Pid::from_raw(pid), Signal::SIGKILL)?;
    Ok(pid)
}

/// kill -9 of an Envoy: its agent starts another one, and nothing is unprotected meanwhile.
#[test]
fn a_killed_envoy_is_replaced_and_never_passed_by() {
    lab::run(here!(), async |lab| {
        let scene = Scene::new(lab).await?;
        for _ in 0..3 {
            scene.steady(lab).await?;
            kill_envoy(lab, scene.orders)?;
            scene.recovers(lab).await?;
        }
        Ok(())
    });
}

/// kill -9 of an agent: whoever supervises it starts it again; it needs no new join token, and nothing is unprotected.
#[test]
fn a_killed_agent_comes_back_without_a_new_token() {
    lab::run(here!(), async |lab| {
        let scene = Scene::new(lab).await?;
        scene.steady(lab).await?;
        let orders = scene.orders;
        lab[orders].agent.as_mut().context("an agent")?.kill()?;
        for _ in 0..10 {
            scene.nothing_admitted(lab).await?;
        }
        lab.start_agent(orders)?;
        scene.recovers(lab).await
    });
}

/// Files that cannot be read any more, and a folder that is gone, change no decision; what is whole again is followed.
#[test]
fn broken_files_and_a_vanished_folder_change_no_decision() {
    lab::run(here!(), async |lab| {
        let scene = Scene::new(lab).await?;
        scene.steady(lab).await?;
        let half = &POLICIES[..POLICIES.find("methods").context("a field")?];
        let anchors = "a: &a [*b]\nb: &b [*a]\n";
        for (what, text) in [
            ("half a file", half.to_owned()),
            ("a misspelt field", POLICIES.replace("principals", "principles")),
            ("no YAML", "{".repeat(1000)),
            ("anchors in a circle", anchors.to_owned()),
            ("10 MB", format!("#{}\n{POLICIES}", "x".repeat(10 << 20))),
        ] {
            lab.save("policies.yaml", &text)?;
            lab.becomes(true, complains).await.with_context(|| what.to_owned())?;
            scene.steady(lab).await.with_context(|| what.to_owned())?;
            lab.save("policies.yaml", POLICIES)?;
            lab.becomes(false, complains).await?;
        }
        let away = lab.control.files.with_file_name("away");
        std::fs::rename(&lab.control.files, &away)?;
        lab.becomes(Got::Status(503), async |lab| lab.control.monitoring("/ready").await.got).await?;
        scene.steady(lab).await?;
        std::fs::rename(&away, &lab.control.files)?;
        lab.becomes(Got::Status(200), async |lab| lab.control.monitoring("/ready").await.got).await?;
        scene.steady(lab).await?;
        lab.save("policies.yaml", &POLICIES.replace("payment-service", "intruder"))?;
        lab.becomes(DENIED, async |lab| scene.allowed(lab).await).await
    });
}

/// Whether the control plane says that something in its files is wrong.
async fn complains(lab: &Lab) -> bool {
    let status = lab.control.monitoring("/status").await.seen();
    let some = |list: &serde_json::Value| list.as_array().is_some_and(|list| !list.is_empty());
    let objects = status["objects"].as_array().into_iter().flatten();
    some(&status["unreadable"]) || objects.into_iter().any(|object| some(&object["findings"]))
}

/// Nonsense on every port ends nothing and lets nobody in.
#[test]
fn garbage_on_every_port_is_survived() {
    lab::run(here!(), async |lab| {
        let scene = Scene::new(lab).await?;
        let patience = Duration::from_millis(50);
        let zeros = vec![0_u8; 70_000];
        let pieces: [&[u8]; 7] = [
            b"",
            b"\x16\x03\x01\xff\xff garbage that begins like a ClientHello",
            b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n\xff\xff\xff\xff\xff\xff\xff\xff\xff",
            b"GET /\xff\xfe\0 HTTP/1.1\r\nHost: \0\r\n\r\n",
            b"GET / HTTP/1.1\r\nTransfer-Encoding: chunked\r\nContent-Length: 5\r\n\r\nzz\r\n",
            b"PROXY TCP4 1.1.1.1 2.2.2.2 1 2\r\n",
            &zeros,
        ];
        let pod = &lab[scene.orders];
        let in_pod = [8080, 15006, 15001, 15000, 15020, 15021, 15090, 7777].map(|port| pod.on(port));
        let control = std::net::IpAddr::from(lab.control.at.v4);
        let in_control = [15010, 15012, 15014].map(|port| (control, port).into());
        for address in in_pod.into_iter().chain(in_control) {
            for piece in pieces {
                let answer = scene.plaintext.raw(address, piece, patience).await;
                let text = String::from_utf8_lossy(&answer);
                ensure!(
                    !text.contains("HTTP/1.1 200") || address.port() == 15014,
                    "{address} answered {text}"
                );
            }
        }
        ensure!(lab.control.process.as_mut().is_some_and(|p| p.ended().is_none()), "the control plane ended");
        assert_eq!(lab.control.monitoring("/ready").await.got, Got::Status(200));
        let agent = lab[scene.orders].agent.as_mut().context("an agent")?;
        ensure!(agent.ended().is_none(), "the agent ended");
        scene.steady(lab).await
    });
}
