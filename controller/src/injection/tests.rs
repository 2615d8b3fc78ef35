//! The whole function: selection matrix, what is refused, that a second pass changes nothing, and golden patches.

use super::*;
use std::collections::BTreeMap;

fn settings(more: &str) -> Settings {
    Settings::read(&format!("image: registry.example/countersign:1.2.3\n{more}")).unwrap()
}

fn context(namespace: &str) -> Context<'_> {
    Context {
        namespace,
        namespace_labels: None,
        trust_domain: "cluster.local",
        native: true,
        secret: "5ec2e7",
    }
}

fn map(pairs: &[(&str, &str)]) -> Texts {
    pairs.iter().map(|(key, value)| ((*key).to_owned(), (*value).to_owned())).collect()
}

fn pod(yaml: &str) -> Value {
    serde_yaml::from_str(yaml).unwrap()
}

const BARE: &str = "{metadata: {name: web}, spec: {containers: [{name: app, image: a}]}}";

type Case = (&'static [(&'static str, &'static str)], &'static [(&'static str, &'static str)], bool);

/// Semantics §7.1: labels of the namespace and of the pod, and whether the API server asks revision `default`.
const ASKED: &[Case] = &[
    (&[], &[], false),
    (&[("istio-injection", "enabled")], &[], true),
    (&[("istio-injection", "enabled")], &[("sidecar.istio.io/inject", "false")], false),
    (&[("istio-injection", "enabled")], &[("sidecar.istio.io/inject", "true")], true),
    (&[("istio-injection", "enabled")], &[("istio.io/rev", "canary")], true),
    (&[("istio-injection", "disabled")], &[], false),
    (&[("istio-injection", "disabled")], &[("sidecar.istio.io/inject", "true")], false),
    (&[("istio-injection", "disabled"), ("istio.io/rev", "default")], &[], false),
    (&[("istio-injection", "enabled"), ("istio.io/rev", "canary")], &[], true),
    (&[("istio.io/rev", "default")], &[], true),
    (&[("istio.io/rev", "default")], &[("sidecar.istio.io/inject", "false")], false),
    (&[("istio.io/rev", "canary")], &[], false),
    (&[("istio.io/rev", "canary")], &[("istio.io/rev", "default")], false),
    (&[("istio.io/rev", "canary")], &[("sidecar.istio.io/inject", "true")], false),
    (&[], &[("istio.io/rev", "default")], true),
    (&[], &[("istio.io/rev", "default"), ("sidecar.istio.io/inject", "false")], false),
    (&[], &[("istio.io/rev", "canary")], false),
    (&[], &[("sidecar.istio.io/inject", "true")], true),
    (&[], &[("sidecar.istio.io/inject", "True")], false),
    (&[], &[("sidecar.istio.io/inject", "true"), ("istio.io/rev", "canary")], false),
    (&[("other", "label")], &[("other", "label")], false),
];

#[test]
fn the_selection_matrix() {
    let settings = settings("");
    for (of_namespace, of_pod, expected) in ASKED {
        let (of_namespace, of_pod) = (map(of_namespace), map(of_pod));
        assert_eq!(
            asked("shop", &of_namespace, &of_pod, &settings),
            *expected,
            "{of_namespace:?} {of_pod:?}"
        );
        for exempt in ["istio-system", "kube-system", "kube-public", "kube-node-lease"] {
            assert!(!asked(exempt, &of_namespace, &of_pod, &settings), "{exempt}");
        }
    }
}

#[test]
fn another_revision_is_asked_by_its_name_alone() {
    let settings = settings("revision: canary");
    for (of_namespace, of_pod, expected) in [
        (map(&[("istio-injection", "enabled")]), map(&[]), false),
        (map(&[("istio.io/rev", "canary")]), map(&[]), true),
        (map(&[]), map(&[("istio.io/rev", "canary")]), true),
        (map(&[]), map(&[("sidecar.istio.io/inject", "true")]), false),
        (map(&[("istio.io/rev", "default")]), map(&[]), false),
    ] {
        assert_eq!(asked("shop", &of_namespace, &of_pod, &settings), expected, "{of_namespace:?} {of_pod:?}");
    }
}

#[test]
fn namespaces_by_default() {
    let settings = settings("enableNamespacesByDefault: true");
    for (namespace, of_namespace, of_pod, expected) in [
        ("shop", map(&[]), map(&[]), true),
        ("shop", map(&[]), map(&[("sidecar.istio.io/inject", "false")]), false),
        ("shop", map(&[]), map(&[("istio.io/rev", "canary")]), false),
        ("shop", map(&[("istio-injection", "disabled")]), map(&[]), false),
        ("shop", map(&[("istio.io/rev", "canary")]), map(&[]), false),
        ("local-path-storage", map(&[]), map(&[]), false),
        ("kube-system", map(&[]), map(&[]), false),
    ] {
        assert_eq!(asked(namespace, &of_namespace, &of_pod, &settings), expected, "{namespace} {of_pod:?}");
    }
}

/// What is judged once the API server asks.
#[test]
fn judged_in_process() {
    let with = |metadata: &str, spec: &str| {
        pod(&format!("{{metadata: {{name: web, {metadata}}}, spec: {{{spec} containers: [{{name: app}}]}}}}"))
    };
    let never = "neverInjectSelector: [{matchLabels: {job: x}}, {}]\n";
    let off = "autoInject: false\nalwaysInjectSelector: [{matchExpressions: [{key: tier, operator: In, values: [a]}]}]\n";
    let no = "sidecar.istio.io/inject: 'false'";
    let yes = "sidecar.istio.io/inject: 'true'";
    for (more, metadata, spec, expected) in [
        ("", String::new(), "", None),
        ("", String::new(), "hostNetwork: true,", Some(Skip::HostNetwork)),
        ("", format!("labels: {{{yes}}}"), "hostNetwork: true,", Some(Skip::HostNetwork)),
        ("", String::new(), "os: {name: windows},", Some(Skip::Windows)),
        ("", format!("annotations: {{{no}}}"), "", Some(Skip::Refused)),
        ("", format!("labels: {{{yes}}}, annotations: {{{no}}}"), "", None),
        ("", format!("labels: {{{no}}}, annotations: {{{yes}}}"), "", Some(Skip::Refused)),
        (never, "labels: {job: x}".to_owned(), "", Some(Skip::NeverInjectSelector)),
        (never, format!("labels: {{job: x, {yes}}}"), "", None),
        (never, "labels: {job: y}".to_owned(), "", None),
        (off, String::new(), "", Some(Skip::NotAsked)),
        (off, "labels: {tier: a}".to_owned(), "", None),
        (off, format!("labels: {{{yes}}}"), "", None),
    ] {
        let outcome = inject(&with(&metadata, spec), &context("shop"), &settings(more)).unwrap();
        match (expected, outcome) {
            (None, Outcome::Injected { .. }) => {}
            (Some(expected), Outcome::Skipped(skip)) => {
                assert_eq!(skip, expected, "{more} {metadata} {spec}");
            }
            (expected, outcome) => panic!("{more} {metadata} {spec}: {expected:?} {outcome:?}"),
        }
    }
    for ignored in ["istio-system", "kube-system"] {
        let outcome = inject(&pod(BARE), &context(ignored), &settings("")).unwrap();
        assert_eq!(outcome, Outcome::Skipped(Skip::IgnoredNamespace));
    }
}

#[test]
fn what_must_not_start_is_refused_by_name() {
    for (yaml, part) in [
        ("{metadata: {labels: {sidecar.istio.io/inject: 'yes'}}, spec: {}}", "sidecar.istio.io/inject"),
        ("{metadata: {annotations: {sidecar.istio.io/inject: 'no'}}, spec: {}}", "sidecar.istio.io/inject"),
        (
            "{metadata: {annotations: {sidecar.istio.io/interceptionMode: NONE}}, spec: {}}",
            "interceptionMode",
        ),
        (
            "{metadata: {annotations: {prometheus.io/scrape: 'true', prometheus.io/port: x}}, spec: {}}",
            "prometheus.io/port",
        ),
        ("{metadata: {annotations: {prometheus.io/path: '$(X) y'}}, spec: {}}", "prometheus.io/path"),
        ("{spec: {securityContext: {runAsUser: 1337}}}", "1337"),
        ("{spec: {containers: [{name: app, securityContext: {runAsUser: 1337}}]}}", "app"),
        ("{spec: {initContainers: [{name: first, securityContext: {runAsUser: 1337}}]}}", "first"),
        ("{spec: {containers: [{name: istio-proxy}]}}", "istio-proxy"),
        ("{spec: {initContainers: [{name: istio-init}]}}", "istio-init"),
        ("{spec: {containers: [{name: app, ports: [{containerPort: 15020}]}]}}", "15020"),
        ("{spec: {volumes: [{name: istio-token, hostPath: {path: /}}]}}", "istio-token"),
        ("{spec: {containers: [{name: '../x'}]}}", "../x"),
        ("{metadata: {labels: {a: 1}}, spec: {}}", "is no text"),
        ("{metadata: {}}", "no spec"),
    ] {
        let refused = inject(&pod(yaml), &context("shop"), &settings("")).expect_err(yaml);
        assert!(refused.to_string().contains(part), "{yaml}: {refused}");
    }
}

/// A second pass, and a pod that Istio has injected, are left as they are; a status that came along without its sidecar
/// counts for nothing.
#[test]
fn once_is_enough() {
    for more in ["", "nativeSidecar: false"] {
        let Outcome::Injected { pod: once, .. } =
            inject(&pod(BARE), &context("shop"), &settings(more)).unwrap()
        else {
            panic!("not injected");
        };
        let again = inject(&once, &context("shop"), &settings(more)).unwrap();
        assert_eq!(again, Outcome::Skipped(Skip::Injected));
        let mut copied = pod(BARE);
        copied["metadata"]["annotations"] = once["metadata"]["annotations"].clone();
        assert!(matches!(inject(&copied, &context("shop"), &settings(more)), Ok(Outcome::Injected { .. })));
    }
    let istio = "{metadata: {annotations: {sidecar.istio.io/status: '{}'}}, spec: {containers: [{name: app}, {name: istio-proxy}]}}";
    assert_eq!(inject(&pod(istio), &context("shop"), &settings("")), Ok(Outcome::Skipped(Skip::Injected)));
}

/// Least privilege, whatever the pod says.
#[test]
fn the_containers_may_do_little() {
    let Outcome::Injected { pod, warnings } = inject(&pod(BARE), &context("shop"), &settings("")).unwrap()
    else {
        panic!("not injected");
    };
    assert!(warnings.is_empty(), "{warnings:?}");
    let init = &pod["spec"]["initContainers"];
    let (capture, proxy) = (&init[0]["securityContext"], &init[1]["securityContext"]);
    assert_eq!(capture["capabilities"], json!({"drop": ["ALL"], "add": ["NET_ADMIN"]}));
    assert_eq!(proxy["capabilities"], json!({"drop": ["ALL"]}));
    assert_eq!(
        (&proxy["runAsUser"], &proxy["runAsGroup"], &proxy["runAsNonRoot"]),
        (&json!(1337), &json!(1337), &json!(true))
    );
    for context in [capture, proxy] {
        assert_eq!(
            (&context["readOnlyRootFilesystem"], &context["allowPrivilegeEscalation"]),
            (&json!(true), &json!(false))
        );
        assert_eq!(context["seccompProfile"]["type"], "RuntimeDefault");
    }
}

/// What a user wrote is never read by the kubelet as something to replace, and never lands outside of its own value.
#[test]
fn hostile_text_stays_text() {
    let yaml = r#"
metadata:
  annotations: {prometheus.io/scrape: "true", prometheus.io/port: "9090", prometheus.io/path: '/m?x=$(POD_NAME)"}'}
spec:
  containers:
  - name: app
    livenessProbe: {httpGet: {port: 8080, path: '/"]}$(COUNTERSIGN_TOKEN){{.}}', httpHeaders: [{name: X, value: "a\nb: $$(c)"}]}}
"#;
    let Outcome::Injected { pod, .. } = inject(&pod(yaml), &context("shop"), &settings("")).unwrap() else {
        panic!("not injected");
    };
    let proxy = &pod["spec"]["initContainers"][1];
    let args: Vec<&str> = proxy["args"].as_array().unwrap().iter().filter_map(Value::as_str).collect();
    assert!(args.contains(&"--app-metrics=9090/m?x=$$(POD_NAME)\"}"), "{args:?}");
    let env =
        proxy["env"].as_array().unwrap().iter().find(|env| env["name"] == "COUNTERSIGN_APP_PROBES").unwrap();
    let expanded = env["value"].as_str().unwrap().replace("$$", "$");
    let questions: BTreeMap<String, Value> = serde_json::from_str(&expanded).unwrap();
    let asked = &questions["/app-health/app/livez"]["http"];
    assert_eq!(asked["path"], "/\"]}$(COUNTERSIGN_TOKEN){{.}}");
    assert_eq!(asked["headers"], json!([["X", "a\nb: $$(c)"]]));
    assert_eq!(pod["spec"]["containers"].as_array().unwrap().len(), 1);
}

#[test]
fn golden_patches() {
    let folder = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/injection");
    let mut seen = 0;
    for entry in std::fs::read_dir(&folder).unwrap().flatten() {
        let path = entry.path();
        let Some(name) =
            path.file_name().and_then(|name| name.to_str()).and_then(|name| name.strip_suffix(".pod.yaml"))
        else {
            continue;
        };
        seen += 1;
        let text = std::fs::read_to_string(&path).unwrap();
        let more =
            text.lines().filter_map(|line| line.strip_prefix("#settings ")).collect::<Vec<_>>().join("\n");
        let (pod, settings) = (pod(&text), settings(&more));
        let native = !name.contains("ordinary");
        let outcome = inject(&pod, &Context { native, ..context("shop") }, &settings).unwrap();
        let Outcome::Injected { pod: new, warnings } = outcome else { panic!("{name}: {outcome:?}") };
        let got = serde_yaml::to_string(&json!({"warnings": warnings, "patch": patch(&pod, &new)})).unwrap();
        let golden = folder.join(format!("{name}.patch.yaml"));
        if std::env::var_os("BLESS").is_some() {
            std::fs::write(&golden, &got).unwrap();
        }
        let expected = std::fs::read_to_string(&golden).unwrap_or_default();
        assert!(
            expected == got,
            "{name}: BLESS=1 cargo test -p controller golden_patches, and look at the difference\n{got}"
        );
    }
    assert!(seen >= 4, "{seen}");
}
