use super::*;

fn say(text: &str) -> Vec<String> {
    let mut input = Input::with(None).unwrap();
    input.findings = Some(Vec::new());
    input.text(text, "a.yaml");
    analyze(input).iter().map(|m| format!("{} {} {}", m.code.id(), m.origin, m.message)).collect()
}

/// A workload `shop/orders` on HTTP port 8080, and a policy of this spec.
fn policy(spec: &str) -> Vec<String> {
    say(&format!(
        "apiVersion: v1\nkind: Service\nmetadata: {{name: orders, namespace: shop}}\nspec:\n  selector: {{app: orders}}\n  \
         ports: [{{name: http, port: 80, targetPort: 8080}}, {{name: tcp, port: 5432}}]\n---\napiVersion: \
         networking.istio.io/v1\nkind: WorkloadEntry\nmetadata: {{name: orders, namespace: shop, labels: {{app: orders}}}}\n\
         spec: {{address: 10.0.0.1, serviceAccount: orders}}\n---\napiVersion: security.istio.io/v1\nkind: \
         AuthorizationPolicy\nmetadata: {{name: a, namespace: shop}}\nspec: {spec}\n"
    ))
}

#[track_caller]
fn check(spec: &str, expected: &[&str]) {
    let got = policy(spec);
    let got: Vec<&str> = got.iter().map(|line| line.split_once(' ').unwrap().0).collect();
    assert_eq!(got, expected, "{spec}: {:#?}", policy(spec));
}

#[test]
fn each_code_is_found() {
    check("{rules: [{to: [{operation: {ports: ['8080']}}]}]}", &[]);
    check("{selector: {matchLabels: {app: gone}}, rules: [{}]}", &["CS0101"]);
    check("{rules: [{to: [{operation: {ports: ['80']}}]}]}", &["CS0103"]);
    check("{rules: [{to: [{operation: {paths: [/a]}}]}]}", &["CS0104"]);
    check(
        "{rules: [{from: [{source: {principals: [x/ns/a/sa/b]}}], to: [{operation: {ports: ['8080']}}]}]}",
        &["CS0105"],
    );
    check(
        "{action: CUSTOM, provider: {name: gone}, rules: [{to: [{operation: {ports: ['8080']}}]}]}",
        &["CS0106"],
    );
    check("{action: DENY, rules: [{to: [{operation: {paths: [/admin], ports: ['8080']}}]}]}", &["CS0201"]);
    check("{rules: [{to: [{operation: {notPaths: [/admin], ports: ['8080']}}]}]}", &["CS0201"]);
    check("{action: DENY, rules: [{to: [{operation: {hosts: [a.com], ports: ['8080']}}]}]}", &["CS0205"]);
    check("{action: DENY, rules: [{to: [{operation: {hosts: [a.com, 'a.com:*'], ports: ['8080']}}]}]}", &[]);
    check("{rules: [{to: [{operation: {paths: ['/a/.*'], ports: ['8080']}}]}]}", &["CS0204"]);
    let one = "{to: [{operation: {ports: ['8080']}}]}";
    check(&format!("{{rules: [{one}, {one}]}}"), &["CS0202"]);
    check(&format!("{{rules: [{one}, {{}}]}}"), &["CS0203"]);
}

#[test]
fn what_is_walked_around_depends_on_the_normalisation() {
    use mesh::PathNormalization::{Base, DecodeAndMergeSlashes, MergeSlashes};
    let text = "apiVersion: security.istio.io/v1\nkind: AuthorizationPolicy\nmetadata: {name: a, namespace: x}\n\
                spec: {action: DENY, rules: [{to: [{operation: {paths: [/admin]}}]}]}\n";
    for (level, ways) in [
        (Base, "/admin can be written as //admin, /%2Fadmin, /admin;x, /\\admin, if"),
        (MergeSlashes, "/admin can be written as /%2Fadmin, /admin;x, if"),
        (DecodeAndMergeSlashes, "/admin can be written as /admin;x, if"),
    ] {
        let mut input = Input::with(None).unwrap();
        input.mesh.path_normalization = level;
        input.findings = Some(Vec::new());
        input.text(text, "a.yaml");
        let found = analyze(input).into_iter().find(|m| m.code == Code::WalkedAround).unwrap();
        assert!(found.message.contains(ways), "{}", found.message);
    }
}

#[test]
fn what_was_read_has_its_line() {
    let said = say(
        "apiVersion: security.istio.io/v1\nkind: AuthorizationPolicy\nmetadata: {name: a}\nspec: {acton: DENY}\n",
    );
    assert!(said[0].starts_with("CS0001 a.yaml:4 spec.acton: "), "{said:?}");
    let said = say("apiVersion: networking.istio.io/v1\nkind: Gateway\nmetadata: {name: a}\nspec: {}\n");
    assert!(said[0].starts_with("CS0002 a.yaml:2 kind: "), "{said:?}");
}

#[test]
fn every_code_is_documented_and_has_its_own_number() {
    let page = concat!(env!("CARGO_MANIFEST_DIR"), "/../docs/reference/analysis.md");
    let page = std::fs::read_to_string(page).unwrap();
    let ids: BTreeSet<&str> = Code::ALL.iter().map(|code| code.id()).collect();
    assert_eq!(ids.len(), Code::ALL.len());
    for code in Code::ALL {
        assert!(page.contains(&format!("\n### {}\n", code.id())), "{} is not described", code.id());
        assert!(page.contains(&format!("{:?}", code.severity())));
    }
    assert!(suppressed(&["CS0101=a/b".to_owned(), "CS0001".to_owned()]).is_ok());
    assert!(suppressed(&["CS9999".to_owned()]).is_err());
}
