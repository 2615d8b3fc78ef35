//! Single values of policy fields, parsed into atoms (semantics §1.5, §4.2, §4.3). An `Err` is the reason in words,
//! for a finding; nothing here knows where in an object the value stands.

use std::net::IpAddr;
use std::sync::Arc;

use ipnet::{IpNet, Ipv4Net};
use policy::{Atom, PathMatch, RequestPrincipal, StringMatch, TrustDomainMatch};

pub(crate) type Parsed<T> = Result<T, String>;

/// `ipBlocks` and the like: an address or a CIDR. Host bits are cut off, as Envoy does; an IPv4 address written as IPv6
/// (`::ffff:10.0.0.0/104`) means the IPv4 one, which is what a socket reports.
pub(crate) fn ip_block(value: &str) -> Parsed<IpNet> {
    let net = match value.split_once('/') {
        Some(_) => value.parse::<IpNet>().ok(),
        None => value.parse::<IpAddr>().ok().map(IpNet::from),
    };
    let net = net.ok_or_else(|| format!("`{value}` is neither an IP address nor a CIDR block"))?.trunc();
    if let IpNet::V6(v6) = net
        && let Some(v4) = v6.addr().to_ipv4_mapped()
        && let Some(prefix) = v6.prefix_len().checked_sub(96)
    {
        let v4 = Ipv4Net::new(v4, prefix).expect("at most 128 - 96 = 32");
        return Ok(IpNet::V4(v4.trunc()));
    }
    Ok(net)
}

/// `ports`, `destination.port`: 0..=65535 in decimal, no sign.
pub(crate) fn port(value: &str) -> Parsed<u16> {
    let digits = !value.is_empty() && value.bytes().all(|b| b.is_ascii_digit());
    let number = if digits { value.parse().ok() } else { None };
    number.ok_or_else(|| format!("`{value}` is not a port number from 0 to 65535"))
}

/// Most characters in a `serviceAccounts` entry (CRD).
pub(crate) const MAX_SERVICE_ACCOUNT: usize = 320;

/// `serviceAccounts`, `source.serviceAccount`: `NAME` (in `namespace`) or `NAMESPACE/NAME`.
pub(crate) fn service_account(value: &str, namespace: &Arc<str>) -> Parsed<Atom> {
    if value.contains('*') {
        return Err(format!("`{value}`: wildcards are not supported for service accounts"));
    }
    if value.chars().count() > MAX_SERVICE_ACCOUNT {
        return Err(format!("a service account has at most {MAX_SERVICE_ACCOUNT} characters"));
    }
    let (namespace, name) = match value.split_once('/') {
        None => (namespace.clone(), value),
        Some((namespace, name)) => (namespace.into(), name),
    };
    if namespace.is_empty() || name.is_empty() || name.contains('/') {
        return Err(format!("`{value}` is neither NAME nor NAMESPACE/NAME"));
    }
    Ok(Atom::ServiceAccount { namespace, name: name.into() })
}

/// `trustDomains`, `source.trustDomain`: at most one `*`, at one end. A slash is refused in both, although Istio's
/// admission forgets to in the latter: such a value would reach into the path of the identity.
pub(crate) fn trust_domain(value: &str) -> Parsed<Atom> {
    if value.contains('/') {
        return Err(format!("`{value}`: a trust domain has no `/`"));
    }
    let stars = value.matches('*').count();
    let at_end = value.starts_with('*') || value.ends_with('*');
    Ok(Atom::TrustDomain(match (value, stars) {
        ("*", _) => TrustDomainMatch::Any,
        (_, 0) => TrustDomainMatch::Exact(value.into()),
        (_, 1) if at_end => TrustDomainMatch::Wildcard(value.into()),
        _ => return Err(format!("`{value}`: one `*` is allowed, at the beginning or at the end")),
    }))
}

/// `requestPrincipals`, `request.auth.principal`: `ISSUER/SUBJECT`, split at the last slash (semantics §4.3).
pub(crate) fn request_principal(value: &str) -> RequestPrincipal {
    let exact = |s: &str| Some(StringMatch::Exact(s.into()));
    let split = value.rsplit_once('/');
    let (issuer, subject) = if value == "*" {
        (None, None)
    } else if let Some(rest) = value.strip_prefix('*') {
        match split {
            // Only one side is a pattern: in `*/p*` the subject is the text `p*`.
            Some((issuer, subject)) => (
                issuer.strip_prefix('*').filter(|s| !s.is_empty()).map(|s| StringMatch::Suffix(s.into())),
                exact(subject),
            ),
            None => (None, Some(StringMatch::Suffix(rest.into()))),
        }
    } else if let Some(rest) = value.strip_suffix('*') {
        match split {
            Some((issuer, "*")) => (exact(issuer), None),
            Some((issuer, subject)) => {
                (exact(issuer), subject.strip_suffix('*').map(|s| StringMatch::Prefix(s.into())))
            }
            None => (Some(StringMatch::Prefix(rest.into())), None),
        }
    } else {
        let (issuer, subject) = split.unwrap_or((value, ""));
        (exact(issuer), exact(subject))
    };
    RequestPrincipal { issuer, subject }
}

/// `paths`: plain, or a template if it holds `{*}` or `{**}`.
pub(crate) fn path(value: &str) -> Parsed<PathMatch> {
    let is_template = value.contains("{*}") || value.contains("{**}");
    if !is_template {
        if value.contains(['{', '}']) {
            return Err(format!("`{value}`: braces are only allowed in `{{*}}` and `{{**}}`"));
        }
        return Ok(PathMatch::Plain(StringMatch::parse(value)));
    }
    check_template(value).map_err(|why| format!("`{value}`: {why}"))?;
    Ok(PathMatch::Template(value.into()))
}

/// Most characters of a template as Envoy has it, where `{*}` is `*` (`UriTemplateMatchConfig.path_template`).
const MAX_TEMPLATE: usize = 256;

/// What Envoy's `uri_template` takes. On an operator after `{**}` and on an empty segment before the last it does not
/// refuse but crashes (seen on 1.36.2, 1.39.3 and 1.40.0), so neither may get there.
fn check_template(value: &str) -> Parsed<()> {
    let Some(rest) = value.strip_prefix('/') else {
        return Err("a path template begins with `/`".into());
    };
    if value.len() - value.matches(['{', '}']).count() > MAX_TEMPLATE {
        return Err(format!("a path template has at most {MAX_TEMPLATE} characters"));
    }
    if rest.contains("//") || rest.starts_with('/') {
        return Err("a path template has no empty segments".into());
    }
    let mut rest_seen = false;
    for segment in rest.split('/') {
        let operator = matches!(segment, "{*}" | "{**}");
        if operator && rest_seen {
            return Err("`{**}` must be the last operator".into());
        }
        rest_seen |= segment == "{**}";
        if operator {
            continue;
        }
        if segment.contains("{*}") || segment.contains("{**}") {
            return Err("`{*}` and `{**}` must be a whole path segment".into());
        }
        if segment.contains(['{', '}']) {
            return Err("braces are only allowed in `{*}` and `{**}`".into());
        }
        if let Some(bad) = segment.chars().find(|c| !literal(*c)) {
            return Err(format!("`{bad}` is not allowed in a path template"));
        }
    }
    Ok(())
}

/// `pchar` of RFC 3986 §3.3 without `*`, which would look like the plain wildcard that a template does not have.
fn literal(c: char) -> bool {
    c.is_ascii_alphanumeric() || "-._~%!$&'()+,;=:@".contains(c)
}

/// A duration as protobuf's JSON and Go write it (`5s`, `1.5s`, `100ms`, `1m30s`), in milliseconds.
pub(crate) fn duration_ms(value: &str) -> Parsed<u64> {
    let fail = || format!("`{value}` is not a duration such as 5s, 100ms or 1m30s");
    let mut rest = value;
    let mut total = 0f64;
    while !rest.is_empty() {
        let digits = rest.find(|c: char| !c.is_ascii_digit() && c != '.').ok_or_else(fail)?;
        let number: f64 = rest[..digits].parse().map_err(|_| fail())?;
        rest = &rest[digits..];
        let unit = rest.find(|c: char| c.is_ascii_digit() || c == '.').unwrap_or(rest.len());
        total += number
            * match &rest[..unit] {
                "ns" => 1e-6,
                "us" | "µs" => 1e-3,
                "ms" => 1.0,
                "s" => 1e3,
                "m" => 60e3,
                "h" => 3600e3,
                _ => return Err(fail()),
            };
        rest = &rest[unit..];
    }
    // Protobuf's own limit of a duration is 10,000 years; anything near that is a mistake.
    if value.is_empty() || !(0.0..=3.2e14).contains(&total) {
        return Err(fail());
    }
    #[allow(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "within 0..=3.2e14")]
    let total = total.round() as u64;
    Ok(total)
}

/// What Go's `strconv.ParseBool` takes, which is what the dry-run annotation is read with (semantics §1.5).
pub(crate) fn go_bool(value: &str) -> Option<bool> {
    match value {
        "1" | "t" | "T" | "TRUE" | "true" | "True" => Some(true),
        "0" | "f" | "F" | "FALSE" | "false" | "False" => Some(false),
        _ => None,
    }
}

/// Whether Envoy takes it as a header name or value without refusing the whole listener.
pub(crate) fn header_text(value: &str) -> bool {
    !value.contains(['\0', '\r', '\n'])
}

/// A DNS label: letters, digits and `-`, at most 63.
pub(crate) fn dns_label(value: &str) -> bool {
    let end = |c: char| c.is_ascii_alphanumeric();
    !value.is_empty()
        && value.len() <= 63
        && value.chars().all(|c| c.is_ascii_alphanumeric() || c == '-')
        && value.starts_with(end)
        && value.ends_with(end)
}

/// A DNS name whose first label may begin with, or be, `*`. A dot at the end is allowed.
pub(crate) fn wildcard_domain(value: &str) -> bool {
    let mut labels = value.split('.');
    let Some(first) = labels.next().filter(|_| value.len() <= 255) else { return false };
    let rest: Vec<&str> = labels.collect();
    let last = rest.len();
    let first = match first.strip_prefix('*') {
        Some("") => true,
        Some(rest) => dns_label(rest.strip_prefix('-').unwrap_or(rest)),
        None => dns_label(first),
    };
    first && rest.iter().enumerate().all(|(i, label)| dns_label(label) || (i + 1 == last && label.is_empty()))
}

#[cfg(test)]
mod tests;
