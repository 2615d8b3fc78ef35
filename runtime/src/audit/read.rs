//! Checks the chain of whole files. Changes nothing.

use std::fs::File;
use std::io::{self, BufRead, BufReader, Read};
use std::path::{Path, PathBuf};

use serde::Serialize;

use super::line::{Hash, MAX_LINE, Place, check};

/// Faults named per call; the rest is only counted.
const NAMED: usize = 50;

/// What became of a chain.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Report {
    /// No fault was found.
    pub whole: bool,
    pub files: Vec<FileReport>,
    /// The first 50.
    pub faults: Vec<Fault>,
    pub fault_count: usize,
    /// What the first line names as its predecessor: the end of a file that was not given. `None` if it is the first
    /// of all.
    pub after: Option<Hash>,
    /// The last line's.
    pub head: Option<Hash>,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct FileReport {
    pub file: PathBuf,
    pub lines: usize,
    pub first_seq: Option<u64>,
    pub last_seq: Option<u64>,
    /// Of the first and last readable line.
    pub from: Option<String>,
    pub to: Option<String>,
}

/// One place where the chain does not hold.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Fault {
    pub file: PathBuf,
    /// From 1.
    pub line: usize,
    pub what: String,
}

impl std::fmt::Display for Fault {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{}:{}: {}", self.file.display(), self.line, self.what)
    }
}

/// Checks `files` as one chain, in this order (the oldest first). With `head` the last line must have that hash, which is
/// the only way to see that the end was cut off.
///
/// # Errors
/// If a file cannot be read; with its name.
pub fn verify(files: &[PathBuf], head: Option<Hash>) -> Result<Report, (PathBuf, io::Error)> {
    let mut checker = Checker::default();
    for path in files {
        let file = File::open(path).map_err(|error| (path.clone(), error))?;
        checker.file(path, BufReader::new(file)).map_err(|error| (path.clone(), error))?;
    }
    Ok(checker.end(head))
}

/// Follows a chain from line to line. After a fault it goes on from the next readable line, so that one change is one or
/// two faults and not all that follow.
#[derive(Debug, Default)]
pub(super) struct Checker {
    pub(super) last: Option<Place>,
    after: Option<Hash>,
    begun: bool,
    files: Vec<FileReport>,
    faults: Vec<Fault>,
    fault_count: usize,
}

impl Checker {
    fn file(&mut self, path: &Path, mut from: impl BufRead) -> io::Result<()> {
        let file = FileReport {
            file: path.to_owned(),
            lines: 0,
            first_seq: None,
            last_seq: None,
            from: None,
            to: None,
        };
        self.files.push(file);
        let mut line = Vec::new();
        for number in 1.. {
            line.clear();
            if from.by_ref().take(MAX_LINE as u64 + 1).read_until(b'\n', &mut line)? == 0 {
                if number == 1 {
                    self.fault(path, 1, "the file is empty".to_owned());
                }
                return Ok(());
            }
            let ended = line.pop_if(|byte| *byte == b'\n').is_some();
            if !ended && line.len() > MAX_LINE {
                self.fault(path, number, "is longer than any line of an audit trail".to_owned());
                return Ok(());
            }
            if !ended {
                self.fault(path, number, "breaks off: the line is not complete".to_owned());
            }
            self.line(path, number, &line);
        }
        Ok(())
    }

    fn line(&mut self, path: &Path, number: usize, line: &[u8]) {
        let place = check(line);
        if let Some(file) = self.files.last_mut() {
            file.lines += 1;
            if let Ok(place) = &place {
                file.first_seq.get_or_insert(place.seq);
                file.last_seq = Some(place.seq);
                file.from.get_or_insert_with(|| place.time.clone());
                file.to = Some(place.time.clone());
            }
        }
        match place {
            Err(what) => {
                self.fault(path, number, what.to_owned());
                self.begun = true;
                // What follows can only be compared with what comes after it.
                self.last = None;
            }
            Ok(place) => {
                if let Some(what) = self.misplaced(&place, number == 1) {
                    self.fault(path, number, what);
                }
                self.begun = true;
                self.last = Some(place);
            }
        }
    }

    /// Why a line that is whole does not belong where it is.
    fn misplaced(&mut self, place: &Place, first: bool) -> Option<String> {
        if first != (place.kind == "Genesis") {
            return Some(match first {
                true => "is not the beginning of a file: lines before it are missing".to_owned(),
                false => "is the beginning of another file".to_owned(),
            });
        }
        match &self.last {
            None if !self.begun => {
                self.after = (place.prev != Hash::NONE).then_some(place.prev);
                (self.after.is_none() && place.seq != 0)
                    .then(|| "has no predecessor and is not the first".to_owned())
            }
            None => None,
            Some(last) if place.seq != last.seq + 1 => Some(format!(
                "has number {}, the line before it {}: lines are missing, added or moved",
                place.seq, last.seq
            )),
            Some(last) if place.prev != last.hash => {
                Some("does not follow the line before it: one of the two was replaced".to_owned())
            }
            Some(_) => None,
        }
    }

    fn fault(&mut self, file: &Path, line: usize, what: String) {
        self.fault_count += 1;
        if self.faults.len() < NAMED {
            self.faults.push(Fault { file: file.to_owned(), line, what });
        }
    }

    fn end(mut self, head: Option<Hash>) -> Report {
        let last = self.last.as_ref().map(|place| place.hash);
        if let (Some(head), Some(file)) = (head, self.files.last().cloned())
            && last != Some(head)
        {
            self.fault(
                &file.file,
                file.lines,
                "is not the expected last line: the end is missing or another".to_owned(),
            );
        }
        let Self { last: _, after, begun: _, files, faults, fault_count } = self;
        Report { whole: fault_count == 0, files, faults, fault_count, after, head: last }
    }
}

/// Checks the lines of `text`, which may begin in the middle of a file (`whole` is `false` then): the last line's place
/// and the bytes of complete lines.
pub(super) fn tail(text: &[u8], whole: bool) -> (Option<Place>, Option<String>) {
    let mut checker = Checker { begun: !whole, ..Checker::default() };
    let lines = text.strip_suffix(b"\n").unwrap_or(text).split(|byte| *byte == b'\n');
    for (number, line) in lines.enumerate() {
        checker.line(Path::new(""), number + if whole { 1 } else { 2 }, line);
    }
    let fault = checker.faults.first().map(|fault| format!("a line near the end {}", fault.what));
    (checker.last, fault)
}
