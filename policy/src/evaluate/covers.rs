//! Whether one rule matches whatever another one matches, from the rules alone. Sound: a yes holds for every request, on HTTP
//! and on TCP. Incomplete: a no says nothing. Which of two rules is asked first, or what they do, is not looked at.

use ipnet::IpNet;

use super::{atom, glob};
use crate::effective::{Clause, EffectiveRule};
use crate::matcher::{Atom, PathMatch, RequestPrincipal, StringMatch, TrustDomainMatch};

/// Whether `wide` matches every request and connection that `narrow` matches. Of a `narrow` that matches nothing the answer
/// is no.
pub fn covers(wide: &EffectiveRule, narrow: &EffectiveRule) -> bool {
    // On a TCP chain an ALLOW rule with HTTP fields does not exist, so it cannot stand in for one without.
    let there = !wide.http_only() || narrow.http_only();
    there
        && alternatives(&wide.permissions, &narrow.permissions)
        && alternatives(&wide.principals, &narrow.principals)
}

/// Whether `rule` matches no HTTP request whatever, because what it asks for rules itself out. A no says nothing.
pub fn never_matches(rule: &EffectiveRule) -> bool {
    let nothing = |branches: &[Vec<Clause>]| branches.iter().all(|branch| contradicts_itself(branch));
    nothing(&rule.permissions) || nothing(&rule.principals)
}

fn contradicts_itself(branch: &[Clause]) -> bool {
    let ruled_out = |had: &Atom| {
        branch.iter().any(|other| {
            other.none.iter().any(|excluded| implies(had, excluded))
                || (!other.any.is_empty() && other.any.iter().all(|wanted| disjoint(had, wanted)))
        })
    };
    branch.iter().any(|clause| !clause.any.is_empty() && clause.any.iter().all(ruled_out))
}

/// Each alternative of `narrow` is part of one of `wide`.
fn alternatives(wide: &[Vec<Clause>], narrow: &[Vec<Clause>]) -> bool {
    let part =
        |narrow: &Vec<Clause>| wide.iter().any(|wide| wide.iter().all(|clause| follows(clause, narrow)));
    !narrow.is_empty() && narrow.iter().all(part)
}

/// Whether `clause` is true of all that meets every clause of `given`.
fn follows(clause: &Clause, given: &[Clause]) -> bool {
    let Clause { field: _, any, none } = clause;
    let one_of_any = |given: &Clause| {
        !given.any.is_empty() && given.any.iter().all(|had| any.iter().any(|wanted| implies(had, wanted)))
    };
    let ruled_out = |unwanted: &Atom, given: &Clause| {
        given.none.iter().any(|excluded| implies(unwanted, excluded))
            || (!given.any.is_empty() && given.any.iter().all(|had| disjoint(had, unwanted)))
    };
    (any.is_empty() || given.iter().any(one_of_any))
        && none.iter().all(|unwanted| given.iter().any(|given| ruled_out(unwanted, given)))
}

/// Whether `wide` matches all that `narrow` matches.
fn implies(narrow: &Atom, wide: &Atom) -> bool {
    if narrow == wide {
        return true;
    }
    match (narrow, wide) {
        // A peer with several names matches by one of them, and that one matches both.
        (Atom::Principal(StringMatch::Exact(id)), wide) => atom::names(wide, &format!("spiffe://{id}")),
        (Atom::Principal(narrow), Atom::Principal(wide)) => principal(narrow, wide),
        // Not of two namespaces: a plain one is text, which a line feed elsewhere does not disturb; one with `*` is an expression,
        // which it does.
        (Atom::ServiceAccount { namespace, name: _ }, Atom::Namespace(wide)) => fits(wide, namespace),
        (Atom::TrustDomain(_), Atom::TrustDomain(TrustDomainMatch::Any)) => true,
        (Atom::SourceIp(narrow), Atom::SourceIp(wide))
        | (Atom::RemoteIp(narrow), Atom::RemoteIp(wide))
        | (Atom::DestinationIp(narrow), Atom::DestinationIp(wide)) => wide.contains(narrow),
        (Atom::RequestPrincipal(narrow), Atom::RequestPrincipal(wide)) => token(narrow, wide),
        (Atom::Audience(narrow), Atom::Audience(wide))
        | (Atom::Presenter(narrow), Atom::Presenter(wide))
        | (Atom::Sni(narrow), Atom::Sni(wide)) => text(narrow, wide),
        (Atom::Claim { path, value }, Atom::Claim { path: other, value: wide }) => {
            path == other && text(value, wide)
        }
        (Atom::Header { name, value }, Atom::Header { name: other, value: wide }) => {
            name == other && header(value, wide)
        }
        (Atom::Method(narrow), Atom::Method(wide)) => header(narrow, wide),
        (Atom::Host(narrow), Atom::Host(wide)) => host(narrow, wide),
        (Atom::Path(PathMatch::Plain(StringMatch::Exact(path))), Atom::Path(wide)) => atom::path(wide, path),
        (Atom::Path(PathMatch::Plain(narrow)), Atom::Path(PathMatch::Plain(wide))) => text(narrow, wide),
        (
            Atom::Metadata { filter, key, value, list },
            Atom::Metadata { filter: of, key: named, value: wide, list: listed },
        ) => (filter, key, list) == (of, named, listed) && text(value, wide),
        _ => false,
    }
}

/// Whether no request can match both. Only of what a request has exactly one of.
fn disjoint(a: &Atom, b: &Atom) -> bool {
    let apart = |a: &IpNet, b: &IpNet| !a.contains(b) && !b.contains(a);
    match (a, b) {
        (Atom::Port(a), Atom::Port(b)) => a != b,
        (Atom::SourceIp(a), Atom::SourceIp(b))
        | (Atom::RemoteIp(a), Atom::RemoteIp(b))
        | (Atom::DestinationIp(a), Atom::DestinationIp(b)) => apart(a, b),
        (Atom::Method(StringMatch::Exact(a)), Atom::Method(b)) => !b.matches(a),
        (Atom::Path(PathMatch::Plain(StringMatch::Exact(a))), Atom::Path(b)) => !atom::path(b, a),
        (
            Atom::Path(PathMatch::Plain(StringMatch::Prefix(a))),
            Atom::Path(PathMatch::Plain(StringMatch::Prefix(b) | StringMatch::Exact(b))),
        ) => !a.starts_with(&**b) && !b.starts_with(&**a),
        _ => false,
    }
}

/// Where `*` asks for a run of characters without line feed, and any other value for itself.
fn text(narrow: &StringMatch, wide: &StringMatch) -> bool {
    match (narrow, wide) {
        (StringMatch::Exact(narrow), StringMatch::Present) => !narrow.is_empty() && !narrow.contains('\n'),
        (narrow, wide) => same_kind(narrow, wide),
    }
}

/// Where `*` asks for nothing but that it is there.
fn header(narrow: &StringMatch, wide: &StringMatch) -> bool {
    *wide == StringMatch::Present || same_kind(narrow, wide)
}

fn host(narrow: &StringMatch, wide: &StringMatch) -> bool {
    let lower = |value: &StringMatch| match value {
        StringMatch::Exact(text) => StringMatch::Exact(text.to_ascii_lowercase().into()),
        StringMatch::Prefix(text) => StringMatch::Prefix(text.to_ascii_lowercase().into()),
        StringMatch::Suffix(text) => StringMatch::Suffix(text.to_ascii_lowercase().into()),
        StringMatch::Present => StringMatch::Present,
    };
    match (lower(narrow), lower(wide)) {
        (StringMatch::Exact(narrow), StringMatch::Present) => !narrow.is_empty(),
        (_, StringMatch::Present) => true,
        (narrow, wide) => same_kind(&narrow, &wide),
    }
}

fn same_kind(narrow: &StringMatch, wide: &StringMatch) -> bool {
    match (narrow, wide) {
        (StringMatch::Exact(narrow), StringMatch::Exact(wide)) => narrow == wide,
        (StringMatch::Exact(narrow) | StringMatch::Prefix(narrow), StringMatch::Prefix(wide)) => {
            narrow.starts_with(&**wide)
        }
        (StringMatch::Exact(narrow) | StringMatch::Suffix(narrow), StringMatch::Suffix(wide)) => {
            narrow.ends_with(&**wide)
        }
        (StringMatch::Present, StringMatch::Present) => true,
        _ => false,
    }
}

fn token(narrow: &RequestPrincipal, wide: &RequestPrincipal) -> bool {
    let part = |narrow: &Option<StringMatch>, wide: &Option<StringMatch>| match (narrow, wide) {
        (None, None) => true,
        (None, Some(_)) => false,
        (Some(narrow), None) => text(narrow, &StringMatch::Present),
        (Some(narrow), Some(wide)) => text(narrow, wide),
    };
    part(&narrow.issuer, &wide.issuer) && part(&narrow.subject, &wide.subject)
}

/// Before a suffix stands an expression whose dot takes no line feed; `*` alone asks for none anywhere.
fn principal(narrow: &StringMatch, wide: &StringMatch) -> bool {
    match (narrow, wide) {
        (_, StringMatch::Present) => false,
        (StringMatch::Suffix(text), StringMatch::Suffix(_)) => {
            !text.contains('\n') && same_kind(narrow, wide)
        }
        _ => same_kind(narrow, wide),
    }
}

/// Whether the namespace pattern `wide` takes exactly this name.
fn fits(wide: &str, name: &str) -> bool {
    !name.contains('\n') && glob::matches(glob::stars(wide, glob::any), name)
}
