//! Makes a disagreement small: anything that can be left out while it stays one, is. All ways to leave out one thing are
//! tried in one load.

use serde_json::Value;

use super::bed::{Bed, Wrong};
use super::case::{Case, Run, admitted};
use super::edges::SOMEWHERE;

const ROUNDS: usize = 40;
const TRIES: usize = 120;

pub(crate) async fn shrink(bed: &mut Bed, wrong: Wrong) -> Wrong {
    let mut smallest = wrong;
    for _ in 0..ROUNDS {
        let smaller = candidates(&smallest.case, bed.jwks());
        let mut found = bed.disagreements(smaller).await;
        // Only the same mistake.
        let ((_, expected, envoy), tcp) = (smallest.kind(), smallest.case.requests[0].tcp);
        found.retain(|wrong| wrong.envoy == envoy && wrong.expected.outcome(tcp) == expected);
        found.sort_by_key(|wrong| size(&wrong.case));
        match found.into_iter().next() {
            Some(wrong) => smallest = wrong,
            None => break,
        }
    }
    smallest
}

fn size(case: &Case) -> usize {
    serde_json::to_string(case).unwrap().len()
}

/// Everything that is one part less.
fn candidates(case: &Case, jwks: &str) -> Vec<Case> {
    let run = Run { address: SOMEWHERE, jwks };
    let whole = serde_json::to_value(case).unwrap();
    let mut paths = Vec::new();
    for part in ["mesh", "policies", "requests"] {
        parts(&whole[part], &mut vec![part.to_owned()], &mut paths);
    }
    // The largest parts first.
    paths.sort_by_key(|path| path.len());
    let without = |path: &Vec<String>| {
        let mut value = whole.clone();
        remove(&mut value, path);
        let mut case: Case = serde_json::from_value(value).ok()?;
        case.focus.clear();
        let sound =
            case.requests.len() == 1 && case.policies.iter().all(|policy| admitted(policy, run).is_ok());
        (sound && serde_json::to_value(&case).unwrap() != whole).then_some(case)
    };
    paths.iter().filter_map(without).take(TRIES).collect()
}

fn parts(value: &Value, at: &mut Vec<String>, all: &mut Vec<Vec<String>>) {
    let steps: Vec<(String, &Value)> = match value {
        Value::Array(items) => items.iter().enumerate().map(|(i, item)| (i.to_string(), item)).collect(),
        Value::Object(map) => map.iter().map(|(key, item)| (key.clone(), item)).collect(),
        _ => return,
    };
    for (step, part) in steps {
        at.push(step);
        all.push(at.clone());
        parts(part, at, all);
        at.pop();
    }
}

fn remove(value: &mut Value, path: &[String]) {
    let [step, rest @ ..] = path else { return };
    match value {
        Value::Array(items) => {
            let i: usize = step.parse().unwrap();
            if rest.is_empty() {
                items.remove(i);
            } else {
                remove(&mut items[i], rest);
            }
        }
        Value::Object(map) => {
            if rest.is_empty() {
                drop(map.remove(step));
            } else {
                remove(&mut map[step], rest);
            }
        }
        _ => {}
    }
}
