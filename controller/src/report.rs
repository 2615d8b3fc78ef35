//! Puts the answer of `/status` together from the parts that know. Computes policy for nobody: selection here is only
//! for the conditions' messages.

use std::collections::HashMap;
use std::sync::Arc;

use crds::{Kind, ObjectRef};
use mesh::Workload;
use policy::{Action, Attachment, ObjectName};
use runtime::http::Reasons;

use crate::publish::Publisher;
use crate::status::{
    Attached, FailureStatus, FindingStatus, Mesh, ObjectStatus, Objects, Report, Session, Sessions,
    UnreadableStatus, conditions, selects,
};
use crate::store::{Store, workload_name};

/// Sessions by the workload they are for.
type Connected<'a> = HashMap<&'a ObjectName, Vec<&'a Session>>;

pub(crate) fn report(
    reasons: Reasons,
    publisher: &Publisher,
    objects: &mut Objects,
    sessions: &mut Sessions,
) -> Report {
    sessions.refresh(publisher);
    let store = &publisher.store;
    let unreadable = objects.unreadable.iter().map(|(origin, unreadable)| UnreadableStatus {
        origin: origin.clone(),
        finding: FindingStatus::from(&unreadable.finding),
        blocks_ready: unreadable.blocks_ready,
    });
    let unreadable = unreadable.collect();
    let mut connected: Connected<'_> = HashMap::new();
    for session in sessions.iter() {
        connected.entry(&session.proxy.workload).or_default().push(session);
    }
    let mut statuses = Vec::with_capacity(objects.known.len());
    for (object, known) in &mut objects.known {
        let attached = attached(store, &connected, object);
        statuses.push(ObjectStatus {
            kind: object.kind.as_str().to_owned(),
            namespace: object.id.namespace.to_string(),
            name: object.id.name.to_string(),
            origin: known.origin.clone(),
            findings: known.findings.iter().map(FindingStatus::from).collect(),
            conditions: conditions(object, known, attached.as_ref()),
        });
    }
    let failures = publisher.failures.iter();
    let failure = |(subject, error): (&crate::publish::Failure, &str)| FailureStatus {
        subject: subject.to_string(),
        error: error.to_owned(),
    };
    Report {
        ready: reasons.is_empty(),
        reasons,
        generation: publisher.generation,
        mesh: Mesh {
            trust_domain: store.mesh.trust_domain.to_string(),
            root_namespace: store.mesh.root_namespace.to_string(),
        },
        objects: statuses,
        unreadable,
        proxies: sessions
            .iter()
            .map(|session| session.status(store.workload(&session.proxy.workload).is_some()))
            .collect(),
        failures: failures.map(failure).collect(),
    }
}

/// Whom a policy selects; `None` for other kinds.
fn attached<'a>(store: &'a Store, connected: &Connected<'a>, object: &ObjectRef) -> Option<Attached<'a>> {
    let ObjectRef { kind, id } = object;
    let namespace = store.policies.namespace(&id.namespace);
    let root = *id.namespace == *store.mesh.root_namespace;
    let (attachment, dry_run, action): (&Attachment, bool, Option<&Action>) = match kind {
        Kind::PeerAuthentication => {
            let policy = namespace?.peer.get(&id.name)?;
            // With a selector in the root namespace it is never matched (semantics §2.2).
            if root && policy.attachment != Attachment::Namespace {
                let workloads = Vec::new();
                return Some(Attached { dry_run: false, action: None, missing_provider: None, workloads });
            }
            (&policy.attachment, false, None)
        }
        Kind::RequestAuthentication => (&namespace?.request.get(&id.name)?.attachment, false, None),
        Kind::AuthorizationPolicy => {
            let policy = namespace?.authorization.get(&id.name)?;
            (&policy.attachment, policy.meta.dry_run, Some(&policy.action))
        }
        _ => return None,
    };
    let reached: Box<dyn Iterator<Item = &Arc<Workload>>> =
        if root { Box::new(store.workloads()) } else { Box::new(in_namespace(store, id)) };
    let with_sessions = |workload: &Arc<Workload>| {
        let sessions = connected.get(&workload_name(workload)).cloned().unwrap_or_default();
        (workload.clone(), sessions)
    };
    let workloads = reached.filter(|workload| selects(attachment, workload)).map(with_sessions).collect();
    let missing_provider = match action {
        Some(Action::Custom { provider }) if !store.policies.scope.providers.contains(provider) => {
            Some(&**provider)
        }
        _ => None,
    };
    Some(Attached { dry_run, action, missing_provider, workloads })
}

fn in_namespace<'a>(store: &'a Store, id: &ObjectName) -> impl Iterator<Item = &'a Arc<Workload>> + use<'a> {
    let namespace = id.namespace.clone();
    store.workloads().filter(move |workload| workload.namespace == namespace)
}
