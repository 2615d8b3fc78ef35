//! The controller from outside: changes in, readiness, subscriptions and reports out.

use std::sync::Arc;
use std::time::Duration;

use crds::{Finding, Object};
use envoy_types::pb::envoy::config::core::v3::Node;
use policy::{Action, Attachment, Jwks, JwtRule, Meta, Presence, RequestAuthentication};
use source::Change;
use tokio::sync::mpsc;
use xds::ResourceType;
use xds::ads::node::NodeId;
use xds::ads::server::{Peer, Proxy, Refused, Snapshots, Subscription};
use xds::ads::session::Event;

use crate::fixtures::{authorization, captured, id, world};
use crate::{Controller, Handle, Registered, Report};

pub(crate) struct Started {
    changes: mpsc::Sender<Change>,
    pub(crate) handle: Handle,
    _task: tokio_util::task::AbortOnDropHandle<()>,
}

pub(crate) fn start() -> Started {
    let metrics = runtime::Metrics::new(runtime::Version::of("test"));
    let (changes, receiver) = mpsc::channel(64);
    let (handle, owner) = Controller::start(&metrics, receiver);
    let task = tokio_util::task::AbortOnDropHandle::new(tokio::spawn(async {
        let _ = owner.await;
    }));
    Started { changes, handle, _task: task }
}

impl Started {
    pub(crate) async fn tell(&self, changes: impl IntoIterator<Item = Change>) {
        for change in changes {
            self.changes.send(change).await.unwrap();
        }
    }

    /// The report once it is as asked.
    pub(crate) async fn until(&self, what: &str, so: impl Fn(&Report) -> bool) -> Report {
        let asked = async {
            loop {
                let report = self.handle.status().await.unwrap();
                if so(&report) {
                    return report;
                }
                tokio::task::yield_now().await;
            }
        };
        tokio::time::timeout(Duration::from_secs(20), asked)
            .await
            .unwrap_or_else(|_| panic!("in vain: {what}"))
    }
}

pub(crate) fn object(object: Object) -> Change {
    Change::Apply {
        object: Box::new(object),
        origin: "file.yaml:1".to_owned(),
        version: None,
        findings: Vec::new(),
    }
}

pub(crate) fn first_list() -> Vec<Change> {
    world().into_iter().map(object).chain([Change::Synced]).collect()
}

pub(crate) fn proxy(name: &str, identity: Option<&str>) -> Proxy {
    let node = Node { id: format!("sidecar~10.0.0.1~{name}.a~a.svc.cluster.local"), ..Node::default() };
    Proxy {
        id: NodeId::parse(&node).unwrap(),
        shape: captured(),
        peer: Peer {
            identity: identity.map(|id| id.parse().unwrap()),
            token: false,
            pod: None,
            address: None,
            secure: true,
        },
        envoy_version: Some((1, 36, 2)),
        node: Arc::new(node),
        delta: true,
    }
}

const X: &str = "spiffe://cluster.local/ns/a/sa/x";

#[tokio::test]
async fn nothing_is_given_out_before_the_first_list() {
    let started = start();
    started.tell(world().into_iter().map(object)).await;
    let refused = started.handle.subscribe(proxy("x-1", Some(X))).await.unwrap_err();
    assert!(matches!(refused, Refused::NotReady(_)), "{refused}");
    assert_eq!(started.handle.workload("a", "x-1"), Registered::NotReady);
    assert_eq!(started.handle.service_account_in_use("a", "x"), None);
    assert!(started.handle.ready().is_err());
    started.tell([Change::Synced]).await;
    started.handle.wait_ready().await;
    started.handle.subscribe(proxy("x-1", Some(X))).await.unwrap();
    assert!(
        matches!(started.handle.workload("a", "x-1"), Registered::Workload(w) if &*w.service_account == "x")
    );
    assert_eq!(started.handle.workload("a", "nobody"), Registered::Unknown);
    assert_eq!(started.handle.service_account_in_use("b", "y"), Some(false));
}

#[tokio::test]
async fn the_secure_port_asks_for_the_registered_identity() {
    let started = start();
    started.tell(first_list()).await;
    started.handle.wait_ready().await;
    let mut outcomes = Vec::new();
    for (name, identity) in [
        ("x-1", None),
        ("x-1", Some("spiffe://cluster.local/ns/a/sa/y")),
        ("x-1", Some("spiffe://cluster.local/countersign/agent/a/x-1")),
    ] {
        outcomes.push(started.handle.subscribe(proxy(name, identity)).await.unwrap_err());
    }
    assert_eq!(outcomes[0], Refused::Unauthenticated);
    assert!(outcomes[1..].iter().all(|o| matches!(o, Refused::PermissionDenied(_))), "{outcomes:?}");
}

#[tokio::test]
async fn the_documents_of_one_file_are_one_step() {
    let started = start();
    started.tell(first_list()).await;
    started.handle.wait_ready().await;
    let Subscription { mut snapshots, events: _events } =
        started.handle.subscribe(proxy("x-1", Some(X))).await.unwrap();
    let before = snapshots.borrow_and_update().generation;
    let deny =
        |name: &str| object(Object::AuthorizationPolicy(authorization("a", name, None, Action::Deny, "y")));
    for change in [deny("one"), deny("two"), deny("three")] {
        started.changes.try_send(change).unwrap();
    }
    snapshots.changed().await.unwrap();
    assert_eq!(snapshots.borrow_and_update().generation, before + 1);
    let report = started.until("all three", |report| report.objects.len() == world().len() + 3).await;
    assert_eq!(report.generation, before + 1);
    assert!(!snapshots.has_changed().unwrap());
}

#[tokio::test]
async fn a_problem_after_the_start_freezes_and_is_named_but_serving_goes_on() {
    let started = start();
    started.tell(first_list()).await;
    started.handle.wait_ready().await;
    let policy = Object::AuthorizationPolicy(authorization("a", "p", None, Action::Deny, "y"));
    let kept = Change::Kept {
        object: policy.object_ref(),
        origin: "file.yaml:9".to_owned(),
        version: None,
        findings: vec![Finding::error("not a policy")],
    };
    started.tell([object(policy), kept, Change::Frozen(Some("the folder is gone".to_owned()))]).await;
    let report = started.until("frozen", |report| !report.ready).await;
    assert_eq!(report.reasons, ["the folder is gone"]);
    let object = report.objects.iter().find(|o| o.name == "p").unwrap();
    let accepted = object.conditions.iter().find(|c| c.kind == "Accepted").unwrap();
    assert_eq!((&*accepted.reason, &*object.origin), ("LastGoodVersionKept", "file.yaml:9"));
    started.handle.subscribe(proxy("x-1", Some(X))).await.unwrap();
    started.tell([Change::Frozen(None)]).await;
    started.until("back", |report| report.ready).await;
}

#[tokio::test]
async fn keys_that_would_have_to_be_fetched_refuse_and_say_so() {
    let started = start();
    let rule = JwtRule {
        issuer: "https://login.example".to_owned(),
        audiences: Vec::new(),
        jwks: Jwks::Remote(None),
        from_headers: Vec::new(),
        from_params: Vec::new(),
        from_cookies: Vec::new(),
        output_payload_to_header: None,
        forward_original_token: false,
        output_claim_to_headers: Vec::new(),
        space_delimited_claims: Vec::new(),
        timeout_ms: 5000,
        presence: Presence::Optional,
    };
    let policy = RequestAuthentication {
        meta: Meta::new(id("a", "login")),
        attachment: Attachment::Namespace,
        rules: vec![rule],
    };
    started.tell([object(Object::RequestAuthentication(policy))]).await;
    started.tell(first_list()).await;
    let report = started.until("ready", |report| report.ready).await;
    let object = report.objects.iter().find(|o| o.name == "login").unwrap();
    let resolved = object.conditions.iter().find(|c| c.kind == "ResolvedRefs").unwrap();
    assert_eq!((&*resolved.status, &*resolved.reason), ("False", "JwksNotFetched"));
    assert!(resolved.message.contains("https://login.example"));
}

#[tokio::test]
async fn a_provider_that_nobody_defined_is_named_on_the_policy() {
    let started = start();
    let custom = Action::Custom { provider: "nobody".into() };
    started.tell([object(Object::AuthorizationPolicy(authorization("a", "p", None, custom, "z")))]).await;
    started.tell(first_list()).await;
    let report = started.until("ready", |report| report.ready).await;
    let object = report.objects.iter().find(|o| o.name == "p").unwrap();
    let resolved = object.conditions.iter().find(|c| c.kind == "ResolvedRefs").unwrap();
    assert_eq!((&*resolved.status, &*resolved.reason), ("False", "ProviderNotFound"));
    assert!(resolved.message.contains("nobody"), "{}", resolved.message);
}

#[tokio::test]
async fn a_policy_is_enforced_when_every_proxy_it_concerns_has_said_so() {
    let started = start();
    let policy = Object::AuthorizationPolicy(authorization("a", "p", None, Action::Deny, "z"));
    started.tell([object(policy)]).await;
    started.tell(first_list()).await;
    started.handle.wait_ready().await;
    let reason = |report: &Report| {
        let object = report.objects.iter().find(|o| o.name == "p").unwrap();
        object.conditions.iter().find(|c| c.kind == "Enforced").unwrap().reason.clone()
    };
    assert_eq!(reason(&started.handle.status().await.unwrap()), "NoProxy");
    let mut sessions = Vec::new();
    for (name, identity) in [("x-1", X), ("y-1", "spiffe://cluster.local/ns/a/sa/y")] {
        sessions.push(started.handle.subscribe(proxy(name, Some(identity))).await.unwrap());
    }
    assert_eq!(reason(&started.handle.status().await.unwrap()), "Pending");
    for Subscription { snapshots, events } in &mut sessions {
        let generation = snapshots.borrow().generation;
        for kind in ResourceType::ALL {
            events.event(Event::Sent { kind, resources: 1, bytes: 1 });
            events.event(Event::Acked { kind, generation });
        }
    }
    let report = started.handle.status().await.unwrap();
    assert_eq!(reason(&report), "Enforced");
    assert!(report.proxies.iter().all(|p| p.synced && p.warnings[0].contains("1.36.2")), "{report:?}");
    sessions.pop();
    started.until("one is gone", |report| report.proxies.len() == 1).await;
    assert_eq!(reason(&started.handle.status().await.unwrap()), "NoProxy");
}

#[tokio::test]
async fn the_end_of_the_source_is_an_error() {
    let metrics = runtime::Metrics::new(runtime::Version::of("test"));
    let (changes, receiver) = mpsc::channel(1);
    let (_handle, owner) = Controller::start(&metrics, receiver);
    drop(changes);
    assert!(owner.await.is_err());
}
