//! What a decision says of itself.

use super::*;

#[test]
fn the_nearest_rule_is_the_one_with_the_fewest_differences() {
    let mut orders = rule(
        "orders",
        0,
        vec![clause("methods", &[method("POST")], &[]), clause("paths", &[path("/orders/*")], &[])],
        vec![clause("principals", &[principal("cluster.local/ns/foo/sa/pay")], &[])],
    );
    orders.permissions.push(vec![clause("methods", &[method("GET")], &[path("/none")])]);
    let far = rule(
        "far",
        0,
        vec![clause("ports", &[Atom::Port(1)], &[]), clause("paths", &[path("/x")], &[])],
        vec![],
    );
    let never = EffectiveRule::never(ObjectName::new("foo", "a"), 0);
    let policy = policy(None, Some(vec![never, far, orders]));
    let request = Request { method: "POST".into(), ..get("/orders/1") };
    let nearest = evaluate_with_nearest(&policy, &request).nearest.unwrap();
    assert_eq!(nearest.rule, "ns[foo]-policy[orders]-rule[0]");
    let mismatch = |field: &str, wanted: &str, had: &str| Mismatch {
        field: field.into(),
        wanted: wanted.into(),
        had: had.into(),
    };
    assert_eq!(nearest.failed, [mismatch("principals", "cluster.local/ns/foo/sa/pay", A)]);

    // On TCP it says that the rule cannot apply at all.
    let nearest = evaluate_with_nearest(&policy, &tcp(80, &[])).nearest.unwrap();
    assert_eq!(nearest.rule, "ns[foo]-policy[far]-rule[0]");
    assert_eq!(nearest.failed, [mismatch("protocol", "http", "tcp"), mismatch("ports", "1", "80")]);
}

#[test]
fn a_near_miss_speaks_plainly_and_keeps_secrets() {
    let header = |name: &str| Atom::Header { name: name.into(), value: StringMatch::parse("v") };
    let many: Vec<Atom> = (1..=7).map(Atom::Port).collect();
    let rule = rule(
        "p",
        0,
        vec![
            clause("ports", &many, &[]),
            clause("hosts", &[Atom::Host(StringMatch::parse("h"))], &[]),
            clause("notPaths", &[], &[path("/b"), path("/a*")]),
        ],
        vec![
            clause("namespaces", &[Atom::Namespace("bar".into())], &[]),
            clause("request.headers[authorization]", &[header("authorization")], &[]),
            clause("request.headers[x]", &[header("x")], &[]),
            clause("request.auth.audiences", &[Atom::Audience(StringMatch::parse("us"))], &[]),
        ],
    );
    let request = Request {
        path: "/a".into(),
        headers: vec![("Authorization".into(), "Basic c2VjcmV0".into())],
        ..Request::http(80)
    };
    let failed = evaluate_with_nearest(&policy(None, Some(vec![rule])), &request).nearest.unwrap().failed;
    let words: Vec<_> = failed.iter().map(|m| (&*m.field, m.wanted.as_str(), m.had.as_str())).collect();
    assert_eq!(
        words,
        [
            ("ports", "1 or 2 or 3 or 4 or 5 or 2 more", "80"),
            ("hosts", "h", "none"),
            ("notPaths", "not /a*", "/a"),
            ("namespaces", "bar", "no verified identity"),
            ("request.headers[authorization]", "(not shown)", "(not shown)"),
            ("request.headers[x]", "v", "absent"),
            ("request.auth.audiences", "us", "no verified token"),
        ]
    );
}

#[test]
fn a_decision_is_one_line() {
    let orders = rule(
        "orders-policy",
        0,
        vec![clause("methods", &[method("POST")], &[]), clause("paths", &[path("/orders/*")], &[])],
        vec![clause("principals", &[principal("cluster.local/ns/foo/sa/a")], &[])],
    );
    let shop = policy(None, Some(vec![orders]));
    let never = policy(None, Some(vec![EffectiveRule::never(ObjectName::new("foo", "n"), 0)]));
    let strict = EffectiveMtls {
        mode: MtlsMode::Strict,
        set_by: Some(ObjectName::new("foo", "default")),
        ..EffectiveMtls::default()
    };
    let custom = BTreeMap::from([
        ("x".into(), rules(vec![by_path("c", "/ad")])),
        ("y".into(), rules(vec![by_path("c", "/a*")])),
    ]);
    let asked = EffectivePolicy { custom, ..policy(Some(vec![by_path("d", "/ad")]), None) };
    let order = |method: &str, path: &str| Request { method: method.into(), ..get(path) };
    let token = EffectivePolicy {
        jwt: vec![JwtRule { presence: Presence::Required, ..jwt("i") }],
        ..EffectivePolicy::default()
    };
    for (policy, request, expected) in [
        (
            &shop,
            order("DELETE", "/orders/42"),
            "no ALLOW rule matches; closest is ns[foo]-policy[orders-policy]-rule[0]: methods wanted POST, had DELETE",
        ),
        (
            &shop,
            order("PUT", "/refunds"),
            "no ALLOW rule matches; closest is ns[foo]-policy[orders-policy]-rule[0]: methods wanted POST, had PUT; \
             paths wanted /orders/*, had /refunds",
        ),
        (&shop, order("POST", "/orders/42"), "allowed by ns[foo]-policy[orders-policy]-rule[0]"),
        (&never, get("/"), "no ALLOW rule matches"),
        (
            &EffectivePolicy { mtls: strict, ..EffectivePolicy::default() },
            Request::http(80),
            "denied by ns[foo]-peerauthentication[default]-strict: no verified identity",
        ),
        (&token, get("/"), "denied: a token of \"i\" is required"),
        // Whoever is asked does not matter where it is denied anyway.
        (&asked, get("/ad"), "denied by ns[foo]-policy[d]-rule[0]"),
        (&asked, get("/ab"), "allowed: no ALLOW policy, if agreed by y"),
        (&asked, get("/b"), "allowed: no ALLOW policy"),
    ] {
        assert_eq!(evaluate_with_nearest(policy, &request).to_string(), expected);
    }
}

#[test]
fn what_a_caller_sends_cannot_write_to_the_terminal() {
    let mismatch =
        |had: &str| Mismatch { field: "paths".into(), wanted: "/é".into(), had: had.into() }.to_string();
    assert_eq!(mismatch("it's \"a\\b\""), "paths wanted /é, had it's \"a\\b\"");
    assert_eq!(mismatch("a\nb\u{1b}[2J\u{202e}"), "paths wanted /é, had a\\nb\\u{1b}[2J\\u{202e}");
    assert_eq!(mismatch(&"x".repeat(60_000)), format!("paths wanted /é, had {}…", "x".repeat(200)));
    assert!(mismatch(&"x".repeat(200)).ends_with('x'));
}

#[test]
fn a_near_miss_shows_no_query() {
    let header = Atom::Header { name: ":path".into(), value: StringMatch::parse("/b") };
    let rule = rule("p", 0, vec![], vec![clause("request.headers[:path]", &[header], &[])]);
    let line =
        evaluate_with_nearest(&policy(None, Some(vec![rule])), &get("/a?access_token=secret")).to_string();
    assert!(line.ends_with("request.headers[:path] wanted /b, had /a"), "{line}");
}
