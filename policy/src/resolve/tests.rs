use std::collections::BTreeMap;
use std::sync::Arc;

use super::*;
use crate::matcher::{Atom, PathMatch, StringMatch};
use crate::model::*;
use crate::set::Scope;

const ROOT: &str = "istio-system";

fn meta(namespace: &str, name: &str, created: i64) -> Meta {
    Meta { created, ..Meta::new(ObjectName::new(namespace, name)) }
}

fn labels(pairs: &[(&str, &str)]) -> BTreeMap<String, String> {
    pairs.iter().map(|(k, v)| ((*k).to_owned(), (*v).to_owned())).collect()
}

fn key(namespace: &str, pairs: &[(&str, &str)]) -> WorkloadKey {
    WorkloadKey { namespace: namespace.into(), labels: Arc::new(labels(pairs)) }
}

fn selector(pairs: &[(&str, &str)]) -> Attachment {
    if pairs.is_empty() { Attachment::Namespace } else { Attachment::Labels(labels(pairs)) }
}

fn pa(
    ns: &str,
    name: &str,
    created: i64,
    sel: &[(&str, &str)],
    mode: Option<MtlsMode>,
) -> PeerAuthentication {
    PeerAuthentication {
        meta: meta(ns, name, created),
        attachment: selector(sel),
        mode,
        ports: BTreeMap::new(),
    }
}

fn ap(ns: &str, name: &str, action: Action, rules: Vec<Rule>) -> AuthorizationPolicy {
    AuthorizationPolicy { meta: meta(ns, name, 0), attachment: Attachment::Namespace, action, rules }
}

fn path_rule(path: &str) -> Rule {
    let paths = Match { any: vec![Atom::Path(PathMatch::Plain(StringMatch::parse(path)))], none: vec![] };
    Rule { to: vec![Operation { paths, ..Operation::default() }], ..Rule::default() }
}

fn principal_rule(principal: &str) -> Rule {
    let principals = Match { any: vec![Atom::Principal(StringMatch::parse(principal))], none: vec![] };
    Rule { from: vec![Source { principals, ..Source::default() }], ..Rule::default() }
}

#[track_caller]
fn check_mtls(
    policies: &[PeerAuthentication],
    workload: &WorkloadKey,
    mode: MtlsMode,
    ports: &[(u16, MtlsMode)],
) {
    for order in [false, true] {
        let mut set = PolicySet::new(Scope::default());
        let mut policies: Vec<_> = policies.iter().cloned().map(Arc::new).collect();
        if order {
            policies.reverse();
        }
        policies.into_iter().for_each(|p| set.put_peer(p));
        let mtls = resolve(&set, workload).mtls;
        assert_eq!((mtls.mode, mtls.ports), (mode, ports.iter().copied().collect()));
    }
}

#[test]
fn peer_authentication_precedence() {
    use MtlsMode::{Disable, Permissive, Strict};
    let app = key("foo", &[("app", "a")]);
    check_mtls(&[], &app, Permissive, &[]);
    check_mtls(&[pa(ROOT, "mesh", 0, &[], Some(Strict))], &app, Strict, &[]);
    check_mtls(&[pa(ROOT, "mesh", 0, &[], None)], &app, Permissive, &[]);
    let mesh = pa(ROOT, "mesh", 0, &[], Some(Strict));
    check_mtls(&[mesh.clone(), pa("foo", "ns", 0, &[], Some(Disable))], &app, Disable, &[]);
    check_mtls(&[mesh.clone(), pa("foo", "ns", 0, &[], None)], &app, Strict, &[]);
    check_mtls(&[mesh.clone(), pa("bar", "ns", 0, &[], Some(Disable))], &app, Strict, &[]);
    check_mtls(&[mesh.clone(), pa("foo", "w", 0, &[("app", "a")], Some(Permissive))], &app, Permissive, &[]);
    check_mtls(&[mesh, pa("foo", "w", 0, &[("app", "b")], Some(Permissive))], &app, Strict, &[]);
    // Oldest wins in each scope, ties by name.
    let (old, new) = (pa("foo", "z", 1, &[], Some(Disable)), pa("foo", "a", 2, &[], Some(Strict)));
    check_mtls(&[old, new], &app, Disable, &[]);
    let (a, b) = (pa("foo", "a", 1, &[], Some(Disable)), pa("foo", "b", 1, &[], Some(Strict)));
    check_mtls(&[a, b], &app, Disable, &[]);
    // A selector in the root namespace has no effect, not even there.
    check_mtls(&[pa(ROOT, "w", 0, &[("app", "a")], Some(Strict))], &app, Permissive, &[]);
    check_mtls(
        &[pa(ROOT, "w", 0, &[("app", "a")], Some(Strict))],
        &key(ROOT, &[("app", "a")]),
        Permissive,
        &[],
    );
}

#[test]
fn port_level_modes_count_only_on_the_winning_workload_policy() {
    use MtlsMode::{Disable, Permissive, Strict};
    let app = key("foo", &[("app", "a")]);
    let with = |mut p: PeerAuthentication, ports: &[(u16, Option<MtlsMode>)]| {
        p.ports = ports.iter().copied().collect();
        p
    };
    let mesh = pa(ROOT, "mesh", 0, &[], Some(Strict));
    let own = with(pa("foo", "w", 1, &[("app", "a")], None), &[(80, Some(Disable)), (81, None)]);
    check_mtls(&[mesh.clone(), own.clone()], &app, Strict, &[(80, Disable), (81, Strict)]);
    let younger = with(pa("foo", "v", 2, &[("app", "a")], Some(Permissive)), &[(82, Some(Disable))]);
    check_mtls(&[mesh.clone(), own, younger], &app, Strict, &[(80, Disable), (81, Strict)]);
    let wide = with(pa("foo", "ns", 0, &[], None), &[(80, Some(Disable))]);
    check_mtls(&[mesh, wide], &app, Strict, &[]);
}

fn names(rules: &ActionRules) -> Option<Vec<String>> {
    rules.enforced.as_ref().map(|rules| rules.iter().map(crate::EffectiveRule::name).collect())
}

#[test]
fn authorization_policies_of_both_namespaces_combine() {
    let mut set = PolicySet::new(Scope::default());
    set.put_authorization(Arc::new(ap("foo", "own", Action::Allow, vec![path_rule("/a")])));
    set.put_authorization(Arc::new(ap(ROOT, "mesh", Action::Allow, vec![])));
    set.put_authorization(Arc::new(ap("bar", "other", Action::Deny, vec![Rule::default()])));
    let mut targets = ap("foo", "gateway", Action::Deny, vec![Rule::default()]);
    targets.attachment = Attachment::Targets(vec![]);
    set.put_authorization(Arc::new(targets));
    let effective = resolve(&set, &key("foo", &[]));
    let expected = ["ns[istio-system]-policy[mesh]-rule[0]", "ns[foo]-policy[own]-rule[0]"];
    assert_eq!(names(&effective.allow).expect("attached"), expected);
    assert_eq!(effective.deny, ActionRules::default());
    let never = &effective.allow.enforced.as_ref().expect("attached")[0];
    assert!(never.permissions.is_empty() && never.principals.is_empty());
}

#[test]
fn unknown_provider_denies_what_it_matches_and_dry_run_custom_does_nothing() {
    let mut set = PolicySet::new(Scope { providers: vec!["ext".into()], ..Scope::default() });
    let custom = |name, provider: &str| {
        ap("foo", name, Action::Custom { provider: provider.into() }, vec![path_rule("/a")])
    };
    set.put_authorization(Arc::new(custom("known", "ext")));
    set.put_authorization(Arc::new(custom("unknown", "nope")));
    let mut dry = custom("dry", "ext");
    dry.meta.dry_run = true;
    set.put_authorization(Arc::new(dry));
    let effective = resolve(&set, &key("foo", &[]));
    assert_eq!(effective.custom.len(), 1);
    assert_eq!(names(&effective.custom["ext"]).expect("one"), ["ns[foo]-policy[known]-rule[0]"]);
    assert_eq!(names(&effective.deny).expect("one"), ["ns[foo]-policy[unknown]-rule[0]"]);
}

#[test]
fn dry_run_is_shadow_only() {
    let mut set = PolicySet::default();
    let mut dry = ap("foo", "dry", Action::Allow, vec![path_rule("/a")]);
    dry.meta.dry_run = true;
    set.put_authorization(Arc::new(dry));
    let effective = resolve(&set, &key("foo", &[]));
    assert_eq!(effective.allow.enforced, None);
    assert_eq!(effective.allow.shadow.map(|s| s.len()), Some(1));
}

#[test]
fn every_condition_joins_every_branch_of_its_side() {
    let mut rule = path_rule("/a");
    rule.to.push(rule.to[0].clone());
    let condition = |key: &str, side, atom| Condition {
        key: key.into(),
        side,
        values: Match { any: vec![atom], none: vec![] },
    };
    rule.when = vec![
        condition("destination.port", Side::Permission, Atom::Port(80)),
        condition(
            "source.principal",
            Side::Principal,
            Atom::Principal(StringMatch::parse("cluster.local/ns/a/sa/b")),
        ),
    ];
    let mut set = PolicySet::default();
    set.put_authorization(Arc::new(ap("foo", "p", Action::Deny, vec![rule])));
    let effective = resolve(&set, &key("foo", &[]));
    let rule = &effective.deny.enforced.as_ref().expect("attached")[0];
    let fields = |branches: &[Vec<crate::Clause>]| -> Vec<Vec<String>> {
        branches.iter().map(|b| b.iter().map(|c| c.field.to_string()).collect()).collect()
    };
    assert_eq!(fields(&rule.permissions), [["paths", "destination.port"], ["paths", "destination.port"]]);
    assert_eq!(fields(&rule.principals), [["source.principal"]]);
}

#[test]
fn tcp_narrows_allow_and_widens_deny() {
    let mut set = PolicySet::default();
    let mut both = path_rule("/a");
    both.to[0].ports = Match { any: vec![Atom::Port(80)], none: vec![] };
    let rules = vec![both, principal_rule("cluster.local/ns/a/sa/b")];
    set.put_authorization(Arc::new(ap("foo", "allow", Action::Allow, rules.clone())));
    set.put_authorization(Arc::new(ap("foo", "deny", Action::Deny, rules)));
    let tcp = resolve(&set, &key("foo", &[])).tcp();
    assert_eq!(names(&tcp.allow).expect("attached"), ["ns[foo]-policy[allow]-rule[1]"]);
    let deny = tcp.deny.enforced.expect("attached");
    assert_eq!(deny.len(), 2);
    assert_eq!(deny[0].permissions[0].len(), 1, "the path is gone, the port stays");
    set.put_authorization(Arc::new(ap("foo", "allow", Action::Allow, vec![path_rule("/a")])));
    assert_eq!(resolve(&set, &key("foo", &[])).tcp().allow.enforced, Some(vec![]), "still denies everything");
}

#[test]
fn jwt_rules_are_the_union_sorted_by_issuer() {
    let rule = |issuer: &str| JwtRule {
        issuer: issuer.to_owned(),
        audiences: vec![],
        jwks: Jwks::RefuseAll,
        from_headers: vec![],
        from_params: vec![],
        from_cookies: vec![],
        output_payload_to_header: None,
        forward_original_token: false,
        output_claim_to_headers: vec![],
        space_delimited_claims: vec![],
        timeout_ms: 5000,
        presence: Presence::Optional,
    };
    let ra = |ns: &str, name: &str, issuer: &str| RequestAuthentication {
        meta: meta(ns, name, 0),
        attachment: Attachment::Namespace,
        rules: vec![rule(issuer)],
    };
    let mut set = PolicySet::default();
    set.put_request(Arc::new(ra("foo", "a", "z")));
    set.put_request(Arc::new(ra(ROOT, "b", "a")));
    set.put_request(Arc::new(ra("bar", "c", "m")));
    let issuers: Vec<_> = resolve(&set, &key("foo", &[])).jwt.into_iter().map(|r| r.issuer).collect();
    assert_eq!(issuers, ["a", "z"]);
}

#[test]
fn a_change_of_a_draining_policy_changes_the_digest_only() {
    let with = |rules| {
        let mut set = PolicySet::default();
        let mut policy = ap("foo", "p", Action::Allow, rules);
        policy.meta.drain_on_revoke = true;
        set.put_authorization(Arc::new(policy));
        resolve(&set, &key("foo", &[])).drain
    };
    assert_eq!(with(vec![path_rule("/a")]), with(vec![path_rule("/a")]));
    assert_ne!(with(vec![path_rule("/a")]), with(vec![path_rule("/b")]));
}

#[test]
fn within_a_namespace_the_oldest_comes_first() {
    let mut set = PolicySet::default();
    for (ns, name, created) in [("foo", "a", 5), ("foo", "b", 3), ("foo", "c", 3), (ROOT, "z", 9)] {
        let mut policy = ap(ns, name, Action::Deny, vec![Rule::default()]);
        policy.meta.created = created;
        set.put_authorization(Arc::new(policy));
    }
    let order = |namespace: &str| -> Vec<String> {
        let deny = resolve(&set, &key(namespace, &[])).deny.enforced.unwrap();
        deny.iter().map(|rule| rule.policy.name.to_string()).collect()
    };
    assert_eq!(order("foo"), ["z", "b", "c", "a"]);
    assert_eq!(order(ROOT), ["z"], "the root namespace is searched once");
}

/// Design decision 5: unreadable means closed, which is a different thing for ALLOW than for the others.
#[test]
fn an_unreadable_rule_allows_nothing_and_denies_no_less() {
    let unreadable = Rule { never: true, ..Rule::default() };
    let branches = |action: Action| {
        let mut set = PolicySet::default();
        let rules = vec![unreadable.clone(), path_rule("/a")];
        set.put_authorization(Arc::new(ap("foo", "p", action.clone(), rules)));
        let effective = resolve(&set, &key("foo", &[]));
        let rules = if action == Action::Allow { effective.allow } else { effective.deny };
        let rules = rules.enforced.unwrap();
        let counts =
            |rule: &crate::EffectiveRule| (rule.index, rule.permissions.len(), rule.principals.len());
        rules.iter().map(counts).collect::<Vec<_>>()
    };
    assert_eq!(branches(Action::Allow), [(0, 0, 0), (1, 1, 1)]);
    assert_eq!(branches(Action::Deny), [(0, 1, 1), (1, 1, 1)]);
    assert_eq!(branches(Action::Custom { provider: "gone".into() }), [(0, 1, 1), (1, 1, 1)]);
}

/// Semantics §4.6, §10.8: aliases reach both polarities and conditions, and never namespaces.
#[test]
fn aliases_are_written_out_everywhere_a_trust_domain_is_named() {
    let scope = Scope { trust_domain_aliases: vec!["old".into()], ..Scope::default() };
    let principal = |td: &str| Atom::Principal(StringMatch::parse(&format!("{td}/ns/a/sa/b")));
    let mut rule = principal_rule("old/ns/a/sa/b");
    rule.from[0].principals.none = vec![principal("cluster.local")];
    rule.from[0].namespaces.any = vec![Atom::Namespace("old".into())];
    let values = Match { any: vec![principal("old"), principal("cluster.local")], none: vec![] };
    rule.when = vec![Condition { key: "source.principal".into(), side: Side::Principal, values }];
    let mut set = PolicySet::new(scope);
    set.put_authorization(Arc::new(ap("foo", "p", Action::Deny, vec![rule])));
    let deny = resolve(&set, &key("foo", &[])).deny.enforced.unwrap();
    let [principals, namespaces, condition] = deny[0].principals[0].as_slice() else { panic!("{deny:?}") };
    let both = [principal("cluster.local"), principal("old")];
    assert_eq!(principals.any, both);
    assert_eq!(principals.none, both);
    assert_eq!(namespaces.any, [Atom::Namespace("old".into())]);
    assert_eq!(condition.any, both, "named twice, written once");
}
