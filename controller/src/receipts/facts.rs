//! What the conditions of each policy depend on besides receipts and workloads. Made by the owner of the state when a
//! policy changes; read by whoever draws conclusions.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use crds::{Finding, Kind, ObjectRef};
use mesh::{ClientTls, DestinationRule};
use policy::{Action, Attachment, ObjectName, PeerAuthentication};
use source::Version;
use tokio::sync::watch;

use crate::status::{KeysOf, Known};
use crate::store::{Edit, Store};

use super::evaluate::Verdict;

/// Every policy's.
pub(crate) type All = BTreeMap<ObjectRef, Arc<Fact>>;

/// One policy's.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Fact {
    pub(crate) object: ObjectRef,
    pub(crate) version: Option<Version>,
    pub(crate) accepted: Verdict,
    /// Whether what it refers to exists; `None` for kinds that refer to nothing.
    pub(crate) resolved: Option<Verdict>,
    /// Whom it selects; `None`: nobody at all.
    pub(crate) attachment: Option<Attachment>,
    /// It is in the root namespace.
    pub(crate) mesh_wide: bool,
    pub(crate) dry_run: bool,
    /// `None` for kinds other than AuthorizationPolicy.
    pub(crate) action: Option<Action>,
    /// PeerAuthentications of the same reach that come first where both select a workload (semantics §2.2).
    pub(crate) older: Older,
}

/// Those before one in a list that all of them share.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Older {
    pub(crate) peers: Arc<Vec<(ObjectName, Attachment)>>,
    pub(crate) before: usize,
}

impl Older {
    /// First ones first.
    pub(crate) fn iter(&self) -> impl Iterator<Item = &(ObjectName, Attachment)> {
        self.peers.iter().take(self.before)
    }
}

/// The PeerAuthentications of one namespace, oldest first: of the whole namespace, and of single workloads.
#[derive(Debug, Default)]
struct Peers([Arc<Vec<(ObjectName, Attachment)>>; 2]);

impl Peers {
    fn of(store: &Store, namespace: &str) -> Self {
        let here = store.policies.namespace(namespace);
        let mut all: Vec<&PeerAuthentication> =
            here.into_iter().flat_map(|here| here.peer.values()).map(|peer| &**peer).collect();
        all.sort_by(|a, b| a.meta.order().cmp(&b.meta.order()));
        let (wide, narrow): (Vec<_>, Vec<_>) =
            all.into_iter().partition(|peer| peer.attachment == Attachment::Namespace);
        let list = |peers: Vec<&PeerAuthentication>| {
            Arc::new(peers.into_iter().map(|peer| (peer.meta.id.clone(), peer.attachment.clone())).collect())
        };
        Self([list(wide), list(narrow)])
    }

    /// Keeps the lists of `before` that are equal, so that they are compared as pointers from then on.
    fn sharing(self, before: Option<&Self>) -> Self {
        let Self([wide, narrow]) = self;
        let keep = |new: Arc<Vec<_>>, index: usize| {
            before.map(|Self(old)| &old[index]).filter(|old| **old == new).cloned().unwrap_or(new)
        };
        Self([keep(wide, 0), keep(narrow, 1)])
    }

    fn older(&self, policy: &PeerAuthentication) -> Older {
        let Self([wide, narrow]) = self;
        let peers = if policy.attachment == Attachment::Namespace { wide } else { narrow };
        let before = peers.iter().position(|(id, _)| *id == policy.meta.id).unwrap_or(0);
        Older { peers: peers.clone(), before }
    }
}

/// Whether objects of `kind` have conditions about proxies.
pub(crate) fn is_policy(kind: Kind) -> bool {
    matches!(kind, Kind::PeerAuthentication | Kind::RequestAuthentication | Kind::AuthorizationPolicy)
}

/// Keeps them up to date.
#[derive(Debug)]
pub(crate) struct Facts {
    all: watch::Sender<Arc<All>>,
    stale: BTreeSet<ObjectRef>,
    /// As of the last refresh.
    providers: Vec<Arc<str>>,
    root: Arc<str>,
    /// By namespace.
    peers: BTreeMap<Arc<str>, Peers>,
}

impl Facts {
    pub(crate) fn new() -> Self {
        Self {
            all: watch::Sender::new(Arc::default()),
            stale: BTreeSet::new(),
            providers: Vec::new(),
            root: "".into(),
            peers: BTreeMap::new(),
        }
    }

    pub(crate) fn subscribe(&self) -> watch::Receiver<Arc<All>> {
        self.all.subscribe()
    }

    pub(crate) fn all(&self) -> Arc<All> {
        self.all.borrow().clone()
    }

    /// Something about `object` changed.
    pub(crate) fn touch(&mut self, object: &ObjectRef) {
        if is_policy(object.kind) {
            self.stale.insert(object.clone());
        }
    }

    /// Makes those anew that may have changed; which ones those are.
    pub(crate) fn refresh(
        &mut self,
        known: &BTreeMap<ObjectRef, Known>,
        store: &Store,
    ) -> BTreeSet<ObjectRef> {
        let scope = &store.policies.scope;
        if scope.providers != self.providers || scope.root_namespace != self.root {
            self.providers.clone_from(&scope.providers);
            self.root = scope.root_namespace.clone();
            self.stale.extend(known.keys().filter(|object| is_policy(object.kind)).cloned());
        }
        let mut stale = std::mem::take(&mut self.stale);
        // Whether one of several applies depends on the others.
        let peers: BTreeSet<Arc<str>> = stale
            .iter()
            .filter(|object| object.kind == Kind::PeerAuthentication)
            .map(|object| object.id.namespace.clone())
            .collect();
        for namespace in peers {
            let here = store.policies.namespace(&namespace);
            let names = here.into_iter().flat_map(|all| all.peer.keys());
            stale.extend(names.map(|name| {
                let id = ObjectName { namespace: namespace.clone(), name: name.clone() };
                ObjectRef { kind: Kind::PeerAuthentication, id }
            }));
            let peers = Peers::of(store, &namespace).sharing(self.peers.get(&namespace));
            if here.is_some() {
                self.peers.insert(namespace, peers);
            } else {
                self.peers.remove(&namespace);
            }
        }
        if stale.is_empty() {
            return stale;
        }
        let peers = &self.peers;
        self.all.send_modify(|all| {
            let all = Arc::make_mut(all);
            for object in &stale {
                match known.get(object).map(|known| fact(object, known, store, peers)) {
                    Some(fact) if all.get(object).is_some_and(|before| **before == fact) => {}
                    Some(fact) => drop(all.insert(object.clone(), Arc::new(fact))),
                    None => drop(all.remove(object)),
                }
            }
        });
        stale
    }
}

/// Whether an edit changes what is published of the policy itself.
pub(crate) fn changes_policy(edit: &Edit) -> bool {
    matches!(edit, Edit::Policy { .. })
}

fn fact(object: &ObjectRef, known: &Known, store: &Store, peers: &BTreeMap<Arc<str>, Peers>) -> Fact {
    let ObjectRef { kind, id } = object;
    let mesh_wide = *id.namespace == *store.mesh.root_namespace;
    let mut fact = Fact {
        object: object.clone(),
        version: known.version.clone(),
        accepted: accepted(known),
        resolved: None,
        attachment: None,
        mesh_wide,
        dry_run: false,
        action: None,
        older: Older::default(),
    };
    let Some(here) = store.policies.namespace(&id.namespace) else { return fact };
    match kind {
        Kind::PeerAuthentication => {
            if let Some(policy) = here.peer.get(&id.name) {
                // With a selector in the root namespace it is never matched (semantics §2.2).
                let misplaced = mesh_wide && policy.attachment != Attachment::Namespace;
                fact.attachment = (!misplaced).then(|| policy.attachment.clone());
                fact.older = peers.get(&id.namespace).map(|peers| peers.older(policy)).unwrap_or_default();
            }
        }
        Kind::RequestAuthentication => {
            fact.attachment = here.request.get(&id.name).map(|policy| policy.attachment.clone());
            fact.resolved = Some(fetched(known));
        }
        Kind::AuthorizationPolicy => {
            if let Some(policy) = here.authorization.get(&id.name) {
                fact.attachment = Some(policy.attachment.clone());
                fact.dry_run = policy.meta.dry_run;
                fact.action = Some(policy.action.clone());
                fact.resolved = provided(&policy.action, store);
            }
        }
        _ => {}
    }
    fact
}

fn accepted(known: &Known) -> Verdict {
    let first = || {
        let mut findings: Vec<&Finding> = known.findings.iter().collect();
        findings.sort_by_key(|finding| std::cmp::Reverse(finding.severity));
        findings.first().map_or_else(String::new, |finding| match &*finding.field {
            "" => finding.message.clone(),
            field => format!("{field}: {}", finding.message),
        })
    };
    if known.kept {
        Verdict::no("Accepted", "LastGoodVersionKept", first())
    } else if known.has_errors() {
        let message = format!("{}; what could not be understood is read as closed", first());
        Verdict::no("Accepted", "Invalid", message)
    } else {
        Verdict::yes("Accepted", first())
    }
}

fn fetched(known: &Known) -> Verdict {
    let KeysOf { missing, stale } = &known.keys;
    if missing.is_empty() {
        let kept = match stale.is_empty() {
            true => String::new(),
            false => format!("earlier keys of these issuers are in use: {}", stale.join(", ")),
        };
        return Verdict::yes("ResolvedRefs", kept);
    }
    let issuers = missing.join(", ");
    let message = format!("without keys, the tokens of these issuers are refused: {issuers}");
    Verdict::no("ResolvedRefs", "JwksNotFetched", message)
}

fn provided(action: &Action, store: &Store) -> Option<Verdict> {
    let Action::Custom { provider } = action else { return None };
    if store.policies.scope.providers.contains(provider) {
        return Some(Verdict::yes("ResolvedRefs", String::new()));
    }
    let message = format!(
        "the mesh configuration has no ext_authz provider {:?} whose service and port exist, so what the policy matches \
         is denied",
        &**provider
    );
    Some(Verdict::no("ResolvedRefs", "ProviderNotFound", message))
}

/// The conditions of an object that is no policy.
pub(crate) fn conditions_of_others(object: &ObjectRef, known: &Known, store: &Store) -> Vec<Verdict> {
    let ObjectRef { kind, id } = object;
    let rule = (*kind == Kind::DestinationRule).then(|| store.destination_rules.get(&id.namespace, &id.name));
    std::iter::once(accepted(known)).chain(rule.flatten().map(|rule| credentials(rule))).collect()
}

/// Files are at the proxies, and nobody here sees them.
fn credentials(rule: &DestinationRule) -> Verdict {
    let Some(policy) = &rule.policy else { return Verdict::yes("ResolvedRefs", String::new()) };
    let ports = policy.ports.iter().filter(|(_, tls)| **tls == Some(ClientTls::Refuse));
    let mut refused: Vec<String> = ports.map(|(port, _)| format!("port {port}")).collect();
    if policy.tls == Some(ClientTls::Refuse) {
        refused.insert(0, "all ports without settings of their own".to_owned());
    }
    if refused.is_empty() {
        return Verdict::yes("ResolvedRefs", String::new());
    }
    let message = format!(
        "sidecars get no Secrets (credentialName), so nothing is sent to {}: {}",
        rule.host,
        refused.join(", ")
    );
    Verdict::no("ResolvedRefs", "CredentialNotSupported", message)
}
