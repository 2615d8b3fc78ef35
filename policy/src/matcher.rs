//! The one matcher model: compiled to Envoy by `xds::build`, interpreted by [`crate::evaluate`].
//!
//! Parsing follows semantics §4.2 and §4.3; nothing here knows how Envoy spells a matcher.

use std::sync::Arc;

use ipnet::IpNet;

/// A value with at most one magic `*`, first or last (semantics §4.2). A leading `*` wins if there are two.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum StringMatch {
    Exact(Arc<str>),
    /// `abc*`, without the star; never empty.
    Prefix(Arc<str>),
    /// `*abc`, without the star; never empty.
    Suffix(Arc<str>),
    /// `*`: present. For a header, any value even empty; elsewhere at least one character.
    Present,
}

impl StringMatch {
    /// Reads the API's notation. Total: every string means something.
    pub fn parse(value: &str) -> Self {
        if value == "*" {
            Self::Present
        } else if let Some(suffix) = value.strip_prefix('*') {
            Self::Suffix(suffix.into())
        } else if let Some(prefix) = value.strip_suffix('*') {
            Self::Prefix(prefix.into())
        } else {
            Self::Exact(value.into())
        }
    }

    /// Case-sensitive comparison; [`Self::Present`] asks for at least one character.
    pub fn matches(&self, value: &str) -> bool {
        match self {
            Self::Exact(exact) => value == &**exact,
            Self::Prefix(prefix) => value.starts_with(&**prefix),
            Self::Suffix(suffix) => value.ends_with(&**suffix),
            Self::Present => !value.is_empty(),
        }
    }
}

impl std::fmt::Display for StringMatch {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Exact(value) => f.write_str(value),
            Self::Prefix(value) => write!(f, "{value}*"),
            Self::Suffix(value) => write!(f, "*{value}"),
            Self::Present => f.write_str("*"),
        }
    }
}

/// A path, query excluded, after normalisation (semantics §4.3, §4.7).
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum PathMatch {
    Plain(StringMatch),
    /// Holds `{*}` (one segment) or `{**}` (any number); validated by `crds`. As written.
    Template(Arc<str>),
}

/// `trustDomains` values (semantics §4.3).
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum TrustDomainMatch {
    /// `*`: any SPIFFE identity.
    Any,
    Exact(Arc<str>),
    /// Holds a `*` (a run of non-slash characters) at one end; as written.
    Wildcard(Arc<str>),
}

/// `requestPrincipals` value after the split at the last `/` (semantics §4.3). `None` is "any non-empty".
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct RequestPrincipal {
    /// Never `Present`; `None` means any issuer of at least one character.
    pub issuer: Option<StringMatch>,
    /// Never `Present`; `None` means any subject of at least one character.
    pub subject: Option<StringMatch>,
}

/// One value of one field: the smallest thing that can match.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Atom {
    /// A peer identity without `spiffe://`, e.g. `cluster.local/ns/default/sa/a`.
    Principal(StringMatch),
    /// Glob over the namespace of the peer identity; `*` allowed anywhere. As written.
    Namespace(Arc<str>),
    /// The policy's namespace is already filled in where the entry had none.
    ServiceAccount {
        namespace: Arc<str>,
        name: Arc<str>,
    },
    TrustDomain(TrustDomainMatch),
    /// The TCP peer.
    SourceIp(IpNet),
    /// The address derived from X-Forwarded-For or PROXY protocol.
    RemoteIp(IpNet),
    RequestPrincipal(RequestPrincipal),
    /// `request.auth.audiences`.
    Audience(StringMatch),
    /// `request.auth.presenter` (claim `azp`).
    Presenter(StringMatch),
    /// `request.auth.claims[a][b]`: path segments, list-or-scalar string.
    Claim {
        path: Vec<Arc<str>>,
        value: StringMatch,
    },
    /// Name in lower case.
    Header {
        name: Arc<str>,
        value: StringMatch,
    },
    /// `:authority`, case-insensitive, with the port if the client sent one.
    Host(StringMatch),
    Method(StringMatch),
    Path(PathMatch),
    /// The workload's own port.
    Port(u16),
    DestinationIp(IpNet),
    Sni(StringMatch),
    /// `experimental.envoy.filters.X[key]`: dynamic metadata; `list` when the value was written `[v]`.
    Metadata {
        filter: Arc<str>,
        key: Arc<str>,
        value: StringMatch,
        list: bool,
    },
}

impl Atom {
    /// Whether only an HTTP filter chain can see this attribute (semantics §4.3, column "HTTP-only").
    pub fn http_only(&self) -> bool {
        match self {
            Self::Principal(_)
            | Self::Namespace(_)
            | Self::ServiceAccount { .. }
            | Self::TrustDomain(_)
            | Self::SourceIp(_)
            | Self::RemoteIp(_)
            | Self::Port(_)
            | Self::DestinationIp(_)
            | Self::Sni(_)
            | Self::Metadata { .. } => false,
            Self::RequestPrincipal(_)
            | Self::Audience(_)
            | Self::Presenter(_)
            | Self::Claim { .. }
            | Self::Header { .. }
            | Self::Host(_)
            | Self::Method(_)
            | Self::Path(_) => true,
        }
    }
}

/// The value as a policy spells it, without the field it stands in.
impl std::fmt::Display for Atom {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Principal(value)
            | Self::Audience(value)
            | Self::Presenter(value)
            | Self::Claim { path: _, value }
            | Self::Header { name: _, value }
            | Self::Host(value)
            | Self::Method(value)
            | Self::Path(PathMatch::Plain(value))
            | Self::Sni(value)
            | Self::Metadata { filter: _, key: _, value, list: false } => value.fmt(f),
            Self::Metadata { filter: _, key: _, value, list: true } => write!(f, "[{value}]"),
            Self::Namespace(value)
            | Self::TrustDomain(TrustDomainMatch::Exact(value) | TrustDomainMatch::Wildcard(value))
            | Self::Path(PathMatch::Template(value)) => f.write_str(value),
            Self::TrustDomain(TrustDomainMatch::Any) => f.write_str("*"),
            Self::ServiceAccount { namespace, name } => write!(f, "{namespace}/{name}"),
            Self::SourceIp(net) | Self::RemoteIp(net) | Self::DestinationIp(net) => net.fmt(f),
            Self::RequestPrincipal(RequestPrincipal { issuer, subject }) => {
                let part =
                    |part: &Option<StringMatch>| part.as_ref().map_or("*".to_owned(), ToString::to_string);
                write!(f, "{}/{}", part(issuer), part(subject))
            }
            Self::Port(port) => port.fmt(f),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::StringMatch;

    /// Semantics §4.2: what each notation means, and what it matches.
    #[test]
    fn notations() {
        let table: [(&str, &str, &[&str], &[&str]); 9] = [
            ("abc", "abc", &["abc"], &["ab", "abcd", "xabc", "ABC", ""]),
            ("abc*", "abc*", &["abc", "abcd", "abc*"], &["ab", "xabc", "xabcx", "ABC", ""]),
            ("*abc", "*abc", &["abc", "xabc", "*abc"], &["bc", "abcx", "xabcx", "ABC", ""]),
            ("*", "*", &["a", "*", "abc"], &[""]),
            ("", "", &[""], &["a", "*"]),
            ("a*c", "a*c", &["a*c"], &["abc", "ac", "a*cd"]),
            // The leading one wins.
            ("*a*", "*a*", &["a*", "xa*"], &["a", "xax", "ab"]),
            ("**", "**", &["*", "x*"], &["", "x", "*x"]),
            ("a**", "a**", &["a*", "a*x"], &["a", "ax"]),
        ];
        for (notation, shown, matched, not) in table {
            let parsed = StringMatch::parse(notation);
            assert_eq!(parsed.to_string(), shown);
            for value in matched {
                assert!(parsed.matches(value), "{notation} matches {value:?}");
            }
            for value in not {
                assert!(!parsed.matches(value), "{notation} does not match {value:?}");
            }
        }
    }
}
