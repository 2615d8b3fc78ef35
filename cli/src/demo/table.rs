//! The table, for people: aligned columns that also read well without colour. Prints nothing itself.

use std::fmt::Write as _;
use std::io::IsTerminal;
use std::time::Duration;

use serde::Serialize;

/// One row as it came out.
#[derive(Clone, Debug, Serialize)]
pub(super) struct Shown {
    pub(super) name: &'static str,
    pub(super) caller: &'static str,
    pub(super) call: &'static str,
    pub(super) expected: String,
    pub(super) got: String,
    pub(super) passed: bool,
    pub(super) latency_ms: f64,
    pub(super) decided_by: String,
    pub(super) shows: &'static str,
}

/// Whether to colour: only on a terminal, and not with `NO_COLOR` (<https://no-color.org>).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Colour(bool);

impl Colour {
    pub(super) fn of_stdout() -> Self {
        let wanted = std::env::var_os("NO_COLOR").is_none_or(|v| v.is_empty());
        Self(
            wanted && std::env::var_os("TERM").is_none_or(|t| t != "dumb") && std::io::stdout().is_terminal(),
        )
    }

    fn paint(self, code: &str, text: &str) -> String {
        if self.0 { format!("\x1b[{code}m{text}\x1b[0m") } else { text.to_owned() }
    }

    pub(super) fn good(self, text: &str) -> String {
        self.paint("32", text)
    }

    pub(super) fn bad(self, text: &str) -> String {
        self.paint("1;31", text)
    }

    pub(super) fn faint(self, text: &str) -> String {
        self.paint("2", text)
    }

    pub(super) fn bold(self, text: &str) -> String {
        self.paint("1", text)
    }
}

const TITLES: [&str; 8] = ["", "caller", "call", "expected", "got", "ms", "decided by", "shows"];

/// The whole table, its columns as wide as they need to be.
pub(super) fn render(rows: &[Shown], colour: Colour) -> String {
    let cells: Vec<[String; 8]> = rows.iter().map(cells).collect();
    let width = |column: usize| {
        let widest = cells.iter().map(|row| row[column].chars().count()).max();
        widest.unwrap_or(0).max(TITLES[column].len())
    };
    let widths: Vec<usize> = (0..TITLES.len()).map(width).collect();
    let mut text = colour.bold(&line(&TITLES.map(str::to_owned), &widths, |_, cell| cell)) + "\n";
    for (row, cells) in rows.iter().zip(&cells) {
        let paint = |column: usize, cell: String| match (column, row.passed) {
            (0 | 4, true) => colour.good(&cell),
            (0 | 4, false) => colour.bad(&cell),
            (7, _) => colour.faint(&cell),
            _ => cell,
        };
        writeln!(text, "{}", line(cells, &widths, paint)).expect("writing to a string");
    }
    text
}

fn cells(row: &Shown) -> [String; 8] {
    let Shown { name: _, caller, call, expected, got, passed, latency_ms, decided_by, shows } = row;
    [
        if *passed { "ok" } else { "FAIL" }.to_owned(),
        (*caller).to_owned(),
        (*call).to_owned(),
        expected.clone(),
        got.clone(),
        format!("{latency_ms:.1}"),
        decided_by.clone(),
        (*shows).to_owned(),
    ]
}

fn line(cells: &[String; 8], widths: &[usize], paint: impl Fn(usize, String) -> String) -> String {
    let mut text = String::new();
    for (column, (cell, width)) in cells.iter().zip(widths).enumerate() {
        let pad = " ".repeat(width.saturating_sub(cell.chars().count()));
        let painted = paint(column, cell.clone());
        match column {
            5 => text.extend([pad, painted]),
            7 => text.push_str(&painted),
            _ => text.extend([painted, pad]),
        }
        if column < 7 {
            text.push_str("  ");
        }
    }
    text.trim_end().to_owned()
}

/// Milliseconds with one decimal.
pub(super) fn milliseconds(duration: Duration) -> f64 {
    (duration.as_secs_f64() * 10_000.0).round() / 10.0
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn columns_are_aligned_and_plain_without_colour() {
        let row = |passed, got: &str| Shown {
            name: "x",
            caller: "user",
            call: "gateway GET /",
            expected: "200".to_owned(),
            got: got.to_owned(),
            passed,
            latency_ms: 1.25,
            decided_by: "a/b rule 0".to_owned(),
            shows: "something",
        };
        let rows = [row(true, "200"), row(false, "TLS refused")];
        let text = render(&rows, Colour(false));
        let starts: Vec<usize> =
            text.lines().map(|l| l.find("something").or(l.find("shows")).unwrap()).collect();
        assert_eq!(starts, [starts[0]; 3], "{text}");
        assert!(text.is_ascii() && text.contains("FAIL"));
        assert!(render(&rows, Colour(true)).contains("\x1b[1;31mFAIL"));
    }
}
