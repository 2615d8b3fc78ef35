//! The policies by their own conditions: not accepted, not enforced, or not spoken of.

use kube::ResourceExt as _;
use kube::api::{Api, ApiResource, DynamicObject, ListParams};
use serde_json::Value;

use super::report::{Anchor, Group, Level};
use crate::cluster::{Cluster, code, timely};

/// Objects asked for at once.
const PAGE: u32 = 500;
/// Reasons for which a policy is enforced nowhere and nothing is wrong.
const QUIET: [&str; 3] = ["SelectsNothing", "NoTargets", "DryRun"];

pub(super) async fn check(cluster: &Cluster) -> Group {
    let mut group = Group::new("countersign-policies");
    let mut found = Found::default();
    for definition in crds::crd::definitions().iter().filter(|definition| definition.kind.is_policy()) {
        let kind = definition.kind.as_str();
        if let Err(error) = found.list(cluster, kind, definition.plural).await {
            match code(&error) {
                // Not defined: said elsewhere.
                Some(404) => {}
                _ => group.warn(format!("{kind} can be listed"), format!("{error:#}"), Anchor::NoStatus),
            }
        }
    }
    let Found { count, unspoken, refused, unenforced } = found;
    let description = format!("the control plane speaks of every policy ({count})");
    group.none(description, Level::Warning, &unspoken, Anchor::NoStatus);
    group.none("every policy is accepted", Level::Error, &refused, Anchor::NotAccepted);
    group.none("every policy is enforced where it applies", Level::Warning, &unenforced, Anchor::NotEnforced);
    group
}

#[derive(Debug, Default)]
struct Found {
    count: usize,
    unspoken: Vec<String>,
    refused: Vec<String>,
    unenforced: Vec<String>,
}

impl Found {
    async fn list(&mut self, cluster: &Cluster, kind: &str, plural: &str) -> anyhow::Result<()> {
        let resource = ApiResource {
            group: "security.istio.io".to_owned(),
            version: "v1".to_owned(),
            api_version: "security.istio.io/v1".to_owned(),
            kind: kind.to_owned(),
            plural: plural.to_owned(),
        };
        let api: Api<DynamicObject> = Api::all_with(cluster.client.clone(), &resource);
        let mut page = ListParams::default().limit(PAGE);
        loop {
            let listed = timely(api.list(&page)).await?;
            for object in &listed.items {
                let name = format!("{kind} {}/{}", object.namespace().unwrap_or_default(), object.name_any());
                self.judge(&name, object.metadata.generation, &object.data);
            }
            match listed.metadata.continue_.filter(|token| !token.is_empty()) {
                Some(token) => page = page.continue_token(&token),
                None => return Ok(()),
            }
        }
    }

    fn judge(&mut self, name: &str, generation: Option<i64>, object: &Value) {
        self.count += 1;
        let conditions = object.pointer("/status/conditions").and_then(Value::as_array);
        let text = |c: &Value, field: &str| c[field].as_str().unwrap_or_default().to_owned();
        let find = |kind: &str| {
            let current = |c: &&Value| c["type"] == kind && c["observedGeneration"].as_i64() == generation;
            conditions.into_iter().flatten().find(current)
        };
        let (accepted, enforced) = (find("Accepted"), find("Enforced"));
        if accepted.is_none() && enforced.is_none() {
            let ever = conditions.into_iter().flatten().any(|c| c["type"] == "Accepted");
            let why = if ever { "only of an older generation" } else { "no conditions" };
            self.unspoken.push(format!("{name}: {why}"));
            return;
        }
        let why = |c: &Value| format!("{name}: {}: {}", text(c, "reason"), text(c, "message"));
        self.refused.extend(accepted.filter(|c| c["status"] != "True").map(why));
        let wrong = |c: &&Value| c["status"] != "True" && !QUIET.contains(&&*text(c, "reason"));
        self.unenforced.extend(enforced.filter(wrong).map(why));
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn each_policy_is_judged_by_its_current_conditions() {
        let mut found = Found::default();
        let condition = |kind: &str, status: &str, reason: &str, observed: i64| json!({"type": kind, "status": status, "reason": reason, "message": "m", "observedGeneration": observed});
        for (name, conditions) in [
            ("fine", json!([condition("Accepted", "True", "A", 2), condition("Enforced", "True", "E", 2)])),
            (
                "quiet",
                json!([
                    condition("Accepted", "True", "A", 2),
                    condition("Enforced", "False", "NoTargets", 2)
                ]),
            ),
            ("refused", json!([condition("Accepted", "False", "Invalid", 2)])),
            (
                "pending",
                json!([condition("Accepted", "True", "A", 2), condition("Enforced", "Unknown", "P", 2)]),
            ),
            ("old", json!([condition("Accepted", "True", "A", 1)])),
            ("foreign", json!([condition("ZtunnelAccepted", "True", "A", 2)])),
        ] {
            found.judge(name, Some(2), &json!({"status": {"conditions": conditions}}));
        }
        found.judge("bare", Some(1), &json!({"spec": {}}));
        assert_eq!(found.count, 7);
        assert_eq!(found.refused, ["refused: Invalid: m"]);
        assert_eq!(found.unenforced, ["pending: P: m"]);
        assert_eq!(
            found.unspoken,
            ["old: only of an older generation", "foreign: no conditions", "bare: no conditions"]
        );
    }
}
