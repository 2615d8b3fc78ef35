//! `countersign authz can` and `who-can`: yes or no, for one caller or for everybody who is known. Without a method and a
//! path the question is whether there is anything at all that the caller may do.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use anyhow::Result;
use mesh::Workload;
use policy::explain::By;
use policy::{ObjectName, Request, Verdict};
use serde::Serialize;

use super::args::RequestArgs;
use super::parties::{Callee, Caller, PLAINTEXT, app};
use super::question::{Alike, Described, Wire};
use super::rules::{cells, token};
use super::world::WorldArgs;
use super::{Said, World, witness};
use crate::output::{OutputArgs, Table, printable, render};

/// Callers that a cell names.
const NAMED: usize = 4;

/// Ask whether one may call another
///
/// Without METHOD and PATH: whether there is any request that it may send. Exits with 0 if it may, and 1 if not.
#[derive(Debug, clap::Args)]
#[command(after_help = "Examples:\n  \
    countersign authz can shop/payment shop/orders POST /orders/1 -f policies/\n  \
    countersign authz can plaintext shop/orders -f policies/\n  \
    countersign authz can spiffe://cluster.local/ns/web/sa/front shop/orders GET / --kubeconfig ~/.kube/config")]
pub(crate) struct CanArgs {
    /// The caller: a workload, service, app or service account, a SPIFFE ID, or `plaintext`
    #[arg(value_name = "SRC")]
    from: String,
    #[command(flatten)]
    pub(super) rest: Rest,
}

/// List who may call a workload: every known identity that may, and whether anybody may
///
/// Known are the service accounts of the workloads and the ServiceAccount objects. Without METHOD and PATH: who may send
/// any request at all, and which. Exits with 0 if somebody may, and 1 if nobody.
#[derive(Debug, clap::Args)]
#[command(after_help = "Examples:\n  \
    countersign authz who-can shop/orders -f policies/ -f workloads.yaml\n  \
    countersign authz who-can shop/orders DELETE /orders/1 --kubeconfig ~/.kube/config\n  \
    countersign authz who-can shop/orders -f policies/ -o json")]
pub(crate) struct WhoCanArgs {
    #[command(flatten)]
    pub(super) rest: Rest,
}

#[derive(Debug, clap::Args)]
pub(super) struct Rest {
    /// Who is called: a workload, service or app, as NS/NAME
    #[arg(value_name = "DST")]
    to: String,
    /// HTTP method
    #[arg(value_name = "METHOD", requires = "path")]
    method: Option<String>,
    /// Path as it is sent
    #[arg(value_name = "PATH")]
    path: Option<String>,
    /// Labels of the called workload, if nothing registers it
    #[arg(long, value_name = "KEY=VALUE,..", value_delimiter = ',')]
    labels: Vec<String>,
    #[command(flatten)]
    request: RequestArgs,
    #[command(flatten)]
    pub(super) world: WorldArgs,
    #[command(flatten)]
    output: OutputArgs,
}

impl Rest {
    fn described(&self) -> Result<Described> {
        self.request.described(self.method.as_deref(), self.path.as_deref())
    }
}

/// The names of the fields are stable.
#[derive(Debug, Serialize)]
pub(super) struct Can {
    pub(super) allowed: bool,
    to: String,
    /// `null`: plaintext.
    from: Option<String>,
    pub(super) reason: String,
    /// What it may do, where nothing particular was asked.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    may: Vec<May>,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    notes: Vec<String>,
}

/// One thing that somebody may do.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub(super) struct May {
    /// In the words of the rule.
    pub(super) what: String,
    pub(super) when: String,
    /// The rule; absent if no ALLOW policy applies.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) by: Option<By>,
}

/// Who is allowed.
#[derive(Clone, Debug, Serialize)]
#[serde(rename_all = "camelCase")]
pub(super) struct Who {
    pub(super) to: String,
    pub(super) class: Class,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) identity: Option<String>,
    /// Apps that run with it.
    #[serde(skip_serializing_if = "BTreeSet::is_empty")]
    workloads: BTreeSet<String>,
    pub(super) may: Vec<May>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub(super) enum Class {
    Known,
    /// Any identity of the mesh, also one that nobody has yet.
    AnyIdentity,
    /// Whoever can open a connection.
    Plaintext,
}

pub(super) fn say_can(args: &CanArgs, world: &mut World) -> Result<Said> {
    let CanArgs { from, rest } = args;
    let described = rest.described()?;
    let caller = world.caller(from)?;
    let callee = world.callee(&rest.to, &rest.labels)?;
    let answers = world.can(&caller, &callee, &described)?;
    let text = render(rest.output.output, &answers, |answers| answers.iter().map(line).collect())?;
    Ok(Said { text, yes: answers.iter().all(|answer| answer.allowed) })
}

pub(super) fn say_who_can(args: &WhoCanArgs, world: &mut World) -> Result<Said> {
    let WhoCanArgs { rest } = args;
    let described = rest.described()?;
    let callee = world.callee(&rest.to, &rest.labels)?;
    let all = world.who_can(&callee, &described)?;
    let text = render(rest.output.output, &all, |all| table(all))?;
    Ok(Said { text, yes: !all.is_empty() })
}

impl World {
    pub(super) fn can(
        &mut self,
        caller: &Caller,
        callee: &Callee,
        described: &Described,
    ) -> Result<Vec<Can>> {
        let answers = self.ask(caller, callee, described)?;
        if described.exact() {
            let can = |answer: super::question::Answer| Can {
                allowed: answer.explanation.verdict == Verdict::Allow,
                to: answer.to,
                from: answer.from,
                reason: answer.explanation.reason,
                may: Vec::new(),
                notes: answer.notes,
            };
            return Ok(answers.into_iter().map(can).collect());
        }
        let mut all = Vec::new();
        for (alike, answer) in self.alike(callee)?.iter().zip(answers) {
            let may = self.may(caller, callee, alike, described)?;
            let reason = match &may[..] {
                [] => format!("nothing that is tried is allowed; {}", answer.explanation.reason),
                may => may.iter().map(May::to_string).collect::<Vec<_>>().join("; "),
            };
            let notes = caller.notes.clone();
            all.push(Can { allowed: !may.is_empty(), to: answer.to, from: answer.from, reason, may, notes });
        }
        Ok(all)
    }

    pub(super) fn who_can(&mut self, callee: &Callee, described: &Described) -> Result<Vec<Who>> {
        let mut callers = vec![(Class::Plaintext, Caller::plaintext(), BTreeSet::new())];
        // A name that nobody has; only rules for any identity match it.
        let nobody = self.identity("countersign-nobody", "countersign-nobody")?;
        callers.push((Class::AnyIdentity, caller(nobody, None), BTreeSet::new()));
        for (account, workloads) in self.accounts() {
            let identity = self.identity(&account.namespace, &account.name)?;
            let names = workloads.iter().map(|w| format!("{}/{}", w.namespace, app(w))).collect();
            callers.push((Class::Known, caller(identity, workloads.first()), names));
        }
        let mut all = Vec::new();
        for alike in self.alike(callee)? {
            for (class, caller, workloads) in &callers {
                let may = self.may(caller, callee, &alike, described)?;
                if may.is_empty() {
                    continue;
                }
                let named = caller.identity.as_ref().filter(|_| *class == Class::Known);
                all.push(Who {
                    to: format!("{}/{}", alike.workload.namespace, alike.workload.name),
                    class: *class,
                    identity: named.map(|id| id.as_str().to_owned()),
                    workloads: workloads.clone(),
                    may,
                });
            }
        }
        Ok(all)
    }

    /// The workloads of every service account that is known.
    fn accounts(&self) -> BTreeMap<ObjectName, Vec<Arc<Workload>>> {
        let mut accounts: BTreeMap<ObjectName, Vec<Arc<Workload>>> = BTreeMap::new();
        for id in self.offline.service_accounts() {
            accounts.entry(id.clone()).or_default();
        }
        for workload in self.offline.workloads() {
            let account = ObjectName::new(workload.namespace.clone(), workload.service_account.clone());
            accounts.entry(account).or_default().push(workload);
        }
        accounts
    }

    /// What `caller` may do at these workloads: each rule that allows something, once.
    fn may(
        &self,
        caller: &Caller,
        callee: &Callee,
        alike: &Alike,
        described: &Described,
    ) -> Result<Vec<May>> {
        let mut all: Vec<May> = Vec::new();
        let mut ports: Vec<Option<u16>> = alike.ports.iter().map(|p| Some(p.port)).collect();
        ports.extend(named_ports(alike).map(Some));
        if described.port.is_some() || described.exact() || ports.is_empty() {
            ports = vec![described.port];
        }
        for port in ports {
            let described = Described { port, ..described.clone() };
            let base = self.described(caller, callee, alike, &described)?;
            let tried = match described.exact() {
                true => vec![base],
                false => witness::requests(&alike.policy, &base),
            };
            for request in tried {
                if let Some(may) = self.allowed(caller, alike, &request)
                    && !all.contains(&may)
                {
                    all.push(may);
                }
            }
        }
        Ok(all)
    }

    fn allowed(&self, caller: &Caller, alike: &Alike, request: &Request) -> Option<May> {
        let explanation = self.judge(caller, &alike.policy, request);
        if explanation.verdict == Verdict::Deny {
            return None;
        }
        let by = explanation.by;
        let rule = by.as_ref().and_then(|by| {
            let mut rules = alike.policy.allow.enforced.iter().flatten();
            rules.find(|r| {
                r.policy.namespace == by.namespace && r.policy.name == by.name && Some(r.index) == by.rule
            })
        });
        let (what, when) = rule.map_or(("anything that no rule denies".to_owned(), "-".to_owned()), |rule| {
            let cells = cells(rule);
            let when = match token(rule) {
                Some(token) if cells.when == "-" => token,
                Some(token) => format!("{token} and {}", cells.when),
                None => cells.when,
            };
            (cells.to, when)
        });
        Some(May { what, when, by })
    }
}

/// Ports that rules name; of undeclared ones nothing else is known.
fn named_ports(alike: &Alike) -> impl Iterator<Item = u16> {
    let rules = alike.policy.allow.enforced.iter().flatten();
    let atoms = rules.flat_map(|rule| rule.permissions.iter().flatten()).flat_map(|clause| &clause.any);
    let ports: BTreeSet<u16> = atoms
        .filter_map(|atom| match atom {
            policy::Atom::Port(port) if alike.ports.iter().all(|p| p.port != *port) => Some(*port),
            _ => None,
        })
        .collect();
    ports.into_iter()
}

fn caller(identity: spiffe::SpiffeId, workload: Option<&Arc<Workload>>) -> Caller {
    let address = workload.and_then(|w| w.addresses.first().copied());
    Caller { identity: Some(identity), address, notes: Vec::new() }
}

impl Described {
    /// One request is meant, not any.
    fn exact(&self) -> bool {
        self.method.is_some() || self.path.is_some() || self.protocol == Some(Wire::Tcp)
    }
}

impl std::fmt::Display for May {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let Self { what, when, by } = self;
        f.write_str(what)?;
        if when != "-" {
            write!(f, " when {when}")?;
        }
        by.as_ref().map_or(Ok(()), |by| write!(f, " by {by}"))
    }
}

fn line(can: &Can) -> String {
    let verdict = if can.allowed { "Allowed" } else { "Denied" };
    let from = can.from.as_deref().unwrap_or(PLAINTEXT);
    let mut line = printable(&format!("{verdict}: {from} -> {}: {}", can.to, can.reason)) + "\n";
    for note in &can.notes {
        line += &printable(&format!("note: {note}"));
        line.push('\n');
    }
    line
}

pub(super) fn table(all: &[Who]) -> String {
    if all.is_empty() {
        return "nobody\n".to_owned();
    }
    let several = all.iter().any(|who| who.to != all[0].to);
    let mut header = vec!["WHO", "WORKLOADS", "MAY", "WHEN", "BY"];
    header.extend(several.then_some("AT"));
    let mut table = Table::new(&header);
    for who in all {
        let name = match (who.class, &who.identity) {
            (Class::Plaintext, _) => "anybody, in plaintext".to_owned(),
            (Class::Known, Some(identity)) => identity.clone(),
            (Class::AnyIdentity | Class::Known, _) => "any identity of the mesh".to_owned(),
        };
        let mut workloads: Vec<&str> = who.workloads.iter().take(NAMED).map(String::as_str).collect();
        let more = format!("{} more", who.workloads.len().saturating_sub(NAMED));
        if who.workloads.len() > NAMED {
            workloads.push(&more);
        }
        let workloads = if workloads.is_empty() { "-".to_owned() } else { workloads.join(", ") };
        for (i, may) in who.may.iter().enumerate() {
            let first = |text: &str| if i == 0 { text.to_owned() } else { String::new() };
            let by = may.by.as_ref().map_or("-".to_owned(), By::to_string);
            let mut row = vec![first(&name), first(&workloads), may.what.clone(), may.when.clone(), by];
            row.extend(several.then(|| who.to.clone()));
            table.row(row);
        }
    }
    table.to_string()
}
