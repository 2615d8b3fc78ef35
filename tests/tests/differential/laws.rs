//! What must hold of `evaluate` whatever the policies are. Needs no Envoy.

use serde_json::{Value, json};
use tests::lab::Signer;

use super::case::{AUTO, Case, Expected, Outcome, Ready, Run, Wire};
use super::edges::SOMEWHERE;
use super::policies;

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
        let ready = self.ready(case);
        let verdict = |wire: &Wire| {
            let (_, headers) = wire.sent(|_| "token".to_owned());
            wire.expected(&ready, &wire.path, headers)
        };
        requests.iter().map(verdict).collect()
    }

    fn admitted(&self, case: &Case, requests: &[Wire]) -> Vec<bool> {
        let verdicts = self.verdicts(case, requests).into_iter().zip(requests);
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
