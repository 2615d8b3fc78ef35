//! Every kind of atom, with values that try to break out of what they are put into.

use policy::matcher::{Atom, PathMatch, RequestPrincipal, StringMatch, TrustDomainMatch};

const TEXTS: [&str; 12] =
    ["a", "a*", "*a", "*", "**", "a.b", "[x", "a(b", "\\Q", "*.svc", "cluster.local/ns/a/sa/b", "é*"];

pub(crate) fn atoms() -> Vec<Atom> {
    let mut atoms = vec![
        Atom::SourceIp("10.0.0.0/8".parse().unwrap()),
        Atom::RemoteIp("fd00::/8".parse().unwrap()),
        Atom::DestinationIp("10.0.0.1/32".parse().unwrap()),
        Atom::Port(8080),
        Atom::TrustDomain(TrustDomainMatch::Any),
        Atom::TrustDomain(TrustDomainMatch::Exact("a.b".into())),
        Atom::TrustDomain(TrustDomainMatch::Wildcard("*.b".into())),
        Atom::ServiceAccount { namespace: "a.b".into(), name: "c(d".into() },
        Atom::Path(PathMatch::Template("/a/{*}/b/{**}".into())),
        Atom::RequestPrincipal(RequestPrincipal { issuer: None, subject: None }),
    ];
    for text in TEXTS {
        let value = || StringMatch::parse(text);
        let bounded = |value: StringMatch| (value != StringMatch::Present).then_some(value);
        atoms.extend([
            Atom::Principal(value()),
            Atom::Namespace(text.into()),
            Atom::RequestPrincipal(RequestPrincipal { issuer: bounded(value()), subject: bounded(value()) }),
            Atom::Audience(value()),
            Atom::Presenter(value()),
            Atom::Claim { path: vec!["a".into(), text.into()], value: value() },
            Atom::Header { name: "x-a".into(), value: value() },
            Atom::Host(value()),
            Atom::Method(value()),
            Atom::Path(PathMatch::Plain(value())),
            Atom::Sni(value()),
            Atom::Metadata { filter: "envoy.filters.x".into(), key: "k".into(), value: value(), list: true },
            Atom::Metadata { filter: "envoy.filters.x".into(), key: "k".into(), value: value(), list: false },
        ]);
    }
    atoms
}
