use crate::{Content, Object, Parsed, parse};

fn read(metadata: &str, rest: &str) -> Parsed {
    let text = format!("{{apiVersion: v1, kind: Pod, metadata: {{name: p, namespace: n{metadata}}}{rest}}}");
    parse(&serde_yaml::from_str(&text).unwrap_or_else(|e| panic!("{text}: {e}")))
}

#[track_caller]
fn accepted(metadata: &str, rest: &str) -> mesh::Workload {
    match read(metadata, rest).content {
        Content::Object(object) => match *object {
            Object::Workload(workload) => workload,
            other => panic!("{other:?}"),
        },
        other => panic!("{other:?}"),
    }
}

#[test]
fn fields() {
    let pod = accepted(
        ", labels: {app: x, security.istio.io/tlsMode: istio}, creationTimestamp: '1970-01-01T00:00:09Z'",
        ", spec: {serviceAccountName: sa, nodeName: whatever, containers: [{name: a, ports: [{name: http, containerPort: 80}, {containerPort: 81}, {name: dns, containerPort: 53, protocol: UDP}]}], initContainers: [{ports: [{name: init, containerPort: 1}]}, {restartPolicy: Always, ports: [{name: side, containerPort: 2}]}]}, status: {phase: Running, podIP: 10.0.0.1, podIPs: [{ip: 10.0.0.1}, {ip: 'fd00::1'}], conditions: [{type: Ready, status: 'True'}]}",
    );
    assert_eq!(&*pod.service_account, "sa");
    assert_eq!(pod.named_ports, [("http".to_owned(), 80), ("side".to_owned(), 2)].into());
    assert_eq!(pod.addresses.iter().map(ToString::to_string).collect::<Vec<_>>(), ["10.0.0.1", "fd00::1"]);
    assert!(pod.mutual_tls && pod.ready && pod.created == 9 && pod.labels["app"] == "x");
    let bare = accepted("", "");
    assert!(
        &*bare.service_account == "default" && bare.ready && !bare.mutual_tls && bare.addresses.is_empty()
    );
    assert_eq!(&*accepted("", ", spec: {serviceAccount: old}").service_account, "old");
}

#[test]
fn readiness() {
    for (status, ready) in [
        ("{}", true),
        ("{phase: Running}", true),
        ("{phase: Pending}", false),
        ("{phase: Succeeded}", false),
        ("{phase: Running, conditions: [{type: Ready, status: 'False'}]}", false),
        ("{phase: Running, conditions: [{type: Initialized, status: 'False'}]}", true),
        ("{conditions: [{type: Ready, status: Unknown}]}", false),
    ] {
        assert_eq!(accepted("", &format!(", status: {status}")).ready, ready, "{status}");
    }
}

/// Addresses are reused, and a node's are shared: neither speaks for the Pod.
#[test]
fn addresses_that_are_its_own() {
    for (spec, phase, own) in [
        ("{}", "Running", true),
        ("{}", "Pending", true),
        ("{}", "Unknown", true),
        ("{}", "Succeeded", false),
        ("{}", "Failed", false),
        ("{hostNetwork: false}", "Running", true),
        ("{hostNetwork: true}", "Running", false),
    ] {
        let rest = format!(
            ", spec: {spec}, status: {{phase: {phase}, podIP: 10.0.0.1, podIPs: [{{ip: 10.0.0.1}}]}}"
        );
        assert_eq!(!accepted("", &rest).addresses.is_empty(), own, "{spec} {phase}");
    }
}

#[test]
fn refused() {
    for (rest, expect) in [
        (", status: {podIP: x}", "status.podIPs[0]: `x` is not an IP address"),
        (
            ", spec: {containers: [{ports: [{name: a, containerPort: 0}]}]}",
            "spec.containers[0].ports: `0` is not",
        ),
        (", spec: {serviceAccountName: 5}", "spec.serviceAccountName: invalid type"),
        (", spec: {containers: {}}", "spec.containers: invalid type"),
    ] {
        let parsed = read("", rest);
        assert!(matches!(parsed.content, Content::Invalid { closed: None, .. }), "{rest}");
        assert!(parsed.findings[0].to_string().starts_with(expect), "{rest}: {}", parsed.findings[0]);
    }
    // Policies select by labels: one that cannot be read must not just be missing.
    assert!(matches!(read(", labels: {app: 5}", "").content, Content::Invalid { .. }));
}
