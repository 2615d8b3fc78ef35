//! Puts the answer of `/status` together from the parts that know. Computes policy for nobody: selection here is only
//! for the conditions' messages.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::time::SystemTime;

use crds::{Kind, ObjectRef};
use mesh::Workload;
use policy::ObjectName;
use runtime::http::Reasons;

use crate::publish::Publisher;
use crate::receipts::{
    Fact, PolicyRow, ProxyRow, Receipts, Row, Seen, Target, Verdict, conditions_of_others, evaluate,
};
use crate::status::{
    Condition, FailureStatus, FindingStatus, Known, Mesh, ObjectStatus, Objects, Report, Sessions,
    UnreadableStatus, timestamp,
};
use crate::store::{Store, workload_name};

pub(crate) fn report(
    reasons: Reasons,
    publisher: &Publisher,
    objects: &mut Objects,
    sessions: &Sessions,
    receipts: &Receipts,
) -> Report {
    let store = &publisher.store;
    let unreadable = objects.unreadable.iter().map(|(origin, unreadable)| UnreadableStatus {
        origin: origin.clone(),
        finding: FindingStatus::from(&unreadable.finding),
        blocks_ready: unreadable.blocks_ready,
    });
    let unreadable = unreadable.collect();
    let (facts, rows) = (receipts.all_facts(), receipts.book.all());
    let here = Here::of(rows.iter().map(|row| &**row));
    let mut statuses = Vec::with_capacity(objects.known.len());
    for (object, known) in &mut objects.known {
        let verdicts = match facts.get(object) {
            Some(fact) => evaluate(fact, &here.targets(fact, store)),
            None => conditions_of_others(object, known, store)
                .into_iter()
                .chain(log_providers(object, store))
                .collect(),
        };
        statuses.push(ObjectStatus {
            kind: object.kind.as_str().to_owned(),
            namespace: object.id.namespace.to_string(),
            name: object.id.name.to_string(),
            origin: known.origin.clone(),
            findings: known.findings.iter().map(FindingStatus::from).collect(),
            conditions: verdicts.into_iter().map(|verdict| condition(verdict, known)).collect(),
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
        unimplemented: objects.unimplemented.values().map(Into::into).collect(),
        proxies: sessions
            .iter()
            .map(|session| session.status(store.workload(&session.proxy.workload).is_some()))
            .collect(),
        failures: failures.map(failure).collect(),
    }
}

/// Whether the places exist that a Telemetry names; one that does not is as if it was not named.
fn log_providers(object: &ObjectRef, store: &Store) -> Option<Verdict> {
    let telemetry = (object.kind == Kind::Telemetry).then(|| store.telemetry(&object.id)).flatten()?;
    let names = telemetry.access_logging.iter().flat_map(|entry| &entry.providers);
    let known = |name: &str| store.mesh.sink(name).is_some_and(|sink| store.reaches(&sink));
    let missing: BTreeSet<&str> = names.map(|name| &**name).filter(|name| !known(name)).collect();
    if missing.is_empty() {
        return Some(Verdict::yes("ResolvedRefs", String::new()));
    }
    let missing: Vec<&str> = missing.into_iter().collect();
    let message = format!(
        "the mesh configuration has no access log provider of these names whose service and port exist: {}; what names \
         only such has no effect",
        missing.join(", ")
    );
    Some(Verdict::no("ResolvedRefs", "ProviderNotFound", message))
}

fn condition(verdict: Verdict, known: &mut Known) -> Condition {
    let Verdict { kind, status, reason, message } = verdict;
    let now = SystemTime::now();
    let (before, since) = known.since.entry(kind).or_insert((status, now));
    if *before != status {
        (*before, *since) = (status, now);
    }
    Condition {
        kind: kind.to_owned(),
        status: status.to_owned(),
        reason: reason.to_owned(),
        message,
        observed_generation: known.version.as_ref().map(|version| version.generation),
        last_transition_time: timestamp(*since),
    }
}

/// What this replica itself says.
struct Here<'a> {
    policies: BTreeMap<&'a ObjectRef, &'a PolicyRow>,
    /// The newest connection of each workload.
    proxies: HashMap<&'a ObjectName, &'a ProxyRow>,
}

impl<'a> Here<'a> {
    fn of(rows: impl Iterator<Item = &'a Row>) -> Self {
        let mut here = Self { policies: BTreeMap::new(), proxies: HashMap::new() };
        for row in rows {
            match row {
                Row::Policy(row) => drop(here.policies.insert(&row.object, row)),
                Row::Proxy(row) => {
                    let newest = here.proxies.entry(&row.workload).or_insert(row);
                    if (row.connected, row.id) > (newest.connected, newest.id) {
                        *newest = row;
                    }
                }
            }
        }
        here
    }

    fn targets(&self, fact: &Fact, store: &'a Store) -> Vec<Target<'a>> {
        let Some(attachment) = &fact.attachment else { return Vec::new() };
        let policy = self.policies.get(&fact.object).copied();
        let seen = |workload: &'a Workload| match self.proxies.get(&workload_name(workload)) {
            Some(proxy) if proxy.serves(workload) => Seen::At { proxy, policy },
            _ => Seen::Nowhere,
        };
        store
            .workloads()
            .map(|workload| &**workload)
            .filter(|workload| fact.mesh_wide || workload.namespace == fact.object.id.namespace)
            .filter(|workload| {
                attachment.selects(&fact.object.id.namespace, &workload.namespace, &workload.labels)
            })
            .map(|workload| Target { workload, seen: seen(workload) })
            .collect()
    }
}
