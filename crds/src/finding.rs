//! What is wrong with an object, and the collector that validation fills.

use std::fmt;

use crate::path::{At, FieldPath, Segment};

/// A problem with an object: what, where in it, and how bad.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Finding {
    pub severity: Severity,
    /// E.g. `spec.rules[0].from[0].source.principal`; empty if it is about the whole document.
    pub field: String,
    pub message: String,
    /// 1-based, within the file, where known.
    pub line: Option<usize>,
    pub column: Option<usize>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Severity {
    Warning,
    Error,
}

impl Finding {
    /// An error about the whole document or file.
    pub fn error(message: impl Into<String>) -> Self {
        Self::whole(Severity::Error, message)
    }

    /// A warning about the whole document or file.
    pub fn warning(message: impl Into<String>) -> Self {
        Self::whole(Severity::Warning, message)
    }

    fn whole(severity: Severity, message: impl Into<String>) -> Self {
        Self { severity, field: String::new(), message: message.into(), line: None, column: None }
    }
}

/// `LINE:COLUMN: FIELD: MESSAGE`, leaving out what is not known.
impl fmt::Display for Finding {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { severity: _, field, message, line, column } = self;
        match (line, column) {
            (Some(line), Some(column)) => write!(f, "{line}:{column}: ")?,
            (Some(line), None) => write!(f, "{line}: ")?,
            (None, _) => {}
        }
        if !field.is_empty() {
            write!(f, "{field}: ")?;
        }
        f.write_str(message)
    }
}

/// A finding whose place is still a path, so that closing (`degrade`) can tell which rule it is about.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Issue {
    pub(crate) severity: Severity,
    pub(crate) path: FieldPath,
    pub(crate) message: String,
}

impl Issue {
    pub(crate) fn error(path: FieldPath, message: impl Into<String>) -> Self {
        Self { severity: Severity::Error, path, message: message.into() }
    }

    pub(crate) fn finding(&self) -> Finding {
        Finding {
            severity: self.severity,
            field: self.path.to_string(),
            message: self.message.clone(),
            line: None,
            column: None,
        }
    }
}

/// Everything found so far in one object.
#[derive(Debug, Default)]
pub(crate) struct Issues(pub(crate) Vec<Issue>);

impl Issues {
    pub(crate) fn error(&mut self, at: &At<'_>, message: impl Into<String>) {
        self.0.push(Issue::error(at.path(), message));
    }

    pub(crate) fn warning(&mut self, at: &At<'_>, message: impl Into<String>) {
        self.0.push(Issue { severity: Severity::Warning, path: at.path(), message: message.into() });
    }

    /// An error about something missing, unless what is missing was given and is reported already: there, below, or as
    /// an entry of a list that could not be read at all.
    pub(crate) fn missing(&mut self, at: &At<'_>, message: impl Into<String>) {
        let path = at.path();
        let entry = |other: &FieldPath| {
            matches!(other.0.last(), Some(Segment::Index(_))) && path.0.starts_with(&other.0)
        };
        if !self.errors().any(|issue| issue.path.0.starts_with(&path.0) || entry(&issue.path)) {
            self.0.push(Issue::error(path, message));
        }
    }

    /// The errors, warnings left out.
    pub(crate) fn errors(&self) -> impl Iterator<Item = &Issue> {
        self.0.iter().filter(|i| i.severity == Severity::Error)
    }

    pub(crate) fn has_errors(&self) -> bool {
        self.errors().next().is_some()
    }

    /// Whether there is an error at or below `keys`.
    pub(crate) fn errors_below(&self, keys: &[&str]) -> bool {
        self.errors().any(|i| i.path.starts_with(keys))
    }

    pub(crate) fn findings(&self) -> Vec<Finding> {
        self.0.iter().map(Issue::finding).collect()
    }
}
