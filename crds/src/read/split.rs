//! Cuts a file into YAML documents at its `---` lines, so that one that does not parse hides no other.

/// One document's text and how many lines of the file come before it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Chunk<'t> {
    pub(super) text: &'t str,
    pub(super) lines_before: usize,
}

impl Chunk<'_> {
    /// The file's number of the first line that says something, from 1.
    pub(super) fn first_line(&self) -> usize {
        let said = |line: &str| {
            let line = line.strip_prefix("---").unwrap_or(line).trim();
            !line.is_empty() && !line.starts_with('#')
        };
        self.lines_before + self.text.lines().position(said).unwrap_or(0) + 1
    }
}

/// The documents of `text`, those that say nothing (blank, comments, directives) left out.
///
/// A line that begins with `---` or `...` and then ends or goes on with a blank is a document marker wherever it stands,
/// also in a quoted or block scalar (YAML 1.2 §9.1.2, `c-forbidden`), so cutting there needs no parser.
pub(super) fn split(text: &str) -> Vec<Chunk<'_>> {
    let mut chunks = Vec::new();
    let mut start = 0;
    let mut start_line = 0;
    let mut offset = 0;
    for (number, line) in text.split_inclusive('\n').enumerate() {
        if offset > start && marker(line) {
            chunks.push(Chunk { text: &text[start..offset], lines_before: start_line });
            (start, start_line) = (offset, number);
        }
        offset += line.len();
    }
    chunks.push(Chunk { text: &text[start..], lines_before: start_line });
    chunks.into_iter().filter_map(strip_end_marker).filter(|chunk| says_something(chunk.text)).collect()
}

fn marker(line: &str) -> bool {
    let rest = line.strip_prefix("---").or_else(|| line.strip_prefix("..."));
    rest.is_some_and(|rest| rest.is_empty() || rest.starts_with([' ', '\t', '\r', '\n']))
}

/// `...` ends a document; what follows it on later lines is the next one without a marker of its own.
fn strip_end_marker(chunk: Chunk<'_>) -> Option<Chunk<'_>> {
    if !chunk.text.starts_with("...") {
        return Some(chunk);
    }
    let (_, rest) = chunk.text.split_once('\n')?;
    Some(Chunk { text: rest, lines_before: chunk.lines_before + 1 })
}

fn says_something(text: &str) -> bool {
    let mut lines = text.trim_start_matches('\u{feff}').lines();
    lines.any(|line| {
        let line = line.strip_prefix("---").unwrap_or(line);
        let content = line.trim();
        // A `%YAML 1.2` directive before the first marker is a chunk of its own here and changes nothing.
        !content.is_empty() && !content.starts_with('#') && !line.starts_with('%')
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[track_caller]
    fn check(text: &str, expect: &[(usize, &str)]) {
        let found: Vec<_> = split(text).iter().map(|c| (c.first_line(), c.text)).collect();
        assert_eq!(found, expect);
    }

    #[test]
    fn cuts_at_markers_and_keeps_line_numbers() {
        check("a: 1\n", &[(1, "a: 1\n")]);
        check("a: 1\n---\nb: 2", &[(1, "a: 1\n"), (3, "---\nb: 2")]);
        check("# c\n---\n\n---\n# only\n", &[]);
        check("---\r\na: 1\r\n---\r\nb: 2\r\n", &[(2, "---\r\na: 1\r\n"), (4, "---\r\nb: 2\r\n")]);
        check("%YAML 1.2\n---\na: 1\n", &[(3, "---\na: 1\n")]);
        check("--- {a: 1}\n--- {b: 2}\n", &[(1, "--- {a: 1}\n"), (2, "--- {b: 2}\n")]);
        check("a: 1\n...\nb: 2\n", &[(1, "a: 1\n"), (3, "b: 2\n")]);
        check("a: 1\n...\n---\nb: 2\n", &[(1, "a: 1\n"), (4, "---\nb: 2\n")]);
        check("a: ----\n----x: 1\n", &[(1, "a: ----\n----x: 1\n")]);
        check("", &[]);
    }
}
