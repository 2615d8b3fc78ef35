//! Istio's own `istioctl`, unmodified, against our debug types: the token it asks the API server for, over TLS.

use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::Arc;

use anyhow::{Context, Result, ensure};
use envoy_types::pb::envoy::config::core::v3::Node;
use serde_json::{Value, json};
use tests::here;
use tests::lab::kube::{self, Kube};
use tests::lab::programs::root;
use xds::ResourceType;
use xds::ads::node::NodeId;
use xds::ads::server::{Peer, Proxy, Snapshots, Subscription};
use xds::ads::session::Event;
use xds::build::ProxyShape;

use super::plane::{Plane, plane};
use super::ran;

/// `$ISTIOCTL`, else what `scripts/get-istioctl` has built.
fn istioctl() -> Option<PathBuf> {
    if let Some(path) = std::env::var_os("ISTIOCTL") {
        return Some(path.into());
    }
    let folders = std::fs::read_dir(root().join(".cache/istioctl")).ok()?;
    let built = folders.filter_map(Result::ok).map(|entry| entry.path());
    built.filter(|folder| folder.join("complete").exists()).map(|folder| folder.join("istioctl")).next()
}

/// A proxy that has taken everything but its clusters, which it refused.
async fn proxy(plane: &Plane, namespace: &str, name: &str) -> Result<Subscription> {
    let id = format!("sidecar~10.1.0.1~{name}.{namespace}~{namespace}.svc.cluster.local");
    let node = Node { id, ..Node::default() };
    let shape = ProxyShape::from_node(&node).map_err(|error| anyhow::anyhow!("{error}"))?;
    let proxy = Proxy {
        id: NodeId::parse(&node)?,
        shape,
        peer: Peer::default(),
        envoy_version: Some((1, 39, 3)),
        node: Arc::new(node),
        delta: true,
    };
    let mut subscription = plane.handle.subscribe(proxy).await?;
    let generation = subscription.snapshots.borrow().generation;
    for kind in ResourceType::ALL {
        subscription.events.event(Event::Sent { kind, resources: 1, bytes: 1 });
        subscription.events.event(match kind {
            ResourceType::Cluster => {
                Event::Rejected { kind, resource: None, message: "too many clusters".to_owned() }
            }
            kind => Event::Acked { kind, generation },
        });
    }
    Ok(subscription)
}

#[test]
fn proxy_status_by_istioctl() {
    let Some(istioctl) = istioctl() else {
        eprintln!("skipped: no istioctl; run scripts/get-istioctl");
        return;
    };
    kube::shared(here!(), async |kube| {
        let ns = kube.fresh_namespace("ps").await?;
        kube.pod(&ns, "web-1", "web", &[("app", "web")], "10.1.0.1", &[8080]).await?;
        kube.service(&ns, "web", &[("http", 80, 8080)], &[]).await?;
        // istioctl asks for a token of this account.
        kube.service_account("istio-system", "default").await?;
        let plane = plane(kube).await?;
        let _subscription = proxy(&plane, &ns, "web-1").await?;
        let address = plane.address.to_string();
        let run = async |args: &[&str]| -> Result<(i32, String, String)> {
            let mut command = command(kube, &istioctl)?;
            command.args(args).args(["--xds-address", &address, "--timeout", "20s", "-i", "istio-system"]);
            let output = tokio::task::spawn_blocking(move || command.output()).await?.context("istioctl")?;
            Ok(ran(&output))
        };
        let (code, out, err) = run(&["proxy-status"]).await?;
        assert_eq!(code, 0, "{out}{err}");
        let row = out.lines().find(|line| line.starts_with(&format!("web-1.{ns}"))).context(out.clone())?;
        ensure!(row.contains("countersign-1") && row.contains("5 (CDS,LDS,EDS,RDS,ECDS)"), "{out}");
        let (code, out, err) = run(&["proxy-status", "-v", "1"]).await?;
        assert_eq!(code, 0, "{out}{err}");
        let row = out.lines().find(|line| line.starts_with(&format!("web-1.{ns}"))).context(out.clone())?;
        ensure!(row.contains("ERROR") && row.contains("SYNCED"), "{out}");
        let (code, out, err) = run(&["proxy-status", "-n", &ns, "-o", "json"]).await?;
        assert_eq!(code, 0, "{out}{err}");
        let data: Value = serde_json::from_str(&out)?;
        let config = &data["resources"][0]["genericXdsConfigs"];
        ensure!(out.contains("too many clusters") && config.is_array(), "{out}");
        // The same for one proxy: what we publish beside what its Envoy (here an empty one) has.
        let dump = tempfile::NamedTempFile::new()?;
        let part =
            |name: &str| json!({"@type": format!("type.googleapis.com/envoy.admin.v3.{name}ConfigDump")});
        let parts = ["Bootstrap", "Clusters", "Listeners", "Routes"].map(part);
        std::fs::write(dump.path(), json!({ "configs": parts }).to_string())?;
        let file = dump.path().display().to_string();
        let (_, out, err) = run(&["proxy-status", &format!("web-1.{ns}"), "--file", &file]).await?;
        ensure!(
            out.contains("Clusters Don't Match") && out.contains(&format!("outbound|80||web.{ns}")),
            "{out}{err}"
        );
        ensure!(out.contains("virtualInbound"), "{out}{err}");
        Ok(())
    });
}

fn command(kube: &Kube, istioctl: &Path) -> Result<Command> {
    let mut command = Command::new(istioctl);
    command.env_clear().env("HOME", kube.folder()).arg("--kubeconfig").arg(kube.admin_kubeconfig()?);
    Ok(command)
}
