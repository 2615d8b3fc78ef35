//! `countersign test`: what policies are meant to decide, held to what they decide. Reads files, prints, asks no proxy; the
//! decisions are those of `authz explain`.

mod coverage;
mod file;
mod report;

use std::path::{Path, PathBuf};
use std::process::ExitCode;

use anyhow::{Context, Result, bail, ensure};
use policy::Explanation;
use policy::Verdict;

use crate::authz::World;
use crate::authz::question::Answer;
use crate::cli::{ERROR, FINDING};
use crate::output::{OutputArgs, print};
use coverage::Coverage;
use file::{Case, Expect};
use report::{CaseReport, FileReport, Report};

/// What the names of policy tests end with.
const SUFFIX: &str = ".policytest.yaml";
/// Folders within folders that are searched.
const DEPTH: usize = 16;

/// Run policy tests: requests, and what is to become of each
///
/// Exits with 0 if every expectation holds, 1 if one does not, and 2 if a test or a file it names cannot be read.
#[derive(Debug, clap::Args)]
#[command(after_help = "Examples:\n  \
    countersign test policies/\n  \
    countersign test orders.policytest.yaml -o json\n  \
    countersign test policies/ --require-coverage")]
pub(crate) struct TestArgs {
    /// Test files, and folders to search for *.policytest.yaml
    #[arg(value_name = "FILE|DIR", required = true)]
    files: Vec<PathBuf>,
    /// Fail if a rule of an AuthorizationPolicy decided no test
    #[arg(long)]
    require_coverage: bool,
    #[command(flatten)]
    output: OutputArgs,
}

pub(crate) fn run(args: &TestArgs) -> Result<ExitCode> {
    let mut files = Vec::new();
    for path in &args.files {
        search(path, DEPTH, &mut files)?;
    }
    ensure!(!files.is_empty(), "no *{SUFFIX} in {}", names(&args.files));
    let report = Report::of(files.iter().map(|file| test(file)).collect());
    print(args.output.output, &report, Report::text)?;
    let uncovered = args.require_coverage && report.files.iter().any(|file| !file.coverage.never.is_empty());
    Ok(match &report {
        report if report.files.iter().any(|file| file.error.is_some()) => ExitCode::from(ERROR),
        report if report.failed > 0 || uncovered => ExitCode::from(FINDING),
        _ => ExitCode::SUCCESS,
    })
}

fn names(paths: &[PathBuf]) -> String {
    paths.iter().map(|path| path.display().to_string()).collect::<Vec<_>>().join(", ")
}

/// A file that is named is a test, whatever its name; links to folders are not followed.
fn search(path: &Path, depth: usize, found: &mut Vec<PathBuf>) -> Result<()> {
    if !path.is_dir() {
        found.push(path.to_owned());
        return Ok(());
    }
    ensure!(depth > 0, "{}: too many folders within folders", path.display());
    let entries = std::fs::read_dir(path).with_context(|| path.display().to_string())?;
    let mut entries = entries.collect::<Result<Vec<_>, _>>().with_context(|| path.display().to_string())?;
    entries.sort_by_key(std::fs::DirEntry::file_name);
    for entry in entries {
        let (kind, path) = (entry.file_type()?, entry.path());
        if kind.is_dir() {
            search(&path, depth - 1, found)?;
        } else if path.to_string_lossy().ends_with(SUFFIX) {
            found.push(path);
        }
    }
    Ok(())
}

fn test(path: &Path) -> FileReport {
    let name = path.display().to_string();
    match cases(path) {
        Ok((cases, coverage)) => FileReport { file: name, cases, coverage, error: None },
        Err(error) => FileReport {
            file: name,
            cases: Vec::new(),
            coverage: Coverage::default(),
            error: Some(format!("{error:#}")),
        },
    }
}

fn cases(path: &Path) -> Result<(Vec<CaseReport>, Coverage)> {
    let (mut world, cases) = file::read(path)?;
    let mut coverage = Coverage::of(&world);
    let mut reports = Vec::new();
    for (index, case) in cases.iter().enumerate() {
        let answers = ask(&mut world, case).with_context(|| case.title(index))?;
        for answer in &answers {
            coverage.decided(&answer.explanation);
        }
        reports.push(judge(case, index, &answers));
    }
    Ok((reports, coverage))
}

fn ask(world: &mut World, case: &Case) -> Result<Vec<Answer>> {
    let caller = world.caller(&case.from)?;
    let callee = world.callee(&case.to, &[])?;
    let answers = world.ask(&caller, &callee, &case.request)?;
    if answers.is_empty() {
        bail!("nothing is called");
    }
    Ok(answers)
}

/// Every workload that may get the request is to decide as expected.
fn judge(case: &Case, index: usize, answers: &[Answer]) -> CaseReport {
    let wrong = answers.iter().find_map(|answer| Some((answer, wrong(case, &answer.explanation)?)));
    let (answer, failure) = match wrong {
        Some((answer, failure)) => (answer, Some(failure)),
        None => (&answers[0], None),
    };
    let explanation = &answer.explanation;
    CaseReport {
        name: case.title(index),
        passed: failure.is_none(),
        expected: case.expect.to_string(),
        verdict: explanation.verdict,
        status: explanation.status,
        by: decided_by(explanation),
        reason: explanation.reason.clone(),
        failure,
    }
}

/// The rule or policy, else the stage.
fn decided_by(explanation: &Explanation) -> String {
    explanation.by.as_ref().map_or_else(|| explanation.stage.to_string(), ToString::to_string)
}

/// What is not as expected.
fn wrong(case: &Case, explanation: &Explanation) -> Option<String> {
    let Explanation { verdict, status, .. } = explanation;
    let as_expected = match &case.expect {
        Expect::Allow => *verdict == Verdict::Allow,
        Expect::Deny => *verdict == Verdict::Deny,
        Expect::Closed => *verdict == Verdict::Deny && status.is_none(),
        Expect::Status(wanted) => *status == Some(*wanted),
    };
    if !as_expected {
        let got = match (verdict, status) {
            (Verdict::Allow, _) => "allow".to_owned(),
            (Verdict::Deny, Some(status)) => format!("deny ({status})"),
            (Verdict::Deny, None) => "deny (closed)".to_owned(),
        };
        return Some(format!("expected {}, got {got}", case.expect));
    }
    if let Some(by) = case.by.as_ref().filter(|by| !is_by(explanation, by)) {
        return Some(format!("expected by {by}, got by {}", decided_by(explanation)));
    }
    let wanted = case.if_enforced?;
    let shadow = explanation.dry_run.as_ref().map_or(*verdict, |shadow| shadow.if_enforced.verdict);
    (shadow != wanted).then(|| {
        let word = |verdict| if verdict == Verdict::Allow { "allow" } else { "deny" };
        format!("expected {} once the dry runs are enforced, got {}", word(wanted), word(shadow))
    })
}

/// `by` is a stage, a policy, or a policy with the index of the rule.
fn is_by(explanation: &Explanation, by: &str) -> bool {
    by == explanation.stage.to_string()
        || explanation.by.as_ref().is_some_and(|decided| {
            by == decided.to_string() || by == format!("{}/{}", decided.namespace, decided.name)
        })
}

#[cfg(test)]
mod tests;
