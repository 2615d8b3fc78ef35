//! Reads a policy's `spec` into its wire type even where parts of it are wrong: each part that does not fit is reported
//! and cut out, at the granularity at which cutting makes a rule match *more*, never less. So what remains is what a DENY
//! may be enforced with; `degrade` then closes everything else. It knows the shape of the three policy kinds only by the
//! names of their lists.

use std::borrow::Cow;

use serde::de::DeserializeOwned;
use serde_json::Value;

use crate::finding::{Issue, Issues};
use crate::path::{At, FieldPath, Segment};
use crate::strict;

/// More broken parts than this in one spec: nothing in it is believed.
const MAX_CUTS: usize = 64;

/// Lists whose entries are ORed or ANDed objects. An entry that cannot be read becomes an empty one: in `from` and `to`
/// that is "any", in `when` it is no condition.
const OBJECT_LISTS: [&str; 8] =
    ["rules", "from", "to", "when", "jwtRules", "fromHeaders", "outputClaimToHeaders", "targetRefs"];

/// `spec` as it was found.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Spec<'v> {
    Absent,
    Value(&'v Value),
    /// The document broke off before or within it (reported already).
    Unreadable,
}

/// `None`: nothing of it can be believed. Problems are errors in `issues`, at their paths below `spec`.
pub(crate) fn salvage<T: DeserializeOwned + Default>(spec: Spec<'_>, issues: &mut Issues) -> Option<T> {
    let value = match spec {
        Spec::Absent | Spec::Value(Value::Null) => return Some(T::default()),
        Spec::Unreadable => return None,
        Spec::Value(value) => value,
    };
    let mut value = Cow::Borrowed(value);
    let mut nulls = Vec::new();
    find_nulls(&value, &At::ROOT, &mut nulls);
    // From the back, so that what is cut does not renumber what is still to be cut.
    for path in nulls.iter().rev() {
        // Kubernetes would drop the field, but in a file `principals:` with nothing after it is a slip that would
        // open the rule to everybody.
        report(issues, path, "nothing is given here: write a value, or leave the field out");
        // Two in one list of values: the first cut took the list.
        if find(value.to_mut(), &path.0).is_some() {
            cut(value.to_mut(), &path.0);
        }
    }
    for _ in 0..MAX_CUTS {
        match strict::read(&value) {
            Ok(spec) => return Some(spec),
            Err((path, message)) => {
                report(issues, &path, message);
                if !cut(value.to_mut(), &path.0) {
                    return None;
                }
            }
        }
    }
    issues.error(&At::ROOT.key("spec"), format!("more than {MAX_CUTS} fields are wrong"));
    None
}

fn report(issues: &mut Issues, path: &FieldPath, message: impl Into<String>) {
    issues.0.push(Issue::error(path.below(&FieldPath(vec![Segment::Key("spec".into())])), message));
}

fn find_nulls(value: &Value, at: &At<'_>, found: &mut Vec<FieldPath>) {
    match value {
        Value::Null => found.push(at.path()),
        Value::Array(items) => {
            items.iter().enumerate().for_each(|(i, item)| find_nulls(item, &at.index(i), found));
        }
        Value::Object(map) => map.iter().for_each(|(key, item)| find_nulls(item, &at.key(key), found)),
        Value::Bool(_) | Value::Number(_) | Value::String(_) => {}
    }
}

/// Cuts out what is at `path`, or the closest thing around it that can be cut; `false` if that is everything.
fn cut(value: &mut Value, path: &[Segment]) -> bool {
    let Some((last, parents)) = path.split_last() else { return false };
    let done = match (last, find(value, parents)) {
        (Segment::Key(key), Some(Value::Object(map))) => map.remove(key).is_some(),
        (Segment::Index(index), Some(Value::Array(items))) => match (items.get_mut(*index), parents.last()) {
            (Some(item), Some(Segment::Key(list))) if OBJECT_LISTS.contains(&list.as_str()) => {
                let empty = Value::Object(serde_json::Map::new());
                let progress = *item != empty;
                *item = empty;
                progress
            }
            // An entry of a list of values: without it the field would match less, so the whole field goes.
            _ => false,
        },
        _ => false,
    };
    done || cut(value, parents)
}

fn find<'v>(value: &'v mut Value, path: &[Segment]) -> Option<&'v mut Value> {
    path.iter().try_fold(value, |value, step| match (step, value) {
        (Segment::Key(key), Value::Object(map)) => map.get_mut(key),
        (Segment::Index(index), Value::Array(items)) => items.get_mut(*index),
        _ => None,
    })
}
