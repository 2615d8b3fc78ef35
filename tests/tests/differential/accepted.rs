//! Every object that admission accepts is one that Envoy takes, and every one that it refuses is refused with a field and
//! a reason. A NACK is a stale policy (semantics §10.6).
//!
//! `OBJECTS` says how many to try, `OBJECTS_SECONDS` for how long instead, `OBJECTS_STATE` where the place in the sequence of
//! seeds is kept.

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use crds::{Content, Finding, Severity};
use serde_json::Value;

use super::Seeds;
use super::bed::Bed;
use super::case::{Case, Mesh, Run, parsed};
use super::edges::SOMEWHERE;
use super::wild;

/// Workloads in one load of configuration, each with this many objects.
const WORKLOADS: usize = 60;
const EACH: usize = 3;

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_admission_accepts_envoy_takes_and_what_it_refuses_it_explains() {
    let number = |name: &str| std::env::var(name).ok().map(|text| text.parse::<u64>().expect(name));
    let end = number("OBJECTS_SECONDS").map(|seconds| Instant::now() + Duration::from_secs(seconds));
    let wanted = number("OBJECTS").unwrap_or(2_500);
    let mut bed = Bed::new().await;
    let mut seeds = Seeds::new("OBJECTS_STATE");
    // By kind: refused, accepted.
    let mut seen: BTreeMap<String, [u64; 2]> = BTreeMap::new();
    let mut tried = 0;
    while end.map_or(tried < wanted, |end| Instant::now() < end) {
        let mut accepted = Vec::new();
        while accepted.len() < WORKLOADS * EACH {
            let object = wild::object(seeds.next());
            let run = Run { address: SOMEWHERE, jwks: bed.jwks() };
            let result = parsed(&object, run);
            let good = matches!(result.content, Content::Object(_));
            seen.entry(object["kind"].to_string()).or_default()[usize::from(good)] += 1;
            tried += 1;
            if good {
                accepted.push(object);
            } else {
                explained(&object, &result.findings);
            }
        }
        let cases = accepted.chunks(EACH).enumerate().map(|(i, objects)| workload(i, objects)).collect();
        taken(&mut bed, cases).await;
        seeds.keep(tried);
    }
    eprintln!("{tried} objects, {} in all; by kind, refused and accepted: {seen:?}", seeds.keep(tried));
    for (kind, [refused, accepted]) in seen {
        let whole = refused + accepted;
        assert!(
            refused * 5 > whole && accepted * 5 > whole,
            "{kind}: {refused} refused, {accepted} accepted"
        );
    }
}

/// Delivered both ways, under any normalisation.
fn workload(i: usize, objects: &[Value]) -> Case {
    let normalization = ["BASE", "NONE", "MERGE_SLASHES", "DECODE_AND_MERGE_SLASHES"][i % 4].to_owned();
    let mesh = Mesh { normalization, ecds: i.is_multiple_of(3), ..Mesh::default() };
    Case { mesh, policies: objects.to_vec(), ..Case::default() }
}

/// Loads all of it; if Envoy refuses, finds the one object that it refuses.
async fn taken(bed: &mut Bed, mut cases: Vec<Case>) {
    let refused = bed.load(&cases).await;
    if refused.is_empty() {
        return;
    }
    // Halve as long as a half is refused, too.
    while cases.len() > 1 {
        let half = cases.split_off(cases.len() / 2);
        if bed.load(&cases).await.is_empty() {
            cases = half;
        }
    }
    let whole = cases.remove(0);
    for policy in &whole.policies {
        let alone = Case { policies: vec![policy.clone()], ..whole.clone() };
        let why = bed.load(std::slice::from_ref(&alone)).await;
        assert!(why.is_empty(), "admission accepts and Envoy refuses ({why:?}):\n{policy}");
    }
    panic!("admission accepts and Envoy refuses ({refused:?}), but only together: {whole:#?}");
}

/// There is an error, and each names a field that stands there or is missing there, and why.
fn explained(object: &Value, findings: &[Finding]) {
    let errors: Vec<&Finding> = findings.iter().filter(|f| f.severity == Severity::Error).collect();
    assert!(!errors.is_empty(), "refused without a reason: {object}");
    for Finding { field, message, .. } in errors {
        assert!(message.trim().len() > 5, "{field}: no reason but {message:?}: {object}");
        assert!(
            !field.is_empty() && stands(object, field, true),
            "{field:?} is no field of {object}: {message}"
        );
    }
}

/// Whether `field` leads from `value` to something, or to a field that is not there.
fn stands(value: &Value, field: &str, root: bool) -> bool {
    if field.is_empty() {
        return true;
    }
    match value {
        Value::Object(map) => {
            let found = map.iter().any(|(key, inner)| {
                step(key, root).iter().any(|step| {
                    field.strip_prefix(step.as_str()).is_some_and(|rest| stands(inner, rest, false))
                })
            });
            found || !field.trim_start_matches('.').contains(['.', '[', ']'])
        }
        Value::Array(items) => {
            let rest = field.strip_prefix('[').and_then(|rest| rest.split_once(']'));
            rest.is_some_and(|(index, rest)| {
                index
                    .parse::<usize>()
                    .is_ok_and(|i| items.get(i).is_some_and(|item| stands(item, rest, false)))
            })
        }
        // As good as an empty message.
        Value::Null => !field.trim_start_matches('.').contains(['.', '[', ']']),
        _ => false,
    }
}

/// The ways to write one key.
fn step(key: &str, root: bool) -> [String; 2] {
    [if root { key.to_owned() } else { format!(".{key}") }, format!("[{key:?}]")]
}

#[test]
fn fields_are_found_or_missing() {
    let object = serde_json::json!({ "spec": { "rules": [{ "to": 1, "a.b": 2 }] } });
    for field in [
        "spec",
        "spec.rules",
        "spec.rules[0]",
        "spec.rules[0].to",
        "spec.rules[0].from",
        "spec.selector",
        r#"spec.rules[0]["a.b"]"#,
    ] {
        assert!(stands(&object, field, true), "{field}");
    }
    for field in ["spec.rules[1]", "spec.rules[0].to.x", "spec.rulez[0]", "spec.rules.to", "spec.selector.x"]
    {
        assert!(!stands(&object, field, true), "{field}");
    }
}
