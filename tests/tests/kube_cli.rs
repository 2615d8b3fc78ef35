//! The tools for people against a real API server: `check`, `wait`, `kubectl countersign`, `istioctl`, and what they exit
//! with. And who may open a stream on the TLS port.

#[path = "kube_cli/check.rs"]
mod check;
#[path = "kube_cli/istioctl.rs"]
mod istioctl;
#[path = "kube_cli/kubelet.rs"]
mod kubelet;
#[path = "kube_cli/plane.rs"]
mod plane;
#[path = "kube_cli/plugin.rs"]
mod plugin;
#[path = "kube_cli/replicas.rs"]
mod replicas;
#[path = "kube_cli/streams.rs"]
mod streams;
#[path = "kube_cli/wait.rs"]
mod wait;

use std::path::Path;
use std::process::{Command, Output};

use anyhow::{Context, Result};
use serde_json::Value;
use tests::lab::programs::countersign;

/// `countersign` with a kubeconfig, and nothing else of this machine's environment.
fn tool(kubeconfig: &Path, args: &[&str]) -> Result<Output> {
    let mut command = Command::new(countersign());
    command.args(args).env_clear().env("KUBECONFIG", kubeconfig).env("COUNTERSIGN_LOG", "error");
    command.output().context("countersign")
}

/// Its exit code, what it printed and what it complained of.
fn ran(output: &Output) -> (i32, String, String) {
    let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
    (output.status.code().unwrap_or(-1), text(&output.stdout), text(&output.stderr))
}

/// Exit code and data of a command that prints JSON.
fn json(output: &Output) -> Result<(i32, Value)> {
    let (code, out, err) = ran(output);
    let data = serde_json::from_str(&out).with_context(|| format!("exit {code}: {out}{err}"))?;
    Ok((code, data))
}

/// Asks until it is so.
async fn until<T>(ask: impl AsyncFnMut() -> Result<Option<T>>) -> Result<T> {
    tests::lab::until("the API server shows it", ask).await
}
