//! `countersign proxy-status`: the connected proxies and what they acknowledged.

use std::process::ExitCode;

use controller::status::{ProxyStatus, TypeStatus};
use serde::Serialize;

use crate::cli::FINDING;
use crate::monitoring::MonitoringArgs;
use crate::output::{OutputArgs, Table, print};

/// Show the connected proxies: identity, version, and whether they have what is published
///
/// Exits with 1 if one of them is behind, refused something, or runs an Envoy with known policy bypasses.
#[derive(Debug, clap::Args)]
#[command(after_help = "Examples:\n  countersign proxy-status\n  countersign ps -n shop -o json\n  \
                        countersign ps --context prod    # every replica of that cluster, by port-forwarding")]
pub(crate) struct ProxyStatusArgs {
    /// Only proxies of this namespace
    #[arg(short, long)]
    namespace: Option<String>,
    #[command(flatten)]
    monitoring: MonitoringArgs,
    #[command(flatten)]
    output: OutputArgs,
}

/// A proxy, and the replica of the control plane that it is connected to.
#[derive(Debug, Serialize)]
struct Row {
    #[serde(skip_serializing_if = "Option::is_none")]
    replica: Option<String>,
    #[serde(flatten)]
    proxy: ProxyStatus,
}

pub(crate) async fn run(args: &ProxyStatusArgs) -> anyhow::Result<ExitCode> {
    let reports = args.monitoring.target().await?.reports().await?;
    let of = |(replica, report): (Option<String>, controller::Report)| {
        report.proxies.into_iter().map(move |proxy| Row { replica: replica.clone(), proxy })
    };
    let mut rows: Vec<Row> = reports.into_iter().flat_map(of).collect();
    rows.retain(|row| args.namespace.as_ref().is_none_or(|ns| row.proxy.namespace == *ns));
    print(args.output.output, &rows, |rows| table(rows))?;
    let fine = rows.iter().all(|Row { proxy, .. }| proxy.synced && proxy.warnings.is_empty());
    Ok(if fine { ExitCode::SUCCESS } else { ExitCode::from(FINDING) })
}

fn table(rows: &[Row]) -> String {
    let mut header = vec!["NAME", "CDS", "EDS", "ECDS", "LDS", "RDS", "ENVOY", "IDENTITY", "CONNECTED"];
    let replicas = rows.iter().any(|row| row.replica.is_some());
    header.extend(replicas.then_some("REPLICA"));
    let mut table = Table::new(&header);
    let mut notes = String::new();
    for Row { replica, proxy } in rows {
        let name = format!("{}.{}", proxy.name, proxy.namespace);
        let state = |kind: &str| {
            proxy.types.iter().find(|t| t.kind == kind).map_or("-", |t| state(proxy, t)).to_owned()
        };
        let cells = [
            name.clone(),
            state("cds"),
            state("eds"),
            state("ecds"),
            state("lds"),
            state("rds"),
            proxy.envoy_version.clone().unwrap_or_else(|| "?".to_owned()),
            proxy.identity.clone().unwrap_or_else(|| "none (plaintext)".to_owned()),
            proxy.connected.clone(),
        ];
        table.row(cells.into_iter().chain(replica.clone()));
        for rejected in proxy.types.iter().flat_map(|t| &t.rejected) {
            let what = rejected.resource.as_deref().unwrap_or("something");
            notes += &format!("{name}: refused {what}: {}\n", rejected.error);
        }
        for warning in &proxy.warnings {
            notes += &format!("{name}: {warning}\n");
        }
    }
    if notes.is_empty() { table.to_string() } else { format!("{table}\n{notes}") }
}

/// Istio's words for it (semantics §6.8). What a proxy in sync has not asked for it does not use.
fn state(proxy: &ProxyStatus, kind: &TypeStatus) -> &'static str {
    match kind.acked {
        _ if !kind.rejected.is_empty() => "ERROR",
        Some(acked) if acked >= kind.published => "SYNCED",
        Some(_) => "STALE",
        None if proxy.synced => "-",
        None => "NOT SENT",
    }
}
