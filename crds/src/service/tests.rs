use mesh::{Protocol, ServicePort, TargetPort};

use crate::{Content, Object, Parsed, parse};

fn read(spec: &str) -> Parsed {
    let text =
        format!("{{apiVersion: v1, kind: Service, metadata: {{name: s, namespace: n}}, spec: {spec}}}");
    parse(&serde_yaml::from_str(&text).unwrap_or_else(|e| panic!("{text}: {e}")))
}

#[track_caller]
fn accepted(spec: &str) -> mesh::Service {
    match read(spec).content {
        Content::Object(object) => match *object {
            Object::Service(service) => service,
            other => panic!("{other:?}"),
        },
        _ => panic!("{spec}: {:?}", read(spec).findings),
    }
}

#[test]
fn fields() {
    let service = accepted(
        "{clusterIP: 10.0.0.1, clusterIPs: [10.0.0.1, 'fd00::1'], selector: {app: x}, type: ClusterIP, ports: [{name: http-a, port: 80, targetPort: 8080}, {name: grpc, port: 90, targetPort: main}, {name: d, port: 53, protocol: UDP}, {port: 3306}, {name: x, port: 1, targetPort: 0, appProtocol: http2}]}",
    );
    assert_eq!(&*service.hostname, "s.n.svc.cluster.local");
    let ips: Vec<String> = service.cluster_ips.iter().map(ToString::to_string).collect();
    assert_eq!(ips, ["10.0.0.1", "fd00::1"]);
    assert_eq!(service.selector, Some([("app".to_owned(), "x".to_owned())].into()));
    let port = |name: &str, port, target, protocol| ServicePort { name: name.into(), port, target, protocol };
    assert_eq!(
        service.ports,
        [
            port("http-a", 80, TargetPort::Number(8080), Protocol::Http),
            port("grpc", 90, TargetPort::Name("main".into()), Protocol::Http2),
            port("", 3306, TargetPort::Number(3306), Protocol::Tcp),
            port("x", 1, TargetPort::Number(1), Protocol::Http2),
        ]
    );
}

#[test]
fn headless_and_selectorless() {
    for spec in ["{clusterIP: None}", "{}", "{clusterIPs: [None]}", "{clusterIP: ''}"] {
        let service = accepted(spec);
        assert_eq!((service.cluster_ips.len(), service.selector), (0, None), "{spec}");
    }
    assert_eq!(accepted("{selector: null, ports: null}").ports, []);
}

#[test]
fn refused() {
    for (spec, expect) in [
        ("{ports: [{port: 0}]}", "spec.ports[0].port: `0` is not a port number"),
        ("{ports: [{port: 65536}]}", "spec.ports[0].port: "),
        ("{ports: [{port: '80'}]}", "spec.ports[0].port: invalid type"),
        ("{ports: [{port: 80, targetPort: 70000}]}", "spec.ports[0].targetPort: "),
        ("{ports: [{port: 80, targetPort: '8080'}]}", "spec.ports[0].targetPort: `8080` in quotes"),
        ("{ports: [{port: 80, targetPort: [1]}]}", "spec.ports[0].targetPort: "),
        ("{clusterIP: x}", "spec.clusterIPs[0]: `x` is not an IP address"),
        ("{selector: {a: 5}}", "spec.selector.a: invalid type"),
        ("{selector: [a]}", "spec.selector: invalid type"),
        ("[]", "spec: invalid type"),
    ] {
        let parsed = read(spec);
        assert!(matches!(parsed.content, Content::Invalid { closed: None, .. }), "{spec}");
        assert!(parsed.findings[0].to_string().starts_with(expect), "{spec}: {}", parsed.findings[0]);
    }
}
