use mesh::{EntryAddress, Protocol, Resolution, TargetPort};

use crate::{Content, Object, Parsed, parse};

fn parsed(spec: &str) -> Parsed {
    let text = format!(
        "{{apiVersion: networking.istio.io/v1, kind: ServiceEntry, metadata: {{name: e, namespace: foo}}, spec: {spec}}}"
    );
    parse(&serde_yaml::from_str(&text).unwrap_or_else(|e| panic!("{text}: {e}")))
}

#[track_caller]
fn accepted(spec: &str) -> mesh::ServiceEntry {
    let Parsed { content, findings } = parsed(spec);
    match content {
        Content::Object(object) => match *object {
            Object::ServiceEntry(entry) => entry,
            other => panic!("{other:?}"),
        },
        other => panic!("{spec}: {other:?} {findings:?}"),
    }
}

#[test]
fn everything_is_read() {
    let read = accepted(
        "{hosts: [A.example.com, '*.example.org'], addresses: [10.0.0.1, 10.0.0.2/32, 10.1.0.0/16],
          location: MESH_INTERNAL, resolution: STATIC, exportTo: ['.'], subjectAltNames: ['spiffe://td/ns/a/sa/b'],
          ports: [{number: 80, name: web, protocol: HTTP, targetPort: 8080}, {number: 443, name: tls, protocol: TLS},
                  {number: 53, name: dns, protocol: UDP}],
          endpoints: [{address: 10.0.1.1, ports: {web: 81}, serviceAccount: orders}, {address: 10.0.1.2},
                      {address: 10.0.1.3, serviceAccount: x, labels: {security.istio.io/tlsMode: disabled}}]}",
    );
    assert_eq!(read.hosts, ["*.example.org".into(), "a.example.com".into()]);
    assert_eq!(read.addresses.iter().map(ToString::to_string).collect::<Vec<_>>(), ["10.0.0.1", "10.0.0.2"]);
    let ports: Vec<_> = read.ports.iter().map(|p| (p.port, p.protocol, p.target.clone())).collect();
    assert_eq!(
        ports,
        [(80, Protocol::Http, TargetPort::Entry(8080)), (443, Protocol::Tcp, TargetPort::Entry(443))]
    );
    let entry = &read.entry;
    assert_eq!((entry.external, entry.resolution), (false, Resolution::Static));
    assert_eq!(entry.sni_ports, [443].into());
    let endpoints: Vec<_> = entry
        .endpoints
        .iter()
        .map(|e| (e.port(&read.ports[0]), e.mutual_tls, e.service_account.clone()))
        .collect();
    assert_eq!(
        endpoints,
        [(81, true, Some("orders".into())), (8080, false, None), (8080, false, Some("x".into()))]
    );
    let services: Vec<_> = read.services().map(|s| (s.name.to_string(), s.hostname.to_string())).collect();
    assert_eq!(services[1], ("e|a.example.com".to_owned(), "a.example.com".to_owned()));
    let external = accepted("{hosts: [a.example], resolution: DNS, endpoints: [{address: B.example}]}");
    assert!(external.entry.external);
    assert_eq!(external.entry.endpoints[0].address, EntryAddress::Name("b.example".into()));
}

#[test]
fn refusals() {
    for (spec, expect) in [
        ("{}", "spec.hosts: at least one host"),
        ("{hosts: ['*']}", "spec.hosts[0]: `*` alone"),
        ("{hosts: [a_b]}", "spec.hosts[0]: `a_b` is not a host"),
        ("{hosts: [a.b, A.b]}", "spec.hosts[1]: `A.b` is given twice"),
        ("{hosts: [a.b], addresses: [x]}", "spec.addresses[0]: `x` is neither"),
        ("{hosts: [a.b], endpoints: [{address: 10.0.0.1}]}", "spec.endpoints: resolution NONE has no"),
        ("{hosts: [a.b], resolution: STATIC}", "spec.endpoints: resolution STATIC needs"),
        (
            "{hosts: [a.b], resolution: STATIC, endpoints: [{address: c.d}]}",
            "spec.endpoints[0].address: `c.d`",
        ),
        ("{hosts: ['*.b'], resolution: DNS}", "spec.hosts: DNS has no wildcards"),
        ("{hosts: [a.b], resolution: DYNAMIC_DNS}", "spec.resolution: DYNAMIC_DNS is not supported"),
        ("{hosts: [a.b], resolution: ANY}", "spec.resolution: unknown variant"),
        ("{hosts: [a.b], ports: [{number: 80}]}", "spec.ports[0].name: a port needs"),
        ("{hosts: [a.b], ports: [{number: 0, name: x}]}", "spec.ports[0].number: `0` is not a port"),
        ("{hosts: [a.b], ports: [{number: 1, name: x, protocol: QUIC}]}", "spec.ports[0].protocol: `QUIC`"),
        (
            "{hosts: [a.b], ports: [{number: 1, name: x}, {number: 1, name: y}]}",
            "spec.ports[1].number: 1 is given twice",
        ),
        (
            "{hosts: [a.b], resolution: STATIC, workloadSelector: {labels: {a: b}}, endpoints: [{address: 10.0.0.1}]}",
            "spec: only one of",
        ),
        ("{hosts: [a.b], exportTo: ['*', a]}", "spec.exportTo: `*` cannot be combined"),
        ("{hostz: [a.b]}", "spec.hostz: unknown field"),
    ] {
        let Parsed { content, findings } = parsed(spec);
        assert!(findings.iter().any(|f| f.to_string().starts_with(expect)), "{spec}: {findings:?}");
        // What is not there leads nowhere: nothing has to be closed.
        assert!(matches!(content, Content::Invalid { closed: None, .. }), "{spec}");
    }
}
