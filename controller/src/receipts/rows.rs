//! What one replica says of its policies and its proxies, and how that is put on the wire. Concludes nothing.

use std::sync::Arc;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use api::countersign::receipts::v1 as wire;
use crds::{Kind, ObjectRef};
use mesh::Workload;
use policy::ObjectName;
use source::Version;
use xds::ResourceType;

/// Commits of one policy that are told apart; a connection drains no longer than a few of them.
pub(crate) const MAX_COMMITS: usize = 16;

/// Which version of a policy a replica publishes.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct PolicyRow {
    pub(crate) object: ObjectRef,
    pub(crate) version: Option<Version>,
    /// Ascending; the last one brought the content that is published. Empty before the first commit.
    pub(crate) commits: Vec<u64>,
}

impl PolicyRow {
    /// Whether this is the version that `version` names. Managers do not count: they differ between watches.
    pub(crate) fn is(&self, version: Option<&Version>) -> bool {
        let key = |version: &Version| (version.uid.clone(), version.generation);
        self.version.as_ref().map(key) == version.map(key)
    }
}

/// What one connected proxy has of what its replica published.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct ProxyRow {
    pub(crate) id: u64,
    pub(crate) workload: ObjectName,
    pub(crate) pod_uid: Option<Arc<str>>,
    pub(crate) connected: SystemTime,
    /// The first commit that it does not wholly have in force.
    pub(crate) behind: Option<u64>,
    /// See [`super::progress::Progress::draining`].
    pub(crate) draining: Vec<u64>,
    /// The commit that last changed which policies apply to the workload, other than by changing those: an older version
    /// of it is no proof of theirs. 0: none since it connected.
    pub(crate) concerned: u64,
    pub(crate) refusals: Vec<Refusal>,
}

impl ProxyRow {
    /// Whether it is the proxy of `workload`, and not of another pod that had its name.
    pub(crate) fn serves(&self, workload: &Workload) -> bool {
        self.workload.namespace == workload.namespace
            && self.workload.name == workload.name
            && (self.pod_uid.is_none() || workload.uid.is_none() || self.pod_uid == workload.uid)
    }
}

/// A resource that a proxy refused.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Refusal {
    pub(crate) kind: ResourceType,
    pub(crate) resource: Option<Arc<str>>,
    pub(crate) error: String,
    pub(crate) since: SystemTime,
}

#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Key {
    Policy(ObjectRef),
    Proxy(u64),
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Row {
    Policy(PolicyRow),
    Proxy(ProxyRow),
}

impl Row {
    pub(crate) fn key(&self) -> Key {
        match self {
            Self::Policy(row) => Key::Policy(row.object.clone()),
            Self::Proxy(row) => Key::Proxy(row.id),
        }
    }
}

/// What changed on a replica from one moment to another.
#[derive(Clone, Debug, Default, PartialEq)]
pub(crate) struct Delta {
    /// What was known before is void.
    pub(crate) reset: bool,
    pub(crate) ready: bool,
    pub(crate) set: Vec<Arc<Row>>,
    pub(crate) gone: Vec<Key>,
}

/// A message that another version, or somebody else, sent.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{0} of a receipt cannot be read")]
pub(crate) struct Unreadable(&'static str);

impl From<&Delta> for wire::WatchResponse {
    fn from(delta: &Delta) -> Self {
        let Delta { reset, ready, set, gone } = delta;
        let mut response = Self { reset: *reset, ready: *ready, ..Self::default() };
        for row in set {
            match &**row {
                Row::Policy(row) => response.policies.push(row.into()),
                Row::Proxy(row) => response.proxies.push(row.into()),
            }
        }
        for key in gone {
            match key {
                Key::Policy(object) => response.removed_policies.push(name(object)),
                Key::Proxy(id) => response.removed_proxies.push(*id),
            }
        }
        response
    }
}

impl TryFrom<wire::WatchResponse> for Delta {
    type Error = Unreadable;

    fn try_from(response: wire::WatchResponse) -> Result<Self, Unreadable> {
        let wire::WatchResponse { reset, ready, policies, proxies, removed_policies, removed_proxies } =
            response;
        let mut delta = Self { reset, ready, ..Self::default() };
        for policy in policies {
            delta.set.push(Arc::new(Row::Policy(policy.try_into()?)));
        }
        for proxy in proxies {
            delta.set.push(Arc::new(Row::Proxy(proxy.try_into()?)));
        }
        for name in removed_policies {
            delta.gone.push(Key::Policy(object(&name)?));
        }
        delta.gone.extend(removed_proxies.into_iter().map(Key::Proxy));
        Ok(delta)
    }
}

fn name(object: &ObjectRef) -> wire::PolicyName {
    let ObjectRef { kind, id: ObjectName { namespace, name } } = object;
    wire::PolicyName {
        kind: kind.as_str().to_owned(),
        namespace: namespace.to_string(),
        name: name.to_string(),
    }
}

fn object(name: &wire::PolicyName) -> Result<ObjectRef, Unreadable> {
    let wire::PolicyName { kind, namespace, name } = name;
    let kinds = [Kind::PeerAuthentication, Kind::RequestAuthentication, Kind::AuthorizationPolicy];
    let kind =
        kinds.into_iter().find(|known| known.as_str() == kind).ok_or(Unreadable("the policy's kind"))?;
    Ok(ObjectRef { kind, id: ObjectName::new(namespace.as_str(), name.as_str()) })
}

impl From<&PolicyRow> for wire::Policy {
    fn from(row: &PolicyRow) -> Self {
        let PolicyRow { object, version, commits } = row;
        let (uid, generation) =
            version.as_ref().map(|v| (v.uid.to_string(), v.generation)).unwrap_or_default();
        Self { name: Some(name(object)), uid, generation, commits: commits.clone() }
    }
}

impl TryFrom<wire::Policy> for PolicyRow {
    type Error = Unreadable;

    fn try_from(policy: wire::Policy) -> Result<Self, Unreadable> {
        let wire::Policy { name, uid, generation, commits } = policy;
        let object = object(&name.ok_or(Unreadable("the policy's name"))?)?;
        let version = (!uid.is_empty()).then(|| Version { uid: uid.into(), generation, manager: None });
        Ok(Self { object, version, commits })
    }
}

impl From<&ProxyRow> for wire::Proxy {
    fn from(row: &ProxyRow) -> Self {
        let ProxyRow { id, workload, pod_uid, connected, behind, draining, concerned, refusals } = row;
        let refusal = |refusal: &Refusal| {
            let Refusal { kind, resource, error, since } = refusal;
            wire::Refusal {
                r#type: kind.short().to_owned(),
                resource: resource.as_deref().unwrap_or_default().to_owned(),
                error: error.clone(),
                since: milliseconds(*since),
            }
        };
        Self {
            id: *id,
            namespace: workload.namespace.to_string(),
            name: workload.name.to_string(),
            pod_uid: pod_uid.as_deref().unwrap_or_default().to_owned(),
            connected: milliseconds(*connected),
            behind: behind.unwrap_or(0),
            draining: draining.clone(),
            concerned: *concerned,
            refusals: refusals.iter().map(refusal).collect(),
        }
    }
}

impl TryFrom<wire::Proxy> for ProxyRow {
    type Error = Unreadable;

    fn try_from(proxy: wire::Proxy) -> Result<Self, Unreadable> {
        let wire::Proxy { id, namespace, name, pod_uid, connected, behind, draining, concerned, refusals } =
            proxy;
        let refusal = |refusal: wire::Refusal| {
            let wire::Refusal { r#type, resource, error, since } = refusal;
            let kind = ResourceType::ALL.into_iter().find(|kind| kind.short() == r#type);
            let kind = kind.ok_or(Unreadable("the refused type"))?;
            let resource = (!resource.is_empty()).then(|| resource.into());
            Ok(Refusal { kind, resource, error, since: at(since) })
        };
        Ok(Self {
            id,
            workload: ObjectName::new(namespace, name),
            pod_uid: (!pod_uid.is_empty()).then(|| pod_uid.into()),
            connected: at(connected),
            behind: (behind != 0).then_some(behind),
            draining,
            concerned,
            refusals: refusals.into_iter().map(refusal).collect::<Result<_, _>>()?,
        })
    }
}

fn milliseconds(at: SystemTime) -> u64 {
    at.duration_since(UNIX_EPOCH).map_or(0, |since| u64::try_from(since.as_millis()).unwrap_or(u64::MAX))
}

/// The latest moment that can be told is the end of the year 9999.
fn at(milliseconds: u64) -> SystemTime {
    UNIX_EPOCH + Duration::from_millis(milliseconds.min(253_402_300_799_000))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_sent_is_what_arrives() {
        let object = ObjectRef { kind: Kind::AuthorizationPolicy, id: ObjectName::new("a", "p") };
        let version = Version { uid: "u".into(), generation: 7, manager: None };
        let refusal = Refusal {
            kind: ResourceType::Extension,
            resource: Some("inbound.rbac.deny".into()),
            error: "no".to_owned(),
            since: at(1_700_000_000_123),
        };
        let proxy = ProxyRow {
            id: 9,
            workload: ObjectName::new("a", "x-1"),
            pod_uid: Some("pod".into()),
            connected: at(1_700_000_000_000),
            behind: Some(4),
            draining: vec![0, 3],
            concerned: 2,
            refusals: vec![refusal],
        };
        let policy = PolicyRow { object: object.clone(), version: Some(version), commits: vec![1, 3] };
        let delta = Delta {
            reset: true,
            ready: true,
            set: vec![Arc::new(Row::Policy(policy)), Arc::new(Row::Proxy(proxy))],
            gone: vec![Key::Policy(object), Key::Proxy(2)],
        };
        assert_eq!(Delta::try_from(wire::WatchResponse::from(&delta)), Ok(delta));
        let nameless = wire::WatchResponse { policies: vec![wire::Policy::default()], ..Default::default() };
        assert!(Delta::try_from(nameless).is_err());
    }
}
