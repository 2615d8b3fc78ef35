//! `jwtRules[]`: validation (semantics §1.4) and conversion in one walk.

use policy::Jwks;

use super::{ClaimToHeader, DEFAULT_TIMEOUT_MS, JwtHeader, JwtRule, MAX_CLAIMS, MAX_URI, Presence, jwks};
use crate::finding::Issues;
use crate::path::At;
use crate::values;

/// The rule at `at`.
pub(super) fn read(rule: &JwtRule, at: &At<'_>, issues: &mut Issues) -> policy::JwtRule {
    let JwtRule {
        issuer,
        audiences,
        jwks_uri,
        jwks_uri_alias,
        jwks,
        from_headers,
        from_params,
        from_cookies,
        output_payload_to_header,
        forward_original_token,
        output_claim_to_headers,
        timeout,
        space_delimited_claims,
        presence,
    } = rule;
    if issuer.as_deref() == Some("") {
        issues.error(&at.key("issuer"), "an issuer has at least one character: leave it out to mean any");
    }
    for (name, list) in [
        ("audiences", audiences),
        ("fromParams", from_params),
        ("fromCookies", from_cookies),
        ("spaceDelimitedClaims", space_delimited_claims),
    ] {
        for (i, _) in list.iter().enumerate().filter(|(_, value)| value.is_empty()) {
            issues.error(&at.key(name).index(i), "an empty value");
        }
    }
    if space_delimited_claims.len() > MAX_CLAIMS {
        issues.error(&at.key("spaceDelimitedClaims"), format!("at most {MAX_CLAIMS} claims are allowed"));
    }
    if output_payload_to_header.as_deref().is_some_and(|name| !values::header_text(name)) {
        issues.error(&at.key("outputPayloadToHeader"), "not a header name");
    }
    let uri = jwks_uri.as_deref().or(jwks_uri_alias.as_deref());
    let given = [jwks_uri.is_some(), jwks_uri_alias.is_some(), jwks.is_some()];
    if given.into_iter().filter(|g| *g).count() > 1 {
        issues.error(at, "only one of jwksUri and jwks can be given");
    }
    policy::JwtRule {
        issuer: issuer.clone().unwrap_or_default(),
        audiences: audiences.clone(),
        jwks: keys(issuer.as_deref(), uri, jwks.as_deref(), at, issues),
        from_headers: headers(from_headers, at, issues),
        from_params: from_params.clone(),
        from_cookies: from_cookies.clone(),
        output_payload_to_header: output_payload_to_header.clone().filter(|name| !name.is_empty()),
        forward_original_token: *forward_original_token,
        output_claim_to_headers: claims(output_claim_to_headers, at, issues),
        space_delimited_claims: space_delimited_claims.clone(),
        timeout_ms: timeout_ms(timeout.as_deref(), at, issues),
        presence: match presence {
            None | Some(Presence::Optional) => policy::Presence::Optional,
            Some(Presence::Required) => policy::Presence::Required,
        },
    }
}

fn keys(
    issuer: Option<&str>,
    uri: Option<&str>,
    jwks: Option<&str>,
    at: &At<'_>,
    issues: &mut Issues,
) -> Jwks {
    if issuer.is_none_or(str::is_empty) && uri.is_none_or(str::is_empty) {
        issues.missing(at, "an issuer or a jwksUri is required");
    }
    if let Some(text) = jwks {
        return match jwks::public(text) {
            Ok(keys) => {
                keys.warnings.into_iter().for_each(|warning| issues.warning(&at.key("jwks"), warning));
                Jwks::Inline(keys.text.into())
            }
            Err(why) => {
                issues.error(&at.key("jwks"), why);
                Jwks::RefuseAll
            }
        };
    }
    if let Some(uri) = uri
        && let Err(why) = check_uri(uri)
    {
        issues.error(&at.key("jwksUri"), why);
        return Jwks::RefuseAll;
    }
    if uri.is_none() && issuer.is_some_and(|issuer| check_uri(issuer).is_err()) {
        issues.warning(
            &at.key("issuer"),
            "no jwks and no jwksUri are given and the issuer is no URL, so no keys can be found: every token is refused",
        );
    }
    Jwks::Remote(uri.map(str::to_owned))
}

fn headers(headers: &[JwtHeader], at: &At<'_>, issues: &mut Issues) -> Vec<policy::JwtHeader> {
    let at = at.key("fromHeaders");
    let mut read = Vec::with_capacity(headers.len());
    for (i, JwtHeader { name, prefix }) in headers.iter().enumerate() {
        if name.is_empty() || !values::header_text(name) {
            issues.error(&at.index(i).key("name"), "a header name is required");
        }
        if !values::header_text(prefix) {
            issues.error(&at.index(i).key("prefix"), "not allowed in a header");
        }
        read.push(policy::JwtHeader { name: name.clone(), prefix: prefix.clone() });
    }
    read
}

fn claims(claims: &[ClaimToHeader], at: &At<'_>, issues: &mut Issues) -> Vec<policy::ClaimToHeader> {
    let at = at.key("outputClaimToHeaders");
    let name = |c: char| c.is_ascii_alphanumeric() || c == '-' || c == '_';
    let mut read = Vec::with_capacity(claims.len());
    for (i, ClaimToHeader { header, claim }) in claims.iter().enumerate() {
        if header.is_empty() || !header.chars().all(name) {
            issues.error(
                &at.index(i).key("header"),
                "a header name of letters, digits, `-` and `_` is required",
            );
        }
        if claim.is_empty() {
            issues.error(&at.index(i).key("claim"), "the name of a claim is required");
        }
        read.push(policy::ClaimToHeader { header: header.clone(), claim: claim.clone() });
    }
    read
}

fn timeout_ms(timeout: Option<&str>, at: &At<'_>, issues: &mut Issues) -> u64 {
    let Some(timeout) = timeout else { return DEFAULT_TIMEOUT_MS };
    match values::duration_ms(timeout) {
        Ok(ms) if ms >= 1 => ms,
        Ok(_) => {
            issues.error(&at.key("timeout"), "must be at least 1ms");
            DEFAULT_TIMEOUT_MS
        }
        Err(why) => {
            issues.error(&at.key("timeout"), why);
            DEFAULT_TIMEOUT_MS
        }
    }
}

/// `http` or `https`, a host, and a port that is one.
fn check_uri(uri: &str) -> Result<(), String> {
    let fail = |why: &str| Err(format!("`{uri}` is not a URL of keys: {why}"));
    if uri.len() > MAX_URI {
        return Err(format!("a URL has at most {MAX_URI} characters"));
    }
    let Some((scheme, rest)) = uri.split_once("://") else { return fail("the scheme is missing") };
    if !scheme.eq_ignore_ascii_case("http") && !scheme.eq_ignore_ascii_case("https") {
        return fail("the scheme must be http or https");
    }
    if uri.contains(|c: char| c.is_whitespace() || c.is_control()) {
        return fail("it holds blanks");
    }
    let authority = rest.split(['/', '?', '#']).next().unwrap_or_default();
    let host_port = authority.rsplit_once('@').map_or(authority, |(_, host_port)| host_port);
    // A colon inside the brackets of an IPv6 address is not the port's.
    let (host, port) = match host_port.rsplit_once(':') {
        Some((host, port)) if !port.contains(']') => (host, Some(port)),
        _ => (host_port, None),
    };
    if host.is_empty() || host == "[]" {
        return fail("the host is missing");
    }
    match port.map(values::port) {
        None | Some(Ok(1..)) => Ok(()),
        Some(_) => fail("the port is not a number from 1 to 65535"),
    }
}

#[cfg(test)]
mod tests {
    use super::check_uri;

    #[test]
    fn uris() {
        for uri in [
            "https://a.example/keys",
            "http://a:8080",
            "HTTPS://[::1]:443/x",
            "http://[::1]/",
            "https://u@h/",
        ] {
            assert_eq!(check_uri(uri), Ok(()), "{uri}");
        }
        let long = format!("https://a/{}", "x".repeat(2048));
        for uri in [
            "",
            "a.example",
            "ftp://a/",
            "file:///etc",
            "https://",
            "https://:80/",
            "http://a:x/",
            "http://a:0",
            &long,
            "http://a b/",
        ] {
            assert!(check_uri(uri).is_err(), "{uri}");
        }
    }
}
