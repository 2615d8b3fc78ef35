use policy::model::Side;
use policy::{Atom, Attachment, Match, PathMatch, StringMatch, TrustDomainMatch};

use crate::{Content, Object, Severity, parse};

fn object(annotations: &str, spec: &str) -> serde_json::Value {
    let text = format!(
        "apiVersion: security.istio.io/v1\nkind: AuthorizationPolicy\nmetadata: {{name: p, namespace: ns, annotations: {annotations}}}\nspec: {spec}\n"
    );
    serde_yaml::from_str(&text).unwrap_or_else(|e| panic!("{text}: {e}"))
}

/// The findings, warnings marked with `?`.
fn findings(annotations: &str, spec: &str) -> Vec<String> {
    let parsed = parse(&object(annotations, spec));
    let mark = |severity| if severity == Severity::Warning { "?" } else { "" };
    parsed.findings.iter().map(|f| format!("{}{f}", mark(f.severity))).collect()
}

#[track_caller]
fn accepted(spec: &str) -> policy::AuthorizationPolicy {
    match parse(&object("{}", spec)) {
        crate::Parsed { content: Content::Object(object), findings } => match *object {
            Object::AuthorizationPolicy(policy) => {
                assert!(findings.iter().all(|f| f.severity == Severity::Warning));
                policy
            }
            other => panic!("{other:?}"),
        },
        other => panic!("{spec}: {other:?}"),
    }
}

/// One finding that begins so.
#[track_caller]
fn refused(spec: &str, expect: &str) {
    let found = findings("{}", spec);
    assert_eq!(found.len(), 1, "{spec}: {found:?}");
    assert!(found[0].starts_with(expect), "{spec}: {found:?}");
}

fn rule(action: &str, rule: &str) -> String {
    format!("{{action: {action}, rules: [{rule}]}}")
}

fn custom(rule: &str) -> String {
    format!("{{action: CUSTOM, provider: {{name: x}}, rules: [{rule}]}}")
}

fn source(source: &str) -> String {
    rule("ALLOW", &format!("{{from: [{{source: {source}}}]}}"))
}

fn operation(operation: &str) -> String {
    rule("ALLOW", &format!("{{to: [{{operation: {operation}}}]}}"))
}

fn when(when: &str) -> String {
    rule("ALLOW", &format!("{{when: [{when}]}}"))
}

/// What a finding about a source begins with; `o` and `w` for operations and conditions.
fn s(field: &str) -> String {
    format!("spec.rules[0].from[0].source{field}")
}

fn o(field: &str) -> String {
    format!("spec.rules[0].to[0].operation{field}")
}

fn w(field: &str) -> String {
    format!("spec.rules[0].when[0]{field}")
}

/// Semantics §1.5, the table of the webhook's rejections: what is missing or does not go together.
#[test]
fn rejections_of_shape() {
    const RULES: &str = "spec.rules";
    for (spec, expect) in [
        // CUSTOM or DENY without rules.
        ("{action: DENY}".to_owned(), RULES.to_owned()),
        ("{action: DENY, rules: []}".into(), RULES.into()),
        ("{action: CUSTOM, provider: {name: x}}".into(), RULES.into()),
        // CUSTOM with identity.
        (custom("{from: [{source: {namespaces: [a]}}]}"), s(".namespaces: not supported with CUSTOM")),
        (custom("{from: [{source: {notServiceAccounts: [a]}}]}"), s(".notServiceAccounts: not supported")),
        (custom("{from: [{source: {trustDomains: [a]}}]}"), s(".trustDomains: not supported")),
        (custom("{from: [{source: {notPrincipals: [a]}}]}"), s(".notPrincipals: not supported")),
        (custom("{from: [{source: {requestPrincipals: [a]}}]}"), s(".requestPrincipals: not supported")),
        (
            custom("{when: [{key: source.namespace, values: [a]}]}"),
            w(".key: `source.namespace` is not supported"),
        ),
        (custom("{when: [{key: source.serviceAccount, values: [a]}]}"), w(".key: ")),
        (custom("{when: [{key: source.trustDomain, values: [a]}]}"), w(".key: ")),
        (custom("{when: [{key: source.principal, values: [a]}]}"), w(".key: ")),
        (custom("{when: [{key: 'request.auth.claims[a]', values: [a]}]}"), w(".key: ")),
        (custom("{when: [{key: request.auth.audiences, values: [a]}]}"), w(".key: ")),
        // Nothing where something belongs.
        (rule("ALLOW", "null"), "spec.rules[0]: nothing is given here".into()),
        (rule("ALLOW", "{from: [null]}"), "spec.rules[0].from[0]: nothing".into()),
        (rule("ALLOW", "{from: [{}]}"), s(": a source is required")),
        (rule("ALLOW", "{from: [{source: null}]}"), s(": nothing")),
        (rule("ALLOW", "{to: [{}]}"), o(": an operation is required")),
        (rule("ALLOW", "{to: [{operation: null}]}"), o(": nothing")),
        (rule("ALLOW", "{from: []}"), "spec.rules[0].from: an empty list".into()),
        (rule("ALLOW", "{to: []}"), "spec.rules[0].to: an empty list".into()),
        (source("{}"), s(": no field is set")),
        (source("{principals: []}"), s(": no field is set")),
        (operation("{}"), o(": no field is set")),
        (source("{principals: null}"), s(".principals: nothing is given here")),
        (source("{namespaces: [a], principals: null}"), s(".principals: nothing is given here")),
    ] {
        refused(&spec, &expect);
    }
}

/// The same table: values, keys, and what the schema refuses.
#[test]
fn rejections_of_values() {
    let long = "x".repeat(321);
    let seventeen = vec!["a"; 17].join(",");
    for (spec, expect) in [
        // Service accounts.
        (source("{serviceAccounts: [a], principals: [b]}"), s(": service accounts cannot be combined")),
        (source("{serviceAccounts: [a], notNamespaces: [b]}"), s(": service accounts cannot be combined")),
        (source("{notServiceAccounts: [a], namespaces: [b]}"), s(": service accounts cannot be combined")),
        (source("{serviceAccounts: ['a*']}"), s(".serviceAccounts[0]: `a*`: wildcards")),
        (source("{serviceAccounts: [a/b/c]}"), s(".serviceAccounts[0]: `a/b/c` is neither")),
        (source("{serviceAccounts: [a/]}"), s(".serviceAccounts[0]: ")),
        (
            source(&format!("{{serviceAccounts: [{long}]}}")),
            s(".serviceAccounts[0]: a service account has at most"),
        ),
        (source(&format!("{{serviceAccounts: [{seventeen}]}}")), s(".serviceAccounts: at most 16")),
        (when("{key: source.serviceAccount, values: ['*']}"), w(".values[0]: `*`: wildcards")),
        // Addresses and ports.
        (source("{ipBlocks: [x]}"), s(".ipBlocks[0]: `x` is neither an IP address")),
        (source("{notIpBlocks: [1.2.3]}"), s(".notIpBlocks[0]: ")),
        (source("{remoteIpBlocks: [1.2.3.4/33]}"), s(".remoteIpBlocks[0]: ")),
        (when("{key: source.ip, values: [x]}"), w(".values[0]: ")),
        (when("{key: remote.ip, notValues: [x]}"), w(".notValues[0]: ")),
        (when("{key: destination.ip, values: [x]}"), w(".values[0]: ")),
        (operation("{ports: ['65536']}"), o(".ports[0]: `65536` is not a port number")),
        (operation("{notPorts: [http]}"), o(".notPorts[0]: ")),
        (operation("{ports: [80]}"), o(".ports[0]: invalid type: integer `80`, expected a string")),
        (when("{key: destination.port, values: ['-1']}"), w(".values[0]: ")),
        // Empty entries.
        (source("{principals: ['']}"), s(".principals[0]: an empty value")),
        (source("{namespaces: [a, '']}"), s(".namespaces[1]: an empty value")),
        (operation("{methods: ['']}"), o(".methods[0]: an empty value")),
        (operation("{notPaths: ['']}"), o(".notPaths[0]: an empty value")),
        (when("{key: source.principal, values: ['']}"), w(".values[0]: an empty value")),
        // Trust domains.
        (source("{trustDomains: ['a*b']}"), s(".trustDomains[0]: `a*b`: one `*` is allowed")),
        (source("{notTrustDomains: [a/b]}"), s(".notTrustDomains[0]: `a/b`: a trust domain has no `/`")),
        (when("{key: source.trustDomain, values: ['*a*']}"), w(".values[0]: ")),
        // Path templates.
        (
            operation("{paths: ['/a/{**}/{*}']}"),
            o(".paths[0]: `/a/{**}/{*}`: `{**}` must be the last operator"),
        ),
        (operation("{paths: ['/{a}']}"), o(".paths[0]: ")),
        (operation("{notPaths: ['/{*}/a*']}"), o(".notPaths[0]: ")),
        // Conditions.
        (when("{values: [a]}"), w(".key: a condition needs a key")),
        (when("{key: source.ip}"), w(": values or notValues are required")),
        (when("{key: source.user, values: [a]}"), w(".key: unknown key `source.user`")),
        (when("{key: destination.user, values: [a]}"), w(".key: `destination.user` is no longer supported")),
        (when("{key: 'request.headers[]', values: [a]}"), w(".key: `request.headers[]` is not of the form")),
        (when("{key: request.headers, values: [a]}"), w(".key: unknown key")),
        (when("{key: 'request.auth.claims[a', values: [a]}"), w(".key: ")),
        // The provider.
        ("{action: CUSTOM, rules: [{}]}".into(), "spec.provider: CUSTOM needs".into()),
        ("{action: CUSTOM, provider: {}, rules: [{}]}".into(), "spec.provider: CUSTOM needs".into()),
        (
            "{action: DENY, provider: {name: x}, rules: [{}]}".into(),
            "spec.provider: a provider can only".into(),
        ),
        ("{provider: {name: x}}".into(), "spec.provider: a provider can only".into()),
        // The schema.
        ("{action: Allow}".into(), "spec.action: unknown variant `Allow`".into()),
        ("{rules: {}}".into(), "spec.rules: invalid type: map, expected a sequence".into()),
        (format!("{{rules: [{}]}}", vec!["{}"; 513].join(",")), "spec.rules: at most 512".into()),
        ("{foo: 1}".into(), "spec.foo: unknown field `foo`".into()),
        ("[]".into(), "spec: invalid type: sequence".into()),
        ("text".into(), "spec: invalid type: string".into()),
        (source("{principals: text}"), s(".principals: invalid type: string")),
    ] {
        refused(&spec, &expect);
    }
}

/// Semantics §1.2.
#[test]
fn attachments() {
    let labels = accepted("{selector: {matchLabels: {app: x}}}").attachment;
    assert_eq!(labels, Attachment::Labels([("app".to_owned(), "x".to_owned())].into()));
    assert_eq!(accepted("{}").attachment, Attachment::Namespace);
    for spec in ["{selector: {}}", "{selector: {matchLabels: {}}}"] {
        assert_eq!(accepted(spec).attachment, Attachment::Namespace);
        assert_eq!(
            findings("{}", spec),
            ["?spec.selector.matchLabels: no labels: the policy applies to the whole namespace"]
        );
    }
    let target = |group: &str, kind: &str| format!("{{group: '{group}', kind: {kind}, name: x}}");
    for (group, kind) in [
        ("", "Service"),
        ("core", "Service"),
        ("networking.istio.io", "ServiceEntry"),
        ("gateway.networking.k8s.io", "Gateway"),
        ("gateway.networking.k8s.io", "GatewayClass"),
    ] {
        for spec in [
            format!("{{targetRefs: [{}]}}", target(group, kind)),
            format!("{{targetRef: {}}}", target(group, kind)),
        ] {
            let Attachment::Targets(targets) = accepted(&spec).attachment else { panic!("{spec}") };
            assert_eq!((targets.len(), targets[0].kind.as_str()), (1, kind));
        }
    }
    let many = format!("{{targetRefs: [{}]}}", vec![target("", "Service"); 17].join(","));
    let long = format!("{{selector: {{matchLabels: {{a: {}}}}}}}", "x".repeat(64));
    for (spec, expect) in [
        ("{selector: {matchLabels: {'a*': x}}}", "spec.selector.matchLabels[\"a*\"]: wildcards"),
        ("{selector: {matchLabels: {a: '*'}}}", "spec.selector.matchLabels.a: wildcards"),
        ("{selector: {matchLabels: {'': x}}}", "spec.selector.matchLabels[\"\"]: a label needs a name"),
        (&long, "spec.selector.matchLabels.a: a label value has at most 63"),
        ("{selector: {matchLabels: {a: 5}}}", "spec.selector.matchLabels.a: invalid type: integer"),
        ("{selector: {matchExpressions: []}}", "spec.selector.matchExpressions: unknown field"),
        ("{selector: null}", "spec.selector: nothing is given here"),
        (
            "{selector: {matchLabels: {a: b}}, targetRef: {group: '', kind: Service, name: x}}",
            "spec: only one of",
        ),
        (
            "{targetRefs: [{group: '', kind: Pod, name: x}]}",
            "spec.targetRefs[0]: a policy cannot refer to kind `Pod`",
        ),
        ("{targetRefs: [{group: '', kind: Service}]}", "spec.targetRefs[0].name: "),
        (
            "{targetRefs: [{group: '', kind: Service, name: x, namespace: y}]}",
            "spec.targetRefs[0].namespace: ",
        ),
        (&many, "spec.targetRefs: at most 16"),
    ] {
        let found = findings("{}", spec);
        let errors: Vec<_> = found.iter().filter(|f| !f.starts_with('?')).collect();
        assert!(errors.len() == 1 && errors[0].starts_with(expect), "{spec}: {found:?}");
    }
}

/// Semantics §1.5, metadata of all kinds.
#[test]
fn annotations() {
    for (value, dry_run) in [
        ("'1'", true),
        ("t", true),
        ("'TRUE'", true),
        ("'true'", true),
        ("'False'", false),
        ("'0'", false),
        ("f", false),
    ] {
        let parsed = parse(&object(&format!("{{istio.io/dry-run: {value}}}"), "{}"));
        let Content::Object(object) = parsed.content else { panic!("{value}: {parsed:?}") };
        let Object::AuthorizationPolicy(policy) = *object else { panic!() };
        assert_eq!(policy.meta.dry_run, dry_run, "{value}");
    }
    let dry = "{istio.io/dry-run: 'true'}";
    assert_eq!(findings(dry, "{action: DENY, rules: [{}]}"), [""; 0]);
    for (annotations, spec, expect) in [
        ("{istio.io/dry-run: 'yes'}", "{}", r#"metadata.annotations["istio.io/dry-run"]: `yes` is neither"#),
        ("{istio.io/dry-run: 'tRUE'}", "{}", r#"metadata.annotations["istio.io/dry-run"]: "#),
        (dry, "{action: AUDIT}", r#"metadata.annotations["istio.io/dry-run"]: only ALLOW and DENY"#),
        (
            dry,
            "{action: CUSTOM, provider: {name: x}, rules: [{}]}",
            r#"metadata.annotations["istio.io/dry-run"]: only ALLOW and DENY"#,
        ),
        ("{internal.istio.io/parents: a}", "{}", r#"metadata.annotations["internal.istio.io/parents"]: "#),
        (
            "{internal.istio.io/parent-namespace: a}",
            "{}",
            r#"metadata.annotations["internal.istio.io/parent-n"#,
        ),
        (
            "{internal.istio.io/webhook-always-reject: a}",
            "{}",
            r#"metadata.annotations["internal.istio.io/w"#,
        ),
        ("{a: 5}", "{}", "metadata.annotations.a: the value must be text"),
        (
            "{countersign.io/on-revoke: x}",
            "{}",
            r#"?metadata.annotations["countersign.io/on-revoke"]: `x` is not known"#,
        ),
        (
            "{countersign.io/on-revok: drain}",
            "{}",
            r#"?metadata.annotations["countersign.io/on-revok"]: unknown"#,
        ),
    ] {
        let found = findings(annotations, spec);
        assert!(found.len() == 1 && found[0].starts_with(expect), "{annotations} {spec}: {found:?}");
    }
    let drains = |annotations: &str| match parse(&object(annotations, "{}")).content {
        Content::Object(object) => match *object {
            Object::AuthorizationPolicy(policy) => policy.meta.drain_on_revoke,
            _ => panic!(),
        },
        _ => panic!(),
    };
    assert!(drains("{countersign.io/on-revoke: drain}") && !drains("{}"));
}

#[test]
fn metadata_of_every_policy() {
    for (metadata, expect) in [
        ("{name: A}", "metadata.name: `A` is not a Kubernetes name"),
        ("{name: 'a]-policy[b'}", "metadata.name: "),
        ("{name: a, namespace: a.b}", "metadata.namespace: "),
        ("{name: a, creationTimestamp: yesterday}", "metadata.creationTimestamp: "),
        ("{name: a, labels: {x: 5}}", "metadata.labels.x: "),
        ("{name: a, labels: [x]}", "metadata.labels: must be a mapping"),
    ] {
        let text =
            format!("{{apiVersion: security.istio.io/v1, kind: AuthorizationPolicy, metadata: {metadata}}}");
        let parsed = parse(&serde_yaml::from_str(&text).unwrap());
        assert!(matches!(parsed.content, Content::Invalid { closed: Some(_), .. }), "{metadata}");
        assert!(parsed.findings[0].to_string().starts_with(expect), "{metadata}: {:?}", parsed.findings);
    }
    for (key, ok) in [("status: {}", true), ("specs: {}", false), ("data: {}", false)] {
        let text = format!(
            "{{apiVersion: security.istio.io/v1, kind: AuthorizationPolicy, metadata: {{name: a}}, {key}}}"
        );
        let parsed = parse(&serde_yaml::from_str(&text).unwrap());
        assert_eq!(matches!(parsed.content, Content::Object(_)), ok, "{key}");
    }
    let created = "{apiVersion: security.istio.io/v1, kind: AuthorizationPolicy, metadata: {name: a, creationTimestamp: '1970-01-01T00:01:00Z'}}";
    let Content::Object(object) = parse(&serde_yaml::from_str(created).unwrap()).content else { panic!() };
    let Object::AuthorizationPolicy(policy) = *object else { panic!() };
    assert_eq!(policy.meta.created, 60);
}

#[test]
fn warnings() {
    for (rule, warned) in [
        ("{to: [{operation: {methods: [GET]}}]}", true),
        ("{to: [{operation: {notPaths: [/a]}}]}", true),
        ("{from: [{source: {requestPrincipals: ['*']}}]}", true),
        ("{from: [{source: {notRequestPrincipals: ['*']}}], to: [{operation: {paths: [/a]}}]}", true),
        ("{when: [{key: 'request.headers[x]', values: [a]}]}", true),
        ("{}", false),
        ("{to: [{operation: {methods: [GET], ports: ['80']}}]}", false),
        ("{from: [{source: {namespaces: [a]}}], to: [{operation: {paths: [/a]}}]}", false),
        ("{when: [{key: source.ip, values: [10.0.0.1]}], to: [{operation: {paths: [/a]}}]}", false),
    ] {
        for (action, expect) in [("DENY", warned), ("ALLOW", false)] {
            let found = findings("{}", &format!("{{action: {action}, rules: [{rule}]}}"));
            assert_eq!(found.len(), usize::from(expect), "{action} {rule}: {found:?}");
            assert!(found.iter().all(|f| f.starts_with("?spec.rules[0]: only HTTP attributes")));
        }
    }
    let found =
        findings("{}", "{rules: [{from: [{source: {principals: ['spiffe://cluster.local/ns/a/sa/b']}}]}]}");
    assert!(found[0].starts_with("?spec.rules[0].from[0].source.principals[0]: "), "{found:?}");
}

#[test]
fn actions_and_empty_rules() {
    use policy::Action;
    assert_eq!(accepted("{}").action, Action::Allow);
    assert_eq!(accepted("{}").rules, []);
    assert_eq!(accepted("{rules: []}").rules, []);
    assert_eq!(accepted("{rules: [{}]}").rules, [policy::Rule::default()]);
    assert_eq!(accepted("{action: AUDIT}").action, Action::Audit);
    assert_eq!(accepted("{action: DENY, rules: [{}]}").action, Action::Deny);
    let custom =
        accepted("{action: CUSTOM, provider: {name: x}, rules: [{to: [{operation: {paths: [/a]}}]}]}");
    assert_eq!(custom.action, Action::Custom { provider: "x".into() });
}

fn any(atoms: Vec<Atom>) -> Match {
    Match { any: atoms, none: Vec::new() }
}

/// Every field reaches its own atoms, with its own polarity.
#[test]
fn fields_become_atoms() {
    let fields: [(&str, &str, Atom); 7] = [
        ("principals", "td/ns/a/sa/b", Atom::Principal(StringMatch::Exact("td/ns/a/sa/b".into()))),
        (
            "requestPrincipals",
            "*",
            Atom::RequestPrincipal(policy::RequestPrincipal { issuer: None, subject: None }),
        ),
        ("namespaces", "a*b*", Atom::Namespace("a*b*".into())),
        ("serviceAccounts", "x", Atom::ServiceAccount { namespace: "ns".into(), name: "x".into() }),
        ("trustDomains", "td", Atom::TrustDomain(TrustDomainMatch::Exact("td".into()))),
        ("ipBlocks", "10.1.2.3/8", Atom::SourceIp("10.0.0.0/8".parse().unwrap())),
        ("remoteIpBlocks", "::ffff:1.2.3.4", Atom::RemoteIp("1.2.3.4/32".parse().unwrap())),
    ];
    let select = |source: &policy::Source, i: usize| {
        let policy::Source {
            principals,
            request_principals,
            namespaces,
            service_accounts,
            trust_domains,
            ip_blocks,
            remote_ip_blocks,
        } = source.clone();
        [
            principals,
            request_principals,
            namespaces,
            service_accounts,
            trust_domains,
            ip_blocks,
            remote_ip_blocks,
        ]
        .into_iter()
        .enumerate()
        .map(|(k, m)| {
            if k == i {
                m
            } else {
                assert!(m.is_empty());
                Match::default()
            }
        })
        .nth(i)
        .unwrap()
    };
    for (i, (field, value, atom)) in fields.into_iter().enumerate() {
        let not = format!("not{}{}", field[..1].to_uppercase(), &field[1..]);
        let read = |field: &str| {
            let rules =
                accepted(&format!("{{rules: [{{from: [{{source: {{{field}: ['{value}']}}}}]}}]}}")).rules;
            select(&rules[0].from[0], i)
        };
        assert_eq!(read(field), any(vec![atom.clone()]), "{field}");
        assert_eq!(read(&not), Match { any: Vec::new(), none: vec![atom] }, "{not}");
    }
    let to = accepted(
        "{rules: [{to: [{operation: {hosts: [A.example], notHosts: ['*.b'], ports: ['0'], notPorts: ['80'], methods: ['*'], notMethods: [PUT], paths: ['/a*', '/b/{*}'], notPaths: ['*.html']}}]}]}",
    );
    let policy::Operation { hosts, ports, methods, paths } = to.rules[0].to[0].clone();
    let text = StringMatch::parse;
    assert_eq!(
        hosts,
        Match { any: vec![Atom::Host(text("A.example"))], none: vec![Atom::Host(text("*.b"))] }
    );
    assert_eq!(ports, Match { any: vec![Atom::Port(0)], none: vec![Atom::Port(80)] });
    assert_eq!(
        methods,
        Match { any: vec![Atom::Method(StringMatch::Present)], none: vec![Atom::Method(text("PUT"))] }
    );
    let plain = |s: &str| Atom::Path(PathMatch::Plain(text(s)));
    let template = Atom::Path(PathMatch::Template("/b/{*}".into()));
    assert_eq!(paths, Match { any: vec![plain("/a*"), template], none: vec![plain("*.html")] });
}

#[test]
fn conditions() {
    let rules = accepted(
        "{rules: [{when: [{key: 'request.headers[X-A]', values: [a], notValues: ['b*']}, {key: destination.port, values: ['80']}]}]}",
    )
    .rules;
    let [header, port] = rules[0].when.as_slice() else { panic!() };
    let atom = |value: &str| Atom::Header { name: "x-a".into(), value: StringMatch::parse(value) };
    assert_eq!(&*header.key, "request.headers[X-A]");
    assert_eq!(header.side, Side::Principal);
    assert_eq!(header.values, Match { any: vec![atom("a")], none: vec![atom("b*")] });
    assert_eq!((port.side, port.values.clone()), (Side::Permission, any(vec![Atom::Port(80)])));
}
