//! Questions about policies asked of a cluster, with the user's own rights: the answers are those over files.

use std::path::Path;
use std::process::Command;

use anyhow::{Context, Result, ensure};
use serde_json::Value;
use tests::here;
use tests::lab::kube;
use tests::lab::programs::countersign;

/// Exit code, output and complaints of `countersign` with a kubeconfig.
fn tool(kubeconfig: &Path, line: &str) -> Result<(i32, String, String)> {
    let mut command = Command::new(countersign());
    command.args(line.split_whitespace()).arg("--kubeconfig").arg(kubeconfig).env_clear();
    let output = command.env("COUNTERSIGN_LOG", "error").output().context("countersign")?;
    let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
    Ok((output.status.code().unwrap_or(-1), text(&output.stdout), text(&output.stderr)))
}

#[test]
fn a_cluster_is_asked_as_files_are() {
    kube::shared(here!(), async |kube| {
        let ns = kube.fresh_namespace("authz").await?;
        let uid = kube.pod(&ns, "orders-1", "orders", &[("app", "orders")], "10.9.0.1", &[8080]).await?;
        kube.pod(&ns, "payment-1", "payment", &[("app", "payment")], "10.9.0.2", &[8080]).await?;
        kube.service(&ns, "orders", &[("http", 80, 8080)], &[("orders-1", uid.as_str(), "10.9.0.1")]).await?;
        kube.apply(&format!(
            "apiVersion: security.istio.io/v1\nkind: AuthorizationPolicy\nmetadata: {{name: orders, namespace: {ns}}}\n\
             spec:\n  selector: {{matchLabels: {{app: orders}}}}\n  rules:\n  - from: [{{source: {{principals: \
             [cluster.local/ns/{ns}/sa/payment]}}}}]\n    to: [{{operation: {{methods: [POST]}}}}]\n"
        ))
        .await?;
        let admin = kube.admin_kubeconfig()?;
        let (code, out, err) = tool(&admin, &format!("authz can {ns}/payment {ns}/orders POST /x"))?;
        ensure!(code == 0 && out.starts_with("Allowed: "), "{code}: {out}{err}");
        let (code, out, err) = tool(&admin, &format!("authz can plaintext {ns}/orders POST /x"))?;
        ensure!(code == 1 && out.starts_with("Denied: plaintext -> "), "{code}: {out}{err}");
        let (code, out, err) = tool(&admin, &format!("authz who-can {ns}/orders -o json"))?;
        ensure!(code == 0, "{out}{err}");
        let who: Value = serde_json::from_str(&out)?;
        let identities: Vec<_> =
            who.as_array().context("a list")?.iter().map(|who| &who["identity"]).collect();
        ensure!(identities == [&format!("spiffe://cluster.local/ns/{ns}/sa/payment")], "{who}");
        let (code, out, err) = tool(&admin, &format!("authz check {ns}/orders-1"))?;
        ensure!(code == 0 && out.contains(&format!("{ns}/orders[0]")), "{code}: {out}{err}");
        let (code, out, err) = tool(&admin, &format!("analyze -n {ns} -o json"))?;
        ensure!(code == 1, "identities under PERMISSIVE: {code}: {out}{err}");
        let found: Value = serde_json::from_str(&out)?;
        let codes: Vec<_> = found.as_array().context("a list")?.iter().map(|one| &one["code"]).collect();
        ensure!(codes == ["CS0105"], "{found}");
        Ok(())
    });
}

#[test]
fn without_the_right_to_look_there_is_no_answer() {
    kube::shared(here!(), async |kube| {
        let ns = kube.fresh_namespace("authz").await?;
        let nobody = kube.kubeconfig_of(&ns, "nobody").await?;
        let (code, out, err) = tool(&nobody, &format!("authz can plaintext {ns}/orders GET /"))?;
        ensure!(
            code == 2 && out.is_empty(),
            "half of what there is would look like the whole: {code}: {out}"
        );
        ensure!(err.contains("forbidden") || err.contains("403"), "{err}");
        Ok(())
    });
}
