//! What was compared, and that nothing was left out.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use policy::matcher::{Atom, PathMatch, RequestPrincipal, StringMatch, TrustDomainMatch};
use policy::{Clause, EffectivePolicy};

use super::bed::Judged;
use super::case::Outcome;

/// Fewest decisions with a row × operator × polarity in force, per 20,000, for HTTP and for TCP: a TCP connection has
/// fewer sides, so there are fewer different ones.
const SHARE: [usize; 2] = [80, 20];

/// Rows that a TCP chain cannot express: an ALLOW rule with one is dropped, so there is often but one verdict.
const HTTP_ONLY: &[&str] = &[
    "request principal",
    "audience",
    "presenter",
    "claim",
    "nested claim",
    "header",
    "host",
    "method",
    "path",
];

/// Every kind of atom with every operator it has.
const FEATURES: &[(&str, &[&str])] = &[
    ("principal", &["exact", "prefix", "suffix", "present"]),
    ("namespace", &["exact", "glob"]),
    ("service account", &["exact"]),
    ("trust domain", &["exact", "wildcard", "present"]),
    ("source ip", &["address", "block"]),
    ("remote ip", &["address", "block"]),
    ("request principal", &["exact", "prefix", "suffix", "present", "subject only", "issuer only"]),
    ("audience", &["exact", "prefix", "suffix", "present"]),
    ("presenter", &["exact", "prefix", "suffix", "present"]),
    ("claim", &["exact", "prefix", "suffix", "present"]),
    ("nested claim", &["exact", "prefix", "suffix", "present"]),
    ("header", &["exact", "prefix", "suffix", "present"]),
    ("host", &["exact", "prefix", "suffix", "present"]),
    ("method", &["exact", "prefix", "suffix", "present"]),
    ("path", &["exact", "prefix", "suffix", "present", "template", "deep template"]),
    ("port", &["exact"]),
    ("destination ip", &["address", "block"]),
    ("sni", &["exact", "prefix", "suffix", "present"]),
    ("metadata", &["string", "list"]),
];

#[derive(Default)]
pub(crate) struct Coverage {
    pub(crate) decisions: usize,
    pub(crate) batches: usize,
    outcomes: BTreeMap<Outcome, usize>,
    admitted: usize,
    tcp: usize,
    mutual: usize,
    http2: usize,
    /// Feature and protocol: how often admitted and refused.
    features: BTreeMap<(String, bool), [usize; 2]>,
    /// The same for what a case was made for.
    focus: BTreeMap<(String, bool), [usize; 2]>,
}

impl Coverage {
    pub(crate) fn add(&mut self, judged: &Judged) {
        let Judged { focus, features, tcp, mutual, http2, outcome } = judged;
        self.decisions += 1;
        *self.outcomes.entry(*outcome).or_default() += 1;
        let admitted = matches!(outcome, Outcome::Status(200) | Outcome::Echoed);
        self.admitted += usize::from(admitted);
        self.tcp += usize::from(*tcp);
        self.mutual += usize::from(*mutual);
        self.http2 += usize::from(*http2);
        for feature in features.iter() {
            self.features.entry((feature.clone(), *tcp)).or_default()[usize::from(admitted)] += 1;
        }
        self.focus.entry((focus.clone(), *tcp)).or_default()[usize::from(admitted)] += 1;
    }

    pub(crate) fn summary(&self, taken: Duration) -> String {
        let percent = |n: usize| n * 100 / self.decisions.max(1);
        format!(
            "{} decisions in {:.0} s, {:.0} a second; {} % admitted; {} % TCP, {} % mTLS, {} % HTTP/2; {:?}",
            self.decisions,
            taken.as_secs_f64(),
            self.decisions as f64 / taken.as_secs_f64(),
            percent(self.admitted),
            percent(self.tcp),
            percent(self.mutual),
            percent(self.http2),
            self.outcomes,
        )
    }

    /// # Panics
    /// If something was compared too seldom to mean anything.
    pub(crate) fn check(&self) {
        for outcome in [self.admitted, self.decisions - self.admitted] {
            let percent = outcome * 100 / self.decisions.max(1);
            assert!(percent <= 70, "one verdict is {percent} % of all");
        }
        let mut missing = Vec::new();
        for (row, operators) in FEATURES {
            for (polarity, tcp) in [("", false), ("", true), ("not ", false), ("not ", true)] {
                let share = SHARE[usize::from(tcp)] * self.decisions / 20_000;
                let mut whole = [0, 0];
                for operator in *operators {
                    let name = format!("{polarity}{row} {operator}");
                    let [refused, admitted] =
                        self.features.get(&(name.clone(), tcp)).copied().unwrap_or_default();
                    whole = [whole[0] + refused, whole[1] + admitted];
                    let single = tcp && HTTP_ONLY.contains(row);
                    if refused + admitted < share || (!single && (refused == 0 || admitted == 0)) {
                        missing.push(format!("{name}, tcp {tcp}: {refused} refused, {admitted} admitted"));
                    }
                }
                if whole.contains(&0) {
                    missing.push(format!("{polarity}{row}, tcp {tcp}: {whole:?}"));
                }
            }
        }
        assert!(missing.is_empty(), "too seldom or with one verdict only:\n{}", missing.join("\n"));
    }
}

/// A rule asks for the whole path, query included.
pub(crate) const PATH_HEADER: &str = "header :path";

/// The names in [`FEATURES`] of what the enforced rules ask for.
pub(crate) fn features(policy: &EffectivePolicy) -> BTreeSet<String> {
    let rules = [&policy.allow, &policy.deny].into_iter().chain(policy.custom.values());
    let rules = rules.filter_map(|action| action.enforced.as_ref()).flatten();
    let clauses = rules.flat_map(|rule| rule.permissions.iter().chain(&rule.principals)).flatten();
    let mut all = BTreeSet::new();
    for Clause { field: _, any, none } in clauses {
        all.extend(any.iter().map(feature));
        all.extend(none.iter().map(|atom| format!("not {}", feature(atom))));
        let whole_path = |atom: &Atom| matches!(atom, Atom::Header { name, .. } if **name == *":path");
        if any.iter().chain(none).any(whole_path) {
            all.insert(PATH_HEADER.to_owned());
        }
    }
    all
}

fn operator(value: &StringMatch) -> &'static str {
    match value {
        StringMatch::Exact(_) => "exact",
        StringMatch::Prefix(_) => "prefix",
        StringMatch::Suffix(_) => "suffix",
        StringMatch::Present => "present",
    }
}

fn block(net: &ipnet::IpNet) -> &'static str {
    if net.prefix_len() == net.max_prefix_len() { "address" } else { "block" }
}

fn request_principal(wanted: &RequestPrincipal) -> &'static str {
    match (&wanted.issuer, &wanted.subject) {
        (None, None) => "present",
        (None, Some(StringMatch::Suffix(_))) => "suffix",
        (None, Some(_)) => "subject only",
        (Some(StringMatch::Prefix(_)), None) | (_, Some(StringMatch::Prefix(_))) => "prefix",
        (Some(_), None) => "issuer only",
        (Some(StringMatch::Suffix(_)), Some(_)) => "suffix",
        (Some(_), Some(_)) => "exact",
    }
}

fn feature(atom: &Atom) -> String {
    let (row, operator) = match atom {
        Atom::Principal(value) => ("principal", operator(value)),
        Atom::Namespace(glob) => ("namespace", if glob.contains('*') { "glob" } else { "exact" }),
        Atom::ServiceAccount { .. } => ("service account", "exact"),
        Atom::TrustDomain(TrustDomainMatch::Any) => ("trust domain", "present"),
        Atom::TrustDomain(TrustDomainMatch::Exact(_)) => ("trust domain", "exact"),
        Atom::TrustDomain(TrustDomainMatch::Wildcard(_)) => ("trust domain", "wildcard"),
        Atom::SourceIp(net) => ("source ip", block(net)),
        Atom::RemoteIp(net) => ("remote ip", block(net)),
        Atom::RequestPrincipal(wanted) => ("request principal", request_principal(wanted)),
        Atom::Audience(value) => ("audience", operator(value)),
        Atom::Presenter(value) => ("presenter", operator(value)),
        Atom::Claim { path, value } if path.len() > 1 => ("nested claim", operator(value)),
        Atom::Claim { path: _, value } => ("claim", operator(value)),
        Atom::Header { name: _, value } => ("header", operator(value)),
        Atom::Host(value) => ("host", operator(value)),
        Atom::Method(value) => ("method", operator(value)),
        Atom::Path(PathMatch::Plain(value)) => ("path", operator(value)),
        Atom::Path(PathMatch::Template(text)) => {
            ("path", if text.contains("{**}") { "deep template" } else { "template" })
        }
        Atom::Port(_) => ("port", "exact"),
        Atom::DestinationIp(net) => ("destination ip", block(net)),
        Atom::Sni(value) => ("sni", operator(value)),
        Atom::Metadata { list, .. } => ("metadata", if *list { "list" } else { "string" }),
    };
    format!("{row} {operator}")
}
