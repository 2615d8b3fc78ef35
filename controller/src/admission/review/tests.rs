use serde_json::{Value, json};

use super::*;

fn object(api: &str, kind: &str, metadata: &Value, spec: &str) -> Value {
    let spec: Value = serde_yaml::from_str(spec).unwrap();
    let mut object =
        json!({"apiVersion": api, "kind": kind, "metadata": {"name": "p", "namespace": "ns"}, "spec": spec});
    for (key, value) in metadata.as_object().unwrap() {
        object["metadata"][key] = value.clone();
    }
    object
}

fn review(operation: &str, object: &Value, old: &Value) -> Value {
    let (group, version) = object["apiVersion"].as_str().unwrap().split_once('/').unwrap_or(("", "v1"));
    json!({
        "apiVersion": "admission.k8s.io/v1", "kind": "AdmissionReview",
        "request": {
            "uid": "u-1",
            "kind": {"group": group, "version": version, "kind": object["kind"]},
            "resource": {"group": group, "version": version, "resource": "x"},
            "name": "p", "namespace": "ns", "operation": operation,
            "userInfo": {"username": "jane", "groups": ["system:authenticated"]},
            "object": object, "oldObject": old, "dryRun": false, "options": {},
        },
    })
}

fn request(review: &Value) -> Request {
    read(review.to_string().as_bytes()).unwrap()
}

/// What the API server is told: allowed, the message, warnings.
fn told(review: &Value) -> (bool, String, Vec<String>) {
    let request = request(review);
    let answer = match judge(&request) {
        Verdict::Ignored => allowed(&request, &[]),
        Verdict::Good { findings, .. } => allowed(&request, &warnings(&findings)),
        Verdict::Bad { findings } => denied(&request, &findings),
    };
    assert_eq!(answer["apiVersion"], "admission.k8s.io/v1");
    assert_eq!(answer["response"]["uid"], "u-1");
    let texts = |value: &Value| {
        value.as_array().into_iter().flatten().map(|text| text.as_str().unwrap().to_owned()).collect()
    };
    (
        answer["response"]["allowed"].as_bool().unwrap(),
        answer["response"]["status"]["message"].as_str().unwrap_or_default().to_owned(),
        texts(&answer["response"]["warnings"]),
    )
}

const V1: &str = "security.istio.io/v1";

#[test]
fn a_bad_policy_is_refused_with_every_error() {
    let spec = "{action: DENY, rules: [{from: [{source: {ipBlocks: [x, 1.2.3.4]}}], to: [{operation: {ports: ['0', '70000']}}]}]}";
    let (allowed, message, _) =
        told(&review("CREATE", &object(V1, "AuthorizationPolicy", &json!({}), spec), &Value::Null));
    assert!(!allowed);
    assert_eq!(
        message,
        "configuration is invalid: invalid policy p.ns: spec.rules[0].from[0].source.ipBlocks[0]: `x` is neither an IP \
         address nor a CIDR block; spec.rules[0].to[0].operation.ports[1]: `70000` is not a port number from 0 to 65535"
    );
}

#[test]
fn the_answer_names_fields_for_programs() {
    let review = review(
        "UPDATE",
        &object(V1, "PeerAuthentication", &json!({}), "{mtls: {mode: Strict}}"),
        &Value::Null,
    );
    let request = request(&review);
    let Verdict::Bad { findings } = judge(&request) else { panic!() };
    let status = &denied(&request, &findings)["response"]["status"];
    assert_eq!(status["code"], 400);
    assert_eq!(status["details"]["causes"][0]["field"], "spec.mtls.mode");
    assert_eq!(status["details"]["kind"], "PeerAuthentication");
}

#[test]
fn what_passes() {
    let ok = "{mtls: {mode: STRICT}}";
    for (what, operation, object, old) in [
        ("v1", "CREATE", object(V1, "PeerAuthentication", &json!({}), ok), Value::Null),
        (
            "v1beta1",
            "CREATE",
            object("security.istio.io/v1beta1", "PeerAuthentication", &json!({}), ok),
            Value::Null,
        ),
        (
            "a version to come",
            "UPDATE",
            object("security.istio.io/v2", "PeerAuthentication", &json!({}), ok),
            Value::Null,
        ),
        (
            "a deletion",
            "DELETE",
            object(V1, "PeerAuthentication", &json!({}), "{mtls: {mode: x}}"),
            Value::Null,
        ),
        (
            "another group",
            "CREATE",
            object("networking.istio.io/v1", "VirtualService", &json!({}), "{}"),
            Value::Null,
        ),
        ("core", "CREATE", object("v1", "Pod", &json!({}), "{}"), Value::Null),
        (
            "a name to be made up",
            "CREATE",
            object(V1, "PeerAuthentication", &json!({"name": "", "generateName": "p-"}), ok),
            Value::Null,
        ),
        (
            "a bad one that is going",
            "UPDATE",
            object(
                V1,
                "PeerAuthentication",
                &json!({"deletionTimestamp": "2026-01-01T00:00:00Z", "finalizers": []}),
                "{x: 1}",
            ),
            object(
                V1,
                "PeerAuthentication",
                &json!({"deletionTimestamp": "2026-01-01T00:00:00Z", "finalizers": ["a/b"]}),
                "{x: 1}",
            ),
        ),
    ] {
        let (allowed, message, _) = told(&review(operation, &object, &old));
        assert!(allowed, "{what}: {message}");
    }
}

#[test]
fn what_is_refused() {
    let ok = "{mtls: {mode: STRICT}}";
    let going = json!({"deletionTimestamp": "2026-01-01T00:00:00Z"});
    for (what, object, old, part) in [
        (
            "unknown kind",
            object(V1, "PeerAuthn", &json!({}), ok),
            Value::Null,
            "there is no kind `PeerAuthn`",
        ),
        (
            "annotation",
            object(V1, "PeerAuthentication", &json!({"annotations": {"istio.io/dry-run": "true"}}), ok),
            Value::Null,
            "only an AuthorizationPolicy",
        ),
        (
            "spec changed on its way out",
            object(V1, "PeerAuthentication", &going, "{x: 2}"),
            object(V1, "PeerAuthentication", &going, "{x: 1}"),
            "unknown field `x`",
        ),
        (
            "bad and not going",
            object(V1, "PeerAuthentication", &json!({}), "{x: 1}"),
            object(V1, "PeerAuthentication", &json!({}), "{x: 1}"),
            "unknown field `x`",
        ),
        (
            "another namespace",
            object(V1, "PeerAuthentication", &json!({"namespace": "other"}), ok),
            Value::Null,
            "not of the kind or namespace",
        ),
        ("no object", Value::Null, Value::Null, "without an object"),
    ] {
        let mut review = review("UPDATE", &self::object(V1, "PeerAuthentication", &json!({}), ok), &old);
        if !object.is_null() {
            review["request"]["kind"]["kind"] = object["kind"].clone();
        }
        review["request"]["object"] = object;
        let (allowed, message, _) = told(&review);
        assert!(!allowed && message.contains(part), "{what}: {message}");
        assert!(message.starts_with("configuration is invalid: invalid policy p.ns: "), "{message}");
    }
    let mut mixed = review("CREATE", &object(V1, "PeerAuthentication", &json!({}), ok), &Value::Null);
    mixed["request"]["kind"]["kind"] = "AuthorizationPolicy".into();
    assert!(!told(&mixed).0);
}

#[test]
fn what_is_no_review_is_an_error() {
    for (body, part) in [
        ("", "not an AdmissionReview"),
        ("null", "not an AdmissionReview"),
        ("{}", "not an AdmissionReview"),
        (r#"{"apiVersion": "admission.k8s.io/v1beta1", "kind": "AdmissionReview"}"#, "is understood"),
        (r#"{"apiVersion": "admission.k8s.io/v1", "kind": "AdmissionReview"}"#, "without a request"),
        (&"[".repeat(100_000), "not an AdmissionReview"),
    ] {
        let error = read(body.as_bytes()).unwrap_err();
        assert!(error.contains(part), "{error}");
        assert!(error.len() < 500, "{}", error.len());
    }
}

#[test]
fn warnings_fit_what_kubernetes_takes() {
    let many: Vec<String> = (0..200).map(|n| format!("{n}: é\r\n{}", "x".repeat(300))).collect();
    let fitting = fit(&many);
    assert!(fitting.iter().all(|text| text.len() <= 120 && !text.contains('\n')));
    assert!(fitting.iter().map(String::len).sum::<usize>() <= 4096);
    assert_eq!(fitting.last().unwrap(), "and more warnings");
    assert_eq!(fit(&["a".to_owned(), "a".to_owned()]), ["a"]);
    let errors: Vec<Finding> = (0..300).map(|n| Finding::error(format!("{n}{}", "x".repeat(3000)))).collect();
    let request =
        request(&review("CREATE", &object(V1, "PeerAuthentication", &json!({}), "{}"), &Value::Null));
    let answer = denied(&request, &errors);
    assert!(answer.to_string().len() < 256 * 1024);
    assert!(answer["response"]["status"]["message"].as_str().unwrap().ends_with("and 200 more errors"));
}

#[test]
fn a_selector_without_labels_is_a_warning() {
    let object = object(V1, "PeerAuthentication", &json!({}), "{selector: {}, mtls: {mode: STRICT}}");
    let (allowed, _, warnings) = told(&review("CREATE", &object, &Value::Null));
    assert!(allowed && warnings.len() == 1 && warnings[0].contains("no labels"), "{warnings:?}");
}

proptest::proptest! {
    /// Whatever comes, there is an answer: no panic, and nothing passes that is not understood.
    #[test]
    fn every_body_has_an_answer(at in proptest::collection::vec((0.0..1.0_f64, proptest::prelude::any::<u8>()), 0..6)) {
        let spec = "{selector: {matchLabels: {a: b}}, mtls: {mode: STRICT}, portLevelMtls: {80: {mode: DISABLE}}}";
        let metadata = json!({"labels": {"a": "b"}, "generateName": "p-", "annotations": {"a": "b"}});
        let old = object(V1, "PeerAuthentication", &json!({}), spec);
        let mut body = review("UPDATE", &object(V1, "PeerAuthentication", &metadata, spec), &old).to_string().into_bytes();
        for (place, byte) in at {
            let index = (place * body.len() as f64) as usize;
            body[index] = byte;
        }
        if let Ok(request) = read(&body) {
            let answer = match judge(&request) {
                Verdict::Ignored => allowed(&request, &[]),
                Verdict::Good { findings, .. } => allowed(&request, &warnings(&findings)),
                Verdict::Bad { findings } => {
                    proptest::prop_assert!(!reasons(&findings).is_empty());
                    denied(&request, &findings)
                }
            };
            let _ = (request.subject(), request.labels());
            proptest::prop_assert!(answer["response"]["allowed"].is_boolean());
        }
    }
}
