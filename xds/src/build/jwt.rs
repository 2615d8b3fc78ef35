//! RequestAuthentication as Envoy's jwt_authn (semantics §5.1). Fetches no keys: rules arrive with theirs inline.

use std::collections::BTreeSet;

use envoy_types::pb::google::protobuf::Empty;
use policy::model::{Jwks, JwtRule, Presence};

use super::encode::JwtAuthentication;
use super::pb::jwt_authn::{
    JwtClaimToHeader, JwtHeader, JwtProvider, JwtRequirement, JwtRequirementAndList, JwtRequirementOrList,
    RequirementRule, jwt_provider, jwt_requirement::RequiresType, requirement_rule,
};
use super::pb::{core, route};
use super::rbac::matcher::JWT_PAYLOAD;

/// A key set that Envoy loads and that can verify nothing: 32 bytes that encode no point of Ed25519 (y = 2 has no x),
/// so no signature verifies, and there is no private half that anybody could hold (semantics §5.3, §10.12).
pub(crate) const REFUSE_ALL: &str = r#"{"keys":[{"kty":"OKP","crv":"Ed25519","alg":"EdDSA","kid":"refuse-all","x":"AgAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAA"}]}"#;

/// Claims that are lists although written as one string (semantics §5.1).
const SPACE_DELIMITED: [&str; 2] = ["permission", "scope"];

/// The filter for the union of the attached rules, already sorted by issuer; without rules it passes everything.
pub(crate) fn authentication(rules: &[JwtRule]) -> JwtAuthentication {
    if rules.is_empty() {
        return JwtAuthentication::default();
    }
    let prefix = route::route_match::PathSpecifier::Prefix("/".to_owned());
    let all = route::RouteMatch { path_specifier: Some(prefix), ..Default::default() };
    JwtAuthentication {
        providers: rules.iter().enumerate().map(|(i, rule)| (name(i), provider(rule))).collect(),
        // One rule for everything: Envoy stops at the first that matches.
        rules: vec![RequirementRule {
            r#match: Some(all),
            requirement_type: Some(requirement_rule::RequirementType::Requires(requirement(rules))),
        }],
        bypass_cors_preflight: true,
    }
}

fn name(index: usize) -> String {
    format!("origins-{index}")
}

/// At least one token verifies, or no provider finds one where it looks. A rule with `presence: REQUIRED` must find
/// and verify its own token; then that is all there is to ask, for one verified token satisfies the optional rules.
fn requirement(rules: &[JwtRule]) -> JwtRequirement {
    let required: Vec<JwtRequirement> =
        (0..rules.len()).filter(|i| rules[*i].presence == Presence::Required).map(verified).collect();
    if !required.is_empty() {
        return all(required);
    }
    let or_missing = |i| any(vec![verified(i), missing()]);
    if rules.len() == 1 {
        return or_missing(0);
    }
    let mut options: Vec<JwtRequirement> = (0..rules.len()).map(verified).collect();
    options.push(all((0..rules.len()).map(or_missing).collect()));
    any(options)
}

fn verified(index: usize) -> JwtRequirement {
    JwtRequirement { requires_type: Some(RequiresType::ProviderName(name(index))) }
}

/// Never `allow_missing_or_failed`: a bad token is not an absent one (semantics §10.11).
fn missing() -> JwtRequirement {
    JwtRequirement { requires_type: Some(RequiresType::AllowMissing(Empty {})) }
}

fn any(requirements: Vec<JwtRequirement>) -> JwtRequirement {
    JwtRequirement { requires_type: Some(RequiresType::RequiresAny(JwtRequirementOrList { requirements })) }
}

/// Envoy wants at least two members.
fn all(mut requirements: Vec<JwtRequirement>) -> JwtRequirement {
    if requirements.len() == 1 {
        return requirements.remove(0);
    }
    JwtRequirement { requires_type: Some(RequiresType::RequiresAll(JwtRequirementAndList { requirements })) }
}

fn provider(rule: &JwtRule) -> JwtProvider {
    let JwtRule {
        issuer,
        audiences,
        jwks,
        from_headers,
        from_params,
        from_cookies,
        output_payload_to_header,
        forward_original_token,
        output_claim_to_headers,
        space_delimited_claims,
        timeout_ms: _,
        presence: _,
    } = rule;
    let keys = match jwks {
        Jwks::Inline(keys) => keys.to_string(),
        // The controller fetches remote keys; one that comes here has none, and no keys verify nothing.
        Jwks::Remote(_) | Jwks::RefuseAll => REFUSE_ALL.to_owned(),
    };
    let keys = core::DataSource {
        specifier: Some(core::data_source::Specifier::InlineString(keys)),
        ..Default::default()
    };
    let lists: BTreeSet<&str> =
        SPACE_DELIMITED.into_iter().chain(space_delimited_claims.iter().map(String::as_str)).collect();
    JwtProvider {
        issuer: issuer.clone(),
        audiences: audiences.clone(),
        forward: *forward_original_token,
        from_headers: from_headers
            .iter()
            .map(|h| JwtHeader { name: h.name.clone(), value_prefix: h.prefix.clone() })
            .collect(),
        from_params: from_params.clone(),
        from_cookies: from_cookies.clone(),
        forward_payload_header: output_payload_to_header.clone().unwrap_or_default(),
        payload_in_metadata: JWT_PAYLOAD.to_owned(),
        normalize_payload_in_metadata: Some(jwt_provider::NormalizePayload {
            space_delimited_claims: lists.into_iter().map(str::to_owned).collect(),
        }),
        claim_to_headers: output_claim_to_headers
            .iter()
            .map(|c| JwtClaimToHeader {
                header_name: c.header.clone(),
                claim_name: c.claim.clone(),
                ..Default::default()
            })
            .collect(),
        jwks_source_specifier: Some(jwt_provider::JwksSourceSpecifier::LocalJwks(keys)),
        ..Default::default()
    }
}
