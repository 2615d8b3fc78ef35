//! From receipts to conditions: pure, and the same for `/status` and for the Kubernetes API. The reasons are part of the
//! interface; the messages are for people.

use std::time::SystemTime;

use crds::{Kind, ObjectRef};
use mesh::Workload;
use policy::{Action, Attachment, ObjectName};

use crate::status::timestamp;

use super::facts::Fact;
use super::progress::EVERY;
use super::rows::{PolicyRow, ProxyRow, Refusal};

/// At most so many names in a message.
const NAMED: usize = 5;
/// At most so many characters of a proxy's words in a message.
const WORDS: usize = 300;

/// A condition without its times.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Verdict {
    /// `type` of the condition.
    pub kind: &'static str,
    /// `True`, `False` or `Unknown`.
    pub status: &'static str,
    pub reason: &'static str,
    pub message: String,
}

impl Verdict {
    pub(crate) fn yes(kind: &'static str, message: String) -> Self {
        Self { kind, status: "True", reason: kind, message }
    }

    pub(crate) fn no(kind: &'static str, reason: &'static str, message: String) -> Self {
        Self { kind, status: "False", reason, message }
    }
}

/// A workload that the policy selects, and what is known of its proxy.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Target<'a> {
    pub(crate) workload: &'a Workload,
    pub(crate) seen: Seen<'a>,
}

/// Where a workload's proxy was heard of last.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Seen<'a> {
    Nowhere,
    At {
        proxy: &'a ProxyRow,
        /// What the replica that serves it publishes of the policy, if anything.
        policy: Option<&'a PolicyRow>,
    },
    /// By a replica that cannot be reached now, or possibly so.
    Lost {
        replica: &'a str,
    },
}

/// How far one proxy is with one policy.
#[derive(Clone, Debug, PartialEq, Eq)]
enum State<'a> {
    NoProxy,
    Lost(&'a str),
    Pending(Option<&'a Refusal>),
    Rejected(&'a Refusal),
    Draining,
    Enforced,
}

/// The conditions of a policy for which `targets` are all that it selects, sorted by type.
pub(crate) fn evaluate(fact: &Fact, targets: &[Target<'_>]) -> Vec<Verdict> {
    let tally = Tally::of(fact, targets);
    let mut verdicts = vec![fact.accepted.clone(), tally.conflicted(fact), tally.programmed()];
    verdicts.push(tally.enforced(fact, &verdicts[2]));
    verdicts.extend(fact.resolved.clone());
    verdicts.sort_by_key(|verdict| verdict.kind);
    verdicts
}

/// Names of workloads by what they are in.
#[derive(Debug, Default)]
struct Tally<'a> {
    total: usize,
    enforced: usize,
    /// Connected to a replica that can be asked.
    proxies: usize,
    bare: Vec<String>,
    lost: Vec<String>,
    replicas: Vec<&'a str>,
    waiting: Vec<String>,
    rejected: Vec<String>,
    draining: Vec<String>,
    /// Another policy counts there instead, by name.
    beaten: Vec<(String, &'a ObjectName)>,
}

impl<'a> Tally<'a> {
    fn of(fact: &'a Fact, targets: &[Target<'a>]) -> Self {
        let mut tally = Self { total: targets.len(), ..Self::default() };
        for target in targets {
            let name = || format!("{}/{}", target.workload.namespace, target.workload.name);
            let state = state(fact, target);
            tally.proxies += usize::from(!matches!(state, State::NoProxy | State::Lost(_)));
            let beaten = fact.older.iter().find(|(_, attachment)| {
                attachment.selects(
                    &fact.object.id.namespace,
                    &target.workload.namespace,
                    &target.workload.labels,
                )
            });
            match &state {
                State::Lost(replica) => {
                    tally.lost.push(name());
                    if !tally.replicas.contains(replica) {
                        tally.replicas.push(replica);
                    }
                }
                State::NoProxy => tally.bare.push(name()),
                State::Pending(None) => tally.waiting.push(name()),
                State::Pending(Some(refusal)) => {
                    tally.waiting.push(format!("{} ({})", name(), words(refusal)));
                }
                State::Rejected(refusal) => tally.rejected.push(format!("{} {}", name(), words(refusal))),
                State::Draining => tally.draining.push(name()),
                State::Enforced if beaten.is_none() => tally.enforced += 1,
                State::Enforced => {}
            }
            tally.beaten.extend(beaten.map(|(by, _)| (name(), by)));
        }
        tally
    }

    fn conflicted(&self, fact: &Fact) -> Verdict {
        let yes = |reason, message| Verdict { kind: "Conflicted", status: "True", reason, message };
        if fact.object.kind == Kind::PeerAuthentication && fact.attachment.is_none() && fact.mesh_wide {
            let message = "a PeerAuthentication with a selector in the root namespace applies to nobody";
            return yes("SelectorInRootNamespace", message.to_owned());
        }
        // Of two that cover a whole namespace the younger one has no effect, whoever is there.
        if let (Some(Attachment::Namespace), Some((by, _))) = (&fact.attachment, fact.older.iter().next()) {
            return yes(
                "OlderPolicyWins",
                format!("the older PeerAuthentication {by} covers the same namespace"),
            );
        }
        if let Some((_, by)) = self.beaten.first() {
            let names: Vec<String> = self.beaten.iter().map(|(name, _)| name.clone()).collect();
            let message = format!("the older PeerAuthentication {by} applies to {}", some_of(&names, ", "));
            return yes("OlderPolicyWins", message);
        }
        Verdict::no("Conflicted", "NoConflict", String::new())
    }

    fn programmed(&self) -> Verdict {
        let kind = "Programmed";
        if !self.lost.is_empty() {
            return self.unknown(kind);
        }
        let missing = self.rejected.len() + self.waiting.len();
        let count = format!("{}/{}", self.proxies - missing, self.proxies);
        if !self.rejected.is_empty() {
            Verdict::no(kind, "Rejected", format!("{count} proxies; {}", some_of(&self.rejected, "; ")))
        } else if !self.waiting.is_empty() {
            let waiting = some_of(&self.waiting, ", ");
            Verdict::no(kind, "Pending", format!("{count} proxies; waiting for {waiting}"))
        } else {
            Verdict::yes(kind, format!("{count} proxies"))
        }
    }

    fn enforced(&self, fact: &Fact, programmed: &Verdict) -> Verdict {
        let kind = "Enforced";
        let count = format!("{}/{}", self.enforced, self.total);
        let no = |reason, message: &str| Verdict::no(kind, reason, format!("{count}; {message}"));
        if fact.accepted.status != "True" {
            let message = match fact.accepted.reason {
                "LastGoodVersionKept" => {
                    "this version cannot be understood; the last good one stays in force"
                }
                _ => "what could not be understood is read as closed",
            };
            return Verdict::no(kind, fact.accepted.reason, message.to_owned());
        }
        if fact.dry_run {
            return Verdict::no(kind, "DryRun", "evaluated and counted only".to_owned());
        }
        if self.total == 0 {
            return no("NoTargets", "no registered workload is selected");
        }
        if !self.lost.is_empty() {
            return self.unknown(kind);
        }
        if !self.beaten.is_empty() {
            let names: Vec<String> = self.beaten.iter().map(|(name, _)| name.clone()).collect();
            return no("Conflicted", &format!("an older policy applies to {}", some_of(&names, ", ")));
        }
        if programmed.status != "True" {
            let message = programmed.message.split_once("; ").map_or("", |(_, rest)| rest);
            return no(programmed.reason, message);
        }
        if !self.bare.is_empty() {
            return no("NoProxy", &format!("no proxy is connected for {}", some_of(&self.bare, ", ")));
        }
        if !self.draining.is_empty() {
            let names = some_of(&self.draining, ", ");
            return no("Draining", &format!("connections from before the change may still live at {names}"));
        }
        Verdict::yes(kind, format!("{count} workloads"))
    }

    /// Without a count, which would be too small.
    fn unknown(&self, kind: &'static str) -> Verdict {
        let replicas: Vec<String> = self.replicas.iter().map(ToString::to_string).collect();
        let message = format!(
            "controller replica {} cannot be reached; last seen there, or not seen since: {}",
            some_of(&replicas, ", "),
            some_of(&self.lost, ", ")
        );
        Verdict { kind, status: "Unknown", reason: "ReplicaUnreachable", message }
    }
}

fn state<'a>(fact: &Fact, target: &Target<'a>) -> State<'a> {
    let (proxy, policy) = match target.seen {
        Seen::Nowhere => return State::NoProxy,
        Seen::Lost { replica } => return State::Lost(replica),
        Seen::At { proxy, policy } => (proxy, policy),
    };
    let refusal = || proxy.refusals.first();
    // Its replica has not heard of this version yet, or of a newer one already.
    let Some(policy) = policy.filter(|row| row.is(fact.version.as_ref())) else {
        return State::Pending(None);
    };
    let Some(commit) = policy.commits.last() else { return State::Pending(None) };
    let needed = *commit.max(&proxy.concerned);
    if proxy.behind.is_some_and(|behind| behind <= needed) {
        let ours =
            proxy.refusals.iter().find(|refusal| implicated(refusal, &fact.object, fact.action.as_ref()));
        return ours.map_or_else(|| State::Pending(refusal()), State::Rejected);
    }
    let drains = |drained: &u64| *drained == EVERY || policy.commits.contains(drained);
    if proxy.draining.iter().any(drains) { State::Draining } else { State::Enforced }
}

/// Whether a refusal is about this policy: the proxy's words name it, or else the refused slot is of its kind.
fn implicated(refusal: &Refusal, object: &ObjectRef, action: Option<&Action>) -> bool {
    let ObjectRef { kind, id } = object;
    let named = |kind: &str| format!("ns[{}]-{kind}[{}]", id.namespace, id.name);
    if refusal.error.contains("ns[") {
        let peer = *kind == Kind::PeerAuthentication;
        return refusal.error.contains(&named(if peer { "peerauthentication" } else { "policy" }));
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
    refusal.resource.as_deref().is_some_and(slot)
}

fn words(refusal: &Refusal) -> String {
    let Refusal { kind, resource, error, since } = refusal;
    let resource = resource.as_deref().map(|name| format!(" {name}")).unwrap_or_default();
    let error: String = error.chars().take(WORDS).collect();
    format!("refuses {}{resource} since {}: {error}", kind.short(), timestamp(to_second(*since)))
}

fn to_second(at: SystemTime) -> SystemTime {
    let since = at.duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
    SystemTime::UNIX_EPOCH + std::time::Duration::from_secs(since.as_secs())
}

fn some_of(names: &[String], separator: &str) -> String {
    let shown = names.iter().take(NAMED).cloned().collect::<Vec<_>>().join(separator);
    match names.len().saturating_sub(NAMED) {
        0 => shown,
        more => format!("{shown} and {more} more"),
    }
}

#[cfg(test)]
mod tests;
