use std::collections::BTreeMap;

use crds::Content;
use mesh::Protocol;
use policy::MtlsMode;

use super::*;
use crate::fixtures::{labels, peer, pod, service};

/// `a` with `x` (HTTP on 8080, Service port 80), `db` (TCP on 5432) and `odd` (undeclared 9000); `b` is empty, and `c`
/// has one workload behind no Service.
fn publisher(more: impl IntoIterator<Item = Object>) -> Publisher {
    let mut publisher = Publisher::default();
    let with = |name: &str, port: u16, protocol: Protocol| {
        let mut service = service("a", name, port);
        service.ports[0].protocol = protocol;
        service.ports[0].target = mesh::TargetPort::Number(port);
        Object::Service(service)
    };
    let objects = [
        Object::Workload(pod("a", "x-1", "x", "10.0.0.1")),
        Object::Workload(pod("a", "x-2", "x", "10.0.0.2")),
        Object::Workload(pod("a", "db-1", "db", "10.0.0.3")),
        Object::Workload(pod("a", "odd-1", "odd", "10.0.0.4")),
        Object::Workload(pod("c", "lone-1", "lone", "10.0.0.5")),
        Object::Service(service("a", "x", 80)),
        with("db", 5432, Protocol::Tcp),
        with("odd", 9000, Protocol::Auto),
    ];
    for object in objects.into_iter().chain(more) {
        publisher.store.apply(object);
    }
    publisher.first_list();
    publisher.commit();
    publisher
}

fn object(kind: &str, namespace: &str, spec: &str) -> Object {
    let text = format!(
        "apiVersion: security.istio.io/v1\nkind: {kind}\nmetadata: {{name: new, namespace: {namespace}}}\nspec: {spec}\n"
    );
    let value = serde_yaml::from_str(&text).unwrap_or_else(|e| panic!("{text}: {e}"));
    match crds::parse(&value).content {
        Content::Object(object) => *object,
        other => panic!("{text}: {other:?}"),
    }
}

#[track_caller]
fn check(publisher: &mut Publisher, object: &Object, expect: &[&str]) {
    let advice = advise(publisher, object);
    assert_eq!(advice, expect);
    assert!(advice.iter().all(|text| text.len() <= 120), "too long for Kubernetes: {advice:?}");
}

fn authorization(namespace: &str, app: &str, action: &str, rule: &str) -> Object {
    object(
        "AuthorizationPolicy",
        namespace,
        &format!("{{selector: {{matchLabels: {{app: {app}}}}}, action: {action}, rules: [{rule}]}}"),
    )
}

#[test]
fn identities_under_permissive() {
    let mut open = publisher([]);
    for (action, source, expect) in [
        (
            "ALLOW",
            "{principals: [p]}",
            "principals: x is PERMISSIVE: plaintext callers are never allowed by it",
        ),
        (
            "ALLOW",
            "{notPrincipals: [p]}",
            "notPrincipals: x is PERMISSIVE: EVERY plaintext caller is allowed",
        ),
        (
            "ALLOW",
            "{notNamespaces: [p], principals: [q]}",
            "principals: x is PERMISSIVE: plaintext callers are never allowed by it",
        ),
        ("DENY", "{namespaces: [p]}", "namespaces: x is PERMISSIVE: plaintext callers are NOT denied"),
        (
            "DENY",
            "{notServiceAccounts: [p]}",
            "notServiceAccounts: x is PERMISSIVE: every plaintext caller is denied",
        ),
        ("AUDIT", "{trustDomains: [p]}", "trustDomains: x is PERMISSIVE: plaintext callers are not audited"),
    ] {
        let rule = format!("{{from: [{{source: {source}}}]}}");
        let policy = authorization("a", "x", action, &rule);
        check(&mut open, &policy, &[&format!("rules[0] {expect}; STRICT lets none in")]);
        check(
            &mut publisher([Object::PeerAuthentication(peer("a", "p", None, MtlsMode::Strict))]),
            &policy,
            &[],
        );
    }
    let when = authorization("a", "x", "DENY", "{when: [{key: source.principal, notValues: [p]}]}");
    let expect = "rules[0] source.principal notValues: x is PERMISSIVE: every plaintext caller is denied; STRICT lets none in";
    check(&mut open, &when, &[expect]);
    // A second source that lets anybody match makes the rule one without identity.
    let open_too = "{from: [{source: {principals: [p]}}, {source: {ipBlocks: [1.2.3.4]}}]}";
    check(&mut open, &authorization("a", "x", "DENY", open_too), &[]);
}

#[test]
fn modes_of_single_ports() {
    let mut peer = peer("a", "p", Some("x"), MtlsMode::Permissive);
    peer.ports = BTreeMap::from([(8080, Some(MtlsMode::Strict))]);
    let mut publisher = publisher([Object::PeerAuthentication(peer.clone())]);
    let rule = "{from: [{source: {principals: [p]}}], to: [{operation: {ports: ['8080']}}]}";
    check(&mut publisher, &authorization("a", "x", "DENY", rule), &[]);
    peer.ports = BTreeMap::from([(8080, Some(MtlsMode::Disable))]);
    let mut publisher = self::publisher([Object::PeerAuthentication(peer)]);
    let expect = "rules[0] principals: x is DISABLE: plaintext callers are NOT denied; STRICT lets none in";
    check(&mut publisher, &authorization("a", "x", "DENY", rule), &[expect]);
}

#[test]
fn http_fields_where_there_is_no_http() {
    let mut publisher = publisher([]);
    for (app, action, to, expect) in [
        (
            "db",
            "ALLOW",
            "{methods: [GET]}",
            "rules[0] methods: port 5432 of db is TCP: there the rule allows nothing",
        ),
        (
            "db",
            "DENY",
            "{paths: [/a]}",
            "rules[0] paths: port 5432 of db is TCP: there the rule denies everything",
        ),
        (
            "db",
            "DENY",
            "{paths: [/a], ports: ['5432']}",
            "rules[0] paths: port 5432 of db is TCP: there it denies more: HTTP fields are left out",
        ),
        (
            "odd",
            "ALLOW",
            "{methods: [GET]}",
            "rules[0] methods: port 9000 of odd declares no protocol, so for what is not HTTP the rule allows nothing",
        ),
    ] {
        let policy = authorization("a", app, action, &format!("{{to: [{{operation: {to}}}]}}"));
        check(&mut publisher, &policy, &[expect]);
    }
    check(&mut publisher, &authorization("a", "x", "ALLOW", "{to: [{operation: {methods: [GET]}}]}"), &[]);
}

#[test]
fn ports_that_nobody_serves() {
    let mut publisher = publisher([]);
    let rule = "{to: [{operation: {ports: ['80', '8080', '81']}}]}";
    check(
        &mut publisher,
        &authorization("a", "x", "DENY", rule),
        &[
            "rules[0] ports: 80 is the Service's port; policies name the workload's own, 8080",
            "rules[0] ports: no selected workload is known to serve port 81",
        ],
    );
    check(&mut publisher, &authorization("c", "lone", "DENY", rule), &[]);
    let spec = "{selector: {matchLabels: {app: x}}, portLevelMtls: {80: {mode: STRICT}}}";
    let expect = "portLevelMtls: 80 is the Service's port; policies name the workload's own, 8080";
    check(&mut publisher, &object("PeerAuthentication", "a", spec), &[expect]);
}

#[test]
fn policies_that_apply_to_nothing() {
    let mut publisher = publisher([]);
    let nobody = "spec.selector: selects nothing now: no workload of namespace \"a\" has these labels";
    check(&mut publisher, &authorization("a", "absent", "DENY", "{}"), &[nobody]);
    let empty = "selects nothing now: namespace \"b\" has no workload";
    check(&mut publisher, &object("AuthorizationPolicy", "b", "{}"), &[empty]);
    let mesh = "spec.selector: selects nothing now: no workload of the mesh has these labels";
    check(&mut publisher, &authorization("istio-system", "absent", "DENY", "{}"), &[mesh]);
    check(&mut publisher, &authorization("istio-system", "x", "DENY", "{}"), &[]);
    let target = "{targetRefs: [{group: gateway.networking.k8s.io, kind: Gateway, name: g}]}";
    let expect = "spec.targetRefs: no gateway or waypoint is served here: the policy applies to nothing";
    check(&mut publisher, &object("AuthorizationPolicy", "a", target), &[expect]);
    let root = "{selector: {matchLabels: {app: x}}, mtls: {mode: STRICT}}";
    let expect = "spec.selector: in the root namespace a PeerAuthentication with a selector has no effect";
    check(&mut publisher, &object("PeerAuthentication", "istio-system", root), &[expect]);
}

#[test]
fn dry_runs_and_providers() {
    let mut publisher = publisher([]);
    let custom = object("AuthorizationPolicy", "a", "{action: CUSTOM, provider: {name: opa}, rules: [{}]}");
    let expect =
        "spec.provider: no usable ext_authz provider \"opa\" in the mesh config: what matches is denied";
    check(&mut publisher, &custom, &[expect]);
    let Object::AuthorizationPolicy(mut dry) = authorization("a", "x", "DENY", "{}") else { panic!() };
    dry.meta.dry_run = true;
    let expect = "dry run: evaluated and counted, nothing is allowed or denied by it";
    check(&mut publisher, &Object::AuthorizationPolicy(dry), &[expect]);
}

#[test]
fn the_older_of_two_decides() {
    let mut old = peer("a", "old", None, MtlsMode::Permissive);
    old.meta.created = 100;
    let mut publisher = publisher([Object::PeerAuthentication(old)]);
    let Object::PeerAuthentication(mut new) = object("PeerAuthentication", "a", "{mtls: {mode: STRICT}}")
    else {
        panic!()
    };
    let expect = "\"old\" is older and decides for the namespace: there this policy is ignored completely";
    check(&mut publisher, &Object::PeerAuthentication(new.clone()), &[expect]);
    new.meta.created = 99;
    check(&mut publisher, &Object::PeerAuthentication(new.clone()), &[]);
    new.meta.created = 101;
    new.attachment = Attachment::Labels(labels(&[("app", "x")]));
    check(&mut publisher, &Object::PeerAuthentication(new), &[]);
}

#[test]
fn tokens_that_nobody_asks_for() {
    let request = "{selector: {matchLabels: {app: x}}, jwtRules: [{issuer: i, jwksUri: 'https://i/keys'}]}";
    let request = object("RequestAuthentication", "a", request);
    let expect = "requests without a token pass: no AuthorizationPolicy for x asks for requestPrincipals";
    check(&mut publisher([]), &request, &[expect]);
    let asking = authorization("a", "x", "ALLOW", "{from: [{source: {requestPrincipals: ['*']}}]}");
    check(&mut publisher([asking]), &request, &[]);
}

/// The owner of the state does nothing else meanwhile: also where everything is selected, it must be quick.
#[test]
fn a_large_mesh_is_looked_at_in_milliseconds() {
    let many = (0..2000).flat_map(|n| {
        let app = format!("app-{n}");
        let address = format!("10.{}.{}.9", 20 + n / 250, n % 250);
        [
            Object::Workload(pod("a", &format!("{app}-1"), &app, &address)),
            authorization("a", &app, "DENY", "{from: [{source: {principals: [p]}}]}"),
        ]
    });
    let mut publisher = publisher(many);
    let policy = authorization("istio-system", "x", "DENY", "{from: [{source: {principals: [p]}}]}");
    let everybody = object(
        "AuthorizationPolicy",
        "istio-system",
        "{action: DENY, rules: [{from: [{source: {principals: [p]}}]}]}",
    );
    for object in [policy, everybody] {
        let start = std::time::Instant::now();
        assert!(!advise(&mut publisher, &object).is_empty());
        let took = start.elapsed();
        println!("{took:?}");
        // A debug build on a busy machine.
        assert!(took < std::time::Duration::from_secs(2), "{took:?}");
    }
}
