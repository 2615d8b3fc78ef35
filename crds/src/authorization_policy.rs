//! AuthorizationPolicy (semantics §1.5): the wire type, its validation, and its conversion.
//!
//! Conversion is total: what cannot be understood is reported and left out, so that the rule matches more. That is the
//! closed value of a DENY; `degrade` makes those of the other actions. It does not select, order or rewrite.

mod rules;

use schemars::JsonSchema;
use serde::Deserialize;

use crate::crd::schema;
use crate::finding::Issues;
use crate::meta::{DRY_RUN, Metadata};
use crate::object::{Kind, Object};
use crate::path::At;
use crate::salvage::{Spec, salvage};
use crate::selector::{Attachments, MAX_TARGET_REFS, PolicyTargetReference, WorkloadSelector};
use crate::values::MAX_SERVICE_ACCOUNT;
use crate::{Reading, degrade};

const MAX_RULES: usize = 512;
const MAX_FROM: usize = 512;
const MAX_SERVICE_ACCOUNTS: usize = 16;

/// `spec`.
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, rename_all = "camelCase", default)]
#[schemars(extend("x-kubernetes-validations" = schema::one_attachment()))]
pub struct AuthorizationPolicySpec {
    /// The workloads it applies to: those of its namespace, or in the root namespace of the mesh, if left out.
    pub selector: Option<WorkloadSelector>,
    /// The old form of targetRefs, for one target.
    pub target_ref: Option<PolicyTargetReference>,
    /// The gateways, waypoints or services it applies to, instead of a selector.
    #[schemars(length(max = MAX_TARGET_REFS))]
    pub target_refs: Vec<PolicyTargetReference>,
    /// What happens to requests that match a rule. ALLOW (the default): they pass, and all others are refused. DENY: they
    /// are refused. CUSTOM: the provider decides. AUDIT: they are marked for the log.
    pub action: Option<Action>,
    /// Who decides, with action CUSTOM.
    pub provider: Option<Provider>,
    /// A request matches the policy if it matches one of these. Without rules nothing matches; an empty rule matches
    /// everything.
    #[schemars(length(max = MAX_RULES))]
    pub rules: Vec<Rule>,
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize, JsonSchema)]
#[serde(rename_all = "UPPERCASE")]
pub enum Action {
    #[default]
    Allow,
    Deny,
    Audit,
    Custom,
}

/// `provider`: with CUSTOM only.
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct Provider {
    /// The name of an extension provider of the mesh configuration.
    pub name: String,
}

/// `rules[]`. `Some(vec![])` was written as an empty list, which is refused; `None` is any.
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct Rule {
    /// Where a request must come from: one of these. Left out: from anywhere.
    #[schemars(length(max = MAX_FROM))]
    pub from: Option<Vec<From>>,
    /// What it must ask for: one of these. Left out: anything.
    pub to: Option<Vec<To>>,
    /// What else must hold: all of these.
    pub when: Vec<Condition>,
}

#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct From {
    /// Its fields must all match; of the values of a field, one.
    pub source: Option<Source>,
}

/// `rules[].from[].source`.
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, rename_all = "camelCase", default)]
#[schemars(extend("x-kubernetes-validations" = schema::accounts_alone()))]
pub struct Source {
    /// Identities of the caller's certificate, without `spiffe://`: `cluster.local/ns/default/sa/web`.
    pub principals: Vec<String>,
    /// None of these.
    pub not_principals: Vec<String>,
    /// Issuer and subject of a verified token: `ISSUER/SUBJECT`.
    pub request_principals: Vec<String>,
    /// None of these.
    pub not_request_principals: Vec<String>,
    /// Namespaces of the caller's identity.
    pub namespaces: Vec<String>,
    /// None of these.
    pub not_namespaces: Vec<String>,
    /// Service accounts of the caller's identity: `NAME` in the policy's namespace, or `NAMESPACE/NAME`. No wildcards.
    #[schemars(length(max = MAX_SERVICE_ACCOUNTS), inner(length(max = MAX_SERVICE_ACCOUNT)))]
    pub service_accounts: Vec<String>,
    /// None of these.
    #[schemars(length(max = MAX_SERVICE_ACCOUNTS), inner(length(max = MAX_SERVICE_ACCOUNT)))]
    pub not_service_accounts: Vec<String>,
    /// Addresses of the peer that is connected: an address or a CIDR block.
    pub ip_blocks: Vec<String>,
    /// None of these.
    pub not_ip_blocks: Vec<String>,
    /// Addresses of the client, as X-Forwarded-For or the PROXY protocol tell.
    pub remote_ip_blocks: Vec<String>,
    /// None of these.
    pub not_remote_ip_blocks: Vec<String>,
    /// Trust domains of the caller's identity.
    pub trust_domains: Vec<String>,
    /// None of these.
    pub not_trust_domains: Vec<String>,
}

#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct To {
    /// Its fields must all match; of the values of a field, one.
    pub operation: Option<Operation>,
}

/// `rules[].to[].operation`.
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, rename_all = "camelCase", default)]
pub struct Operation {
    /// Host names of the request, in any case of letters, with the port if the client sent one.
    pub hosts: Vec<String>,
    /// None of these.
    pub not_hosts: Vec<String>,
    /// Ports of the workload, as text.
    pub ports: Vec<String>,
    /// None of these.
    pub not_ports: Vec<String>,
    /// HTTP methods; POST for gRPC.
    pub methods: Vec<String>,
    /// None of these.
    pub not_methods: Vec<String>,
    /// Paths without query, or templates with `{*}` and `{**}`; `/package.Service/Method` for gRPC.
    pub paths: Vec<String>,
    /// None of these.
    pub not_paths: Vec<String>,
}

/// `rules[].when[]`.
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, rename_all = "camelCase", default)]
#[schemars(extend("required" = ["key"]))]
pub struct Condition {
    /// The attribute that is compared: `request.headers[NAME]`, `source.ip`, `connection.sni`, ...
    pub key: String,
    /// It must have one of these.
    pub values: Vec<String>,
    /// It must have none of these.
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
