//! `countersign join-token`: one-time secrets with which an agent gets its first identity. The token is printed once, on
//! stdout and nowhere else; its file holds only a hash.

use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::str::FromStr;
use std::time::Duration;

use anyhow::{Context, Result};
use ca::{Storage, WorkloadName};
use serde::{Deserialize, Serialize};
use time::OffsetDateTime;
use time::format_description::well_known::Rfc3339;

use crate::output::{OutputArgs, Table, print};

/// Make and list one-time tokens with which agents join
#[derive(Debug, clap::Subcommand)]
pub(crate) enum JoinToken {
    Create(CreateArgs),
    List(ListArgs),
}

/// Make a token for a workload and print it
///
/// The agent that presents it becomes the agent of that workload; the workload's identity is the service account that
/// its Pod or WorkloadEntry names.
#[derive(Debug, clap::Args)]
#[command(after_help = "Examples:\n  \
    countersign join-token create --state ./state --workload shop/orders > orders.token\n  \
    countersign join-token create --state ./state --workload shop/orders --ttl 1h")]
pub(crate) struct CreateArgs {
    /// State folder of the control plane
    #[arg(long, env = "COUNTERSIGN_STATE", value_name = "DIR")]
    state: PathBuf,
    /// The workload the agent is for
    #[arg(long, value_name = "NAMESPACE/NAME", value_parser = WorkloadName::from_str)]
    workload: WorkloadName,
    /// How long the token can be used; at most 7 days
    #[arg(long, default_value = "10m", value_parser = crate::duration::parse)]
    ttl: Duration,
}

/// List tokens: whom they are for, until when, and whether they were used. Never the tokens
#[derive(Debug, clap::Args)]
#[command(after_help = "Examples:\n  countersign join-token list --state ./state\n  \
                        countersign join-token list --state ./state -o json")]
pub(crate) struct ListArgs {
    /// State folder of the control plane
    #[arg(long, env = "COUNTERSIGN_STATE", value_name = "DIR")]
    state: PathBuf,
    #[command(flatten)]
    output: OutputArgs,
}

pub(crate) fn run(command: JoinToken) -> Result<ExitCode> {
    match command {
        JoinToken::Create(args) => create(&args),
        JoinToken::List(args) => list(&args),
    }
}

fn create(args: &CreateArgs) -> Result<ExitCode> {
    let ttl = time::Duration::try_from(args.ttl).context("--ttl")?;
    let tokens = Storage::open(&args.state)?.join_tokens();
    let token = tokens.create(&args.workload, ttl, OffsetDateTime::now_utc())?;
    let line = zeroize::Zeroizing::new(format!("{}\n", *token));
    crate::output::text(&line)?;
    Ok(ExitCode::SUCCESS)
}

/// A token's file (its name is the token's hash): `join-tokens/HASH`, or `join-tokens/used/HASH` once redeemed.
#[derive(Debug, Deserialize)]
struct Record {
    workload: WorkloadName,
    #[serde(with = "time::serde::rfc3339")]
    expires: OffsetDateTime,
}

/// One line of the list.
#[derive(Debug, PartialEq, Serialize)]
struct Line {
    workload: String,
    expires: String,
    state: &'static str,
}

fn list(args: &ListArgs) -> Result<ExitCode> {
    let lines = lines(&args.state.join("join-tokens"), OffsetDateTime::now_utc())?;
    print(args.output.output, &lines, |lines| {
        let mut table = Table::new(&["WORKLOAD", "EXPIRES", "STATE"]);
        for Line { workload, expires, state } in lines {
            table.row([workload.clone(), expires.clone(), (*state).to_owned()]);
        }
        table.to_string()
    })?;
    Ok(ExitCode::SUCCESS)
}

fn lines(dir: &Path, now: OffsetDateTime) -> Result<Vec<Line>> {
    let mut lines = Vec::new();
    for (dir, used) in [(dir.to_owned(), false), (dir.join("used"), true)] {
        for Record { workload, expires } in records(&dir)? {
            let state = match (used, expires <= now) {
                (true, _) => "used",
                (false, true) => "expired",
                (false, false) => "usable",
            };
            let expires = expires.format(&Rfc3339)?;
            lines.push(Line { workload: workload.to_string(), expires, state });
        }
    }
    lines.sort_by(|a, b| (&a.workload, &a.expires).cmp(&(&b.workload, &b.expires)));
    Ok(lines)
}

/// The records of a folder; none if there is no such folder, which comes with the first token.
fn records(dir: &Path) -> Result<Vec<Record>> {
    let entries = match std::fs::read_dir(dir) {
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(Vec::new()),
        entries => entries.with_context(|| dir.display().to_string())?,
    };
    let mut records = Vec::new();
    for entry in entries {
        let path = entry?.path();
        let is_token = path.is_file() && path.extension().is_none();
        if is_token && let Ok(text) = std::fs::read(&path) {
            match serde_json::from_slice(&text) {
                Ok(record) => records.push(record),
                Err(error) => tracing::warn!(path = %path.display(), %error, "not a token's file"),
            }
        }
    }
    Ok(records)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_list_names_everything_but_the_token() {
        let state = tempfile::tempdir().unwrap();
        let tokens = Storage::open(state.path()).unwrap().join_tokens();
        let now = OffsetDateTime::now_utc();
        let [a, b]: [WorkloadName; 2] = ["shop/a", "shop/b"].map(|name| name.parse().unwrap());
        let used = tokens.create(&a, time::Duration::HOUR, now).unwrap();
        let usable = tokens.create(&b, time::Duration::HOUR, now).unwrap();
        tokens.redeem(&used, &a, now).unwrap();
        let lines = lines(&state.path().join("join-tokens"), now).unwrap();
        let of: Vec<_> = lines.iter().map(|line| (&*line.workload, line.state)).collect();
        assert_eq!(of, [("shop/a", "used"), ("shop/b", "usable")]);
        let text = serde_json::to_string(&lines).unwrap();
        assert!(!text.contains(&**used) && !text.contains(&**usable));
        assert_eq!(super::lines(&state.path().join("nothing"), now).unwrap(), []);
    }
}
