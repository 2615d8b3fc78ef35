use super::*;

fn injection(args: &InjectArgs) -> Injection<'_> {
    Injection {
        args,
        settings: settings(args).unwrap(),
        secret: "5ec2e7".to_owned(),
        namespaces: BTreeMap::new(),
    }
}

fn args() -> InjectArgs {
    InjectArgs {
        file: "-".into(),
        injection_config: None,
        image: Some("r/c:1".to_owned()),
        namespace: "shop".to_owned(),
        trust_domain: "cluster.local".to_owned(),
        native_sidecar: true,
    }
}

fn done(yaml: &str) -> Result<Value> {
    let args = args();
    let mut injection = injection(&args);
    let mut object: Value = serde_yaml::from_str(yaml)?;
    injection.learn(&object);
    injection.object(&mut object)?;
    Ok(object)
}

#[test]
fn every_kind_that_makes_pods_is_injected() {
    let template = "metadata: {labels: {a: b}}, spec: {containers: [{name: app, image: a}]}";
    for (kind, pointer, spec) in [
        ("Deployment", "/spec/template", format!("template: {{{template}}}")),
        ("StatefulSet", "/spec/template", format!("template: {{{template}}}")),
        ("DaemonSet", "/spec/template", format!("template: {{{template}}}")),
        ("ReplicaSet", "/spec/template", format!("template: {{{template}}}")),
        ("Job", "/spec/template", format!("template: {{{template}}}")),
        (
            "CronJob",
            "/spec/jobTemplate/spec/template",
            format!("jobTemplate: {{spec: {{template: {{{template}}}}}}}"),
        ),
        ("Pod", "", "containers: [{name: app, image: a}]".to_owned()),
    ] {
        let one = format!("{{kind: {kind}, metadata: {{name: web}}, spec: {{{spec}}}}}");
        let new = done(&one).unwrap();
        let pod = new.pointer(pointer).unwrap();
        assert_eq!(pod["spec"]["initContainers"][1]["name"], "istio-proxy", "{kind}");
        assert_eq!(pod["metadata"]["labels"]["service.istio.io/canonical-name"], "web", "{kind}");
        assert_eq!(pod["metadata"]["name"].is_null(), kind != "Pod", "{kind}");
        if kind != "Pod" {
            assert_eq!(
                new["metadata"],
                serde_json::json!({"name": "web"}),
                "{kind}: what is round the template stays"
            );
        }
        // And in a List, beside what is none.
        let list = format!("{{kind: List, items: [{one}, {{kind: Service, metadata: {{name: s}}}}]}}");
        let list = done(&list).unwrap();
        assert_eq!(list["items"][0], new, "{kind}");
        assert_eq!(list["items"][1], serde_json::json!({"kind": "Service", "metadata": {"name": "s"}}));
    }
}

#[test]
fn what_the_webhook_would_refuse_is_an_error_and_says_where() {
    let bad = "{kind: Deployment, metadata: {name: web, namespace: n}, spec: {template: {metadata: {annotations: \
               {sidecar.istio.io/interceptionMode: NONE}}, spec: {containers: []}}}}";
    let error = format!("{:#}", done(bad).unwrap_err());
    assert!(error.contains("Deployment n/web") && error.contains("interceptionMode"), "{error}");
    assert!(done("{kind: Deployment, metadata: {name: web}, spec: {}}").is_err());
}

#[test]
fn namespaces_of_the_file_decide() {
    let pod = "{kind: Pod, metadata: {name: p, namespace: quiet}, spec: {containers: [{name: app}]}}";
    let with = |labels: &str| {
        format!(
            "{{kind: List, items: [{{kind: Namespace, metadata: {{name: quiet, labels: {{{labels}}}}}}}, {pod}]}}"
        )
    };
    let injected = |list: Value| list["items"][1]["spec"]["initContainers"].is_array();
    assert!(!injected(done(&with("")).unwrap()));
    assert!(injected(done(&with("istio-injection: enabled")).unwrap()));
    assert!(done(pod).unwrap()["spec"]["initContainers"].is_array());
}
