//! The policies of a mesh, indexed by namespace, and what they are matched against.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use crate::model::{Attachment, AuthorizationPolicy, ObjectName, PeerAuthentication, RequestAuthentication};

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

/// Every policy of the mesh. Adding and removing one is cheap; resolving a workload touches neither other namespaces nor
/// policies for other labels.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct PolicySet {
    pub scope: Scope,
    namespaces: BTreeMap<Arc<str>, NamespacePolicies>,
}

/// The policies of one namespace, by name.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct NamespacePolicies {
    pub peer: ByName<PeerAuthentication>,
    pub request: ByName<RequestAuthentication>,
    pub authorization: ByName<AuthorizationPolicy>,
}

/// Policies of one kind, read as a map by name; besides found by a label that a workload must have.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ByName<P> {
    policies: BTreeMap<Arc<str>, Arc<P>>,
    /// Label, value, names: of each policy with a selector its first label.
    labelled: BTreeMap<String, BTreeMap<String, BTreeSet<Arc<str>>>>,
    /// Names of those without.
    others: BTreeSet<Arc<str>>,
}

impl<P> Default for ByName<P> {
    fn default() -> Self {
        Self { policies: BTreeMap::new(), labelled: BTreeMap::new(), others: BTreeSet::new() }
    }
}

impl<P> std::ops::Deref for ByName<P> {
    type Target = BTreeMap<Arc<str>, Arc<P>>;

    fn deref(&self) -> &Self::Target {
        &self.policies
    }
}

impl<P: Attached> ByName<P> {
    /// Every policy that may select a workload with these labels: none that does is left out.
    pub fn candidates<'s>(
        &'s self,
        labels: &BTreeMap<String, String>,
    ) -> impl Iterator<Item = &'s P> + use<'s, P> {
        let with = labels.iter().filter_map(|(label, value)| self.labelled.get(label)?.get(value)).flatten();
        let names: Vec<&Arc<str>> = with.chain(&self.others).collect();
        names.into_iter().filter_map(|name| self.policies.get(name)).map(AsRef::as_ref)
    }

    fn put(&mut self, name: Arc<str>, policy: Arc<P>) {
        self.remove(&name);
        match first_label(policy.attachment()) {
            Some((label, value)) => {
                let values = self.labelled.entry(label.clone()).or_default();
                values.entry(value.clone()).or_default().insert(name.clone());
            }
            None => drop(self.others.insert(name.clone())),
        }
        self.policies.insert(name, policy);
    }

    fn remove(&mut self, name: &str) {
        let Some(policy) = self.policies.remove(name) else { return };
        let Some((label, value)) = first_label(policy.attachment()) else {
            self.others.remove(name);
            return;
        };
        // Nothing empty stays behind.
        if let Some(values) = self.labelled.get_mut(label) {
            if let Some(names) = values.get_mut(value) {
                names.remove(name);
                if names.is_empty() {
                    values.remove(value);
                }
            }
            if values.is_empty() {
                self.labelled.remove(label);
            }
        }
    }
}

fn first_label(attachment: &Attachment) -> Option<(&String, &String)> {
    match attachment {
        Attachment::Labels(labels) => labels.first_key_value(),
        Attachment::Namespace | Attachment::Targets(_) => None,
    }
}

/// What is attached to workloads.
pub trait Attached {
    fn attachment(&self) -> &Attachment;
}

impl Attached for PeerAuthentication {
    fn attachment(&self) -> &Attachment {
        &self.attachment
    }
}

impl Attached for RequestAuthentication {
    fn attachment(&self) -> &Attachment {
        &self.attachment
    }
}

impl Attached for AuthorizationPolicy {
    fn attachment(&self) -> &Attachment {
        &self.attachment
    }
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
        self.namespaces.entry(id.namespace).or_default().peer.put(id.name, policy);
    }

    pub fn put_request(&mut self, policy: Arc<RequestAuthentication>) {
        let id = policy.meta.id.clone();
        self.namespaces.entry(id.namespace).or_default().request.put(id.name, policy);
    }

    pub fn put_authorization(&mut self, policy: Arc<AuthorizationPolicy>) {
        let id = policy.meta.id.clone();
        self.namespaces.entry(id.namespace).or_default().authorization.put(id.name, policy);
    }

    pub fn remove_peer(&mut self, id: &ObjectName) {
        self.edit(id, |n| n.peer.remove(&id.name));
    }

    pub fn remove_request(&mut self, id: &ObjectName) {
        self.edit(id, |n| n.request.remove(&id.name));
    }

    pub fn remove_authorization(&mut self, id: &ObjectName) {
        self.edit(id, |n| n.authorization.remove(&id.name));
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

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::{Action, Meta};

    fn policy(name: &str, attachment: Attachment) -> Arc<AuthorizationPolicy> {
        let meta = Meta::new(ObjectName::new("foo", name));
        Arc::new(AuthorizationPolicy { meta, attachment, action: Action::Allow, rules: vec![] })
    }

    fn labels(pairs: &[(&str, &str)]) -> BTreeMap<String, String> {
        pairs.iter().map(|(k, v)| ((*k).to_owned(), (*v).to_owned())).collect()
    }

    #[track_caller]
    fn check(set: &PolicySet, of: &[(&str, &str)], expected: &[&str]) {
        let candidates =
            set.namespace("foo").into_iter().flat_map(|n| n.authorization.candidates(&labels(of)));
        let mut names: Vec<String> = candidates.map(|policy| policy.meta.id.name.to_string()).collect();
        names.sort();
        assert_eq!(names, expected, "{of:?}");
    }

    #[test]
    fn candidates_are_found_by_a_label() {
        let mut set = PolicySet::default();
        set.put_authorization(policy("all", Attachment::Namespace));
        set.put_authorization(policy("a", Attachment::Labels(labels(&[("app", "a"), ("version", "v1")]))));
        set.put_authorization(policy("b", Attachment::Labels(labels(&[("app", "b")]))));
        set.put_authorization(policy("none", Attachment::Labels(BTreeMap::new())));
        check(&set, &[], &["all", "none"]);
        check(&set, &[("app", "a"), ("x", "y")], &["a", "all", "none"]);
        check(&set, &[("version", "v1")], &["all", "none"]);
        // Another version of it is found where it is now, and only there.
        set.put_authorization(policy("a", Attachment::Labels(labels(&[("tier", "web")]))));
        check(&set, &[("app", "a")], &["all", "none"]);
        check(&set, &[("tier", "web"), ("app", "b")], &["a", "all", "b", "none"]);
        for name in ["a", "all", "b", "none"] {
            set.remove_authorization(&ObjectName::new("foo", name));
        }
        assert_eq!(set, PolicySet::default());
    }
}
