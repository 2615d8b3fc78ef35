use std::time::{Duration, Instant};

use proptest::prelude::*;

use super::*;
use crate::{Kind, ObjectRef, Severity};

/// Every document in a line: where, what, and its findings.
fn summary(text: &str, origin: &str) -> Vec<String> {
    let describe = |document: &Document| {
        let Document { origin, content, findings } = document;
        let what = match content {
            Content::Object(object) => format!("{}", object.object_ref()),
            Content::Invalid { object, closed } => {
                format!("{} {object}", if closed.is_some() { "closed" } else { "invalid" })
            }
            Content::Unreadable => "unreadable".into(),
            Content::Unsupported => "unsupported".into(),
        };
        let findings: String = findings.iter().map(|f| format!(" | {f}")).collect();
        format!("{origin} {what}{findings}")
    };
    read(text, origin).iter().map(describe).collect()
}

#[track_caller]
fn check(text: &str, expect: &[&str]) {
    assert_eq!(summary(text, "f"), expect);
}

const STRICT: &str = "apiVersion: security.istio.io/v1\nkind: PeerAuthentication\nmetadata: {name: a, namespace: n}\nspec: {mtls: {mode: STRICT}}\n";

#[test]
fn documents_do_not_hide_each_other() {
    let text = format!(
        "{STRICT}---\na: [1\n---\n# empty\n---\nb: \"\n---\n{}",
        STRICT.replace("name: a", "name: b")
    );
    let found = summary(&text, "f");
    assert_eq!(found.len(), 4);
    assert_eq!(found[0], "f:1 PeerAuthentication n/a");
    assert!(found[1].starts_with("f:6 unreadable | "), "{}", found[1]);
    assert!(found[2].starts_with("f:10 unreadable | "), "{}", found[2]);
    assert_eq!(found[3], "f:12 PeerAuthentication n/b");
}

#[test]
fn positions_are_the_files() {
    check(
        "# c\n---\napiVersion: security.istio.io/v1\nkind: AuthorizationPolicy\nmetadata:\n  name: a\nspec:\n  rules:\n  - from:\n    - source:\n        namespaces: [n]\n        ipBlocks:\n        - 10.0.0.0/8\n        - nonsense\n    to:\n    - operations:\n        methods: [GET]\n",
        &[
            "f:3 closed AuthorizationPolicy default/a | 16:7: spec.rules[0].to[0].operations: unknown field `operations`, expected `operation` | 14:11: spec.rules[0].from[0].source.ipBlocks[1]: `nonsense` is neither an IP address nor a CIDR block | 16:7: spec.rules[0].to[0].operation: an operation is required",
        ],
    );
}

#[test]
fn misspelt_fields_are_named_with_their_place() {
    for (field, line) in [("principal", 11), ("Principals", 11), ("notprincipals", 11)] {
        let text = format!(
            "apiVersion: security.istio.io/v1beta1\nkind: AuthorizationPolicy\nmetadata:\n  name: a\nspec:\n  selector:\n    matchLabels: {{app: x}}\n  rules:\n  - from:\n    - source:\n        {field}: [\"a\"]\n"
        );
        let document = &read(&text, "f")[0];
        let finding = &document.findings[0];
        assert_eq!((finding.line, finding.column), (Some(line), Some(9)), "{field}");
        assert!(
            finding.message.starts_with(&format!("unknown field `{field}`, expected one of `principals`"))
        );
    }
}

#[test]
fn what_is_refused() {
    for (text, message) in [
        ("a: 1\na: 2\n", "2:1: key `a` is given twice"),
        ("metadata: {labels: {x: a, x: b}}\n", "key `x` is given twice"),
        ("8080: a\n\"8080\": b\n", "key `8080` is given twice"),
        ("x: &a {y: 1}\nz:\n  <<: *a\n", "merge keys"),
        ("a: &a [*a]\n", "recursion limit exceeded"),
        ("a: *b\n", "unknown anchor"),
        ("a: !secret x\n", "expected a value that JSON can hold"),
        ("a: .nan\n", "not a finite number"),
        ("? [a]\n: b\n", "expected a name"),
        ("a: [1\n", "did not find expected"),
        ("- a\n", "not a Kubernetes object"),
        ("just text\n", "not a Kubernetes object"),
        ("kind: [x]\n", "the kind is missing"),
        ("kind: Pod\nmetadata: {name: a}\n", "the apiVersion is missing"),
        ("apiVersion: v1\nkind: Pod\n", "an object needs metadata with a name"),
        ("apiVersion: v1\nkind: Pod\nmetadata: {}\n", "a name (text) is required"),
        ("apiVersion: v1\nkind: Pod\nmetadata: {name: 5}\n", "a name (text) is required"),
        ("apiVersion: v1\nkind: Pod\nmetadata: {name: a, namespace: 5}\n", "a namespace is text"),
        ("apiVersion: v1\nkind: List\nitems: {}\n", "a List needs a list of items"),
        (
            "apiVersion: security.istio.io/v1\nkind: AuthorisationPolicy\nmetadata: {name: a}\n",
            "no kind `AuthorisationPolicy`",
        ),
        (
            "apiVersion: security.istio.oi/v1\nkind: AuthorizationPolicy\nmetadata: {name: a}\n",
            "belongs to the group",
        ),
        ("apiVersion: v1\nkind: PeerAuthentication\nmetadata: {name: a}\n", "belongs to the group"),
    ] {
        let documents = read(text, "f");
        assert_eq!(documents.len(), 1, "{text}");
        assert_eq!(documents[0].content, Content::Unreadable, "{text}");
        let found = documents[0].findings[0].to_string();
        assert!(found.contains(message), "{text}: {found}");
        assert!(!documents[0].findings[0].message.contains(" at line "), "{found}");
    }
}

#[test]
fn kinds_without_effect_are_warned_about() {
    for (text, kind) in [
        ("apiVersion: apps/v1\nkind: Deployment\n", "Deployment"),
        ("apiVersion: networking.istio.io/v1\nkind: VirtualService\n", "VirtualService"),
        ("apiVersion: serving.knative.dev/v1\nkind: Service\n", "Service"),
    ] {
        let document = &read(text, "f")[0];
        assert_eq!(document.content, Content::Unsupported);
        assert_eq!(document.findings[0].severity, Severity::Warning);
        assert!(document.findings[0].message.contains(&format!("`{kind}`")));
    }
}

#[test]
fn versions() {
    for version in ["v1", "v1beta1"] {
        let text = STRICT.replace("/v1", &format!("/{version}"));
        check(&text, &["f:1 PeerAuthentication n/a"]);
    }
    check(
        &STRICT.replace("/v1", "/v2"),
        &["f:1 PeerAuthentication n/a | 1:1: apiVersion: version `v2` is not known; read as `v1`"],
    );
    for version in ["v1", "v1beta1", "v1alpha3"] {
        let text = format!(
            "apiVersion: networking.istio.io/{version}\nkind: WorkloadEntry\nmetadata: {{name: a}}\n"
        );
        check(&text, &["f:1 WorkloadEntry default/a"]);
    }
}

#[test]
fn a_broken_document_is_still_somebodys() {
    let policy = "apiVersion: security.istio.io/v1\nkind: AuthorizationPolicy\nmetadata:\n  name: a\n  namespace: n\nspec:\n  rules: [\n";
    let object = |kind, name: &str| ObjectRef { kind, id: policy::ObjectName::new("n", name) };
    let documents = read(policy, "f");
    let Content::Invalid { object: found, closed: Some(_) } = &documents[0].content else {
        panic!("{documents:?}")
    };
    assert_eq!(*found, object(Kind::AuthorizationPolicy, "a"));
    // Cut off within the metadata: a namespace might have followed.
    for end in ["  namespace: n\n  x: [", "  name: a\n  namespace: \"", "metadata: {name: a"] {
        let at = policy.find(end.split('\n').next().unwrap()).unwrap_or(policy.find("metadata").unwrap());
        let text = format!("{}{end}", &policy[..at]);
        assert_eq!(read(&text, "f")[0].content, Content::Unreadable, "{text}");
    }
    // Given twice: which one was meant?
    let text = policy.replace("spec:", "kind: PeerAuthentication\nspec:");
    assert_eq!(read(&text, "f")[0].content, Content::Unreadable);
}

#[test]
fn json_and_lists() {
    let item = |name: &str| {
        format!(
            r#"{{"apiVersion":"security.istio.io/v1","kind":"PeerAuthentication","metadata":{{"name":"{name}"}},"spec":{{}}}}"#
        )
    };
    let list = format!(
        "{{\n\"apiVersion\": \"v1\", \"kind\": \"List\", \"items\": [\n{},\n{{\"kind\": 5}},\n{}\n]}}\n",
        item("a"),
        item("b").replace("{}", "\t{\"mtls\": {\"mode\": \"strict\"}}")
    );
    for origin in ["f.json", "f.yaml"] {
        let found = summary(&list, origin);
        assert_eq!(found.len(), 3, "{found:?}");
        assert!(found[0].contains(" PeerAuthentication default/a"), "{}", found[0]);
        assert!(found[1].contains("unreadable"), "{}", found[1]);
        assert!(found[2].contains(":5 "), "{}", found[2]);
        assert!(found[2].contains("closed PeerAuthentication default/b"), "{}", found[2]);
        assert!(found[2].contains("spec.mtls.mode: unknown variant `strict`"), "{}", found[2]);
    }
    let yaml = format!("apiVersion: v1\nkind: List\nitems:\n- {}\n- {}\n", item("a"), item("b"));
    check(&yaml, &["f:4 PeerAuthentication default/a", "f:5 PeerAuthentication default/b"]);
    assert_eq!(summary("", "f.json"), [""; 0]);
    assert!(summary("{\"a\": 1, \"a\": 2}", "f.json")[0].contains("key `a` is given twice"));
    assert!(summary("{} {}", "f.json")[0].contains("trailing characters"));
}

#[test]
fn yaml_as_people_write_it() {
    let text = "\u{feff}%YAML 1.2\n---\napiVersion: security.istio.io/v1\r\nkind: PeerAuthentication\r\nmetadata: &m\r\n  name: a\r\nspec:\r\n  selector: {matchLabels: {app: x}}\r\n  portLevelMtls:\r\n    8080: {mode: STRICT}\r\n...\r\n---\r\n# the end\r\n";
    check(text, &["f:3 PeerAuthentication default/a"]);
    // Anchors are fine as long as they stay small.
    check(
        "apiVersion: v1\nkind: Pod\nmetadata: {name: a, labels: &l {app: x}, annotations: *l}\n",
        &["f:1 Pod default/a"],
    );
}

#[test]
fn limits() {
    let found = summary(&"x".repeat(MAX_FILE + 1), "f");
    assert_eq!(
        found,
        [format!("f:1 unreadable | the file has {} bytes; at most {MAX_FILE} are read", MAX_FILE + 1)]
    );
    let big = format!("{STRICT}---\n# {}\n---\n{STRICT}", "x".repeat(MAX_DOCUMENT));
    assert_eq!(summary(&big, "f").len(), 2);
    let big = format!(
        "{STRICT}---\nx: {}\n---\n{}",
        "x".repeat(MAX_DOCUMENT),
        STRICT.replace("name: a", "name: b")
    );
    let found = summary(&big, "f");
    assert!(found.len() == 3 && found[1].contains("at most 1048576 are read"), "{found:?}");
    let many = "---\nx\n".repeat(MAX_DOCUMENTS + 1);
    assert!(summary(&many, "f")[0].contains("more than 10000 documents"));
}

/// Text made to be expensive ends soon, with an error. The bound is for an unoptimised build on a busy machine.
#[test]
fn hostile_text_is_cheap() {
    let laughs = (1..10).fold("a0: &a0 [x,x,x,x,x,x,x,x,x,x]\n".to_owned(), |text, i| {
        format!("{text}a{i}: &a{i} [{}]\n", vec![format!("*a{}", i - 1); 10].join(","))
    });
    let policy = "apiVersion: security.istio.io/v1\nkind: AuthorizationPolicy\nmetadata: {name: a}\nspec:\n";
    for (name, text) in [
        ("brackets", "[".repeat(MAX_DOCUMENT)),
        ("brackets that count", "[".repeat(4_900)),
        ("dashes", "- ".repeat(500_000)),
        ("questions", "? ".repeat(500_000)),
        ("quotes", "\"".repeat(1_000_000)),
        ("laughs", laughs),
        (
            "long text often",
            format!("a: &a {}\nb: [{}]\n", "x".repeat(500_000), vec!["*a"; 10_000].join(",")),
        ),
        ("cyclic", "a: &a [*a, *a]\n".to_owned()),
        (
            "many errors",
            format!(
                "{policy}  rules:\n  - from:\n    - source:\n        ipBlocks:\n{}",
                "        - x\n".repeat(90_000)
            ),
        ),
        (
            "many unknown fields",
            format!("{policy}{}", (0..50_000).map(|i| format!("  k{i}: 1\n")).collect::<String>()),
        ),
        ("many bad items", format!("apiVersion: v1\nkind: List\nitems:\n{}", "- 5\n".repeat(50_000))),
    ] {
        let start = Instant::now();
        let documents = read(&text, "f");
        assert!(documents.iter().any(|d| !matches!(d.content, Content::Object(_))), "{name}");
        assert!(start.elapsed() < Duration::from_secs(20), "{name}: {:?}", start.elapsed());
    }
}

/// Text that is mostly YAML.
fn yamlish() -> impl Strategy<Value = String> {
    let token = prop_oneof![
        Just("apiVersion: security.istio.io/v1"),
        Just("kind: AuthorizationPolicy"),
        Just("kind: PeerAuthentication"),
        Just("kind: List"),
        Just("metadata: {name: a}"),
        Just("metadata:"),
        Just("spec:"),
        Just("  name: a"),
        Just("  rules:"),
        Just("  - from:"),
        Just("items:"),
        Just("- "),
        Just("---"),
        Just("..."),
        Just("%YAML 1.1"),
        Just("&a"),
        Just("*a"),
        Just("<<: *a"),
        Just("\""),
        Just("'"),
        Just("{"),
        Just("}"),
        Just("["),
        Just("]"),
        Just("|"),
        Just("\t"),
        Just("\u{85}"),
        Just("é: \u{0}"),
    ];
    let token = (token, prop_oneof![Just("\n"), Just(" "), Just("\r\n"), Just("\r"), Just("")]);
    prop::collection::vec(token, 0..40)
        .prop_map(|tokens| tokens.into_iter().map(|(a, b)| format!("{a}{b}")).collect())
}

proptest! {
    #[test]
    fn never_panics(text in prop_oneof![any::<String>(), yamlish()]) {
        for origin in ["f.yaml", "f.json"] {
            for document in read(&text, origin) {
                let good = matches!(document.content, Content::Object(_));
                let errors = document.findings.iter().any(|f| f.severity == Severity::Error);
                let unsupported = document.content == Content::Unsupported;
                prop_assert_eq!(good || unsupported, !errors, "{:?}", document);
            }
            let _ = crate::mesh_config::read(&text);
        }
    }

    #[test]
    fn never_panics_on_cut_or_changed_bytes(cut in 0..2000usize, at in 0..2000usize, byte in any::<u8>()) {
        let text = include_str!("../../testdata/everything.yaml");
        let cut_off = &text.as_bytes()[..cut.min(text.len())];
        read(&String::from_utf8_lossy(cut_off), "f");
        let mut changed = text.as_bytes().to_vec();
        let at = at % changed.len();
        changed[at] = byte;
        read(&String::from_utf8_lossy(&changed), "f");
    }
}

#[test]
fn everything_is_understood() {
    let documents = read(include_str!("../../testdata/everything.yaml"), "f");
    for document in &documents {
        assert!(matches!(document.content, Content::Object(_)), "{document:?}");
        assert_eq!(document.findings, []);
    }
    let mut kinds: Vec<Kind> = documents
        .iter()
        .filter_map(|d| match &d.content {
            Content::Object(object) => Some(object.object_ref().kind),
            _ => None,
        })
        .collect();
    kinds.sort();
    assert_eq!(kinds, Kind::ALL);
}
