use crate::{Content, Object, Parsed, parse};

fn read(labels: &str, spec: &str) -> Parsed {
    let text = format!(
        "{{apiVersion: networking.istio.io/v1, kind: WorkloadEntry, metadata: {{name: w, namespace: n, labels: {labels}}}, spec: {spec}}}"
    );
    parse(&serde_yaml::from_str(&text).unwrap_or_else(|e| panic!("{text}: {e}")))
}

#[track_caller]
fn accepted(labels: &str, spec: &str) -> mesh::Workload {
    match read(labels, spec).content {
        Content::Object(object) => match *object {
            Object::Workload(workload) => workload,
            other => panic!("{other:?}"),
        },
        other => panic!("{other:?}"),
    }
}

#[test]
fn fields() {
    let entry = accepted(
        "{app: metadata}",
        "{address: 127.0.1.1, ports: {http: 8080}, labels: {app: spec, x: y}, serviceAccount: sa, weight: 3, network: n}",
    );
    assert_eq!(entry.addresses[0].to_string(), "127.0.1.1");
    assert_eq!(entry.named_ports, [("http".to_owned(), 8080)].into());
    // Both count; the metadata wins.
    assert!(entry.labels["app"] == "metadata" && entry.labels["x"] == "y");
    assert!(&*entry.service_account == "sa" && entry.ready);
}

/// Semantics §1.6.
#[test]
fn mutual_tls() {
    for (labels, spec, expect) in [
        ("{}", "{}", false),
        ("{}", "{serviceAccount: sa}", true),
        ("{}", "{labels: {security.istio.io/tlsMode: istio}}", true),
        ("{security.istio.io/tlsMode: istio}", "{}", true),
        ("{security.istio.io/tlsMode: disabled}", "{serviceAccount: sa}", false),
    ] {
        assert_eq!(accepted(labels, spec).mutual_tls, expect, "{labels} {spec}");
    }
    assert_eq!(&*accepted("{}", "{}").service_account, "default");
}

#[test]
fn refused() {
    for (spec, expect) in [
        ("{address: db.example}", "spec.address: `db.example` is not an IP address"),
        ("{address: 'unix:///x'}", "spec.address: "),
        ("{ports: {http: 0}}", "spec.ports.http: "),
        ("{labels: {a: 5}}", "spec.labels.a: invalid type"),
    ] {
        let parsed = read("{}", spec);
        assert!(matches!(parsed.content, Content::Invalid { closed: None, .. }), "{spec}");
        assert!(parsed.findings[0].to_string().starts_with(expect), "{spec}: {}", parsed.findings[0]);
    }
}
