//! `countersign controller` against a real kube-apiserver, with real Envoys: what is written there is enforced.

use std::time::{Duration, Instant};

use anyhow::ensure;
use serde_json::json;
use tests::here;
use tests::lab::cluster::{BareId, Cluster, mesh_config};
use tests::lab::{self, ALLOWED, Credential, DENIED, Got, Leaf, PodSpec, Protocol};

fn web(namespace: &str, name: &str) -> PodSpec {
    PodSpec::new(namespace, name).port(8080, Protocol::Http)
}

fn deny(namespace: &str, name: &str, spec: &str) -> String {
    format!(
        "apiVersion: security.istio.io/v1\nkind: AuthorizationPolicy\nmetadata: {{name: {name}, namespace: {namespace}}}\n\
         spec: {{action: DENY, {spec}}}\n"
    )
}

async fn got(mesh: &Cluster<'_>, pod: BareId, path: &str) -> Got {
    let caller = mesh.identity("default", "payment").expect("a certificate");
    mesh.caller(caller).get(mesh.on(pod, 8080), path).await.got
}

/// Written, changed, deleted: each is felt by the next request on a connection that was there before.
#[test]
fn a_policy_is_enforced_on_live_connections() {
    lab::run(here!(), async |lab| {
        let mut mesh = Cluster::new(lab).await?;
        mesh.controller("one").await?;
        let orders = mesh.pod(web("default", "orders"), &["one"]).await?;
        let caller = mesh.caller(mesh.identity("default", "payment")?);
        let mut open = caller.http1(mesh.on(orders, 8080)).await.expect("a connection");
        assert_eq!(open.get("/").await.got, ALLOWED);
        for (policy, root, admin) in [
            (deny("default", "d", "rules: [{to: [{operation: {paths: [/admin]}}]}]"), ALLOWED, DENIED),
            (deny("default", "d", "rules: [{to: [{operation: {paths: [/]}}]}]"), DENIED, ALLOWED),
            (deny("istio-system", "mesh-wide", "rules: [{}]"), DENIED, DENIED),
        ] {
            mesh.kube.apply(&policy).await?;
            lab::until("the policy is in force", async || {
                let seen = (open.get("/").await.got, open.get("/admin").await.got);
                Ok((seen == (root, admin)).then_some(()))
            })
            .await?;
        }
        lab::until("the status says so", async || {
            let enforced =
                mesh.condition("AuthorizationPolicy", "istio-system", "mesh-wide", "Enforced").await?;
            Ok((enforced.starts_with("True Enforced: 1/1")).then_some(()))
        })
        .await?;
        mesh.kube.delete(&deny("istio-system", "mesh-wide", "rules: []")).await?;
        mesh.kube.delete(&deny("default", "d", "rules: []")).await?;
        lab::until("both are gone", async || Ok((open.get("/").await.got == ALLOWED).then_some(()))).await
    });
}

/// The mesh configuration may come later, changes live, and may go.
#[test]
fn the_mesh_configuration_is_followed() {
    lab::run(here!(), async |lab| {
        let mut mesh = Cluster::new(lab).await?;
        mesh.controller("one").await?;
        let orders = mesh.pod(web("default", "orders"), &["one"]).await?;
        let only = "apiVersion: security.istio.io/v1\nkind: AuthorizationPolicy\nmetadata: {name: a, namespace: default}\n\
                    spec: {rules: [{from: [{source: {principals: [cluster.local/ns/default/sa/payment]}}]}]}\n";
        mesh.kube.apply(only).await?;
        let old = Leaf::new(["spiffe://old-domain/ns/default/sa/payment"]);
        let old = mesh.caller(mesh.authority.mint(&old)?);
        let to = mesh.on(orders, 8080);
        mesh.becomes(Got::TlsRefused, async |_| old.get(to, "/").await.got).await?;
        mesh.kube.apply(&mesh_config("trustDomainAliases: [old-domain]\n")).await?;
        mesh.becomes(ALLOWED, async |_| old.get(to, "/").await.got).await?;
        mesh.kube.apply(&mesh_config("trustDomainAliases: []\n")).await?;
        mesh.becomes(Got::TlsRefused, async |_| old.get(to, "/").await.got).await?;
        assert_eq!(got(&mesh, orders, "/").await, ALLOWED);
        Ok(())
    });
}

/// A proxy that claims another pod's labels and account gets the policies of its own, and nothing opens.
#[test]
fn stolen_labels_change_nothing() {
    lab::run(here!(), async |lab| {
        let mut mesh = Cluster::new(lab).await?;
        mesh.controller("one").await?;
        let closed = "selector: {matchLabels: {app: thief}}, rules: [{}]";
        mesh.kube.apply(&deny("default", "closed", closed)).await?;
        let claims =
            json!({"LABELS": {"app": "orders"}, "SERVICE_ACCOUNT": "orders", "NAMESPACE": "default"});
        let thief = mesh.pod_claiming(web("default", "thief"), &["one"], claims).await?;
        let orders = mesh.pod(web("default", "orders"), &["one"]).await?;
        mesh.becomes(ALLOWED, async |mesh| got(mesh, orders, "/").await).await?;
        for _ in 0..20 {
            assert_eq!(got(&mesh, thief, "/").await, DENIED);
        }
        // The other way round: labels of the registry, given later, count at once.
        mesh.kube
            .pod(
                "default",
                "orders",
                "orders",
                &[("app", "thief")],
                &mesh.get(orders).at.v4.to_string(),
                &[8080],
            )
            .await?;
        mesh.becomes(DENIED, async |mesh| got(mesh, orders, "/").await).await
    });
}

/// A revision's objects are that revision's alone.
#[test]
fn objects_of_another_revision_are_ignored() {
    lab::run(here!(), async |lab| {
        let mut mesh = Cluster::new(lab).await?;
        mesh.controller("one").await?;
        let orders = mesh.pod(web("default", "orders"), &["one"]).await?;
        let other = deny("default", "other", "rules: [{}]")
            .replace("namespace: default}", "namespace: default, labels: {istio.io/rev: canary}}");
        mesh.kube.apply(&other).await?;
        mesh.kube.apply(&deny("default", "ours", "rules: [{to: [{operation: {paths: [/admin]}}]}]")).await?;
        mesh.becomes(DENIED, async |mesh| got(mesh, orders, "/admin").await).await?;
        assert_eq!(got(&mesh, orders, "/").await, ALLOWED);
        Ok(())
    });
}

/// A thousand pods and a thousand policies: ready soon, and small. (The measured numbers are in bench/results.)
#[test]
fn a_thousand_of_each_are_carried() {
    lab::run(here!(), async |lab| {
        let mut mesh = Cluster::new(lab).await?;
        mesh.kube.thousand().await?;
        mesh.prepare_controller(
            "one",
            &["--webhook-addr", "off", "--ca-addr", "off", "--secure-addr", "off"],
        )
        .await?;
        let started = Instant::now();
        mesh.at("one").start()?;
        mesh.at("one").ready().await?;
        let ready = started.elapsed();
        let orders = mesh.pod(web("default", "orders"), &["one"]).await?;
        mesh.kube.apply(&deny("default", "d", "rules: [{}]")).await?;
        mesh.becomes(DENIED, async |mesh| got(mesh, orders, "/").await).await?;
        let resident = mesh.at("one").resident()? >> 20;
        // Generous: not optimised, on a machine with other things to do.
        ensure!(ready < Duration::from_secs(15), "ready after {ready:?}");
        ensure!(resident < 250, "{resident} MB resident");
        Ok(())
    });
}

/// Written with no webhook there and no schema that checks: decision 5 of the design, object by object, and nobody else is harmed.
#[test]
fn objects_no_webhook_saw_harm_only_themselves() {
    lab::run(here!(), async |lab| {
        let mut mesh = Cluster::new(lab).await?;
        mesh.kube.install_permissive_crds().await?;
        let unreadable = [
            // Where, what, (payment at /, payment at /open, plaintext at /open)
            (
                "allow",
                "AuthorizationPolicy",
                "rules: [{from: [{source: {ipBlocks: [nonsense]}}]}]",
                DENIED,
                DENIED,
                DENIED,
            ),
            (
                "deny",
                "AuthorizationPolicy",
                "action: DENY, rules: [{to: [{operation: {paths: [/]}}], when: [{key: nonsense, values: [a]}]}]",
                DENIED,
                ALLOWED,
                ALLOWED,
            ),
            ("action", "AuthorizationPolicy", "action: NONSENSE, rules: [{}]", DENIED, DENIED, DENIED),
            ("peer", "PeerAuthentication", "mtls: {mode: NONSENSE}", ALLOWED, ALLOWED, Got::Closed),
            (
                "fine",
                "AuthorizationPolicy",
                "action: DENY, rules: [{to: [{operation: {paths: [/]}}]}]",
                DENIED,
                ALLOWED,
                ALLOWED,
            ),
        ];
        for (namespace, kind, spec, ..) in unreadable {
            mesh.kube.namespace(namespace).await?;
            let metadata = format!("{{name: p, namespace: {namespace}}}");
            let head = format!("apiVersion: security.istio.io/v1\nkind: {kind}\nmetadata: {metadata}\n");
            mesh.kube.apply(&format!("{head}spec: {{{spec}}}\n")).await?;
        }
        mesh.controller("one").await?;
        let pods = mesh.pods(unreadable.map(|(namespace, ..)| web(namespace, namespace)), &["one"]).await?;
        for (pod, (namespace, _, _, root, open, plaintext)) in pods.iter().zip(unreadable) {
            let seen = (
                got(&mesh, *pod, "/").await,
                got(&mesh, *pod, "/open").await,
                mesh.caller(Credential::Plaintext).get(mesh.on(*pod, 8080), "/open").await.got,
            );
            assert_eq!(seen, (root, open, plaintext), "{namespace}");
        }
        for (namespace, kind, ..) in unreadable {
            let expected = if namespace == "fine" { "True" } else { "False Invalid: " };
            lab::until(&format!("{namespace}/p is Accepted {expected}"), async || {
                let accepted = mesh.condition(kind, namespace, "p", "Accepted").await?;
                Ok(accepted.starts_with(expected).then_some(()))
            })
            .await?;
        }
        Ok(())
    });
}

/// A policy of the root namespace whose selector nobody can read might be meant for anybody: nobody is served before a person
/// has looked, and the reason names it.
#[test]
fn an_unreadable_selector_in_the_root_namespace_is_not_ready() {
    lab::run(here!(), async |lab| {
        let mut mesh = Cluster::new(lab).await?;
        mesh.kube.install_permissive_crds().await?;
        let unreadable = deny("istio-system", "odd", "selector: {matchLabels: [a, b]}, rules: [{}]");
        mesh.kube.apply(&unreadable).await?;
        mesh.prepare_controller(
            "one",
            &["--webhook-addr", "off", "--ca-addr", "off", "--secure-addr", "off"],
        )
        .await?;
        mesh.at("one").start()?;
        let one = mesh.at("one");
        lab::until("the reason names it", async || {
            let answer = one.monitoring("/ready").await;
            assert_ne!(answer.got, ALLOWED);
            Ok(answer.body.contains("istio-system/odd").then_some(()))
        })
        .await?;
        mesh.kube.delete(&unreadable).await?;
        mesh.at("one").ready().await
    });
}

/// What was good once stays in force when it is written over with what cannot be understood.
#[test]
fn the_last_good_version_stays_in_force() {
    lab::run(here!(), async |lab| {
        let mut mesh = Cluster::new(lab).await?;
        mesh.kube.install_permissive_crds().await?;
        mesh.controller("one").await?;
        let orders = mesh.pod(web("default", "orders"), &["one"]).await?;
        mesh.kube.apply(&deny("default", "d", "rules: [{to: [{operation: {paths: [/admin]}}]}]")).await?;
        mesh.becomes(DENIED, async |mesh| got(mesh, orders, "/admin").await).await?;
        mesh.kube.apply(&deny("default", "d", "rules: [{when: [{key: nonsense, values: [a]}]}]")).await?;
        mesh.kube.apply(&deny("default", "after", "rules: [{to: [{operation: {paths: [/after]}}]}]")).await?;
        mesh.becomes(DENIED, async |mesh| got(mesh, orders, "/after").await).await?;
        assert_eq!(got(&mesh, orders, "/admin").await, DENIED);
        assert_eq!(got(&mesh, orders, "/").await, ALLOWED);
        mesh.kube.apply(&deny("default", "d", "rules: [{to: [{operation: {paths: [/other]}}]}]")).await?;
        mesh.becomes(ALLOWED, async |mesh| got(mesh, orders, "/admin").await).await?;
        assert_eq!(got(&mesh, orders, "/other").await, DENIED);
        Ok(())
    });
}

/// As an injected sidecar would run: by service-account token to the certificate authority and to the secure port, strict
/// mutual TLS between pods, and a policy by the caller's account.
#[test]
fn agents_with_tokens_are_served_on_the_secure_port() {
    lab::run(here!(), async |lab| {
        let mut mesh = Cluster::new(lab).await?;
        mesh.ca().await?;
        mesh.kube.apply(&deny("default", "d", "rules: [{to: [{operation: {paths: [/admin]}}]}]")).await?;
        mesh.replica("one").await?;
        let orders = mesh.agent_pod(web("default", "orders"), "one").await?;
        let payment = mesh.caller(mesh.identity("default", "payment")?);
        let to = orders.on(8080);
        mesh.becomes(ALLOWED, async |_| payment.get(to, "/").await.got).await?;
        assert_eq!(payment.get(to, "/admin").await.got, DENIED);
        let strict = "apiVersion: security.istio.io/v1\nkind: PeerAuthentication\nmetadata: {name: default, namespace: \
                      istio-system}\nspec: {mtls: {mode: STRICT}}\n";
        mesh.kube.apply(strict).await?;
        let plaintext = mesh.caller(Credential::Plaintext);
        mesh.becomes(Got::Closed, async |_| plaintext.get(to, "/").await.got).await?;
        assert_eq!(payment.get(to, "/").await.got, ALLOWED);
        // The Envoy that comes back is served by its certificate, without a new token.
        std::fs::write(orders.folder.join("token"), "used up")?;
        orders.kill_envoy()?;
        mesh.becomes(ALLOWED, async |_| payment.get(to, "/").await.got).await?;
        mesh.becomes(DENIED, async |_| payment.get(to, "/admin").await.got).await
    });
}
