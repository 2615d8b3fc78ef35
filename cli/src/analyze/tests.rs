use super::*;

fn say(text: &str) -> Vec<String> {
    let mut input = Input::with(None).unwrap();
    input.findings = Some(Vec::new());
    input.text(text, "a.yaml");
    analyze(input).iter().map(|m| format!("{} {} {}", m.code.id(), m.origin, m.message)).collect()
}

/// A workload `shop/orders` on HTTP port 8080.
const SHOP: &str = "apiVersion: v1\nkind: Service\nmetadata: {name: orders, namespace: shop}\nspec:\n  selector: {app: orders}\n  \
    ports: [{name: http, port: 80, targetPort: 8080}, {name: tcp, port: 5432}]\n---\napiVersion: networking.istio.io/v1\nkind: \
    WorkloadEntry\nmetadata: {name: orders, namespace: shop, labels: {app: orders}}\nspec: {address: 10.0.0.1, serviceAccount: \
    orders}\n";

/// That workload, and a policy of this spec.
fn policy(spec: &str) -> Vec<String> {
    say(&format!("{SHOP}---\n{}", authorization("a", spec)))
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
    check(
        "{action: DENY, rules: [{to: [{operation: {methods: [GET], notMethods: ['G*'], ports: ['8080']}}]}]}",
        &["CS0208"],
    );
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

/// What is found of a file with these objects besides the service and workload of [`policy`].
#[track_caller]
fn found(objects: &[&str], expected: &[&str]) {
    let said = say(&format!("{SHOP}---\n{}", objects.join("\n---\n")));
    let got: Vec<&str> = said.iter().map(|line| line.split_once(' ').unwrap().0).collect();
    assert_eq!(got, expected, "{objects:#?}: {said:#?}");
}

fn object(kind: &str, namespace: &str, name: &str, spec: &str) -> String {
    format!(
        "apiVersion: security.istio.io/v1\nkind: {kind}\nmetadata: {{name: {name}, namespace: {namespace}}}\nspec: {spec}\n"
    )
}

fn peer(namespace: &str, name: &str, spec: &str) -> String {
    object("PeerAuthentication", namespace, name, spec)
}

fn authorization(name: &str, spec: &str) -> String {
    object("AuthorizationPolicy", "shop", name, spec)
}

#[test]
fn peer_authentications() {
    found(&[&peer("shop", "a", "{mtls: {mode: STRICT}}")], &[]);
    found(&[&peer("shop", "a", "{selector: {matchLabels: {app: gone}}, mtls: {mode: STRICT}}")], &["CS0101"]);
    found(
        &[&peer("istio-system", "a", "{selector: {matchLabels: {app: orders}}, mtls: {mode: STRICT}}")],
        &["CS0102"],
    );
    let port = |port: u16| {
        let spec = format!(
            "{{selector: {{matchLabels: {{app: orders}}}}, portLevelMtls: {{{port}: {{mode: STRICT}}}}}}"
        );
        peer("shop", "a", &spec)
    };
    found(&[&port(80)], &["CS0103"]);
    found(&[&port(8080)], &[]);
    let (first, second) =
        (peer("shop", "a", "{mtls: {mode: STRICT}}"), peer("shop", "b", "{mtls: {mode: DISABLE}}"));
    found(&[&first, &second], &["CS0107"]);
    found(&[&first, &peer("istio-system", "b", "{mtls: {mode: DISABLE}}")], &[]);
}

#[test]
fn selectors() {
    let of = |label: &str| {
        authorization(
            "a",
            &format!("{{selector: {{matchLabels: {{{label}}}}}, action: DENY, rules: [{{}}]}}"),
        )
    };
    found(&[&of("app: orders")], &[]);
    found(&[&of("app: order")], &["CS0101"]);
    found(&[&of("app: 'my app'")], &["CS0102"]);
    found(&[&of("'app name': orders")], &["CS0102"]);
    let elsewhere =
        object("AuthorizationPolicy", "web", "a", "{selector: {matchLabels: {app: orders}}, rules: [{}]}");
    let said = say(&format!("{SHOP}---\n{elsewhere}"));
    assert!(
        said[0].ends_with("one of namespace \"shop\" has, but a policy reaches its own namespace only"),
        "{said:?}"
    );
}

#[test]
fn identities_are_no_matter_under_strict() {
    let rule =
        "{rules: [{from: [{source: {principals: [x/ns/a/sa/b]}}], to: [{operation: {ports: ['8080']}}]}]}";
    let rule = authorization("a", rule);
    found(&[&rule], &["CS0105"]);
    found(&[&rule, &peer("shop", "p", "{mtls: {mode: STRICT}}")], &[]);
}

#[test]
fn a_provider_that_is_there() {
    let custom = authorization(
        "a",
        "{action: CUSTOM, provider: {name: opa}, rules: [{to: [{operation: {ports: ['8080']}}]}]}",
    );
    let mut input = Input::with(None).unwrap();
    let mesh = "extensionProviders: [{name: opa, envoyExtAuthzGrpc: {service: orders.shop.svc.cluster.local, port: 80}}]";
    input.mesh = crds::mesh_config::read(mesh).unwrap().0;
    input.findings = Some(Vec::new());
    input.text(&format!("{SHOP}---\n{custom}"), "a.yaml");
    assert_eq!(analyze(input), []);
    found(&[&custom], &["CS0106"]);
}

#[test]
fn tokens() {
    let request =
        |rules: &str| object("RequestAuthentication", "shop", "jwt", &format!("{{jwtRules: [{rules}]}}"));
    let one = "{issuer: a, jwksUri: 'https://a/keys'}";
    found(&[&request(one)], &["CS0108"]);
    let asks = authorization(
        "a",
        "{action: DENY, rules: [{from: [{source: {notRequestPrincipals: ['*']}}], to: [{operation: {ports: ['8080']}}]}]}",
    );
    found(&[&request(one), &asks], &[]);
    let required = |issuer: &str, more: &str| {
        format!("{{issuer: {issuer}, jwksUri: 'https://{issuer}/keys', presence: REQUIRED{more}}}")
    };
    let two = |first: &str, second: &str| request(&format!("{first}, {second}"));
    let (a, b) = (required("a", ""), required("b", ""));
    found(&[&two(&a, &b), &asks], &["CS0207"]);
    found(&[&two(&a, one), &asks], &[]);
    found(&[&two(&a, &required("b", ", fromHeaders: [{name: x-b}]")), &asks], &[]);
    let forwarded = required("a", ", forwardOriginalToken: true");
    found(&[&two(&forwarded, &forwarded), &asks], &[]);
    found(&[&two(&a, &a), &asks], &["CS0207"]);
    // Two objects, one of them for the whole mesh.
    let mesh = object("RequestAuthentication", "istio-system", "jwt", &format!("{{jwtRules: [{b}]}}"));
    found(&[&request(&a), &mesh, &asks], &["CS0207"]);
    let tcp = "apiVersion: v1\nkind: Service\nmetadata: {name: db, namespace: db}\nspec:\n  selector: {app: db}\n  ports: [{name: \
               tcp, port: 5432}]\n---\napiVersion: networking.istio.io/v1\nkind: WorkloadEntry\nmetadata: {name: db, namespace: db, \
               labels: {app: db}}\nspec: {address: 10.0.0.9}\n";
    found(
        &[tcp, &object("RequestAuthentication", "db", "jwt", &format!("{{jwtRules: [{one}]}}"))],
        &["CS0108", "CS0109"],
    );
}

#[test]
fn dry_runs() {
    let dry = authorization("a", "{action: DENY, rules: [{}]}")
        .replace("shop}", "shop, annotations: {istio.io/dry-run: 'true'}}");
    found(&[&dry], &["CS0110"]);
}

/// A rule that allows, or with `DENY` denies, these methods on the HTTP port.
fn methods(action: &str, name: &str, methods: &str) -> String {
    let spec = format!(
        "{{action: {action}, rules: [{{to: [{{operation: {{methods: [{methods}], ports: ['8080']}}}}]}}]}}"
    );
    authorization(name, &spec)
}

#[test]
fn rules_of_several_policies() {
    let get = methods("ALLOW", "get", "GET");
    found(&[&get, &methods("ALLOW", "post", "POST")], &[]);
    found(&[&get, &methods("ALLOW", "more", "GET, POST")], &["CS0203"]);
    found(&[&get, &methods("ALLOW", "same", "GET")], &["CS0202"]);
    found(&[&get, &methods("DENY", "no", "POST")], &[]);
    found(&[&get, &methods("DENY", "no", "GET, POST")], &["CS0206"]);
    found(&[&methods("ALLOW", "more", "GET, POST"), &methods("DENY", "no", "GET")], &[]);
    found(&[&methods("DENY", "a", "GET"), &methods("DENY", "b", "'*'")], &["CS0203"]);
    // Only what applies wherever the rule does.
    let elsewhere = methods("ALLOW", "more", "GET, POST")
        .replace("{action", "{selector: {matchLabels: {app: orders}}, action");
    found(&[&get, &elsewhere], &[]);
    found(
        &[
            &get.replace("{action", "{selector: {matchLabels: {app: orders}}, action"),
            &methods("ALLOW", "more", "'*'"),
        ],
        &["CS0203"],
    );
    let mesh = methods("ALLOW", "mesh", "'*'").replace("namespace: shop", "namespace: istio-system");
    found(&[&get, &mesh], &["CS0203"]);
    // A dry run stands in for nothing.
    let dry =
        methods("ALLOW", "dry", "'*'").replace("shop}", "shop, annotations: {istio.io/dry-run: 'true'}}");
    found(&[&get, &dry], &["CS0110"]);
    let said = say(&format!(
        "{SHOP}---\n{get}---\n{}---\n{}",
        methods("ALLOW", "more", "'*'"),
        methods("DENY", "no", "PUT")
    ));
    assert_eq!(said, ["CS0203 a.yaml:13 rules[0] changes nothing: shop/more[0] matches all that it does"]);
    let said = say(&format!("{SHOP}---\n{get}---\n{}", methods("DENY", "no", "'*'")));
    assert_eq!(said, ["CS0206 a.yaml:13 rules[0] allows nothing: shop/no[0] denies all that it matches"]);
}

#[test]
fn rules_that_contradict_themselves() {
    check(
        "{rules: [{to: [{operation: {paths: [/a], notPaths: ['/a*'], ports: ['8080']}}]}]}",
        &["CS0201", "CS0208"],
    );
    check(
        "{rules: [{to: [{operation: {paths: ['/a*'], notPaths: ['/a;*', '//a*'], ports: ['8080']}}]}]}",
        &["CS0201"],
    );
    check(
        "{rules: [{to: [{operation: {ports: ['8080']}}], when: [{key: destination.port, values: ['5432']}]}]}",
        &["CS0208"],
    );
}

#[test]
fn what_looks_like_something_else_and_is_not() {
    check("{action: DENY, rules: [{to: [{operation: {paths: ['/a/{**}'], ports: ['8080']}}]}]}", &["CS0201"]);
    check("{action: DENY, rules: [{to: [{operation: {paths: ['*/admin'], ports: ['8080']}}]}]}", &["CS0201"]);
    check("{action: DENY, rules: [{to: [{operation: {paths: ['*'], ports: ['8080']}}]}]}", &[]);
    check("{rules: [{to: [{operation: {paths: [/admin], ports: ['8080']}}]}]}", &[]);
    check("{rules: [{to: [{operation: {paths: ['/a.b', '/c-d'], ports: ['8080']}}]}]}", &[]);
    check("{rules: [{to: [{operation: {hosts: [a.com], ports: ['8080']}}]}]}", &[]);
}
