use serde_json::json;

use super::*;

fn slim(value: &Value, shape: &'static Shape) -> Slim {
    let line = json!({"type": "ADDED", "object": value}).to_string();
    match event(line.as_bytes(), shape) {
        Ok(Event::Upsert(slim)) => slim,
        other => panic!("{other:?}"),
    }
}

#[test]
fn a_pod_keeps_what_is_needed() {
    let pod = json!({
        "apiVersion": "v1", "kind": "Pod",
        "metadata": {
            "name": "a", "namespace": "n", "uid": "u", "resourceVersion": "7", "labels": {"app": "x"},
            "annotations": {"big": "…"}, "creationTimestamp": "2026-01-01T00:00:00Z",
            "managedFields": [{"manager": "kubelet", "time": "2", "subresource": "status", "fieldsV1": {"f:status": {}}}],
        },
        "spec": {
            "serviceAccountName": "sa", "hostNetwork": true, "volumes": [{}], "nodeName": "n1",
            "containers": [{"name": "c", "image": "i", "env": [{"name": "SECRET"}], "ports": [{"containerPort": 80, "name": "http"}]}],
            "initContainers": [{"restartPolicy": "Always", "ports": null, "args": []}],
        },
        "status": {
            "phase": "Running", "podIP": "10.0.0.1", "podIPs": [{"ip": "10.0.0.1"}], "hostIP": "10.9.9.9",
            "conditions": [{"type": "Ready", "status": "True", "lastProbeTime": null, "message": "m"}],
            "containerStatuses": [{"name": "c"}],
        },
    });
    let slim = slim(&pod, &POD);
    assert_eq!(
        slim.value,
        json!({
            "apiVersion": "v1", "kind": "Pod",
            "metadata": {
                "name": "a", "namespace": "n", "uid": "u", "labels": {"app": "x"}, "annotations": {},
                "creationTimestamp": "2026-01-01T00:00:00Z",
            },
            "spec": {
                "serviceAccountName": "sa", "hostNetwork": true,
                "containers": [{"ports": [{"containerPort": 80, "name": "http"}]}],
                "initContainers": [{"restartPolicy": "Always", "ports": null}],
            },
            "status": {
                "phase": "Running", "podIP": "10.0.0.1", "podIPs": [{"ip": "10.0.0.1"}],
                "conditions": [{"type": "Ready", "status": "True"}],
            },
        })
    );
    assert_eq!((&*slim.namespace, &*slim.name, &*slim.resource_version), ("n", "a", "7"));
    let version = slim.version.unwrap();
    assert_eq!((&*version.uid, version.generation, version.manager), ("u", 0, None));
}

/// Whatever a policy holds reaches its reader, who must see what is wrong with it.
#[test]
fn a_policy_keeps_everything_but_its_status() {
    let policy = json!({
        "apiVersion": "security.istio.io/v1", "kind": "AuthorizationPolicy", "specs": {"rules": []},
        "metadata": {
            "name": "a", "namespace": "n", "uid": "u", "generation": 3, "ownerReferences": [{}],
            "annotations": {"istio.io/dry-run": "true", "kubectl.kubernetes.io/last-applied-configuration": "{}"},
            "managedFields": [
                {"manager": "ann", "operation": "Update", "time": "2026-01-01T00:00:01Z"},
                {"manager": "bob", "operation": "Apply", "time": "2026-01-01T00:00:02Z"},
                {"manager": "countersign", "time": "2026-01-01T00:00:03Z", "subresource": "status"},
            ],
        },
        "spec": {"unknown": [{"deep": {"er": 1.5}}, null, true, -1, "text"]}, "status": {"conditions": [{}]},
    });
    let slim = slim(&policy, &POLICY);
    assert_eq!(slim.value["spec"], policy["spec"]);
    assert_eq!(slim.value["specs"], policy["specs"]);
    assert_eq!(slim.value.get("status"), None);
    assert_eq!(slim.value["metadata"]["annotations"], json!({"istio.io/dry-run": "true"}));
    let version = slim.version.unwrap();
    assert_eq!((version.generation, version.manager.as_deref()), (3, Some("bob")));
}

/// What has another shape than expected is kept, for its reader to refuse.
#[test]
fn odd_shapes_are_kept() {
    let pod = json!({"metadata": 5, "spec": "text", "status": [1, {"phase": "x", "other": 1}]});
    let slim = slim(&pod, &POD);
    assert_eq!(slim.value, json!({"metadata": 5, "spec": "text", "status": [1, {"phase": "x"}]}));
    assert_eq!((slim.version, &*slim.name), (None, ""));
}

#[test]
fn events() {
    let read = |text: &str| event(text.as_bytes(), &POD);
    let end = r#"{"type":"BOOKMARK","object":{"kind":"Pod","metadata":{"resourceVersion":"9","annotations":{"k8s.io/initial-events-end":"true","other":"x"}}}}"#;
    for shape in [&POD, &POLICY, &SPEC, &METADATA, &CONFIG_MAP] {
        match event(end.as_bytes(), shape) {
            Ok(Event::Bookmark(slim)) => {
                assert!(slim.ends_list() && slim.resource_version == "9", "{shape:?}");
            }
            other => panic!("{other:?}"),
        }
    }
    let bookmark = r#"{"type":"BOOKMARK","object":{"metadata":{"resourceVersion":"9"}}}"#;
    assert!(matches!(read(bookmark), Ok(Event::Bookmark(slim)) if !slim.ends_list()));
    let gone = r#"{"type":"ERROR","object":{"kind":"Status","status":"Failure","reason":"Expired","code":410,"message":"too old"}}"#;
    for shape in [&POD, &POLICY, &SPEC, &METADATA, &CONFIG_MAP] {
        let expect = Failure { code: 410, reason: "Expired".into(), message: "too old".into() };
        assert_eq!(event(gone.as_bytes(), shape).unwrap(), Event::Error(expect));
    }
    for bad in [
        "",
        "{}",
        "[]",
        "null",
        r#"{"type":"ADDED"}"#,
        r#"{"type":"WHAT","object":{}}"#,
        r#"{"type":"ADDED","object":{}} x"#,
        r#"{"type":"ADDED","object":{"metadata":{"name":"a""#,
    ] {
        assert!(read(bad).is_err(), "{bad}");
    }
}

/// A list that is not whole must not pass for one: what it lacks would be taken for deleted.
#[test]
fn pages() {
    let read = |text: &str| page(text.as_bytes(), &SPEC, "v1", "Service");
    let whole = read(r#"{"kind":"ServiceList","metadata":{"resourceVersion":"5","continue":"next"},"items":[{"metadata":{"name":"a"}},{"metadata":{"name":"b"},"kind":"Other"}]}"#).unwrap();
    assert_eq!((&*whole.resource_version, &*whole.next, whole.items.len()), ("5", "next", 2));
    assert_eq!(whole.items[0].value["kind"], "Service");
    assert_eq!(whole.items[0].value["apiVersion"], "v1");
    assert_eq!(whole.items[1].value["kind"], "Other");
    let last = read(r#"{"metadata":{"resourceVersion":"5","continue":null},"items":null}"#).unwrap();
    assert!(last.items.is_empty() && last.next.is_empty());
    for bad in [
        "{}",
        r#"{"metadata":{"resourceVersion":"5"}}"#,
        r#"{"metadata":{},"items":[]}"#,
        r#"{"items":[]}"#,
        r#"{"metadata":{"resourceVersion":"5"},"items":[{}"#,
        r#"{"metadata":{"resourceVersion":"5"},"items":{}}"#,
    ] {
        assert!(read(bad).is_err(), "{bad}");
    }
}
