//! What a pod belongs to: the names that telemetry knows it by, and where the pod template is in each kind that has one.

use serde_json::Value;

use super::values::Texts;

/// Longest value of a label.
const LABEL: usize = 63;

/// Canonical service name and revision, as Istio finds them: by labels, else by what made the pod.
pub(super) fn canonical(labels: &Texts, pod: &Value) -> (String, String) {
    let by = |keys: [&str; 3]| keys.iter().find_map(|key| labels.get(*key).filter(|value| !value.is_empty()));
    let name = by(["service.istio.io/canonical-name", "app.kubernetes.io/name", "app"]).cloned();
    let revision =
        by(["service.istio.io/canonical-revision", "app.kubernetes.io/version", "version"]).cloned();
    (label(&name.unwrap_or_else(|| made_by(labels, pod))), revision.unwrap_or_else(|| "latest".to_owned()))
}

/// The Deployment, or whatever it is that the pod comes from; else its own name.
fn made_by(labels: &Texts, pod: &Value) -> String {
    let metadata = &pod["metadata"];
    let owners = metadata["ownerReferences"].as_array();
    let owner = owners.into_iter().flatten().find(|owner| owner["controller"] == true);
    let own = || {
        let name = metadata["name"].as_str().filter(|name| !name.is_empty());
        name.or(metadata["generateName"].as_str()).unwrap_or_default().to_owned()
    };
    let name = owner.and_then(|owner| owner["name"].as_str()).map_or_else(own, str::to_owned);
    let hash = labels.get("pod-template-hash").map(|hash| format!("-{hash}"));
    let of_replica_set = owner.is_some_and(|owner| owner["kind"] == "ReplicaSet");
    match hash.and_then(|hash| name.strip_suffix(&hash).map(str::to_owned)) {
        Some(deployment) if of_replica_set => deployment,
        _ => name,
    }
}

/// As much of a name as can be a label's value.
fn label(name: &str) -> String {
    let good = |c: char| c.is_ascii_alphanumeric();
    let name: String = name.chars().filter(|c| good(*c) || "-_.".contains(*c)).take(LABEL).collect();
    name.trim_matches(|c| !good(c)).to_owned()
}

/// Where the pod is in an object of this kind: a JSON pointer. `None` for kinds that make no pods.
pub fn template_of(kind: &str) -> Option<&'static str> {
    match kind {
        "Pod" => Some(""),
        "Deployment" | "StatefulSet" | "DaemonSet" | "ReplicaSet" | "ReplicationController" | "Job" => {
            Some("/spec/template")
        }
        "CronJob" => Some("/spec/jobTemplate/spec/template"),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn names_come_from_labels_or_from_what_made_the_pod() {
        let owner = |kind: &str, name: &str| json!({"metadata": {"name": "x-1", "ownerReferences": [{"kind": kind, "name": name, "controller": true}]}});
        for (labels, pod, name, revision) in [
            (json!({"app": "a", "version": "v1"}), json!({}), "a", "v1"),
            (json!({"app": "a", "app.kubernetes.io/name": "b"}), json!({}), "b", "latest"),
            (json!({"pod-template-hash": "7c5"}), owner("ReplicaSet", "web-7c5"), "web", "latest"),
            (json!({"pod-template-hash": "7c5"}), owner("StatefulSet", "web-7c5"), "web-7c5", "latest"),
            (json!({}), owner("Job", "j"), "j", "latest"),
            (json!({}), json!({"metadata": {"generateName": "web-"}}), "web", "latest"),
            (json!({}), json!({"metadata": {"name": "x".repeat(100)}}), &"x".repeat(63), "latest"),
        ] {
            let labels: Texts = serde_json::from_value(labels).unwrap();
            assert_eq!(canonical(&labels, &pod), (name.to_owned(), revision.to_owned()), "{labels:?} {pod}");
        }
    }
}
