//! AuthorizationPolicy (semantics §1.5): the wire type, its validation, and its conversion.
//!
//! Conversion is total: what cannot be understood is reported and left out, so that the rule matches more. That is the
//! closed value of a DENY; `degrade` makes those of the other actions. It does not select, order or rewrite.

mod rules;

use serde::Deserialize;

use crate::finding::Issues;
use crate::meta::{DRY_RUN, Metadata};
use crate::object::{Kind, Object};
use crate::path::At;
use crate::salvage::{Spec, salvage};
use crate::selector::{Attachments, PolicyTargetReference, WorkloadSelector};
use crate::{Reading, degrade};

const MAX_RULES: usize = 512;

/// `spec`.
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "camelCase", default)]
pub struct AuthorizationPolicySpec {
    pub selector: Option<WorkloadSelector>,
    pub target_ref: Option<PolicyTargetReference>,
    pub target_refs: Vec<PolicyTargetReference>,
    pub action: Option<Action>,
    pub provider: Option<Provider>,
    /// Absent and empty are the same to protobuf, and to us.
    pub rules: Vec<Rule>,
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "UPPERCASE")]
pub enum Action {
    #[default]
    Allow,
    Deny,
    Audit,
    Custom,
}

/// `provider`: with CUSTOM only.
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Provider {
    pub name: String,
}

/// `rules[]`. `Some(vec![])` was written as an empty list, which is refused; `None` is any.
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Rule {
    pub from: Option<Vec<From>>,
    pub to: Option<Vec<To>>,
    pub when: Vec<Condition>,
}

#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct From {
    pub source: Option<Source>,
}

/// `rules[].from[].source`.
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "camelCase", default)]
pub struct Source {
    pub principals: Vec<String>,
    pub not_principals: Vec<String>,
    pub request_principals: Vec<String>,
    pub not_request_principals: Vec<String>,
    pub namespaces: Vec<String>,
    pub not_namespaces: Vec<String>,
    pub service_accounts: Vec<String>,
    pub not_service_accounts: Vec<String>,
    pub ip_blocks: Vec<String>,
    pub not_ip_blocks: Vec<String>,
    pub remote_ip_blocks: Vec<String>,
    pub not_remote_ip_blocks: Vec<String>,
    pub trust_domains: Vec<String>,
    pub not_trust_domains: Vec<String>,
}

#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct To {
    pub operation: Option<Operation>,
}

/// `rules[].to[].operation`.
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "camelCase", default)]
pub struct Operation {
    pub hosts: Vec<String>,
    pub not_hosts: Vec<String>,
    pub ports: Vec<String>,
    pub not_ports: Vec<String>,
    pub methods: Vec<String>,
    pub not_methods: Vec<String>,
    pub paths: Vec<String>,
    pub not_paths: Vec<String>,
}

/// `rules[].when[]`.
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "camelCase", default)]
pub struct Condition {
    pub key: String,
    pub values: Vec<String>,
    pub not_values: Vec<String>,
}

/// Reads one object: the policy it means, or, if `issues` has errors afterwards, its closed value.
pub(crate) fn read(metadata: &Metadata, spec: Spec<'_>, issues: &mut Issues) -> Reading {
    let meta = metadata.policy(Kind::AuthorizationPolicy, issues);
    let salvaged = salvage::<AuthorizationPolicySpec>(spec, issues);
    let readable = salvaged.is_some();
    let spec = salvaged.unwrap_or_default();
    let attachment = spec.attachments().read(issues);
    let action = spec.validate(meta.dry_run, issues);
    let rules = spec
        .rules
        .iter()
        .enumerate()
        .map(|(i, rule)| rules::read(rule, spec.action.unwrap_or_default(), &metadata.namespace, i, issues))
        .collect();
    let policy = policy::AuthorizationPolicy { meta, attachment, action, rules };
    if !issues.has_errors() {
        return Reading::understood(Object::AuthorizationPolicy(policy));
    }
    degrade::authorization_policy(policy, readable, issues)
}

impl AuthorizationPolicySpec {
    fn attachments(&self) -> Attachments<'_> {
        let Self { selector, target_ref, target_refs, action: _, provider: _, rules: _ } = self;
        Attachments { selector: selector.as_ref(), target_ref: target_ref.as_ref(), target_refs }
    }

    /// Everything but the rules' own content and the attachment; returns the action.
    fn validate(&self, dry_run: bool, issues: &mut Issues) -> policy::Action {
        let at = At::ROOT.key("spec");
        let action = self.action.unwrap_or_default();
        if matches!(action, Action::Custom | Action::Deny) && self.rules.is_empty() {
            issues.missing(
                &at.key("rules"),
                "without rules this policy can never match; an empty rule `{}` matches everything",
            );
        }
        if self.rules.len() > MAX_RULES {
            issues.error(&at.key("rules"), format!("at most {MAX_RULES} rules are allowed"));
        }
        if dry_run && !matches!(action, Action::Allow | Action::Deny) {
            let at = At::ROOT.key("metadata");
            issues.error(&at.key("annotations").key(DRY_RUN), "only ALLOW and DENY can be a dry run");
        }
        let provider = self.provider.as_ref().map_or("", |p| p.name.as_str());
        match (action, &self.provider) {
            (Action::Custom, _) if provider.is_empty() => {
                issues.error(&at.key("provider"), "CUSTOM needs the name of an extension provider");
            }
            (Action::Custom, _) | (_, None) => {}
            (_, Some(_)) => issues.error(&at.key("provider"), "a provider can only be given with CUSTOM"),
        }
        match action {
            Action::Allow => policy::Action::Allow,
            Action::Deny => policy::Action::Deny,
            Action::Audit => policy::Action::Audit,
            Action::Custom => policy::Action::Custom { provider: provider.into() },
        }
    }
}

#[cfg(test)]
mod tests;
