//! Waiting by the API server's word: the policy's own conditions, followed by a watch.

use std::time::Duration;

use futures::TryStreamExt as _;
use kube::ResourceExt as _;
use kube::api::{Api, ApiResource, DynamicObject, ListParams, WatchEvent, WatchParams};
use serde_json::Value;
use tokio::time::{Instant, timeout_at};

use super::{KINDS, Named, PolicyKind, Wanted, concerns_nobody};
use crate::cluster::{Cluster, code, timely};

/// Between two questions, where nothing can be watched.
const PAUSE: Duration = Duration::from_millis(250);

/// # Errors
/// What is still missing when the time is over.
pub(super) async fn ready(cluster: &Cluster, deadline: Instant) -> Result<(), String> {
    loop {
        let missing = match cluster.replicas().await {
            Ok(replicas) if replicas.is_empty() => {
                format!("no pod of the control plane runs in namespace {}", cluster.namespace)
            }
            Ok(replicas) => match replicas.iter().find(|replica| !replica.ready) {
                None => return Ok(()),
                Some(replica) => format!("pod {} is not ready", replica.pod),
            },
            Err(error) => format!("{error:#}"),
        };
        pause(deadline, missing).await?;
    }
}

async fn pause(deadline: Instant, missing: String) -> Result<(), String> {
    if Instant::now() >= deadline {
        return Err(missing);
    }
    tokio::time::sleep_until(deadline.min(Instant::now() + PAUSE)).await;
    Ok(())
}

/// # Errors
/// What is still missing when the time is over.
pub(super) async fn condition(
    cluster: &Cluster,
    wanted: &Wanted<'_>,
    deadline: Instant,
) -> Result<(), String> {
    match wanted.named {
        Some(named) => one(cluster, wanted, named, deadline).await,
        None => loop {
            let Err(missing) = all(cluster, wanted).await else { return Ok(()) };
            pause(deadline, missing).await?;
        },
    }
}

fn api(cluster: &Cluster, kind: PolicyKind, namespace: Option<&str>) -> Api<DynamicObject> {
    let resource = ApiResource {
        group: "security.istio.io".to_owned(),
        version: "v1".to_owned(),
        api_version: "security.istio.io/v1".to_owned(),
        kind: kind.kind.to_owned(),
        plural: kind.plural.to_owned(),
    };
    match namespace {
        Some(namespace) => Api::namespaced_with(cluster.client.clone(), namespace, &resource),
        None => Api::all_with(cluster.client.clone(), &resource),
    }
}

/// One policy: asked once, then followed. A watch that ends or fails is begun anew, from a list.
async fn one(cluster: &Cluster, wanted: &Wanted<'_>, named: &Named, deadline: Instant) -> Result<(), String> {
    let policies = api(cluster, named.kind, wanted.namespace);
    let just = format!("metadata.name={}", named.name);
    loop {
        let missing = match timely(policies.list(&ListParams::default().fields(&just))).await {
            Ok(list) => {
                let found = list.items.first();
                let Err(mut missing) = found.map_or_else(|| absent(wanted, named), |o| judge(o, wanted))
                else {
                    return Ok(());
                };
                if let Some(version) = list.metadata.resource_version {
                    let params = WatchParams::default().fields(&just);
                    let followed = follow(&policies, &params, &version, wanted, named, &mut missing);
                    match timeout_at(deadline, followed).await {
                        Ok(true) => return Ok(()),
                        Ok(false) => {}
                        Err(_) => return Err(missing),
                    }
                }
                missing
            }
            Err(error) => format!("{error:#}"),
        };
        pause(deadline, missing).await?;
    }
}

/// Whether the watch saw what is waited for before it ended; `missing` is what it saw last.
async fn follow(
    policies: &Api<DynamicObject>,
    params: &WatchParams,
    version: &str,
    wanted: &Wanted<'_>,
    named: &Named,
    missing: &mut String,
) -> bool {
    let Ok(events) = policies.watch(params, version).await else { return false };
    let mut events = std::pin::pin!(events);
    while let Ok(Some(event)) = events.try_next().await {
        let judged = match event {
            WatchEvent::Added(object) | WatchEvent::Modified(object) => judge(&object, wanted),
            WatchEvent::Deleted(_) => absent(wanted, named),
            WatchEvent::Bookmark(_) => continue,
            WatchEvent::Error(_) => return false,
        };
        match judged {
            Ok(()) => return true,
            Err(still) => *missing = still,
        }
    }
    false
}

fn absent(wanted: &Wanted<'_>, named: &Named) -> Result<(), String> {
    let Named { kind, name } = named;
    Err(format!("{} {}/{name} does not exist", kind.kind, wanted.namespace.unwrap_or_default()))
}

/// Every policy that somebody is concerned by.
async fn all(cluster: &Cluster, wanted: &Wanted<'_>) -> Result<(), String> {
    for kind in KINDS {
        let listed = timely(api(cluster, kind, wanted.namespace).list(&ListParams::default())).await;
        let listed = match listed {
            // The kind is not installed: there are none.
            Err(error) if code(&error) == Some(404) => continue,
            listed => listed.map_err(|error| format!("{error:#}"))?,
        };
        for object in &listed.items {
            let reason = condition_of(object, wanted.kind).map(|condition| field(condition, "reason"));
            if !reason.is_some_and(concerns_nobody) {
                judge(object, wanted)?;
            }
        }
    }
    Ok(())
}

fn condition_of<'a>(object: &'a DynamicObject, kind: &str) -> Option<&'a Value> {
    let conditions = object.data.get("status")?.get("conditions")?.as_array()?;
    conditions.iter().find(|condition| field(condition, "type") == kind)
}

fn field<'a>(condition: &'a Value, name: &str) -> &'a str {
    condition.get(name).and_then(Value::as_str).unwrap_or_default()
}

/// What is missing. A condition that speaks of an older generation says nothing of this one.
fn judge(object: &DynamicObject, wanted: &Wanted<'_>) -> Result<(), String> {
    let kind = object.types.as_ref().map_or("policy", |types| &types.kind);
    let name = format!("{kind} {}/{}", object.namespace().unwrap_or_default(), object.name_any());
    let Some(condition) = condition_of(object, wanted.kind) else {
        return Err(format!("{name}: no condition {} yet; does a control plane run?", wanted.kind));
    };
    let (status, reason, message) =
        (field(condition, "status"), field(condition, "reason"), field(condition, "message"));
    let observed = condition.get("observedGeneration").and_then(Value::as_i64);
    if observed != object.metadata.generation {
        return Err(format!("{name}: its condition {} speaks of an older generation", wanted.kind));
    }
    match status == wanted.status {
        true => Ok(()),
        false => Err(format!("{name}: {reason}: {message}")),
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn only_a_condition_of_this_generation_counts() {
        let policy = |generation: i64, conditions: Value| -> DynamicObject {
            serde_json::from_value(json!({
                "apiVersion": "security.istio.io/v1", "kind": "AuthorizationPolicy",
                "metadata": {"name": "p", "namespace": "shop", "generation": generation},
                "status": {"conditions": conditions},
            }))
            .expect("an object")
        };
        let enforced = |status: &str, observed: Value| {
            json!([{"type": "Other", "status": "True"}, {"type": "Enforced", "status": status, "reason": "R",
                "message": "1/2", "observedGeneration": observed}])
        };
        let wanted = Wanted { named: None, namespace: None, kind: "Enforced", status: "True" };
        assert_eq!(judge(&policy(2, enforced("True", json!(2))), &wanted), Ok(()));
        for (object, says) in [
            (policy(2, enforced("True", json!(1))), "older generation"),
            (policy(2, enforced("True", Value::Null)), "older generation"),
            (policy(2, enforced("False", json!(2))), "shop/p: R: 1/2"),
            (policy(2, json!([])), "no condition"),
            (policy(2, Value::Null), "no condition"),
        ] {
            let missing = judge(&object, &wanted).expect_err(says);
            assert!(missing.contains(says), "{missing}");
        }
    }
}
