use super::*;

const ROOT: &str = "istio-system";

/// A rule that is told apart by its SNI.
fn rule(namespace: &str, name: &str, host: &str) -> DestinationRule {
    DestinationRule {
        namespace: namespace.into(),
        name: name.into(),
        created: 0,
        host: host.into(),
        export_to: None,
        selector: None,
        policy: Some(policy(name)),
        subsets: Vec::new(),
    }
}

fn mutual(sni: &str) -> ClientTls {
    ClientTls::IstioMutual { sni: sni.to_owned(), subject_alt_names: Vec::new() }
}

fn policy(sni: &str) -> TrafficPolicy {
    TrafficPolicy { tls: Some(mutual(sni)), ports: BTreeMap::new() }
}

fn to(rule: DestinationRule, namespaces: &[&str]) -> DestinationRule {
    DestinationRule { export_to: Some(namespaces.iter().map(|ns| (*ns).into()).collect()), ..rule }
}

fn selecting(rule: DestinationRule, labels: &[(&str, &str)]) -> DestinationRule {
    let labels = labels.iter().map(|(k, v)| ((*k).to_owned(), (*v).to_owned())).collect();
    DestinationRule { selector: Some(labels), ..rule }
}

fn all(rules: &[DestinationRule]) -> DestinationRules {
    let mut all = DestinationRules::default();
    for rule in rules {
        all.set(&rule.namespace, &rule.name, Some(Arc::new(rule.clone())));
    }
    all
}

/// The name of the rule that counts for a client in `namespace`, labelled `app: APP`, that calls `reviews` in `prod`.
fn counts(rules: &[DestinationRule], namespace: &str, app: &str) -> Option<String> {
    let mut orders = vec![rules.to_vec()];
    let mut backwards = rules.to_vec();
    backwards.reverse();
    orders.push(backwards);
    let answers: Vec<Option<String>> = orders
        .iter()
        .map(|rules| {
            let rules = all(rules);
            let client = rules.client(&namespace.into(), &[("app".to_owned(), app.to_owned())].into());
            let found = rules.policy(&client, "prod", "reviews.prod.svc.cluster.local", ROOT);
            found.map(|(_, rule)| rule.name.to_string())
        })
        .collect();
    assert_eq!(answers[0], answers[1], "the order of arrival decides nothing");
    answers[0].clone()
}

const HOST: &str = "reviews.prod.svc.cluster.local";

#[test]
fn the_clients_namespace_comes_before_the_services_and_the_root_last() {
    let (own, service, root) =
        (rule("web", "own", HOST), rule("prod", "service", HOST), rule(ROOT, "root", "*.local"));
    let rules = [own, service, root];
    for (rules, client, expected) in [
        (&rules[..], "web", Some("own")),
        (&rules[..], "shop", Some("service")),
        (&rules[1..], "web", Some("service")),
        (&rules[2..], "web", Some("root")),
        (&rules[2..], ROOT, Some("root")),
        (&rules[..1], "shop", None),
        (&[][..], "web", None),
    ] {
        assert_eq!(counts(rules, client, "x").as_deref(), expected, "{client}");
    }
}

/// Rules that the root namespace shows to all must not hide a service's own from clients of the root namespace.
#[test]
fn in_the_root_namespace_only_private_rules_come_first() {
    let (service, shown) = (rule("prod", "service", HOST), rule(ROOT, "shown", HOST));
    let private = to(rule(ROOT, "private", "*.local"), &[ROOT]);
    assert_eq!(counts(&[service.clone(), shown.clone()], ROOT, "x").as_deref(), Some("service"));
    assert_eq!(counts(&[service, shown, private.clone()], ROOT, "x").as_deref(), Some("private"));
    assert_eq!(counts(&[private], "web", "x"), None);
}

#[test]
fn export_to_says_whose_clients_see_a_rule() {
    let service = |namespaces: &[&str]| to(rule("prod", "service", HOST), namespaces);
    for (namespaces, client, expected) in [
        (&["prod"][..], "web", None),
        (&["prod"], "prod", Some("service")),
        (&["web", "shop"], "web", Some("service")),
        (&["web"], "shop", None),
        // Not even its own namespace, then.
        (&["web"], "prod", None),
    ] {
        assert_eq!(
            counts(&[service(namespaces)], client, "x").as_deref(),
            expected,
            "{namespaces:?} {client}"
        );
    }
    // What a client cannot see hides nothing from it.
    let wide = rule("prod", "wide", "*.prod.svc.cluster.local");
    assert_eq!(counts(&[service(&["web"]), wide], "shop", "x").as_deref(), Some("wide"));
}

#[test]
fn the_most_specific_host_counts() {
    let hosts = ["*", "*.local", "*.prod.svc.cluster.local", "*s.prod.svc.cluster.local", HOST];
    let rules: Vec<_> = hosts.iter().map(|host| rule("prod", host, host)).collect();
    for most in 0..hosts.len() {
        assert_eq!(counts(&rules[..=most], "web", "x").as_deref(), Some(hosts[most]));
    }
    for other in ["reviews", "reviews.prod", "*.dev.svc.cluster.local", "x.reviews.prod.svc.cluster.local"] {
        assert_eq!(counts(&[rule("prod", "other", other)], "web", "x"), None, "{other}");
    }
}

#[test]
fn the_oldest_that_says_anything_counts() {
    let at = |created, name: &str| DestinationRule { created, ..rule("prod", name, HOST) };
    assert_eq!(counts(&[at(2, "a"), at(1, "b")], "web", "x").as_deref(), Some("b"));
    assert_eq!(counts(&[at(1, "b"), at(1, "a")], "web", "x").as_deref(), Some("a"));
    let silent = DestinationRule { policy: None, ..at(0, "silent") };
    assert_eq!(counts(&[silent.clone(), at(1, "b")], "web", "x").as_deref(), Some("b"));
    // There is a rule, so the root namespace is not asked.
    assert_eq!(counts(&[silent.clone(), rule(ROOT, "root", "*")], "web", "x"), None);
    // A policy that says nothing of TLS is one all the same.
    let other = DestinationRule { policy: Some(TrafficPolicy::default()), ..silent };
    assert_eq!(counts(&[other, at(1, "b")], "web", "x").as_deref(), Some("silent"));
}

#[test]
fn a_selector_counts_in_its_own_namespace_only_and_comes_first() {
    let for_a = selecting(rule("web", "for-a", HOST), &[("app", "a")]);
    let for_all = DestinationRule { created: -1, ..rule("web", "for-all", HOST) };
    let elsewhere = selecting(rule("prod", "elsewhere", HOST), &[]);
    let service = rule("prod", "service", HOST);
    let rules = [for_a.clone(), for_all, elsewhere, service];
    assert_eq!(counts(&rules, "web", "a").as_deref(), Some("for-a"));
    assert_eq!(counts(&rules, "web", "b").as_deref(), Some("for-all"));
    assert_eq!(counts(&rules, "shop", "a").as_deref(), Some("service"));
    // A client that the selector does not name goes on looking.
    let rules = [for_a, rules[3].clone()];
    assert_eq!(counts(&rules, "web", "b").as_deref(), Some("service"));
    let none = [selecting(rule("web", "any", HOST), &[])];
    assert_eq!(counts(&none, "web", "b").as_deref(), Some("any"), "no labels select every client");
}

#[test]
fn a_port_level_entry_replaces_the_whole_policy() {
    let mut policy = policy("wide");
    policy.ports.insert(80, Some(ClientTls::Disable));
    policy.ports.insert(81, None);
    assert_eq!(policy.port(80), Some(&ClientTls::Disable));
    assert_eq!(policy.port(81), None);
    assert_eq!(policy.port(82), Some(&mutual("wide")));
}

#[test]
fn a_subset_overlays_the_rule() {
    let subset = |policy| Subset { name: "v1".to_owned(), labels: BTreeMap::new(), policy };
    let with = |policy| DestinationRule { subsets: vec![subset(policy)], ..rule("prod", "wide", HOST) };
    let wide = mutual("wide");
    let own = |tls, ports: &[(u16, Option<ClientTls>)]| {
        Some(TrafficPolicy { tls, ports: ports.iter().cloned().collect() })
    };
    for (policy, expected) in [
        (None, Some(&wide)),
        (own(None, &[]), Some(&wide)),
        (own(Some(ClientTls::Disable), &[]), Some(&ClientTls::Disable)),
        (own(Some(ClientTls::Disable), &[(80, None)]), None),
        (own(None, &[(80, Some(ClientTls::Refuse))]), Some(&ClientTls::Refuse)),
        (own(None, &[(81, Some(ClientTls::Refuse))]), Some(&wide)),
    ] {
        assert_eq!(with(policy.clone()).subset("v1", 80), Some(expected), "{policy:?}");
    }
    assert_eq!(with(None).subset("v2", 80), None);
}

#[test]
fn what_is_removed_counts_no_more() {
    let mut rules = all(&[rule("prod", "a", HOST), rule("prod", "b", "*.local")]);
    let client = rules.client(&"web".into(), &BTreeMap::new());
    let counts =
        |rules: &DestinationRules| rules.policy(&client, "prod", HOST, ROOT).map(|(_, r)| r.name.to_string());
    assert_eq!(counts(&rules).as_deref(), Some("a"));
    // It moves to another host.
    rules.set(&"prod".into(), &"a".into(), Some(Arc::new(rule("prod", "a", "other"))));
    assert_eq!(counts(&rules).as_deref(), Some("b"));
    assert_eq!(
        rules.set(&"prod".into(), &"b".into(), None).map(|rule| rule.name.to_string()).as_deref(),
        Some("b")
    );
    assert_eq!(counts(&rules), None);
    rules.set(&"prod".into(), &"a".into(), None);
    assert_eq!(rules, DestinationRules::default());
}
