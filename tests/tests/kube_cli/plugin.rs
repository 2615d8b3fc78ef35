use std::os::unix::fs::symlink;
use std::process::Command;

use anyhow::{Context, Result, ensure};
use tests::here;
use tests::lab::kube::{self, assets};
use tests::lab::programs::countersign;

use super::ran;

/// As kubectl finds it: links in a folder of PATH.
#[test]
fn kubectl_countersign() {
    kube::shared(here!(), async |kube| {
        let ns = kube.fresh_namespace("plugin").await?;
        let folder = tempfile::tempdir()?;
        for name in ["kubectl-countersign", "kubectl_complete-countersign"] {
            symlink(std::path::absolute(countersign())?, folder.path().join(name))?;
        }
        let admin = kube.admin_kubeconfig()?;
        let kubectl = |args: &[&str]| -> Result<(i32, String, String)> {
            let mut command = Command::new(assets().map_err(anyhow::Error::msg)?.join("kubectl"));
            command.env_clear().env("PATH", folder.path()).env("HOME", folder.path());
            command.env("KUBECONFIG", &admin).env("COUNTERSIGN_LOG", "error").args(args);
            Ok(ran(&command.output().context("kubectl")?))
        };
        let (code, out, err) = kubectl(&["plugin", "list"])?;
        ensure!(code == 0 && out.contains("kubectl-countersign"), "{out}{err}");
        let (code, out, err) = kubectl(&["countersign", "version"])?;
        ensure!(code == 0 && out.starts_with("countersign "), "{out}{err}");
        let (code, _, err) = kubectl(&["countersign", "check", "--no-such-flag"])?;
        ensure!(code == 2 && err.contains("Usage: kubectl countersign check"), "{err}");
        // It asks the cluster of the kubeconfig, not this machine.
        let (code, out, err) = kubectl(&["countersign", "check", "--pre", "-n", &ns])?;
        ensure!(code == 0 && out.contains("√ the API server answers"), "{out}{err}");
        let (code, out, err) = kubectl(&["countersign", "proxy-status", "-i", &ns])?;
        ensure!(code == 2 && err.contains("no pod of the control plane runs"), "{out}{err}");
        let (code, out, err) = kubectl(&["__complete", "countersign", "proxy"])?;
        ensure!(code == 0 && out.starts_with("proxy-status"), "{out}{err}");
        Ok(())
    });
}
