//! Tokens that are required where they cannot all be: no request has two in one place.

use std::collections::BTreeSet;

use policy::{JwtHeader, JwtRule, Presence, RequestAuthentication};

use super::code::Code;

/// What to say of `policy`, where `all` are the rules that apply wherever it does, in the order in which they are asked.
pub(super) fn look(policy: &RequestAuthentication, all: &[JwtRule]) -> Vec<(Code, String)> {
    let required: Vec<&JwtRule> = all.iter().filter(|rule| rule.presence == Presence::Required).collect();
    let pairs = required
        .iter()
        .enumerate()
        .flat_map(|(n, second)| required[..n].iter().map(move |first| (*first, *second)));
    let ours = |rule: &JwtRule| policy.rules.contains(rule);
    let told = pairs.filter(|(first, second)| (ours(first) || ours(second)) && never_both(first, second));
    told.map(|(first, second)| {
        let text = format!(
            "jwtRules: tokens of {:?} and of {:?} are both required in {}: no request has both, so every one is refused; read one \
             of them from elsewhere (fromHeaders, fromParams, fromCookies)",
            first.issuer,
            second.issuer,
            places(first).into_iter().collect::<Vec<_>>().join(", ")
        );
        (Code::RequiredTwice, text)
    })
    .take(1)
    .collect()
}

/// `first` is asked first; it takes the token away, unless it is to be forwarded or was in a cookie.
fn never_both(first: &JwtRule, second: &JwtRule) -> bool {
    let of_two = !first.issuer.is_empty() && !second.issuer.is_empty() && first.issuer != second.issuer;
    let taken = !first.forward_original_token && first.from_cookies.is_empty();
    places(first) == places(second) && (of_two || taken)
}

/// Where a rule looks.
fn places(rule: &JwtRule) -> BTreeSet<String> {
    let headers = rule.from_headers.iter().map(|JwtHeader { name, prefix }| {
        let name = name.to_ascii_lowercase();
        if prefix.is_empty() { format!("header {name}") } else { format!("header {name} after {prefix:?}") }
    });
    let params = rule.from_params.iter().map(|name| format!("parameter {name}"));
    let cookies = rule.from_cookies.iter().map(|name| format!("cookie {name}"));
    let mut all: BTreeSet<String> = headers.chain(params).chain(cookies).collect();
    if all.is_empty() {
        all.insert("the authorization header".to_owned());
    }
    all
}
