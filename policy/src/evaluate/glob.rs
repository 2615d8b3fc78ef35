//! Patterns that Envoy matches as regular expressions, without regular expressions: text and runs of characters, over the
//! whole value, in time proportional to pattern × value.

/// One part of a pattern.
#[derive(Clone, Copy, Debug)]
pub(super) enum Piece<'p> {
    Text(&'p str),
    /// As many characters of this kind as fit, at least `min` (0 or 1).
    Run {
        min: usize,
        of: fn(char) -> bool,
    },
}

/// What RE2's `.` matches.
pub(super) fn any(c: char) -> bool {
    c != '\n'
}

pub(super) fn not_slash(c: char) -> bool {
    c != '/'
}

/// Any number of any characters.
pub(super) const ANYTHING: Piece<'static> = Piece::Run { min: 0, of: any };
/// At least one.
pub(super) const SOMETHING: Piece<'static> = Piece::Run { min: 1, of: any };

/// `text` with each `*` as a run of `of`.
pub(super) fn stars(text: &str, of: fn(char) -> bool) -> Vec<Piece<'_>> {
    let mut pieces = Vec::new();
    for (i, part) in text.split('*').enumerate() {
        if i > 0 {
            pieces.push(Piece::Run { min: 0, of });
        }
        pieces.push(Piece::Text(part));
    }
    pieces
}

/// Whether `pieces` match the whole of `value`.
pub(super) fn matches<'p>(pieces: impl IntoIterator<Item = Piece<'p>>, value: &str) -> bool {
    // ends[i]: the pieces so far match value[..i].
    let mut ends = vec![false; value.len() + 1];
    ends[0] = true;
    for piece in pieces {
        ends = match piece {
            Piece::Text(text) => after_text(&ends, value, text),
            Piece::Run { min, of } => after_run(&ends, value, min, of),
        };
        if !ends.contains(&true) {
            return false;
        }
    }
    ends[value.len()]
}

fn after_text(ends: &[bool], value: &str, text: &str) -> Vec<bool> {
    let mut next = vec![false; ends.len()];
    for start in (0..ends.len()).filter(|i| ends[*i]) {
        if value[start..].starts_with(text) {
            next[start + text.len()] = true;
        }
    }
    next
}

fn after_run(ends: &[bool], value: &str, min: usize, of: fn(char) -> bool) -> Vec<bool> {
    let mut next = if min == 0 { ends.to_vec() } else { vec![false; ends.len()] };
    let mut running = false;
    for (i, c) in value.char_indices() {
        running = (running || ends[i]) && of(c);
        if running {
            next[i + c.len_utf8()] = true;
        }
    }
    next
}

#[cfg(test)]
mod tests {
    use super::*;

    #[track_caller]
    fn check(pattern: &str, value: &str, expected: bool) {
        assert_eq!(matches(stars(pattern, any), value), expected, "{pattern} on {value}");
    }

    #[test]
    fn stars_match_runs() {
        check("", "", true);
        check("", "a", false);
        check("*", "", true);
        check("a*", "a", true);
        check("*a*", "bab", true);
        check("*ab", "aab", true);
        check("a*b*c", "aXbXbXc", true);
        check("a*b*c", "acb", false);
        check("a.b", "axb", false);
        check("é*", "éß", true);
        check("**", "xyz", true);
        check("*", "a\nb", false);
    }

    #[test]
    fn runs_keep_to_their_kind_and_length() {
        let slashless = [Piece::Text("/a/"), Piece::Run { min: 1, of: not_slash }];
        assert!(matches(slashless, "/a/b"));
        assert!(!matches(slashless, "/a/"));
        assert!(!matches(slashless, "/a/b/c"));
        assert!(matches([SOMETHING, Piece::Text("aa")], "aaa"));
        assert!(!matches([SOMETHING, Piece::Text("aaa")], "aaa"));
    }
}
