//! Which policies apply to a workload and why, each with what overrides it. Does not say what they amount to: that is
//! [`crate::resolve`].

use std::collections::BTreeMap;
use std::sync::Arc;

use serde::Serialize;

use crate::model::{Action, Attachment, Meta};
use crate::set::{PolicySet, WorkloadKey};

/// One policy that reaches a workload.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Applying {
    pub kind: &'static str,
    pub namespace: Arc<str>,
    pub name: Arc<str>,
    /// Of an AuthorizationPolicy, as the API writes it.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub action: Option<&'static str>,
    #[serde(skip_serializing_if = "is_false")]
    pub dry_run: bool,
    pub reach: Reach,
    /// The labels of its selector.
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    pub selector: BTreeMap<String, String>,
    /// A PeerAuthentication that is ignored because of an older one of the same reach: that one.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub ignored_for: Option<Arc<str>>,
}

/// Why a policy applies (semantics §2.2, §2.4).
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize)]
#[serde(rename_all = "camelCase")]
pub enum Reach {
    /// It is in the root namespace and selects no workloads.
    Mesh,
    /// It is in the root namespace and its selector matches.
    MeshSelector,
    /// It is in the workload's namespace and selects no workloads.
    Namespace,
    /// It is in the workload's namespace and its selector matches.
    Selector,
    /// It names the workload's gateway.
    TargetRef,
}

impl std::fmt::Display for Reach {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            Self::Mesh => "whole mesh",
            Self::MeshSelector => "selector, from the root namespace",
            Self::Namespace => "whole namespace",
            Self::Selector => "selector",
            Self::TargetRef => "targetRef",
        })
    }
}

#[expect(clippy::trivially_copy_pass_by_ref, reason = "serde passes references")]
fn is_false(value: &bool) -> bool {
    !value
}

/// Every policy of `set` that applies to `workload`: by kind, then the widest first, then the oldest.
pub fn applying(set: &PolicySet, workload: &WorkloadKey) -> Vec<Applying> {
    let root = &set.scope.root_namespace;
    let own = (workload.namespace != *root).then(|| set.namespace(&workload.namespace)).flatten();
    let searched: Vec<_> = set.namespace(root).into_iter().chain(own).collect();
    let mut all: Vec<(&Meta, Applying)> = Vec::new();
    for policies in &searched {
        let peers = policies.peer.values().filter(|p| p.attaches_to(&set.scope, workload));
        all.extend(peers.map(|p| (&p.meta, one("PeerAuthentication", &p.meta, &p.attachment, root))));
        let requests = policies.request.values().filter(|p| p.attaches_to(&set.scope, workload));
        all.extend(requests.map(|p| (&p.meta, one("RequestAuthentication", &p.meta, &p.attachment, root))));
        for policy in policies.authorization.values().filter(|p| p.attaches_to(&set.scope, workload)) {
            let applying = one("AuthorizationPolicy", &policy.meta, &policy.attachment, root);
            let (action, dry_run) = (Some(action(&policy.action)), policy.meta.dry_run);
            all.push((&policy.meta, Applying { action, dry_run, ..applying }));
        }
    }
    let kind = |applying: &Applying| match applying.kind {
        "PeerAuthentication" => 0,
        "RequestAuthentication" => 1,
        _ => 2,
    };
    all.sort_by(|(a_meta, a), (b_meta, b)| {
        (kind(a), a.reach, a_meta.order()).cmp(&(kind(b), b.reach, b_meta.order()))
    });
    ignored(all.into_iter().map(|(_, applying)| applying).collect())
}

/// Of several PeerAuthentications of one reach the oldest counts; they are in that order.
fn ignored(mut all: Vec<Applying>) -> Vec<Applying> {
    let mut first: BTreeMap<Reach, Arc<str>> = BTreeMap::new();
    for applying in all.iter_mut().filter(|a| a.kind == "PeerAuthentication") {
        match first.get(&applying.reach) {
            Some(name) => applying.ignored_for = Some(name.clone()),
            None => drop(first.insert(applying.reach, applying.name.clone())),
        }
    }
    all
}

fn one(kind: &'static str, meta: &Meta, attachment: &Attachment, root: &Arc<str>) -> Applying {
    let in_root = meta.id.namespace == *root;
    let (reach, selector) = match attachment {
        Attachment::Namespace if in_root => (Reach::Mesh, BTreeMap::new()),
        Attachment::Namespace => (Reach::Namespace, BTreeMap::new()),
        Attachment::Labels(labels) if in_root => (Reach::MeshSelector, labels.clone()),
        Attachment::Labels(labels) => (Reach::Selector, labels.clone()),
        Attachment::Targets(_) => (Reach::TargetRef, BTreeMap::new()),
    };
    let (namespace, name) = (meta.id.namespace.clone(), meta.id.name.clone());
    Applying { kind, namespace, name, action: None, dry_run: false, reach, selector, ignored_for: None }
}

fn action(action: &Action) -> &'static str {
    match action {
        Action::Allow => "ALLOW",
        Action::Deny => "DENY",
        Action::Audit => "AUDIT",
        Action::Custom { provider: _ } => "CUSTOM",
    }
}
