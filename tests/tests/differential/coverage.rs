//! What was compared, and that nothing was left out.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use policy::matcher::{Atom, PathMatch, RequestPrincipal, StringMatch, TrustDomainMatch};
use policy::{Clause, EffectivePolicy};

use super::bed::Judged;
use super::case::{Case, Outcome};

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

/// What else a case may have in force, with its fewest decisions per 20,000 for HTTP and for TCP, each with both verdicts.
/// Zero where there is no such thing.
const SETTINGS: &[(&str, [usize; 2])] = &[
    ("inlined delivery", [1000, 300]),
    ("delivery by extension configs", [1000, 300]),
    ("normalization NONE", [500, 0]),
    ("normalization BASE", [500, 0]),
    ("normalization MERGE_SLASHES", [500, 0]),
    ("normalization DECODE_AND_MERGE_SLASHES", [500, 0]),
    ("trust domain aliases", [500, 200]),
    ("action ALLOW", [1000, 300]),
    ("action DENY", [1000, 300]),
    ("action AUDIT", [500, 200]),
    ("action CUSTOM, the authorizer agrees", [100, 30]),
    ("action CUSTOM, the authorizer refuses", [100, 30]),
    ("action CUSTOM, without provider", [100, 30]),
    ("dry run of ALLOW", [200, 60]),
    ("dry run of DENY", [200, 60]),
    ("mTLS STRICT", [500, 200]),
    ("mTLS PERMISSIVE", [500, 200]),
    ("mTLS DISABLE", [300, 80]),
    ("mTLS of single ports", [300, 80]),
    ("tokens", [1000, 0]),
    ("tokens required", [30, 0]),
    ("tokens kept", [300, 0]),
    ("tokens for an audience", [300, 0]),
    ("tokens elsewhere", [300, 0]),
];

/// The names in [`SETTINGS`] that are true of a case.
pub(crate) fn settings(case: &Case, policy: &EffectivePolicy) -> BTreeSet<String> {
    let EffectivePolicy { mtls, jwt, custom, audit, deny, allow, drain: _ } = policy;
    let mut all = BTreeSet::from([
        if case.mesh.ecds { "delivery by extension configs" } else { "inlined delivery" }.to_owned(),
        format!("normalization {}", case.mesh.normalization),
        format!("mTLS {:?}", mtls.mode).to_uppercase().replace("MTLS", "mTLS"),
    ]);
    let mut add = |holds: bool, name: &str| {
        if holds {
            all.insert(name.to_owned());
        }
    };
    let asked = |name: &str| custom.get(name).is_some_and(|rules| rules.enforced.is_some());
    add(case.mesh.aliases.len() > 1, "trust domain aliases");
    add(allow.enforced.is_some(), "action ALLOW");
    add(deny.enforced.is_some(), "action DENY");
    add(audit.enforced.is_some(), "action AUDIT");
    add(allow.shadow.is_some(), "dry run of ALLOW");
    add(deny.shadow.is_some(), "dry run of DENY");
    add(asked("yes"), "action CUSTOM, the authorizer agrees");
    add(asked("no"), "action CUSTOM, the authorizer refuses");
    let provider = |policy: &serde_json::Value| policy["spec"]["provider"]["name"] == "nobody";
    add(case.policies.iter().any(provider), "action CUSTOM, without provider");
    add(!mtls.ports.is_empty(), "mTLS of single ports");
    add(!jwt.is_empty(), "tokens");
    add(jwt.iter().any(|rule| rule.presence == policy::Presence::Required), "tokens required");
    add(jwt.iter().any(|rule| rule.forward_original_token), "tokens kept");
    add(jwt.iter().any(|rule| !rule.audiences.is_empty()), "tokens for an audience");
    let elsewhere = |rule: &policy::JwtRule| {
        !(rule.from_headers.is_empty() && rule.from_params.is_empty() && rule.from_cookies.is_empty())
    };
    add(jwt.iter().any(elsewhere), "tokens elsewhere");
    all
}

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
        let Judged { which: _, focus, features, tcp, mutual, http2, outcome } = judged;
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
        for (name, shares) in SETTINGS {
            for (tcp, share) in [false, true].into_iter().zip(shares) {
                let [refused, admitted] =
                    self.features.get(&((*name).to_owned(), tcp)).copied().unwrap_or_default();
                let enough = refused + admitted >= share * self.decisions / 20_000;
                if *share > 0 && (!enough || refused == 0 || admitted == 0) {
                    missing.push(format!("{name}, tcp {tcp}: {refused} refused, {admitted} admitted"));
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
