//! Three replicas, each with proxies of its own: policy reaches them all, and the status tells of all of them or does not
//! claim to.

use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use nix::sys::signal::Signal;
use tests::here;
use tests::lab::cluster::{BareId, Cluster};
use tests::lab::{self, ALLOWED, DENIED, Lab, PodSpec, Protocol};

const NAMES: [&str; 3] = ["one", "two", "three"];
const EACH: usize = 4;

fn deny(path: &str) -> String {
    format!(
        "apiVersion: security.istio.io/v1\nkind: AuthorizationPolicy\nmetadata: {{name: d, namespace: default}}\n\
         spec: {{action: DENY, rules: [{{to: [{{operation: {{paths: [{path}]}}}}]}}]}}\n"
    )
}

struct Scene<'lab> {
    mesh: Cluster<'lab>,
    pods: Vec<BareId>,
}

impl<'lab> Scene<'lab> {
    /// Twelve proxies, four at each replica, which cannot go to another one.
    async fn new(lab: &'lab mut Lab) -> Result<Self> {
        let mut mesh = Cluster::new(lab).await?;
        mesh.ca().await?;
        let mut pods = Vec::new();
        for name in NAMES {
            mesh.replica(name).await?;
            let spec = |n| PodSpec::new("default", &format!("{name}-{n}")).port(8080, Protocol::Http);
            pods.extend(mesh.pods((0..EACH).map(spec), &[name]).await?);
        }
        Ok(Self { mesh, pods })
    }

    /// Waits until the policy's condition is of its present generation and begins so.
    async fn enforced(&self, expected: &str, patience: Duration) -> Result<()> {
        let mut last = String::new();
        let seen = lab::within(patience, &format!("Enforced {expected}"), async || {
            last = self.mesh.condition("AuthorizationPolicy", "default", "d", "Enforced").await?;
            Ok(last.starts_with(expected).then_some(()))
        })
        .await;
        seen.with_context(|| format!("it is {last:?}"))
    }

    /// The status counts all twelve, and all twelve do it.
    async fn everywhere(&self, path: &str, patience: Duration) -> Result<()> {
        self.enforced("True ", patience).await?;
        let condition = self.mesh.condition("AuthorizationPolicy", "default", "d", "Enforced").await?;
        ensure!(condition.contains("12/12"), "{condition}");
        let caller = self.mesh.caller(self.mesh.identity("default", "payment")?);
        for pod in &self.pods {
            assert_eq!(caller.get(self.mesh.on(*pod, 8080), path).await.got, DENIED);
            assert_eq!(caller.get(self.mesh.on(*pod, 8080), "/open").await.got, ALLOWED);
        }
        Ok(())
    }

    async fn holder(&self) -> Result<String> {
        let lease = self
            .mesh
            .kube
            .get("coordination.k8s.io/v1", "Lease", "istio-system", "countersign-leader")
            .await?;
        let lease = lease.context("no Lease")?;
        let holder = lease["spec"]["holderIdentity"].as_str().context("nobody holds the Lease")?;
        let name = NAMES.into_iter().find(|name| holder.contains(&format!("countersign-{name}")));
        Ok(name.with_context(|| format!("{holder} is none of us"))?.to_owned())
    }
}

/// Written once, in force at all, told as 12/12. A replica that is silent makes that Unknown, never 8/8 or 8/12; the
/// holder's death is survived.
#[test]
fn three_replicas_tell_of_all_their_proxies() {
    lab::run(here!(), async |lab| {
        let mut scene = Scene::new(lab).await?;
        scene.mesh.kube.apply(&deny("/a")).await?;
        scene.everywhere("/a", Duration::from_secs(10)).await?;

        let holder = scene.holder().await?;
        let other = NAMES.into_iter().find(|name| *name != holder).context("another one")?;
        scene.mesh.at(other).signal(Signal::SIGSTOP)?;
        scene.enforced("Unknown ", Duration::from_secs(10)).await?;
        scene.mesh.kube.apply(&deny("/b")).await?;
        scene.enforced("Unknown ", Duration::from_secs(10)).await?;
        scene.mesh.at(other).signal(Signal::SIGCONT)?;
        scene.everywhere("/b", Duration::from_secs(15)).await?;

        scene.mesh.at(&holder).kill()?;
        let killed = Instant::now();
        // Whoever comes next cannot ask the dead one, and says so.
        scene.enforced("Unknown ", Duration::from_secs(15)).await?;
        ensure!(scene.holder().await? != holder, "the dead one still holds the Lease");
        let moved = killed.elapsed();
        ensure!(moved < Duration::from_secs(10), "status moved on after {moved:?}");
        scene.mesh.at(&holder).start()?;
        scene.mesh.at(&holder).ready().await?;
        scene.everywhere("/b", Duration::from_secs(15)).await?;
        scene.mesh.kube.apply(&deny("/c")).await?;
        scene.everywhere("/c", Duration::from_secs(10)).await
    });
}

/// Proxies that may go anywhere do when their replica dies, and are counted once.
#[test]
fn proxies_that_move_are_counted_once() {
    lab::run(here!(), async |lab| {
        let mut mesh = Cluster::new(lab).await?;
        mesh.ca().await?;
        for name in ["one", "two"] {
            mesh.replica(name).await?;
        }
        let spec = |n| PodSpec::new("default", &format!("app-{n}")).port(8080, Protocol::Http);
        let pods = mesh.pods((0..4).map(spec), &["one", "two"]).await?;
        let mut scene = Scene { mesh, pods };
        scene.mesh.kube.apply(&deny("/a")).await?;
        scene.enforced("True Enforced: 4/4", Duration::from_secs(10)).await?;
        for name in ["one", "two"] {
            scene.mesh.at(name).kill()?;
            let moved = Instant::now();
            let path = format!("/{name}");
            scene.mesh.kube.apply(&deny(&path)).await?;
            scene.enforced("True Enforced: 4/4", Duration::from_secs(15)).await?;
            ensure!(moved.elapsed() < Duration::from_secs(15), "told after {:?}", moved.elapsed());
            let caller = scene.mesh.caller(scene.mesh.identity("default", "payment")?);
            for pod in &scene.pods {
                assert_eq!(caller.get(scene.mesh.on(*pod, 8080), &path).await.got, DENIED);
            }
            scene.mesh.at(name).start()?;
            scene.mesh.at(name).ready().await?;
        }
        Ok(())
    });
}
