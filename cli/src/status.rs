//! `countersign status`: objects and their conditions, as the control plane sees them.

use std::process::ExitCode;

use controller::Report;
use controller::status::{Condition, FindingStatus, ObjectStatus, UnimplementedStatus};

use crate::cli::FINDING;
use crate::monitoring::MonitoringArgs;
use crate::output::{OutputArgs, Table, print, printable};

/// Show what the control plane knows: objects, what is wrong with them, and whether they are enforced
///
/// Exits with 1 if it is not ready, or an object could not be read, or a proxy refused something.
#[derive(Debug, clap::Args)]
#[command(after_help = "Examples:\n  countersign status\n  countersign status -n shop --policies\n  \
                        countersign status -o json | jq '.objects[] | select(.kind == \"AuthorizationPolicy\")'")]
pub(crate) struct StatusArgs {
    /// Only objects of this namespace
    #[arg(short, long)]
    namespace: Option<String>,
    /// Only policies
    #[arg(long)]
    policies: bool,
    #[command(flatten)]
    monitoring: MonitoringArgs,
    #[command(flatten)]
    output: OutputArgs,
}

pub(crate) async fn run(args: &StatusArgs) -> anyhow::Result<ExitCode> {
    let mut report = merged(args.monitoring.target().await?.reports().await?);
    report.objects.retain(|object| {
        args.namespace.as_ref().is_none_or(|ns| object.namespace == *ns)
            && (!args.policies || is_policy(object))
    });
    print(args.output.output, &report, table)?;
    Ok(if wants_attention(&report) { ExitCode::from(FINDING) } else { ExitCode::SUCCESS })
}

/// What several replicas say as one: ready when all are, and of each condition the worst.
fn merged(reports: Vec<(Option<String>, Report)>) -> Report {
    let mut reports = reports.into_iter().map(|(replica, mut report)| {
        if let Some(replica) = replica {
            report.reasons.iter_mut().for_each(|reason| *reason = format!("{replica}: {reason}"));
        }
        report
    });
    let mut all = reports.next().expect("somebody answered, or that would be the error");
    for report in reports {
        let Report {
            ready,
            reasons,
            generation,
            mesh: _,
            objects,
            unreadable,
            // The same on all: they watch the same API server.
            unimplemented: _,
            proxies,
            failures,
        } = report;
        all.ready &= ready;
        all.reasons.extend(reasons);
        all.generation = all.generation.max(generation);
        all.proxies.extend(proxies);
        all.failures.extend(failures.into_iter().filter(|f| !all.failures.contains(f)).collect::<Vec<_>>());
        all.unreadable
            .extend(unreadable.into_iter().filter(|u| !all.unreadable.contains(u)).collect::<Vec<_>>());
        for object in objects {
            let same = |known: &&mut ObjectStatus| {
                (&known.kind, &known.namespace, &known.name)
                    == (&object.kind, &object.namespace, &object.name)
            };
            match all.objects.iter_mut().find(same) {
                Some(known) => worst(&mut known.conditions, object.conditions),
                None => all.objects.push(object),
            }
        }
    }
    all
}

fn worst(known: &mut Vec<Condition>, others: Vec<Condition>) {
    let rank = |condition: &Condition| match &*condition.status {
        "False" => 0,
        "True" => 2,
        _ => 1,
    };
    for other in others {
        match known.iter_mut().find(|condition| condition.kind == other.kind) {
            Some(condition) if rank(&other) < rank(condition) => *condition = other,
            Some(_) => {}
            None => known.push(other),
        }
    }
}

fn is_policy(object: &ObjectStatus) -> bool {
    object.conditions.iter().any(|condition| condition.kind == "Enforced")
}

fn wants_attention(report: &Report) -> bool {
    let not_accepted = |condition: &Condition| condition.kind == "Accepted" && condition.status != "True";
    let rejected = |condition: &Condition| condition.reason == "Rejected";
    !report.ready
        || !report.unreadable.is_empty()
        || !report.failures.is_empty()
        || report.objects.iter().flat_map(|object| &object.conditions).any(|c| not_accepted(c) || rejected(c))
}

fn table(report: &Report) -> String {
    let mut text = match report.ready {
        true => format!("ready, generation {}\n", report.generation),
        false => format!("NOT READY, generation {}\n", report.generation),
    };
    for reason in &report.reasons {
        text += &format!("  - {reason}\n");
    }
    for failure in &report.failures {
        text += &format!("  - a bug: {}: {}\n", failure.subject, failure.error);
    }
    for UnimplementedStatus { group, kind, count, names, error } in &report.unimplemented {
        let detail = error.clone().unwrap_or_else(|| names.join(", "));
        text += &format!("  - {kind} ({group}) has no effect here; found {count}: {}\n", printable(&detail));
    }
    let mut table = Table::new(&["KIND", "NAMESPACE", "NAME", "ACCEPTED", "ENFORCED", "ORIGIN"]);
    for object in &report.objects {
        let state = |kind: &str| {
            let condition = object.conditions.iter().find(|condition| condition.kind == kind);
            condition.map_or_else(
                || "-".to_owned(),
                |condition| match &*condition.status {
                    "True" => "yes".to_owned(),
                    _ => condition.reason.clone(),
                },
            )
        };
        table.row([
            object.kind.clone(),
            object.namespace.clone(),
            object.name.clone(),
            state("Accepted"),
            state("Enforced"),
            object.origin.clone(),
        ]);
    }
    text += &format!("\n{table}");
    text + &findings(report)
}

/// One line for each finding.
fn findings(report: &Report) -> String {
    let unreadable = report.unreadable.iter().map(|unreadable| line(&unreadable.origin, &unreadable.finding));
    let of = |object: &ObjectStatus| -> Vec<String> {
        object.findings.iter().map(|finding| line(&object.origin, finding)).collect()
    };
    let lines: Vec<String> = unreadable.chain(report.objects.iter().flat_map(of)).collect();
    if lines.is_empty() { String::new() } else { format!("\n{}\n", lines.join("\n")) }
}

/// A finding as compilers print it: `FILE:LINE:COLUMN: severity: field: message`.
pub(crate) fn line(origin: &str, finding: &FindingStatus) -> String {
    let file = origin.rsplit_once(':').map_or(origin, |(file, _)| file);
    let place = match (finding.line, finding.column) {
        (Some(line), Some(column)) => format!("{file}:{line}:{column}"),
        (Some(line), None) => format!("{file}:{line}"),
        _ => origin.to_owned(),
    };
    let field = if finding.field.is_empty() { String::new() } else { format!("{}: ", finding.field) };
    printable(&format!("{place}: {}: {field}{}", finding.severity, finding.message))
}
