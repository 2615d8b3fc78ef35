use serde_json::json;

use super::*;
use crate::{Content, parse};

fn read_spec(spec: &Value) -> Result<mesh::Telemetry, Vec<String>> {
    let value = json!({
        "apiVersion": "telemetry.istio.io/v1", "kind": "Telemetry",
        "metadata": {"name": "t", "namespace": "n"}, "spec": spec,
    });
    let parsed = parse(&value);
    match parsed.content {
        Content::Object(object) => match *object {
            Object::Telemetry(telemetry) => Ok(telemetry),
            other => panic!("{other:?}"),
        },
        Content::Invalid { object: _, closed } => {
            // There is nothing to close: a log decides nobody's access.
            assert_eq!(closed, None);
            Err(parsed.findings.iter().map(ToString::to_string).collect())
        }
        other => panic!("{other:?}"),
    }
}

#[test]
fn every_field_is_read() {
    let telemetry = read_spec(&json!({
        "selector": {"matchLabels": {"app": "x"}},
        "accessLogging": [
            {},
            {"match": {"mode": "SERVER"}, "providers": [{"name": "envoy"}, {"name": "als"}]},
            {"match": {"mode": "CLIENT"}, "disabled": true, "filter": {"expression": "response.code > 399"}},
        ],
        "tracing": [{"anything": 1}], "metrics": [{}],
    }));
    let entry = AccessLogging { mode: LogMode::Both, providers: Vec::new(), disabled: false, filter: None };
    let expect = mesh::Telemetry {
        namespace: "n".into(),
        name: "t".into(),
        created: 0,
        reach: Reach::Labels([("app".to_owned(), "x".to_owned())].into()),
        access_logging: vec![
            entry.clone(),
            AccessLogging {
                mode: LogMode::Server,
                providers: vec!["envoy".into(), "als".into()],
                ..entry.clone()
            },
            AccessLogging {
                mode: LogMode::Client,
                disabled: true,
                filter: Some("response.code > 399".into()),
                ..entry
            },
        ],
    };
    assert_eq!(telemetry, Ok(expect));
    assert_eq!(read_spec(&json!({})).unwrap().reach, Reach::Namespace);
}

#[test]
fn targets_are_never_the_namespace() {
    let target = |group: &str, kind: &str, name: &str| json!({"group": group, "kind": kind, "name": name});
    let gateway = target("gateway.networking.k8s.io", "Gateway", "g");
    let spec = json!({"targetRefs": [gateway, target("", "Service", "s")]});
    assert_eq!(read_spec(&spec).unwrap().reach, Reach::Gateways(vec!["g".to_owned()]));
    let spec = json!({"targetRef": target("", "Service", "s")});
    assert_eq!(read_spec(&spec).unwrap().reach, Reach::Gateways(Vec::new()));
}

#[test]
fn mistakes_are_named() {
    for (spec, part) in [
        (json!({"acessLogging": []}), "acessLogging"),
        (json!({"accessLogging": [{"filtr": {}}]}), "spec.accessLogging[0].filtr"),
        (json!({"accessLogging": [{"match": {"mode": "INBOUND"}}]}), "spec.accessLogging[0].match.mode"),
        (json!({"accessLogging": [{"providers": [{}]}]}), "spec.accessLogging[0].providers[0].name"),
        (json!({"accessLogging": [{"filter": {}}]}), "expression: an expression is required"),
        (
            json!({"accessLogging": [{"filter": {"expression": "response.code >"}}]}),
            "spec.accessLogging[0].filter.expression: something is missing",
        ),
        (json!({"selector": {"matchLabels": {"": "x"}}}), "a label needs a name"),
        (json!({"selector": {}, "targetRefs": [{"kind": "Gateway", "name": "g"}]}), "only one of"),
    ] {
        let findings = read_spec(&spec).expect_err(&spec.to_string());
        assert!(findings.iter().any(|finding| finding.contains(part)), "{spec}: {findings:?}");
    }
}

#[test]
fn what_has_no_effect_is_said() {
    let value = json!({
        "apiVersion": "telemetry.istio.io/v1alpha1", "kind": "Telemetry",
        "metadata": {"name": "t"}, "spec": {"tracing": [{}], "metrics": [{}]},
    });
    let findings: Vec<_> = parse(&value).findings.iter().map(ToString::to_string).collect();
    assert_eq!(findings, ["spec.tracing: has no effect here", "spec.metrics: has no effect here"]);
}
