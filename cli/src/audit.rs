//! `countersign audit`: work with audit trails; and how a process begins its own. Writing is `runtime::audit`'s.

use std::path::PathBuf;
use std::process::ExitCode;

use anyhow::Context;
use runtime::audit::{Hash, Options, Report, Trail};

use crate::cli::{ERROR, FINDING};
use crate::controller::AuditLog;
use crate::output::{self, OutputArgs, Table, printable};

/// Work with audit trails
#[derive(Debug, clap::Subcommand)]
pub(crate) enum Audit {
    /// Check that no line of an audit trail was changed, removed, moved or added
    ///
    /// Several files are one chain, the oldest first. The end of a trail can be cut off without breaking the chain: only
    /// --head shows that. Exits with 0 if the chain is whole, 1 if not, 2 if a file cannot be read.
    #[command(
        after_help = "Examples:\n  countersign audit verify audit.jsonl\n  countersign audit verify audit.jsonl.* audit.jsonl --head 5f7c…"
    )]
    Verify(VerifyArgs),
}

#[derive(Debug, clap::Args)]
pub(crate) struct VerifyArgs {
    /// Files of one trail, the oldest first
    #[arg(required = true, value_name = "FILE")]
    files: Vec<PathBuf>,
    /// Hash that the last line must have, as the log or an earlier call gave it
    #[arg(long, value_name = "HASH")]
    head: Option<Hash>,
    #[command(flatten)]
    output: OutputArgs,
}

/// Begins or continues the audit trail of this process.
///
/// # Errors
/// If the file cannot be written, or another process writes it.
pub(crate) fn open(log: &AuditLog) -> anyhow::Result<Trail> {
    let trail = match log {
        AuditLog::Off => Trail::disabled(),
        AuditLog::File(path) => Trail::open(path, Options::default())?,
    };
    trail.install();
    Ok(trail)
}

/// # Errors
/// If stdout cannot be written, or a file cannot be read.
pub(crate) fn run(command: Audit) -> anyhow::Result<ExitCode> {
    let Audit::Verify(VerifyArgs { files, head, output: OutputArgs { output } }) = command;
    let report = runtime::audit::verify(&files, head)
        .map_err(|(path, error)| anyhow::Error::new(error).context(path.display().to_string()));
    let report = report.context("cannot read the audit trail")?;
    output::print(output, &report, table)?;
    Ok(match (report.whole, report.files.iter().all(|file| file.lines > 0)) {
        (true, _) => ExitCode::SUCCESS,
        (false, true) => ExitCode::from(FINDING),
        // An empty file is no trail at all.
        (false, false) => ExitCode::from(ERROR),
    })
}

fn table(report: &Report) -> String {
    let Report { whole, files, faults, fault_count, after, head } = report;
    let mut table = Table::new(&["FILE", "LINES", "FIRST", "LAST", "FROM", "TO"]);
    let number = |seq: Option<u64>| seq.map_or_else(String::new, |seq| seq.to_string());
    for file in files {
        table.row([
            file.file.display().to_string(),
            file.lines.to_string(),
            number(file.first_seq),
            number(file.last_seq),
            file.from.clone().unwrap_or_default(),
            file.to.clone().unwrap_or_default(),
        ]);
    }
    let mut text = table.to_string();
    for fault in faults {
        text += &format!("{}\n", printable(&fault.to_string()));
    }
    if *fault_count > faults.len() {
        text += &format!("and {} more\n", fault_count - faults.len());
    }
    if let Some(after) = after {
        text += &format!("begins after the line with hash {after}, which was not given\n");
    }
    text += match whole {
        true => "whole",
        false => "BROKEN",
    };
    match head {
        Some(head) => text + &format!(", head {head}\n"),
        None => text + "\n",
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use runtime::audit::{Event, Options, Trail};

    use super::*;

    fn code(files: Vec<PathBuf>, head: Option<Hash>) -> String {
        let output = OutputArgs { output: output::Format::Json };
        format!("{:?}", run(Audit::Verify(VerifyArgs { files, head, output })).unwrap_or(ERROR.into()))
    }

    fn is(code: u8) -> String {
        format!("{:?}", ExitCode::from(code))
    }

    #[test]
    fn the_exit_code_tells() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("a.jsonl");
        let trail = Trail::open(&path, Options::default()).unwrap();
        trail.append(Event::SourceRestored {});
        assert!(trail.flush(Duration::from_secs(10)));
        let head = trail.head().unwrap().1;
        assert_eq!(code(vec![path.clone()], Some(head)), is(0));
        assert_eq!(code(vec![path.clone()], Some([7; 32].into())), is(FINDING));
        let text = std::fs::read_to_string(&path).unwrap();
        let changed = folder.path().join("b.jsonl");
        std::fs::write(&changed, text.replace("Restored", "restored")).unwrap();
        assert_eq!(code(vec![changed.clone()], None), is(FINDING));
        let report = runtime::audit::verify(&[changed], None).unwrap();
        assert!(table(&report).contains("b.jsonl:2: was changed"), "{}", table(&report));
        assert_eq!(code(vec![folder.path().join("absent")], None), is(ERROR));
        let empty = folder.path().join("empty");
        std::fs::write(&empty, "").unwrap();
        assert_eq!(code(vec![empty], None), is(ERROR));
    }
}
