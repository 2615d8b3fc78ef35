//! `cargo run -p tests --example kube_up`: an API server with our CRDs until standard input ends, for hands and scripts.
//! Its first line of output is the path of the administrator's kubeconfig.

use std::io::Write as _;

use anyhow::Result;

#[tokio::main]
async fn main() -> Result<()> {
    let kube = tests::lab::kube::up().await?;
    let mut out = std::io::stdout();
    writeln!(out, "{}", kube.admin_kubeconfig()?.display())?;
    out.flush()?;
    tokio::task::spawn_blocking(|| std::io::copy(&mut std::io::stdin(), &mut std::io::sink())).await??;
    Ok(())
}
