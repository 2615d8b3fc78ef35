//! What is printed of a test run. The names of the fields are stable.

use policy::Verdict;
use serde::Serialize;

use super::coverage::Coverage;
use crate::output::printable;

#[derive(Debug, Serialize)]
pub(super) struct Report {
    pub(super) passed: usize,
    pub(super) failed: usize,
    pub(super) files: Vec<FileReport>,
}

#[derive(Debug, Serialize)]
pub(super) struct FileReport {
    pub(super) file: String,
    pub(super) cases: Vec<CaseReport>,
    pub(super) coverage: Coverage,
    /// Why it could not be run.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) error: Option<String>,
}

#[derive(Debug, Serialize)]
pub(super) struct CaseReport {
    pub(super) name: String,
    pub(super) passed: bool,
    pub(super) expected: String,
    pub(super) verdict: Verdict,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) status: Option<u16>,
    /// `NAMESPACE/POLICY[RULE]`, or the stage that decided.
    pub(super) by: String,
    pub(super) reason: String,
    /// What is not as expected.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) failure: Option<String>,
}

impl Report {
    pub(super) fn of(files: Vec<FileReport>) -> Self {
        let count = |passed: bool| {
            files.iter().flat_map(|file| &file.cases).filter(|case| case.passed == passed).count()
        };
        Self { passed: count(true), failed: count(false), files }
    }

    pub(super) fn text(&self) -> String {
        let Self { passed, failed, files } = self;
        let mut text = String::new();
        for FileReport { file, cases, coverage, error } in files {
            text += &printable(file);
            text.push('\n');
            for case in cases {
                text += &case.text();
            }
            if let Some(error) = error {
                text += &format!("  ERROR {}\n", printable(error));
                continue;
            }
            let Coverage { rules, never } = coverage;
            text += &format!("  {} of {rules} rules decided a test", rules - never.len());
            if !never.is_empty() {
                let never: Vec<&str> = never.iter().map(String::as_str).collect();
                text += &printable(&format!("; never {}", never.join(", ")));
            }
            text.push('\n');
        }
        let errors = files.iter().filter(|file| file.error.is_some()).count();
        text += &format!("{passed} passed, {failed} failed");
        if errors > 0 {
            text += &format!(", {errors} could not be run");
        }
        text + "\n"
    }
}

impl CaseReport {
    fn text(&self) -> String {
        let Self { name, passed: _, expected: _, verdict, status, by, reason, failure } = self;
        if let Some(failure) = failure {
            let lines =
                [format!("  FAIL  {name}"), format!("        {failure}"), format!("        {reason}")];
            return lines.map(|line| printable(&line) + "\n").concat();
        }
        let verdict = match (verdict, status) {
            (Verdict::Allow, _) => "allow".to_owned(),
            (Verdict::Deny, Some(status)) => format!("deny {status}"),
            (Verdict::Deny, None) => "deny".to_owned(),
        };
        printable(&format!("  ok    {name}: {verdict} by {by}")) + "\n"
    }
}
