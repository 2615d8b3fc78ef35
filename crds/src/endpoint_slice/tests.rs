use crate::{Content, Object, Parsed, parse};

fn read(metadata: &str, rest: &str) -> Parsed {
    let text = format!(
        "{{apiVersion: discovery.k8s.io/v1, kind: EndpointSlice, metadata: {{name: e, namespace: n{metadata}}}{rest}}}"
    );
    parse(&serde_yaml::from_str(&text).unwrap_or_else(|e| panic!("{text}: {e}")))
}

const OF: &str = ", labels: {kubernetes.io/service-name: s}";

#[track_caller]
fn accepted(rest: &str) -> mesh::EndpointSlice {
    match read(OF, rest).content {
        Content::Object(object) => match *object {
            Object::EndpointSlice(slice) => slice,
            other => panic!("{other:?}"),
        },
        other => panic!("{other:?}"),
    }
}

#[test]
fn fields() {
    let slice = accepted(
        ", addressType: IPv4, ports: [{name: http, port: 80}, {name: d, port: 53, protocol: UDP}, {name: any}], endpoints: [{addresses: [10.0.0.1, 10.0.0.2], targetRef: {kind: Pod, name: p}}, {addresses: [10.0.0.3], conditions: {ready: false}, targetRef: {kind: Pod, name: p, namespace: other}}, {addresses: [10.0.0.4], conditions: {ready: true, serving: true}, targetRef: {kind: Node, name: p}}]",
    );
    assert_eq!(&*slice.service, "s");
    assert_eq!(slice.ports, [mesh::EndpointPort { name: "http".into(), port: 80 }]);
    let brief: Vec<_> =
        slice.endpoints.iter().map(|e| (e.addresses.len(), e.ready, e.workload.as_deref())).collect();
    assert_eq!(brief, [(2, true, Some("p")), (1, false, None), (1, true, None)]);
    assert!(accepted(", addressType: FQDN, endpoints: [{addresses: [a.example]}]").endpoints.is_empty());
}

#[test]
fn refused() {
    for (metadata, rest, expect) in [
        ("", "", "metadata.labels: the label `kubernetes.io/service-name` is missing"),
        (OF, ", ports: [{port: 0}]", "ports[0].port: "),
        (OF, ", endpoints: [{addresses: [x]}]", "endpoints[0].addresses[0]: `x` is not an IP address"),
        (OF, ", endpoints: {}", "endpoints: invalid type"),
    ] {
        let parsed = read(metadata, rest);
        assert!(matches!(parsed.content, Content::Invalid { closed: None, .. }), "{rest}");
        assert!(parsed.findings[0].to_string().starts_with(expect), "{rest}: {}", parsed.findings[0]);
    }
}
