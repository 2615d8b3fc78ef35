//! The tools that ask every replica of a control plane in the cluster, through the API server's port-forwarding.

use std::sync::Arc;

use anyhow::{Context, Result, ensure};
use axum::Json;
use axum::routing::get;
use controller::{Controller, Handle};
use envoy_types::pb::envoy::config::core::v3::Node;
use runtime::http::{Authn, Monitoring, Route};
use source::Change;
use tests::here;
use tests::lab::kube::{self, Kube};
use tokio::net::TcpListener;
use tokio::sync::mpsc;
use tokio_util::sync::CancellationToken;
use tokio_util::task::AbortOnDropHandle;
use xds::ads::node::NodeId;
use xds::ads::server::{Peer, Proxy, Snapshots};
use xds::build::ProxyShape;

use super::kubelet::Kubelet;
use super::{json, ran, tool};

/// A controller that has nothing but one proxy with an old Envoy, and its monitoring port.
async fn control_plane(kube: &Kube) -> Result<(Handle, Kubelet, Vec<AbortOnDropHandle<()>>)> {
    let metrics = runtime::Metrics::new(runtime::Version::of("countersign"));
    let (changes, receiver) = mpsc::channel(8);
    let (handle, owner) = Controller::start(&metrics, receiver);
    changes.send(Change::Synced).await?;
    let status = {
        let handle = handle.clone();
        move || {
            let handle = handle.clone();
            async move { Json(handle.status().await) }
        }
    };
    let monitoring = Monitoring::new(runtime::Version::of("countersign"), metrics, || Ok(()));
    let monitoring =
        monitoring.route(Route { path: "/status", authn: Authn::Loopback, handler: get(status) });
    let listener = TcpListener::bind("127.0.0.1:0").await?;
    let kubelet = Kubelet::start(kube, 15014, listener.local_addr()?).await?;
    let serving = async move {
        let _changes = changes;
        let _ = monitoring.serve(listener, CancellationToken::new()).await;
    };
    let owner = async {
        let _ = owner.await;
    };
    let tasks =
        vec![AbortOnDropHandle::new(tokio::spawn(owner)), AbortOnDropHandle::new(tokio::spawn(serving))];
    handle.wait_ready().await;
    Ok((handle, kubelet, tasks))
}

fn old_proxy() -> Result<Proxy> {
    let node = Node { id: "sidecar~10.1.0.1~web-1.shop~shop.svc".to_owned(), ..Node::default() };
    Ok(Proxy {
        id: NodeId::parse(&node)?,
        shape: ProxyShape::from_node(&node).map_err(|error| anyhow::anyhow!("{error}"))?,
        peer: Peer::default(),
        envoy_version: Some((1, 36, 2)),
        node: Arc::new(node),
        delta: true,
    })
}

#[test]
fn replicas_are_asked_by_port_forwarding() {
    kube::own(here!(), async |kube| {
        let admin = kube.admin_kubeconfig()?;
        let kubeconfig = admin.display().to_string();
        let run = |args: &[&str]| {
            let args: Vec<String> =
                args.iter().chain(&["--kubeconfig", &kubeconfig]).map(ToString::to_string).collect();
            let admin = admin.clone();
            tokio::task::spawn_blocking(move || {
                let args: Vec<&str> = args.iter().map(String::as_str).collect();
                tool(&admin, &args)
            })
        };
        let (code, _, err) = ran(&run(&["proxy-status"]).await??);
        ensure!(code == 2 && err.contains("no pod of the control plane runs"), "{code} {err}");
        let (code, out, _) = ran(&run(&["wait", "--for=ready", "--timeout", "100ms"]).await??);
        ensure!(code == 1 && out.contains("no pod of the control plane runs"), "{code} {out}");

        let (handle, kubelet, tasks) = control_plane(kube).await?;
        let labels = [("app", "countersign")];
        kube.pod("istio-system", "countersign-1", "countersign", &labels, "127.0.0.1", &[15014]).await?;
        let (code, out, err) = ran(&run(&["wait", "--for=ready", "--timeout", "20s"]).await??);
        assert_eq!((code, out.as_str()), (0, ""), "{err}");
        let (code, versions) = json(&run(&["version", "--remote", "-o", "json"]).await??)?;
        assert_eq!((code, &versions["remote"][0]["pod"]), (0, &"countersign-1".into()));
        assert_eq!(versions["remote"][0]["version"], versions["version"]);

        let (code, proxies) = json(&run(&["proxy-status", "-o", "json"]).await??)?;
        assert_eq!((code, proxies.as_array().map(Vec::len)), (0, Some(0)));
        let _subscription = handle.subscribe(old_proxy()?).await?;
        let (code, out, err) = ran(&run(&["proxy-status"]).await??);
        let row = out.lines().find(|line| line.starts_with("web-1.shop")).context(format!("{out}{err}"))?;
        ensure!(code == 1 && row.contains("1.36.2") && row.ends_with("countersign-1"), "{out}");
        let (code, status) = json(&run(&["status", "-o", "json"]).await??)?;
        assert_eq!((code, &status["ready"]), (0, &true.into()));

        let (_, report) = json(&run(&["check", "-o", "json"]).await??)?;
        let text = report.to_string();
        ensure!(text.contains("envoy-with-known-bypasses") && text.contains("shop/web-1"), "{text}");
        ensure!(!text.contains("control-plane-not-running") && !text.contains("versions-differ"), "{text}");

        // A node that is gone is said so.
        drop((kubelet, tasks));
        let (code, _, err) = ran(&run(&["proxy-status"]).await??);
        ensure!(code == 2 && err.contains("istio-system/countersign-1"), "{code} {err}");
        Ok(())
    });
}
