//! What is enforced while an object cannot be understood (design decision 5), action by action.

use policy::{Action, Attachment, Jwks, Match, MtlsMode, Rule};

use crate::{Closed, Content, Object, parse};

fn closed(kind: &str, annotations: &str, spec: &str) -> Closed {
    let text = format!(
        "{{apiVersion: security.istio.io/v1, kind: {kind}, metadata: {{name: p, namespace: ns, annotations: {annotations}}}, spec: {spec}}}"
    );
    let parsed = parse(&serde_yaml::from_str(&text).unwrap_or_else(|e| panic!("{text}: {e}")));
    match parsed.content {
        Content::Invalid { closed: Some(closed), .. } => closed,
        _ => panic!("{spec} is not refused: {:?}", parsed.findings),
    }
}

fn authorization(spec: &str) -> policy::AuthorizationPolicy {
    match *closed("AuthorizationPolicy", "{}", spec).object {
        Object::AuthorizationPolicy(policy) => policy,
        other => panic!("{other:?}"),
    }
}

/// A rule in short: what is left of it. `never`, `all`, or its parts.
fn brief(rule: &Rule) -> String {
    if rule.never {
        return "never".into();
    }
    let matched = |m: &Match| (m.any.len(), m.none.len());
    let sources = rule.from.iter().map(|s| {
        let policy::Source { principals, namespaces, ip_blocks, .. } = s;
        format!("source{:?}{:?}{:?}", matched(principals), matched(namespaces), matched(ip_blocks))
    });
    let operations = rule.to.iter().map(|o| {
        let policy::Operation { hosts: _, ports, methods, paths } = o;
        format!("operation{:?}{:?}{:?}", matched(ports), matched(methods), matched(paths))
    });
    let conditions = rule.when.iter().map(|c| format!("{}{:?}", c.key, matched(&c.values)));
    let parts: Vec<String> = sources.chain(operations).chain(conditions).collect();
    if parts.is_empty() { "all".into() } else { parts.join(" ").replace(", ", ",") }
}

fn rules(spec: &str) -> Vec<String> {
    authorization(spec).rules.iter().map(brief).collect()
}

#[test]
fn allow_allows_nothing_where_it_is_unreadable() {
    let good = "{to: [{operation: {methods: [GET]}}]}";
    let operation = "operation(0,0)(1,0)(0,0)";
    for (spec, expect) in [
        // A bad rule harms only itself.
        (
            format!("{{rules: [{good}, {{from: [{{source: {{principal: [a]}}}}]}}, {good}]}}"),
            [operation, "never", operation],
        ),
        (format!("{{rules: [{good}, {{from: []}}, {good}]}}"), [operation, "never", operation]),
        (format!("{{rules: [{good}, text, {good}]}}"), [operation, "never", operation]),
        (format!("{{rules: [{good}, [], {good}]}}"), [operation, "never", operation]),
        (format!("{{rules: [{good}, null, {good}]}}"), [operation, "never", operation]),
        (
            format!("{{rules: [{good}, {{when: [{{key: x.y, values: [a]}}]}}, {good}]}}"),
            [operation, "never", operation],
        ),
        (
            format!("{{rules: [{good}, {{from: [{{source: {{ipBlocks: [x]}}}}]}}, {good}]}}"),
            [operation, "never", operation],
        ),
        // A mistake outside the rules: nobody knows to whom they would apply.
        (format!("{{selector: {{matchLabels: {{a: 5}}}}, rules: [{good}, {good}, {good}]}}"), ["never"; 3]),
        (format!("{{selectr: {{}}, rules: [{good}, {good}, {good}]}}"), ["never"; 3]),
        (format!("{{provider: {{name: x}}, rules: [{good}, {good}, {good}]}}"), ["never"; 3]),
        (format!("{{actoin: DENY, rules: [{good}, {good}, {good}]}}"), ["never"; 3]),
    ] {
        assert_eq!(authorization(&spec).action, Action::Allow);
        assert_eq!(rules(&spec), expect, "{spec}");
    }
    for spec in ["{rules: {}}", "{rules: text}", "{rules: null}", "{rulez: [{}]}"] {
        assert_eq!(rules(spec), [""; 0], "{spec}");
    }
}

#[test]
fn deny_drops_what_is_unreadable_and_denies_more() {
    for (rule, expect) in [
        ("{from: [{source: {namespaces: [a], principal: [b]}}]}", "source(0,0)(1,0)(0,0)"),
        ("{from: [{source: {principal: [b]}}]}", "source(0,0)(0,0)(0,0)"),
        ("{from: [{source: {namespaces: [a]}}, text]}", "source(0,0)(1,0)(0,0) source(0,0)(0,0)(0,0)"),
        ("{from: [{source: {namespaces: [a]}}, null]}", "source(0,0)(1,0)(0,0) source(0,0)(0,0)(0,0)"),
        ("{from: text, to: [{operation: {methods: [GET]}}]}", "operation(0,0)(1,0)(0,0)"),
        ("{form: [{source: {namespaces: [a]}}]}", "all"),
        ("text", "all"),
        ("[]", "all"),
        // One bad alternative: without it the list would match less, so the whole list goes.
        ("{from: [{source: {ipBlocks: [10.0.0.0/8, x], namespaces: [a]}}]}", "source(0,0)(1,0)(0,0)"),
        ("{from: [{source: {principals: [a, 5], namespaces: [a]}}]}", "source(0,0)(1,0)(0,0)"),
        ("{to: [{operation: {ports: ['80', x], methods: [GET]}}]}", "operation(0,0)(1,0)(0,0)"),
        ("{to: [{operation: {paths: [/a, '/{**}/{*}']}}]}", "operation(0,0)(0,0)(0,0)"),
        // One bad exception: without it the rest still excepts less.
        ("{from: [{source: {notIpBlocks: [10.0.0.0/8, x]}}]}", "source(0,0)(0,0)(0,1)"),
        ("{when: [{key: source.ip, values: [10.0.0.1, x], notValues: [10.0.0.2, y]}]}", "source.ip(0,1)"),
        ("{when: [{key: nonsense, values: [a]}, {key: source.ip, values: [10.0.0.1]}]}", "source.ip(1,0)"),
        ("{when: [{key: nonsense, values: [a]}]}", "all"),
        ("{when: [{key: source.ip}]}", "source.ip(0,0)"),
        ("{when: text}", "all"),
    ] {
        for (head, what) in [("action: DENY", "DENY"), ("action: CUSTOM, provider: {name: x}", "CUSTOM")] {
            let spec = format!("{{{head}, rules: [{rule}]}}");
            let policy = authorization(&spec);
            assert_eq!(policy.action, Action::Deny, "{spec}");
            assert_eq!(policy.rules.iter().map(brief).collect::<Vec<_>>(), [expect], "{what} {rule}");
        }
    }
    for spec in [
        "{action: DENY}",
        "{action: DENY, rules: []}",
        "{action: DENY, rules: {}}",
        "{action: DENY, rulez: [{}]}",
        "{action: CUSTOM, provider: {name: x}}",
        "{action: CUSTOM}",
    ] {
        assert_eq!(authorization(spec).action, Action::Deny);
        assert_eq!(rules(spec), ["all"], "{spec}");
    }
}

#[test]
fn custom_denies_what_it_matches() {
    let policy = authorization("{action: CUSTOM, rules: [{to: [{operation: {methods: [GET]}}]}]}");
    assert_eq!(policy.action, Action::Deny);
    assert_eq!(brief(&policy.rules[0]), "operation(0,0)(1,0)(0,0)");
}

#[test]
fn an_unreadable_action_denies_all() {
    for spec in [
        "{action: Deny, rules: [{from: [{source: {namespaces: [a]}}]}]}",
        "{action: 1}",
        "{action: null}",
        "text",
        "[]",
    ] {
        assert_eq!(authorization(spec).action, Action::Deny, "{spec}");
        assert_eq!(rules(spec), ["all"], "{spec}");
    }
    let Closed { object, scope_unknown } = closed("AuthorizationPolicy", "{}", "text");
    let Object::AuthorizationPolicy(policy) = *object else { panic!() };
    assert!(scope_unknown && policy.attachment == Attachment::Namespace);
}

#[test]
fn audit_and_dry_runs_do_nothing() {
    assert_eq!(authorization("{action: AUDIT, rules: [{}, text]}").action, Action::Audit);
    assert_eq!(rules("{action: AUDIT, rules: [{}, text]}"), [""; 0]);
    for spec in
        ["{rules: [text]}", "{action: DENY, rules: [text]}", "{action: CUSTOM, rules: [{}]}", "{action: 5}"]
    {
        let closed = closed("AuthorizationPolicy", "{istio.io/dry-run: 'true'}", spec);
        let Object::AuthorizationPolicy(policy) = *closed.object else { panic!() };
        assert!(policy.meta.dry_run, "{spec}");
    }
    // An unreadable dry run may have been meant to be none.
    let closed = closed("AuthorizationPolicy", "{istio.io/dry-run: maybe}", "{rules: [{}]}");
    let Object::AuthorizationPolicy(policy) = *closed.object else { panic!() };
    assert!(!policy.meta.dry_run && policy.rules[0].never);
}

#[test]
fn attachments() {
    let labels = |key: &str| Attachment::Labels([(key.to_owned(), "x".to_owned())].into());
    for (attachment, expect, unknown) in [
        ("selector: {matchLabels: {app: x}}", labels("app"), false),
        ("selector: {matchLabels: {app: 5}}", Attachment::Namespace, true),
        ("selector: {matchLabels: {app: x, b: 5}}", Attachment::Namespace, true),
        ("selector: {matchLabels: {app: '*'}}", Attachment::Namespace, true),
        ("selector: {matchLabel: {app: x}}", Attachment::Namespace, true),
        ("selector: text", Attachment::Namespace, true),
        ("selector: []", Attachment::Namespace, true),
        ("selectors: {}", Attachment::Namespace, true),
        ("selector: {matchLabels: {app: x}}, other: 1", labels("app"), false),
        ("rules: text", Attachment::Namespace, false),
    ] {
        for kind in ["AuthorizationPolicy", "PeerAuthentication", "RequestAuthentication"] {
            let closed = closed(kind, "{x: 5}", &format!("{{{attachment}}}"));
            let found = match *closed.object {
                Object::AuthorizationPolicy(p) => p.attachment,
                Object::PeerAuthentication(p) => p.attachment,
                Object::RequestAuthentication(p) => p.attachment,
                other => panic!("{other:?}"),
            };
            // To the other two kinds `rules` is one of the fields they do not know.
            let unknown = unknown
                || (attachment == "rules: text" && kind != "AuthorizationPolicy" && closed.scope_unknown);
            assert_eq!((found, closed.scope_unknown), (expect.clone(), unknown), "{kind} {attachment}");
        }
    }
}

/// `authorization_policy.proto`: who does not understand a reference must not apply the policy to everything.
#[test]
fn references_stay_references() {
    for refs in [
        "targetRefs: [{group: '', kind: Pod, name: x}]",
        "targetRefs: text",
        "targetRefs: [text]",
        "targetRef: 5",
        "targetRefs: [{group: '', kind: Service, name: x, section: y}]",
    ] {
        let policy = authorization(&format!("{{{refs}, action: DENY, rules: [{{}}]}}"));
        assert!(matches!(&policy.attachment, Attachment::Targets(t) if !t.is_empty()), "{refs}");
    }
    // Both: it may have been meant for either.
    let both = "{selector: {matchLabels: {a: b}}, targetRef: {group: '', kind: Service, name: x}, action: DENY, rules: [{}]}";
    assert_eq!(authorization(both).attachment, Attachment::Namespace);
}

#[test]
fn peer_authentication_is_strict() {
    for spec in [
        "text",
        "{mtls: {mode: none}}",
        "{mtls: {mode: DISABLE}, x: 1}",
        "{selector: {matchLabels: {a: b}}, mtls: {mode: DISABLE}, portLevelMtls: {80: {mode: DISABLE}, x: {}}}",
    ] {
        let Object::PeerAuthentication(policy) = *closed("PeerAuthentication", "{}", spec).object else {
            panic!()
        };
        assert_eq!((policy.mode, policy.ports.len()), (Some(MtlsMode::Strict), 0), "{spec}");
    }
    let policy = |spec: &str| match *closed("PeerAuthentication", "{}", spec).object {
        Object::PeerAuthentication(policy) => policy,
        other => panic!("{other:?}"),
    };
    // It keeps its place among others, unless nobody knows which that is.
    assert_eq!(policy("{mtls: {mode: x}}").meta.created, 0);
    assert_eq!(policy("{selector: 5}").meta.created, i64::MIN);
}

#[test]
fn request_authentication_refuses_the_issuers_it_cannot_read() {
    let policy = |spec: &str| match *closed("RequestAuthentication", "{}", spec).object {
        Object::RequestAuthentication(policy) => policy.rules,
        other => panic!("{other:?}"),
    };
    let rules = policy("{jwtRules: [{issuer: 'https://a'}, {issuer: 'https://b', audience: [x]}, text]}");
    let brief: Vec<_> = rules.iter().map(|r| (r.issuer.as_str(), r.jwks == Jwks::RefuseAll)).collect();
    assert_eq!(brief, [("https://a", false), ("https://b", true), ("", true)]);
    for spec in ["text", "{jwtRules: text}", "{jwtRule: [{issuer: 'https://a'}]}"] {
        let rules = policy(spec);
        assert!(rules.len() == 1 && rules[0].issuer.is_empty() && rules[0].jwks == Jwks::RefuseAll, "{spec}");
    }
    // A selector that cannot be read: its tokens must not become good elsewhere.
    let rules = policy("{selector: 5, jwtRules: [{issuer: 'https://a'}]}");
    assert_eq!((rules[0].issuer.as_str(), &rules[0].jwks), ("https://a", &Jwks::RefuseAll));
}
