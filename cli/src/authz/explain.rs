//! `countersign authz explain`: the decision about one described request, stage by stage.

use anyhow::Result;
use policy::explain::{By, Outcome};
use policy::{Explanation, Verdict};

use super::args::RequestArgs;
use super::parties::PLAINTEXT;
use super::question::{Answer, Wire};
use super::world::WorldArgs;
use super::{Said, World};
use crate::output::{OutputArgs, Table, printable, render};

/// Explain the decision about a request: which policy and rule decides, and what would have had to be different
///
/// Tokens and certificates are taken to be genuine; external authorizers are named and taken to agree. Exits with 0 if
/// the request is allowed and 1 if it is denied, by any of the workloads it may reach.
#[derive(Debug, clap::Args)]
#[command(after_help = "Examples:\n  \
    countersign authz explain --from shop/payment --to shop/orders --method POST --path /orders/1 -f policies/\n  \
    countersign authz explain --from spiffe://cluster.local/ns/web/sa/front --to shop/orders --claim iss=https://login.example --claim sub=ann\n  \
    countersign authz explain --plaintext --to shop/orders --labels app=orders --port 8080 -f policy.yaml -o json")]
pub(crate) struct ExplainArgs {
    /// The caller: a workload, service, app or service account, or a SPIFFE ID
    #[arg(long, value_name = "NS/NAME|SPIFFE-ID", required_unless_present = "plaintext")]
    from: Option<String>,
    /// The caller has no certificate
    #[arg(long, conflicts_with = "from")]
    plaintext: bool,
    /// Who is called: a workload, service or app
    #[arg(long, value_name = "NS/NAME")]
    to: String,
    /// Labels of the called workload, if nothing registers it
    #[arg(long, value_name = "KEY=VALUE,..", value_delimiter = ',')]
    labels: Vec<String>,
    /// HTTP method [default: GET]
    #[arg(long, value_name = "METHOD")]
    method: Option<String>,
    /// Path as it is sent, with or without query [default: /]
    #[arg(long, value_name = "PATH")]
    path: Option<String>,
    #[command(flatten)]
    request: RequestArgs,
    #[command(flatten)]
    pub(super) world: WorldArgs,
    #[command(flatten)]
    output: OutputArgs,
}

pub(super) fn say(args: &ExplainArgs, world: &mut World) -> Result<Said> {
    let described = args.request.described(args.method.as_deref(), args.path.as_deref())?;
    let caller = world.caller(args.from.as_deref().unwrap_or(PLAINTEXT))?;
    let callee = world.callee(&args.to, &args.labels)?;
    let answers = world.ask(&caller, &callee, &described)?;
    let text = render(args.output.output, &answers, |answers| {
        answers.iter().map(text).collect::<Vec<_>>().join("\n")
    })?;
    Ok(Said { text, yes: answers.iter().all(|answer| answer.explanation.verdict == Verdict::Allow) })
}

/// The whole explanation, for people.
pub(super) fn text(answer: &Answer) -> String {
    let mut text = format!("{}\n", headline(answer));
    let explanation = &answer.explanation;
    text += &format!("  {}{}\n", printable(&explanation.reason), ending(explanation, answer.protocol));
    for note in &answer.notes {
        text += &format!("  note: {}\n", printable(note));
    }
    if let Some(nearest) = &explanation.nearest {
        let mut table = Table::new(&["FIELD", "WANTED", "HAD"]);
        for difference in &nearest.differs {
            let policy::explain::Difference { field, wanted, had } = difference;
            table.row([field.to_string(), wanted.clone(), had.clone()]);
        }
        text += &format!("\nThe closest ALLOW rule is {}; it differs in\n{}", nearest.rule, indent(&table));
    }
    let mut stages = Table::new(&["STAGE", "", "DETAIL"]);
    for step in &explanation.steps {
        let outcome = match step.outcome {
            Outcome::Passed => "passed",
            Outcome::Decided => "DECIDED",
            Outcome::NotReached => "-",
        };
        stages.row([step.stage.to_string(), outcome.to_owned(), step.detail.clone()]);
    }
    text += &format!("\nStages\n{}", indent(&stages));
    text + &audits(explanation) + &dry_run(explanation) + &policies(answer)
}

fn headline(answer: &Answer) -> String {
    let verdict = match answer.explanation.verdict {
        Verdict::Allow => "ALLOWED",
        Verdict::Deny => "DENIED",
    };
    let what = match (&answer.method, &answer.path) {
        (Some(method), Some(path)) => format!("{method} {path}"),
        _ => "TCP".to_owned(),
    };
    let more = match answer.workloads {
        1 => String::new(),
        all => format!(" and {} alike", all - 1),
    };
    let from = answer.from.as_deref().unwrap_or(PLAINTEXT);
    let Answer { to, port, .. } = answer;
    printable(&format!("{verdict}  {what} to {to}{more} port {port}, from {from}"))
}

/// What the caller sees of a denial.
fn ending(explanation: &Explanation, wire: Wire) -> String {
    match (explanation.verdict, explanation.status, wire) {
        (Verdict::Allow, _, _) => String::new(),
        (Verdict::Deny, Some(status), Wire::Http) => format!(" (HTTP {status})"),
        (Verdict::Deny, _, _) => " (the connection is closed)".to_owned(),
    }
}

fn audits(explanation: &Explanation) -> String {
    match &explanation.audited[..] {
        [] => String::new(),
        rules => format!("\nFlagged by {}\n", rules.iter().map(By::to_string).collect::<Vec<_>>().join(", ")),
    }
}

fn dry_run(explanation: &Explanation) -> String {
    let Some(shadow) = &explanation.dry_run else { return String::new() };
    let mut table = Table::new(&["DRY RUN", "ACTION", "RULE"]);
    for policy in &shadow.policies {
        let rule = policy.rule.map_or("none matches".to_owned(), |rule| format!("rule {rule} matches"));
        table.row([format!("{}/{}", policy.namespace, policy.name), policy.action.to_owned(), rule]);
    }
    let changes = if shadow.if_enforced.changes { "it would be different" } else { "nothing would change" };
    format!("\n{table}If enforced, {changes}: {}\n", printable(&shadow.if_enforced.reason))
}

fn policies(answer: &Answer) -> String {
    if answer.policies.is_empty() {
        return "\nNo policy applies to this workload\n".to_owned();
    }
    let mut table = Table::new(&["POLICY", "KIND", "ACTION", "APPLIES BY"]);
    for policy in &answer.policies {
        let selector = policy.selector.iter().map(|(k, v)| format!("{k}={v}")).collect::<Vec<_>>().join(",");
        let mut by = policy.reach.to_string();
        if !selector.is_empty() {
            by += &format!(" {selector}");
        }
        if let Some(older) = &policy.ignored_for {
            by += &format!("; ignored, {older} is older");
        }
        let action = policy.action.unwrap_or("-");
        let action = if policy.dry_run { format!("{action} (dry run)") } else { action.to_owned() };
        table.row([format!("{}/{}", policy.namespace, policy.name), policy.kind.to_owned(), action, by]);
    }
    format!("\n{table}")
}

fn indent(table: &Table) -> String {
    table.to_string().lines().map(|line| format!("  {line}\n")).collect()
}
