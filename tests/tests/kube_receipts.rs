//! Receipts and status against a real API server: who writes, what is written, and what is known of proxies that refuse,
//! vanish or go elsewhere. Replicas run in the test's process, their receipts go over mTLS, their proxies are simulated.

#[path = "kube_receipts/replica.rs"]
mod replica;

use std::time::{Duration, Instant};

use ::kube::api::{Patch, PatchParams};
use anyhow::{Context, Result, ensure};
use api::countersign::receipts::v1::WatchRequest;
use api::countersign::receipts::v1::receipts_client::ReceiptsClient;
use serde_json::{Value, json};
use source::kubernetes::lease::{Election, LEADER, Timing};
use source::kubernetes::status::{Status, WriteError, Writer};
use tests::here;
use tests::lab::cluster::Cluster;
use tests::lab::kube::{self, Kube, Through};
use tests::lab::{self, PodSpec, Protocol, until, within};
use tokio_util::task::AbortOnDropHandle;

use replica::{Answers, Mesh, Replica, SimulatedProxy, stranger};

const API: &str = "security.istio.io/v1";
const KIND: &str = "AuthorizationPolicy";
/// What the issue promises of receipts.
const SECOND: Duration = Duration::from_secs(1);
/// Other tests run at the same time, on few cores.
const SLACK: Duration = Duration::from_secs(4);

fn deny(namespace: &str, port: u16) -> String {
    format!(
        "apiVersion: {API}\nkind: {KIND}\nmetadata: {{name: p, namespace: {namespace}}}\nspec:\n  action: DENY\n  \
         rules: [{{to: [{{operation: {{paths: [\"/{port}\"]}}}}]}}]\n"
    )
}

async fn object(kube: &Kube, namespace: &str) -> Result<Value> {
    kube.get(API, KIND, namespace, "p").await?.context("the policy is gone")
}

fn condition<'a>(object: &'a Value, kind: &str) -> Option<&'a Value> {
    object["status"]["conditions"].as_array()?.iter().find(|condition| condition["type"] == kind)
}

/// Waits until `Enforced` is as asked for the present generation.
async fn enforced(
    kube: &Kube,
    namespace: &str,
    limit: Duration,
    status: &str,
    reason: &str,
) -> Result<String> {
    let started = Instant::now();
    let mut last = Value::Null;
    let message = within(limit, &format!("Enforced is {status} {reason}"), async || {
        last = object(kube, namespace).await?;
        let Some(enforced) = condition(&last, "Enforced") else { return Ok(None) };
        let present = enforced["observedGeneration"] == last["metadata"]["generation"];
        let so = present && enforced["status"] == status && enforced["reason"] == reason;
        Ok(so.then(|| enforced["message"].as_str().unwrap_or_default().to_owned()))
    })
    .await;
    let message = message.with_context(|| format!("last seen: {}", last["status"]))?;
    #[expect(clippy::print_stdout, reason = "the harness shows it if the test fails")]
    {
        println!("{status} {reason} after {:?}: {message}", started.elapsed());
    }
    Ok(message)
}

struct Shop {
    namespace: String,
    mesh: Mesh,
}

/// Namespaces for one test, with so many pods.
async fn shop(kube: &Kube, pods: usize) -> Result<Shop> {
    runtime::tls::install_provider();
    let namespace = kube.fresh_namespace("shop").await?;
    let mesh = Mesh::new(kube.fresh_namespace("countersign").await?)?;
    for n in 0..pods {
        kube.pod(&namespace, &pod(n), "web", &[("app", "web")], &format!("10.1.0.{}", n + 1), &[8080])
            .await?;
    }
    Ok(Shop { namespace, mesh })
}

fn pod(n: usize) -> String {
    format!("web-{n}")
}

/// Somebody always writes, never two, and a holder that is cut off stops before the next one begins.
#[test]
fn one_replica_writes_and_another_takes_over() {
    kube::own(here!(), async |kube| {
        runtime::tls::install_provider();
        let namespace = kube.fresh_namespace("leases").await?;
        let gate = kube.gate().await?;
        let cut_off = kube.kubeconfig_at("cut-off", &gate.url(), kube.admin_token())?;
        let cut_off = source::kubernetes::client(Some(&cut_off)).await?;
        let elect = |client: ::kube::Client, name: &str| {
            let (election, leadership) = Election::new(client, &namespace, LEADER, name, Timing::default());
            (AbortOnDropHandle::new(tokio::spawn(election.run(std::future::pending()))), leadership)
        };
        let (first, mut first_leads) = elect(cut_off, "first");
        first_leads.gained().await;
        let (second, mut second_leads) = elect(kube.client(), "second");
        let both = {
            let (first, second) = (first_leads.clone(), second_leads.clone());
            AbortOnDropHandle::new(tokio::spawn(async move {
                while first.until().is_none() || second.until().is_none() {
                    tokio::time::sleep(Duration::from_millis(1)).await;
                }
            }))
        };
        // Renewals hold it for longer than one term.
        let held = tokio::time::timeout(Timing::default().duration, first_leads.lost()).await;
        ensure!(held.is_err() && second_leads.until().is_none(), "the first one lost it for no reason");
        gate.set(Through::Silent);
        let cut = Instant::now();
        first_leads.lost().await;
        second_leads.gained().await;
        ensure!(cut.elapsed() < Timing::default().duration + SECOND, "taken over after {:?}", cut.elapsed());
        gate.set(Through::Everything);

        // Killed: nothing is released.
        drop(first);
        let (third, mut third_leads) = elect(kube.client(), "third");
        drop(second);
        let killed = Instant::now();
        third_leads.gained().await;
        ensure!(
            killed.elapsed() < Timing::default().duration + SECOND,
            "taken over after {:?}",
            killed.elapsed()
        );
        ensure!(!both.is_finished(), "two replicas wrote at the same time");
        drop(third);
        Ok(())
    });
}

/// The first sentence of the product: a policy, and where it is in force. Nothing is written that says nothing new, and
/// what others wrote stays.
#[test]
fn conditions_follow_the_proxies_and_leave_others_alone() {
    kube::own(here!(), async |kube| {
        let Shop { namespace, mesh } = shop(kube, 2).await?;
        let replica = Replica::start(kube, &mesh, "a").await?;
        kube.apply(&deny(&namespace, 1)).await?;
        let message = enforced(kube, &namespace, SLACK + SLACK, "False", "NoProxy").await?;
        ensure!(message.contains("web-0") && message.contains("web-1"), "{message}");
        let mut proxies = Vec::new();
        for n in 0..2 {
            proxies.push(replica.proxy(&namespace, &pod(n)).await?);
        }
        let message = enforced(kube, &namespace, SLACK, "True", "Enforced").await?;
        ensure!(message.starts_with("2/2"), "{message}");

        let theirs = json!({"status": {"conditions": [
            {"type": "WaypointAccepted", "status": "True", "reason": "Accepted", "message": "", "lastTransitionTime": "2020-01-01T00:00:00Z"},
        ], "observedGeneration": 7}});
        let policies = kube.api(API, KIND, &namespace).await?;
        policies.patch_status("p", &PatchParams::default(), &Patch::Merge(&theirs)).await?;
        kube.apply(&deny(&namespace, 2)).await?;
        enforced(kube, &namespace, SLACK, "True", "Enforced").await?;
        let written = object(kube, &namespace).await?;
        let foreign = condition(&written, "WaypointAccepted").context("the foreign condition is gone")?;
        ensure!(foreign["lastTransitionTime"] == "2020-01-01T00:00:00Z", "{foreign}");
        ensure!(written["status"]["observedGeneration"] == 7, "{}", written["status"]);
        for kind in ["Accepted", "Programmed", "Enforced", "Conflicted"] {
            ensure!(condition(&written, kind).is_some(), "no {kind}: {}", written["status"]);
        }

        // A proxy connects again, another leader comes: nothing new, so nothing is written.
        proxies[0] = replica.proxy(&namespace, &pod(0)).await?;
        replica.stop().await;
        let again = Replica::start(kube, &mesh, "b").await?;
        let mut proxies = Vec::new();
        for n in 0..2 {
            proxies.push(again.proxy(&namespace, &pod(n)).await?);
        }
        again.leadership.clone().gained().await;
        // The hearing at the beginning of a term, and more than one round of everything after it.
        tokio::time::sleep(Duration::from_secs(3)).await;
        let after = object(kube, &namespace).await?;
        ensure!(
            after["metadata"]["resourceVersion"] == written["metadata"]["resourceVersion"],
            "written: {after}"
        );
        Ok(())
    });
}

/// Refused, vanished, gone to the other replica, unreachable: each is known within a second.
#[test]
fn receipts_of_two_replicas_are_right_within_a_second() {
    kube::own(here!(), async |kube| {
        let Shop { namespace, mesh } = shop(kube, 4).await?;
        let a = Replica::start(kube, &mesh, "a").await?;
        a.leadership.clone().gained().await;
        let b = Replica::start(kube, &mesh, "b").await?;
        let mut proxies: Vec<SimulatedProxy> = Vec::new();
        for n in 0..4 {
            proxies.push(if n < 2 { &a } else { &b }.proxy(&namespace, &pod(n)).await?);
        }
        kube.apply(&deny(&namespace, 1)).await?;
        let message = enforced(kube, &namespace, SLACK, "True", "Enforced").await?;
        ensure!(message.starts_with("4/4"), "{message}");

        proxies[3].answers(Answers::Nack);
        kube.apply(&deny(&namespace, 2)).await?;
        let message = enforced(kube, &namespace, SECOND + SLACK, "False", "Rejected").await?;
        ensure!(
            message.starts_with("3/4") && message.contains("web-3") && message.contains("no such matcher"),
            "{message}"
        );
        proxies[3].answers(Answers::Ack);
        enforced(kube, &namespace, SECOND + SLACK, "True", "Enforced").await?;
        for reason in ["PolicyEnforced", "ProxyNACK"] {
            let events = kube.api("events.k8s.io/v1", "Event", &namespace).await?;
            until(&format!("the event {reason}"), async || {
                let all = events.list(&Default::default()).await?;
                Ok(all.items.iter().any(|event| event.data["reason"] == reason).then_some(()))
            })
            .await?;
        }

        proxies[2].answers(Answers::Silence);
        kube.apply(&deny(&namespace, 3)).await?;
        let message = enforced(kube, &namespace, SECOND + SLACK, "False", "Pending").await?;
        ensure!(message.starts_with("3/4") && message.contains("web-2"), "{message}");
        proxies[2].answers(Answers::Ack);
        enforced(kube, &namespace, SECOND + SLACK, "True", "Enforced").await?;

        let vanished = proxies.pop();
        drop(vanished);
        let message = enforced(kube, &namespace, SECOND + SLACK, "False", "NoProxy").await?;
        ensure!(message.starts_with("3/4") && message.contains("web-3"), "{message}");
        proxies.push(a.proxy(&namespace, &pod(3)).await?);
        let message = enforced(kube, &namespace, SECOND + SLACK, "True", "Enforced").await?;
        ensure!(message.starts_with("4/4"), "{message}");

        b.partition();
        let message = enforced(kube, &namespace, SECOND + SLACK, "Unknown", "ReplicaUnreachable").await?;
        ensure!(
            message.contains("replica b") && message.contains("web-2") && !message.contains("3/4"),
            "{message}"
        );
        // A pod that connects elsewhere is no longer unknown, although the old connection is not known to be over.
        let moved = a.proxy(&namespace, &pod(2)).await?;
        enforced(kube, &namespace, SECOND + SLACK, "True", "Enforced").await?;
        drop(moved);
        Ok(())
    });
}

/// STRICT is acknowledged at once, but connections without TLS live on until the old listener has drained.
#[test]
fn a_replaced_listener_drains_before_its_policy_is_enforced() {
    kube::own(here!(), async |kube| {
        let Shop { namespace, mesh } = shop(kube, 1).await?;
        let replica = Replica::start(kube, &mesh, "a").await?;
        let strict = format!(
            "apiVersion: {API}\nkind: PeerAuthentication\nmetadata: {{name: strict, namespace: {namespace}}}\nspec: {{mtls: {{mode: STRICT}}}}\n"
        );
        let state = async || -> Result<Option<(String, String)>> {
            let object = kube.get(API, "PeerAuthentication", &namespace, "strict").await?.context("gone")?;
            let of = |kind: &str| {
                condition(&object, kind).map(|c| c["reason"].as_str().unwrap_or_default().to_owned())
            };
            Ok(of("Enforced").zip(of("Programmed")))
        };
        let is = |state: &Option<(String, String)>, enforced: &str| {
            *state == Some((enforced.to_owned(), "Programmed".to_owned()))
        };
        let _proxy = replica.draining(&namespace, &pod(0), 2).await?;
        let settled =
            async |what: &str| until(what, async || Ok((is(&state().await?, what)).then_some(()))).await;
        kube.apply(&deny(&namespace, 1)).await?;
        enforced(kube, &namespace, SLACK + SLACK, "True", "Enforced").await?;
        kube.apply(&strict).await?;
        let start = Instant::now();
        settled("Draining").await?;
        settled("Enforced").await?;
        ensure!(start.elapsed() > Duration::from_millis(1900), "after {:?}", start.elapsed());
        Ok(())
    });
}

/// The writing replica is killed: another one goes on, and knows what it knew.
#[test]
fn status_moves_on_when_the_writer_is_killed() {
    kube::own(here!(), async |kube| {
        let Shop { namespace, mesh } = shop(kube, 2).await?;
        let a = Replica::start(kube, &mesh, "a").await?;
        a.leadership.clone().gained().await;
        let b = Replica::start(kube, &mesh, "b").await?;
        let _first = b.proxy(&namespace, &pod(0)).await?;
        let second = a.proxy(&namespace, &pod(1)).await?;
        kube.apply(&deny(&namespace, 1)).await?;
        enforced(kube, &namespace, SLACK, "True", "Enforced").await?;
        drop(second);
        drop(a);
        let _second = b.proxy(&namespace, &pod(1)).await?;
        kube.apply(&deny(&namespace, 2)).await?;
        let patience = Timing::default().duration + Duration::from_secs(3);
        let message = enforced(kube, &namespace, patience + SLACK, "True", "Enforced").await?;
        ensure!(message.starts_with("2/2"), "{message}");
        ensure!(b.leadership.until().is_some() && b.name == "b", "somebody else wrote");
        Ok(())
    });
}

/// Without rights nothing is written and nobody leads; that is said, and nothing waits for it.
#[test]
fn without_rights_nobody_leads_and_nothing_waits() {
    kube::own(here!(), async |kube| {
        let Shop { namespace, mesh } = shop(kube, 0).await?;
        kube.apply(&deny(&namespace, 1)).await?;
        let nobody = kube.kubeconfig_of(&mesh.namespace, "nobody").await?;
        let client = source::kubernetes::client(Some(&nobody)).await?;
        let (election, leadership) =
            Election::new(client.clone(), &mesh.namespace, LEADER, "nobody", Timing::default());
        let election = election.run(tokio::time::sleep(Duration::from_millis(1500)));
        tokio::time::timeout(Duration::from_secs(5), election).await.context("the election does not end")?;
        ensure!(leadership.until().is_none(), "led without a right to");
        let writer = Writer::new(client);
        let object = crds::ObjectRef {
            kind: crds::Kind::AuthorizationPolicy,
            id: policy::ObjectName::new(namespace.as_str(), "p"),
        };
        let status = Status { uid: "u".into(), generation: 1, conditions: Vec::new() };
        let deadline = tokio::time::Instant::now() + Duration::from_secs(5);
        let written = writer.write(&object, &status, deadline).await;
        ensure!(matches!(written, Err(WriteError::Forbidden(_))), "{written:?}");
        ensure!(matches!(writer.present().await, Err(WriteError::Forbidden(_))));
        Ok(())
    });
}

/// Only the controller itself is told.
#[test]
fn receipts_are_for_the_controller_alone() {
    kube::own(here!(), async |kube| {
        let Shop { namespace: _, mesh } = shop(kube, 0).await?;
        let replica = Replica::start(kube, &mesh, "a").await?;
        let mut client = ReceiptsClient::new(stranger(&mesh, &replica).await?);
        let refused = client.watch(WatchRequest::default()).await.err().context("a stranger was told")?;
        ensure!(refused.code() == tonic::Code::PermissionDenied, "{refused}");
        Ok(())
    });
}

/// The same with real Envoys, from `countersign controller` and agents as they are shipped.
#[test]
fn twenty_envoys_enforce_within_a_quarter_of_a_second() {
    const CHANGES: u16 = 40;
    lab::run(here!(), async |lab| {
        let mut mesh = Cluster::new(lab).await?;
        mesh.ca().await?;
        mesh.replica("one").await?;
        let spec = |n| PodSpec::new("default", &pod(n)).port(8080, Protocol::Http);
        let pods = mesh.pods((0..20).map(spec), &["one"]).await?;
        mesh.kube.apply(&deny("default", 0)).await?;
        let message = enforced(&mesh.kube, "default", Duration::from_secs(20), "True", "Enforced").await?;
        ensure!(message.starts_with("20/20"), "{message}");
        let mut took = Vec::new();
        for change in 1..=CHANGES {
            took.push(time_of_change(&mesh.kube, "default", change).await?);
        }
        report(took)?;
        let caller = mesh.caller(mesh.identity("default", "payment")?);
        for at in pods {
            let got = caller.get(mesh.on(at, 8080), &format!("/{CHANGES}")).await.got;
            ensure!(got == lab::DENIED, "{got:?}");
        }
        Ok(())
    });
}

/// From the API server's answer to a write of the policy to Enforced.
async fn time_of_change(kube: &Kube, namespace: &str, change: u16) -> Result<Duration> {
    let spec = json!({"spec": {"rules": [{"to": [{"operation": {"paths": [format!("/{change}")]}}]}]}});
    let policies = kube.api(API, KIND, namespace).await?;
    policies.patch("p", &PatchParams::default(), &Patch::Merge(&spec)).await?;
    let start = Instant::now();
    until("it is enforced", async || {
        let object = object(kube, namespace).await?;
        let present = |enforced: &Value| enforced["observedGeneration"] == object["metadata"]["generation"];
        let enforced = condition(&object, "Enforced");
        Ok(enforced.is_some_and(|enforced| enforced["status"] == "True" && present(enforced)).then_some(()))
    })
    .await?;
    Ok(start.elapsed())
}

/// The median counts: other tests run at the same time.
#[expect(clippy::print_stdout, reason = "the harness shows it if the test fails")]
fn report(mut took: Vec<Duration>) -> Result<()> {
    took.sort_unstable();
    let (median, last) = (took[took.len() / 2], took[took.len() - 1]);
    println!("write to Enforced, {} changes: median {median:?}, most {last:?}", took.len());
    ensure!(median < Duration::from_millis(250), "median {median:?}, most {last:?}");
    Ok(())
}

/// From the API server's answer to a write to Enforced, with twenty proxies.
#[test]
fn enforcement_shows_within_a_quarter_of_a_second() {
    const PROXIES: usize = 20;
    const CHANGES: u16 = 40;
    kube::own(here!(), async |kube| {
        let Shop { namespace, mesh } = shop(kube, PROXIES).await?;
        let replica = Replica::start(kube, &mesh, "a").await?;
        replica.leadership.clone().gained().await;
        let mut proxies = Vec::new();
        for n in 0..PROXIES {
            proxies.push(replica.proxy(&namespace, &pod(n)).await?);
        }
        kube.apply(&deny(&namespace, 0)).await?;
        enforced(kube, &namespace, SLACK, "True", "Enforced").await?;
        let mut took = Vec::new();
        for change in 1..=CHANGES {
            took.push(time_of_change(kube, &namespace, change).await?);
        }
        report(took)?;
        Ok(())
    });
}
