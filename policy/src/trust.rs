//! Trust-domain aliases: rewriting the principals and trust domains that policies name (semantics §4.6).
//! Knows nothing of certificates; the SAN check of a handshake is `xds::build`'s.

use std::sync::Arc;

use crate::matcher::{Atom, StringMatch, TrustDomainMatch};
use crate::set::Scope;

/// In a policy this trust domain is a pointer to the mesh's own, whatever that is called.
const POINTER: &str = "cluster.local";

/// The atoms that stand for `atom` once aliases are applied: one per member of the mesh's trust domains, or itself.
pub fn expand(scope: &Scope, atom: &Atom) -> Vec<Atom> {
    match atom {
        Atom::Principal(value) => expand_principal(scope, &value.to_string())
            .iter()
            .map(|v| Atom::Principal(StringMatch::parse(v)))
            .collect(),
        Atom::TrustDomain(TrustDomainMatch::Exact(td)) if members(scope).contains(&td) => members(scope)
            .into_iter()
            .map(|m| Atom::TrustDomain(TrustDomainMatch::Exact(m.clone())))
            .collect(),
        other => vec![other.clone()],
    }
}

fn members(scope: &Scope) -> Vec<&Arc<str>> {
    let mut all: Vec<&Arc<str>> = Vec::new();
    for td in std::iter::once(&scope.trust_domain).chain(&scope.trust_domain_aliases) {
        if !td.is_empty() && !all.contains(&td) {
            all.push(td);
        }
    }
    all
}

/// Rewrites one principal as written (`TD/ns/NS/sa/SA`, possibly with a wildcard).
fn expand_principal(scope: &Scope, principal: &str) -> Vec<String> {
    let unchanged = || vec![principal.to_owned()];
    let Some((td, rest)) = principal.split_once('/') else { return unchanged() };
    if td == "*" || rest.split('/').count() != 4 {
        return unchanged();
    }
    let members = members(scope);
    // Without any trust domain the pointer would vanish, and a field without values matches anybody.
    if members.is_empty() {
        return unchanged();
    }
    if td != POINTER && !members.iter().any(|member| same_domain(td, member)) {
        return unchanged();
    }
    let mut out = Vec::with_capacity(members.len());
    for member in members {
        // A pattern such as `*-cluster` already covers the member: keep the pattern.
        let covered = td.strip_prefix('*').is_some_and(|suffix| member.ends_with(suffix));
        let principal = if covered { principal.to_owned() } else { format!("{member}/{rest}") };
        if !out.contains(&principal) {
            out.push(principal);
        }
    }
    out
}

/// Exact, or a leading or trailing wildcard on either side.
fn same_domain(a: &str, b: &str) -> bool {
    covers(a, b) || covers(b, a)
}

fn covers(pattern: &str, value: &str) -> bool {
    match (pattern.strip_prefix('*'), pattern.strip_suffix('*')) {
        (Some(suffix), _) => value.ends_with(suffix),
        (None, Some(prefix)) => value.starts_with(prefix),
        (None, None) => pattern == value,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn scope(td: &str, aliases: &[&str]) -> Scope {
        Scope {
            trust_domain: td.into(),
            trust_domain_aliases: aliases.iter().map(|a| (*a).into()).collect(),
            ..Scope::default()
        }
    }

    #[track_caller]
    fn check(td: &str, aliases: &[&str], principal: &str, expected: &[&str]) {
        assert_eq!(
            expand_principal(&scope(td, aliases), principal),
            expected,
            "{principal} in {td} + {aliases:?}"
        );
    }

    #[test]
    fn principals_follow_the_aliases() {
        check("td1", &["td2"], "td1/ns/a/sa/b", &["td1/ns/a/sa/b", "td2/ns/a/sa/b"]);
        check("td1", &["td2"], "td2/ns/a/sa/b", &["td1/ns/a/sa/b", "td2/ns/a/sa/b"]);
        check("td1", &[], "cluster.local/ns/a/sa/b", &["td1/ns/a/sa/b"]);
        check("cluster.local", &[], "cluster.local/ns/a/sa/b", &["cluster.local/ns/a/sa/b"]);
        check("td1", &["td2"], "other/ns/a/sa/b", &["other/ns/a/sa/b"]);
        check("td1", &["td2"], "*/ns/a/sa/b", &["*/ns/a/sa/b"]);
        check("td1", &["td2"], "td1/ns/a/sa/*", &["td1/ns/a/sa/*", "td2/ns/a/sa/*"]);
        check("td1", &["td2"], "*d1/ns/a/sa/b", &["*d1/ns/a/sa/b", "td2/ns/a/sa/b"]);
        check("td1", &["xd1"], "*d1/ns/a/sa/b", &["*d1/ns/a/sa/b"]);
        check("td1", &["td2"], "td1/orders", &["td1/orders"]);
        check("td1", &["td2"], "*", &["*"]);
        check("td1", &["td2"], "td1/ns/*", &["td1/ns/*"]);
        check("", &[""], "cluster.local/ns/a/sa/b", &["cluster.local/ns/a/sa/b"]);
        check("td1", &["td2"], "d1/ns/a/sa/b", &["d1/ns/a/sa/b"]);
        check("td1", &["td2"], "td*/ns/a/sa/b", &["td1/ns/a/sa/b", "td2/ns/a/sa/b"]);
        check("td1", &["td2"], "td1/ns/a/sa/b/c", &["td1/ns/a/sa/b/c"]);
        check("td1", &["", "td1"], "td1/ns/a/sa/b", &["td1/ns/a/sa/b"]);
    }

    #[test]
    fn trust_domains_equal_to_a_member_stand_for_all() {
        let scope = scope("td1", &["td2"]);
        let atom = |td: &str| Atom::TrustDomain(TrustDomainMatch::Exact(td.into()));
        assert_eq!(expand(&scope, &atom("td2")), [atom("td1"), atom("td2")]);
        assert_eq!(expand(&scope, &atom("td3")), [atom("td3")]);
        let any = Atom::TrustDomain(TrustDomainMatch::Any);
        assert_eq!(expand(&scope, &any), std::slice::from_ref(&any));
    }
}
