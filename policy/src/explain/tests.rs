use std::collections::BTreeMap;

use proptest::prelude::*;
use serde_json::json;

use super::*;
use crate::effective::{Clause, EffectiveMtls};
use crate::matcher::{Atom, PathMatch, StringMatch};
use crate::model::{
    Action, Attachment, AuthorizationPolicy, Jwks, JwtRule, Meta, MtlsMode, PeerAuthentication, Presence,
};
use crate::set::{PolicySet, Scope, WorkloadKey};

const A: &str = "cluster.local/ns/foo/sa/a";
const B: &str = "cluster.local/ns/foo/sa/b";

fn clause(field: &str, atom: Atom) -> Clause {
    Clause { field: field.into(), any: vec![atom], none: vec![] }
}

fn path(value: &str) -> Clause {
    clause("paths", Atom::Path(PathMatch::Plain(StringMatch::parse(value))))
}

fn method(value: &str) -> Clause {
    clause("methods", Atom::Method(StringMatch::parse(value)))
}

fn from(id: &str) -> Clause {
    clause("principals", Atom::Principal(StringMatch::parse(id)))
}

fn rule(name: &str, index: usize, to: &[Clause], from: &[Clause]) -> EffectiveRule {
    EffectiveRule {
        policy: ObjectName::new("foo", name),
        index,
        permissions: vec![to.to_vec()],
        principals: vec![from.to_vec()],
    }
}

fn enforced(rules: Vec<EffectiveRule>) -> ActionRules {
    ActionRules { enforced: Some(rules), shadow: None }
}

fn shadow(rules: Vec<EffectiveRule>) -> ActionRules {
    ActionRules { enforced: None, shadow: Some(rules) }
}

fn request(method: &str, path: &str, peer: &str) -> Request {
    let peer = if peer.is_empty() { vec![] } else { vec![format!("spiffe://{peer}")] };
    Request { method: method.to_owned(), path: path.to_owned(), peer, ..Request::http(8080) }
}

/// Compares the whole of what is serialised but the stages.
#[track_caller]
fn check(policy: &EffectivePolicy, request: &Request, expected: &serde_json::Value) {
    let explanation = explain(policy, request);
    assert_eq!(explanation.verdict, evaluate_with_nearest(policy, request).verdict);
    let mut value = serde_json::to_value(&explanation).unwrap();
    value.as_object_mut().unwrap().remove("steps");
    assert_eq!(&value, expected, "{value:#}");
}

fn by(name: &str, rule: usize) -> serde_json::Value {
    json!({"kind": "AuthorizationPolicy", "namespace": "foo", "name": name, "rule": rule})
}

#[test]
fn the_rule_that_decides_is_named_by_policy_and_index() {
    let policy = EffectivePolicy {
        deny: enforced(vec![rule("d", 0, &[path("/x")], &[]), rule("d", 1, &[path("/admin*")], &[])]),
        allow: enforced(vec![rule("a", 0, &[method("GET")], &[from(A)])]),
        ..EffectivePolicy::default()
    };
    check(
        &policy,
        &request("GET", "/admin/1", A),
        &json!({"verdict": "deny", "stage": "deny", "status": 403, "by": by("d", 1),
            "reason": "denied by ns[foo]-policy[d]-rule[1]"}),
    );
    check(
        &policy,
        &request("GET", "/", A),
        &json!({"verdict": "allow", "stage": "allow", "by": by("a", 0),
            "reason": "allowed by ns[foo]-policy[a]-rule[0]"}),
    );
    assert_eq!(explain(&policy, &request("GET", "/", A)).by.unwrap().to_string(), "foo/a[0]");
}

#[test]
fn a_default_deny_names_the_closest_rule_and_every_field_that_differs() {
    let policy = EffectivePolicy {
        allow: enforced(vec![
            rule("far", 0, &[method("PUT"), path("/z")], &[from(B)]),
            rule("near", 2, &[method("POST"), path("/orders/*")], &[from(A)]),
        ]),
        ..EffectivePolicy::default()
    };
    check(
        &policy,
        &request("GET", "/orders/1", ""),
        &json!({"verdict": "deny", "stage": "default", "status": 403,
        "reason": "no ALLOW rule matches; closest is ns[foo]-policy[near]-rule[2]: methods wanted POST, had GET; \
            principals wanted cluster.local/ns/foo/sa/a, had no verified identity",
        "nearest": {"rule": by("near", 2), "differs": [
            {"field": "methods", "wanted": "POST", "had": "GET"},
            {"field": "principals", "wanted": A, "had": "no verified identity"},
        ]}}),
    );
}

#[test]
fn without_an_allow_policy_what_nothing_denies_passes() {
    check(
        &EffectivePolicy::default(),
        &request("GET", "/", ""),
        &json!({"verdict": "allow", "stage": "default", "reason": "allowed: no ALLOW policy"}),
    );
}

#[test]
fn strict_closes_plaintext_and_names_the_policy() {
    let mtls = EffectiveMtls {
        mode: MtlsMode::Strict,
        set_by: Some(ObjectName::new("foo", "strict")),
        ..EffectiveMtls::default()
    };
    check(
        &EffectivePolicy { mtls, ..EffectivePolicy::default() },
        &request("GET", "/", ""),
        &json!({"verdict": "deny", "stage": "mtls",
            "by": {"kind": "PeerAuthentication", "namespace": "foo", "name": "strict"},
            "reason": "denied by ns[foo]-peerauthentication[strict]-strict: no verified identity"}),
    );
}

#[test]
fn a_refused_token_has_its_own_status() {
    let jwt = JwtRule {
        issuer: "login".to_owned(),
        audiences: vec![],
        jwks: Jwks::Remote(None),
        from_headers: vec![],
        from_params: vec![],
        from_cookies: vec![],
        output_payload_to_header: None,
        forward_original_token: false,
        output_claim_to_headers: vec![],
        space_delimited_claims: vec![],
        timeout_ms: 0,
        presence: Presence::Optional,
    };
    let mut asked = request("GET", "/", A);
    asked.claims = json!({"iss": "other"}).as_object().cloned();
    check(
        &EffectivePolicy { jwt: vec![jwt], ..EffectivePolicy::default() },
        &asked,
        &json!({"verdict": "deny", "stage": "jwt", "status": 401,
            "reason": "denied: no RequestAuthentication accepts tokens of \"other\""}),
    );
}

#[test]
fn dry_runs_say_what_each_would_do_and_what_would_change() {
    let policy = EffectivePolicy {
        deny: shadow(vec![
            rule("no-get", 0, &[method("GET")], &[]),
            rule("no-put", 0, &[method("PUT")], &[]),
        ]),
        allow: ActionRules {
            enforced: Some(vec![rule("now", 0, &[], &[from(A)])]),
            shadow: Some(vec![rule("soon", 1, &[path("/b")], &[from(B)])]),
        },
        ..EffectivePolicy::default()
    };
    let dry_run = |request: &Request| serde_json::to_value(explain(&policy, request).dry_run).unwrap();
    assert_eq!(
        dry_run(&request("GET", "/", A)),
        json!({"policies": [
            {"namespace": "foo", "name": "no-get", "action": "DENY", "rule": 0},
            {"namespace": "foo", "name": "no-put", "action": "DENY"},
            {"namespace": "foo", "name": "soon", "action": "ALLOW"},
        ], "ifEnforced": {"verdict": "deny", "changes": true, "by": by("no-get", 0),
            "reason": "denied by ns[foo]-policy[no-get]-rule[0]"}})
    );
    let soon = dry_run(&request("POST", "/b", B));
    assert_eq!(soon["policies"][2]["rule"], 1);
    assert_eq!(
        (&soon["ifEnforced"]["verdict"], &soon["ifEnforced"]["changes"]),
        (&json!("allow"), &json!(true))
    );
    assert_eq!(dry_run(&request("POST", "/", A))["ifEnforced"]["changes"], false);
}

#[test]
fn stages_are_told_in_order() {
    let policy = EffectivePolicy {
        custom: BTreeMap::from([("ext".into(), enforced(vec![rule("c", 0, &[path("/x")], &[])]))]),
        deny: enforced(vec![rule("d", 0, &[path("/admin")], &[])]),
        allow: enforced(vec![rule("a", 0, &[], &[])]),
        ..EffectivePolicy::default()
    };
    let told = |request: &Request| {
        let steps = explain(&policy, request).steps;
        steps.iter().map(|s| format!("{} {:?}: {}", s.stage, s.outcome, s.detail)).collect::<Vec<_>>()
    };
    assert_eq!(
        told(&request("GET", "/admin", A)),
        [
            "mtls Passed: PERMISSIVE (mesh default), the peer has a verified identity",
            "custom Passed: no rule matches: nobody is asked",
            "jwt Passed: no RequestAuthentication: no token is looked at",
            "audit Passed: no AUDIT policy",
            "deny Decided: ns[foo]-policy[d]-rule[0] matches",
            "allow NotReached: not reached",
            "default NotReached: not reached",
        ]
    );
    assert_eq!(told(&request("GET", "/x", A))[1], "custom Passed: asks ext, taken to agree");
    let tcp = Request { peer: vec![], ..Request::tcp(1) };
    assert_eq!(told(&tcp)[4], "deny Decided: ns[foo]-policy[d]-rule[0] matches", "HTTP fields are dropped");
}

fn peer(namespace: &str, name: &str, created: i64, attachment: Attachment) -> PeerAuthentication {
    let meta = Meta { created, ..Meta::new(ObjectName::new(namespace, name)) };
    PeerAuthentication { meta, attachment, mode: Some(MtlsMode::Strict), ports: BTreeMap::new() }
}

#[test]
fn what_applies_is_listed_with_the_reason() {
    let labels = BTreeMap::from([("app".to_owned(), "x".to_owned())]);
    let mut set = PolicySet::new(Scope::default());
    for policy in [
        peer("foo", "young", 2, Attachment::Namespace),
        peer("foo", "old", 1, Attachment::Namespace),
        peer("foo", "one", 3, Attachment::Labels(labels.clone())),
        peer("istio-system", "mesh", 0, Attachment::Namespace),
        peer("istio-system", "never", 0, Attachment::Labels(labels.clone())),
        peer("bar", "other", 0, Attachment::Namespace),
    ] {
        set.put_peer(policy.into());
    }
    let meta = Meta { dry_run: true, ..Meta::new(ObjectName::new("istio-system", "try")) };
    let attachment = Attachment::Labels(labels.clone());
    set.put_authorization(
        AuthorizationPolicy { meta, attachment, action: Action::Deny, rules: vec![] }.into(),
    );
    let workload = WorkloadKey { namespace: "foo".into(), labels: labels.into() };
    let told = applying(&set, &workload).into_iter().map(|a| {
        let ignored = a.ignored_for.map_or(String::new(), |name| format!(", ignored for {name}"));
        let dry = if a.dry_run { ", dry run" } else { "" };
        format!("{}/{}: {}{dry}{ignored}", a.namespace, a.name, a.reach)
    });
    assert_eq!(
        told.collect::<Vec<_>>(),
        [
            "istio-system/mesh: whole mesh",
            "foo/old: whole namespace",
            "foo/young: whole namespace, ignored for old",
            "foo/one: selector",
            "istio-system/try: selector, from the root namespace, dry run",
        ]
    );
}

#[test]
fn a_refused_handshake_is_a_denial_without_a_policy() {
    let refused = Explanation::refused_handshake("trust domain evil.example");
    assert_eq!((refused.verdict, refused.stage, refused.by), (Verdict::Deny, Stage::Handshake, None));
}

fn any_rules() -> impl Strategy<Value = ActionRules> {
    let one = prop_oneof![
        Just(vec![]),
        Just(vec![path("/a*")]),
        Just(vec![method("GET")]),
        Just(vec![method("POST"), path("/b")]),
    ];
    let who = prop_oneof![Just(vec![]), Just(vec![from(A)]), Just(vec![from(B)])];
    let rule =
        (0..3_usize, one, who).prop_map(|(index, to, from)| rule(["x", "y", "z"][index], index, &to, &from));
    let rules = prop::option::of(prop::collection::vec(rule, 0..3));
    (rules.clone(), rules).prop_map(|(enforced, shadow)| ActionRules { enforced, shadow })
}

proptest! {
    /// The law of this module.
    #[test]
    fn the_verdict_is_that_of_evaluate(
        deny in any_rules(),
        allow in any_rules(),
        custom in any_rules(),
        mode in prop_oneof![Just(MtlsMode::Disable), Just(MtlsMode::Permissive), Just(MtlsMode::Strict)],
        method in prop_oneof![Just("GET"), Just("POST")],
        path in prop_oneof![Just("/a1"), Just("/b"), Just("/c")],
        peer in prop_oneof![Just(""), Just(A), Just(B)],
        tcp: bool,
    ) {
        let mtls = EffectiveMtls { mode, ..EffectiveMtls::default() };
        let custom = BTreeMap::from([("ext".into(), custom)]);
        let policy = EffectivePolicy { mtls, custom, deny, allow, ..EffectivePolicy::default() };
        let mut asked = request(method, path, peer);
        if tcp {
            asked.protocol = Protocol::Tcp;
        }
        let (decision, explanation) = (evaluate_with_nearest(&policy, &asked), explain(&policy, &asked));
        prop_assert_eq!(explanation.verdict, decision.verdict);
        prop_assert_eq!(explanation.reason, decision.to_string());
        let decided: Vec<_> = explanation.steps.iter().filter(|s| s.outcome == Outcome::Decided).collect();
        prop_assert_eq!(decided.len(), 1);
        prop_assert_eq!(decided[0].stage, explanation.stage);
        let matched = matches!(decision.deciding, Deciding::Deny(_) | Deciding::Allow(_));
        prop_assert_eq!(explanation.by.is_some_and(|by| by.rule.is_some()), matched);
    }
}
