//! `charts/countersign-crds` with a real Helm: alone, and beside definitions of somebody else.

use std::io::Write as _;
use std::path::PathBuf;
use std::process::Command;

use anyhow::{Context, Result, ensure};
use crds::crd::definitions;
use serde_json::{Value, json};
use sha2::{Digest as _, Sha256};
use tests::here;
use tests::lab::kube::{self, Kube};

use super::{root, versions, yaml};

/// `$HELM`, else what `scripts/get-helm` built.
fn helm() -> Result<PathBuf, String> {
    if let Some(path) = std::env::var_os("HELM").map(PathBuf::from) {
        return if path.is_file() { Ok(path) } else { Err(format!("HELM={} is no file", path.display())) };
    }
    let mut pins = Sha256::new();
    for file in ["tests/tools/helm/go.mod", "tests/tools/helm/go.sum", "scripts/get-helm"] {
        pins.update(std::fs::read(root().join(file)).unwrap_or_default());
    }
    let hash: String = pins.finalize().iter().take(8).map(|byte| format!("{byte:02x}")).collect();
    let path = root().join(".cache/helm").join(hash).join("helm");
    if path.is_file() { Ok(path) } else { Err("no helm: run scripts/get-helm or set HELM".to_owned()) }
}

/// Runs `body` if there is a Helm.
fn with_helm(test: &str, body: impl AsyncFnOnce(&Helm<'_>) -> Result<()>) {
    match helm() {
        Ok(helm) => kube::own(test, async |kube| body(&Helm { helm, kube }).await),
        Err(missing) => {
            assert!(std::env::var_os("CI").is_none(), "CI is set, so this must run, but: {missing}");
            // Straight to the terminal: the harness shows nothing of a test that passes.
            std::io::stderr().write_all(format!("skipped {test}: {missing}\n").as_bytes()).ok();
        }
    }
}

struct Helm<'k> {
    helm: PathBuf,
    kube: &'k Kube,
}

impl Helm<'_> {
    /// In the namespace `cs`: what it printed; the error is what it said.
    fn run(&self, args: &str) -> Result<String> {
        let home = self.kube.folder().join("helm");
        let chart = root().join("charts/countersign-crds");
        let args = args.split(' ').map(|arg| if arg == "CHART" { chart.as_os_str() } else { arg.as_ref() });
        let output = Command::new(&self.helm)
            .args(args)
            .args(["--namespace", "cs", "--kubeconfig"])
            .arg(self.kube.admin_kubeconfig()?)
            .env("HOME", &home)
            .env("XDG_CACHE_HOME", home.join("cache"))
            .output()
            .context("helm")?;
        let said = String::from_utf8_lossy(&output.stderr);
        ensure!(output.status.success(), "helm: {said}");
        Ok(String::from_utf8(output.stdout)?)
    }

    async fn live(&self, name: &str) -> Result<Value> {
        let api = "apiextensions.k8s.io/v1";
        self.kube.get(api, "CustomResourceDefinition", "", name).await?.with_context(|| name.to_owned())
    }

    /// Names and generations of our definitions.
    async fn generations(&self) -> Result<Vec<(String, Value)>> {
        let mut all = Vec::new();
        for one in definitions() {
            let live = self.live(&one.name()).await?;
            ensure!(live["metadata"]["deletionTimestamp"].is_null(), "{} is going", one.name());
            all.push((one.name(), live["metadata"]["generation"].clone()));
        }
        Ok(all)
    }
}

/// Installed, upgraded, uninstalled, installed again: the policies live through it all.
#[test]
fn no_uninstall_deletes_a_definition() {
    with_helm(here!(), async |helm| {
        helm.kube.uninstall_crds().await?;
        for one in definitions() {
            tests::lab::until("the definitions are gone", async || {
                let api = "apiextensions.k8s.io/v1";
                let live = helm.kube.get(api, "CustomResourceDefinition", "", &one.name()).await?;
                Ok(live.is_none().then_some(()))
            })
            .await?;
        }
        let said = helm.run("install crds CHART --create-namespace --wait")?;
        assert_eq!(said.matches(": installed").count(), definitions().len(), "{said}");
        let policy = versions("AuthorizationPolicy", "default", &yaml("{rules: [{}]}")).swap_remove(0);
        tests::lab::until("policies can be written", async || Ok(helm.kube.put(policy.clone()).await.ok()))
            .await?;
        let before = helm.generations().await?;
        helm.run("upgrade crds CHART")?;
        let said = helm.run("uninstall crds")?;
        assert_eq!(said.matches("[CustomResourceDefinition]").count(), definitions().len(), "{said}");
        assert_eq!(helm.generations().await?, before);
        let said = helm.run("install crds CHART")?;
        assert_eq!(said.matches(": installed").count(), definitions().len(), "{said}");
        assert_eq!(helm.generations().await?, before);
        ensure!(
            helm.kube.get("security.istio.io/v1", "AuthorizationPolicy", "default", "x").await?.is_some()
        );
        // What this release put there, another one does not touch.
        let said = helm.run("install other CHART")?;
        assert_eq!(said.matches("it belongs to release cs/crds").count(), definitions().len(), "{said}");
        helm.run("uninstall other")?;
        assert_eq!(helm.generations().await?, before);
        Ok(())
    });
}

/// Definitions as an Istio has them: its labels, no columns of ours, and conditions that take no field of ours.
fn istios() -> Vec<Value> {
    let conditions = json!({"type": "array", "items": {"type": "object", "properties": {
        "type": {"type": "string"}, "status": {"type": "string"}, "reason": {"type": "string"},
        "message": {"type": "string"}, "lastProbeTime": {"type": "string", "format": "date-time"},
        "lastTransitionTime": {"type": "string", "format": "date-time"},
        "observedGeneration": {"anyOf": [{"type": "integer"}, {"type": "string"}], "x-kubernetes-int-or-string": true},
    }}});
    let mut all: Vec<Value> = definitions().iter().map(|one| one.value().clone()).collect();
    for definition in &mut all {
        definition["metadata"]["labels"] = json!({"app": "istio-pilot", "release": "istio"});
        for version in definition["spec"]["versions"].as_array_mut().into_iter().flatten() {
            version["additionalPrinterColumns"] =
                json!([{"name": "Age", "type": "date", "jsonPath": ".metadata.creationTimestamp"}]);
            version["schema"]["openAPIV3Schema"]["properties"]["status"]["properties"]["conditions"] =
                conditions.clone();
        }
    }
    all
}

/// Beside an Istio's definitions: untouched unless asked, conditions work in them, and taken over when asked.
#[test]
fn definitions_of_others_are_left_alone_unless_asked() {
    with_helm(here!(), async |helm| {
        for mut definition in istios() {
            if definition["spec"]["names"]["shortNames"][0] == "ap" {
                definition["metadata"]["annotations"] = json!({
                    "helm.sh/resource-policy": "keep", "meta.helm.sh/release-name": "istio-base",
                    "meta.helm.sh/release-namespace": "istio-system",
                });
            }
            // Ours are there from the start: the other owner's labels alone shall be on them.
            definition["metadata"]["labels"]["app.kubernetes.io/part-of"] = "istio".into();
            helm.kube.put(definition).await?;
        }
        let before = helm.generations().await?;
        let said = helm.run("install crds CHART --create-namespace")?;
        assert_eq!(said.matches("left as it is").count(), definitions().len(), "{said}");
        ensure!(said.contains("it belongs to release istio-system/istio-base"), "{said}");
        let mut policy = versions("AuthorizationPolicy", "default", &yaml("{rules: [{}]}")).swap_remove(0);
        policy["status"] = json!({"conditions": [
            {"type": "WaypointAccepted", "status": "False", "reason": "TargetNotFound", "message": "m"},
            {"type": "Enforced", "status": "True", "reason": "Enforced", "message": "12/12", "observedGeneration": 1, "lastTransitionTime": "2026-01-01T00:00:00Z"},
        ]});
        let stored = serde_json::to_value(helm.kube.put(policy.clone()).await?)?;
        assert_eq!(stored["status"], policy["status"]);
        helm.kube.kubectl(["wait", "--for=condition=Enforced", "ap/x", "--timeout=5s"])?;
        helm.run("upgrade crds CHART")?;
        helm.run("uninstall crds")?;
        assert_eq!(helm.generations().await?, before);
        // Asked, but Helm is not told that this is meant.
        helm.run("install crds CHART --set overwrite=true").expect_err("another release's");
        helm.run("uninstall crds --ignore-not-found")?;
        let said = helm.run("install crds CHART --set overwrite=true --take-ownership --force-conflicts")?;
        assert_eq!(said.matches(": installed").count(), definitions().len(), "{said}");
        tests::lab::until("kubectl shows our columns", async || {
            let shown = helm.kube.kubectl(["get", "ap", "x"])?;
            Ok((shown.contains("ENFORCED") && shown.contains("12/12")).then_some(()))
        })
        .await?;
        // Now they are ours, and need not be asked for again; until somebody else takes one.
        let said = helm.run("upgrade crds CHART --reset-values")?;
        assert_eq!(said.matches(": installed").count(), definitions().len(), "{said}");
        let name = "authorizationpolicies.security.istio.io";
        let theirs = ["meta.helm.sh/release-name=istio-base", "meta.helm.sh/release-namespace=istio-system"];
        helm.kube.kubectl([&["annotate", "--overwrite", "crd", name], &theirs[..]].concat())?;
        let said = helm.run("upgrade crds CHART --reset-values")?;
        ensure!(said.contains(&format!("{name}: left as it is")), "{said}");
        helm.run("uninstall crds")?;
        helm.generations().await?;
        Ok(())
    });
}
