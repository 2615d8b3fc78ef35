//! Writes conditions into the status of policies: reads, replaces ours, keeps everybody else's, and writes on condition that
//! nothing changed in between. What the conditions are is not decided here.

use std::collections::HashMap;
use std::sync::Arc;

use crds::{Kind, ObjectRef};
use k8s_openapi::jiff::Timestamp;
use kube::api::{Api, ApiResource, DynamicObject, ListParams, Patch, PatchParams};
use kube::core::GroupVersionKind;
use kube::{Client, Error};
use policy::ObjectName;
use serde_json::{Map, Value, json};
use tokio::time::{Instant, timeout_at};

use super::objects;

/// Types that nobody but us writes.
const OURS: [&str; 4] = ["Accepted", "Programmed", "Enforced", "Conflicted"];
/// Its type may be another controller's, too; these reasons are ours.
const RESOLVED: &str = "ResolvedRefs";
const RESOLVED_REASONS: [&str; 3] = ["ResolvedRefs", "JwksNotFetched", "ProviderNotFound"];
/// Somebody else wrote in between so often: given up until something changes.
const ATTEMPTS: usize = 5;
const PAGE: u32 = 500;

/// A condition as it is to be.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Condition {
    pub kind: String,
    pub status: String,
    pub reason: String,
    pub message: String,
}

/// The conditions of one version of one object.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Status {
    pub uid: Arc<str>,
    /// Becomes `observedGeneration` of each condition.
    pub generation: i64,
    /// Sorted by type.
    pub conditions: Vec<Condition>,
}

/// What came of a write.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Outcome {
    Written,
    /// It was there already.
    Equal,
    /// The object is gone, or another one of that name is there.
    Gone,
}

#[derive(Debug, thiserror::Error)]
pub enum WriteError {
    /// This process may not do that.
    #[error("{0}")]
    Forbidden(String),
    #[error("others write the same status all the time")]
    Contended,
    #[error("no answer in time")]
    Late,
    #[error(transparent)]
    Other(Error),
}

impl From<Error> for WriteError {
    fn from(error: Error) -> Self {
        match error {
            Error::Api(status) if matches!(status.code, 401 | 403) => Self::Forbidden(status.message.clone()),
            error => Self::Other(error),
        }
    }
}

/// Cheap to clone.
#[derive(Clone)]
pub struct Writer {
    client: Client,
}

impl std::fmt::Debug for Writer {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Writer").finish_non_exhaustive()
    }
}

impl Writer {
    pub fn new(client: Client) -> Self {
        Self { client }
    }

    /// Our conditions of every policy, as they are now. A kind that the API server does not know has none.
    ///
    /// # Errors
    /// If a list cannot be read.
    pub async fn present(&self) -> Result<HashMap<ObjectRef, Status>, WriteError> {
        let mut present = HashMap::new();
        for kind in [Kind::PeerAuthentication, Kind::RequestAuthentication, Kind::AuthorizationPolicy] {
            let all: Api<DynamicObject> = Api::all_with(self.client.clone(), &resource(kind));
            let mut params = ListParams::default().limit(PAGE);
            loop {
                let page = match all.list(&params).await {
                    Ok(page) => page,
                    Err(Error::Api(status)) if status.code == 404 => break,
                    Err(error) => return Err(error.into()),
                };
                present.extend(page.items.iter().filter_map(|object| read(kind, object)));
                params.continue_token = page.metadata.continue_.filter(|token| !token.is_empty());
                if params.continue_token.is_none() {
                    break;
                }
            }
        }
        Ok(present)
    }

    /// Makes `status` that of `object`. Nothing is written that is there already, and nothing after `deadline`.
    ///
    /// # Errors
    /// If it cannot be written; what is there is then as before, or as wanted.
    pub async fn write(
        &self,
        object: &ObjectRef,
        status: &Status,
        deadline: Instant,
    ) -> Result<Outcome, WriteError> {
        timeout_at(deadline, self.attempts(object, status)).await.map_err(|_| WriteError::Late)?
    }

    async fn attempts(&self, object: &ObjectRef, status: &Status) -> Result<Outcome, WriteError> {
        let ObjectRef { kind, id: ObjectName { namespace, name } } = object;
        let api: Api<DynamicObject> = Api::namespaced_with(self.client.clone(), namespace, &resource(*kind));
        for _ in 0..ATTEMPTS {
            let Some(present) = api.get_opt(name).await? else { return Ok(Outcome::Gone) };
            if present.metadata.uid.as_deref() != Some(&*status.uid) {
                return Ok(Outcome::Gone);
            }
            let before = conditions(&present);
            let Some(after) = merge(before, status, &now()) else { return Ok(Outcome::Equal) };
            let patch = json!({
                "metadata": {"resourceVersion": present.metadata.resource_version, "uid": &*status.uid},
                "status": {"conditions": after},
            });
            let params = PatchParams {
                field_manager: Some("countersign-status".to_owned()),
                ..PatchParams::default()
            };
            match api.patch_status(name, &params, &Patch::Merge(&patch)).await {
                Ok(_) => return Ok(Outcome::Written),
                Err(Error::Api(status)) if status.code == 409 => {}
                Err(Error::Api(status)) if status.code == 404 => return Ok(Outcome::Gone),
                Err(error) => return Err(error.into()),
            }
        }
        Err(WriteError::Contended)
    }
}

fn resource(kind: Kind) -> ApiResource {
    let version = kind.versions().first().copied().unwrap_or("v1");
    let gvk = GroupVersionKind::gvk(kind.group(), version, kind.as_str());
    ApiResource::from_gvk_with_plural(&gvk, objects::plural(kind))
}

fn now() -> String {
    Timestamp::from_second(Timestamp::now().as_second()).unwrap_or_default().to_string()
}

fn conditions(object: &DynamicObject) -> &[Value] {
    object.data.pointer("/status/conditions").and_then(Value::as_array).map_or(&[], Vec::as_slice)
}

fn text<'a>(condition: &'a Value, field: &str) -> &'a str {
    condition.get(field).and_then(Value::as_str).unwrap_or_default()
}

fn ours(condition: &Value) -> bool {
    let kind = text(condition, "type");
    OURS.contains(&kind) || (kind == RESOLVED && RESOLVED_REASONS.contains(&text(condition, "reason")))
}

/// Some controllers write it as text.
fn generation(condition: &Value) -> Option<i64> {
    let observed = condition.get("observedGeneration")?;
    observed.as_i64().or_else(|| observed.as_str()?.parse().ok())
}

/// Our conditions of an object; `None` if it has none, or none that are of one generation.
fn read(kind: Kind, object: &DynamicObject) -> Option<(ObjectRef, Status)> {
    let metadata = &object.metadata;
    let id = ObjectName::new(metadata.namespace.as_deref()?, metadata.name.as_deref()?);
    let mut found = Vec::new();
    let mut observed = None;
    for condition in conditions(object).iter().filter(|condition| ours(condition)) {
        let generation = generation(condition)?;
        if observed.is_some_and(|observed| observed != generation) {
            return None;
        }
        observed = Some(generation);
        let of = |field| text(condition, field).to_owned();
        let (kind, status, reason, message) = (of("type"), of("status"), of("reason"), of("message"));
        found.push(Condition { kind, status, reason, message });
    }
    found.sort_by(|a, b| a.kind.cmp(&b.kind));
    let uid = metadata.uid.as_deref()?.into();
    Some((ObjectRef { kind, id }, Status { uid, generation: observed?, conditions: found }))
}

/// `before` with ours replaced: others stay where and as they are. A condition keeps its time as long as its status is the
/// same. `None` if nothing changes.
fn merge(before: &[Value], status: &Status, now: &str) -> Option<Vec<Value>> {
    let mut after: Vec<Value> = Vec::with_capacity(before.len() + status.conditions.len());
    let mut left: Vec<&Condition> = status.conditions.iter().collect();
    for condition in before {
        let kind = text(condition, "type");
        match left.iter().position(|wanted| wanted.kind == kind) {
            Some(at) => {
                let wanted = left.remove(at);
                after.push(with(condition, wanted, status.generation, now));
            }
            None if ours(condition) => {}
            None => after.push(condition.clone()),
        }
    }
    after.extend(left.into_iter().map(|wanted| with(&Value::Null, wanted, status.generation, now)));
    (after != before).then_some(after)
}

/// `condition` with our fields as wanted, and whatever else it has.
fn with(condition: &Value, wanted: &Condition, generation: i64, now: &str) -> Value {
    let Condition { kind, status, reason, message } = wanted;
    let mut fields: Map<String, Value> = condition.as_object().cloned().unwrap_or_default();
    let since = match text(condition, "lastTransitionTime") {
        since if !since.is_empty() && text(condition, "status") == status => since.to_owned(),
        _ => now.to_owned(),
    };
    for (field, value) in [
        ("type", kind),
        ("status", status),
        ("reason", reason),
        ("message", message),
        ("lastTransitionTime", &since),
    ] {
        fields.insert(field.to_owned(), value.as_str().into());
    }
    fields.insert("observedGeneration".to_owned(), generation.into());
    fields.into()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn status(generation: i64, conditions: &[(&str, &str, &str)]) -> Status {
        let condition = |(kind, status, reason): &(&str, &str, &str)| Condition {
            kind: (*kind).to_owned(),
            status: (*status).to_owned(),
            reason: (*reason).to_owned(),
            message: String::new(),
        };
        Status { uid: "u".into(), generation, conditions: conditions.iter().map(condition).collect() }
    }

    fn foreign() -> Value {
        json!({"type": "WaypointAccepted", "status": "True", "reason": "Accepted", "observedGeneration": "1", "x": [1]})
    }

    #[test]
    fn foreign_conditions_and_fields_stay_and_times_move_with_the_status() {
        let first = merge(&[foreign()], &status(1, &[("Enforced", "False", "Pending")]), "t1").unwrap();
        assert_eq!(first[0], foreign());
        assert_eq!(
            (text(&first[1], "lastTransitionTime"), &first[1]["observedGeneration"]),
            ("t1", &json!(1))
        );
        assert_eq!(
            merge(&first, &status(1, &[("Enforced", "False", "Pending")]), "t2"),
            None,
            "nothing changes"
        );
        let mut extended = first;
        extended[1]["lastProbeTime"] = json!("then");
        let second = merge(&extended, &status(2, &[("Enforced", "False", "NoProxy")]), "t2").unwrap();
        assert_eq!(text(&second[1], "lastTransitionTime"), "t1", "the same status");
        assert_eq!(text(&second[1], "lastProbeTime"), "then");
        assert_eq!(second[1]["observedGeneration"], json!(2));
        let third = merge(&second, &status(2, &[("Enforced", "True", "Enforced")]), "t3").unwrap();
        assert_eq!((third.len(), text(&third[1], "lastTransitionTime")), (2, "t3"));
    }

    #[test]
    fn what_no_longer_applies_goes_unless_it_is_somebody_elses() {
        let custom = [("Enforced", "True", "Enforced"), ("ResolvedRefs", "False", "ProviderNotFound")];
        let first = merge(&[], &status(1, &custom), "t1").unwrap();
        let second = merge(&first, &status(2, &custom[..1]), "t2").unwrap();
        assert_eq!(second.len(), 1);
        let theirs = json!({"type": "ResolvedRefs", "status": "True", "reason": "TheirOwn"});
        let kept = merge(std::slice::from_ref(&theirs), &status(2, &custom[..1]), "t2").unwrap();
        assert_eq!(kept[0], theirs);
    }

    #[test]
    fn what_was_written_is_read_back() {
        let wanted =
            status(7, &[("Accepted", "True", "Accepted"), ("Enforced", "Unknown", "ReplicaUnreachable")]);
        let mut all = merge(&[foreign()], &wanted, "t").unwrap();
        let object = |conditions: &[Value]| -> DynamicObject {
            let text = json!({
                "apiVersion": "security.istio.io/v1", "kind": "AuthorizationPolicy",
                "metadata": {"name": "p", "namespace": "a", "uid": "u"},
                "status": {"conditions": conditions},
            });
            serde_json::from_value(text).unwrap()
        };
        let (name, found) = read(Kind::AuthorizationPolicy, &object(&all)).unwrap();
        assert_eq!((name.to_string(), found), ("AuthorizationPolicy a/p".to_owned(), wanted));
        all[1]["observedGeneration"] = json!(6);
        assert!(read(Kind::AuthorizationPolicy, &object(&all)).is_none(), "two generations");
        assert!(read(Kind::AuthorizationPolicy, &object(&[foreign()])).is_none());
    }
}
