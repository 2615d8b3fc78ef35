//! The table, for people: aligned columns that also read well without colour. Prints nothing itself.

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

/// The whole table.
pub(super) fn render(rows: &[Shown], colour: Colour) -> String {
    let titles = ["", "caller", "call", "expected", "got", "ms", "decided by", "shows"];
    let cells: Vec<[String; 8]> = rows.iter().map(cells).collect();
    layout(titles, &cells, colour, |row, column, cell| match (column, rows[row].passed) {
        (0 | 4, true) => colour.good(cell),
        (0 | 4, false) => colour.bad(cell),
        (7, _) => colour.faint(cell),
        _ => cell.to_owned(),
    })
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

/// What an edit changed: each row as it was (what it answered) and as it is.
pub(super) fn render_changes(rows: &[(String, Shown)], colour: Colour) -> String {
    let titles = ["caller", "call", "was", "is", "decided by"];
    let cells: Vec<[String; 5]> = rows
        .iter()
        .map(|(was, row)| {
            let text = [row.caller, row.call].map(str::to_owned);
            let [caller, call] = text;
            [caller, call, was.clone(), row.got.clone(), row.decided_by.clone()]
        })
        .collect();
    layout(
        titles,
        &cells,
        colour,
        |_, column, cell| if column == 3 { colour.bold(cell) } else { cell.to_owned() },
    )
}

/// Columns as wide as they need to be; `paint` colours a cell, given its row and column.
fn layout<const N: usize>(
    titles: [&str; N],
    rows: &[[String; N]],
    colour: Colour,
    paint: impl Fn(usize, usize, &str) -> String,
) -> String {
    let width = |column: usize| rows.iter().map(|row| row[column].chars().count()).max().unwrap_or(0);
    let widths: [usize; N] = std::array::from_fn(|column| width(column).max(titles[column].len()));
    let mut text = line(&titles.map(|title| (title.len(), colour.bold(title))), &widths, &titles);
    for (number, row) in rows.iter().enumerate() {
        let painted: [(usize, String); N] =
            std::array::from_fn(|column| (row[column].chars().count(), paint(number, column, &row[column])));
        text += &line(&painted, &widths, &titles);
    }
    text
}

/// Cells with their widths as seen, which colours do not change.
fn line<const N: usize>(cells: &[(usize, String); N], widths: &[usize; N], titles: &[&str; N]) -> String {
    let mut text = String::new();
    for (column, (seen, cell)) in cells.iter().enumerate() {
        let pad = " ".repeat(widths[column] - seen);
        // Numbers to the right.
        text += &if titles[column] == "ms" { pad + cell } else { cell.clone() + &pad };
        text += "  ";
    }
    text.trim_end().to_owned() + "\n"
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
