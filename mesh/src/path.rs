//! What Envoy makes of a path before policies see it (semantics §4.7), for tools that describe requests. Proxies do it on
//! their own; nothing that is enforced comes from here.

use crate::config::PathNormalization;

impl PathNormalization {
    /// The path as policies see it, with its query as it was: what Envoy 1.39.3 makes of it over HTTP/1.1. `None` if
    /// Envoy refuses the request.
    pub fn apply(self, path: &str) -> Option<String> {
        if !path.bytes().all(|c| c.is_ascii_graphic() && c != b'#') {
            return None;
        }
        if self == Self::None {
            return Some(path.to_owned());
        }
        let (path, query) = path.split_at(path.find('?').unwrap_or(path.len()));
        let decoded = match self {
            Self::DecodeAndMergeSlashes => decode(path, |c| matches!(c, b'/' | b'\\')),
            _ => path.to_owned(),
        };
        // An absolute path is all that can be normalised.
        if !decoded.starts_with('/') {
            return (decoded == "*").then(|| format!("{decoded}{query}"));
        }
        let bare: Vec<&str> = decoded.split(['/', '\\']).map(without_parameters).collect();
        let canonical = escape(&dots(&decode(&bare.join("/"), unreserved)));
        let merged = match self {
            Self::MergeSlashes | Self::DecodeAndMergeSlashes => merge(&canonical),
            _ => canonical,
        };
        Some(merged + query)
    }
}

/// `..;x` is `..`, where it is written so and not with `%2E`.
fn without_parameters(segment: &str) -> &str {
    match segment.split_once(';') {
        Some((dots @ ("." | ".."), _)) => dots,
        _ => segment,
    }
}

/// What a path may not hold as it is.
fn escape(path: &str) -> String {
    let mut escaped = String::with_capacity(path.len());
    for c in path.chars() {
        match c {
            '"' | '<' | '>' | '^' | '`' | '{' | '|' | '}' => escaped += &format!("%{:02X}", u32::from(c)),
            _ => escaped.push(c),
        }
    }
    escaped
}

/// RFC 3986 §2.3.
fn unreserved(c: u8) -> bool {
    c.is_ascii_alphanumeric() || b"-._~".contains(&c)
}

/// Replaces `%XX` by its character where `which` says so.
fn decode(path: &str, which: impl Fn(u8) -> bool) -> String {
    let mut decoded = String::with_capacity(path.len());
    let mut rest = path;
    while let Some(at) = rest.find('%') {
        decoded.push_str(&rest[..at]);
        let code = rest.get(at + 1..at + 3).and_then(|hex| u8::from_str_radix(hex, 16).ok());
        match code.filter(|c| which(*c)) {
            Some(c) => {
                decoded.push(char::from(c));
                rest = &rest[at + 3..];
            }
            None => {
                decoded.push('%');
                rest = &rest[at + 1..];
            }
        }
    }
    decoded + rest
}

/// RFC 3986 §5.2.4; a segment `..` above the root is dropped.
fn dots(path: &str) -> String {
    let mut kept: Vec<&str> = Vec::new();
    let segments: Vec<&str> = path.split('/').skip(1).collect();
    let last = segments.len().saturating_sub(1);
    for (i, segment) in segments.into_iter().enumerate() {
        match segment {
            "." | ".." => {
                if segment == ".." {
                    kept.pop();
                }
                if i == last {
                    kept.push("");
                }
            }
            _ => kept.push(segment),
        }
    }
    format!("/{}", kept.join("/"))
}

fn merge(path: &str) -> String {
    let mut merged = String::with_capacity(path.len());
    for c in path.chars() {
        if c != '/' || !merged.ends_with('/') {
            merged.push(c);
        }
    }
    merged
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Seen on Envoy 1.39.3 (but for the relative path).
    #[test]
    fn paths_as_policies_see_them() {
        use PathNormalization::{Base, DecodeAndMergeSlashes as Decode, MergeSlashes as Merge, None as Not};
        for (path, expected) in [
            ("/a", [Some("/a"); 4]),
            ("/", [Some("/"); 4]),
            ("/a/./b/../c", [Some("/a/./b/../c"), Some("/a/c"), Some("/a/c"), Some("/a/c")]),
            ("/a/%2e%2E/b", [Some("/a/%2e%2E/b"), Some("/b"), Some("/b"), Some("/b")]),
            ("/../../a", [Some("/../../a"), Some("/a"), Some("/a"), Some("/a")]),
            ("/a/..", [Some("/a/.."), Some("/"), Some("/"), Some("/")]),
            ("/a/.", [Some("/a/."), Some("/a/"), Some("/a/"), Some("/a/")]),
            ("/\\a", [Some("/\\a"), Some("//a"), Some("/a"), Some("/a")]),
            ("//a///b", [Some("//a///b"), Some("//a///b"), Some("/a/b"), Some("/a/b")]),
            ("/%2Fa", [Some("/%2Fa"), Some("/%2Fa"), Some("/%2Fa"), Some("/a")]),
            ("/%5ca", [Some("/%5ca"), Some("/%5ca"), Some("/%5ca"), Some("/a")]),
            ("/%61", [Some("/%61"), Some("/a"), Some("/a"), Some("/a")]),
            ("/a%20b%", [Some("/a%20b%"); 4]),
            ("/a;b=c", [Some("/a;b=c"); 4]),
            (
                "/a/../b?x=/../",
                [Some("/a/../b?x=/../"), Some("/b?x=/../"), Some("/b?x=/../"), Some("/b?x=/../")],
            ),
            ("/a/..;x/b", [Some("/a/..;x/b"), Some("/b"), Some("/b"), Some("/b")]),
            ("/a/.;", [Some("/a/.;"), Some("/a/"), Some("/a/"), Some("/a/")]),
            ("/%2e%2e;x/b", [Some("/%2e%2e;x/b"), Some("/..;x/b"), Some("/..;x/b"), Some("/..;x/b")]),
            ("/a/b;x/..", [Some("/a/b;x/.."), Some("/a/"), Some("/a/"), Some("/a/")]),
            (
                "/a|{^}",
                [Some("/a|{^}"), Some("/a%7C%7B%5E%7D"), Some("/a%7C%7B%5E%7D"), Some("/a%7C%7B%5E%7D")],
            ),
            ("/%25%32%66", [Some("/%25%32%66"), Some("/%252f"), Some("/%252f"), Some("/%252f")]),
            ("/a/%2F/../b", [Some("/a/%2F/../b"), Some("/a/b"), Some("/a/b"), Some("/a/b")]),
            ("/%2e/...", [Some("/%2e/..."), Some("/..."), Some("/..."), Some("/...")]),
            ("/a b", [None; 4]),
            ("/a?b#c", [None; 4]),
            ("/é", [None; 4]),
            ("a/b", [Some("a/b"), None, None, None]),
            ("*", [Some("*"); 4]),
        ] {
            let got = [Not, Base, Merge, Decode].map(|level| level.apply(path));
            assert_eq!(got.each_ref().map(Option::as_deref), expected, "{path}");
        }
    }
}
