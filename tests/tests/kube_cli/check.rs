use std::path::Path;

use anyhow::{Context, Result, ensure};
use serde_json::{Value, json};
use tests::here;
use tests::lab::kube::{self, Kube};
use tests::lab::programs::root;

use super::{json, ran, tool};

/// One finding of a report.
#[derive(Clone, Debug, PartialEq)]
struct Finding {
    result: String,
    error: String,
    anchor: String,
}

/// What `check` says with these arguments: its exit code and all that is not right. Every finding leads somewhere.
fn check(kubeconfig: &Path, args: &[&str]) -> Result<(i32, Vec<Finding>)> {
    let all: Vec<&str> = ["check", "-o", "json"].iter().chain(args).copied().collect();
    let (code, report) = json(&tool(kubeconfig, &all)?)?;
    let page = std::fs::read_to_string(root().join("docs/troubleshooting.md"))?;
    let slug = |heading: &str| heading.trim_start_matches('#').trim().to_lowercase().replace(' ', "-");
    let headings: Vec<String> = page.lines().filter(|line| line.starts_with('#')).map(slug).collect();
    let mut findings = Vec::new();
    for category in report["categories"].as_array().context("categories")? {
        for check in category["checks"].as_array().context("checks")? {
            let text = |field: &str| check[field].as_str().unwrap_or_default().to_owned();
            if text("result") == "success" {
                continue;
            }
            let hint = text("hint");
            let anchor = hint.strip_prefix("docs/troubleshooting.md#").context(hint.clone())?;
            ensure!(headings.iter().any(|known| known == anchor), "no heading for {hint}");
            findings.push(Finding {
                result: text("result"),
                error: text("error"),
                anchor: anchor.to_owned(),
            });
        }
    }
    assert_eq!(report["success"], findings.iter().all(|finding| finding.result != "error"));
    Ok((code, findings))
}

fn find<'a>(findings: &'a [Finding], anchor: &str) -> Result<&'a Finding> {
    findings.iter().find(|f| f.anchor == anchor).with_context(|| format!("no {anchor} in {findings:#?}"))
}

/// Before an installation the way is free; installed is nothing, and that is said.
#[test]
fn a_cluster_without_anything() {
    kube::own(here!(), async |kube| {
        kube.uninstall_crds().await?;
        let admin = kube.admin_kubeconfig()?;
        let (code, findings) = check(&admin, &["--pre"])?;
        assert_eq!((code, findings), (0, Vec::new()));
        let (code, findings) = check(&admin, &[])?;
        assert_eq!(code, 1);
        let missing = find(&findings, "definitions-missing")?;
        ensure!(missing.result == "error" && missing.error.contains("authorizationpolicies"), "{missing:?}");
        assert_eq!(find(&findings, "control-plane-not-running")?.result, "error");
        for warned in ["nobody-writes-status", "root-certificate", "admission-webhook", "status-not-told"] {
            assert_eq!(find(&findings, warned)?.result, "warning", "{warned}");
        }
        // With its definitions it is better, and nothing is said of them.
        let definitions = ran(&tool(&admin, &["crds"])?).1;
        kube.apply(&definitions).await?;
        let findings = super::until(async || {
            let (_, findings) = check(&admin, &[])?;
            Ok(find(&findings, "definitions-missing").is_err().then_some(findings))
        })
        .await?;
        ensure!(find(&findings, "definitions-of-another-installation").is_err(), "{findings:?}");
        Ok(())
    });
}

/// Definitions that another installation brought are used, and the missing columns told.
#[test]
fn definitions_of_somebody_else() {
    kube::own(here!(), async |kube| {
        let admin = kube.admin_kubeconfig()?;
        kube.uninstall_crds().await?;
        // One that is on its way out could still be written to, and would go all the same.
        super::until(async || {
            let left = kube.kubectl(["get", "crd", "-o", "name"])?;
            Ok((!left.contains("istio.io")).then_some(()))
        })
        .await?;
        for (plural, kind) in
            [("authorizationpolicies", "AuthorizationPolicy"), ("peerauthentications", "PeerAuthentication")]
        {
            kube.put(definition("security.istio.io", plural, kind, "v1")).await?;
        }
        let findings = super::until(async || {
            let (_, findings) = check(&admin, &[])?;
            // The API server takes them into service one after the other.
            let both = find(&findings, "definitions-of-another-installation")
                .is_ok_and(|foreign| foreign.error.lines().count() == 2);
            Ok(both.then_some(findings))
        })
        .await?;
        let foreign = find(&findings, "definitions-of-another-installation")?;
        ensure!(foreign.result == "warning" && foreign.error.lines().count() == 2, "{foreign:?}");
        let (code, findings) = check(&admin, &["--pre"])?;
        assert_eq!(code, 0);
        assert_eq!(find(&findings, "definitions-of-another-installation")?.result, "warning");
        let (code, _) = check(&admin, &["--pre", "--failure-threshold", "warning"])?;
        assert_eq!(code, 1);
        Ok(())
    });
}

fn definition(group: &str, plural: &str, kind: &str, version: &str) -> Value {
    let open = json!({"type": "object", "x-kubernetes-preserve-unknown-fields": true});
    json!({
        "apiVersion": "apiextensions.k8s.io/v1", "kind": "CustomResourceDefinition",
        "metadata": {"name": format!("{plural}.{group}")},
        "spec": {
            "group": group, "scope": "Namespaced",
            "names": {"kind": kind, "plural": plural, "singular": kind.to_lowercase(), "listKind": format!("{kind}List")},
            "versions": [{"name": version, "served": true, "storage": true, "subresources": {"status": {}},
                "schema": {"openAPIV3Schema": {"type": "object", "properties": {"spec": open, "status": open}}}}],
        },
    })
}

/// Rights are those of the controller's service account where there is one, and before an installation one's own.
#[test]
fn missing_rights() {
    kube::own(here!(), async |kube| {
        let admin = kube.admin_kubeconfig()?;
        let (_, findings) = check(&admin, &[])?;
        ensure!(find(&findings, "rights-missing").is_err(), "the administrator may everything: {findings:?}");
        kube.service_account("istio-system", "countersign").await?;
        let (code, findings) = check(&admin, &[])?;
        assert_eq!(code, 1);
        let lacking = find(&findings, "rights-missing")?;
        ensure!(lacking.result == "error" && lacking.error.contains("list namespaces"), "{lacking:?}");
        kube.apply(
            "apiVersion: rbac.authorization.k8s.io/v1\nkind: ClusterRoleBinding\nmetadata: {name: all}\n\
             roleRef: {apiGroup: rbac.authorization.k8s.io, kind: ClusterRole, name: cluster-admin}\n\
             subjects: [{kind: ServiceAccount, name: countersign, namespace: istio-system}]\n",
        )
        .await?;
        super::until(async || {
            let (_, findings) = check(&admin, &[])?;
            Ok(find(&findings, "rights-missing").is_err().then_some(()))
        })
        .await?;
        // Somebody who may nothing is told so, and what cannot be looked at is no success.
        let nobody = kube.kubeconfig_of("default", "nobody").await?;
        let (code, findings) = check(&nobody, &["--pre"])?;
        assert_eq!(code, 1);
        let lacking = find(&findings, "rights-to-install")?;
        ensure!(findings.iter().any(|f| f.error.contains("create customresourcedefinitions")), "{lacking:?}");
        let (code, findings) = check(&nobody, &[])?;
        assert_eq!(code, 1, "{findings:?}");
        ensure!(find(&findings, "rights-missing")?.error.contains("cannot get resource"), "{findings:?}");
        Ok(())
    });
}

/// Objects that are wrong in one way each.
#[test]
fn each_finding_appears() {
    kube::own(here!(), async |kube| {
        let admin = kube.admin_kubeconfig()?;
        troubles(kube).await?;
        let (code, findings) = check(&admin, &[])?;
        assert_eq!(code, 1);
        for (anchor, result, says) in [
            ("nobody-writes-status", "error", "has not renewed"),
            ("root-certificate", "error", "it ended on 2001"),
            ("admission-webhook", "error", "failurePolicy is Ignore"),
            ("objects-with-errors", "error", "AuthorizationPolicy default/refused: Invalid: no such key"),
            ("not-enforced", "warning", "AuthorizationPolicy default/pending: Pending: 1/2"),
            ("policy-without-status", "warning", "AuthorizationPolicy default/bare"),
            ("kinds-without-effect", "warning", "1 EnvoyFilter (networking.istio.io)"),
        ] {
            let is = |f: &&Finding| f.anchor == anchor && f.result == result && f.error.contains(says);
            ensure!(findings.iter().any(|f| is(&f)), "no {says:?} under {anchor}: {findings:#?}");
        }
        let webhook: Vec<&Finding> = findings.iter().filter(|f| f.anchor == "admission-webhook").collect();
        ensure!(webhook.iter().any(|f| f.error.contains("caBundle is empty")), "{webhook:#?}");
        ensure!(webhook.iter().any(|f| f.error.contains("unknown condition key")), "{webhook:#?}");
        let short = ran(&tool(&admin, &["check", "-o", "short"])?).1;
        ensure!(short.contains("× ") && !short.contains("√"), "{short}");
        Ok(())
    });
}

async fn troubles(kube: &Kube) -> Result<()> {
    let policy = |name: &str, status: Value| {
        json!({
            "apiVersion": "security.istio.io/v1", "kind": "AuthorizationPolicy",
            "metadata": {"name": name, "namespace": "default"}, "spec": {"action": "DENY"}, "status": status,
        })
    };
    let condition = |kind: &str, status: &str, reason: &str, message: &str| {
        json!({"type": kind, "status": status, "reason": reason, "message": message, "observedGeneration": 1,
            "lastTransitionTime": "2026-01-01T00:00:00Z"})
    };
    let accepted = condition("Accepted", "True", "Accepted", "");
    let refused = condition("Accepted", "False", "Invalid", "no such key");
    let pending = condition("Enforced", "False", "Pending", "1/2");
    kube.put(policy("refused", json!({"conditions": [refused]}))).await?;
    kube.put(policy("pending", json!({"conditions": [accepted, pending]}))).await?;
    kube.put(policy("bare", json!({}))).await?;
    kube.put(json!({
        "apiVersion": "coordination.k8s.io/v1", "kind": "Lease",
        "metadata": {"name": "countersign-leader", "namespace": "istio-system"},
        "spec": {"holderIdentity": "gone", "leaseDurationSeconds": 5, "renewTime": "2001-01-01T00:00:00.000000Z"},
    }))
    .await?;
    let mut params = rcgen::CertificateParams::default();
    params.not_before = time::OffsetDateTime::from_unix_timestamp(900_000_000)?;
    params.not_after = time::OffsetDateTime::from_unix_timestamp(1_000_000_000)?;
    let root = params.self_signed(&rcgen::KeyPair::generate()?)?.pem();
    kube.put(json!({
        "apiVersion": "v1", "kind": "ConfigMap", "data": {"root-cert.pem": root},
        "metadata": {"name": "istio-ca-root-cert", "namespace": "istio-system"},
    }))
    .await?;
    kube.put(json!({
        "apiVersion": "admissionregistration.k8s.io/v1", "kind": "ValidatingWebhookConfiguration",
        "metadata": {"name": "countersign"},
        "webhooks": [{
            "name": "validation.countersign.io", "admissionReviewVersions": ["v1"], "sideEffects": "None",
            "failurePolicy": "Ignore", "timeoutSeconds": 1,
            "rules": [{"apiGroups": ["security.istio.io"], "apiVersions": ["*"], "operations": ["CREATE"],
                "resources": ["*"]}],
            "clientConfig": {"service": {"name": "countersign", "namespace": "istio-system"}},
        }],
    }))
    .await?;
    kube.put(definition("networking.istio.io", "envoyfilters", "EnvoyFilter", "v1alpha3")).await?;
    super::until(async || {
        let filter = json!({"apiVersion": "networking.istio.io/v1alpha3", "kind": "EnvoyFilter",
            "metadata": {"name": "f", "namespace": "default"}, "spec": {}});
        Ok(kube.put(filter).await.ok())
    })
    .await?;
    Ok(())
}

/// Wrong usage is 2, a cluster that does not answer a finding.
#[test]
fn what_cannot_be_asked() {
    kube::shared(here!(), async |kube| {
        let (code, _, err) = ran(&tool(Path::new("/no/such/kubeconfig"), &["check"])?);
        ensure!(code == 2 && err.contains("kubeconfig"), "{code} {err}");
        let (code, _, err) = ran(&tool(&kube.admin_kubeconfig()?, &["check", "--no-such-flag"])?);
        ensure!(code == 2, "{err}");
        let stranger = kube.kubeconfig("stranger", "no-such-token")?;
        let (code, findings) = check(&stranger, &["--pre"])?;
        ensure!(code == 1 && !findings.is_empty(), "{findings:?}");
        let nowhere = kube.kubeconfig_at("nowhere", "https://127.0.0.1:1", "x")?;
        let (code, findings) = check(&nowhere, &[])?;
        assert_eq!((code, findings.len()), (1, 1));
        find(&findings, "api-server-not-reached")?;
        Ok(())
    });
}
