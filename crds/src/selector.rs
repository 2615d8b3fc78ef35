//! What the three policy kinds are attached to (semantics §1.2, §2.4).

use std::collections::BTreeMap;

use policy::{Attachment, TargetRef};
use schemars::JsonSchema;
use serde::Deserialize;

use crate::crd::schema;
use crate::finding::Issues;
use crate::path::At;

pub(crate) const MAX_LABELS: usize = 4096;
pub(crate) const MAX_LABEL_VALUE: usize = 63;
pub(crate) const MAX_TARGET_REFS: usize = 16;

/// `selector`.
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, rename_all = "camelCase", default)]
pub struct WorkloadSelector {
    /// Labels that a workload must have, all of them. None: every workload of the namespace.
    #[schemars(schema_with = "schema::match_labels")]
    pub match_labels: BTreeMap<String, String>,
}

/// `targetRef`, `targetRefs[]`.
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, rename_all = "camelCase", default)]
#[schemars(extend("required" = ["kind", "name"]))]
pub struct PolicyTargetReference {
    /// The API group of what is targeted; empty for the core group.
    #[schemars(length(max = 253), regex(pattern = schema::GROUP))]
    pub group: String,
    /// Service, ServiceEntry, Gateway or GatewayClass.
    #[schemars(length(min = 1, max = 63), regex(pattern = schema::KIND))]
    pub kind: String,
    /// Its name.
    #[schemars(length(min = 1, max = 253))]
    pub name: String,
    /// Must be empty: only the policy's own namespace can be targeted.
    #[schemars(extend("x-kubernetes-validations" = schema::own_namespace()))]
    pub namespace: String,
}

/// The three ways to say where a policy applies, as written.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Attachments<'s> {
    pub(crate) selector: Option<&'s WorkloadSelector>,
    pub(crate) target_ref: Option<&'s PolicyTargetReference>,
    pub(crate) target_refs: &'s [PolicyTargetReference],
}

impl Attachments<'_> {
    /// Reports what is wrong and reads the rest. Where nothing was wrong this is the attachment.
    pub(crate) fn read(&self, issues: &mut Issues) -> Attachment {
        let at = At::ROOT.key("spec");
        let Self { selector, target_ref, target_refs } = *self;
        let given = [selector.is_some(), target_ref.is_some(), !target_refs.is_empty()];
        if given.into_iter().filter(|g| *g).count() > 1 {
            issues.error(&at, "only one of selector, targetRef and targetRefs can be given");
        }
        if let Some(selector) = selector {
            selector.validate(&at.key("selector"), issues);
        }
        if target_refs.len() > MAX_TARGET_REFS {
            issues.error(&at.key("targetRefs"), format!("at most {MAX_TARGET_REFS} are allowed"));
        }
        for (i, target) in target_refs.iter().enumerate() {
            target.validate(&at.key("targetRefs").index(i), issues);
        }
        if let Some(target) = target_ref {
            target.validate(&at.key("targetRef"), issues);
        }
        // `targetRefs` beats the old singular (semantics §2.4).
        if !target_refs.is_empty() {
            return Attachment::Targets(target_refs.iter().map(PolicyTargetReference::target).collect());
        }
        match (target_ref, selector) {
            (Some(target), _) => Attachment::Targets(vec![target.target()]),
            (None, Some(selector)) if !selector.match_labels.is_empty() => {
                Attachment::Labels(selector.match_labels.clone())
            }
            (None, _) => Attachment::Namespace,
        }
    }
}

impl WorkloadSelector {
    fn validate(&self, at: &At<'_>, issues: &mut Issues) {
        if self.match_labels.is_empty() {
            issues.warning(&at.key("matchLabels"), "no labels: the policy applies to the whole namespace");
        }
        self.validate_labels(at, issues);
    }

    /// Reports what no label can be.
    pub(crate) fn validate_labels(&self, at: &At<'_>, issues: &mut Issues) {
        let Self { match_labels } = self;
        let at = at.key("matchLabels");
        if match_labels.len() > MAX_LABELS {
            issues.error(&at, format!("at most {MAX_LABELS} labels are allowed"));
        }
        for (key, value) in match_labels {
            let at = at.key(key);
            if key.is_empty() {
                issues.error(&at, "a label needs a name");
            }
            if key.contains('*') || value.contains('*') {
                issues.error(&at, "wildcards are not supported in labels");
            }
            if value.chars().count() > MAX_LABEL_VALUE {
                issues.error(&at, format!("a label value has at most {MAX_LABEL_VALUE} characters"));
            }
        }
    }
}

impl PolicyTargetReference {
    fn validate(&self, at: &At<'_>, issues: &mut Issues) {
        let Self { group, kind, name, namespace } = self;
        if name.is_empty() || name.len() > 253 {
            issues.error(&at.key("name"), "a name of 1 to 253 characters is required");
        }
        if !namespace.is_empty() {
            issues.error(&at.key("namespace"), "a policy can only refer to its own namespace: leave it out");
        }
        let known = matches!(
            (group.as_str(), kind.as_str()),
            ("" | "core", "Service")
                | ("networking.istio.io", "ServiceEntry")
                | ("gateway.networking.k8s.io", "Gateway" | "GatewayClass")
        );
        if !known {
            issues.error(at, format!("a policy cannot refer to kind `{kind}` of group `{group}`"));
        }
    }

    fn target(&self) -> TargetRef {
        let Self { group, kind, name, namespace: _ } = self;
        TargetRef { group: group.clone(), kind: kind.clone(), name: name.clone() }
    }
}
