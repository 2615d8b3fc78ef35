//! What must hold whatever the policies are: of `evaluate`, and where delivery or spelling is concerned of Envoy.

use std::collections::BTreeMap;

use rand::rngs::StdRng;
use rand::{Rng, SeedableRng};
use serde_json::{Value, json};
use tests::lab::Signer;

use super::bed::Bed;
use super::case::{AUTO, Case, Expected, Outcome, Ready, Run, Wire};
use super::edges::SOMEWHERE;
use super::{policies, words};

/// Pairs of cases that each law is tried on.
const PAIRS: u64 = 600;

struct Laws {
    jwks: String,
}

impl Laws {
    fn new() -> Self {
        Self { jwks: Signer::new("https://login.example").unwrap().jwks() }
    }

    /// Every case with another one's main policy, to be put beside it.
    fn pairs(&self) -> impl Iterator<Item = (Case, Value)> {
        (0..PAIRS).map(|seed| {
            let mut other = policies::case(seed * 7 + 1_000_000, &self.jwks).policies.remove(0);
            other["metadata"]["name"] = "other".into();
            (policies::case(seed, &self.jwks), other)
        })
    }

    fn ready(&self, case: &Case) -> Ready {
        case.ready(Run { address: SOMEWHERE, jwks: &self.jwks }).unwrap()
    }

    fn verdicts(&self, case: &Case, requests: &[Wire]) -> Vec<Option<Expected>> {
        Self::verdicts_of(&self.ready(case), requests)
    }

    fn verdicts_of(ready: &Ready, requests: &[Wire]) -> Vec<Option<Expected>> {
        let verdict = |wire: &Wire| {
            let (_, headers) = wire.sent(|_| "token".to_owned());
            wire.expected(ready, &wire.path, headers)
        };
        requests.iter().map(verdict).collect()
    }

    fn admitted(&self, case: &Case, requests: &[Wire]) -> Vec<bool> {
        Self::admitted_by(&self.ready(case), requests)
    }

    fn admitted_by(ready: &Ready, requests: &[Wire]) -> Vec<bool> {
        let verdicts = Self::verdicts_of(ready, requests).into_iter().zip(requests);
        let outcome = |(expected, wire): (Option<Expected>, &Wire)| expected.map(|e| e.outcome(wire.tcp));
        verdicts.map(|v| matches!(outcome(v), Some(Outcome::Status(200) | Outcome::Echoed))).collect()
    }
}

fn with(case: &Case, policy: Value) -> Case {
    let mut more = case.clone();
    more.policies.push(policy);
    more
}

#[track_caller]
fn never_more(before: &[bool], after: &[bool], case: &Case) {
    for ((before, after), wire) in before.iter().zip(after).zip(&case.requests) {
        assert!(*before || !after, "{wire:#?} is newly admitted by {case:#?}");
    }
}

#[test]
fn a_further_deny_never_admits_more() {
    let laws = Laws::new();
    let mut fewer = 0;
    for (case, mut other) in laws.pairs() {
        other["spec"]["action"] = "DENY".into();
        let before = laws.admitted(&case, &case.requests);
        let after = laws.admitted(&with(&case, other), &case.requests);
        never_more(&before, &after, &case);
        fewer += usize::from(before != after);
    }
    assert!(fewer > 50, "only {fewer} made a difference");
}

#[test]
fn one_allow_less_of_several_never_admits_more() {
    let laws = Laws::new();
    let mut fewer = 0;
    for (case, mut other) in laws.pairs() {
        other["spec"].as_object_mut().unwrap().remove("action");
        // There is another one left: without any, everything would pass.
        if laws.ready(&case).policy.allow.enforced.is_none() {
            continue;
        }
        let before = laws.admitted(&with(&case, other), &case.requests);
        let after = laws.admitted(&case, &case.requests);
        never_more(&before, &after, &case);
        fewer += usize::from(before != after);
    }
    assert!(fewer > 50, "only {fewer} made a difference");
}

#[test]
fn a_dry_run_or_an_audit_never_changes_a_verdict() {
    let laws = Laws::new();
    let mut seen = 0;
    for (case, other) in laws.pairs() {
        let mut dry_run = other.clone();
        dry_run["metadata"]["annotations"] = json!({ "istio.io/dry-run": "true" });
        let mut audit = other;
        audit["spec"]["action"] = "AUDIT".into();
        let before = laws.verdicts(&case, &case.requests);
        for more in [dry_run, audit] {
            let after = laws.verdicts(&with(&case, more), &case.requests);
            for (before, after) in before.iter().zip(after) {
                let (Some(Expected::Decision(before)), Some(Expected::Decision(after))) = (before, after)
                else {
                    continue;
                };
                assert_eq!(before.verdict, after.verdict, "{case:#?}");
                assert_eq!(before.deciding, after.deciding, "{case:#?}");
                seen += usize::from(before.audited != after.audited || before.dry_run != after.dry_run);
            }
        }
    }
    assert!(seen > 50, "only {seen} were seen at all");
}

#[test]
fn the_order_of_policies_never_matters() {
    let laws = Laws::new();
    for (case, other) in laws.pairs() {
        let case = with(&case, other);
        let mut turned = case.clone();
        turned.policies.reverse();
        assert_eq!(laws.verdicts(&case, &case.requests), laws.verdicts(&turned, &case.requests), "{case:#?}");
    }
}

#[test]
fn http_and_tcp_agree_on_what_both_know() {
    let laws = Laws::new();
    let mut compared = [0, 0];
    for (case, _) in laws.pairs() {
        let policy = laws.ready(&case).policy;
        let same = policy::EffectivePolicy { drain: policy.drain.clone(), ..policy.tcp() };
        // Authorizers of HTTP type are not asked about TCP.
        if same != policy || !policy.custom.is_empty() {
            continue;
        }
        let shared = |tcp| {
            move |wire: &Wire| {
                let Wire { peer, source, sni, .. } = wire.clone();
                Wire { tcp, port: AUTO, peer, source, sni, ..Wire::default() }
            }
        };
        let http: Vec<Wire> = case.requests.iter().map(shared(false)).collect();
        let tcp: Vec<Wire> = case.requests.iter().map(shared(true)).collect();
        let verdicts = laws.admitted(&case, &http);
        assert_eq!(verdicts, laws.admitted(&case, &tcp), "{case:#?}");
        verdicts.iter().for_each(|admitted| compared[usize::from(*admitted)] += 1);
    }
    assert!(compared.iter().all(|n| *n > 500), "compared {compared:?}");
}

/// An unknown field, a value of another type, and a reference to nothing, each at any place of any policy: what is then
/// enforced, its closed value, is never wider.
#[test]
fn an_error_in_a_policy_never_admits_more() {
    let laws = Laws::new();
    let run = Run { address: SOMEWHERE, jwks: &laws.jwks };
    let (mut errors, mut fewer) = (0, 0);
    for (seed, (case, other)) in laws.pairs().enumerate() {
        let case = with(&case, other);
        let before = laws.admitted(&case, &case.requests);
        let mut rng = StdRng::seed_from_u64(seed as u64);
        for broken in broken(&mut rng, &case) {
            let closed = broken.closed(run);
            let after = Laws::admitted_by(&closed, &case.requests);
            never_more(&before, &after, &broken);
            errors += usize::from(broken.ready(run).is_err());
            fewer += usize::from(before != after);
        }
    }
    assert!(errors > 1000 && fewer > 300, "only {errors} errors, of which {fewer} made a difference");
}

/// The case with one mistake, in some of the many ways.
fn broken(rng: &mut StdRng, case: &Case) -> Vec<Case> {
    let mut all = Vec::new();
    for (i, policy) in case.policies.iter().enumerate() {
        for _ in 0..3 {
            let mut policy = policy.clone();
            match policy["spec"].get("provider") {
                Some(_) if words::chance(rng, 30) => policy["spec"]["provider"]["name"] = "lost".into(),
                _ => spoil(rng, &mut policy["spec"]),
            }
            let mut broken = case.clone();
            broken.policies[i] = policy;
            all.push(broken);
        }
    }
    all
}

/// One unknown field, or one value of a type that it cannot have.
fn spoil(rng: &mut StdRng, value: &mut Value) {
    let deeper = words::chance(rng, 80);
    match value {
        Value::Object(map) if deeper && !map.is_empty() => {
            let at = rng.random_range(0..map.len());
            spoil(rng, map.values_mut().nth(at).expect("within the map"));
        }
        Value::Array(items) if deeper && !items.is_empty() => {
            let at = rng.random_range(0..items.len());
            spoil(rng, &mut items[at]);
        }
        Value::Object(map) => drop(map.insert("unknown".into(), true.into())),
        other => *other = json!({ "not": ["this"] }),
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn inlined_and_extension_configs_are_decided_alike() {
    let mut bed = Bed::new().await;
    let mut cases: Vec<Case> = (0..60).map(|seed| policies::case(seed * 11 + 500_000, bed.jwks())).collect();
    let mut answers = Vec::new();
    for ecds in [false, true] {
        cases.iter_mut().for_each(|case| case.mesh.ecds = ecds);
        let (judged, wrong) = bed.judge(cases.clone()).await;
        assert!(wrong.is_empty(), "{wrong:#?}");
        let by_request = judged.into_iter().map(|judged| (judged.which, judged.outcome));
        answers.push(by_request.collect::<BTreeMap<_, _>>());
    }
    assert!(answers[0].len() > 1000, "only {} were compared", answers[0].len());
    assert_eq!(answers[0], answers[1]);
}

/// Ways to write `/a/b` that each normalisation makes one of.
const SPELLINGS: [(&str, &[&str]); 4] = [
    ("NONE", &["/a/b", "/a/b?x=/c", "/a/b?"]),
    (
        "BASE",
        &[
            "/a/b",
            "/a/b?x=/c",
            "/a/./b",
            "/a/x/../b",
            "/./a/b",
            "/%61/b",
            "/a/%62",
            r"/a\b",
            "/a/%2E/b",
            "/x/%2e%2e/a/b",
        ],
    ),
    ("MERGE_SLASHES", &["/a/b", "//a/b", "/a//b", "/a///b", "/a/.//b", "/%61//b", r"/a\\b", "/a//x/..//b"]),
    (
        "DECODE_AND_MERGE_SLASHES",
        &["/a/b", "/a%2Fb", "/a%2fb", "/a%5Cb", "/a%5cb", "/%2Fa/b", "/a/%2F/b", "/a%2F%2e%2Fb"],
    ),
];

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn equivalent_spellings_of_a_path_get_one_decision() {
    let mut bed = Bed::new().await;
    let values = ["/a/b", "/a/*", "*/b", "/a/{*}", "/{**}/b", "/{*}/b", "/a", "/x*", "/c", "*"];
    let mut cases = Vec::new();
    for (normalization, spellings) in SPELLINGS {
        for value in values {
            for (action, field) in
                [("ALLOW", "paths"), ("DENY", "paths"), ("ALLOW", "notPaths"), ("DENY", "notPaths")]
            {
                let mut case = Case::default();
                case.mesh.normalization = normalization.to_owned();
                let spec =
                    json!({ "action": action, "rules": [{ "to": [{ "operation": { field: [value] } }] }] });
                case.policies =
                    vec![json!({ "apiVersion": "security.istio.io/v1", "kind": "AuthorizationPolicy",
                    "metadata": { "name": "main", "namespace": "foo" }, "spec": spec })];
                let wire = |path: &&str| Wire { path: (*path).to_owned(), ..Wire::default() };
                case.requests = spellings.iter().map(wire).collect();
                cases.push(case);
            }
        }
    }
    let (judged, wrong) = bed.judge(cases.clone()).await;
    assert!(wrong.is_empty(), "{wrong:#?}");
    let answers: BTreeMap<_, _> = judged.into_iter().map(|judged| (judged.which, judged.outcome)).collect();
    let (mut admitted, mut refused) = (0, 0);
    for (i, case) in cases.iter().enumerate() {
        let plain = answers[&(i, 0)];
        *(if plain == Outcome::Status(200) { &mut admitted } else { &mut refused }) += 1;
        for (j, wire) in case.requests.iter().enumerate() {
            assert_eq!(answers.get(&(i, j)), Some(&plain), "{} of {case:#?}", wire.path);
        }
    }
    assert!(admitted > 30 && refused > 30, "{admitted} admitted, {refused} refused");
}
