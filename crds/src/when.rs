//! The keys of `when` conditions (semantics §4.3): which attribute, on which side of a rule, and how a value reads.

use std::sync::Arc;

use policy::model::Side;
use policy::{Atom, StringMatch};

use crate::values::{self, Parsed};

/// A key of `when[]`, understood.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Key {
    SourceIp,
    RemoteIp,
    SourceNamespace,
    SourcePrincipal,
    SourceServiceAccount,
    SourceTrustDomain,
    RequestPrincipal,
    Audiences,
    Presenter,
    /// `request.auth.claims[a][b]`: the steps.
    Claims(Vec<Arc<str>>),
    /// `request.headers[X]`: in lower case.
    Header(Arc<str>),
    DestinationIp,
    DestinationPort,
    Sni,
    /// `experimental.envoy.filters.X[k]`.
    Metadata {
        filter: Arc<str>,
        key: Arc<str>,
    },
}

impl Key {
    pub(crate) fn parse(key: &str) -> Parsed<Self> {
        Ok(match key {
            "" => return Err("a condition needs a key".into()),
            "source.ip" => Self::SourceIp,
            "remote.ip" => Self::RemoteIp,
            "source.namespace" => Self::SourceNamespace,
            "source.principal" => Self::SourcePrincipal,
            "source.serviceAccount" => Self::SourceServiceAccount,
            "source.trustDomain" => Self::SourceTrustDomain,
            "request.auth.principal" => Self::RequestPrincipal,
            "request.auth.audiences" => Self::Audiences,
            "request.auth.presenter" => Self::Presenter,
            "destination.ip" => Self::DestinationIp,
            "destination.port" => Self::DestinationPort,
            "connection.sni" => Self::Sni,
            "destination.namespace" | "destination.labels" | "destination.name" | "destination.user" => {
                return Err(format!("`{key}` is no longer supported"));
            }
            _ => return Self::parse_map(key),
        })
    }

    /// `request.headers[X]`, `request.auth.claims[a]…`, `experimental.envoy.filters.X[k]`.
    fn parse_map(key: &str) -> Parsed<Self> {
        let unknown = || format!("unknown key `{key}`");
        let (attribute, brackets) = key.split_once('[').ok_or_else(unknown)?;
        let inner = brackets.strip_suffix(']').filter(|inner| !inner.is_empty());
        let inner = inner.ok_or_else(|| format!("`{key}` is not of the form {attribute}[NAME]"))?;
        match attribute {
            "request.headers" => {
                if !values::header_text(inner) {
                    return Err(format!("`{inner}` is not a header name"));
                }
                Ok(Self::Header(inner.to_ascii_lowercase().into()))
            }
            "request.auth.claims" => {
                let steps = claim_steps(inner);
                if steps.iter().any(|step| step.is_empty()) {
                    return Err(format!("`{key}` has an empty claim name"));
                }
                Ok(Self::Claims(steps.into_iter().map(Into::into).collect()))
            }
            _ => {
                let filter = attribute.strip_prefix("experimental.").ok_or_else(unknown)?;
                let name = filter.strip_prefix("envoy.filters.").ok_or_else(unknown)?;
                if name.is_empty() {
                    return Err(unknown());
                }
                Ok(Self::Metadata { filter: filter.into(), key: inner.into() })
            }
        }
    }

    /// Which half of the rule it is ANDed to.
    pub(crate) fn side(&self) -> Side {
        match self {
            Self::DestinationIp | Self::DestinationPort | Self::Sni | Self::Metadata { .. } => {
                Side::Permission
            }
            Self::SourceIp
            | Self::RemoteIp
            | Self::SourceNamespace
            | Self::SourcePrincipal
            | Self::SourceServiceAccount
            | Self::SourceTrustDomain
            | Self::RequestPrincipal
            | Self::Audiences
            | Self::Presenter
            | Self::Claims(_)
            | Self::Header(_) => Side::Principal,
        }
    }

    /// Whether CUSTOM cannot use it: identities and tokens (semantics §1.5).
    pub(crate) fn about_identity(&self) -> bool {
        match self {
            Self::SourceNamespace
            | Self::SourcePrincipal
            | Self::SourceServiceAccount
            | Self::SourceTrustDomain
            | Self::RequestPrincipal
            | Self::Audiences
            | Self::Presenter
            | Self::Claims(_) => true,
            Self::SourceIp
            | Self::RemoteIp
            | Self::Header(_)
            | Self::DestinationIp
            | Self::DestinationPort
            | Self::Sni
            | Self::Metadata { .. } => false,
        }
    }

    /// Whether only HTTP chains can see it.
    pub(crate) fn http_only(&self) -> bool {
        match self {
            Self::RequestPrincipal
            | Self::Audiences
            | Self::Presenter
            | Self::Claims(_)
            | Self::Header(_) => true,
            Self::SourceIp
            | Self::RemoteIp
            | Self::SourceNamespace
            | Self::SourcePrincipal
            | Self::SourceServiceAccount
            | Self::SourceTrustDomain
            | Self::DestinationIp
            | Self::DestinationPort
            | Self::Sni
            | Self::Metadata { .. } => false,
        }
    }

    /// One of its values; `namespace` is the policy's.
    pub(crate) fn atom(&self, value: &str, namespace: &Arc<str>) -> Parsed<Atom> {
        let string = StringMatch::parse(value);
        Ok(match self {
            Self::SourceIp => Atom::SourceIp(values::ip_block(value)?),
            Self::RemoteIp => Atom::RemoteIp(values::ip_block(value)?),
            Self::SourceNamespace => Atom::Namespace(value.into()),
            Self::SourcePrincipal => Atom::Principal(string),
            Self::SourceServiceAccount => values::service_account(value, namespace)?,
            Self::SourceTrustDomain => values::trust_domain(value)?,
            Self::RequestPrincipal => Atom::RequestPrincipal(values::request_principal(value)),
            Self::Audiences => Atom::Audience(string),
            Self::Presenter => Atom::Presenter(string),
            Self::Claims(path) => Atom::Claim { path: path.clone(), value: string },
            Self::Header(name) => Atom::Header { name: name.clone(), value: string },
            Self::DestinationIp => Atom::DestinationIp(values::ip_block(value)?),
            Self::DestinationPort => Atom::Port(values::port(value)?),
            Self::Sni => Atom::Sni(string),
            Self::Metadata { filter, key } => metadata(filter, key, value)?,
        })
    }
}

/// `a][b` are two steps, if every bracket closes before the next opens; anything else is one name, brackets and all.
fn claim_steps(inner: &str) -> Vec<&str> {
    let steps: Vec<&str> = inner.split("][").collect();
    if steps.iter().any(|step| step.contains(['[', ']'])) { vec![inner] } else { steps }
}

fn metadata(filter: &Arc<str>, key: &Arc<str>, value: &str) -> Parsed<Atom> {
    let inner = value.strip_prefix('[').and_then(|rest| rest.strip_suffix(']'));
    if inner == Some("") {
        return Err("`[]` matches nothing: write `[VALUE]` for a list that holds VALUE".into());
    }
    let (value, list) = (inner.unwrap_or(value), inner.is_some());
    Ok(Atom::Metadata { filter: filter.clone(), key: key.clone(), value: StringMatch::parse(value), list })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn keys() {
        let claims = |steps: &[&str]| Key::Claims(steps.iter().map(|s| Arc::from(*s)).collect());
        for (key, expect) in [
            ("source.ip", Key::SourceIp),
            ("remote.ip", Key::RemoteIp),
            ("source.namespace", Key::SourceNamespace),
            ("source.principal", Key::SourcePrincipal),
            ("source.serviceAccount", Key::SourceServiceAccount),
            ("source.trustDomain", Key::SourceTrustDomain),
            ("request.auth.principal", Key::RequestPrincipal),
            ("request.auth.audiences", Key::Audiences),
            ("request.auth.presenter", Key::Presenter),
            ("request.auth.claims[a]", claims(&["a"])),
            ("request.auth.claims[a][b.c]", claims(&["a", "b.c"])),
            ("request.auth.claims[a]b]", claims(&["a]b"])),
            ("request.auth.claims[a[b]", claims(&["a[b"])),
            ("request.auth.claims[https://x.example/y]", claims(&["https://x.example/y"])),
            ("request.headers[X-Token]", Key::Header("x-token".into())),
            ("request.headers[:method]", Key::Header(":method".into())),
            ("destination.ip", Key::DestinationIp),
            ("destination.port", Key::DestinationPort),
            ("connection.sni", Key::Sni),
            (
                "experimental.envoy.filters.network.mysql_proxy[db.table]",
                Key::Metadata { filter: "envoy.filters.network.mysql_proxy".into(), key: "db.table".into() },
            ),
        ] {
            assert_eq!(Key::parse(key), Ok(expect), "{key}");
        }
    }

    #[test]
    fn keys_refused() {
        for key in [
            "",
            "source.user",
            "destination.labels[app]",
            "destination.user",
            "request.headers",
            "request.headers[]",
            "request.headers[x",
            "request.headersx[y]",
            "request.headers[a\nb]",
            "request.auth.claims[]",
            "request.auth.claims[a][]",
            "request.auth.claims.a",
            "experimental.envoy.filters.x",
            "experimental.envoy.filters.[x]",
            "experimental.other[x]",
            "Source.ip",
        ] {
            assert!(Key::parse(key).is_err(), "{key}");
        }
    }

    #[test]
    fn metadata_lists() {
        let key = Key::parse("experimental.envoy.filters.a[k]").unwrap();
        let atom = |value: &str, list| Atom::Metadata {
            filter: "envoy.filters.a".into(),
            key: "k".into(),
            value: StringMatch::parse(value),
            list,
        };
        assert_eq!(key.atom("[update*]", &"ns".into()), Ok(atom("update*", true)));
        assert_eq!(key.atom("update", &"ns".into()), Ok(atom("update", false)));
        assert!(key.atom("[]", &"ns".into()).is_err());
    }
}
