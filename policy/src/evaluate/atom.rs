//! Whether one atom matches: the whole of semantics §4.2 and §4.3, one attribute each. Nothing here knows rules, actions or
//! negation; an attribute that is absent matches nothing.

use std::borrow::Cow;

use ipnet::IpNet;
use serde_json::Value;

use super::glob::{self, ANYTHING, Piece, SOMETHING};
use super::view::{View, canonical};
use crate::matcher::{Atom, PathMatch, RequestPrincipal, StringMatch, TrustDomainMatch};

const SPIFFE: &str = "spiffe://";

pub(super) fn matches(atom: &Atom, view: &View<'_>) -> bool {
    let request = view.request;
    match atom {
        Atom::Principal(_) | Atom::Namespace(_) | Atom::ServiceAccount { .. } | Atom::TrustDomain(_) => {
            view.peer().iter().any(|name| names(atom, name))
        }
        Atom::SourceIp(net) => contains(net, request.source_ip),
        Atom::RemoteIp(net) => net.contains(&view.remote_ip()),
        Atom::DestinationIp(net) => contains(net, request.destination_ip),
        Atom::Port(port) => request.destination_port == *port,
        Atom::Sni(value) => text(value, &request.sni),
        Atom::Metadata { filter, key, value, list } => view
            .metadata(filter, key)
            .is_some_and(|had| if *list { one_of(value, had) } else { is(value, had) }),
        _ if !view.is_http() => false,
        Atom::RequestPrincipal(wanted) => request_principal(wanted, view),
        Atom::Audience(value) => claim(value, view, ["aud"]),
        Atom::Presenter(value) => claim(value, view, ["azp"]),
        Atom::Claim { path, value } => claim(value, view, path.iter().map(|name| &**name)),
        Atom::Header { name, value } => header(value, &view.header(name)),
        Atom::Host(value) => host(value, &request.host),
        Atom::Method(value) => value.matches(&request.method),
        Atom::Path(wanted) => path(wanted, view.path()),
    }
}

/// Whether an atom about identities matches this name of a peer. No other atom does.
pub(super) fn names(atom: &Atom, name: &str) -> bool {
    match atom {
        Atom::Principal(value) => principal(value, name),
        Atom::Namespace(pattern) => namespace(pattern, name),
        Atom::ServiceAccount { namespace, name: account } => service_account(namespace, account, name),
        Atom::TrustDomain(value) => trust_domain(value, name),
        _ => false,
    }
}

/// Outside of headers `*` is the expression `.+`, and its dot takes no line feed. A claim can hold one: such a string is
/// not `*` (tried on Envoy 1.36.2, 1.39.3 and 1.40.0).
fn text(wanted: &StringMatch, had: &str) -> bool {
    match wanted {
        StringMatch::Present => !had.is_empty() && had.chars().all(glob::any),
        _ => wanted.matches(had),
    }
}

fn contains(net: &IpNet, address: std::net::IpAddr) -> bool {
    net.contains(&canonical(address))
}

fn principal(wanted: &StringMatch, name: &str) -> bool {
    match wanted {
        // The only one that asks for no SPIFFE ID.
        StringMatch::Present => text(wanted, name),
        StringMatch::Suffix(suffix) => {
            let before = name.strip_prefix(SPIFFE).and_then(|id| id.strip_suffix(&**suffix));
            before.is_some_and(|before| before.chars().all(glob::any))
        }
        _ => name.strip_prefix(SPIFFE).is_some_and(|id| wanted.matches(id)),
    }
}

/// Anywhere in the identity, so also in a longer path: `…/ns/evil/sa/x/ns/NAMESPACE/sa/y` (semantics §12.4).
fn namespace(pattern: &str, name: &str) -> bool {
    if !pattern.contains('*') {
        return after_each("/ns/", name)
            .any(|rest| rest.strip_prefix(pattern).is_some_and(|rest| rest.starts_with('/')));
    }
    let before = [ANYTHING, Piece::Text("/ns/")];
    let after = [Piece::Text("/"), ANYTHING];
    glob::matches(before.into_iter().chain(glob::stars(pattern, glob::any)).chain(after), name)
}

/// What follows each occurrence of `text`, overlapping ones too.
fn after_each<'n>(text: &'static str, name: &'n str) -> impl Iterator<Item = &'n str> {
    (0..name.len()).filter_map(move |at| name.get(at..)?.strip_prefix(text))
}

/// Further segments may stand between namespace and account, and after the account.
fn service_account(namespace: &str, account: &str, name: &str) -> bool {
    // Most others: no pattern is needed to tell.
    if !name.contains(account) || !name.contains(namespace) {
        return false;
    }
    let between: [&[Piece<'_>]; 2] = [&[], &[SOMETHING, Piece::Text("/")]];
    let after: [&[Piece<'_>]; 2] = [&[], &[Piece::Text("/"), SOMETHING]];
    between.into_iter().any(|between| {
        after.into_iter().any(|after| {
            let until_namespace = [
                Piece::Text(SPIFFE),
                SOMETHING,
                Piece::Text("/ns/"),
                Piece::Text(namespace),
                Piece::Text("/"),
            ];
            let account = [Piece::Text("sa/"), Piece::Text(account)];
            let between = between.iter().copied();
            let after = after.iter().copied();
            glob::matches(until_namespace.into_iter().chain(between).chain(account).chain(after), name)
        })
    })
}

fn trust_domain(wanted: &TrustDomainMatch, name: &str) -> bool {
    let Some(id) = name.strip_prefix(SPIFFE) else { return false };
    match wanted {
        TrustDomainMatch::Any => true,
        // With the slash: `prod` is not `prod.evil`.
        TrustDomainMatch::Exact(domain) => {
            id.strip_prefix(&**domain).is_some_and(|rest| rest.starts_with('/'))
        }
        TrustDomainMatch::Wildcard(pattern) => {
            let after = [Piece::Text("/"), ANYTHING];
            glob::matches(glob::stars(pattern, glob::not_slash).into_iter().chain(after), id)
        }
    }
}

/// Issuer and subject apart: joined, `a/b` + `c` would be `a` + `b/c` (semantics §10.10).
fn request_principal(wanted: &RequestPrincipal, view: &View<'_>) -> bool {
    let RequestPrincipal { issuer, subject } = wanted;
    let part = |name| view.claim([name]).and_then(Value::as_str);
    let is = |wanted: &Option<StringMatch>, had: Option<&str>| {
        had.is_some_and(|had| text(wanted.as_ref().unwrap_or(&StringMatch::Present), had))
    };
    is(issuer, part("iss")) && is(subject, part("sub"))
}

/// A string or a list of strings; numbers and booleans never match.
fn claim<'p>(wanted: &StringMatch, view: &View<'_>, path: impl IntoIterator<Item = &'p str>) -> bool {
    view.claim(path).is_some_and(|had| is(wanted, had) || one_of(wanted, had))
}

fn is(wanted: &StringMatch, had: &Value) -> bool {
    had.as_str().is_some_and(|had| text(wanted, had))
}

fn one_of(wanted: &StringMatch, had: &Value) -> bool {
    had.as_array().is_some_and(|list| list.iter().any(|one| is(wanted, one)))
}

/// Any one of the values a header was sent with, each on its own, as Envoy does since CVE-2026-26308; 1.36.2 still joins
/// them with `,` and differs here. Some headers are always one value ([`View::header`]).
fn header(wanted: &StringMatch, values: &[Cow<'_, str>]) -> bool {
    match wanted {
        StringMatch::Present => !values.is_empty(),
        _ => values.iter().any(|value| wanted.matches(value)),
    }
}

fn host(wanted: &StringMatch, host: &str) -> bool {
    let host = host.as_bytes();
    let same =
        |part: Option<&[u8]>, text: &str| part.is_some_and(|p| p.eq_ignore_ascii_case(text.as_bytes()));
    match wanted {
        StringMatch::Exact(text) => same(Some(host), text),
        StringMatch::Prefix(text) => same(host.get(..text.len()), text),
        StringMatch::Suffix(text) => same(host.len().checked_sub(text.len()).map(|at| &host[at..]), text),
        StringMatch::Present => !host.is_empty(),
    }
}

pub(super) fn path(wanted: &PathMatch, path: &str) -> bool {
    match wanted {
        PathMatch::Plain(value) => text(value, path),
        PathMatch::Template(template) => {
            let head = template.split('{').next().unwrap_or_default();
            path.starts_with(head) && glob::matches(template_pieces(template), path)
        }
    }
}

/// `{*}` is one segment of at least one character, `{**}` any number of segments, also none (semantics §4.7).
fn template_pieces(template: &str) -> Vec<Piece<'_>> {
    let mut pieces = Vec::new();
    for (i, part) in template.split("{**}").enumerate() {
        if i > 0 {
            pieces.push(Piece::Run { min: 0, of: |c| c == '/' || pchar(c) });
        }
        for (i, text) in part.split("{*}").enumerate() {
            if i > 0 {
                pieces.push(Piece::Run { min: 1, of: pchar });
            }
            pieces.push(Piece::Text(text));
        }
    }
    pieces
}

/// RFC 3986 §3.3: what Envoy's templates take for a character of a segment.
fn pchar(c: char) -> bool {
    c.is_ascii_alphanumeric() || "-._~%!$&'()*+,;=:@".contains(c)
}

#[cfg(test)]
mod tests;
