//! From changes and acknowledgements to conditions, through the whole controller.

use crds::{Finding, Object};
use policy::{Action, MtlsMode};
use source::{Change, Version};
use xds::ResourceType;
use xds::ads::server::{Snapshots, Subscription};
use xds::ads::session::Event;

use super::rows::Row;
use crate::Report;
use crate::fixtures::{authorization, peer};
use crate::status::Condition;
use crate::tests::{Started, first_list, proxy, start};

const X: &str = "spiffe://cluster.local/ns/a/sa/x";

fn apply(object: Object, generation: i64) -> Change {
    let version = Some(Version { uid: "u".into(), generation, manager: None });
    Change::Apply { object: Box::new(object), origin: "kubernetes".to_owned(), version, findings: Vec::new() }
}

/// For x alone, about one caller.
fn policy(caller: &str) -> Object {
    Object::AuthorizationPolicy(authorization("a", "p", Some("x"), Action::Deny, caller))
}

fn condition(report: &Report, name: &str, kind: &str) -> Condition {
    let object = report.objects.iter().find(|object| object.name == name).expect("the object");
    object.conditions.iter().find(|condition| condition.kind == kind).expect("the condition").clone()
}

fn acknowledge(subscription: &mut Subscription) {
    let generation = subscription.snapshots.borrow().generation;
    for kind in ResourceType::ALL {
        subscription.events.event(Event::Sent { kind, resources: 1, bytes: 1 });
        subscription.events.event(Event::Acked { kind, generation });
    }
}

/// A controller with the policy, and x's proxy, which has it in force.
async fn enforced() -> (Started, Subscription) {
    let started = start();
    started.tell([apply(policy("y"), 1)]).await;
    started.tell(first_list()).await;
    started.handle.wait_ready().await;
    let mut proxy = started.handle.subscribe(proxy("x-1", Some(X))).await.unwrap();
    acknowledge(&mut proxy);
    let report = started.until("enforced", |r| condition(r, "p", "Enforced").status == "True").await;
    let condition = condition(&report, "p", "Enforced");
    assert_eq!((condition.message.as_str(), condition.observed_generation), ("1/1 workloads", Some(1)));
    (started, proxy)
}

#[tokio::test]
async fn a_new_version_of_equal_content_is_in_force_already() {
    let (started, _proxy) = enforced().await;
    started.tell([apply(policy("y"), 2)]).await;
    let report =
        started.until("seen", |r| condition(r, "p", "Enforced").observed_generation == Some(2)).await;
    assert_eq!(condition(&report, "p", "Enforced").status, "True");
}

#[tokio::test]
async fn a_new_content_is_in_force_when_it_is_acknowledged() {
    let (started, mut proxy) = enforced().await;
    started.tell([apply(policy("z"), 2)]).await;
    started.until("pending", |r| condition(r, "p", "Enforced").reason == "Pending").await;
    proxy.events.event(Event::Waiting(true));
    acknowledge(&mut proxy);
    started.until("waiting", |r| r.proxies[0].types.iter().all(|t| t.acked >= Some(t.published))).await;
    let report = started.handle.status().await.unwrap();
    assert_eq!(condition(&report, "p", "Enforced").reason, "Pending", "a listener waits for a slot");
    proxy.events.event(Event::Waiting(false));
    let report = started.until("programmed", |r| condition(r, "p", "Programmed").status == "True").await;
    // Its plain TCP chain holds the policy, too.
    assert_eq!(condition(&report, "p", "Enforced").reason, "Draining");
}

#[tokio::test]
async fn what_cannot_be_read_is_not_enforced_as_written() {
    let (started, _proxy) = enforced().await;
    let kept = Change::Kept {
        object: policy("y").object_ref(),
        origin: "kubernetes".to_owned(),
        version: Some(Version { uid: "u".into(), generation: 2, manager: None }),
        findings: vec![Finding::error("nonsense")],
    };
    started.tell([kept]).await;
    let report =
        started.until("kept", |r| condition(r, "p", "Accepted").reason == "LastGoodVersionKept").await;
    let enforced = condition(&report, "p", "Enforced");
    assert_eq!((&*enforced.status, enforced.observed_generation), ("False", Some(2)));
}

#[tokio::test]
async fn of_two_peer_authentications_the_older_one_counts() {
    let (started, _proxy) = enforced().await;
    let mut younger = peer("a", "younger", None, MtlsMode::Permissive);
    younger.meta.created = 9;
    let older = peer("a", "older", None, MtlsMode::Strict);
    started.tell([apply(Object::PeerAuthentication(younger), 1)]).await;
    started.until("alone", |r| r.objects.iter().any(|o| o.name == "younger")).await;
    started.tell([apply(Object::PeerAuthentication(older), 1)]).await;
    let report = started
        .until("both", |r| {
            r.objects.iter().any(|o| o.name == "older")
                && condition(r, "younger", "Conflicted").status == "True"
        })
        .await;
    assert_eq!(condition(&report, "younger", "Conflicted").reason, "OlderPolicyWins");
    assert_eq!(condition(&report, "older", "Conflicted").reason, "NoConflict");
    let older = peer("a", "older", None, MtlsMode::Strict);
    started.tell([Change::Delete(Object::PeerAuthentication(older).object_ref())]).await;
    started.until("alone again", |r| condition(r, "younger", "Conflicted").status == "False").await;
}

/// Who follows must never see a policy's new version together with what a proxy had of the old one.
#[tokio::test]
async fn a_policy_and_its_proxies_change_in_one_step() {
    let (started, _proxy) = enforced().await;
    let mut reader = started.handle.book.reader();
    reader.read();
    started.tell([apply(policy("z"), 2)]).await;
    assert!(reader.changed().await);
    let delta = reader.read();
    let commit = delta.set.iter().find_map(|row| match &**row {
        Row::Policy(row) => row.commits.last().copied(),
        Row::Proxy(_) => None,
    });
    let behind = delta.set.iter().find_map(|row| match &**row {
        Row::Proxy(row) => row.behind,
        Row::Policy(_) => None,
    });
    assert!(commit.is_some() && commit == behind, "{delta:?}");
}
