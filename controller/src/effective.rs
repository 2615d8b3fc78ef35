//! The effective policy of every workload that was asked about, each distinct one once. Decides nothing: it remembers
//! what [`policy::resolve`] said for the inputs that can make a difference.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::sync::Arc;

use policy::{Attachment, EffectivePolicy, PolicySet, WorkloadKey};

use crate::affected::Namespaces;

type Labels = Arc<BTreeMap<String, String>>;

/// The label that makes a workload a gateway (semantics §2.4); it decides also where no selector names it.
const GATEWAY_LABEL: &str = "gateway.networking.k8s.io/gateway-name";

/// Memory of [`policy::resolve`], by namespace.
#[derive(Debug, Default)]
pub(crate) struct Effective {
    namespaces: HashMap<Arc<str>, Memo>,
}

#[derive(Debug, Default)]
struct Memo {
    /// Label keys that some selector reaching this namespace names. Workloads that differ in others only are equal.
    relevant: BTreeSet<String>,
    current: BTreeMap<Labels, Arc<EffectivePolicy>>,
    /// The values before the last change: an equal new one becomes the same `Arc`, so that "unchanged" is a comparison
    /// of pointers from here on.
    before: Vec<Arc<EffectivePolicy>>,
}

impl Effective {
    /// Forgets what was resolved in `namespaces`.
    pub(crate) fn invalidate(&mut self, namespaces: &Namespaces) {
        for (namespace, memo) in &mut self.namespaces {
            if namespaces.contains(namespace) && !memo.current.is_empty() {
                let mut before: Vec<_> = std::mem::take(&mut memo.current).into_values().collect();
                before.dedup_by(|a, b| Arc::ptr_eq(a, b));
                memo.before = before;
            }
        }
    }

    /// All that applies to workloads with these labels.
    pub(crate) fn get(
        &mut self,
        set: &PolicySet,
        namespace: &Arc<str>,
        labels: &BTreeMap<String, String>,
    ) -> Arc<EffectivePolicy> {
        let memo = self.namespaces.entry(namespace.clone()).or_default();
        if memo.current.is_empty() {
            memo.relevant = relevant_labels(set, namespace);
        }
        let labels: BTreeMap<_, _> = labels
            .iter()
            .filter(|(key, _)| memo.relevant.contains(*key))
            .map(|(k, v)| (k.clone(), v.clone()))
            .collect();
        if let Some(known) = memo.current.get(&labels) {
            return known.clone();
        }
        let labels = Arc::new(labels);
        let new = policy::resolve(set, &WorkloadKey { namespace: namespace.clone(), labels: labels.clone() });
        let same = memo.before.iter().chain(memo.current.values()).find(|old| ***old == new).cloned();
        let policy = same.unwrap_or_else(|| Arc::new(new));
        memo.current.insert(labels, policy.clone());
        policy
    }
}

fn relevant_labels(set: &PolicySet, namespace: &str) -> BTreeSet<String> {
    let mut keys = BTreeSet::from([GATEWAY_LABEL.to_owned()]);
    let mut add = |attachment: &Attachment| match attachment {
        Attachment::Labels(labels) => keys.extend(labels.keys().cloned()),
        Attachment::Namespace | Attachment::Targets(_) => {}
    };
    for policies in [namespace, &*set.scope.root_namespace].into_iter().filter_map(|ns| set.namespace(ns)) {
        policies.peer.values().for_each(|p| add(&p.attachment));
        policies.request.values().for_each(|p| add(&p.attachment));
        policies.authorization.values().for_each(|p| add(&p.attachment));
    }
    keys
}
