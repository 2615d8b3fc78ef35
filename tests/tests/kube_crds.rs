//! The CustomResourceDefinitions before a real API server: it takes them, they accept and refuse what semantics §1 says,
//! and the reader agrees with them. What an admission webhook adds is not here.

#[path = "kube_crds/chart.rs"]
mod chart;
#[path = "kube_crds/random.rs"]
mod random;
#[path = "kube_crds/table.rs"]
mod table;

use std::path::{Path, PathBuf};
use std::process::Command;

use ::kube::api::{Patch, PatchParams};
use ::kube::core::Status;
use anyhow::{Context, Result, anyhow, ensure};
use crds::crd::{Definition, definitions};
use crds::{Content, Severity};
use serde::Deserialize as _;
use serde_json::{Value, json};
use tests::here;
use tests::lab::kube::{self, Kube};
use tests::lab::until;

fn root() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR")).parent().expect("the workspace")
}

fn definition(kind: &str) -> Definition {
    let found = definitions().into_iter().find(|one| one.kind.as_str() == kind);
    found.unwrap_or_else(|| panic!("no definition of {kind}"))
}

/// What would be stored of `object`, or why not.
async fn dry_run(kube: &Kube, object: &Value) -> Result<Result<Value, Box<Status>>> {
    create(kube, object, "dryRun=All&fieldValidation=Ignore").await
}

async fn create(kube: &Kube, object: &Value, query: &str) -> Result<Result<Value, Box<Status>>> {
    let field = |value: &Value| value.as_str().map(str::to_owned).context("text");
    let (api, namespace) = (field(&object["apiVersion"])?, field(&object["metadata"]["namespace"])?);
    let plural = definition(&field(&object["kind"])?).plural;
    let path = format!("/apis/{api}/namespaces/{namespace}/{plural}?{query}");
    let request = http::Request::post(path).header("content-type", "application/json");
    match kube.client().request::<Value>(request.body(serde_json::to_vec(object)?)?).await {
        Ok(stored) => Ok(Ok(stored)),
        Err(::kube::Error::Api(status)) => Ok(Err(status)),
        Err(error) => Err(error.into()),
    }
}

/// The object in each version that is served.
fn versions(kind: &str, namespace: &str, spec: &Value) -> Vec<Value> {
    let kind = definition(kind).kind;
    let of = |version: &&str| {
        json!({
            "apiVersion": format!("{}/{version}", kind.group()), "kind": kind.as_str(),
            "metadata": {"name": "x", "namespace": namespace}, "spec": spec,
        })
    };
    kind.versions().iter().map(of).collect()
}

fn yaml(spec: &str) -> Value {
    serde_yaml::from_str(spec).unwrap_or_else(|error| panic!("{spec}: {error}"))
}

/// The errors that the reader finds.
fn errors(object: &Value) -> Vec<String> {
    let parsed = crds::parse(object);
    let errors = parsed.findings.iter().filter(|finding| finding.severity == Severity::Error);
    let errors: Vec<String> = errors.map(ToString::to_string).collect();
    assert_eq!(matches!(parsed.content, Content::Object(_)), errors.is_empty(), "{object}");
    errors
}

async fn accepted(kube: &Kube, object: &Value) -> Result<Value> {
    match dry_run(kube, object).await? {
        Ok(stored) => Ok(stored),
        Err(status) => anyhow::bail!("{object}: refused: {}", status.message),
    }
}

async fn refused(kube: &Kube, object: &Value, names: &str) -> Result<()> {
    let Err(status) = dry_run(kube, object).await? else { anyhow::bail!("{object}: accepted") };
    ensure!(status.code == 422 && status.message.contains(names), "{object}: {status:?}");
    Ok(())
}

/// Structural, no name taken, served; and nothing in them is dropped on the way in.
#[test]
fn the_api_server_takes_them() {
    kube::shared(here!(), async |kube| {
        for definition in definitions() {
            let name = definition.name();
            until(&format!("{name} is established"), async || {
                let api = "apiextensions.k8s.io/v1";
                let live = kube.get(api, "CustomResourceDefinition", "", &name).await?.context("it")?;
                let conditions = live["status"]["conditions"].as_array().cloned().unwrap_or_default();
                let is = |kind: &str, status: &str| {
                    conditions.iter().any(|one| one["type"] == kind && one["status"] == status)
                };
                for wrong in ["NonStructuralSchema", "Terminating", "KubernetesAPIApprovalPolicyConformant"] {
                    ensure!(!conditions.iter().any(|one| one["type"] == wrong), "{name}: {conditions:?}");
                }
                ensure!(!is("NamesAccepted", "False"), "{name}: {conditions:?}");
                if !is("Established", "True") {
                    return Ok(None);
                }
                contains(&live, definition.value(), &name)?;
                Ok(Some(()))
            })
            .await?;
        }
        Ok(())
    });
}

/// `whole` has everything that `part` has.
fn contains(whole: &Value, part: &Value, at: &str) -> Result<()> {
    match (whole, part) {
        (Value::Object(whole), Value::Object(part)) => part.iter().try_for_each(|(key, part)| {
            contains(whole.get(key).unwrap_or(&Value::Null), part, &format!("{at}.{key}"))
        }),
        (Value::Array(whole), Value::Array(part)) => {
            ensure!(whole.len() == part.len(), "{at}: {} for {}", whole.len(), part.len());
            (whole.iter().zip(part)).try_for_each(|(whole, part)| contains(whole, part, &format!("{at}[]")))
        }
        _ => {
            ensure!(whole == part, "{at}: {whole} for {part}");
            Ok(())
        }
    }
}

/// Whether the schema refuses an object, naming what; and whether the reader refuses what is stored, or else the object.
struct Verdict<'v> {
    schema: Option<&'v str>,
    reader: bool,
}

impl Verdict<'_> {
    async fn check(&self, kube: &Kube, object: &Value) -> Result<()> {
        let read = match self.schema {
            None => accepted(kube, object).await?,
            Some(names) => {
                refused(kube, object, names).await?;
                object.clone()
            }
        };
        let errors = errors(&read);
        ensure!(errors.is_empty() != self.reader, "{object}: the reader says {errors:?}");
        Ok(())
    }
}

#[test]
fn the_schema_accepts_and_refuses_as_the_semantics_say() {
    kube::shared(here!(), async |kube| {
        let ns = kube.fresh_namespace("schema").await?;
        let mut cases: Vec<(&str, Value, Verdict<'_>)> = Vec::new();
        for (kind, spec) in table::ACCEPTED {
            cases.push((kind, yaml(spec), Verdict { schema: None, reader: false }));
        }
        for (kind, spec) in table::WEBHOOK {
            cases.push((kind, yaml(spec), Verdict { schema: None, reader: true }));
        }
        for (kind, spec, names) in table::REFUSED {
            cases.push((kind, yaml(spec), Verdict { schema: Some(names), reader: true }));
        }
        for (kind, spec, names) in table::LENIENT {
            cases.push((kind, yaml(spec), Verdict { schema: Some(names), reader: false }));
        }
        for (kind, within, beyond, names) in table::limits() {
            cases.push((kind, within, Verdict { schema: None, reader: false }));
            cases.push((kind, beyond, Verdict { schema: Some(names), reader: true }));
        }
        let mut wrong = Vec::new();
        for (kind, spec, verdict) in cases {
            for object in versions(kind, &ns, &spec) {
                if let Err(error) = verdict.check(kube, &object).await {
                    wrong.push(error.to_string().chars().take(1500).collect::<String>());
                }
            }
        }
        ensure!(wrong.is_empty(), "{}", wrong.join("\n"));
        Ok(())
    });
}

/// A policy without a spec is one; a WorkloadEntry is not, and its schema says so.
#[test]
fn a_spec_may_be_missing() {
    kube::shared(here!(), async |kube| {
        let ns = kube.fresh_namespace("empty").await?;
        for definition in definitions() {
            for mut object in versions(definition.kind.as_str(), &ns, &json!({})) {
                object.as_object_mut().context("an object")?.remove("spec");
                let schema = &definition.value()["spec"]["versions"][0]["schema"]["openAPIV3Schema"];
                ensure!(schema["required"].is_null() || !definition.kind.is_policy(), "{schema}");
                if schema["required"].is_null() {
                    let stored = accepted(kube, &object).await?;
                    let wrong = errors(&stored);
                    ensure!(wrong.is_empty() || !definition.kind.is_policy(), "{wrong:?}");
                } else {
                    refused(kube, &object, "spec").await?;
                }
            }
        }
        Ok(())
    });
}

/// Every example of ours that the reader takes, the API server takes, and stores nothing less of it.
#[test]
fn our_examples_are_accepted() {
    kube::shared(here!(), async |kube| {
        let ns = kube.fresh_namespace("examples").await?;
        let mut seen = 0;
        for (name, text) in examples()? {
            for mut object in documents(&text) {
                let ours = definitions().into_iter().any(|one| object["kind"] == one.kind.as_str());
                if !ours || !errors(&object).is_empty() {
                    continue;
                }
                object["metadata"]["namespace"] = ns.as_str().into();
                let stored = accepted(kube, &object).await.context(name.clone())?;
                contains(&stored["spec"], &object["spec"], &name)?;
                seen += 1;
            }
        }
        ensure!(seen > 40, "only {seen} examples found");
        Ok(())
    });
}

/// Our YAML files, and the YAML blocks of the documentation.
fn examples() -> Result<Vec<(String, String)>> {
    let listed = Command::new("git").args(["ls-files", "*.yaml", "*.md"]).current_dir(root()).output()?;
    let mut examples = Vec::new();
    for name in String::from_utf8(listed.stdout)?.lines() {
        let Ok(text) = std::fs::read_to_string(root().join(name)) else { continue };
        if !name.ends_with(".md") {
            examples.push((name.to_owned(), text));
            continue;
        }
        for block in text.split("```yaml\n").skip(1) {
            let block = block.split("```").next().unwrap_or_default();
            examples.push((name.to_owned(), block.to_owned()));
        }
    }
    Ok(examples)
}

/// The objects in a text, as far as it is YAML.
fn documents(text: &str) -> Vec<Value> {
    let values = serde_yaml::Deserializer::from_str(text).map_while(|one| Value::deserialize(one).ok());
    values.filter(|value| value["metadata"]["name"].is_string()).collect()
}

/// Recorded cases of Istio's behaviour, where they are: the schema takes every policy of theirs.
#[test]
fn the_policies_of_the_conformance_cases_are_accepted() {
    let folder =
        std::env::var_os("CONFORMANCE").map_or_else(|| root().join("../shared/conformance"), PathBuf::from);
    let Ok(entries) = std::fs::read_dir(folder.join("cases/open")) else { return };
    kube::shared(here!(), async |kube| {
        let ns = kube.fresh_namespace("cases").await?;
        let mut seen = 0;
        for entry in entries {
            let path = entry?.path();
            let case: Value = serde_yaml::from_str(&std::fs::read_to_string(&path)?)?;
            let steps = [vec![case.clone()], case["then"].as_array().cloned().unwrap_or_default()].concat();
            for mut policy in steps.iter().filter_map(|step| step["policies"].as_array()).flatten().cloned() {
                policy["metadata"]["namespace"] = ns.as_str().into();
                if policy["apiVersion"].is_null() {
                    policy["apiVersion"] = "security.istio.io/v1".into();
                }
                accepted(kube, &policy).await.with_context(|| path.display().to_string())?;
                seen += 1;
            }
        }
        ensure!(seen > 50, "only {seen} policies found");
        Ok(())
    });
}

/// Fields that nobody knows go from the spec, at every depth, and stay in the status.
#[test]
fn unknown_fields_are_pruned_from_the_spec_alone() {
    kube::shared(here!(), async |kube| {
        let ns = kube.fresh_namespace("pruned").await?;
        let spec = yaml(
            "{rules: [{x: 1, from: [{y: 1, source: {namespaces: [a], z: 1}}], when: [{key: source.ip, values: [10.0.0.1], w: 1}]}], selector: {matchLabels: {a: b}, matchExpressions: []}, v: {u: 1}}",
        );
        let mut object = versions("AuthorizationPolicy", &ns, &spec).swap_remove(0);
        object["unknown"] = json!(1);
        object["status"] = json!({
            "conditions": [{"type": "ZtunnelAccepted", "status": "True", "foreign": {"a": 1}}],
            "observedGeneration": "7", "validationMessages": [{"documentationUrl": "u"}], "foreign": [1],
        });
        let status = json!({ "status": object["status"] });
        let mut stored =
            create(kube, &object, "fieldValidation=Ignore").await?.map_err(|e| anyhow!("{e:?}"))?;
        ensure!(stored["status"].is_null(), "a status is written apart: {stored}");
        let expect = yaml(
            "{rules: [{from: [{source: {namespaces: [a]}}], when: [{key: source.ip, values: [10.0.0.1]}]}], selector: {matchLabels: {a: b}}}",
        );
        assert_eq!(stored["spec"], expect);
        assert_eq!(stored["unknown"], Value::Null);
        let api = kube.api("security.istio.io/v1", "AuthorizationPolicy", &ns).await?;
        stored = serde_json::to_value(
            api.patch_status("x", &PatchParams::default(), &Patch::Merge(&status)).await?,
        )?;
        assert_eq!(stored["status"], object["status"]);
        Ok(())
    });
}

/// `kubectl get` by short name, category and wide shows what is enforced.
#[test]
fn kubectl_shows_what_is_enforced() {
    kube::shared(here!(), async |kube| {
        let ns = kube.fresh_namespace("columns").await?;
        let condition = |kind: &str, status: &str, message: &str| json!({"type": kind, "status": status, "reason": "Because", "message": message, "lastTransitionTime": "2026-01-01T00:00:00Z", "observedGeneration": 1});
        let conditions =
            json!([condition("Accepted", "True", "fine"), condition("Enforced", "True", "12/12")]);
        for (kind, spec) in [
            ("AuthorizationPolicy", "{action: DENY, rules: [{}]}"),
            ("PeerAuthentication", "{mtls: {mode: STRICT}}"),
            ("RequestAuthentication", "{jwtRules: [{issuer: a}]}"),
            ("WorkloadEntry", "{address: 10.0.0.1}"),
        ] {
            let mut object = versions(kind, &ns, &yaml(spec)).swap_remove(0);
            object["metadata"]["annotations"] = match kind {
                "AuthorizationPolicy" => json!({"istio.io/dry-run": "true"}),
                _ => json!({}),
            };
            object["status"] = json!({"conditions": conditions});
            kube.put(object).await?;
        }
        let get = |what: &str| -> Result<Vec<Vec<String>>> {
            let text = kube.kubectl(["get", what, "-n", &ns])?;
            Ok(text.lines().map(|line| line.split_whitespace().map(str::to_owned).collect()).collect())
        };
        for (short, header, row) in [
            ("ap", "NAME ACTION DRY-RUN ENFORCED AGE", "x DENY true 12/12"),
            ("pa", "NAME MODE ENFORCED AGE", "x STRICT 12/12"),
            ("ra", "NAME ENFORCED AGE", "x 12/12"),
            ("we", "NAME ADDRESS AGE", "x 10.0.0.1"),
        ] {
            let shown = get(short)?;
            assert_eq!(shown[0].join(" "), header, "{short}");
            ensure!(shown[1].join(" ").starts_with(row), "{short}: {shown:?}");
        }
        let wide = kube.kubectl(["get", "ap", "-n", &ns, "-o", "wide"])?;
        ensure!(wide.contains("ACCEPTED") && wide.contains("CONFLICTED"), "{wide}");
        for (category, expect) in [("security-istio-io", 3), ("networking-istio-io", 1), ("istio-io", 4)] {
            let names = kube.kubectl(["get", category, "-n", &ns, "-o", "name"])?;
            assert_eq!(names.lines().count(), expect, "{category}: {names}");
        }
        let waited = kube.kubectl(["wait", "--for=condition=Enforced", "ap/x", "-n", &ns, "--timeout=5s"])?;
        ensure!(waited.contains("condition met"), "{waited}");
        let explained = kube.kubectl(["explain", "ap.spec.action"])?;
        ensure!(explained.contains("all others are refused"), "{explained}");
        Ok(())
    });
}
