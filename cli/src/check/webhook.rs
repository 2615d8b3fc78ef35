//! The admission webhook: configured to refuse when it cannot be asked, and really asked. It is tried with a policy that
//! only the webhook refuses, as a dry run, so that nothing is stored even if nobody refuses it.

use k8s_openapi::ByteString;
use k8s_openapi::api::admissionregistration::v1::{ValidatingWebhook, ValidatingWebhookConfiguration};
use kube::api::{Api, ApiResource, DynamicObject, ListParams, PostParams};
use serde_json::json;

use super::report::{Anchor, Group, Level};
use crate::cluster::{Cluster, code, timely};

/// The group whose kinds the webhook judges.
const GROUP: &str = "security.istio.io";
/// Where the dry run is made: the control plane's own namespace is exempt.
const TRIED_IN: &str = "default";

pub(super) async fn check(cluster: &Cluster) -> Group {
    let mut group = Group::new("countersign-webhook");
    let description = "an admission webhook judges policies";
    let configurations: Api<ValidatingWebhookConfiguration> = Api::all(cluster.client.clone());
    let configurations = match timely(configurations.list(&ListParams::default())).await {
        Ok(configurations) => configurations.items,
        Err(error) => {
            group.warn(description, format!("{error:#}"), Anchor::Webhook);
            return group;
        }
    };
    let all = configurations.iter().flat_map(|c| c.webhooks.iter().flatten());
    let ours: Vec<&ValidatingWebhook> = all.filter(|hook| ours(hook, &cluster.namespace)).collect();
    if ours.is_empty() {
        let why = "no ValidatingWebhookConfiguration leads to the control plane's namespace: \
                   policies with errors are stored, and read as closed";
        group.warn(description, why, Anchor::Webhook);
        return group;
    }
    group.pass(description);
    let findings = |judge: fn(&ValidatingWebhook) -> Option<String>| -> Vec<String> {
        ours.iter().filter_map(|hook| Some(format!("{}: {}", hook.name, judge(hook)?))).collect()
    };
    let open = findings(open);
    group.none("it refuses when it cannot be asked", Level::Error, &open, Anchor::Webhook);
    let unknown = findings(without_ca);
    group.none("the API server can verify it", Level::Error, &unknown, Anchor::Webhook);
    tried(&mut group, cluster).await;
    group
}

/// It is asked about policies, and leads to the control plane's namespace.
fn ours(hook: &ValidatingWebhook, namespace: &str) -> bool {
    let judges = hook
        .rules
        .iter()
        .flatten()
        .any(|rule| rule.api_groups.iter().flatten().any(|group| group == GROUP || group == "*"));
    // One by URL is for a control plane outside of the cluster.
    let leads = hook.client_config.service.as_ref().is_none_or(|service| service.namespace == namespace);
    judges && leads
}

fn open(hook: &ValidatingWebhook) -> Option<String> {
    let policy = hook.failure_policy.as_deref().unwrap_or("Fail");
    (policy != "Fail").then(|| format!("failurePolicy is {policy}"))
}

fn without_ca(hook: &ValidatingWebhook) -> Option<String> {
    let empty = |ByteString(bytes): &ByteString| bytes.is_empty();
    let missing = hook.client_config.ca_bundle.as_ref().is_none_or(empty);
    missing.then(|| "its caBundle is empty: the control plane has not put it there yet".to_owned())
}

async fn tried(group: &mut Group, cluster: &Cluster) {
    let description = "it answers, and refuses what cannot be enforced";
    let resource = ApiResource {
        group: GROUP.to_owned(),
        version: "v1".to_owned(),
        api_version: format!("{GROUP}/v1"),
        kind: "AuthorizationPolicy".to_owned(),
        plural: "authorizationpolicies".to_owned(),
    };
    let policies: Api<DynamicObject> = Api::namespaced_with(cluster.client.clone(), TRIED_IN, &resource);
    let wrong = json!({ "rules": [{ "when": [{ "key": "no.such.key", "values": ["x"] }] }] });
    let policy = DynamicObject::new("countersign-check", &resource).data(json!({ "spec": wrong }));
    let dry = PostParams { dry_run: true, ..PostParams::default() };
    match timely(policies.create(&dry, &policy)).await {
        Ok(_) => group.fail(description, "it let an unknown condition key pass", Anchor::Webhook),
        Err(error) => {
            let why = format!("{error:#}");
            match code(&error) {
                _ if why.contains("denied the request") => group.pass(description),
                // The webhook was not come to.
                Some(403 | 404) => {
                    group.warn(description, format!("it cannot be tried: {why}"), Anchor::Webhook);
                }
                _ => group.fail(description, why, Anchor::Webhook),
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn hook(failure: &str, namespace: &str, ca: Option<&[u8]>) -> ValidatingWebhook {
        let mut hook: ValidatingWebhook = serde_json::from_value(json!({
            "name": "validation.countersign.io", "admissionReviewVersions": ["v1"], "sideEffects": "None",
            "failurePolicy": failure,
            "rules": [{"apiGroups": [GROUP], "apiVersions": ["*"], "operations": ["CREATE"], "resources": ["*"]}],
            "clientConfig": {"service": {"name": "countersign", "namespace": namespace}},
        }))
        .expect("a webhook");
        hook.client_config.ca_bundle = ca.map(|ca| ByteString(ca.to_vec()));
        hook
    }

    #[test]
    fn a_webhook_that_lets_pass_is_found() {
        let fine = hook("Fail", "istio-system", Some(b"pem"));
        assert!(ours(&fine, "istio-system") && !ours(&fine, "elsewhere"));
        assert_eq!((open(&fine), without_ca(&fine)), (None, None));
        let bad = hook("Ignore", "istio-system", Some(b""));
        assert!(open(&bad).is_some_and(|why| why.contains("Ignore")));
        assert!(without_ca(&bad).is_some() && without_ca(&hook("Fail", "x", None)).is_some());
    }
}
