//! An object's conditions: accepted by us, programmed into the connected proxies, enforced for everyone it selects.
//! The reasons are part of the interface; the messages are for people.

use std::sync::Arc;
use std::time::SystemTime;

use crds::{Kind, ObjectRef};
use mesh::Workload;
use policy::{Action, Attachment, ObjectName};

use super::objects::Known;
use super::sessions::{Nack, Session};
use super::{Condition, timestamp};

/// At most so many names in a message.
const NAMED: usize = 5;

/// A policy's reach: what [`conditions`] needs to know besides the object's own story.
#[derive(Debug)]
pub(crate) struct Attached<'a> {
    pub(crate) dry_run: bool,
    /// `None` for kinds other than AuthorizationPolicy.
    pub(crate) action: Option<&'a Action>,
    /// The ext_authz provider that a CUSTOM policy names, if there is no usable one of that name.
    pub(crate) missing_provider: Option<&'a str>,
    /// Every registered workload it selects, with the sessions of its proxies.
    pub(crate) workloads: Vec<(Arc<Workload>, Vec<&'a Session>)>,
}

/// Whether a policy in a workload's namespace or in the root namespace selects that workload.
pub(crate) fn selects(attachment: &Attachment, workload: &Workload) -> bool {
    match attachment {
        Attachment::Namespace => true,
        Attachment::Labels(labels) => {
            labels.iter().all(|(key, value)| workload.labels.get(key) == Some(value))
        }
        // For gateways and waypoints only (semantics §2.4).
        Attachment::Targets(_) => false,
    }
}

#[derive(Debug)]
struct Verdict {
    kind: &'static str,
    status: &'static str,
    reason: &'static str,
    message: String,
}

impl Verdict {
    fn yes(kind: &'static str, message: String) -> Self {
        Self { kind, status: "True", reason: kind, message }
    }

    fn no(kind: &'static str, reason: &'static str, message: String) -> Self {
        Self { kind, status: "False", reason, message }
    }
}

/// The conditions of one object; `attached` for policies.
pub(crate) fn conditions(
    object: &ObjectRef,
    known: &mut Known,
    attached: Option<&Attached<'_>>,
) -> Vec<Condition> {
    let mut verdicts = vec![accepted(known)];
    if object.kind == Kind::RequestAuthentication {
        verdicts.push(resolved(known));
    }
    if let Some(attached) = attached {
        if matches!(attached.action, Some(Action::Custom { .. })) {
            verdicts.push(provided(attached));
        }
        let programmed = programmed(&object.id, object.kind, attached);
        verdicts.push(enforced(&programmed, attached));
        verdicts.push(programmed);
    }
    let now = SystemTime::now();
    let mut condition = |Verdict { kind, status, reason, message }| {
        let (before, since) = known.since.entry(kind).or_insert((status, now));
        if *before != status {
            (*before, *since) = (status, now);
        }
        Condition {
            kind: kind.to_owned(),
            status: status.to_owned(),
            reason: reason.to_owned(),
            message,
            last_transition_time: timestamp(*since),
        }
    };
    let mut conditions: Vec<Condition> = verdicts.into_iter().map(&mut condition).collect();
    conditions.sort_by(|a, b| a.kind.cmp(&b.kind));
    conditions
}

fn accepted(known: &Known) -> Verdict {
    let first = || {
        let mut findings: Vec<_> = known.findings.iter().collect();
        findings.sort_by_key(|finding| std::cmp::Reverse(finding.severity));
        findings.first().map_or_else(String::new, |finding| match &*finding.field {
            "" => finding.message.clone(),
            field => format!("{field}: {}", finding.message),
        })
    };
    if known.kept {
        Verdict::no("Accepted", "LastGoodVersionKept", first())
    } else if known.has_errors() {
        Verdict::no(
            "Accepted",
            "Invalid",
            format!("{}; what could not be understood is read as closed", first()),
        )
    } else {
        Verdict::yes("Accepted", first())
    }
}

fn resolved(known: &Known) -> Verdict {
    if known.unfetched.is_empty() {
        return Verdict::yes("ResolvedRefs", String::new());
    }
    let issuers = known.unfetched.join(", ");
    let message = format!("keys are not fetched yet, so tokens of these issuers are refused: {issuers}");
    Verdict::no("ResolvedRefs", "JwksNotFetched", message)
}

fn provided(attached: &Attached<'_>) -> Verdict {
    let Some(name) = attached.missing_provider else {
        return Verdict::yes("ResolvedRefs", String::new());
    };
    let message = format!(
        "the mesh configuration has no ext_authz provider {name:?} whose service and port exist, so what the policy matches \
         is denied"
    );
    Verdict::no("ResolvedRefs", "ProviderNotFound", message)
}

fn programmed(policy: &ObjectName, kind: Kind, attached: &Attached<'_>) -> Verdict {
    let mut refused = Vec::new();
    let mut waiting = Vec::new();
    let mut proxies = 0;
    for (workload, sessions) in &attached.workloads {
        for session in sessions {
            proxies += 1;
            let mut nacks =
                session.nacks().filter(|(_, nack)| implicated(nack, policy, kind, attached.action));
            if let Some((resource, nack)) = nacks.next() {
                refused.push(format!(
                    "{}/{} refused {}: {}",
                    workload.namespace,
                    workload.name,
                    resource.short(),
                    nack.error
                ));
            } else if !session.synced {
                waiting.push(format!("{}/{}", workload.namespace, workload.name));
            }
        }
    }
    if !refused.is_empty() {
        Verdict::no("Programmed", "Rejected", some_of(&refused, "; "))
    } else if !waiting.is_empty() {
        Verdict::no("Programmed", "Pending", format!("waiting for {}", some_of(&waiting, ", ")))
    } else {
        Verdict::yes("Programmed", format!("{proxies} connected proxies"))
    }
}

fn enforced(programmed: &Verdict, attached: &Attached<'_>) -> Verdict {
    let bare: Vec<String> = attached
        .workloads
        .iter()
        .filter(|(_, sessions)| sessions.is_empty())
        .map(|(workload, _)| format!("{}/{}", workload.namespace, workload.name))
        .collect();
    if attached.dry_run {
        Verdict::no("Enforced", "DryRun", "evaluated and counted only".to_owned())
    } else if attached.workloads.is_empty() {
        Verdict::no("Enforced", "SelectsNothing", "no registered workload is selected".to_owned())
    } else if programmed.status != "True" {
        Verdict::no("Enforced", programmed.reason, programmed.message.clone())
    } else if !bare.is_empty() {
        Verdict::no("Enforced", "NoProxy", format!("no proxy is connected for {}", some_of(&bare, ", ")))
    } else {
        Verdict::yes("Enforced", format!("{} workloads", attached.workloads.len()))
    }
}

/// Whether a refusal is about this policy: the proxy's words name it, or else the refused slot is of its kind.
fn implicated(nack: &Nack, policy: &ObjectName, kind: Kind, action: Option<&Action>) -> bool {
    let named = |kind: &str| format!("ns[{}]-{kind}[{}]", policy.namespace, policy.name);
    if nack.error.contains("ns[") {
        let name =
            if kind == Kind::PeerAuthentication { named("peerauthentication") } else { named("policy") };
        return nack.error.contains(&name);
    }
    let slot = |name: &str| match (kind, action) {
        (Kind::RequestAuthentication, _) => name == "inbound.jwt_authn",
        (_, Some(Action::Allow)) => name == "inbound.rbac.allow",
        (_, Some(Action::Deny)) | (Kind::PeerAuthentication, _) => name == "inbound.rbac.deny",
        (_, Some(Action::Audit)) => name == "inbound.rbac.audit",
        (_, Some(Action::Custom { provider })) => name.strip_prefix("inbound.custom.").is_some_and(|rest| {
            rest.strip_suffix(".rbac").or_else(|| rest.strip_suffix(".ext_authz")) == Some(&**provider)
        }),
        _ => false,
    };
    nack.resource.as_deref().is_some_and(slot)
}

fn some_of(names: &[String], separator: &str) -> String {
    let shown = names.iter().take(NAMED).cloned().collect::<Vec<_>>().join(separator);
    match names.len().saturating_sub(NAMED) {
        0 => shown,
        more => format!("{shown} and {more} more"),
    }
}
