use policy::{Attachment, MtlsMode};

use crate::{Content, Object, parse};

fn read(spec: &str) -> crate::Parsed {
    let text = format!(
        "{{apiVersion: security.istio.io/v1, kind: PeerAuthentication, metadata: {{name: p}}, spec: {spec}}}"
    );
    parse(&serde_yaml::from_str(&text).unwrap_or_else(|e| panic!("{text}: {e}")))
}

#[track_caller]
fn accepted(spec: &str) -> policy::PeerAuthentication {
    match read(spec).content {
        Content::Object(object) => match *object {
            Object::PeerAuthentication(policy) => policy,
            other => panic!("{other:?}"),
        },
        other => panic!("{spec}: {other:?}"),
    }
}

/// Semantics §1.3.
#[test]
fn modes() {
    for (spec, mode) in [
        ("{}", None),
        ("{mtls: {}}", None),
        ("{mtls: {mode: UNSET}}", None),
        ("{mtls: {mode: DISABLE}}", Some(MtlsMode::Disable)),
        ("{mtls: {mode: PERMISSIVE}}", Some(MtlsMode::Permissive)),
        ("{mtls: {mode: STRICT}}", Some(MtlsMode::Strict)),
    ] {
        let policy = accepted(spec);
        assert_eq!(policy.mode, mode, "{spec}");
        assert_eq!(policy.attachment, Attachment::Namespace);
    }
    let policy = accepted(
        "{selector: {matchLabels: {app: x}}, portLevelMtls: {8080: {mode: STRICT}, '9090': {}, 1: {mode: DISABLE}}}",
    );
    assert_eq!(policy.attachment, Attachment::Labels([("app".to_owned(), "x".to_owned())].into()));
    assert_eq!(
        policy.ports,
        [(1, Some(MtlsMode::Disable)), (8080, Some(MtlsMode::Strict)), (9090, None)].into()
    );
}

#[test]
fn refusals_are_strict() {
    let selected = "selector: {matchLabels: {app: x}}, ";
    for (spec, expect) in [
        ("{mtls: {mode: strict}}".to_owned(), "spec.mtls.mode: unknown variant `strict`"),
        ("{mtls: {mode: 3}}".into(), "spec.mtls.mode: invalid type"),
        ("{mtls: {Mode: STRICT}}".into(), "spec.mtls.Mode: unknown field `Mode`"),
        ("{mtls: []}".into(), "spec.mtls: invalid type: sequence"),
        ("{mtls: null}".into(), "spec.mtls: nothing is given here"),
        ("{mtls: STRICT}".into(), "spec.mtls: invalid type: string"),
        ("{mTLS: {mode: STRICT}}".into(), "spec.mTLS: unknown field"),
        ("{targetRefs: []}".into(), "spec.targetRefs: unknown field"),
        (
            "{portLevelMtls: {80: {mode: DISABLE}}}".into(),
            "spec.portLevelMtls: ports can only be given together",
        ),
        ("{selector: {}, portLevelMtls: {80: {mode: DISABLE}}}".into(), "spec.portLevelMtls: ports can only"),
        (format!("{{{selected}portLevelMtls: {{}}}}"), "spec.portLevelMtls: no port is given"),
        (format!("{{{selected}portLevelMtls: {{0: {{}}}}}}"), "spec.portLevelMtls.0: not a port number"),
        (
            format!("{{{selected}portLevelMtls: {{65536: {{}}}}}}"),
            "spec.portLevelMtls.65536: not a port number",
        ),
        (
            format!("{{{selected}portLevelMtls: {{http: {{}}}}}}"),
            "spec.portLevelMtls.http: not a port number",
        ),
        (
            format!("{{{selected}portLevelMtls: {{'080': {{}}, 80: {{}}}}}}"),
            "spec.portLevelMtls.80: this port is given twice",
        ),
        (format!("{{{selected}portLevelMtls: {{80: []}}}}"), "spec.portLevelMtls.80: invalid type: sequence"),
    ] {
        let parsed = read(&spec);
        let errors: Vec<_> = parsed
            .findings
            .iter()
            .filter(|f| f.severity == crate::Severity::Error)
            .map(ToString::to_string)
            .collect();
        assert!(errors.iter().any(|e| e.starts_with(expect)), "{spec}: {errors:?}");
        let Content::Invalid { closed: Some(closed), .. } = parsed.content else { panic!("{spec}") };
        let Object::PeerAuthentication(policy) = *closed.object else { panic!("{spec}") };
        assert_eq!((policy.mode, policy.ports.len()), (Some(MtlsMode::Strict), 0), "{spec}");
    }
}
