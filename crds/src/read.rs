//! The text of one file: documents, each with its own outcome and with line and column on what is wrong.
//!
//! Limits keep a hostile or mistaken file from costing more than its size: bytes per file and document, values per
//! document with anchors expanded, nesting, number of documents. It opens no files.

mod locate;
mod split;
mod tree;

use serde::de::DeserializeSeed;
use serde_json::Value;

use crate::finding::{Finding, Issue, Issues};
use crate::parse::{Content, parse_broken, parse_value};
use crate::path::{FieldPath, Segment};
use split::Chunk;
use tree::{Budget, Identify, Identity, Tree};

/// Bytes one file may have.
pub const MAX_FILE: usize = 4 << 20;
/// Bytes one YAML document may have (etcd takes no larger object either).
pub const MAX_DOCUMENT: usize = 1 << 20;
const MAX_DOCUMENTS: usize = 10_000;
/// The squares of the numbers of `[` and `{` of all documents, summed: the YAML scanner takes quadratic time on brackets
/// in brackets, and that a document opens many is all that can be seen without scanning it. One may have 5,000.
const MAX_BRACKETS_SQUARED: usize = 25_000_000;
/// Bytes that may be read again to give the findings of one file their line and column.
const MAX_LOCATING: usize = 4 << 20;

/// One document, or one item of a `List`.
#[derive(Clone, Debug, PartialEq)]
pub struct Document {
    /// `FILE:LINE`.
    pub origin: String,
    pub content: Content,
    /// Errors if it is not a [`Content::Object`]; warnings in any case.
    pub findings: Vec<Finding>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Format {
    Json,
    Yaml,
}

/// 1-based.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Position {
    line: usize,
    column: usize,
}

/// Reads a file's text. `origin` is its name, for messages and to tell JSON (`.json`). Never fails, never panics;
/// a document that says nothing is left out, so no documents means an empty file.
pub fn read(text: &str, origin: &str) -> Vec<Document> {
    if text.len() > MAX_FILE {
        let message = format!("the file has {} bytes; at most {MAX_FILE} are read", text.len());
        return vec![whole_file(origin, message)];
    }
    let mut reader = Reader { origin, locating: 0, brackets: 0, documents: Vec::new() };
    let json = origin.ends_with(".json") || text.trim_start().starts_with('{');
    if json && (origin.ends_with(".json") || serde_json::from_str::<serde::de::IgnoredAny>(text).is_ok()) {
        if !text.trim().is_empty() {
            reader.document(Chunk { text, lines_before: 0 }, Format::Json);
        }
        return reader.documents;
    }
    let chunks = split::split(text);
    if chunks.len() > MAX_DOCUMENTS {
        return vec![whole_file(origin, format!("the file has more than {MAX_DOCUMENTS} documents"))];
    }
    for chunk in chunks {
        reader.document(chunk, Format::Yaml);
    }
    reader.documents
}

fn whole_file(origin: &str, message: String) -> Document {
    Document {
        origin: format!("{origin}:1"),
        content: Content::Unreadable,
        findings: vec![Finding::error(message)],
    }
}

struct Reader<'r> {
    origin: &'r str,
    /// Bytes read again so far.
    locating: usize,
    /// See [`MAX_BRACKETS_SQUARED`].
    brackets: usize,
    documents: Vec<Document>,
}

impl Reader<'_> {
    fn document(&mut self, chunk: Chunk<'_>, format: Format) {
        if let Err(message) = self.bounded(chunk.text, format) {
            return self.broken(chunk, &serde_json::Map::new(), message, None);
        }
        match tree(chunk.text, format) {
            Ok(Value::Null) => {}
            Ok(value) => match list_items(&value) {
                None => self.object(chunk, format, &value, &FieldPath::default()),
                Some(items) => {
                    for (i, item) in items.iter().enumerate() {
                        let path = FieldPath(vec![Segment::Key("items".into()), Segment::Index(i)]);
                        self.object(chunk, format, item, &path);
                    }
                }
            },
            Err((message, position)) => self.broken(chunk, &identify(chunk.text, format), message, position),
        }
    }

    /// Refuses what would cost too much even to scan.
    fn bounded(&mut self, text: &str, format: Format) -> Result<(), String> {
        if text.len() > MAX_DOCUMENT {
            return Err(format!("the document has {} bytes; at most {MAX_DOCUMENT} are read", text.len()));
        }
        if format == Format::Yaml {
            let brackets = brackets(text);
            self.brackets += brackets * brackets;
            if self.brackets > MAX_BRACKETS_SQUARED {
                return Err(format!(
                    "too many brackets ({brackets}): use YAML's block style, or a .json file"
                ));
            }
        }
        Ok(())
    }

    /// An object at `path` of the document.
    fn object(&mut self, chunk: Chunk<'_>, format: Format, value: &Value, path: &FieldPath) {
        let mut issues = Issues::default();
        let content = parse_value(value, &mut issues);
        let line = if path.0.is_empty() {
            chunk.first_line()
        } else {
            self.locate(chunk, format, path).map_or(chunk.first_line(), |at| at.line)
        };
        let findings = issues.0.iter().map(|issue| {
            let at = self.locate(chunk, format, &issue.path.below(path));
            Finding {
                line: Some(at.map_or(line, |at| at.line)),
                column: at.map(|at| at.column),
                ..issue.finding()
            }
        });
        let findings = findings.collect();
        self.documents.push(Document { origin: format!("{}:{line}", self.origin), content, findings });
    }

    /// A document that is no YAML or JSON from some point on.
    fn broken(
        &mut self,
        chunk: Chunk<'_>,
        seen: &serde_json::Map<String, Value>,
        message: String,
        position: Option<Position>,
    ) {
        let mut issues = Issues::default();
        let content = parse_broken(seen, Issue::error(FieldPath::default(), message), &mut issues);
        let line = chunk.first_line();
        let mut findings: Vec<Finding> = issues.findings();
        for finding in &mut findings {
            finding.line = Some(position.map_or(line, |at| at.line + chunk.lines_before));
            finding.column = position.map(|at| at.column);
        }
        self.documents.push(Document { origin: format!("{}:{line}", self.origin), content, findings });
    }

    /// The position in the file; `None` once that has cost enough.
    fn locate(&mut self, chunk: Chunk<'_>, format: Format, path: &FieldPath) -> Option<Position> {
        self.locating += chunk.text.len();
        if self.locating > MAX_LOCATING {
            return None;
        }
        let at = locate::locate(chunk.text, format, path)?;
        Some(Position { line: at.line + chunk.lines_before, ..at })
    }
}

/// `kind: List`, and the lists of one kind that `kubectl get -o yaml` and the API server write.
fn list_items(value: &Value) -> Option<&Vec<Value>> {
    let kind = value.get("kind")?.as_str()?;
    value.get("items").and_then(Value::as_array).filter(|_| kind.ends_with("List"))
}

/// The one document of a file that is no Kubernetes object, and what gives an issue in it its position.
pub(crate) fn single(text: &str) -> Result<(Value, impl Fn(&Issue) -> Finding + '_), Finding> {
    let chunks = if text.len() > MAX_FILE { Vec::new() } else { split::split(text) };
    let chunk = match chunks.as_slice() {
        [] if text.len() > MAX_FILE => {
            return Err(Finding::error(format!(
                "the file has {} bytes; at most {MAX_FILE} are read",
                text.len()
            )));
        }
        [] => Chunk { text: "", lines_before: 0 },
        [chunk] => *chunk,
        [_, second, ..] => {
            let finding = Finding::error("a second document begins here; only one is expected");
            return Err(Finding { line: Some(second.first_line()), ..finding });
        }
    };
    if chunk.text.len() > MAX_DOCUMENT || brackets(chunk.text).pow(2) > MAX_BRACKETS_SQUARED {
        return Err(Finding::error("the document is too large"));
    }
    let value = tree(chunk.text, Format::Yaml).map_err(|(message, position)| Finding {
        line: position.map(|at| at.line + chunk.lines_before),
        column: position.map(|at| at.column),
        ..Finding::error(message)
    })?;
    let locate = move |issue: &Issue| {
        let at = locate::locate(chunk.text, Format::Yaml, &issue.path);
        let line = at.map(|at| at.line + chunk.lines_before);
        Finding { line, column: at.map(|at| at.column), ..issue.finding() }
    };
    Ok((value, locate))
}

fn brackets(text: &str) -> usize {
    text.bytes().filter(|b| matches!(b, b'[' | b'{')).count()
}

fn tree(text: &str, format: Format) -> Result<Value, (String, Option<Position>)> {
    let budget = Budget::default();
    match format {
        Format::Json => {
            let mut deserializer = serde_json::Deserializer::from_str(text);
            let value = Tree(&budget).deserialize(&mut deserializer);
            value.and_then(|value| deserializer.end().map(|()| value)).map_err(|error| {
                (without_position(&error), Some(Position { line: error.line(), column: error.column() }))
            })
        }
        Format::Yaml => {
            Tree(&budget).deserialize(serde_yaml::Deserializer::from_str(text)).map_err(|error| {
                let position = error.location().map(|at| Position { line: at.line(), column: at.column() });
                (without_position(&error), position)
            })
        }
    }
}

/// What a document that does not parse says about itself before it breaks.
fn identify(text: &str, format: Format) -> serde_json::Map<String, Value> {
    let budget = Budget::default();
    let identity = Identity::default();
    let seed = Identify(&identity, &budget);
    // Its own error is the one that is being reported.
    let _broken = match format {
        Format::Json => seed.deserialize(&mut serde_json::Deserializer::from_str(text)).map_err(drop),
        Format::Yaml => seed.deserialize(serde_yaml::Deserializer::from_str(text)).map_err(drop),
    };
    identity.into_inner()
}

/// The parsers write positions into their messages, relative to the document; the finding has the file's.
fn without_position(error: &impl std::fmt::Display) -> String {
    let mut message = error.to_string();
    while let Some(start) = message.find(" at line ") {
        let rest = &message[start + " at line ".len()..];
        let Some(column) = rest.find(" column ") else { break };
        let after = &rest[column + " column ".len()..];
        let digits = after.bytes().take_while(u8::is_ascii_digit).count();
        if !rest[..column].bytes().all(|b| b.is_ascii_digit()) {
            break;
        }
        let end = message.len() - after.len() + digits;
        message.replace_range(start..end, "");
    }
    message
}

#[cfg(test)]
mod tests;
