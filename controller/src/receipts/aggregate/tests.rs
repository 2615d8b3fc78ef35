use std::time::{Duration, UNIX_EPOCH};

use crds::Kind;
use policy::Attachment;
use proptest::prelude::*;
use source::Version;

use super::super::facts::Older;
use super::*;
use crate::fixtures::{id, labels, pod};

const REPLICAS: [&str; 3] = ["a", "b", "c"];

fn object(name: &str) -> ObjectRef {
    ObjectRef { kind: Kind::AuthorizationPolicy, id: id("a", name) }
}

/// Of generation 3, for pods with this label or for all.
fn fact(name: &str, app: Option<&str>) -> Arc<Fact> {
    let attachment = app.map_or(Attachment::Namespace, |app| Attachment::Labels(labels(&[("app", app)])));
    Arc::new(Fact {
        object: object(name),
        version: Some(Version { uid: "u".into(), generation: 3, manager: None }),
        accepted: Verdict::yes("Accepted", String::new()),
        resolved: None,
        attachment: Some(attachment),
        mesh_wide: false,
        dry_run: false,
        action: None,
        older: Older::default(),
    })
}

fn facts(all: impl IntoIterator<Item = Arc<Fact>>) -> Arc<All> {
    Arc::new(all.into_iter().map(|fact| (fact.object.clone(), fact)).collect())
}

fn workloads(pods: &[(&str, &str, &str)]) -> Arc<Workloads> {
    let workload = |(name, app, uid): &(&str, &str, &str)| {
        let workload = Workload { uid: Some((*uid).into()), ..pod("a", name, app, "10.0.0.1") };
        (id("a", name), Arc::new(workload))
    };
    Arc::new(pods.iter().map(workload).collect())
}

fn published(name: &str, generation: i64) -> Arc<Row> {
    let version = Some(Version { uid: "u".into(), generation, manager: None });
    Arc::new(Row::Policy(PolicyRow { object: object(name), version, commits: vec![5] }))
}

fn proxy(id: u64, pod: &str, uid: &str, connected: u64, behind: Option<u64>) -> Arc<Row> {
    Arc::new(Row::Proxy(ProxyRow {
        id,
        workload: crate::fixtures::id("a", pod),
        pod_uid: Some(uid.into()),
        connected: UNIX_EPOCH + Duration::from_secs(connected),
        behind,
        draining: Vec::new(),
        concerned: 0,
        refusals: Vec::new(),
    }))
}

fn said(rows: Vec<Arc<Row>>) -> Delta {
    Delta { ready: true, set: rows, ..Delta::default() }
}

fn replica(name: &str) -> Arc<str> {
    name.into()
}

/// One policy for two pods, each at another replica.
fn two() -> Aggregate {
    let mut aggregate = Aggregate::default();
    aggregate.facts(&facts([fact("p", None)]));
    aggregate.workloads(&workloads(&[("x", "x", "ux"), ("y", "x", "uy")]));
    aggregate.said(&replica("a"), said(vec![published("p", 3), proxy(1, "x", "ux", 10, None)]));
    aggregate.said(&replica("b"), said(vec![published("p", 3), proxy(1, "y", "uy", 10, None)]));
    aggregate
}

/// Status, reason and the message's first word.
#[track_caller]
fn enforced(aggregate: &mut Aggregate) -> String {
    aggregate.all_stale();
    let all = aggregate.take();
    let [(_, verdicts)] = &all[..] else { panic!("one policy") };
    let Verdict { kind: _, status, reason, message } =
        verdicts.iter().find(|verdict| verdict.kind == "Enforced").unwrap().clone();
    format!("{status} {reason} {}", message.split([' ', ';']).next().unwrap_or_default())
}

#[test]
fn the_newest_connection_counts() {
    let mut all = two();
    assert_eq!(enforced(&mut all), "True Enforced 2/2");
    all.said(&replica("b"), said(vec![proxy(2, "x", "ux", 20, Some(5))]));
    assert_eq!(enforced(&mut all), "False Pending 1/2", "it came to the other replica");
    all.said(&replica("a"), said(vec![proxy(9, "x", "ux", 15, None)]));
    assert_eq!(enforced(&mut all), "False Pending 1/2", "an older connection changes nothing");
    all.said(&replica("b"), Delta { gone: vec![Key::Proxy(2)], ..said(vec![]) });
    assert_eq!(enforced(&mut all), "True Enforced 2/2", "and left again");
}

/// What is enforced there is shown there: the same rule decides both.
#[test]
fn a_gateway_counts_for_what_targets_it() {
    let target = policy::TargetRef {
        group: "gateway.networking.k8s.io".to_owned(),
        kind: "Gateway".to_owned(),
        name: "edge".to_owned(),
    };
    let attachment = Some(Attachment::Targets(vec![target]));
    let mut all = two();
    all.facts(&facts([Arc::new(Fact { attachment, ..(*fact("p", None)).clone() })]));
    assert_eq!(enforced(&mut all), "False NoTargets 0/0");
    let gateway = Arc::new(labels(&[(policy::GATEWAY_LABEL, "edge")]));
    let edge = Workload { labels: gateway, uid: Some("ux".into()), ..pod("a", "x", "x", "10.0.0.1") };
    all.workloads(&Arc::new([(id("a", "x"), Arc::new(edge))].into()));
    assert_eq!(enforced(&mut all), "True Enforced 1/1");
}

#[test]
fn another_pod_of_the_same_name_is_another_one() {
    let mut all = two();
    all.workloads(&workloads(&[("x", "x", "new"), ("y", "x", "uy")]));
    assert_eq!(enforced(&mut all), "False NoProxy 1/2");
    all.said(&replica("b"), said(vec![proxy(7, "x", "new", 5, None)]));
    assert_eq!(enforced(&mut all), "True Enforced 2/2");
}

#[test]
fn what_an_unreachable_replica_served_is_unknown_until_it_is_heard_of_elsewhere() {
    let mut all = two();
    all.lost(&replica("b"));
    assert_eq!(enforced(&mut all), "Unknown ReplicaUnreachable controller");
    all.said(&replica("a"), said(vec![proxy(2, "y", "uy", 20, None)]));
    assert_eq!(enforced(&mut all), "True Enforced 2/2", "it connected here");
    all.workloads(&workloads(&[("x", "x", "ux"), ("y", "x", "uy"), ("z", "x", "uz")]));
    assert_eq!(enforced(&mut all), "Unknown ReplicaUnreachable controller", "the new one may be there");
    all.absent(&replica("b"));
    assert_eq!(enforced(&mut all), "False NoProxy 2/3", "nobody announces that replica any more");
    all.said(&replica("b"), Delta { reset: true, ..said(vec![]) });
    assert_eq!(enforced(&mut all), "False NoProxy 2/3", "back, and empty");
}

#[test]
fn a_replica_that_says_goodbye_has_no_proxies_and_one_that_is_announced_may_have() {
    let mut all = two();
    all.left(&replica("b"));
    assert_eq!(enforced(&mut all), "False NoProxy 1/2");
    all.announced(&replica("c"));
    assert_eq!(enforced(&mut all), "Unknown ReplicaUnreachable controller");
    all.said(&replica("c"), said(vec![]));
    assert_eq!(enforced(&mut all), "False NoProxy 1/2");
}

#[test]
fn only_what_may_have_changed_is_looked_at() {
    let mut all = two();
    let names = |aggregate: &mut Aggregate| -> Vec<String> {
        aggregate.take().into_iter().map(|(fact, _)| fact.object.id.name.to_string()).collect()
    };
    all.facts(&facts([fact("p", Some("x")), fact("q", Some("nobody"))]));
    assert_eq!(names(&mut all), ["p", "q"]);
    all.said(&replica("a"), said(vec![proxy(1, "x", "ux", 10, Some(6))]));
    assert_eq!(names(&mut all), ["p"]);
    all.said(&replica("a"), said(vec![published("q", 3)]));
    assert_eq!(names(&mut all), ["q"]);
    all.workloads(&workloads(&[("x", "nobody", "ux"), ("y", "x", "uy")]));
    assert_eq!(names(&mut all), ["p", "q"]);
    assert_eq!(all.facts(&facts([fact("q", Some("nobody"))])), [object("p")]);
    assert!(names(&mut all).is_empty());
}

#[derive(Clone, Copy, Debug)]
enum Step {
    Connect { replica: usize, id: u64, pod: usize, at: u64, behind: bool },
    Disconnect { replica: usize, id: u64 },
    Publish { replica: usize, policy: usize, current: bool },
    Lost(usize),
    Back(usize),
    Left(usize),
    Absent(usize),
    Announced(usize),
    Pods(u8),
    Policies(u8),
}

fn step() -> impl Strategy<Value = Step> {
    let replica = 0..REPLICAS.len();
    prop_oneof![
        8 => (replica.clone(), 0u64..4, 0usize..3, 0u64..4, any::<bool>())
            .prop_map(|(replica, id, pod, at, behind)| Step::Connect { replica, id, pod, at, behind }),
        3 => (replica.clone(), 0u64..4).prop_map(|(replica, id)| Step::Disconnect { replica, id }),
        4 => (replica.clone(), 0usize..2, any::<bool>())
            .prop_map(|(replica, policy, current)| Step::Publish { replica, policy, current }),
        1 => replica.clone().prop_map(Step::Lost),
        1 => replica.clone().prop_map(Step::Back),
        1 => replica.clone().prop_map(Step::Left),
        1 => replica.clone().prop_map(Step::Absent),
        1 => replica.prop_map(Step::Announced),
        2 => any::<u8>().prop_map(Step::Pods),
        2 => any::<u8>().prop_map(Step::Policies),
    ]
}

const PODS: [(&str, &str); 3] = [("x", "x"), ("y", "x"), ("z", "z")];

impl Aggregate {
    fn step(&mut self, step: Step) {
        let name = |at: usize| replica(REPLICAS[at]);
        match step {
            Step::Connect { replica, id, pod, at, behind } => {
                let row = proxy(id, PODS[pod].0, "u", at, behind.then_some(1));
                self.said(&name(replica), said(vec![row]));
            }
            Step::Disconnect { replica, id } => {
                self.said(&name(replica), Delta { gone: vec![Key::Proxy(id)], ..said(vec![]) });
            }
            Step::Publish { replica, policy, current } => {
                let row = published(["p", "q"][policy], if current { 3 } else { 2 });
                self.said(&name(replica), said(vec![row]));
            }
            Step::Lost(at) => self.lost(&name(at)),
            Step::Back(at) => self.said(&name(at), Delta { reset: true, ..said(vec![]) }),
            Step::Left(at) => self.left(&name(at)),
            Step::Absent(at) => self.absent(&name(at)),
            Step::Announced(at) => self.announced(&name(at)),
            Step::Pods(bits) => {
                let pods = PODS.iter().enumerate().filter(|(n, _)| bits & (1 << n) != 0);
                let pods: Vec<(&str, &str, &str)> = pods.map(|(_, (name, app))| (*name, *app, "u")).collect();
                self.workloads(&workloads(&pods));
            }
            Step::Policies(bits) => {
                let all = [fact("p", Some("x")), fact("q", None)].into_iter().enumerate();
                drop(self.facts(&facts(all.filter(|(n, _)| bits & (1 << n) != 0).map(|(_, fact)| fact))));
            }
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(256))]

    /// What is concluded step by step is what would be concluded from everything at once; no sum exceeds what there is;
    /// where a replica that may serve somebody is not reachable, nobody is counted out.
    #[test]
    fn sums_are_right(steps in proptest::collection::vec(step(), 0..60)) {
        let mut all = Aggregate::default();
        all.step(Step::Pods(7));
        all.step(Step::Policies(3));
        let mut concluded: BTreeMap<ObjectRef, Vec<Verdict>> = BTreeMap::new();
        for step in [Step::Pods(7)].into_iter().chain(steps) {
            all.step(step);
            concluded.extend(all.take().into_iter().map(|(fact, verdicts)| (fact.object.clone(), verdicts)));
            concluded.retain(|object, _| all.facts.contains_key(object));
        }
        all.all_stale();
        let afresh: BTreeMap<ObjectRef, Vec<Verdict>> =
            all.take().into_iter().map(|(fact, verdicts)| (fact.object.clone(), verdicts)).collect();
        prop_assert_eq!(&afresh, &concluded);
        let silent = all.replicas.values().any(|replica| replica.present && !replica.reachable);
        for (object, verdicts) in &afresh {
            let enforced = verdicts.iter().find(|verdict| verdict.kind == "Enforced").unwrap();
            let targets = all.workloads.values().filter(|workload| reaches(&all.facts[object], workload)).count();
            if let Some((some, total)) = enforced.message.split([' ', ';']).next().unwrap().split_once('/') {
                let (some, total): (usize, usize) = (some.parse().unwrap(), total.parse().unwrap());
                prop_assert!(some <= total && total == targets, "{}", enforced.message);
                prop_assert_eq!(enforced.status == "True", some == total && total > 0);
            } else {
                prop_assert_eq!(enforced.status, "Unknown");
            }
            prop_assert!(!(silent && enforced.reason == "NoProxy"), "{:?}", enforced);
        }
    }
}
