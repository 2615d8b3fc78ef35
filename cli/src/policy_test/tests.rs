use super::*;

/// Every policy test of the documentation passes, and its rules are all covered.
#[test]
fn the_documentations_tests_pass() {
    let docs = Path::new(env!("CARGO_MANIFEST_DIR")).join("../docs");
    let mut files = Vec::new();
    search(&docs, DEPTH, &mut files).unwrap();
    assert!(!files.is_empty());
    let report = Report::of(files.iter().map(|file| test(file)).collect());
    let uncovered = report.files.iter().any(|file| !file.coverage.never.is_empty() || file.error.is_some());
    assert!(report.failed == 0 && report.passed > 0 && !uncovered, "{}", report.text());
}

/// The report on a test of this text, without its first line.
fn report(text: &str) -> String {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("a.policytest.yaml");
    std::fs::write(&path, text).unwrap();
    let report = Report::of(vec![test(&path)]);
    report.text().split_once('\n').unwrap().1.to_owned()
}

const HEAD: &str = "\
apiVersion: countersign.io/v1
kind: PolicyTest
objects:
- apiVersion: security.istio.io/v1
  kind: AuthorizationPolicy
  metadata: {name: a, namespace: x}
  spec:
    rules:
    - to: [{operation: {paths: [/a]}}]
    - to: [{operation: {paths: [/b]}}]
workloads: [{name: x/w}]
";

#[test]
fn expectations_that_do_not_hold_are_told() {
    let tests = "tests:
- {from: y/s, to: x/w, request: {path: /a}, expect: allow, by: 'x/a[0]'}
- {name: wrong verdict, from: y/s, to: x/w, request: {path: /a}, expect: deny}
- {name: wrong rule, from: y/s, to: x/w, request: {path: /a}, expect: allow, by: 'x/a[1]'}
- {name: wrong status, from: y/s, to: x/w, request: {path: /c}, expect: 401}
- {name: no dry run, from: plaintext, to: x/w, request: {path: /c}, expect: deny, ifEnforced: allow}
";
    let report = report(&format!("{HEAD}{tests}"));
    let expected = "  ok    tests[0]: y/s -> x/w: allow by x/a[0]
  FAIL  wrong verdict
        expected deny, got allow
        allowed by ns[x]-policy[a]-rule[0]
  FAIL  wrong rule
        expected by x/a[1], got by x/a[0]
        allowed by ns[x]-policy[a]-rule[0]
  FAIL  wrong status
        expected 401, got deny (403)
        no ALLOW rule matches; closest is ns[x]-policy[a]-rule[0]: paths wanted /a, had /c
  FAIL  no dry run
        expected allow once the dry runs are enforced, got deny
        no ALLOW rule matches; closest is ns[x]-policy[a]-rule[0]: paths wanted /a, had /c
  1 of 2 rules decided a test; never x/a[1]
1 passed, 4 failed
";
    assert_eq!(report, expected, "{report}");
}

#[test]
fn what_cannot_be_run_is_an_error_and_not_a_pass() {
    let case = "tests: [{from: y/s, to: x/w, expect: deny}]";
    for (text, error) in [
        (
            format!("{HEAD}tests: [{{from: y/s, to: x/w, expect: denied}}]"),
            "expect is allow, deny, closed, 401 or 403",
        ),
        (format!("{HEAD}tests: [{{from: y/s, to: x/w, expects: deny}}]"), "unknown field `expects`"),
        (
            format!("{HEAD}tests: [{{from: y/s, to: x/w, request: {{pth: /}}, expect: deny}}]"),
            "unknown field `pth`",
        ),
        (format!("{HEAD}tests: [{{from: y/s, to: x/gone, expect: deny}}]"), "no workload x/gone is known"),
        (format!("{HEAD}tests: []"), "has no tests"),
        (format!("{HEAD}{case}\nfiles: [missing.yaml]"), "missing.yaml"),
        (format!("{}{case}", HEAD.replace("paths", "path")), "the policies have errors"),
        (format!("{}{case}", HEAD.replace("PolicyTest", "Test")), "not a PolicyTest"),
        ("a: [".to_owned(), "is no policy test"),
    ] {
        let report = report(&text);
        assert!(report.contains("ERROR") && report.contains(error), "{error}: {report}");
        assert!(report.ends_with("0 passed, 0 failed, 1 could not be run\n"), "{report}");
    }
}

/// A test may lie in the folder of policies that it tests, and nobody takes it for one of them.
#[test]
fn a_test_beside_policies_is_not_read_as_one() {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("../docs/guides/examples");
    let mut input = crate::translate::input::Input::with(None).unwrap();
    input.findings = Some(Vec::new());
    input.add(&folder).unwrap();
    let findings = input.findings.unwrap();
    assert!(findings.iter().all(|(origin, _)| !origin.contains(SUFFIX)), "{findings:?}");
}
