//! The words of CEL: names, numbers, text and signs. It knows no grammar.

use std::fmt;
use std::str::CharIndices;

/// Longest first.
const SIGNS: [&str; 24] = [
    "&&", "||", "==", "!=", "<=", ">=", "<", ">", "(", ")", "[", "]", "{", "}", ",", ".", "+", "-", "*", "/",
    "%", "?", "!", ":",
];
/// Words that CEL keeps for itself.
const RESERVED: [&str; 17] = [
    "as",
    "break",
    "const",
    "continue",
    "else",
    "for",
    "function",
    "if",
    "import",
    "let",
    "loop",
    "package",
    "namespace",
    "return",
    "var",
    "void",
    "while",
];

#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Token {
    Name(String),
    Number,
    Text,
    Sign(&'static str),
}

impl fmt::Display for Token {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Name(name) => write!(f, "`{name}`"),
            Self::Number => f.write_str("number"),
            Self::Text => f.write_str("text"),
            Self::Sign(sign) => write!(f, "`{sign}`"),
        }
    }
}

/// An iterator over the tokens; it ends after the first error.
pub(super) struct Lexer<'e> {
    rest: &'e str,
}

impl<'e> Lexer<'e> {
    pub(super) fn new(expression: &'e str) -> Self {
        Self { rest: expression }
    }

    fn take(&mut self, length: usize) -> &'e str {
        let (taken, rest) = self.rest.split_at(length);
        self.rest = rest;
        taken
    }

    fn word(&mut self) -> Result<Token, String> {
        let name = |c: char| c.is_ascii_alphanumeric() || c == '_';
        let length = self.rest.find(|c| !name(c)).unwrap_or(self.rest.len());
        let word = self.take(length);
        if RESERVED.contains(&word) {
            return Err(format!("`{word}` is a word that CEL keeps for itself"));
        }
        Ok(Token::Name(word.to_owned()))
    }

    /// Decimal or `0x` integers with or without `u`, and decimal fractions with or without exponent.
    fn number(&mut self) -> Result<Token, String> {
        let length =
            self.rest.find(|c: char| !c.is_ascii_alphanumeric() && c != '.').unwrap_or(self.rest.len());
        let mut length = length;
        // The sign of an exponent.
        if self.rest[..length].ends_with(['e', 'E']) && !self.rest.starts_with("0x") {
            let more = &self.rest[length..];
            if let Some(digits) = more.strip_prefix(['+', '-']) {
                length += 1 + digits.find(|c: char| !c.is_ascii_digit()).unwrap_or(digits.len());
            }
        }
        let text = self.take(length);
        let digits = text.strip_suffix(['u', 'U']);
        let unsigned = digits.is_some();
        let digits = digits.unwrap_or(text);
        let good = match (digits.strip_prefix("0x"), unsigned) {
            (Some(hex), true) => u64::from_str_radix(hex, 16).is_ok(),
            (Some(hex), false) => i64::from_str_radix(hex, 16).is_ok(),
            (None, true) => digits.parse::<u64>().is_ok(),
            (None, false) if digits.bytes().all(|b| b.is_ascii_digit()) => digits.parse::<i64>().is_ok(),
            (None, false) => fraction(digits),
        };
        if good { Ok(Token::Number) } else { Err(format!("`{text}` is not a number")) }
    }

    /// `'…'` or `"…"`; `r` before it takes backslashes as they are.
    fn text(&mut self, raw: bool) -> Result<Token, String> {
        let mut chars = self.rest.char_indices();
        let quote = chars.next().map(|(_, c)| c);
        // Three quotes begin text over several lines.
        if quote.is_some_and(|q| self.rest.starts_with(&String::from_iter([q; 3]))) {
            return Err("text in three quotes is not supported".to_owned());
        }
        loop {
            match chars.next() {
                Some((at, c)) if Some(c) == quote => {
                    self.take(at + c.len_utf8());
                    return Ok(Token::Text);
                }
                Some((_, '\\')) if raw => drop(chars.next()),
                Some((_, '\\')) => escape(&mut chars)?,
                Some((_, '\n' | '\r')) | None => return Err("text that does not end".to_owned()),
                Some(_) => {}
            }
        }
    }
}

/// What Envoy reads as well: digits, a point and digits, perhaps an exponent.
fn fraction(text: &str) -> bool {
    let (number, exponent) = text.split_once(['e', 'E']).unwrap_or((text, "0"));
    let digits = |text: &str| !text.is_empty() && text.bytes().all(|b| b.is_ascii_digit());
    let point = number.split_once('.').map_or(digits(number), |(a, b)| digits(a) && digits(b));
    point
        && digits(exponent.strip_prefix(['+', '-']).unwrap_or(exponent))
        && text.parse::<f64>().is_ok_and(f64::is_finite)
}

/// What follows a backslash: a sign for itself, or `uXXXX`.
fn escape(chars: &mut CharIndices<'_>) -> Result<(), String> {
    match chars.next().map(|(_, c)| c) {
        Some('a' | 'b' | 'f' | 'n' | 'r' | 't' | 'v' | '\\' | '?' | '"' | '\'' | '`') => Ok(()),
        Some('u') => {
            let digits: String = chars.by_ref().take(4).map(|(_, c)| c).collect();
            let code = if digits.len() == 4 { u32::from_str_radix(&digits, 16).ok() } else { None };
            match code.and_then(char::from_u32) {
                Some(_) => Ok(()),
                None => Err(format!("`\\u{digits}` in text is no character")),
            }
        }
        Some(other) => Err(format!("`\\{other}` in text is not supported")),
        None => Err("text that does not end".to_owned()),
    }
}

impl Iterator for Lexer<'_> {
    type Item = Result<Token, String>;

    fn next(&mut self) -> Option<Self::Item> {
        self.rest = self.rest.trim_start_matches([' ', '\t', '\n', '\r', '\u{c}']);
        let mut following = self.rest.chars();
        let (first, second) = (following.next()?, following.next());
        let token = match first {
            'r' | 'R' if matches!(second, Some('\'' | '"')) => {
                self.take(1);
                self.text(true)
            }
            'b' | 'B' if matches!(second, Some('\'' | '"')) => Err("bytes are not supported".to_owned()),
            '\'' | '"' => self.text(false),
            '0'..='9' => self.number(),
            'a'..='z' | 'A'..='Z' | '_' => self.word(),
            _ => match SIGNS.into_iter().find(|sign| self.rest.starts_with(sign)) {
                Some(sign) => {
                    self.take(sign.len());
                    Ok(Token::Sign(sign))
                }
                None => Err(format!("`{first}` has no place in an expression")),
            },
        };
        if token.is_err() {
            self.rest = "";
        }
        Some(token)
    }
}
