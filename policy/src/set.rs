//! The policies of a mesh, indexed by namespace, and what they are matched against.

use std::collections::BTreeMap;
use std::sync::Arc;

use crate::model::{AuthorizationPolicy, ObjectName, PeerAuthentication, RequestAuthentication};

/// The mesh settings that decide how policies apply (semantics §1.6).
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Scope {
    /// Policies of this namespace reach the whole mesh.
    pub root_namespace: Arc<str>,
    pub trust_domain: Arc<str>,
    pub trust_domain_aliases: Vec<Arc<str>>,
    /// Names of the usable ext_authz providers; a CUSTOM policy naming another one denies what it matches.
    pub providers: Vec<Arc<str>>,
}

impl Default for Scope {
    fn default() -> Self {
        Self {
            root_namespace: "istio-system".into(),
            trust_domain: "cluster.local".into(),
            trust_domain_aliases: Vec::new(),
            providers: Vec::new(),
        }
    }
}

/// What a policy is matched against (semantics §2.1): from the registry, never from the proxy's own claims.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct WorkloadKey {
    pub namespace: Arc<str>,
    pub labels: Arc<BTreeMap<String, String>>,
}

/// Every policy of the mesh. Adding and removing one is cheap; reading one namespace touches only that namespace.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct PolicySet {
    pub scope: Scope,
    namespaces: BTreeMap<Arc<str>, NamespacePolicies>,
}

/// The policies of one namespace, by name.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct NamespacePolicies {
    pub peer: BTreeMap<Arc<str>, Arc<PeerAuthentication>>,
    pub request: BTreeMap<Arc<str>, Arc<RequestAuthentication>>,
    pub authorization: BTreeMap<Arc<str>, Arc<AuthorizationPolicy>>,
}

impl NamespacePolicies {
    fn is_empty(&self) -> bool {
        let Self { peer, request, authorization } = self;
        peer.is_empty() && request.is_empty() && authorization.is_empty()
    }
}

impl PolicySet {
    pub fn new(scope: Scope) -> Self {
        Self { scope, namespaces: BTreeMap::new() }
    }

    /// The policies of `namespace`, `None` if it has none.
    pub fn namespace(&self, namespace: &str) -> Option<&NamespacePolicies> {
        self.namespaces.get(namespace)
    }

    pub fn namespaces(&self) -> impl Iterator<Item = (&Arc<str>, &NamespacePolicies)> {
        self.namespaces.iter()
    }

    pub fn put_peer(&mut self, policy: Arc<PeerAuthentication>) {
        let id = policy.meta.id.clone();
        self.namespaces.entry(id.namespace).or_default().peer.insert(id.name, policy);
    }

    pub fn put_request(&mut self, policy: Arc<RequestAuthentication>) {
        let id = policy.meta.id.clone();
        self.namespaces.entry(id.namespace).or_default().request.insert(id.name, policy);
    }

    pub fn put_authorization(&mut self, policy: Arc<AuthorizationPolicy>) {
        let id = policy.meta.id.clone();
        self.namespaces.entry(id.namespace).or_default().authorization.insert(id.name, policy);
    }

    pub fn remove_peer(&mut self, id: &ObjectName) {
        self.edit(id, |n| drop(n.peer.remove(&id.name)));
    }

    pub fn remove_request(&mut self, id: &ObjectName) {
        self.edit(id, |n| drop(n.request.remove(&id.name)));
    }

    pub fn remove_authorization(&mut self, id: &ObjectName) {
        self.edit(id, |n| drop(n.authorization.remove(&id.name)));
    }

    fn edit(&mut self, id: &ObjectName, edit: impl FnOnce(&mut NamespacePolicies)) {
        if let Some(policies) = self.namespaces.get_mut(&id.namespace) {
            edit(policies);
            if policies.is_empty() {
                self.namespaces.remove(&id.namespace);
            }
        }
    }
}
