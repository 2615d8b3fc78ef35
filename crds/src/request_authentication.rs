//! RequestAuthentication (semantics §1.4): the wire type, its validation, and its conversion. It fetches no keys.

pub(crate) mod jwks;
mod rules;

use serde::Deserialize;

use crate::finding::Issues;
use crate::meta::Metadata;
use crate::object::{Kind, Object};
use crate::path::At;
use crate::salvage::{Spec, salvage};
use crate::selector::{Attachments, PolicyTargetReference, WorkloadSelector};
use crate::{Reading, degrade};

const MAX_RULES: usize = 4096;
/// For one fetch of keys, where no `timeout` is given.
pub(crate) const DEFAULT_TIMEOUT_MS: u64 = 5_000;

/// `spec`.
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "camelCase", default)]
pub struct RequestAuthenticationSpec {
    pub selector: Option<WorkloadSelector>,
    pub target_ref: Option<PolicyTargetReference>,
    pub target_refs: Vec<PolicyTargetReference>,
    pub jwt_rules: Vec<JwtRule>,
}

/// `jwtRules[]`.
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "camelCase", default)]
pub struct JwtRule {
    pub issuer: Option<String>,
    pub audiences: Vec<String>,
    pub jwks_uri: Option<String>,
    /// The same under its protobuf name, which the schema also has.
    #[serde(rename = "jwks_uri")]
    pub jwks_uri_alias: Option<String>,
    pub jwks: Option<String>,
    pub from_headers: Vec<JwtHeader>,
    pub from_params: Vec<String>,
    pub from_cookies: Vec<String>,
    pub output_payload_to_header: Option<String>,
    pub forward_original_token: bool,
    pub output_claim_to_headers: Vec<ClaimToHeader>,
    pub timeout: Option<String>,
    pub space_delimited_claims: Vec<String>,
    pub presence: Option<Presence>,
}

/// `fromHeaders[]`.
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct JwtHeader {
    pub name: String,
    pub prefix: String,
}

/// `outputClaimToHeaders[]`.
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct ClaimToHeader {
    pub header: String,
    pub claim: String,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "UPPERCASE")]
pub enum Presence {
    Optional,
    Required,
}

/// Reads one object: the policy it means, or, if `issues` has errors afterwards, its closed value.
pub(crate) fn read(metadata: &Metadata, spec: Spec<'_>, issues: &mut Issues) -> Reading {
    let meta = metadata.policy(Kind::RequestAuthentication, issues);
    let salvaged = salvage::<RequestAuthenticationSpec>(spec, issues);
    let readable = salvaged.is_some();
    let RequestAuthenticationSpec { selector, target_ref, target_refs, jwt_rules } =
        salvaged.unwrap_or_default();
    let attachments = Attachments {
        selector: selector.as_ref(),
        target_ref: target_ref.as_ref(),
        target_refs: &target_refs,
    };
    let attachment = attachments.read(issues);
    let at = At::ROOT.key("spec");
    let at = at.key("jwtRules");
    if jwt_rules.len() > MAX_RULES {
        issues.error(&at, format!("at most {MAX_RULES} rules are allowed"));
    }
    let rules =
        jwt_rules.iter().enumerate().map(|(i, rule)| rules::read(rule, &at.index(i), issues)).collect();
    let policy = policy::RequestAuthentication { meta, attachment, rules };
    if !issues.has_errors() {
        return Reading::understood(Object::RequestAuthentication(policy));
    }
    degrade::request_authentication(policy, readable, issues)
}

#[cfg(test)]
mod tests;
