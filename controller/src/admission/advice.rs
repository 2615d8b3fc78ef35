//! Policies that are legal but will not do what their author may think, told while he still looks: a pure function over
//! the store and the policy in force at the workloads that are selected. Refuses nothing; what it says is true now and
//! may not be tomorrow.

mod fields;
mod peer;
mod rules;

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use crds::Object;
use mesh::{InboundPort, Service, Workload};
use policy::{Action, Attachment, EffectivePolicy, ObjectName};

use crate::publish::Publisher;
use crate::store::Store;

/// Workloads that are looked at: those alike in labels and namespace count once.
const LOOKED_AT: usize = 200;
/// Labels that tell apart what is otherwise the same.
const OF_ONE: [&str; 5] = [
    "pod-template-hash",
    "controller-revision-hash",
    "statefulset.kubernetes.io/pod-name",
    "apps.kubernetes.io/pod-index",
    "batch.kubernetes.io/job-completion-index",
];

/// One thing that the author of a policy should know.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Advice {
    pub code: Code,
    pub text: String,
}

/// What it is about, for programs.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Code {
    /// The policy can select nothing, whatever there is.
    NoEffect,
    SelectsNothing,
    DryRun,
    UnknownProvider,
    /// Requests without a token pass.
    TokenNotRequired,
    TokenOnTcp,
    /// Fields that only mTLS tells, where plaintext is served.
    PlaintextIdentity,
    HttpOnTcp,
    UnservedPort,
    /// Another PeerAuthentication decides.
    Ignored,
}

impl Code {
    fn says(self, text: impl Into<String>) -> Advice {
        Advice { code: self, text: text.into() }
    }
}

/// One workload of those that are alike, with its declared ports and the policy in force.
#[derive(Debug)]
struct Selected {
    workload: Arc<Workload>,
    ports: Vec<InboundPort>,
    policy: Arc<EffectivePolicy>,
}

/// What its author should know of `object`, which is about to be written, in words.
pub(crate) fn advise(publisher: &mut Publisher, object: &Object) -> Vec<String> {
    coded(publisher, object).into_iter().map(|advice| advice.text).collect()
}

/// The same, with codes.
pub(crate) fn coded(publisher: &mut Publisher, object: &Object) -> Vec<Advice> {
    let mut advice = Vec::new();
    let Some((id, attachment)) = target(object) else { return advice };
    if !reaches(&publisher.store, object, id, attachment, &mut advice) {
        return advice;
    }
    let selected = selected(publisher, id, attachment);
    if selected.is_empty() {
        advice.push(match impossible(attachment) {
            Some(text) => Code::NoEffect.says(text),
            None => Code::SelectsNothing.says(nothing(&publisher.store, id, attachment)),
        });
    }
    let store = &publisher.store;
    match object {
        Object::PeerAuthentication(new) => peer::advise(store, new, &selected, &mut advice),
        Object::RequestAuthentication(_) => request(&selected, &mut advice),
        Object::AuthorizationPolicy(new) => {
            if new.meta.dry_run {
                let text = "dry run: evaluated and counted, nothing is allowed or denied by it";
                advice.push(Code::DryRun.says(text));
            }
            if let Action::Custom { provider } = &new.action
                && !store.policies.scope.providers.contains(provider)
            {
                advice.push(Code::UnknownProvider.says(format!(
                    "spec.provider: no usable ext_authz provider {provider:?} in the mesh config: what matches is denied"
                )));
            }
            rules::advise(store, new, &selected, &mut advice);
        }
        _ => {}
    }
    advice
}

/// Whose the policy is and to what it is attached; `None` for what is no policy.
fn target(object: &Object) -> Option<(&ObjectName, &Attachment)> {
    match object {
        Object::PeerAuthentication(policy) => Some((&policy.meta.id, &policy.attachment)),
        Object::RequestAuthentication(policy) => Some((&policy.meta.id, &policy.attachment)),
        Object::AuthorizationPolicy(policy) => Some((&policy.meta.id, &policy.attachment)),
        _ => None,
    }
}

/// Whether the policy can select any workload at all (semantics §2.2, §2.4).
fn reaches(
    store: &Store,
    object: &Object,
    id: &ObjectName,
    attachment: &Attachment,
    advice: &mut Vec<Advice>,
) -> bool {
    let root = id.namespace == store.mesh.root_namespace;
    let never = match attachment {
        Attachment::Targets(_) => {
            "spec.targetRefs: no gateway or waypoint is served here: the policy applies to nothing"
        }
        Attachment::Labels(_) if root && matches!(object, Object::PeerAuthentication(_)) => {
            "spec.selector: in the root namespace a PeerAuthentication with a selector has no effect"
        }
        _ => return true,
    };
    advice.push(Code::NoEffect.says(never));
    false
}

fn nothing(store: &Store, id: &ObjectName, attachment: &Attachment) -> String {
    let root = id.namespace == store.mesh.root_namespace;
    let place = if root { "the mesh".to_owned() } else { format!("namespace {:?}", &*id.namespace) };
    match attachment {
        Attachment::Labels(_) => {
            format!("spec.selector: selects nothing now: no workload of {place} has these labels")
        }
        Attachment::Namespace | Attachment::Targets(_) => {
            format!("selects nothing now: {place} has no workload")
        }
    }
}

/// A selector that no workload can ever meet: Kubernetes takes no such label.
fn impossible(attachment: &Attachment) -> Option<String> {
    let Attachment::Labels(labels) = attachment else { return None };
    let inner = |c: char| c.is_ascii_alphanumeric() || "-_.".contains(c);
    let word = |text: &str| {
        let ends = |c: Option<char>| c.is_some_and(|c| c.is_ascii_alphanumeric());
        text.len() <= 63 && ends(text.chars().next()) && ends(text.chars().last()) && text.chars().all(inner)
    };
    let possible = |(key, value): &(&String, &String)| {
        word(key.rsplit_once('/').map_or(key.as_str(), |(_, name)| name)) && (value.is_empty() || word(value))
    };
    let (key, value) = labels.iter().find(|label| !possible(label))?;
    Some(format!("spec.selector: can select nothing: {key}: {value:?} is no label that a workload can have"))
}

fn selected(publisher: &mut Publisher, id: &ObjectName, attachment: &Attachment) -> Vec<Selected> {
    let store = &publisher.store;
    let root = id.namespace == store.mesh.root_namespace;
    let reached: Box<dyn Iterator<Item = &Arc<Workload>>> =
        if root { Box::new(store.workloads()) } else { Box::new(store.workloads_in(&id.namespace)) };
    let mut alike = BTreeSet::new();
    let mut workloads = Vec::new();
    for workload in reached.filter(|w| attachment.selects(&id.namespace, &w.namespace, &w.labels)) {
        let labels = workload.labels.iter().filter(|(key, _)| !OF_ONE.contains(&key.as_str()));
        let labels: BTreeMap<String, String> = labels.map(|(k, v)| (k.clone(), v.clone())).collect();
        if alike.insert((workload.namespace.clone(), labels)) {
            workloads.push(workload.clone());
        }
        if workloads.len() == LOOKED_AT {
            break;
        }
    }
    let look = |workload: Arc<Workload>| {
        let policy = publisher.policy_of(&workload).ok()?;
        let ports = publisher.store.inbound_ports(&workload);
        Some(Selected { workload, ports, policy })
    };
    workloads.into_iter().filter_map(look).collect()
}

/// A token that is missing is no error to RequestAuthentication: somebody must ask for it.
fn request(selected: &[Selected], advice: &mut Vec<Advice>) {
    let asks = |selected: &Selected| {
        let EffectivePolicy { mtls: _, jwt: _, custom: _, audit: _, deny, allow, drain: _ } =
            &*selected.policy;
        let rules = [deny, allow].into_iter().flat_map(|rules| rules.enforced.iter().flatten());
        let mut clauses = rules.flat_map(|rule| rule.permissions.iter().chain(&rule.principals).flatten());
        clauses.any(|clause| clause.any.iter().chain(&clause.none).any(fields::of_token))
    };
    if let Some(bare) = selected.iter().find(|selected| !asks(selected)) {
        advice.push(Code::TokenNotRequired.says(format!(
            "requests without a token pass: no AuthorizationPolicy for {} asks for requestPrincipals",
            name(&bare.workload)
        )));
    }
    let tcp = |selected: &Selected| {
        !selected.ports.is_empty() && selected.ports.iter().all(|port| port.protocol == mesh::Protocol::Tcp)
    };
    if let Some(tcp) = selected.iter().find(|selected| tcp(selected)) {
        let text = format!("all ports of {} are TCP: there no token is looked at", name(&tcp.workload));
        advice.push(Code::TokenOnTcp.says(text));
    }
}

/// How a workload is called in advice: by its app, for its own name says little.
fn name(workload: &Workload) -> String {
    let app = ["app", "app.kubernetes.io/name"].iter().find_map(|key| workload.labels.get(*key));
    app.unwrap_or(&workload.name.to_string()).chars().take(40).collect()
}

/// What to say of a port that is named in a policy but that no selected workload is known to serve.
fn unserved(store: &Store, port: u16, selected: &[Selected]) -> Option<String> {
    let serves = |selected: &Selected| {
        selected.ports.iter().any(|served| served.port == port)
            || selected.workload.named_ports.values().any(|named| *named == port)
    };
    // Of a workload behind no Service nobody knows what it serves.
    if selected.iter().all(|s| s.ports.is_empty()) || selected.iter().any(serves) {
        return None;
    }
    let behind = |selected: &Selected| {
        let services = store.services.namespace(&selected.workload.namespace);
        let target = |service: &Arc<Service>| {
            let port = service.ports.iter().find(|declared| declared.port == port)?;
            service.selects(&selected.workload).then(|| port.target_on(&selected.workload)).flatten()
        };
        services.filter_map(target).next()
    };
    Some(match selected.iter().find_map(behind) {
        Some(target) => format!("{port} is the Service's port; policies name the workload's own, {target}"),
        None => format!("no selected workload is known to serve port {port}"),
    })
}

#[cfg(test)]
mod tests;
