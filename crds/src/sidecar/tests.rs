use mesh::{HostMatch, IngressApp, Protocol, Scope};

use crate::{Content, Object, Parsed, parse};

fn parsed(spec: &str) -> Parsed {
    let text = format!(
        "{{apiVersion: networking.istio.io/v1, kind: Sidecar, metadata: {{name: s, namespace: foo}}, spec: {spec}}}"
    );
    parse(&serde_yaml::from_str(&text).unwrap_or_else(|e| panic!("{text}: {e}")))
}

#[track_caller]
fn accepted(spec: &str) -> (mesh::Sidecar, Vec<String>) {
    let Parsed { content, findings } = parsed(spec);
    match content {
        Content::Object(object) => match *object {
            Object::Sidecar(sidecar) => (sidecar, findings.iter().map(ToString::to_string).collect()),
            other => panic!("{other:?}"),
        },
        other => panic!("{spec}: {other:?} {findings:?}"),
    }
}

/// Each host as `NAMESPACE/HOST`, `*` where any will do.
fn hosts(sidecar: &mesh::Sidecar) -> Vec<(Option<u16>, Vec<String>)> {
    let text = |rule: &mesh::HostRule| {
        let host = match &rule.host {
            HostMatch::Any => "*".to_owned(),
            HostMatch::Exact(host) => host.to_string(),
            HostMatch::Suffix(suffix) => format!("*{suffix}"),
        };
        format!("{}/{host}", rule.namespace.as_deref().unwrap_or("*"))
    };
    let egress = sidecar.scope.egress.iter().flatten();
    egress.map(|entry| (entry.port, entry.hosts.iter().map(text).collect())).collect()
}

#[test]
fn egress() {
    let (sidecar, warnings) = accepted(
        "{workloadSelector: {labels: {app: x}}, outboundTrafficPolicy: {mode: REGISTRY_ONLY}, egress: [
           {port: {number: 80, protocol: HTTP, name: http}, hosts: ['./*', 'bar/*.Example.com']},
           {hosts: ['*/a.b', '~/*', 'istio-system/*']}]}",
    );
    assert_eq!(sidecar.selector, Some([("app".to_owned(), "x".to_owned())].into()));
    assert_eq!(sidecar.scope.allow_any, Some(false));
    let text = |all: &[&str]| all.iter().map(|one| (*one).to_owned()).collect::<Vec<_>>();
    assert_eq!(
        hosts(&sidecar),
        [(Some(80), text(&["foo/*", "bar/*.example.com"])), (None, text(&["*/a.b", "istio-system/*"]))]
    );
    assert_eq!(warnings, Vec::<String>::new());
    for (spec, narrowed, allow_any) in [
        ("{}", false, None),
        ("{workloadSelector: {}}", false, None),
        ("{egress: [{hosts: ['~/*']}]}", true, None),
        ("{outboundTrafficPolicy: {}}", false, Some(false)),
        ("{outboundTrafficPolicy: {mode: ALLOW_ANY}}", false, Some(true)),
        ("{outboundTrafficPolicy: {mode: ALLOW_ANY, egressProxy: {host: a.b}}}", false, Some(false)),
    ] {
        let (sidecar, _) = accepted(spec);
        assert_eq!(sidecar.selector, None, "{spec}");
        let Scope { egress, allow_any: read } = &*sidecar.scope;
        assert_eq!((egress.is_some(), *read), (narrowed, allow_any), "{spec}");
        assert!(hosts(&sidecar).iter().all(|(_, hosts)| hosts.is_empty()), "{spec}");
    }
}

#[test]
fn ingress() {
    let (sidecar, warnings) = accepted(
        "{ingress: [
           {port: {number: 80, protocol: HTTP}, defaultEndpoint: '127.0.0.1:8080'},
           {port: {number: 81, protocol: tcp}, defaultEndpoint: 'unix:///run/app.sock'},
           {port: {number: 82, protocol: GRPC}, defaultEndpoint: '0.0.0.0:9'},
           {port: {number: 83}, bind: 10.0.0.1, tls: {mode: SIMPLE}}]}",
    );
    let read: Vec<_> = sidecar.ingress.iter().map(|i| (i.port, i.protocol, i.app.clone())).collect();
    assert_eq!(
        read,
        [
            (80, Protocol::Http, Some(IngressApp::Loopback(([127, 0, 0, 1], 8080).into()))),
            (81, Protocol::Tcp, Some(IngressApp::Pipe("/run/app.sock".into()))),
            (82, Protocol::Http2, Some(IngressApp::Own { ipv6: false, port: 9 })),
            (83, Protocol::Auto, None),
        ]
    );
    assert_eq!(
        warnings,
        [
            "spec.ingress[3].bind: it has no effect",
            "spec.ingress[3].tls: it has no effect: PeerAuthentication decides what the port takes"
        ]
    );
}

/// What Istio's admission refuses is refused, and until it is mended its workloads may call nothing.
#[test]
fn refusals_close() {
    let selected = "workloadSelector: {labels: {app: x}}, ";
    for (spec, expect, scope_unknown) in [
        ("{egress: [{}]}".to_owned(), "spec.egress[0].hosts: at least one host", false),
        ("{egress: [{hosts: [a.b]}]}".into(), "spec.egress[0].hosts[0]: `a.b` is not NAMESPACE/HOST", false),
        ("{egress: [{hosts: ['Foo/a.b']}]}".into(), "spec.egress[0].hosts[0]: `Foo` is neither", false),
        ("{egress: [{hosts: ['/a.b']}]}".into(), "spec.egress[0].hosts[0]: `` is neither", false),
        ("{egress: [{hosts: ['*/']}]}".into(), "spec.egress[0].hosts[0]: `` is not a host", false),
        ("{egress: [{hosts: ['*/a.*']}]}".into(), "spec.egress[0].hosts[0]: `a.*` is not a host", false),
        (
            "{egress: [{bind: 10.0.0.1, hosts: ['*/*']}]}".into(),
            "spec.egress[0].bind: an address needs",
            false,
        ),
        (
            "{egress: [{hosts: ['*/*']}, {hosts: ['./*']}]}".into(),
            "spec.egress[0]: the entry without a port is the last",
            false,
        ),
        (
            "{egress: [{port: {number: 0}, hosts: ['*/*']}]}".into(),
            "spec.egress[0].port.number: `0` is not a port",
            false,
        ),
        (
            "{egress: [{port: {number: 1, protocol: QUIC}, hosts: ['*/*']}]}".into(),
            "spec.egress[0].port.protocol: `QUIC`",
            false,
        ),
        ("{ingress: [{}]}".into(), "spec.ingress[0].port: a port is required", false),
        (
            "{ingress: [{port: {number: 1}}, {port: {number: 1}}]}".into(),
            "spec.ingress[1].port: this port is given twice",
            false,
        ),
        (
            "{ingress: [{port: {number: 1}, defaultEndpoint: '10.0.0.1:80'}]}".into(),
            "spec.ingress[0].defaultEndpoint: `10.0.0.1:80` is neither",
            false,
        ),
        (
            "{ingress: [{port: {number: 1}, tls: {mode: ISTIO_MUTUAL}}]}".into(),
            "spec.ingress[0].tls.mode: `ISTIO_MUTUAL` is not possible",
            false,
        ),
        ("{egres: []}".into(), "spec.egres: unknown field `egres`", true),
        ("{egress: {}}".into(), "spec.egress: invalid type", true),
        ("{outboundTrafficPolicy: {mode: ANY}}".into(), "spec.outboundTrafficPolicy.mode: unknown", true),
        ("{workloadSelector: {labels: {a: 'x*'}}}".into(), "spec.workloadSelector.labels.a: wildcards", true),
        (format!("{{{selected}egress: [{{}}]}}"), "spec.egress[0].hosts: at least one host", false),
    ] {
        let Parsed { content, findings } = parsed(&spec);
        assert!(findings.iter().any(|f| f.to_string().starts_with(expect)), "{spec}: {findings:?}");
        let Content::Invalid { closed: Some(closed), .. } = content else { panic!("{spec}: {content:?}") };
        assert_eq!(closed.scope_unknown, scope_unknown, "{spec}");
        let Object::Sidecar(sidecar) = *closed.object else { panic!("{spec}") };
        assert_eq!(*sidecar.scope, Scope::nothing(), "{spec}");
        assert!(sidecar.ingress.is_empty());
        assert_eq!(sidecar.selector.is_some(), spec.contains(selected), "{spec}");
    }
}
