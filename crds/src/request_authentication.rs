//! RequestAuthentication (semantics §1.4): the wire type, its validation, and its conversion. It fetches no keys.

pub(crate) mod jwks;
mod rules;

use schemars::JsonSchema;
use serde::Deserialize;

use crate::crd::schema;
use crate::finding::Issues;
use crate::meta::Metadata;
use crate::object::{Kind, Object};
use crate::path::At;
use crate::salvage::{Spec, salvage};
use crate::selector::{Attachments, MAX_TARGET_REFS, PolicyTargetReference, WorkloadSelector};
use crate::{Reading, degrade};

const MAX_RULES: usize = 4096;
const MAX_URI: usize = 2048;
const MAX_CLAIMS: usize = 64;
/// For one fetch of keys, where no `timeout` is given.
pub(crate) const DEFAULT_TIMEOUT_MS: u64 = 5_000;

/// `spec`.
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, rename_all = "camelCase", default)]
#[schemars(extend("x-kubernetes-validations" = schema::one_attachment()))]
pub struct RequestAuthenticationSpec {
    /// The workloads it applies to: those of its namespace, or in the root namespace of the mesh, if left out.
    pub selector: Option<WorkloadSelector>,
    /// The old form of targetRefs, for one target.
    pub target_ref: Option<PolicyTargetReference>,
    /// The gateways, waypoints or services it applies to, instead of a selector.
    #[schemars(length(max = MAX_TARGET_REFS))]
    pub target_refs: Vec<PolicyTargetReference>,
    /// Issuers whose tokens are verified. A request with a token that is not valid is refused; one without a token
    /// passes, unless an AuthorizationPolicy asks for a request principal.
    #[schemars(length(max = MAX_RULES))]
    pub jwt_rules: Vec<JwtRule>,
}

/// `jwtRules[]`.
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, rename_all = "camelCase", default)]
#[schemars(extend("x-kubernetes-validations" = schema::one_key_source()))]
pub struct JwtRule {
    /// The claim `iss` of the tokens. Left out: any, and jwksUri is needed.
    #[schemars(length(min = 1))]
    pub issuer: Option<String>,
    /// The claim `aud` must hold one of these. None: it is not looked at.
    #[schemars(inner(length(min = 1)))]
    pub audiences: Vec<String>,
    /// Where the issuer's public keys are: a URL, http or https.
    #[schemars(length(min = 1, max = MAX_URI), extend("x-kubernetes-validations" = schema::http_url()))]
    pub jwks_uri: Option<String>,
    /// The same as jwksUri, under its protobuf name.
    #[serde(rename = "jwks_uri")]
    #[schemars(length(min = 1, max = MAX_URI), extend("x-kubernetes-validations" = schema::http_url()))]
    pub jwks_uri_alias: Option<String>,
    /// The issuer's public keys themselves, as a JSON Web Key Set.
    pub jwks: Option<String>,
    /// Headers that may hold the token. Without these, fromParams and fromCookies: `Authorization: Bearer`, and the query
    /// parameter `access_token`.
    pub from_headers: Vec<JwtHeader>,
    /// Query parameters that may hold the token.
    #[schemars(inner(length(min = 1)))]
    pub from_params: Vec<String>,
    /// Cookies that may hold the token.
    #[schemars(inner(length(min = 1)))]
    pub from_cookies: Vec<String>,
    /// A header in which the application gets the token's payload, in base64url.
    pub output_payload_to_header: Option<String>,
    /// Whether the application gets the token itself. By default it is removed.
    pub forward_original_token: bool,
    /// Headers in which the application gets single claims.
    pub output_claim_to_headers: Vec<ClaimToHeader>,
    /// How long fetching the keys may take: 5s by default, at least 1ms.
    #[schemars(extend("x-kubernetes-validations" = schema::one_millisecond()))]
    pub timeout: Option<String>,
    /// Claims that are lists in one text, beside `scope` and `permission`.
    #[schemars(length(max = MAX_CLAIMS), inner(length(min = 1)))]
    pub space_delimited_claims: Vec<String>,
    /// REQUIRED: a request without a token of this rule is refused. OPTIONAL, the default: it passes.
    pub presence: Option<Presence>,
}

/// `fromHeaders[]`.
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
#[schemars(extend("required" = ["name"]))]
pub struct JwtHeader {
    /// The header's name.
    #[schemars(length(min = 1))]
    pub name: String,
    /// What comes before the token in it, with the blank if there is one: `Bearer `.
    pub prefix: String,
}

/// `outputClaimToHeaders[]`.
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
#[schemars(extend("required" = ["header", "claim"]))]
pub struct ClaimToHeader {
    /// The header's name: letters, digits, `-` and `_`.
    #[schemars(length(min = 1), regex(pattern = schema::HEADER))]
    pub header: String,
    /// The claim; a dot leads into a nested one. Text, whole numbers and booleans only.
    #[schemars(length(min = 1))]
    pub claim: String,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize, JsonSchema)]
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
