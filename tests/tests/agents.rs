//! Agents that die at the worst moment: the Envoy they leave goes on protecting and serving.

use anyhow::{Context, Result};
use http::Method;
use tests::here;
use tests::lab::{self, ALLOWED, Caller, DENIED, Lab, PodId, PodSpec, Protocol, request};

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
  - from: [{source: {principals: ["cluster.local/ns/default/sa/payment"]}}]
"#;

struct Scene {
    orders: PodId,
    payment: Caller,
    intruder: Caller,
}

impl Scene {
    async fn steady(&self, lab: &Lab) {
        let on = lab[self.orders].on(8080);
        assert_eq!(self.payment.send(on, request(Method::GET, "/")).await.got, ALLOWED);
        assert_eq!(self.intruder.send(on, request(Method::GET, "/")).await.got, DENIED);
    }
}

/// kill -9 of the agent while the control plane is away too. The agent that comes back has no certificate to give to a new
/// Envoy, so it leaves the one that works, until it has.
#[test]
fn an_agent_that_comes_back_in_an_outage_interrupts_nothing() {
    lab::run(here!(), async |lab| -> Result<()> {
        lab.save("policies.yaml", POLICIES)?;
        lab.start().await?;
        let orders = lab.pod(PodSpec::new("default", "orders").port(8080, Protocol::Http)).await?;
        let payment = lab.caller(lab.identity("default", "payment")?);
        let intruder = lab.caller(lab.identity("default", "intruder")?);
        let scene = Scene { orders, payment, intruder };
        lab.becomes(ALLOWED, async |lab| {
            scene.payment.send(lab[orders].on(8080), request(Method::GET, "/")).await.got
        })
        .await?;

        lab.control.kill()?;
        lab[orders].agent.as_mut().context("an agent")?.kill()?;
        for _ in 0..10 {
            scene.steady(lab).await;
        }
        lab.start_agent(orders)?;
        lab::until("the new agent has seen the outage", async || {
            Ok(lab[orders].agent().tail(50).contains("no new certificate").then_some(()))
        })
        .await?;
        for _ in 0..10 {
            scene.steady(lab).await;
        }
        assert_eq!(lab[orders].envoy_pid(), None, "no Envoy of its own yet");

        lab.start().await?;
        lab::until("there is a new Envoy", async || Ok(lab[orders].envoy_pid())).await?;
        lab.becomes(ALLOWED, async |lab| {
            scene.payment.send(lab[orders].on(8080), request(Method::GET, "/")).await.got
        })
        .await?;
        scene.steady(lab).await;
        Ok(())
    });
}
