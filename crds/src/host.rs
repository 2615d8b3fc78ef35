//! Host names as the networking kinds write them: `a.example.com`, `*.example.com`, `*`.

/// Why `host` is none; it may begin with `*.` or be `*`.
pub(crate) fn wildcard(host: &str) -> Result<(), String> {
    match host.strip_prefix('*') {
        Some("") => Ok(()),
        Some(rest) => match rest.strip_prefix('.') {
            Some(rest) => exact(rest),
            None => Err(format!("`{host}`: a `*` is a whole first label")),
        },
        None => exact(host),
    }
}

/// Why `host` is no whole name.
pub(crate) fn exact(host: &str) -> Result<(), String> {
    let inner = |c: char| c.is_ascii_alphanumeric() || c == '-';
    let end = |c: char| c.is_ascii_alphanumeric();
    let label = |label: &str| {
        label.len() <= 63 && label.starts_with(end) && label.ends_with(end) && label.chars().all(inner)
    };
    let last = host.rsplit('.').next().unwrap_or_default();
    if host.is_empty() || host.len() > 255 || !host.split('.').all(label) {
        return Err(format!("`{host}` is not a host name"));
    }
    if last.bytes().all(|b| b.is_ascii_digit()) {
        return Err(format!("`{host}`: the last label of a host name is not a number"));
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn hosts() {
        for (host, is_wildcard, is_exact) in [
            ("a", true, true),
            ("a.example.com", true, true),
            ("A-1.example.com", true, true),
            ("1.example.com", true, true),
            ("*", true, false),
            ("*.example.com", true, false),
            ("*example.com", false, false),
            ("a.*.com", false, false),
            ("*.*.com", false, false),
            ("", false, false),
            ("*.", false, false),
            ("a..b", false, false),
            ("a.", false, false),
            ("-a.b", false, false),
            ("a_b.c", false, false),
            ("10.0.0.1", false, false),
            ("a/b", false, false),
        ] {
            assert_eq!((wildcard(host).is_ok(), exact(host).is_ok()), (is_wildcard, is_exact), "{host}");
        }
        assert!(exact(&"a.".repeat(140)).is_err());
    }
}
