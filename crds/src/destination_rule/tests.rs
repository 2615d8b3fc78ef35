use mesh::{ClientTls, Originate, TrafficPolicy};
use serde_json::{Value, json};

use crate::finding::Severity;
use crate::object::Object;
use crate::parse::{Content, Parsed, parse};

fn parsed(spec: &str) -> Parsed {
    let spec: Value = serde_yaml::from_str(spec).unwrap_or_else(|error| panic!("{spec}: {error}"));
    parse(&json!({
        "apiVersion": "networking.istio.io/v1beta1", "kind": "DestinationRule",
        "metadata": {"name": "x", "namespace": "web", "creationTimestamp": "1970-01-01T00:00:07Z"}, "spec": spec,
    }))
}

fn rule(spec: &str) -> mesh::DestinationRule {
    match parsed(spec) {
        Parsed { content: Content::Object(object), .. } => match *object {
            Object::DestinationRule(rule) => rule,
            other => panic!("{other:?}"),
        },
        other => panic!("{spec}: {other:?}"),
    }
}

fn closed(spec: &str) -> (mesh::DestinationRule, bool) {
    match parsed(spec).content {
        Content::Invalid { closed: Some(closed), .. } => match *closed.object {
            Object::DestinationRule(rule) => (rule, closed.scope_unknown),
            other => panic!("{other:?}"),
        },
        other => panic!("{spec}: {other:?}"),
    }
}

fn messages(spec: &str, severity: Severity) -> Vec<String> {
    let findings = parsed(spec).findings.into_iter().filter(|finding| finding.severity == severity);
    findings.map(|finding| finding.to_string()).collect()
}

fn tls(spec: &str) -> ClientTls {
    rule(&format!("{{host: a.b, trafficPolicy: {{tls: {spec}}}}}")).policy.unwrap().tls.unwrap()
}

#[test]
fn hosts_are_qualified_in_the_rules_namespace() {
    for (host, expected) in [
        ("reviews", "reviews.web.svc.cluster.local"),
        ("Reviews.Prod.svc.cluster.local", "reviews.prod.svc.cluster.local"),
        ("reviews.prod", "reviews.prod"),
        ("'*'", "*"),
        ("'*.local'", "*.local"),
        ("'*-a.example.com'", "*-a.example.com"),
        ("10.0.0.1", "10.0.0.1"),
    ] {
        let rule = rule(&format!("{{host: {host}}}"));
        assert_eq!(&*rule.host, expected);
        assert_eq!((&*rule.namespace, &*rule.name, rule.created), ("web", "x", 7));
    }
}

#[test]
fn modes() {
    let originate = |originate| ClientTls::Originate(Originate { verify: true, ..originate });
    let some = |path: &str| Some(path.to_owned());
    for (spec, expected) in [
        ("{}", ClientTls::Disable),
        ("{mode: DISABLE, sni: x}", ClientTls::Disable),
        ("{mode: SIMPLE}", originate(Originate::default())),
        (
            "{mode: SIMPLE, sni: x, subjectAltNames: [y], caCertificates: /ca.pem, caCrl: /crl.pem}",
            originate(Originate {
                sni: "x".to_owned(),
                subject_alt_names: vec!["y".to_owned()],
                roots: some("/ca.pem"),
                revoked: some("/crl.pem"),
                ..Originate::default()
            }),
        ),
        ("{mode: SIMPLE, insecureSkipVerify: true}", ClientTls::Originate(Originate::default())),
        (
            "{mode: MUTUAL, clientCertificate: /c.pem, privateKey: /k.pem}",
            originate(Originate {
                certificate: Some(("/c.pem".to_owned(), "/k.pem".to_owned())),
                ..Originate::default()
            }),
        ),
        ("{mode: SIMPLE, credentialName: secret}", ClientTls::Refuse),
        ("{mode: MUTUAL, credentialName: 'configmap://web/x'}", ClientTls::Refuse),
        (
            "{mode: ISTIO_MUTUAL, sni: x, subjectAltNames: ['spiffe://a/b'], clientCertificate: /unused}",
            ClientTls::IstioMutual {
                sni: "x".to_owned(),
                subject_alt_names: vec!["spiffe://a/b".to_owned()],
            },
        ),
    ] {
        assert_eq!(tls(spec), expected, "{spec}");
    }
}

/// Semantics §1.6: each is what Istio's admission refuses.
#[test]
fn what_admission_refuses() {
    for (spec, field, reason) in [
        ("{}", "spec.host", "required"),
        ("{host: ''}", "spec.host", "required"),
        ("{host: 'a b'}", "spec.host", "DNS name"),
        ("{host: 'a.*.b'}", "spec.host", "DNS name"),
        ("{host: a, hosts: b}", "spec.hosts", "unknown field"),
        ("{host: a, trafficPolicy: {}}", "spec.trafficPolicy", "at least one"),
        ("{host: a, trafficPolicy: {tunnel: {}, proxyProtocol: {}}}", "spec.trafficPolicy", "together"),
        ("{host: a, trafficPolicy: {tls: {mode: simple}}}", "spec.trafficPolicy.tls.mode", "simple"),
        ("{host: a, trafficPolicy: {tls: {mode: 1}}}", "spec.trafficPolicy.tls.mode", ""),
        (
            "{host: a, trafficPolicy: {tls: {mode: MUTUAL, privateKey: /k}}}",
            "spec.trafficPolicy.tls.clientCertificate",
            "required",
        ),
        (
            "{host: a, trafficPolicy: {tls: {mode: MUTUAL, clientCertificate: /c}}}",
            "spec.trafficPolicy.tls.privateKey",
            "required",
        ),
        (
            "{host: a, trafficPolicy: {tls: {mode: SIMPLE, credentialName: x, caCertificates: /c}}}",
            "spec.trafficPolicy.tls.credentialName",
            "files",
        ),
        (
            "{host: a, trafficPolicy: {tls: {mode: MUTUAL, credentialName: x, caCrl: /c}}}",
            "spec.trafficPolicy.tls.credentialName",
            "files",
        ),
        (
            "{host: a, trafficPolicy: {tls: {mode: SIMPLE, credentialName: 'configmap://other/x'}}}",
            "spec.trafficPolicy.tls.credentialName",
            "own namespace",
        ),
        (
            "{host: a, trafficPolicy: {tls: {mode: SIMPLE, insecureSkipVerify: true, caCertificates: /c}}}",
            "spec.trafficPolicy.tls.insecureSkipVerify",
            "caCertificates",
        ),
        (
            "{host: a, trafficPolicy: {tls: {mode: SIMPLE, insecureSkipVerify: true, subjectAltNames: [a]}}}",
            "spec.trafficPolicy.tls.insecureSkipVerify",
            "subjectAltNames",
        ),
        (
            "{host: a, trafficPolicy: {tls: {mode: SIMPLE, insecureSkipVerify: true, credentialName: a}}}",
            "spec.trafficPolicy.tls.insecureSkipVerify",
            "credentialName",
        ),
        (
            "{host: a, trafficPolicy: {portLevelSettings: [{tls: {mode: DISABLE}}]}}",
            "spec.trafficPolicy.portLevelSettings[0].port",
            "required",
        ),
        (
            "{host: a, trafficPolicy: {portLevelSettings: [{port: {number: 1}}]}}",
            "spec.trafficPolicy.portLevelSettings[0]",
            "at least one",
        ),
        (
            "{host: a, trafficPolicy: {portLevelSettings: [{port: {number: 1}, tls: {mode: MUTUAL, clientCertificate: /c}}]}}",
            "spec.trafficPolicy.portLevelSettings[0].tls.privateKey",
            "required",
        ),
        ("{host: a, subsets: [{name: v1}, {name: v1}]}", "spec.subsets[1].name", "twice"),
        ("{host: a, subsets: [{name: 'v 1'}]}", "spec.subsets[0].name", "name"),
        (
            "{host: a, subsets: [{name: v1, trafficPolicy: {}}]}",
            "spec.subsets[0].trafficPolicy",
            "at least one",
        ),
        ("{host: a, exportTo: ['.', web]}", "spec.exportTo[1]", "twice"),
        ("{host: a, exportTo: ['*', web]}", "spec.exportTo", "others"),
        ("{host: a, exportTo: ['~']}", "spec.exportTo[0]", "namespace"),
        (
            "{host: a, workloadSelector: {matchLabels: {a: b}}, exportTo: ['*']}",
            "spec.exportTo",
            "own namespace",
        ),
        (
            "{host: a, workloadSelector: {matchLabels: {a: '*'}}}",
            "spec.workloadSelector.matchLabels.a",
            "wildcards",
        ),
        ("{host: a, workloadSelector: {labels: {a: b}}}", "spec.workloadSelector.labels", "unknown field"),
    ] {
        let errors = messages(spec, Severity::Error);
        assert!(
            errors.iter().any(|error| error.starts_with(&format!("{field}: ")) && error.contains(reason)),
            "{spec}: {errors:?}"
        );
    }
}

#[test]
fn what_has_no_effect_is_said() {
    for (spec, field) in [
        (
            "{host: a, trafficPolicy: {connectionPool: {tcp: {maxConnections: 1}}}}",
            "spec.trafficPolicy.connectionPool",
        ),
        ("{host: a, trafficPolicy: {outlierDetection: {}}}", "spec.trafficPolicy.outlierDetection"),
        ("{host: a, trafficPolicy: {loadBalancer: {simple: RANDOM}}}", "spec.trafficPolicy.loadBalancer"),
        (
            "{host: a, trafficPolicy: {portLevelSettings: [{port: {number: 1}, loadBalancer: {}}]}}",
            "spec.trafficPolicy.portLevelSettings[0].loadBalancer",
        ),
        ("{host: a, subsets: [{name: v1}]}", "spec.subsets"),
        ("{host: a, trafficPolicy: {tls: {}}}", "spec.trafficPolicy.tls.mode"),
        (
            "{host: a, trafficPolicy: {tls: {mode: SIMPLE, credentialName: x}}}",
            "spec.trafficPolicy.tls.credentialName",
        ),
        (
            "{host: a, trafficPolicy: {tls: {mode: SIMPLE, privateKey: /x}}}",
            "spec.trafficPolicy.tls.privateKey",
        ),
        (
            "{host: a, trafficPolicy: {tls: {mode: ISTIO_MUTUAL, caCertificates: /x}}}",
            "spec.trafficPolicy.tls.caCertificates",
        ),
        (
            "{host: a, trafficPolicy: {tls: {mode: SIMPLE, insecureSkipVerify: true}}}",
            "spec.trafficPolicy.tls.insecureSkipVerify",
        ),
        (
            "{host: a, trafficPolicy: {portLevelSettings: [{port: {number: 0}, tls: {mode: DISABLE}}]}}",
            "spec.trafficPolicy.portLevelSettings[0].port",
        ),
    ] {
        assert_eq!(messages(spec, Severity::Error), Vec::<String>::new(), "{spec}");
        let warnings = messages(spec, Severity::Warning);
        assert!(warnings.iter().any(|text| text.starts_with(&format!("{field}: "))), "{spec}: {warnings:?}");
    }
}

#[test]
fn ports_replace_and_the_first_counts() {
    let policy = rule(
        "{host: a, trafficPolicy: {tls: {mode: ISTIO_MUTUAL}, portLevelSettings: [
            {port: {number: 80}, tls: {mode: DISABLE}}, {port: {number: 81}, connectionPool: {}},
            {port: {number: 80}, tls: {mode: SIMPLE}}]}}",
    )
    .policy
    .unwrap();
    let TrafficPolicy { tls: _, ports } = &policy;
    assert_eq!(*ports, [(80, Some(ClientTls::Disable)), (81, None)].into());
    assert!(matches!(policy.port(82), Some(ClientTls::IstioMutual { .. })));
}

#[test]
fn who_sees_a_rule() {
    let names = |list: &[&str]| Some(list.iter().map(|name| (*name).into()).collect());
    for (spec, expected) in [
        ("{host: a}", None),
        ("{host: a, exportTo: ['*']}", None),
        ("{host: a, exportTo: ['.', b]}", names(&["web", "b"])),
        ("{host: a, workloadSelector: {matchLabels: {a: b}}}", names(&["web"])),
        ("{host: a, workloadSelector: {matchLabels: {a: b}}, exportTo: ['.']}", names(&["web"])),
    ] {
        assert_eq!(rule(spec).export_to, expected, "{spec}");
    }
}

/// Design decision 5: no plaintext, and no certificate of just anybody, for whom it may have been meant.
#[test]
fn what_cannot_be_understood_is_mesh_mtls() {
    let mutual = |names: &[&str]| {
        let subject_alt_names = names.iter().map(|name| (*name).to_owned()).collect();
        let tls = ClientTls::IstioMutual { sni: String::new(), subject_alt_names };
        Some(TrafficPolicy { tls: Some(tls), ports: Default::default() })
    };
    let host = "a.web.svc.cluster.local";
    for (spec, host, names, selector, shown) in [
        ("{host: a, trafficPolicy: {tls: {mode: simple}}}", host, &[][..], false, None),
        (
            "{host: a, trafficPolicy: {tls: {mode: DISABLE, x: 1}}, exportTo: ['.']}",
            host,
            &[],
            false,
            Some("web"),
        ),
        ("{host: a, trafficPolicy: {tls: {mode: DISABLE}}, exportTo: [1]}", host, &[], false, None),
        (
            "{host: a, trafficPolicy: {tls: {mode: ISTIO_MUTUAL, subjectAltNames: [b]}, portLevelSettings: [{}]}}",
            host,
            &["b"],
            false,
            None,
        ),
        (
            "{host: a, trafficPolicy: {}, workloadSelector: {matchLabels: {a: b}}}",
            host,
            &[],
            true,
            Some("web"),
        ),
        ("{host: a, workloadSelector: {matchLabels: 1}}", host, &[], false, Some("web")),
        ("{hosts: a, trafficPolicy: {tls: {mode: DISABLE}}}", "*", &[], false, None),
        ("{host: [a], trafficPolicy: {tls: {mode: DISABLE}}}", "*", &[], false, None),
        ("[]", "*", &[], false, None),
    ] {
        let (rule, scope_unknown) = closed(spec);
        assert_eq!(rule.policy, mutual(names), "{spec}");
        assert_eq!((&*rule.host, scope_unknown), (host, host == "*"), "{spec}");
        assert_eq!(rule.selector.is_some(), selector, "{spec}");
        let shown = shown.map(|name| std::collections::BTreeSet::from([name.into()]));
        assert_eq!(rule.export_to, shown, "{spec}");
    }
}
