//! Every kind of atom, with values that try to break out of what they are put into, and policies made of them.
//! For tests here and (by path) for those with a real Envoy.

use policy::effective::{ActionRules, Clause, EffectivePolicy, EffectiveRule};
use policy::matcher::{Atom, PathMatch, RequestPrincipal, StringMatch, TrustDomainMatch};
use policy::model::{ObjectName, Side};
use proptest::prelude::*;

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

/// The side on which the API has this attribute.
pub(crate) fn side(atom: &Atom) -> Side {
    match atom {
        Atom::Host(_)
        | Atom::Method(_)
        | Atom::Path(_)
        | Atom::Port(_)
        | Atom::DestinationIp(_)
        | Atom::Sni(_)
        | Atom::Metadata { .. } => Side::Permission,
        Atom::Principal(_)
        | Atom::Namespace(_)
        | Atom::ServiceAccount { .. }
        | Atom::TrustDomain(_)
        | Atom::SourceIp(_)
        | Atom::RemoteIp(_)
        | Atom::RequestPrincipal(_)
        | Atom::Audience(_)
        | Atom::Presenter(_)
        | Atom::Claim { .. }
        | Atom::Header { .. } => Side::Principal,
    }
}

fn clause(side: Side, http: bool) -> impl Strategy<Value = Clause> {
    let atoms: Vec<Atom> =
        atoms().into_iter().filter(|a| self::side(a) == side && (http || !a.http_only())).collect();
    let some = || prop::collection::vec(prop::sample::select(atoms.clone()), 0..3);
    (some(), some()).prop_map(|(any, none)| Clause { field: "".into(), any, none })
}

fn branches(side: Side, http: bool) -> impl Strategy<Value = Vec<Vec<Clause>>> {
    prop::collection::vec(prop::collection::vec(clause(side, http), 0..3), 0..3)
}

fn rules(http: bool) -> impl Strategy<Value = Option<Vec<EffectiveRule>>> {
    let rule = (0..3usize, 0..3usize, branches(Side::Permission, http), branches(Side::Principal, http));
    let rule = rule.prop_map(|(policy, index, permissions, principals)| EffectiveRule {
        policy: ObjectName::new("foo", format!("p{policy}")),
        index,
        permissions,
        principals,
    });
    prop::option::of(prop::collection::vec(rule, 0..4))
}

/// Any rules of every action; without `http`, only of attributes that TCP has as well.
pub(crate) fn policies(http: bool) -> impl Strategy<Value = EffectivePolicy> {
    let action =
        move || (rules(http), rules(http)).prop_map(|(enforced, shadow)| ActionRules { enforced, shadow });
    (action(), action(), action(), action()).prop_map(|(custom, audit, deny, allow)| EffectivePolicy {
        custom: [("ext".into(), custom)].into(),
        audit,
        deny,
        allow,
        ..EffectivePolicy::default()
    })
}

/// Every atom in a rule of its own, denied and allowed.
pub(crate) fn everything() -> EffectivePolicy {
    let rule = |(index, atom): (usize, Atom)| {
        let side = side(&atom);
        let clause = vec![vec![Clause { field: "".into(), any: vec![atom.clone()], none: vec![atom] }]];
        let (permissions, principals) = match side {
            Side::Permission => (clause, vec![vec![]]),
            Side::Principal => (vec![vec![]], clause),
        };
        EffectiveRule { policy: ObjectName::new("foo", "all"), index, permissions, principals }
    };
    let rules: Vec<EffectiveRule> = atoms().into_iter().enumerate().map(rule).collect();
    let both = ActionRules { enforced: Some(rules.clone()), shadow: Some(rules) };
    EffectivePolicy {
        custom: [("ext".into(), both.clone()), ("missing".into(), both.clone())].into(),
        audit: both.clone(),
        deny: both.clone(),
        allow: both,
        ..EffectivePolicy::default()
    }
}
