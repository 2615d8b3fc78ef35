use std::collections::BTreeMap;

use serde_json::{Value, json};

use super::*;
use crate::matcher::{Atom, PathMatch, StringMatch};
use crate::model::{Jwks, JwtHeader, JwtRule, Presence};

mod telling;

const A: &str = "spiffe://cluster.local/ns/foo/sa/a";
const B: &str = "spiffe://cluster.local/ns/foo/sa/b";

fn clause(field: &str, any: &[Atom], none: &[Atom]) -> Clause {
    Clause { field: field.into(), any: any.to_vec(), none: none.to_vec() }
}

fn principal(id: &str) -> Atom {
    Atom::Principal(StringMatch::parse(id))
}

fn path(value: &str) -> Atom {
    Atom::Path(PathMatch::Plain(StringMatch::parse(value)))
}

fn method(value: &str) -> Atom {
    Atom::Method(StringMatch::parse(value))
}

/// A rule with one alternative on each side.
fn rule(name: &str, index: usize, permission: Vec<Clause>, principal: Vec<Clause>) -> EffectiveRule {
    EffectiveRule {
        policy: ObjectName::new("foo", name),
        index,
        permissions: vec![permission],
        principals: vec![principal],
    }
}

fn by_path(name: &str, value: &str) -> EffectiveRule {
    rule(name, 0, vec![clause("paths", &[path(value)], &[])], vec![])
}

fn by_principal(name: &str, id: &str) -> EffectiveRule {
    rule(name, 0, vec![], vec![clause("principals", &[principal(id)], &[])])
}

fn rules(rules: Vec<EffectiveRule>) -> ActionRules {
    ActionRules { enforced: Some(rules), shadow: None }
}

fn policy(deny: Option<Vec<EffectiveRule>>, allow: Option<Vec<EffectiveRule>>) -> EffectivePolicy {
    EffectivePolicy {
        deny: ActionRules { enforced: deny, shadow: None },
        allow: ActionRules { enforced: allow, shadow: None },
        ..EffectivePolicy::default()
    }
}

fn get(value: &str) -> Request {
    Request { path: value.to_owned(), peer: vec![A.to_owned()], ..Request::http(80) }
}

fn tcp(port: u16, peer: &[&str]) -> Request {
    Request { peer: peer.iter().map(|p| (*p).to_owned()).collect(), ..Request::tcp(port) }
}

#[track_caller]
fn check(policy: &EffectivePolicy, request: &Request, deciding: &Deciding) {
    let decision = evaluate(policy, request);
    assert_eq!(&decision.deciding, deciding);
    let allowed = matches!(deciding, Deciding::Allow(_) | Deciding::NoAllowPolicy);
    assert_eq!(decision.verdict == Verdict::Allow, allowed, "{deciding}");
}

fn allow(name: &str) -> Deciding {
    Deciding::Allow(format!("ns[foo]-policy[{name}]-rule[0]"))
}

fn deny(name: &str) -> Deciding {
    Deciding::Deny(format!("ns[foo]-policy[{name}]-rule[0]"))
}

#[test]
fn the_truth_table() {
    let (a, ad) = (by_path("allow", "/a*"), by_path("deny", "/ad"));
    let never = EffectiveRule::never(ObjectName::new("foo", "never"), 0);
    let anything = rule("any", 0, vec![], vec![]);
    let d = Some(vec![ad]);
    for (deny_rules, allow_rules, request, expected) in [
        (None, None, "/x", Deciding::NoAllowPolicy),
        (d.clone(), None, "/x", Deciding::NoAllowPolicy),
        (d.clone(), None, "/ad", deny("deny")),
        (None, Some(vec![a.clone()]), "/a", allow("allow")),
        (None, Some(vec![a.clone()]), "/x", Deciding::DefaultDeny),
        (d.clone(), Some(vec![a.clone()]), "/ad", deny("deny")),
        (d, Some(vec![a]), "/ab", allow("allow")),
        (None, Some(vec![]), "/x", Deciding::DefaultDeny),
        (None, Some(vec![never.clone()]), "/x", Deciding::DefaultDeny),
        (Some(vec![never.clone()]), None, "/x", Deciding::NoAllowPolicy),
        (None, Some(vec![never, anything.clone()]), "/x", allow("any")),
        (Some(vec![anything]), None, "/x", deny("any")),
    ] {
        check(&policy(deny_rules, allow_rules), &get(request), &expected);
    }
}

#[test]
fn alternatives_are_or_and_clauses_are_and() {
    let mut both = rule("p", 0, vec![clause("methods", &[method("GET"), method("PUT")], &[])], vec![]);
    both.permissions[0].push(clause("paths", &[path("/a*")], &[path("/ab")]));
    both.permissions.push(vec![clause("paths", &[path("/z")], &[])]);
    both.principals = vec![
        vec![clause("principals", &[principal("cluster.local/ns/foo/sa/a")], &[])],
        vec![clause("source.ip", &[Atom::SourceIp("10.0.0.0/8".parse().unwrap())], &[])],
    ];
    let policy = policy(None, Some(vec![both]));
    let request =
        |m: &str, p: &str, peer: &str| Request { method: m.into(), peer: vec![peer.into()], ..get(p) };
    let other = Request { source_ip: "10.1.1.1".parse().unwrap(), ..request("PUT", "/z", B) };
    for (request, expected) in [
        (request("GET", "/a", A), allow("p")),
        (request("PUT", "/ac", A), allow("p")),
        (request("POST", "/a", A), Deciding::DefaultDeny),
        (request("GET", "/ab", A), Deciding::DefaultDeny),
        (request("POST", "/z", A), allow("p")),
        (request("POST", "/z", B), Deciding::DefaultDeny),
        (other, allow("p")),
    ] {
        check(&policy, &request, &expected);
    }
}

#[test]
fn envoy_reports_the_first_rule_by_name() {
    let numbered = |i| rule("p", i, vec![], vec![]);
    let policy = policy(None, Some(vec![numbered(2), numbered(10)]));
    check(&policy, &get("/"), &Deciding::Allow("ns[foo]-policy[p]-rule[10]".into()));
}

#[test]
fn strict_refuses_plaintext_and_disable_sees_no_identity() {
    let set_by = |name: &str| Some(ObjectName::new("foo", name));
    let mtls = EffectiveMtls {
        mode: MtlsMode::Strict,
        ports: BTreeMap::from([(81, MtlsMode::Permissive), (82, MtlsMode::Disable), (83, MtlsMode::Strict)]),
        set_by: set_by("ns"),
        ports_set_by: set_by("ports"),
    };
    let policy = EffectivePolicy {
        mtls: mtls.clone(),
        allow: rules(vec![by_principal("a", "cluster.local/ns/foo/sa/a"), by_path("open", "/open")]),
        ..EffectivePolicy::default()
    };
    let strict = Deciding::Mtls(set_by("ns"));
    assert_eq!(strict.to_string(), "ns[foo]-peerauthentication[ns]-strict");
    for make in [Request::http as fn(u16) -> Request, Request::tcp] {
        let with = |port, peer: &[&str]| Request {
            peer: peer.iter().map(|p| (*p).to_owned()).collect(),
            ..make(port)
        };
        check(&policy, &with(80, &[]), &strict);
        check(&policy, &with(83, &[]), &strict);
        check(&policy, &with(80, &[A]), &allow("a"));
        check(&policy, &with(81, &[]), &Deciding::DefaultDeny);
        check(&policy, &with(81, &[A]), &allow("a"));
        check(&policy, &with(82, &[A]), &Deciding::DefaultDeny);
    }
    let plain = |port| Request { path: "/open".into(), ..Request::http(port) };
    check(&policy, &plain(80), &strict);
    check(&policy, &plain(81), &allow("open"));
    check(&policy, &plain(82), &allow("open"));
    let only = EffectiveMtls { mode: MtlsMode::Permissive, set_by: None, ..mtls };
    check(&EffectivePolicy { mtls: only, ..policy }, &plain(83), &Deciding::Mtls(set_by("ports")));
}

/// Semantics §10.3: what is absent does not match, so its negation does.
#[test]
fn negations_are_met_by_what_is_absent() {
    let header = Atom::Header { name: "x".into(), value: StringMatch::parse("v") };
    let token = Atom::RequestPrincipal(crate::RequestPrincipal { issuer: None, subject: None });
    let sources = [
        principal("cluster.local/ns/foo/sa/a"),
        principal("*"),
        Atom::Namespace("foo".into()),
        Atom::ServiceAccount { namespace: "foo".into(), name: "a".into() },
        Atom::TrustDomain(crate::TrustDomainMatch::Any),
        header,
        token,
    ];
    for atom in sources {
        let not = rule("not", 0, vec![], vec![clause("x", &[], std::slice::from_ref(&atom))]);
        let positive = rule("is", 0, vec![], vec![clause("x", &[atom], &[])]);
        check(&policy(None, Some(vec![not.clone()])), &Request::http(80), &allow("not"));
        check(&policy(Some(vec![not]), None), &Request::http(80), &deny("not"));
        check(&policy(None, Some(vec![positive.clone()])), &Request::http(80), &Deciding::DefaultDeny);
        check(&policy(Some(vec![positive]), None), &Request::http(80), &Deciding::NoAllowPolicy);
    }
}

/// Semantics §4.4, §10.1, §10.2, §10.14.
#[test]
fn tcp_narrows_allow_and_widens_the_others() {
    let port = |p| clause("ports", &[Atom::Port(p)], &[]);
    let get_on_80 = rule("p", 0, vec![clause("methods", &[method("GET")], &[]), port(80)], vec![]);
    check(&policy(Some(vec![get_on_80.clone()]), None), &tcp(80, &[]), &deny("p"));
    check(&policy(Some(vec![get_on_80.clone()]), None), &tcp(81, &[]), &Deciding::NoAllowPolicy);
    check(&policy(None, Some(vec![get_on_80])), &tcp(80, &[A]), &Deciding::DefaultDeny);
    check(&policy(Some(vec![by_path("p", "/a")]), None), &tcp(80, &[]), &deny("p"));
    let not_path = rule("p", 0, vec![clause("paths", &[], &[path("/a")])], vec![]);
    check(&policy(Some(vec![not_path.clone()]), None), &tcp(80, &[]), &deny("p"));
    check(&policy(None, Some(vec![not_path])), &tcp(80, &[]), &Deciding::DefaultDeny);
    let never = EffectiveRule::never(ObjectName::new("foo", "never"), 0);
    check(&policy(Some(vec![never]), None), &tcp(80, &[]), &Deciding::NoAllowPolicy);
    // One alternative with an HTTP field takes the whole ALLOW rule away, the other with it.
    let mut mixed = by_path("p", "/a");
    mixed.permissions.push(vec![port(80)]);
    check(&policy(None, Some(vec![mixed])), &tcp(80, &[A]), &Deciding::DefaultDeny);
    let by_a = by_principal("a", "cluster.local/ns/foo/sa/a");
    check(&policy(None, Some(vec![by_path("p", "/a"), by_a])), &tcp(80, &[A]), &allow("a"));
    let custom = BTreeMap::from([("ext".into(), rules(vec![by_path("p", "/a")]))]);
    let custom = EffectivePolicy { custom, ..EffectivePolicy::default() };
    assert_eq!(evaluate(&custom, &tcp(80, &[])).consulted, ["ext".into()]);
    assert_eq!(evaluate(&custom, &get("/b")).consulted, [] as [Arc<str>; 0]);
}

#[test]
fn audit_custom_and_dry_run_do_not_decide() {
    let mut policy = policy(None, Some(vec![by_path("a", "/a*")]));
    policy.audit = rules(vec![by_path("other", "/a*"), by_path("audit", "/ab"), by_path("no", "/x")]);
    policy.custom = BTreeMap::from([
        ("x".into(), rules(vec![by_path("c", "/ab")])),
        ("y".into(), rules(vec![by_path("c", "/zz")])),
    ]);
    policy.deny.shadow = Some(vec![by_path("dry", "/ab")]);
    let decision = evaluate(&policy, &get("/ab"));
    assert_eq!((decision.verdict, &decision.deciding), (Verdict::Allow, &allow("a")));
    assert_eq!(decision.audited, ["ns[foo]-policy[audit]-rule[0]", "ns[foo]-policy[other]-rule[0]"]);
    assert_eq!(decision.consulted, ["x".into()]);
    let rule = Some("ns[foo]-policy[dry]-rule[0]".to_owned());
    assert_eq!(decision.dry_run, Some(DryRun { verdict: Verdict::Deny, rule }));
    let decision = evaluate(&policy, &get("/a"));
    assert_eq!(decision.audited, ["ns[foo]-policy[other]-rule[0]"]);
    assert_eq!(decision.consulted.len(), 0);
    assert_eq!(decision.dry_run, Some(DryRun { verdict: Verdict::Allow, rule: None }));

    // Only a dry-run ALLOW: everything passes, and it would not (semantics §10.1).
    let shadow = Some(vec![by_path("a", "/a")]);
    let policy =
        EffectivePolicy { allow: ActionRules { enforced: None, shadow }, ..EffectivePolicy::default() };
    let decision = evaluate(&policy, &get("/x"));
    assert_eq!(decision.deciding, Deciding::NoAllowPolicy);
    assert_eq!(decision.dry_run, Some(DryRun { verdict: Verdict::Deny, rule: None }));
}

fn jwt(issuer: &str) -> JwtRule {
    JwtRule {
        issuer: issuer.into(),
        audiences: vec![],
        jwks: Jwks::Inline("{}".into()),
        from_headers: vec![],
        from_params: vec![],
        from_cookies: vec![],
        output_payload_to_header: None,
        forward_original_token: false,
        output_claim_to_headers: vec![],
        space_delimited_claims: vec![],
        timeout_ms: 5000,
        presence: Presence::Optional,
    }
}

fn with_token(claims: &Value) -> Request {
    Request { claims: claims.as_object().cloned(), ..get("/") }
}

#[test]
fn tokens_are_checked_before_policies_see_them() {
    let by_token = rule(
        "token",
        0,
        vec![],
        vec![clause(
            "requestPrincipals",
            &[Atom::RequestPrincipal(crate::RequestPrincipal { issuer: None, subject: None })],
            &[],
        )],
    );
    let with = |jwt: Vec<JwtRule>| EffectivePolicy { jwt, ..policy(None, Some(vec![by_token.clone()])) };
    let token = with_token(&json!({"iss": "i", "sub": "s", "aud": ["x", "y"]}));
    let not_accepted = Deciding::Token(Refusal::Issuer("i".into()));
    let not_for_us = Deciding::Token(Refusal::Audience { issuer: "i".into() });
    let audience = |aud: &str| JwtRule { audiences: vec![aud.into()], ..jwt("i") };
    let kept =
        |issuer: &str| JwtRule { presence: Presence::Required, forward_original_token: true, ..jwt(issuer) };
    let required = |issuer: &str| JwtRule { presence: Presence::Required, ..jwt(issuer) };
    let missing = |issuer: &str| Deciding::Token(Refusal::Missing { issuer: issuer.into() });
    let closed = JwtRule { jwks: Jwks::RefuseAll, ..jwt("i") };
    for (rules, request, expected) in [
        // Without RequestAuthentication nobody looks at the token.
        (vec![], &token, Deciding::DefaultDeny),
        (vec![jwt("i")], &token, allow("token")),
        (vec![jwt("")], &token, allow("token")),
        (vec![jwt("j")], &token, not_accepted.clone()),
        (vec![jwt("j"), jwt("i")], &token, allow("token")),
        (vec![closed.clone()], &token, not_accepted),
        (vec![audience("x")], &token, allow("token")),
        (vec![audience("https://y/")], &token, allow("token")),
        (vec![audience("z")], &token, not_for_us.clone()),
        (vec![audience("X")], &token, not_for_us.clone()),
        (vec![audience("z"), jwt("j")], &token, not_for_us),
        (vec![audience("z"), jwt("i")], &token, allow("token")),
        (vec![jwt("i")], &get("/"), Deciding::DefaultDeny),
        (vec![closed], &get("/"), Deciding::DefaultDeny),
        (vec![required("i")], &get("/"), missing("i")),
        (vec![required("i")], &token, allow("token")),
        (vec![jwt("i"), required("j")], &token, missing("j")),
        (vec![required("i"), required("i")], &token, missing("i")),
        (vec![kept("i"), required("i")], &token, allow("token")),
    ] {
        check(&with(rules), request, &expected);
    }
    // Envoy reads no token whose registered claims have other types than RFC 7519 gives them.
    for (claim, value) in [
        ("iss", json!(7)),
        ("sub", json!(null)),
        ("aud", json!(["x", 3])),
        ("jti", json!(1)),
        ("exp", json!("later")),
        ("nbf", json!(-1)),
    ] {
        let mut claims = json!({"iss": "i"});
        claims[claim] = value;
        let malformed = Deciding::Token(Refusal::Malformed { claim });
        check(&with(vec![jwt("")]), &with_token(&claims), &malformed);
        check(&with(vec![]), &with_token(&claims), &Deciding::DefaultDeny);
    }
    // CUSTOM comes before tokens.
    let custom = BTreeMap::from([("x".into(), rules(vec![by_token.clone()]))]);
    let policy = EffectivePolicy { custom, ..with(vec![jwt("i")]) };
    assert_eq!(evaluate(&policy, &token).consulted, [] as [Arc<str>; 0]);
    // A preflight has no token and is let through unread.
    let headers = [("Origin", "https://x"), ("Access-Control-Request-Method", "PUT")];
    let headers = headers.map(|(n, v)| (n.to_owned(), v.to_owned())).to_vec();
    let preflight = Request { method: "OPTIONS".into(), headers, ..get("/") };
    check(&with(vec![required("i")]), &preflight, &Deciding::DefaultDeny);
    check(&with(vec![jwt("i")]), &Request { protocol: Protocol::Tcp, ..token }, &Deciding::DefaultDeny);
}

#[test]
fn a_verified_token_is_gone_from_the_headers() {
    let has = |name: &str| {
        let header = Atom::Header { name: name.into(), value: StringMatch::Present };
        vec![rule("h", 0, vec![], vec![clause("request.headers", &[header], &[])])]
    };
    let mut request = with_token(&json!({"iss": "i", "sub": "s"}));
    request.headers = vec![("Authorization".into(), "Bearer t".into()), ("X-Token".into(), "T t".into())];
    let with =
        |rule: JwtRule, name: &str| EffectivePolicy { jwt: vec![rule], ..policy(None, Some(has(name))) };
    let kept = JwtRule { forward_original_token: true, ..jwt("i") };
    let from = vec![JwtHeader { name: "X-Token".into(), prefix: "T ".into() }];
    let elsewhere = JwtRule { from_headers: from, ..jwt("i") };
    for (rule, header, expected) in [
        (jwt("i"), "authorization", Deciding::DefaultDeny),
        (jwt("i"), "x-token", allow("h")),
        (kept, "authorization", allow("h")),
        (elsewhere.clone(), "authorization", allow("h")),
        (elsewhere, "x-token", Deciding::DefaultDeny),
    ] {
        check(&with(rule, header), &request, &expected);
    }
    request.headers[0].1 = "Basic b".into();
    check(&with(jwt("i"), "authorization"), &request, &allow("h"));
}
