//! The real API server calling the real webhook: what it refuses and why, what it warns of, its certificate, and that
//! nothing is written while nobody answers, which heals by itself.

#[path = "kube_admission/plane.rs"]
mod plane;
#[path = "kube_admission/tables.rs"]
mod tables;

use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use plane::{CONFIGURATION, NAMESPACE, Plane, Replica, lifetimes, policy};
use serde_json::{Value, json};
use source::kubernetes::webhook::SECRET;
use tests::here;
use tests::lab::kube::{self, Kube};
use tests::lab::until;

const AP: &str = "AuthorizationPolicy";
const PA: &str = "PeerAuthentication";
const RA: &str = "RequestAuthentication";
const V1: &str = "security.istio.io/v1";
const V1BETA1: &str = "security.istio.io/v1beta1";

/// Semantics §1.5, every row, with definitions that check nothing, so that it is the webhook that refuses.
#[test]
fn what_could_not_be_enforced_is_refused() {
    kube::own(here!(), async |kube| {
        kube.install_permissive_crds().await?;
        let plane = Plane::start(kube).await?;
        let ns = kube.fresh_namespace("refused").await?;
        for (index, row) in tables::refused().into_iter().enumerate() {
            let version = if index % 2 == 0 { V1 } else { V1BETA1 };
            let mut object = policy(version, row.kind, &ns, &format!("bad-{index}"), &row.spec);
            merge(&mut object, &row.more);
            let answer = plane.write(&object).await?;
            let text = format!("{}: {answer:?}", row.what);
            ensure!(answer.status == 400 && answer.body["reason"] == "BadRequest", "{text}");
            let message = answer.body["message"].as_str().context("a message")?;
            let prefix = format!("configuration is invalid: invalid policy bad-{index}.{ns}: ");
            ensure!(message.contains("denied the request: ") && message.contains(&prefix), "{text}");
            ensure!(message.contains(row.part), "{text}: {} is missing", row.part);
            let causes = &answer.body["details"]["causes"];
            ensure!(causes.as_array().is_some_and(|causes| !causes.is_empty()), "{text}");
        }
        // An update is judged as a creation is.
        let good = policy(V1, PA, &ns, "changed", "{mtls: {mode: STRICT}}");
        ensure!(plane.write(&good).await?.status == 201);
        let bad = kube.put(policy(V1, PA, &ns, "changed", "{mtls: {mode: Strict}}")).await;
        ensure!(format!("{:?}", bad.err()).contains("spec.mtls.mode"));
        let rejected = plane.trail("PolicyRejected")?;
        ensure!(rejected.len() > tables::refused().len(), "{}", rejected.len());
        ensure!(rejected.iter().all(|line| line["user"] == "admin"), "{:?}", rejected[0]);
        plane.verify()
    });
}

/// With the definitions that we ship: both versions, dry runs, and names that the API server makes up.
#[test]
fn what_can_be_enforced_is_admitted_and_the_moot_is_told() {
    kube::own(here!(), async |kube| {
        let ns = kube.fresh_namespace("admitted").await?;
        world(kube, &ns).await?;
        let plane = Plane::start(kube).await?;
        plane.ready().await?;
        for (index, (kind, spec)) in tables::admitted().into_iter().enumerate() {
            for version in [V1, V1BETA1] {
                let name = format!("good-{index}-{}", version.rsplit('/').next().unwrap_or_default());
                let answer = plane.dry(&policy(version, kind, &ns, &name, spec)).await?;
                ensure!(answer.status == 201, "{spec}: {answer:?}");
            }
        }
        for (what, kind, spec, part) in tables::warned() {
            let answer = plane.dry(&policy(V1, kind, &ns, "moot", spec)).await?;
            ensure!(answer.status == 201, "{what}: {answer:?}");
            ensure!(answer.warnings.iter().any(|warning| warning.contains(part)), "{what}: {answer:?}");
            ensure!(answer.warnings.iter().all(|warning| warning.len() <= 120), "{what}: {answer:?}");
        }
        let mut made_up = policy(V1, PA, &ns, "", "{mtls: {mode: STRICT}}");
        made_up["metadata"] = json!({"generateName": "made-up-", "namespace": ns});
        ensure!(plane.write(&made_up).await?.status == 201);
        // Nothing was written by dry runs, and the trail says which they were.
        let left = kube.kubectl(["get", "ap,pa,ra", "-n", &ns, "-o", "name"])?;
        ensure!(left.trim().starts_with("peerauthentication") && left.lines().count() == 1, "{left}");
        let admitted = plane.trail("PolicyAdmitted")?;
        ensure!(admitted.iter().filter(|line| line["dryRun"] == false).count() == 1, "{admitted:?}");
        // What admission saw is what was taken over, and who wrote it.
        let compiled = &admitted.iter().find(|line| line["dryRun"] == false).context("a line")?["compiled"];
        let changed = until("the change is in the trail", async || {
            Ok(plane.trail("PolicyChanged")?.into_iter().find(|line| &line["compiled"] == compiled))
        })
        .await?;
        ensure!(changed["generation"] == 1 && changed["state"] == "accepted", "{changed}");
        ensure!(changed["manager"].as_str().is_some_and(|manager| !manager.is_empty()), "{changed}");
        // kubectl shows warnings to people.
        let shown =
            plane.kubectl_apply(&policy(V1, AP, &ns, "shown", "{selector: {matchLabels: {app: nobody}}}"))?;
        ensure!(shown.contains("Warning: ") && shown.contains("selects nothing now"), "{shown}");
        plane.verify()
    });
}

async fn world(kube: &Kube, ns: &str) -> Result<()> {
    for (app, address, port, name) in
        [("web", "10.9.0.1", 8080_u16, "http"), ("db", "10.9.0.2", 5432, "tcp-db")]
    {
        let pod = format!("{app}-1");
        let uid = kube.pod(ns, &pod, app, &[("app", app)], address, &[port]).await?;
        kube.service(ns, app, &[(name, 80, port)], &[(&pod, &uid, address)]).await?;
    }
    Ok(())
}

/// Whoever changes the configuration or the Secret sees it put right, and a renewal breaks no write.
#[test]
fn the_certificate_is_kept_live() {
    kube::own(here!(), async |kube| {
        let plane = Plane::start(kube).await?;
        let ns = kube.fresh_namespace("certificate").await?;
        // Somebody empties caBundle, and somebody puts nonsense there.
        for bundle in [json!(null), json!("bm9uc2Vuc2U=")] {
            let patch = json!({"webhooks": [
                {"name": "validation.countersign.io", "clientConfig": {"caBundle": bundle}},
                {"name": "rev.validation.countersign.io", "clientConfig": {"caBundle": bundle}},
            ]});
            // The API server checks what it is given, which is fine as well.
            let patched = kube.kubectl([
                "patch",
                "validatingwebhookconfiguration",
                CONFIGURATION,
                "-p",
                &patch.to_string(),
            ]);
            if patched.is_ok() {
                until("caBundle is back", async || {
                    let bundles = bundles(kube).await?;
                    Ok(bundles.iter().all(|bundle| bundle.len() > 100).then_some(()))
                })
                .await?;
            }
        }
        plane.writable(&ns).await?;
        // The Secret goes, and comes back with another certificate.
        let before = secret(kube).await?["data"]["tls.crt"].clone();
        kube.kubectl(["delete", "secret", SECRET, "-n", NAMESPACE])?;
        until("the Secret is back", async || {
            let found = kube.get("v1", "Secret", NAMESPACE, SECRET).await?;
            Ok(found.filter(|found| found["data"]["tls.crt"] != before))
        })
        .await?;
        plane.writable(&ns).await?;
        plane.verify()
    });
}

/// Certificates that live for seconds: two replicas share each, both authorities are told in between, and no write fails.
#[test]
fn renewals_break_no_write() {
    kube::own(here!(), async |kube| {
        let lifetimes = lifetimes(Duration::from_secs(12), Duration::from_secs(2));
        let plane = Plane::with(kube, lifetimes).await?;
        let other = Replica::start(kube, lifetimes).await?;
        let ns = kube.fresh_namespace("renewal").await?;
        plane.writable(&ns).await?;
        let (mut seen, mut both, mut writes) = (std::collections::BTreeSet::new(), false, 0);
        let start = Instant::now();
        while seen.len() < 4 && start.elapsed() < Duration::from_secs(60) {
            let answer = plane.dry(&policy(V1, PA, &ns, "p", "{mtls: {mode: STRICT}}")).await?;
            ensure!(answer.status == 201, "write {writes}: {answer:?}");
            writes += 1;
            let secret = secret(kube).await?;
            seen.insert(secret["data"]["tls.crt"].to_string());
            both |= secret["data"].get("next-ca.crt").is_some();
            // Each replica in turn is the one that answers.
            let address = if writes % 2 == 0 { plane.replica.address } else { other.address };
            if writes % 50 == 0 {
                plane.point_at(address).await?;
            }
        }
        ensure!(
            seen.len() >= 4 && both,
            "{} certificates in {:?}, {writes} writes",
            seen.len(),
            start.elapsed()
        );
        plane.verify()
    });
}

async fn secret(kube: &Kube) -> Result<Value> {
    kube.get("v1", "Secret", NAMESPACE, SECRET).await?.context("the Secret")
}

async fn bundles(kube: &Kube) -> Result<Vec<String>> {
    let kind = "ValidatingWebhookConfiguration";
    let found = kube.get("admissionregistration.k8s.io/v1", kind, "", CONFIGURATION).await?;
    let found = found.context("the configuration")?;
    let webhooks = found["webhooks"].as_array().context("webhooks")?;
    let bundle = |hook: &Value| hook["clientConfig"]["caBundle"].as_str().unwrap_or_default().to_owned();
    Ok(webhooks.iter().map(bundle).collect())
}

/// Nobody answers: policies are refused, except where the control plane itself lives; objects of other revisions and of
/// other kinds are not touched. Somebody answers again: all is well, without anybody's hand.
#[test]
fn nobody_answers_and_somebody_answers_again() {
    kube::own(here!(), async |kube| {
        kube.install_permissive_crds().await?;
        let mut plane = Plane::start(kube).await?;
        let ns = kube.fresh_namespace("outage").await?;
        plane.writable(&ns).await?;
        let good = |ns: &str, name: &str| policy(V1, PA, ns, name, "{mtls: {mode: STRICT}}");
        ensure!(plane.write(&good(&ns, "before")).await?.status == 201);
        plane.stop_replica().await?;
        let answer = plane.write(&good(&ns, "during")).await?;
        ensure!(
            answer.status == 500 && answer.body["message"].to_string().contains("failed calling webhook"),
            "{answer:?}"
        );
        for exempt in [NAMESPACE, "kube-system"] {
            let answer = plane.write(&good(exempt, "exempt")).await?;
            ensure!(answer.status == 201, "{exempt}: {answer:?}");
        }
        let mut foreign = good(&ns, "foreign");
        foreign["metadata"]["labels"] = json!({"istio.io/rev": "canary"});
        ensure!(plane.write(&foreign).await?.status == 201);
        let mut ours = good(&ns, "ours");
        ours["metadata"]["labels"] = json!({"istio.io/rev": "default"});
        ensure!(plane.write(&ours).await?.status == 500);
        kube.apply(&format!("apiVersion: v1\nkind: ConfigMap\nmetadata: {{name: a, namespace: {ns}}}\n"))
            .await?;
        // A policy can always be taken away, and what a restart needs can be written.
        kube.kubectl(["delete", "pa", "before", "-n", &ns])?;
        kube.put(
            json!({"apiVersion": "v1", "kind": "Secret", "metadata": {"name": "x", "namespace": NAMESPACE}}),
        )
        .await?;
        plane.start_replica().await?;
        plane.writable(&ns).await?;
        ensure!(plane.write(&good(&ns, "after")).await?.status == 201);
        ensure!(plane.write(&policy(V1, PA, &ns, "bad", "{mtls: {mode: x}}")).await?.status == 400);
        plane.verify()
    });
}

/// Written while no webhook looked, then changed: refused as long as it is bad, but it can go.
#[test]
fn a_bad_object_that_is_there_already_can_go() {
    kube::own(here!(), async |kube| {
        kube.install_permissive_crds().await?;
        let ns = kube.fresh_namespace("there").await?;
        let mut bad = policy(V1, PA, &ns, "bad", "{mtls: {mode: x}}");
        bad["metadata"]["finalizers"] = json!(["example.com/hold"]);
        kube.put(bad.clone()).await?;
        let plane = Plane::start(kube).await?;
        plane.writable(&ns).await?;
        let label = |kube: &Kube| kube.kubectl(["label", "pa", "bad", "-n", &ns, "a=b", "--overwrite"]);
        ensure!(label(kube).is_err_and(|error| format!("{error:#}").contains("spec.mtls.mode")));
        kube.kubectl(["delete", "pa", "bad", "-n", &ns, "--wait=false"])?;
        let patch = r#"{"metadata": {"finalizers": null}}"#;
        kube.kubectl(["patch", "pa", "bad", "-n", &ns, "--type=merge", "-p", patch])?;
        until("it is gone", async || Ok(kube.get(V1, PA, &ns, "bad").await?.is_none().then_some(()))).await
    });
}

/// Every write with the webhook in the way, as the API server measures it: one and many at once.
#[test]
fn an_answer_takes_milliseconds() {
    kube::own(here!(), async |kube| {
        let ns = kube.fresh_namespace("fast").await?;
        world(kube, &ns).await?;
        let plane = Plane::start(kube).await?;
        plane.ready().await?;
        plane.writable(&ns).await?;
        let object = policy(V1, RA, &ns, "p", "{jwtRules: [{issuer: i, jwksUri: 'https://i/keys'}]}");
        for _ in 0..200 {
            ensure!(plane.dry(&object).await?.status == 201);
        }
        // As large as etcd takes: 400 rules of 60 paths each.
        let path = |n: u32| format!("'/a/path/of/some/length/{n}'");
        let paths = (0..60).map(path).collect::<Vec<_>>().join(", ");
        let rule = format!("{{to: [{{operation: {{paths: [{paths}]}}}}]}}");
        let rules = vec![rule; 400].join(", ");
        let large = policy(V1, AP, &ns, "large", &format!("{{action: AUDIT, rules: [{rules}]}}"));
        let start = Instant::now();
        let answer = plane.dry(&large).await?;
        ensure!(answer.status == 201, "{}: {:?}", answer.status, answer.warnings);
        println!("{} bytes in {:?}", large.to_string().len(), start.elapsed());
        let text = plane.replica.metrics.encode();
        let number = |name: &str| -> Option<f64> {
            text.lines().find_map(|line| line.strip_prefix(name)?.trim().parse().ok())
        };
        let sum = number("countersign_admission_seconds_sum ").context("a sum")?;
        let count = number("countersign_admission_seconds_count ").context("a count")?;
        println!("{count} reviews, {:.2} ms each", sum / count * 1000.0);
        ensure!(count >= 200.0 && sum / count < 0.010, "{} s each", sum / count);
        Ok(())
    });
}

fn merge(object: &mut Value, more: &Value) {
    for (key, value) in more.as_object().into_iter().flatten() {
        match (object.get_mut(key), value) {
            (Some(Value::Object(there)), Value::Object(value)) => there.extend(value.clone()),
            _ => object[key] = value.clone(),
        }
    }
}
