//! The ALLOW rule that a refused request came closest to, and what would have had to be different. Decides nothing.

use std::sync::Arc;

use serde_json::Value;

use super::view::{View, canonical};
use super::{atom, clause_matches};
use crate::effective::{Clause, EffectiveRule};
use crate::matcher::Atom;

/// An ALLOW rule that does not match.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct NearMiss {
    pub rule: String,
    /// Its clauses that failed, in the alternative with the fewest.
    pub failed: Vec<Mismatch>,
}

/// One field or condition that was not met. In words, for people.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Mismatch {
    /// The API field or when-key.
    pub field: Arc<str>,
    pub wanted: String,
    pub had: String,
}

impl std::fmt::Display for NearMiss {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let Self { rule, failed } = self;
        write!(f, "{rule}: ")?;
        for (i, mismatch) in failed.iter().enumerate() {
            write!(f, "{}{mismatch}", if i == 0 { "" } else { "; " })?;
        }
        Ok(())
    }
}

impl std::fmt::Display for Mismatch {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let Self { field, wanted, had } = self;
        write!(f, "{} wanted {}, had {}", one_line(field), one_line(wanted), one_line(had))
    }
}

/// As much of `text` as a line has room for, without anything a terminal would obey: claims and paths are the caller's.
fn one_line(text: &str) -> String {
    let mut line = String::new();
    for (i, c) in text.chars().enumerate() {
        match c {
            _ if i == SHOWN => {
                line.push('…');
                break;
            }
            '"' | '\'' | '\\' => line.push(c),
            _ => line.extend(c.escape_debug()),
        }
    }
    line
}

/// Characters of one value in a line.
const SHOWN: usize = 200;

/// More values than this are counted, not listed.
const LISTED: usize = 5;

/// Headers whose values are secrets, on either side; an explanation ends up in terminals and logs.
const SECRET: [&str; 4] = ["authorization", "cookie", "proxy-authorization", "x-api-key"];

const NOT_SHOWN: &str = "(not shown)";

/// The rule with the fewest failed clauses, the first of equals. Rules that can match nothing are left out.
pub(super) fn nearest(rules: &[EffectiveRule], view: &View<'_>) -> Option<NearMiss> {
    // Counted first: words are made for one rule only.
    let counted = rules.iter().filter_map(|rule| Some((rule, failures(rule, view)?)));
    let (rule, _) = counted.min_by_key(|(_, failures)| *failures)?;
    let mut failed = Vec::new();
    if !view.is_http() && rule.http_only() {
        failed.push(Mismatch { field: "protocol".into(), wanted: "http".to_owned(), had: "tcp".to_owned() });
    }
    for branches in [&rule.permissions, &rule.principals] {
        let (branch, _) = closest(branches, view)?;
        failed.extend(failing(branch, view).map(|clause| mismatch(clause, view)));
    }
    Some(NearMiss { rule: rule.name(), failed })
}

/// How many of its clauses fail; `None` if it has no alternative to fail in.
fn failures(rule: &EffectiveRule, view: &View<'_>) -> Option<usize> {
    let protocol = usize::from(!view.is_http() && rule.http_only());
    Some(protocol + closest(&rule.permissions, view)?.1 + closest(&rule.principals, view)?.1)
}

/// The alternative where the least fails, and how much; `None` if there is no alternative.
fn closest<'r>(branches: &'r [Vec<Clause>], view: &View<'_>) -> Option<(&'r [Clause], usize)> {
    let counted = branches.iter().map(|branch| (branch.as_slice(), failing(branch, view).count()));
    counted.min_by_key(|(_, failures)| *failures)
}

fn failing<'r>(branch: &'r [Clause], view: &'r View<'_>) -> impl Iterator<Item = &'r Clause> {
    let judged = |clause: &&Clause| view.is_http() || !clause.http_only();
    branch.iter().filter(judged).filter(|clause| !clause_matches(clause, view))
}

fn mismatch(clause: &Clause, view: &View<'_>) -> Mismatch {
    let Clause { field, any, none } = clause;
    let unwanted: Vec<&Atom> = none.iter().filter(|a| atom::matches(a, view)).collect();
    let wanted =
        if unwanted.is_empty() { list(any.iter()) } else { format!("not {}", list(unwanted.into_iter())) };
    let secret = |atom: &Atom| matches!(atom, Atom::Header { name, .. } if SECRET.contains(&&**name));
    let wanted = if any.iter().chain(none).any(secret) { NOT_SHOWN.to_owned() } else { wanted };
    let had = any.first().or(none.first()).map_or_else(String::new, |atom| had(atom, view));
    Mismatch { field: field.clone(), wanted, had }
}

fn list<'a>(atoms: impl ExactSizeIterator<Item = &'a Atom>) -> String {
    let more = atoms.len().saturating_sub(LISTED);
    let mut words: Vec<String> = atoms.take(LISTED).map(Atom::to_string).collect();
    if more > 0 {
        words.push(format!("{more} more"));
    }
    words.join(" or ")
}

/// What the request has where `atom` looks.
fn had(atom: &Atom, view: &View<'_>) -> String {
    let request = view.request;
    match atom {
        Atom::Principal(_) | Atom::Namespace(_) | Atom::ServiceAccount { .. } | Atom::TrustDomain(_) => {
            or(view.peer().join(", "), "no verified identity")
        }
        Atom::SourceIp(_) => canonical(request.source_ip).to_string(),
        Atom::RemoteIp(_) => canonical(request.remote_ip).to_string(),
        Atom::DestinationIp(_) => canonical(request.destination_ip).to_string(),
        Atom::RequestPrincipal(_) => {
            let part = |name| view.claim([name]).and_then(Value::as_str).unwrap_or_default();
            if view.claims().is_some() { format!("{}/{}", part("iss"), part("sub")) } else { no_token() }
        }
        Atom::Audience(_) => claim(view, &["aud"]),
        Atom::Presenter(_) => claim(view, &["azp"]),
        Atom::Claim { path, .. } => claim(view, &path.iter().map(|name| &**name).collect::<Vec<_>>()),
        Atom::Header { name, .. } => {
            let values = view.header(name);
            match (values.is_empty(), SECRET.contains(&&**name)) {
                (true, _) => "absent".to_owned(),
                (false, true) => NOT_SHOWN.to_owned(),
                // A query can hold a token.
                (false, false) if &**name == ":path" => view.path().to_owned(),
                (false, false) => values.join(", "),
            }
        }
        Atom::Host(_) => or(request.host.clone(), "none"),
        Atom::Method(_) => or(request.method.clone(), "none"),
        Atom::Path(_) => or(view.path().to_owned(), "none"),
        Atom::Port(_) => request.destination_port.to_string(),
        Atom::Sni(_) => or(request.sni.clone(), "none"),
        Atom::Metadata { filter, key, .. } => {
            view.metadata(filter, key).map_or_else(|| "absent".to_owned(), ToString::to_string)
        }
    }
}

fn claim(view: &View<'_>, path: &[&str]) -> String {
    match (view.claims(), view.claim(path.iter().copied())) {
        (None, _) => no_token(),
        (Some(_), None) => "no such claim".to_owned(),
        (Some(_), Some(Value::String(text))) => text.clone(),
        (Some(_), Some(other)) => other.to_string(),
    }
}

fn no_token() -> String {
    "no verified token".to_owned()
}

fn or(value: String, absent: &str) -> String {
    if value.is_empty() { absent.to_owned() } else { value }
}
