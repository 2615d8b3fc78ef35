//! One line: `{"seq":N,"time":"..","kind":"..",FIELDS,"prev":"HEX","hash":"HEX"}`, where `hash` is the SHA-256 of the
//! line as it would be without `,"hash":".."`. Pure; knows no file.

use std::fmt;
use std::str::FromStr;

use serde::Deserialize;
use serde_json::{Map, Value};
use sha2::{Digest, Sha256};

/// Longest line in bytes.
pub(super) const MAX_LINE: usize = 256 * 1024;
/// `,"hash":"` + 64 hex digits + `"}`.
const SUFFIX: usize = 9 + 64 + 2;

/// A SHA-256, written as 64 lower-case hex digits.
#[derive(Clone, Copy, PartialEq, Eq, Hash)]
pub struct Hash([u8; 32]);

impl Hash {
    /// What the very first line names as its predecessor.
    pub(super) const NONE: Self = Self([0; 32]);

    fn of(bytes: &[u8]) -> Self {
        Self(Sha256::digest(bytes).into())
    }
}

impl From<[u8; 32]> for Hash {
    fn from(bytes: [u8; 32]) -> Self {
        Self(bytes)
    }
}

impl fmt::Display for Hash {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.iter().try_for_each(|byte| write!(f, "{byte:02x}"))
    }
}

impl fmt::Debug for Hash {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

/// Not 64 lower-case hex digits.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("a hash is written as 64 lower-case hex digits")]
pub struct NotAHash;

impl FromStr for Hash {
    type Err = NotAHash;

    /// Upper case is refused: two spellings of one line would hide a change.
    fn from_str(text: &str) -> Result<Self, NotAHash> {
        let digit = |byte: u8| match byte {
            b'0'..=b'9' => Ok(byte - b'0'),
            b'a'..=b'f' => Ok(byte - b'a' + 10),
            _ => Err(NotAHash),
        };
        let text = text.as_bytes();
        if text.len() != 64 {
            return Err(NotAHash);
        }
        let mut bytes = [0; 32];
        for (byte, pair) in bytes.iter_mut().zip(text.chunks_exact(2)) {
            *byte = digit(pair[0])? << 4 | digit(pair[1])?;
        }
        Ok(Self(bytes))
    }
}

impl serde::Serialize for Hash {
    fn serialize<S: serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

/// What a line says of its place.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Place {
    pub(super) seq: u64,
    pub(super) time: String,
    pub(super) kind: String,
    pub(super) prev: Hash,
    pub(super) hash: Hash,
}

/// The line, with its newline, and its hash.
pub(super) fn encode(
    seq: u64,
    time: &str,
    kind: &str,
    fields: &Map<String, Value>,
    prev: Hash,
) -> (String, Hash) {
    let mut line = format!("{{\"seq\":{seq},\"time\":{},\"kind\":{}", Value::from(time), Value::from(kind));
    for (key, value) in fields {
        line += &format!(",{}:{value}", Value::from(&**key));
    }
    line += &format!(",\"prev\":\"{prev}\"}}");
    let hash = Hash::of(line.as_bytes());
    line.pop();
    line += &format!(",\"hash\":\"{hash}\"}}\n");
    (line, hash)
}

/// Checks a line (without its newline) against its own hash.
pub(super) fn check(line: &[u8]) -> Result<Place, &'static str> {
    #[derive(Deserialize)]
    struct Fields {
        seq: u64,
        time: String,
        kind: String,
        prev: String,
    }
    let text = std::str::from_utf8(line).map_err(|_| "is not UTF-8")?;
    let split = line.len().checked_sub(SUFFIX).filter(|at| text.is_char_boundary(*at));
    let (body, suffix) = text.split_at(split.ok_or("is too short")?);
    let hash = suffix.strip_prefix(",\"hash\":\"").and_then(|rest| rest.strip_suffix("\"}"));
    let hash: Hash = hash.and_then(|hash| hash.parse().ok()).ok_or("does not end in a hash")?;
    let mut whole = Vec::with_capacity(body.len() + 1);
    whole.extend_from_slice(body.as_bytes());
    whole.push(b'}');
    if Hash::of(&whole) != hash {
        return Err("was changed: its hash does not fit its content");
    }
    let fields: Fields = serde_json::from_str(text).map_err(|_| "is not a line of an audit trail")?;
    let Fields { seq, time, kind, prev } = fields;
    let prev = prev.parse().map_err(|_| "names no predecessor")?;
    Ok(Place { seq, time, kind, prev, hash })
}
