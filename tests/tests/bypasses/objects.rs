//! Objects that say nothing, or name what is not there: selectors without labels, nulls, references.

use std::sync::Arc;

use mesh::MeshConfig;
use policy::{PolicySet, Scope, WorkloadKey};
use serde_json::{Value, json};
use tests::here;
use tests::lab::{self, ALLOWED, Credential, DENIED, Got, PodSpec, Protocol, Signer, UNAUTHENTICATED};

use super::wire::{ask, get};

/// What selects all, and what nothing, in all three kinds (1.31.1: a selector that is there and empty). `null` is an
/// error, and until it is mended the closed value reaches the whole namespace.
#[test]
fn selectors_absent_empty_and_null() {
    let rows = [
        ("absent", None, true, true),
        ("{}", Some(json!({})), true, true),
        ("matchLabels: {}", Some(json!({"matchLabels": {}})), true, true),
        ("matching", Some(json!({"matchLabels": {"app": "a"}})), true, false),
        ("two that match", Some(json!({"matchLabels": {"app": "a", "v": "1"}})), true, false),
        ("one of two", Some(json!({"matchLabels": {"app": "a", "v": "2"}})), false, false),
        ("another", Some(json!({"matchLabels": {"app": "c"}})), false, false),
        ("an empty value", Some(json!({"matchLabels": {"app": ""}})), false, false),
    ];
    for (name, selector, a, b) in &rows {
        for (kind, spec) in [
            ("AuthorizationPolicy", json!({"action": "DENY", "rules": [{}]})),
            ("PeerAuthentication", json!({"mtls": {"mode": "STRICT"}})),
            (
                "RequestAuthentication",
                json!({"jwtRules": [{"issuer": "i", "jwksUri": "https://i.example/k"}]}),
            ),
        ] {
            let applies =
                |app: &str, namespace: &str| reaches(kind, &spec, selector.as_ref(), app, namespace);
            assert_eq!(applies("a", "foo"), *a, "{kind}, {name}, app a");
            assert_eq!(applies("b", "foo"), *b, "{kind}, {name}, app b");
            assert!(!applies("a", "bar"), "{kind}, {name}, another namespace");
        }
    }
    for broken in
        [json!(null), json!({"matchLabels": null}), json!({"matchLabels": {"app": null}}), json!([])]
    {
        let object = object("AuthorizationPolicy", &json!({"action": "DENY", "rules": [{}]}), Some(&broken));
        let parsed = crds::parse(&object);
        assert!(!matches!(parsed.content, crds::Content::Object(_)), "{broken} is no selector");
    }
}

fn object(kind: &str, spec: &Value, selector: Option<&Value>) -> Value {
    let mut spec = spec.clone();
    if let Some(selector) = selector {
        spec["selector"] = selector.clone();
    }
    json!({"apiVersion": "security.istio.io/v1", "kind": kind, "metadata": {"name": "x", "namespace": "foo"}, "spec": spec})
}

/// Whether it has any effect on a workload of `namespace` labelled `app`, `v: 1`.
fn reaches(kind: &str, spec: &Value, selector: Option<&Value>, app: &str, namespace: &str) -> bool {
    let parsed = crds::parse(&object(kind, spec, selector));
    let crds::Content::Object(object) = parsed.content else { panic!("{:?}", parsed.findings) };
    resolved(Some(*object), app, namespace) != resolved(None, app, namespace)
}

fn resolved(object: Option<crds::Object>, app: &str, namespace: &str) -> policy::EffectivePolicy {
    let MeshConfig { root_namespace, trust_domain, .. } = MeshConfig::default();
    let mut set = PolicySet::new(Scope {
        root_namespace,
        trust_domain,
        trust_domain_aliases: Vec::new(),
        providers: Vec::new(),
    });
    match object {
        None => {}
        Some(crds::Object::PeerAuthentication(policy)) => set.put_peer(Arc::new(policy)),
        Some(crds::Object::RequestAuthentication(policy)) => set.put_request(Arc::new(policy)),
        Some(crds::Object::AuthorizationPolicy(policy)) => set.put_authorization(Arc::new(policy)),
        Some(other) => panic!("{:?} is no policy", other.object_ref()),
    }
    let labels = [("app", app), ("v", "1")].map(|(k, v)| (k.to_owned(), v.to_owned()));
    policy::resolve(&set, &WorkloadKey { namespace: namespace.into(), labels: Arc::new(labels.into()) })
}

/// Nulls in one tenant's objects close that tenant, and nobody else waits for anything (CVE-2026-53719).
#[test]
fn one_tenants_nulls_stall_nobody_else() {
    lab::run(here!(), async |lab| {
        lab.save("policies.yaml", "# nothing yet\n")?;
        lab.start().await?;
        let pods = lab
            .pods(["tenant", "default"].map(|namespace| {
                PodSpec::new(namespace, &format!("{namespace}-app")).port(8080, Protocol::Http)
            }))
            .await?;
        let on = |lab: &lab::Lab, n: usize| lab[pods[n]].on(8080);
        let caller = lab.caller(Credential::Plaintext);
        for pod in [0, 1] {
            let to = on(lab, pod);
            lab.becomes(ALLOWED, async |_| caller.get(to, "/a").await.got).await?;
        }
        let pieces = [
            ("AuthorizationPolicy", "{action: DENY, rules: [null]}"),
            ("AuthorizationPolicy", "{action: DENY, rules: [{from: [null]}]}"),
            ("AuthorizationPolicy", "{action: DENY, rules: [{from: [{source: null}]}]}"),
            ("AuthorizationPolicy", "{action: DENY, rules: [{to: [{operation: null}]}]}"),
            ("AuthorizationPolicy", "{action: DENY, rules: [{when: [null]}]}"),
            ("AuthorizationPolicy", "{action: null, rules: null}"),
            ("AuthorizationPolicy", "{selector: null, rules: [{}]}"),
            ("AuthorizationPolicy", "{action: CUSTOM, provider: null, rules: [{}]}"),
            ("AuthorizationPolicy", "null"),
            ("PeerAuthentication", "{mtls: null, portLevelMtls: null}"),
            ("PeerAuthentication", "{selector: {matchLabels: {a: b}}, portLevelMtls: {8080: null}}"),
            ("RequestAuthentication", "{jwtRules: [null]}"),
            ("RequestAuthentication", "{jwtRules: [{issuer: null, jwks: null}]}"),
        ];
        for (n, (kind, spec)) in pieces.iter().enumerate() {
            let hostile = format!(
                "apiVersion: security.istio.io/v1\nkind: {kind}\nmetadata: {{name: hostile-{n}, namespace: tenant, \
                 labels: null}}\nspec: {spec}\n"
            );
            lab.save(&format!("hostile-{n}.yaml"), &hostile)?;
            // Somebody else's policy comes into force meanwhile, and goes.
            let deny = "apiVersion: security.istio.io/v1\nkind: AuthorizationPolicy\nmetadata: {name: mine, namespace: \
                        default}\nspec: {action: DENY, rules: [{to: [{operation: {paths: [/a]}}]}]}\n";
            let to = on(lab, 1);
            lab.save("mine.yaml", deny)?;
            lab.becomes(DENIED, async |_| caller.get(to, "/a").await.got).await?;
            assert_eq!(caller.get(to, "/b").await.got, ALLOWED, "{spec}");
            lab.control.remove("mine.yaml")?;
            lab.becomes(ALLOWED, async |_| caller.get(to, "/a").await.got).await?;
        }
        let got = caller.get(on(lab, 0), "/a").await.got;
        assert!([DENIED, Got::Closed].contains(&got), "the tenant's own workload answered {got}");
        assert_eq!(lab.control.monitoring("/ready").await.got, Got::Status(200));
        Ok(())
    });
}

/// A provider that nobody defined, a provider whose Service is not there, keys that cannot be had: what needs them is
/// refused, and nothing else (GHSA-qm8v-g4f9-qhjx, semantics §10.12, §10.13).
#[test]
fn references_that_lead_nowhere_refuse() {
    let signer = Signer::new("https://login.example").unwrap();
    const POLICIES: &str = r#"
apiVersion: security.istio.io/v1
kind: AuthorizationPolicy
metadata: {name: nobody, namespace: default}
spec: {action: CUSTOM, provider: {name: nobody}, rules: [{to: [{operation: {paths: [/nobody]}}]}]}
---
apiVersion: security.istio.io/v1
kind: AuthorizationPolicy
metadata: {name: gone, namespace: default}
spec: {action: CUSTOM, provider: {name: gone}, rules: [{to: [{operation: {paths: [/gone]}}]}]}
---
apiVersion: security.istio.io/v1
kind: RequestAuthentication
metadata: {name: keys, namespace: default}
spec: {jwtRules: [{issuer: "https://login.example", jwksUri: "https://login.invalid/keys"}]}
---
apiVersion: security.istio.io/v1
kind: AuthorizationPolicy
metadata: {name: tokens, namespace: default}
spec:
  action: DENY
  rules: [{from: [{source: {requestPrincipals: ["https://login.example/eve"]}}], to: [{operation: {paths: [/denied]}}]}]
"#;
    lab::run(here!(), async |lab| {
        lab.control.mesh(
            "extensionProviders: [{name: gone, envoyExtAuthzHttp: {service: gone.default.svc.cluster.local, port: 1, \
             pathPrefix: /, failOpen: true}}]\n",
        )?;
        lab.save("policies.yaml", POLICIES)?;
        lab.start().await?;
        let app = lab.pod(PodSpec::new("default", "app").port(8080, Protocol::Http)).await?;
        let (on, caller) = (lab[app].on(8080), lab.caller(Credential::Plaintext));
        let token = format!("Bearer {}", signer.token(&json!({ "sub": "eve" }))?);
        let with = [("authorization", token.as_bytes())];
        for (path, headers, expected) in [
            ("/", &[][..], ALLOWED),
            ("/nobody", &[], DENIED),
            ("/gone", &[], DENIED),
            ("/denied", &[], ALLOWED),
            // Not taken for nobody's, which no DENY of a principal would meet.
            ("/denied", &with, UNAUTHENTICATED),
            ("/", &with, UNAUTHENTICATED),
        ] {
            assert_eq!(ask(&caller, on, &get(path, headers)).await.got, expected, "{path} {}", headers.len());
        }
        Ok(())
    });
}

/// What Istio lets pass in one place and refuses in another, or reads as everything (ADR 9): always an error, and then
/// never wider than what can be read of it.
#[test]
fn values_that_admission_overlooks() {
    let rows = [
        json!([{"key": "source.trustDomain", "values": ["a/ns/b"]}]),
        json!([{"key": "source.trustDomain", "notValues": ["a/b"]}]),
        json!([{"key": "source.ip"}]),
        json!([{"key": "source.ip", "values": []}]),
        json!([{"key": "source.ip", "values": [], "notValues": []}]),
        json!([{"key": "foo.bar", "values": ["x"]}]),
        json!([{"key": "request.headers[]", "values": ["x"]}]),
        json!([{"key": "request.headers[x", "values": ["x"]}]),
        json!([{"key": "request.auth.claims[]", "values": ["x"]}]),
        json!([{"key": "destination.namespace", "values": ["foo"]}]),
        json!([{"key": "", "values": ["x"]}]),
    ];
    for when in rows {
        for (action, expected) in [
            ("ALLOW", policy::Verdict::Deny),
            ("DENY", policy::Verdict::Deny),
            ("AUDIT", policy::Verdict::Allow),
        ] {
            let spec = json!({"action": action, "rules": [{"when": when}]});
            let parsed = crds::parse(&object("AuthorizationPolicy", &spec, None));
            let crds::Content::Invalid { closed: Some(closed), .. } = parsed.content else {
                panic!("{action} {when} is accepted")
            };
            let policy = resolved(Some(*closed.object), "a", "foo");
            let decision = policy::evaluate(&policy, &policy::Request::http(80));
            assert_eq!(decision.verdict, expected, "{action} {when}");
        }
    }
}
