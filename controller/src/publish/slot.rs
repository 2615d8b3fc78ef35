//! What a slot's own side depends on: the edits that may change it, and what stands in for a workload that is not registered.

use std::collections::BTreeMap;
use std::sync::Arc;

use mesh::{Workload, WorkloadKind};
use policy::{EffectivePolicy, MtlsMode};

use super::SlotKey;
use crate::affected::Affected;

/// How what is a slot's own may have changed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Touched {
    /// By policies alone.
    Policy,
    Otherwise,
}

/// Whether and how what is a slot's own may have changed.
pub(super) fn touched(key: &SlotKey, affected: &Affected) -> Option<Touched> {
    let Affected { policies, inbound, workloads, services: _, told: _, mesh } = affected;
    let namespace = &key.workload.namespace;
    if *mesh || inbound.contains(namespace) || workloads.contains(&key.workload) {
        return Some(Touched::Otherwise);
    }
    policies.contains(namespace).then_some(Touched::Policy)
}

/// A node that claims a name which the registry does not hold.
pub(super) fn stranger(key: &SlotKey) -> Workload {
    Workload {
        namespace: key.workload.namespace.clone(),
        name: key.workload.name.clone(),
        kind: WorkloadKind::WorkloadEntry,
        labels: Arc::default(),
        service_account: "default".into(),
        addresses: key.claimed.into_iter().collect(),
        named_ports: BTreeMap::new(),
        mutual_tls: false,
        ready: false,
        created: 0,
        uid: None,
    }
}

/// `policy` with its inbound side shut: which policies would select the workload cannot be known without its labels, so
/// nobody is admitted until it is registered.
pub(super) fn closed(policy: &EffectivePolicy) -> EffectivePolicy {
    let mut closed = policy.clone();
    closed.mtls.mode = MtlsMode::Strict;
    closed.mtls.ports.clear();
    closed.allow.enforced = Some(Vec::new());
    closed
}
