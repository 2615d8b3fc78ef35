//! `countersign authz check`: the rules in force for a workload, in the order in which they are asked.

use anyhow::Result;
use mesh::Protocol;
use policy::{ActionRules, EffectivePolicy, JwtRule, MtlsMode, Presence};
use serde::Serialize;

use super::question::Alike;
use super::rules::{Cells, cells};
use super::world::WorldArgs;
use super::{Said, World};
use crate::output::{OutputArgs, Table, printable, render};

/// Show the rules in force for a workload: action, from, to, when, and the policy of each
#[derive(Debug, clap::Args)]
#[command(after_help = "Examples:\n  \
    countersign authz check shop/orders -f policies/\n  \
    countersign authz check shop/orders-5d8f9-x2x4k --kubeconfig ~/.kube/config\n  \
    countersign authz check shop/orders --labels app=orders -f policy.yaml -o json")]
pub(crate) struct CheckArgs {
    /// A workload, service or app
    #[arg(value_name = "NS/NAME")]
    workload: String,
    /// Labels of the workload, if nothing registers it
    #[arg(long, value_name = "KEY=VALUE,..", value_delimiter = ',')]
    labels: Vec<String>,
    #[command(flatten)]
    pub(super) world: WorldArgs,
    #[command(flatten)]
    output: OutputArgs,
}

/// The names of the fields are stable.
#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
struct Checked {
    workload: String,
    /// Workloads that are alike.
    workloads: usize,
    ports: Vec<Port>,
    mtls: Mtls,
    /// Issuers whose tokens are accepted; others are refused if there is any.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    tokens: Vec<Token>,
    /// In the order in which they are asked.
    rules: Vec<Row>,
    /// What becomes of what no rule matches: `ALLOW` or `DENY`.
    default: &'static str,
}

#[derive(Debug, Serialize)]
struct Port {
    port: u16,
    protocol: &'static str,
}

#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
struct Mtls {
    mode: MtlsMode,
    set_by: String,
    #[serde(skip_serializing_if = "std::collections::BTreeMap::is_empty")]
    ports: std::collections::BTreeMap<u16, MtlsMode>,
}

#[derive(Debug, Serialize)]
struct Token {
    issuer: String,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    audiences: Vec<String>,
    required: bool,
}

#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
struct Row {
    action: String,
    dry_run: bool,
    #[serde(flatten)]
    cells: Cells,
    namespace: String,
    policy: String,
    rule: usize,
}

pub(super) fn say(args: &CheckArgs, world: &mut World) -> Result<Said> {
    let callee = world.callee(&args.workload, &args.labels)?;
    let checked: Vec<Checked> = world.alike(&callee)?.iter().map(checked).collect();
    let text =
        render(args.output.output, &checked, |all| all.iter().map(text).collect::<Vec<_>>().join("\n"))?;
    Ok(Said { text, yes: true })
}

fn checked(alike: &Alike) -> Checked {
    let Alike { workload, count, policy, ports } = alike;
    let EffectivePolicy { mtls, jwt, custom, audit, deny, allow, drain: _ } = &**policy;
    let mut rows = Vec::new();
    for (provider, rules) in custom {
        add(&mut rows, &format!("CUSTOM {provider}"), rules);
    }
    for (action, rules) in [("AUDIT", audit), ("DENY", deny), ("ALLOW", allow)] {
        add(&mut rows, action, rules);
    }
    let protocol = |protocol| match protocol {
        Protocol::Http => "http",
        Protocol::Http2 => "http2",
        Protocol::Tcp => "tcp",
        Protocol::Auto => "auto",
    };
    let token = |rule: &JwtRule| Token {
        issuer: rule.issuer.clone(),
        audiences: rule.audiences.clone(),
        required: rule.presence == Presence::Required,
    };
    Checked {
        workload: format!("{}/{}", workload.namespace, workload.name),
        workloads: *count,
        ports: ports.iter().map(|p| Port { port: p.port, protocol: protocol(p.protocol) }).collect(),
        mtls: Mtls {
            mode: mtls.mode,
            set_by: mtls.set_by.as_ref().map_or("mesh default".to_owned(), ToString::to_string),
            ports: mtls.ports.clone(),
        },
        tokens: jwt.iter().map(token).collect(),
        rules: rows,
        default: if allow.enforced.is_some() { "DENY" } else { "ALLOW" },
    }
}

fn add(rows: &mut Vec<Row>, action: &str, rules: &ActionRules) {
    let ActionRules { enforced, shadow } = rules;
    for (rules, dry_run) in [(enforced, false), (shadow, true)] {
        rows.extend(rules.iter().flatten().map(|rule| Row {
            action: action.to_owned(),
            dry_run,
            cells: cells(rule),
            namespace: rule.policy.namespace.to_string(),
            policy: rule.policy.name.to_string(),
            rule: rule.index,
        }));
    }
}

fn text(checked: &Checked) -> String {
    let Checked { workload, workloads, ports, mtls, tokens, rules, default } = checked;
    let more = match workloads {
        1 => String::new(),
        all => format!(" and {} alike", all - 1),
    };
    let mut text = format!("{workload}{more}\n");
    let ports: Vec<String> = ports.iter().map(|p| format!("{} {}", p.port, p.protocol)).collect();
    let ports = if ports.is_empty() { "none is declared".to_owned() } else { ports.join(", ") };
    text += &format!("ports    {ports}\nmTLS     {} ({})", mode(mtls.mode), mtls.set_by);
    for (port, differing) in &mtls.ports {
        text += &format!(", port {port} {}", mode(*differing));
    }
    text.push('\n');
    for token in tokens {
        let issuer = if token.issuer.is_empty() { "any issuer" } else { &token.issuer };
        let required = if token.required { ", required" } else { "" };
        let audiences = match &token.audiences[..] {
            [] => String::new(),
            audiences => format!(" for {}", audiences.join(", ")),
        };
        text += &printable(&format!("tokens   {issuer}{audiences}{required}"));
        text.push('\n');
    }
    let mut table = Table::new(&["ACTION", "FROM", "TO", "WHEN", "POLICY"]);
    for row in rules {
        let Row { action, dry_run, cells: Cells { from, to, when }, namespace, policy, rule } = row;
        let action = if *dry_run { format!("{action} (dry run)") } else { action.clone() };
        let policy = format!("{namespace}/{policy}[{rule}]");
        table.row([action, from.clone(), to.clone(), when.clone(), policy]);
    }
    let last = ["anyone else", "anything else", "-", "(default)"].map(str::to_owned);
    table.row(std::iter::once((*default).to_owned()).chain(last));
    format!("{text}\n{table}")
}

fn mode(mode: MtlsMode) -> &'static str {
    match mode {
        MtlsMode::Disable => "DISABLE",
        MtlsMode::Permissive => "PERMISSIVE",
        MtlsMode::Strict => "STRICT",
    }
}
