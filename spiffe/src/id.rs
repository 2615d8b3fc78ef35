//! SPIFFE IDs and trust domains (SPIFFE-ID specification §2).
//!
//! A parsed value is always valid; nothing here says whether the identity exists.

use std::{fmt, str::FromStr, sync::Arc};

use serde::{Deserialize, Deserializer, Serialize, Serializer, de};

/// Longest SPIFFE ID in bytes (SPIFFE-ID §2.3).
pub const MAX_ID_BYTES: usize = 2048;
/// Longest trust domain name in bytes (SPIFFE-ID §2.3: the URI host limit).
const MAX_TRUST_DOMAIN_BYTES: usize = 255;
const SCHEME: &str = "spiffe://";

/// Why a string is no SPIFFE ID or trust domain.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum IdError {
    #[error("a SPIFFE ID begins with spiffe://")]
    Scheme,
    #[error("the trust domain is empty")]
    EmptyTrustDomain,
    #[error("the trust domain is longer than 255 bytes")]
    LongTrustDomain,
    #[error("a trust domain has only lower-case letters, digits, dots, dashes and underscores")]
    TrustDomainCharacter,
    #[error("the path has an empty segment or ends with a slash")]
    EmptySegment,
    #[error("the path has a segment that is . or ..")]
    DotSegment,
    #[error("a path segment has only letters, digits, dots, dashes and underscores")]
    PathCharacter,
    #[error("the SPIFFE ID is longer than 2048 bytes")]
    Long,
}

/// The name of a trust domain, such as `cluster.local` (SPIFFE-ID §2.1). Cheap to clone.
#[derive(Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct TrustDomain(Arc<str>);

impl TrustDomain {
    /// The name without scheme.
    pub fn as_str(&self) -> &str {
        &self.0
    }

    /// The trust domain's own ID, `spiffe://TD`: the URI of its root certificates.
    pub fn id(&self) -> SpiffeId {
        SpiffeId { uri: format!("{SCHEME}{}", self.0).into(), path_at: SCHEME.len() + self.0.len() }
    }
}

impl FromStr for TrustDomain {
    type Err = IdError;

    fn from_str(name: &str) -> Result<Self, IdError> {
        check_trust_domain(name)?;
        Ok(Self(name.into()))
    }
}

/// A SPIFFE ID. Compared and ordered by its text; cheap to clone.
#[derive(Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct SpiffeId {
    uri: Arc<str>,
    /// Where the path begins: at the slash after the trust domain, or at the end if there is no path.
    path_at: usize,
}

impl SpiffeId {
    /// `spiffe://TD/ns/NAMESPACE/sa/SERVICE_ACCOUNT`, the shape Istio gives to workloads.
    pub fn workload(domain: &TrustDomain, namespace: &str, service_account: &str) -> Result<Self, IdError> {
        Self::of_segments(domain, &["ns", namespace, "sa", service_account])
    }

    /// `spiffe://TD/countersign/agent/NAMESPACE/NAME`: the agent beside the workload of that name.
    pub fn agent(domain: &TrustDomain, namespace: &str, name: &str) -> Result<Self, IdError> {
        Self::of_segments(domain, &["countersign", "agent", namespace, name])
    }

    fn of_segments(domain: &TrustDomain, segments: &[&str]) -> Result<Self, IdError> {
        let mut uri = format!("{SCHEME}{domain}");
        for segment in segments {
            check_segment(segment)?;
            uri.push('/');
            uri.push_str(segment);
        }
        if uri.len() > MAX_ID_BYTES {
            return Err(IdError::Long);
        }
        Ok(Self { uri: uri.into(), path_at: SCHEME.len() + domain.0.len() })
    }

    /// The whole ID, `spiffe://TD/...`.
    pub fn as_str(&self) -> &str {
        &self.uri
    }

    /// The name of the trust domain.
    pub fn trust_domain(&self) -> &str {
        &self.uri[SCHEME.len()..self.path_at]
    }

    /// The path with its leading slash; empty for the trust domain's own ID.
    pub fn path(&self) -> &str {
        &self.uri[self.path_at..]
    }

    /// Whether the ID belongs to `domain`.
    pub fn is_in(&self, domain: &TrustDomain) -> bool {
        self.trust_domain() == domain.as_str()
    }

    /// Namespace and service account, if the ID has the shape of [`Self::workload`].
    pub fn as_workload(&self) -> Option<(&str, &str)> {
        match self.segments()? {
            ["ns", namespace, "sa", service_account] => Some((namespace, service_account)),
            _ => None,
        }
    }

    /// Namespace and name of the workload beside the agent, if the ID has the shape of [`Self::agent`].
    pub fn as_agent(&self) -> Option<(&str, &str)> {
        match self.segments()? {
            ["countersign", "agent", namespace, name] => Some((namespace, name)),
            _ => None,
        }
    }

    /// The path's segments if there are exactly four.
    fn segments(&self) -> Option<[&str; 4]> {
        let mut parts = self.path().split('/').skip(1);
        let four = [parts.next()?, parts.next()?, parts.next()?, parts.next()?];
        parts.next().is_none().then_some(four)
    }
}

impl FromStr for SpiffeId {
    type Err = IdError;

    fn from_str(uri: &str) -> Result<Self, IdError> {
        if uri.len() > MAX_ID_BYTES {
            return Err(IdError::Long);
        }
        let rest = uri.strip_prefix(SCHEME).ok_or(IdError::Scheme)?;
        let (domain, path) = rest.split_once('/').map_or((rest, None), |(domain, path)| (domain, Some(path)));
        check_trust_domain(domain)?;
        if let Some(path) = path {
            path.split('/').try_for_each(check_segment)?;
        }
        Ok(Self { uri: uri.into(), path_at: SCHEME.len() + domain.len() })
    }
}

fn check_trust_domain(name: &str) -> Result<(), IdError> {
    let allowed = |byte: u8| matches!(byte, b'a'..=b'z' | b'0'..=b'9' | b'.' | b'-' | b'_');
    match name {
        "" => Err(IdError::EmptyTrustDomain),
        _ if name.len() > MAX_TRUST_DOMAIN_BYTES => Err(IdError::LongTrustDomain),
        _ if !name.bytes().all(allowed) => Err(IdError::TrustDomainCharacter),
        _ => Ok(()),
    }
}

/// One path segment (SPIFFE-ID §2.2). Percent encoding is not part of the grammar, so `%` is refused with the rest.
fn check_segment(segment: &str) -> Result<(), IdError> {
    let allowed = |byte: u8| byte.is_ascii_alphanumeric() || matches!(byte, b'.' | b'-' | b'_');
    match segment {
        "" => Err(IdError::EmptySegment),
        "." | ".." => Err(IdError::DotSegment),
        _ if !segment.bytes().all(allowed) => Err(IdError::PathCharacter),
        _ => Ok(()),
    }
}

macro_rules! text {
    ($($name:ident),*) => {$(
        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str(self.as_str())
            }
        }

        impl fmt::Debug for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                fmt::Debug::fmt(self.as_str(), f)
            }
        }

        impl Serialize for $name {
            fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
                serializer.serialize_str(self.as_str())
            }
        }

        impl<'de> Deserialize<'de> for $name {
            fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
                String::deserialize(deserializer)?.parse().map_err(de::Error::custom)
            }
        }
    )*};
}
text!(TrustDomain, SpiffeId);

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn parse(uri: &str) -> Result<SpiffeId, IdError> {
        uri.parse()
    }

    #[test]
    fn accepts_the_grammar_and_nothing_else() {
        for uri in [
            "spiffe://cluster.local",
            "spiffe://cluster.local/ns/default/sa/orders",
            "spiffe://a-b_c.1/X.y_Z-0",
            "spiffe://td/...",
            "spiffe://td/.a/..b",
        ] {
            assert_eq!(parse(uri).map(|id| id.to_string()).as_deref(), Ok(uri));
        }
        for (uri, error) in [
            ("", IdError::Scheme),
            ("https://td/a", IdError::Scheme),
            ("SPIFFE://td/a", IdError::Scheme),
            ("spiffe:/td/a", IdError::Scheme),
            ("spiffe://", IdError::EmptyTrustDomain),
            ("spiffe:///a", IdError::EmptyTrustDomain),
            ("spiffe://TD/a", IdError::TrustDomainCharacter),
            ("spiffe://td:80/a", IdError::TrustDomainCharacter),
            ("spiffe://user@td/a", IdError::TrustDomainCharacter),
            ("spiffe://td?x", IdError::TrustDomainCharacter),
            ("spiffe://td#x", IdError::TrustDomainCharacter),
            ("spiffe://t%64/a", IdError::TrustDomainCharacter),
            ("spiffe://td\0/a", IdError::TrustDomainCharacter),
            ("spiffe://tđ/a", IdError::TrustDomainCharacter),
            ("spiffe://td/", IdError::EmptySegment),
            ("spiffe://td/a/", IdError::EmptySegment),
            ("spiffe://td/a//b", IdError::EmptySegment),
            ("spiffe://td/a/./b", IdError::DotSegment),
            ("spiffe://td/a/../b", IdError::DotSegment),
            ("spiffe://td/a%2fb", IdError::PathCharacter),
            ("spiffe://td/a?b", IdError::PathCharacter),
            ("spiffe://td/a#b", IdError::PathCharacter),
            ("spiffe://td/a\0", IdError::PathCharacter),
            ("spiffe://td/a b", IdError::PathCharacter),
            ("spiffe://td/á", IdError::PathCharacter),
            ("spiffe://td/a*", IdError::PathCharacter),
        ] {
            assert_eq!(parse(uri), Err(error), "{uri:?}");
        }
    }

    #[test]
    fn length_limits_are_exact() {
        let longest = format!("spiffe://td/{}", "a".repeat(MAX_ID_BYTES - "spiffe://td/".len()));
        assert!(parse(&longest).is_ok());
        assert_eq!(parse(&format!("{longest}a")), Err(IdError::Long));
        assert!("a".repeat(255).parse::<TrustDomain>().is_ok());
        assert_eq!("a".repeat(256).parse::<TrustDomain>(), Err(IdError::LongTrustDomain));
        let td: TrustDomain = "td".parse().unwrap();
        assert_eq!(SpiffeId::workload(&td, &"n".repeat(2000), &"s".repeat(60)), Err(IdError::Long));
    }

    #[test]
    fn shapes_are_told_apart() {
        let td: TrustDomain = "td".parse().unwrap();
        let workload = SpiffeId::workload(&td, "shop", "orders").unwrap();
        let agent = SpiffeId::agent(&td, "shop", "orders-1").unwrap();
        assert_eq!(workload.as_str(), "spiffe://td/ns/shop/sa/orders");
        assert_eq!((workload.as_workload(), workload.as_agent()), (Some(("shop", "orders")), None));
        assert_eq!((agent.as_workload(), agent.as_agent()), (None, Some(("shop", "orders-1"))));
        for other in ["spiffe://td", "spiffe://td/orders", "spiffe://td/ns/a/sa/b/c", "spiffe://td/ns/a/sa"] {
            let id = parse(other).unwrap();
            assert_eq!((id.as_workload(), id.as_agent()), (None, None), "{other}");
        }
        assert_eq!(SpiffeId::workload(&td, "a/sa/b", "c"), Err(IdError::PathCharacter));
        assert_eq!(SpiffeId::workload(&td, "", "c"), Err(IdError::EmptySegment));
        assert!(workload.is_in(&td) && !workload.is_in(&"td2".parse().unwrap()));
        assert_eq!(td.id().path(), "");
    }

    proptest! {
        /// What parses prints as it was written, and its parts put together give it back.
        #[test]
        fn parsing_keeps_the_text(uri in r"spiffe://[a-z0-9._-]{1,12}(/[a-zA-Z0-9._-]{1,6}){0,5}") {
            if let Ok(id) = parse(&uri) {
                prop_assert_eq!(format!("spiffe://{}{}", id.trust_domain(), id.path()), uri.clone());
                prop_assert_eq!(id.to_string(), uri);
            }
        }

        /// No string outside the alphabet gets in, however it is arranged.
        #[test]
        fn only_the_alphabet_parses(uri in any::<String>().prop_map(|s| format!("spiffe://td/{s}"))) {
            let legal = |c: char| c.is_ascii_alphanumeric() || "._-/".contains(c);
            if let Ok(id) = parse(&uri) {
                prop_assert!(id.path().chars().all(legal));
                prop_assert!(!id.path().split('/').skip(1).any(|s| s.is_empty() || s == "." || s == ".."));
            }
        }

        /// Constructors and the parser agree, and no two different pairs give one ID.
        #[test]
        fn constructed_ids_parse_and_are_injective(
            a in ("[a-z0-9.-]{1,8}", "[a-z0-9.-]{1,8}"), b in ("[a-z0-9.-]{1,8}", "[a-z0-9.-]{1,8}")
        ) {
            let td: TrustDomain = "cluster.local".parse().unwrap();
            let (x, y) = (SpiffeId::workload(&td, &a.0, &a.1), SpiffeId::workload(&td, &b.0, &b.1));
            if let (Ok(x), Ok(y)) = (x, y) {
                prop_assert_eq!(parse(x.as_str()), Ok(x.clone()));
                prop_assert_eq!(x == y, a == b);
                prop_assert_eq!(x.as_workload(), Some((a.0.as_str(), a.1.as_str())));
            }
        }
    }
}
