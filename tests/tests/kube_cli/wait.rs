use std::path::PathBuf;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use serde_json::{Value, json};
use tests::here;
use tests::lab::kube::{self, Kube};

use super::{ran, tool};

/// A policy whose status says of `observed` what `enforced` is.
async fn policy(kube: &Kube, ns: &str, enforced: &str, observed: i64) -> Result<i64> {
    let spec = json!({
        "apiVersion": "security.istio.io/v1", "kind": "AuthorizationPolicy",
        "metadata": {"name": "p", "namespace": ns}, "spec": {"action": "DENY"},
    });
    let written = kube.put(spec.clone()).await?;
    let mut with_status = spec;
    with_status["status"] = json!({"conditions": [
        {"type": "Enforced", "status": enforced, "reason": "R", "message": "12/12",
            "observedGeneration": observed, "lastTransitionTime": "2026-01-01T00:00:00Z"},
    ]});
    kube.put(with_status).await?;
    written.metadata.generation.context("a generation")
}

/// `countersign wait` on a thread of its own: exit code and how long it took.
fn waiting(
    kubeconfig: PathBuf,
    args: Vec<String>,
) -> std::thread::JoinHandle<Result<(i32, String, Duration)>> {
    std::thread::spawn(move || {
        let start = Instant::now();
        let args: Vec<&str> = args.iter().map(String::as_str).collect();
        let (code, out, err) = ran(&tool(&kubeconfig, &args)?);
        Ok((code, out + &err, start.elapsed()))
    })
}

fn args(line: &str) -> Vec<String> {
    line.split_whitespace().map(str::to_owned).collect()
}

#[test]
fn an_enforced_policy_is_waited_for_and_kubectl_agrees() {
    kube::shared(here!(), async |kube| {
        let ns = kube.fresh_namespace("wait").await?;
        let admin = kube.admin_kubeconfig()?;
        // It does not exist yet, then is pending, then enforced: one watch sees it all.
        let line = format!("wait --for=enforced ap/p -n {ns} --timeout 60s --kubeconfig {}", admin.display());
        let waiting_for_it = waiting(admin.clone(), args(&line));
        policy(kube, &ns, "False", 1).await?;
        tokio::time::sleep(Duration::from_millis(300)).await;
        ensure!(!waiting_for_it.is_finished(), "it is not enforced");
        policy(kube, &ns, "True", 1).await?;
        let enforced = Instant::now();
        let (code, out, _) =
            tokio::task::spawn_blocking(|| waiting_for_it.join().expect("no panic")).await??;
        assert_eq!((code, out.as_str()), (0, ""));
        ensure!(enforced.elapsed() < Duration::from_secs(5), "{:?}", enforced.elapsed());
        kube.kubectl(["wait", "--for=condition=Enforced", "ap/p", "-n", &ns, "--timeout=30s"])?;
        for again in ["condition=Enforced", "condition=enforced=true", "Enforced"] {
            let line =
                format!("wait --for={again} authorizationpolicies.security.istio.io/p -n {ns} --kubeconfig");
            let mut args = args(&line);
            args.push(admin.display().to_string());
            let (code, out, _) = waiting(admin.clone(), args).join().expect("no panic")?;
            assert_eq!((code, out.as_str()), (0, ""), "{again}");
        }
        Ok(())
    });
}

#[test]
fn what_is_said_of_an_older_generation_does_not_count() {
    kube::shared(here!(), async |kube| {
        let ns = kube.fresh_namespace("stale").await?;
        let admin = kube.admin_kubeconfig()?;
        policy(kube, &ns, "True", 0).await?;
        let line =
            format!("wait --for=enforced ap/p -n {ns} --timeout 300ms --kubeconfig {}", admin.display());
        let (code, out, took) = waiting(admin.clone(), args(&line)).join().expect("no panic")?;
        ensure!(code == 1 && out.contains("older generation"), "{code} {out}");
        ensure!(took < Duration::from_secs(5), "{took:?}");
        let line =
            format!("wait --for=enforced pa/none -n {ns} --timeout 100ms --kubeconfig {}", admin.display());
        let (code, out, _) = waiting(admin.clone(), args(&line)).join().expect("no panic")?;
        ensure!(code == 1 && out.contains("does not exist"), "{code} {out}");
        // Every policy of the namespace.
        let line = format!("wait --for=enforced -n {ns} --timeout 100ms --kubeconfig {}", admin.display());
        let (code, out, _) = waiting(admin.clone(), args(&line)).join().expect("no panic")?;
        ensure!(code == 1 && out.contains(&format!("{ns}/p")), "{code} {out}");
        policy(kube, &ns, "True", 1).await?;
        let (code, out, _) = waiting(admin, args(&line)).join().expect("no panic")?;
        assert_eq!((code, out.as_str()), (0, ""));
        Ok(())
    });
}

#[test]
fn wrong_usage_is_no_timeout() {
    kube::shared(here!(), async |kube| {
        let admin = kube.admin_kubeconfig()?;
        for line in [
            "wait --for=enforced pod/x",
            "wait --for=gone ap/x",
            "wait ap/x",
            "wait --for=ready --timeout soon",
        ] {
            let (code, out, _) = waiting(admin.clone(), args(line)).join().expect("no panic")?;
            assert_eq!(code, 2, "{line}: {out}");
        }
        let none = Value::Null;
        ensure!(
            kube.get("v1", "ConfigMap", "default", "none").await?.unwrap_or_default() == none,
            "a read works"
        );
        Ok(())
    });
}
