use std::sync::Arc;
use std::time::UNIX_EPOCH;

use proptest::prelude::*;
use source::Version;
use xds::ResourceType;

use super::super::facts::Older;
use super::*;
use crate::fixtures::{id, labels, pod};

fn fact(kind: Kind) -> Fact {
    Fact {
        object: ObjectRef { kind, id: id("a", "p") },
        version: version(3),
        accepted: Verdict::yes("Accepted", String::new()),
        resolved: None,
        attachment: Some(Attachment::Namespace),
        mesh_wide: false,
        dry_run: false,
        action: (kind == Kind::AuthorizationPolicy).then_some(Action::Deny),
        older: Older::default(),
    }
}

fn version(generation: i64) -> Option<Version> {
    Some(Version { uid: "u".into(), generation, manager: Some("kubectl".into()) })
}

fn row(generation: i64, commits: &[u64]) -> PolicyRow {
    let object = ObjectRef { kind: Kind::AuthorizationPolicy, id: id("a", "p") };
    PolicyRow { object, version: version(generation), commits: commits.to_vec() }
}

fn proxy(behind: Option<u64>, draining: &[u64], refusals: Vec<Refusal>) -> ProxyRow {
    ProxyRow {
        id: 1,
        workload: id("a", "x-1"),
        pod_uid: None,
        connected: UNIX_EPOCH,
        behind,
        draining: draining.to_vec(),
        concerned: 0,
        refusals,
    }
}

fn refusal(resource: Option<&str>, error: &str) -> Refusal {
    let kind = ResourceType::Extension;
    Refusal { kind, resource: resource.map(Into::into), error: error.to_owned(), since: UNIX_EPOCH }
}

fn find<'a>(verdicts: &'a [Verdict], kind: &str) -> &'a Verdict {
    verdicts.iter().find(|verdict| verdict.kind == kind).expect("a condition of that type")
}

/// `STATUS REASON` of Enforced and of Programmed for one workload.
fn one(fact: &Fact, seen: Seen<'_>) -> (String, String) {
    let workload = pod("a", "x-1", "x", "10.0.0.1");
    let verdicts = evaluate(fact, &[Target { workload: &workload, seen }]);
    let of = |kind: &str| {
        let Verdict { status, reason, .. } = find(&verdicts, kind);
        format!("{status} {reason}")
    };
    (of("Enforced"), of("Programmed"))
}

#[test]
fn one_proxy() {
    let fact = fact(Kind::AuthorizationPolicy);
    let policy = row(3, &[2, 5]);
    let ours = refusal(Some("inbound.rbac.deny"), "no");
    let other = refusal(Some("inbound.rbac.allow"), "no");
    let by_name = refusal(None, "bad ns[a]-policy[p]-rule[0]");
    let by_other_name = refusal(Some("inbound.rbac.deny"), "bad ns[a]-policy[q]-rule[0]");
    for (proxy, enforced, programmed) in [
        (proxy(None, &[], vec![]), "True Enforced", "True Programmed"),
        (proxy(Some(6), &[], vec![]), "True Enforced", "True Programmed"),
        (proxy(Some(6), &[], vec![ours.clone()]), "True Enforced", "True Programmed"),
        (proxy(Some(5), &[], vec![]), "False Pending", "False Pending"),
        (proxy(Some(1), &[], vec![]), "False Pending", "False Pending"),
        (proxy(Some(5), &[], vec![other]), "False Pending", "False Pending"),
        (proxy(Some(5), &[], vec![ours]), "False Rejected", "False Rejected"),
        (proxy(Some(5), &[], vec![by_name]), "False Rejected", "False Rejected"),
        (proxy(Some(5), &[], vec![by_other_name]), "False Pending", "False Pending"),
        (proxy(None, &[5], vec![]), "False Draining", "True Programmed"),
        (proxy(None, &[2], vec![]), "False Draining", "True Programmed"),
        (proxy(None, &[EVERY], vec![]), "False Draining", "True Programmed"),
        (proxy(None, &[3, 4, 6], vec![]), "True Enforced", "True Programmed"),
        // Its labels changed by a commit that it does not have yet, so that the policy may be new to it.
        (ProxyRow { concerned: 6, ..proxy(Some(6), &[], vec![]) }, "False Pending", "False Pending"),
        (ProxyRow { concerned: 6, ..proxy(Some(7), &[], vec![]) }, "True Enforced", "True Programmed"),
    ] {
        let seen = Seen::At { proxy: &proxy, policy: Some(&policy) };
        assert_eq!(one(&fact, seen), (enforced.to_owned(), programmed.to_owned()), "{proxy:?}");
    }
}

#[test]
fn replicas_that_are_not_there_yet_or_not_any_more() {
    let fact = fact(Kind::AuthorizationPolicy);
    let proxy = proxy(None, &[], vec![]);
    let pending = ("False Pending".to_owned(), "False Pending".to_owned());
    let other = Version { uid: "v".into(), ..version(3).unwrap() };
    for (policy, what) in [
        (None, "knows nothing of it"),
        (Some(row(2, &[2])), "is behind"),
        (Some(row(4, &[2])), "is ahead"),
        (Some(row(3, &[])), "has not published it"),
        (Some(PolicyRow { version: Some(other), ..row(3, &[2]) }), "means another object of that name"),
    ] {
        assert_eq!(one(&fact, Seen::At { proxy: &proxy, policy: policy.as_ref() }), pending, "{what}");
    }
    assert_eq!(one(&fact, Seen::Nowhere), ("False NoProxy".to_owned(), "True Programmed".to_owned()));
    let unknown = "Unknown ReplicaUnreachable".to_owned();
    assert_eq!(one(&fact, Seen::Lost { replica: "r" }), (unknown.clone(), unknown));
}

#[test]
fn messages_begin_with_a_count_and_name_names() {
    let fact = fact(Kind::AuthorizationPolicy);
    let policy = row(3, &[2]);
    let fine = proxy(None, &[], vec![]);
    let behind = proxy(Some(2), &[], vec![]);
    let refusing = proxy(Some(2), &[], vec![refusal(None, "bad ns[a]-policy[p]-rule[0]")]);
    let workloads: Vec<Workload> = (0..12).map(|n| pod("a", &format!("x-{n}"), "x", "10.0.0.1")).collect();
    let enforced = |last: Seen<'_>| {
        let seen = |n| if n == 11 { last } else { Seen::At { proxy: &fine, policy: Some(&policy) } };
        let targets: Vec<Target<'_>> =
            workloads.iter().enumerate().map(|(n, workload)| Target { workload, seen: seen(n) }).collect();
        find(&evaluate(&fact, &targets), "Enforced").message.clone()
    };
    assert_eq!(enforced(Seen::At { proxy: &fine, policy: Some(&policy) }), "12/12 workloads");
    assert_eq!(enforced(Seen::At { proxy: &behind, policy: Some(&policy) }), "11/12; waiting for a/x-11");
    assert_eq!(enforced(Seen::Nowhere), "11/12; no proxy is connected for a/x-11");
    assert_eq!(
        enforced(Seen::At { proxy: &refusing, policy: Some(&policy) }),
        "11/12; a/x-11 refuses ecds since 1970-01-01T00:00:00Z: bad ns[a]-policy[p]-rule[0]"
    );
    let lost = enforced(Seen::Lost { replica: "countersign-b" });
    assert!(lost.contains("countersign-b") && lost.contains("a/x-11") && !lost.contains("11/12"), "{lost}");
}

#[test]
fn what_is_not_enforced_by_nature() {
    let base = fact(Kind::AuthorizationPolicy);
    let none = |fact: &Fact| {
        let verdicts = evaluate(fact, &[]);
        let Verdict { status, reason, message, .. } = find(&verdicts, "Enforced").clone();
        (status, reason, message)
    };
    assert_eq!(none(&base).1, "NoTargets");
    assert!(none(&base).2.starts_with("0/0"));
    assert_eq!(none(&Fact { dry_run: true, ..base.clone() }).1, "DryRun");
    for reason in ["Invalid", "LastGoodVersionKept"] {
        let accepted = Verdict::no("Accepted", reason, "why".to_owned());
        assert_eq!(none(&Fact { accepted, ..base.clone() }).1, reason);
    }
}

#[test]
fn peer_authentications_that_lose() {
    let fact = fact(Kind::PeerAuthentication);
    let selecting = |app: &str| Attachment::Labels(labels(&[("app", app)]));
    let conflict = |fact: &Fact| {
        let workload = pod("a", "x-1", "x", "10.0.0.1");
        let proxy = proxy(None, &[], vec![]);
        let policy = row(3, &[2]);
        let seen = Seen::At { proxy: &proxy, policy: Some(&policy) };
        let verdicts = evaluate(fact, &[Target { workload: &workload, seen }]);
        let of = |kind: &str| find(&verdicts, kind).reason;
        (of("Conflicted"), of("Enforced"))
    };
    assert_eq!(conflict(&fact), ("NoConflict", "Enforced"));
    let older = |attachment: Attachment| {
        let after = (id("a", "younger"), Attachment::Namespace);
        Older { peers: Arc::new(vec![(id("a", "old"), attachment), after]), before: 1 }
    };
    let wide = Fact { older: older(Attachment::Namespace), ..fact.clone() };
    assert_eq!(conflict(&wide), ("OlderPolicyWins", "Conflicted"));
    assert_eq!(find(&evaluate(&wide, &[]), "Conflicted").status, "True", "whoever is there");
    let narrow = Fact { attachment: Some(selecting("x")), ..fact.clone() };
    assert_eq!(
        conflict(&Fact { older: older(selecting("x")), ..narrow.clone() }),
        ("OlderPolicyWins", "Conflicted")
    );
    assert_eq!(conflict(&Fact { older: older(selecting("y")), ..narrow }), ("NoConflict", "Enforced"));
    let misplaced = Fact { attachment: None, mesh_wide: true, ..fact };
    let verdicts = evaluate(&misplaced, &[]);
    assert_eq!(find(&verdicts, "Conflicted").reason, "SelectorInRootNamespace");
    assert_eq!(find(&verdicts, "Enforced").reason, "NoTargets");
}

#[derive(Clone, Copy, Debug)]
enum Case {
    Nowhere,
    Lost,
    Behind,
    Draining,
    Fine,
}

fn cases() -> impl Strategy<Value = Vec<Case>> {
    let case = prop_oneof![
        1 => Just(Case::Nowhere),
        1 => Just(Case::Lost),
        1 => Just(Case::Behind),
        1 => Just(Case::Draining),
        5 => Just(Case::Fine)
    ];
    proptest::collection::vec(case, 0..20)
}

proptest! {
    /// True means every workload's proxy said so; what cannot be known is never counted.
    #[test]
    fn nothing_is_claimed_that_nobody_said(cases in cases()) {
        let fact = fact(Kind::AuthorizationPolicy);
        let policy = row(3, &[2]);
        let (fine, behind, draining) =
            (proxy(None, &[], vec![]), proxy(Some(1), &[], vec![]), proxy(None, &[2], vec![]));
        let workload = pod("a", "x-1", "x", "10.0.0.1");
        let at = |proxy| Seen::At { proxy, policy: Some(&policy) };
        let targets: Vec<Target<'_>> = cases.iter().map(|case| Target {
            workload: &workload,
            seen: match case {
                Case::Nowhere => Seen::Nowhere,
                Case::Lost => Seen::Lost { replica: "r" },
                Case::Behind => at(&behind),
                Case::Draining => at(&draining),
                Case::Fine => at(&fine),
            },
        }).collect();
        let verdicts = evaluate(&fact, &targets);
        let enforced = find(&verdicts, "Enforced");
        let good = cases.iter().filter(|case| matches!(case, Case::Fine)).count();
        let lost = cases.iter().any(|case| matches!(case, Case::Lost));
        prop_assert_eq!(enforced.status == "True", good == cases.len() && good > 0);
        prop_assert_eq!(enforced.status == "Unknown", lost);
        let count = enforced.message.split([';', ' ']).next().unwrap_or_default();
        if lost {
            prop_assert!(!count.contains('/'));
        } else {
            prop_assert_eq!(count, format!("{}/{}", good, cases.len()));
        }
        prop_assert!(verdicts.is_sorted_by_key(|verdict| verdict.kind));
    }
}
