//! The control plane itself: its pods, their versions, and who of them writes status.

use std::time::{Duration, SystemTime};

use k8s_openapi::api::coordination::v1::Lease;
use k8s_openapi::api::core::v1::{Namespace, Pod};
use kube::ResourceExt as _;
use kube::api::{Api, ListParams};

use super::report::{Anchor, Group};
use crate::cluster::{Cluster, code, timely};
use crate::version::{Remote, VERSION, remote};

/// Held by the replica that writes status.
const LEADER: &str = "countersign-leader";
/// On the Lease by which each replica announces itself.
const ANNOUNCED: &str = "countersign.io/replica=true";
/// What the chart labels its pods with.
const OURS: (&str, &str) = ("app.kubernetes.io/part-of", "countersign");

pub(super) async fn check(cluster: &Cluster) -> Group {
    let mut group = Group::new("countersign-control-plane");
    let leader = leader(cluster).await;
    pods(&mut group, cluster, leader.is_ok()).await;
    let description = "one replica writes status";
    match leader {
        Ok(holder) => group.pass(format!("{description} ({holder})")),
        Err(NoLeader::Gone(why)) => group.fail(description, format!("lease {LEADER}: {why}"), Anchor::Leader),
        Err(NoLeader::Unknown(why)) => group.warn(description, why, Anchor::Leader),
    }
    announced(&mut group, cluster).await;
    group
}

/// The replica that writes status finds the others by their Leases.
async fn announced(group: &mut Group, cluster: &Cluster) {
    let leases: Api<Lease> = Api::namespaced(cluster.client.clone(), &cluster.namespace);
    let Ok(leases) = timely(leases.list(&ListParams::default().labels(ANNOUNCED))).await else {
        // Said of the leader's already.
        return;
    };
    if leases.items.is_empty() {
        return;
    }
    let now = SystemTime::now();
    let silent = leases.iter().filter_map(|l| Some(format!("{}: {}", l.name_any(), held(l, now).err()?)));
    let silent: Vec<String> = silent.collect();
    let description = format!("every replica that announced itself is there ({})", leases.items.len());
    group.none(description, super::Level::Warning, &silent, Anchor::Leader);
}

/// `led`: somebody is at work, wherever.
async fn pods(group: &mut Group, cluster: &Cluster, led: bool) {
    let description = "the control plane's pods are ready";
    let replicas = match cluster.replicas().await {
        Ok(replicas) => replicas,
        Err(error) => return group.fail(description, format!("{error:#}"), Anchor::ControlPlane),
    };
    let unready: Vec<&str> = replicas.iter().filter(|r| !r.ready).map(|r| r.pod.as_str()).collect();
    match &unready[..] {
        [] if replicas.is_empty() && led => {
            return group.pass("the control plane runs outside of the cluster");
        }
        [] if replicas.is_empty() => {
            let why = format!("none runs in namespace {}; -n names another one", cluster.namespace);
            return group.fail(description, why, Anchor::ControlPlane);
        }
        [] => group.pass(format!("{description} ({})", replicas.len())),
        unready => {
            let why = format!("not ready: {}", unready.join(", "));
            match unready.len() == replicas.len() {
                true => group.fail(description, why, Anchor::ControlPlane),
                false => group.warn(description, why, Anchor::ControlPlane),
            }
        }
    }
    versions(group, cluster).await;
}

async fn versions(group: &mut Group, cluster: &Cluster) {
    let description = format!("the control plane is of this version, {}", VERSION.version);
    match remote(cluster).await {
        Ok(remote) => {
            let other = |remote: &Remote| {
                let Remote { pod, component, version, revision: _ } = remote;
                let pod = pod.as_deref().unwrap_or_default();
                let same = version == VERSION.version && component == VERSION.component;
                (!same).then(|| format!("{pod} is {component} {version}"))
            };
            let others: Vec<String> = remote.iter().filter_map(other).collect();
            group.none(description, super::Level::Warning, &others, Anchor::VersionSkew);
        }
        Err(error) => group.warn(description, format!("{error:#}"), Anchor::NotTold),
    }
}

/// Why nobody is known to write status.
enum NoLeader {
    Gone(String),
    Unknown(String),
}

async fn leader(cluster: &Cluster) -> Result<String, NoLeader> {
    let leases: Api<Lease> = Api::namespaced(cluster.client.clone(), &cluster.namespace);
    match timely(leases.get(LEADER)).await {
        Ok(lease) => held(&lease, SystemTime::now()).map_err(NoLeader::Gone),
        Err(error) if code(&error) == Some(404) => {
            let namespace = &cluster.namespace;
            Err(NoLeader::Unknown(format!("there is no lease {LEADER} in namespace {namespace}")))
        }
        Err(error) => Err(NoLeader::Unknown(format!("{error:#}"))),
    }
}

/// Who holds the lease at `now`.
fn held(lease: &Lease, now: SystemTime) -> Result<String, String> {
    let spec = lease.spec.as_ref().ok_or("it is empty")?;
    let holder = spec.holder_identity.clone().filter(|holder| !holder.is_empty()).ok_or("nobody holds it")?;
    let renewed = spec.renew_time.as_ref().ok_or("it was never renewed")?;
    let renewed = SystemTime::from(renewed.0);
    let seconds = u64::try_from(spec.lease_duration_seconds.unwrap_or(0)).unwrap_or(0);
    let age = now.duration_since(renewed).unwrap_or_default();
    // The clocks of three machines are in this comparison.
    if age > Duration::from_secs(2 * seconds + 5) {
        return Err(format!("{holder} has not renewed it for {} s", age.as_secs()));
    }
    Ok(holder)
}

/// Before an installation: is the namespace there, and is somebody else in it?
pub(super) async fn before(cluster: &Cluster) -> Group {
    let mut group = Group::new("pre-control-plane");
    let namespaces: Api<Namespace> = Api::all(cluster.client.clone());
    let description = format!("namespace {} can be used", cluster.namespace);
    match timely(namespaces.get(&cluster.namespace)).await {
        Ok(found) if found.metadata.deletion_timestamp.is_some() => {
            group.fail(description, "it is being deleted", Anchor::ControlPlane);
        }
        Ok(_) => group.pass(description),
        Err(error) if code(&error) == Some(404) => {
            group.pass(format!("namespace {} is still to be created", cluster.namespace));
        }
        Err(error) => group.warn(description, format!("{error:#}"), Anchor::InstallRights),
    }
    let description = "no other control plane runs";
    let pods: Api<Pod> = Api::all(cluster.client.clone());
    match timely(pods.list(&ListParams::default().labels("app=istiod"))).await {
        Ok(pods) => {
            let (label, part) = OURS;
            let foreign = |pod: &&Pod| pod.labels().get(label).is_none_or(|value| value != part);
            let name = |pod: &Pod| format!("{}/{}", pod.namespace().unwrap_or_default(), pod.name_any());
            let others: Vec<String> = pods.iter().filter(foreign).map(name).collect();
            group.none(description, super::Level::Warning, &others, Anchor::OtherControlPlane);
        }
        Err(error) => group.warn(description, format!("{error:#}"), Anchor::InstallRights),
    }
    group
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_lease_that_nobody_renews_is_held_by_nobody() {
        let lease = |holder: Option<&str>| -> Lease {
            serde_json::from_value(serde_json::json!({
                "metadata": {"name": LEADER},
                "spec": {"holderIdentity": holder, "leaseDurationSeconds": 10, "renewTime": "2026-11-24T12:00:00.000000Z"},
            }))
            .expect("a lease")
        };
        let renewed = SystemTime::from(lease(None).spec.and_then(|spec| spec.renew_time).expect("set").0);
        let after = |seconds| renewed + Duration::from_secs(seconds);
        assert_eq!(held(&lease(Some("one")), after(9)), Ok("one".to_owned()));
        assert_eq!(held(&lease(Some("one")), after(0)), Ok("one".to_owned()));
        assert!(held(&lease(Some("one")), after(60)).is_err());
        assert!(held(&lease(None), after(1)).is_err() && held(&lease(Some("")), after(1)).is_err());
    }
}
