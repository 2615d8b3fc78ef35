//! Advice on a PeerAuthentication: who else decides in its place, and its ports.

use std::sync::Arc;

use policy::{Attachment, PeerAuthentication};

use super::{Advice, Code, Selected, unserved};
use crate::store::Store;

pub(super) fn advise(
    store: &Store,
    new: &PeerAuthentication,
    selected: &[Selected],
    advice: &mut Vec<Advice>,
) {
    if let Some(older) = older(store, new, selected) {
        let scope = match new.attachment {
            Attachment::Namespace => "for the namespace",
            Attachment::Labels(_) | Attachment::Targets(_) => "for some of the same workloads",
        };
        let text = format!("{older:?} is older and decides {scope}: there this policy is ignored completely");
        advice.push(Code::Ignored.says(text));
    }
    for port in new.ports.keys() {
        let unserved = unserved(store, *port, selected);
        advice.extend(unserved.map(|text| Code::UnservedPort.says(format!("portLevelMtls: {text}"))));
    }
}

/// The policy of the same scope that wins over `new` (semantics §2.3: the oldest).
fn older(store: &Store, new: &PeerAuthentication, selected: &[Selected]) -> Option<Arc<str>> {
    let policies = store.policies.namespace(&new.meta.id.namespace)?;
    // What has no age yet is the youngest.
    let age =
        |policy: &PeerAuthentication| if policy.meta.created == 0 { i64::MAX } else { policy.meta.created };
    let order = |policy: &PeerAuthentication| (age(policy), policy.meta.id.name.clone());
    let same_scope = |other: &PeerAuthentication| match (&new.attachment, &other.attachment) {
        (Attachment::Namespace, Attachment::Namespace) => true,
        (Attachment::Labels(_), Attachment::Labels(_)) => selected.iter().any(|selected| {
            other.attachment.selects(
                &other.meta.id.namespace,
                &selected.workload.namespace,
                &selected.workload.labels,
            )
        }),
        _ => false,
    };
    let others = policies.peer.values().filter(|other| other.meta.id.name != new.meta.id.name);
    let winning = others.filter(|other| same_scope(other) && order(other) < order(new));
    winning.min_by_key(|other| order(other)).map(|other| other.meta.id.name.clone())
}
