//! Which replicas of the controller there are: each announces itself by a Lease of its own, renews it, and takes it back
//! when it stops. That a Lease is there does not mean that its replica can be reached.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use futures::TryStreamExt;
use k8s_openapi::api::coordination::v1::{Lease, LeaseSpec};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::{MicroTime, ObjectMeta, OwnerReference};
use k8s_openapi::jiff::Timestamp;
use kube::api::{Api, DeleteParams, Patch, PatchParams};
use kube::runtime::{WatchStreamExt, watcher};
use kube::{Client, Error};
use tokio::sync::watch;
use tokio::time::{Instant, timeout};

/// On every announcement.
const LABEL: &str = "countersign.io/replica";
/// Where the replica's secure port is, `HOST:PORT`.
const ADDRESS: &str = "countersign.io/address";
/// Between renewals.
const RENEW: Duration = Duration::from_secs(2);
const DURATION: Duration = Duration::from_secs(6);
/// After missing rights.
const PATIENCE: Duration = Duration::from_secs(10);
const REQUEST: Duration = Duration::from_secs(2);
/// An announcement that was not renewed for so long is taken back by whoever sees that: its replica was killed.
const FORGOTTEN: Duration = Duration::from_secs(600);

/// The replica that this process is.
#[derive(Clone, Debug)]
pub struct Me {
    /// Unique among replicas, also over time: the Pod's name.
    pub name: String,
    /// `HOST:PORT` of its secure port.
    pub address: String,
    /// The Pod's name and UID: with the Pod goes the announcement, also if this process cannot take it back.
    pub pod: Option<(String, String)>,
}

/// An announced replica.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Replica {
    pub address: String,
    /// When its announcement was seen to change last.
    pub renewed: Instant,
}

/// By name.
pub type Replicas = BTreeMap<Arc<str>, Replica>;

/// Announces `me` until `stop`, and takes that back then.
pub async fn announce(client: Client, namespace: &str, me: Me, stop: impl Future<Output = ()>) {
    let leases: Api<Lease> = Api::namespaced(client, namespace);
    let name = lease_name(&me.name);
    tokio::pin!(stop);
    let mut complained = None;
    loop {
        let wait = match timeout(REQUEST, leases.patch(&name, &params(), &Patch::Apply(&lease(&me)))).await {
            Ok(Ok(_)) => {
                complained = None;
                RENEW
            }
            Ok(Err(error)) => {
                let (text, wait) = match &error {
                    Error::Api(error) if matches!(error.code, 403 | 404) => (error.message.clone(), PATIENCE),
                    error => (error.to_string(), RENEW),
                };
                if complained.as_ref() != Some(&text) {
                    tracing::warn!(error = ?text, "this replica cannot announce itself; its proxies will not show in status");
                    complained = Some(text);
                }
                wait
            }
            Err(_) => RENEW,
        };
        tokio::select! {
            () = tokio::time::sleep(wait.mul_f64(0.75 + rand::random::<f64>() / 2.0)) => {}
            () = &mut stop => break,
        }
    }
    let deleted = timeout(REQUEST, leases.delete(&name, &DeleteParams::default())).await;
    if !matches!(deleted, Ok(Ok(_))) {
        tracing::info!(lease = name, "this replica's announcement could not be taken back");
    }
}

fn params() -> PatchParams {
    PatchParams::apply("countersign-replica").force()
}

fn lease_name(replica: &str) -> String {
    format!("countersign-replica-{replica}")
}

fn lease(me: &Me) -> Lease {
    let Me { name, address, pod } = me;
    let owner = pod.as_ref().map(|(name, uid)| OwnerReference {
        api_version: "v1".to_owned(),
        kind: "Pod".to_owned(),
        name: name.clone(),
        uid: uid.clone(),
        ..OwnerReference::default()
    });
    let metadata = ObjectMeta {
        name: Some(lease_name(name)),
        labels: Some([(LABEL.to_owned(), "true".to_owned())].into()),
        annotations: Some([(ADDRESS.to_owned(), address.clone())].into()),
        owner_references: owner.map(|owner| vec![owner]),
        ..ObjectMeta::default()
    };
    let spec = LeaseSpec {
        holder_identity: Some(name.clone()),
        lease_duration_seconds: i32::try_from(DURATION.as_secs()).ok(),
        renew_time: Some(MicroTime(Timestamp::now())),
        ..LeaseSpec::default()
    };
    Lease { metadata, spec: Some(spec) }
}

/// Follows the announcements until nobody listens any more.
pub async fn follow(client: Client, namespace: &str, replicas: watch::Sender<Replicas>) {
    let leases: Api<Lease> = Api::namespaced(client, namespace);
    let config = watcher::Config::default().labels(&format!("{LABEL}=true"));
    let events = watcher(leases.clone(), config).default_backoff();
    tokio::pin!(events);
    let mut known = Known::default();
    let mut complained = None;
    loop {
        let event = tokio::select! {
            event = events.try_next() => event,
            () = replicas.closed() => return,
        };
        match event {
            Ok(Some(event)) => {
                complained = None;
                let now = Instant::now();
                if known.take(event, now) {
                    replicas.send_replace(known.replicas.clone());
                }
                for name in known.forgotten(now) {
                    // Whatever comes of it, the watch tells.
                    let _ =
                        timeout(REQUEST, leases.delete(&lease_name(&name), &DeleteParams::default())).await;
                }
            }
            Ok(None) => return,
            Err(error) => {
                let text = error.to_string();
                if complained.as_ref() != Some(&text) {
                    tracing::warn!(error = ?text, "other replicas cannot be seen; their proxies will not show in status");
                    complained = Some(text);
                }
            }
        }
    }
}

/// What the watch has told so far.
#[derive(Debug, Default)]
struct Known {
    replicas: Replicas,
    /// While a list comes in: what it holds.
    listing: Option<Replicas>,
    /// To tell renewals from other changes.
    renewals: BTreeMap<Arc<str>, Option<MicroTime>>,
}

impl Known {
    /// Whether there is something to tell.
    fn take(&mut self, event: watcher::Event<Lease>, now: Instant) -> bool {
        match event {
            watcher::Event::Init => self.listing = Some(Replicas::new()),
            watcher::Event::InitApply(lease) => {
                if let Some((name, replica)) = self.read(&lease, now) {
                    self.listing.get_or_insert_default().insert(name, replica);
                }
            }
            watcher::Event::InitDone => {
                self.replicas = self.listing.take().unwrap_or_default();
                return true;
            }
            watcher::Event::Apply(lease) => {
                if let Some((name, replica)) = self.read(&lease, now) {
                    return self.replicas.insert(name, replica.clone()) != Some(replica);
                }
            }
            watcher::Event::Delete(lease) => {
                if let Some(name) = holder(&lease) {
                    self.renewals.remove(&name);
                    return self.replicas.remove(&name).is_some();
                }
            }
        }
        false
    }

    /// Those that nobody renews any more. Each is named once in that time.
    fn forgotten(&mut self, now: Instant) -> Vec<Arc<str>> {
        let old = |replica: &Replica| now.saturating_duration_since(replica.renewed) > FORGOTTEN;
        let mut names = Vec::new();
        for (name, replica) in self.replicas.iter_mut().filter(|(_, replica)| old(replica)) {
            replica.renewed = now;
            names.push(name.clone());
        }
        names
    }

    fn read(&mut self, lease: &Lease, now: Instant) -> Option<(Arc<str>, Replica)> {
        let name = holder(lease)?;
        let address = lease.metadata.annotations.as_ref()?.get(ADDRESS)?.clone();
        let time = lease.spec.as_ref()?.renew_time.clone();
        let renewed = match self.renewals.insert(name.clone(), time.clone()) {
            Some(before) if before == time => self.replicas.get(&name).map_or(now, |known| known.renewed),
            _ => now,
        };
        Some((name, Replica { address, renewed }))
    }
}

fn holder(lease: &Lease) -> Option<Arc<str>> {
    let name = lease.spec.as_ref()?.holder_identity.as_deref()?;
    // Who writes another one's name into its own announcement is not listened to.
    (lease.metadata.name.as_ref()? == &lease_name(name)).then(|| name.into())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn me(name: &str, address: &str) -> Me {
        Me { name: name.to_owned(), address: address.to_owned(), pod: None }
    }

    #[test]
    fn what_is_announced_is_read_back_and_renewals_are_told_from_other_changes() {
        let mut known = Known::default();
        let (start, lease) = (Instant::now(), lease(&me("a", "10.0.0.1:15012")));
        let at = |seconds| start + Duration::from_secs(seconds);
        assert!(!known.take(watcher::Event::Init, start));
        assert!(!known.take(watcher::Event::InitApply(lease.clone()), start));
        assert!(known.take(watcher::Event::InitDone, start));
        let wanted = Replica { address: "10.0.0.1:15012".to_owned(), renewed: start };
        assert_eq!(known.replicas.get("a"), Some(&wanted));
        assert!(!known.take(watcher::Event::Apply(lease.clone()), at(5)), "not renewed");
        let mut renewed = lease.clone();
        renewed.spec.as_mut().unwrap().renew_time = Some(MicroTime(Timestamp::from_second(7).unwrap()));
        assert!(known.take(watcher::Event::Apply(renewed), at(6)));
        assert_eq!(known.replicas["a"].renewed, at(6));
        assert!(known.forgotten(at(600)).is_empty());
        assert_eq!(known.forgotten(at(607)), ["a".into()]);
        assert!(known.forgotten(at(608)).is_empty(), "once");
        assert!(known.take(watcher::Event::Delete(lease), at(7)));
        assert!(known.replicas.is_empty());
    }

    #[test]
    fn nobody_announces_for_another() {
        let mut lease = lease(&me("a", "10.0.0.1:15012"));
        lease.spec.as_mut().unwrap().holder_identity = Some("b".to_owned());
        let mut known = Known::default();
        assert!(!known.take(watcher::Event::Apply(lease), Instant::now()));
        assert!(known.replicas.is_empty());
    }
}
