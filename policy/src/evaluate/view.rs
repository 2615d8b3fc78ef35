//! What the authorization filters see of a request: no identity where mTLS is off, no token that was not verified, no
//! header that token verification took away.

use std::borrow::Cow;
use std::net::IpAddr;

use serde_json::{Map, Value};

use super::request::{Protocol, Request};
use super::token::Token;
use crate::model::MtlsMode;

#[derive(Clone, Debug)]
pub(super) struct View<'r> {
    pub(super) request: &'r Request,
    pub(super) mode: MtlsMode,
    /// Set once tokens were checked; until then there is none.
    pub(super) token: Option<Token>,
}

impl<'r> View<'r> {
    pub(super) fn new(request: &'r Request, mode: MtlsMode) -> Self {
        Self { request, mode, token: None }
    }

    /// STRICT has no chain for a peer without a certificate, and a guard for one that was connected before.
    pub(super) fn refused_plaintext(&self) -> bool {
        self.mode == MtlsMode::Strict && self.request.peer.is_empty()
    }

    /// The names of the peer. Nobody's certificate is asked for where mTLS is disabled.
    pub(super) fn peer(&self) -> &'r [String] {
        match self.mode {
            MtlsMode::Disable => &[],
            MtlsMode::Permissive | MtlsMode::Strict => &self.request.peer,
        }
    }

    pub(super) fn is_http(&self) -> bool {
        self.request.protocol == Protocol::Http
    }

    /// One that is not the socket's is as it was written: Envoy takes `::ffff:10.0.0.1` in X-Forwarded-For for no IPv4
    /// address.
    pub(super) fn remote_ip(&self) -> IpAddr {
        let Request { source_ip, remote_ip, .. } = self.request;
        if remote_ip == source_ip { canonical(*remote_ip) } else { *remote_ip }
    }

    /// Without query and fragment.
    pub(super) fn path(&self) -> &'r str {
        let path: &'r str = &self.request.path;
        path.split(['?', '#']).next().unwrap_or(path)
    }

    /// Every value of a header, by its name in lower case. Pseudo-headers come from their own fields; `host` is another
    /// name for `:authority`.
    pub(super) fn header<'v>(&'v self, name: &'v str) -> Vec<Cow<'v, str>> {
        let present = |value: &'r str| if value.is_empty() { vec![] } else { vec![value.into()] };
        match name {
            ":method" => present(&self.request.method),
            ":path" => present(&self.request.path),
            ":authority" | "host" => present(&self.request.host),
            _ if REMOVED.binary_search(&name).is_ok() => vec![],
            _ if self.token.as_ref().is_some_and(|token| token.took(name)) => vec![],
            _ => {
                let named = self.request.headers.iter().filter(|(n, _)| n.eq_ignore_ascii_case(name));
                let lines: Vec<&'r str> = named.map(|(_, value)| value.as_str()).collect();
                if JOINED.binary_search(&name).is_ok() {
                    joined(lines)
                } else {
                    lines.into_iter().map(Cow::from).collect()
                }
            }
        }
    }

    pub(super) fn claims(&self) -> Option<&Map<String, Value>> {
        self.token.as_ref().map(Token::claims)
    }

    /// A claim by its path of names.
    pub(super) fn claim<'p>(&self, path: impl IntoIterator<Item = &'p str>) -> Option<&Value> {
        let mut path = path.into_iter();
        let top = self.claims()?.get(path.next()?)?;
        path.try_fold(top, |value, name| value.as_object()?.get(name))
    }

    pub(super) fn metadata(&self, filter: &str, key: &str) -> Option<&'r Value> {
        self.request.metadata.get(filter)?.get(key)
    }
}

/// A socket that takes both families reports IPv4 peers as such.
pub(super) fn canonical(address: IpAddr) -> IpAddr {
    address.to_canonical()
}

/// Headers of which Envoy makes one line before any filter sees them: those that it keeps in a field of their own (seen on
/// 1.39.3, over HTTP/1.1 and HTTP/2). All others keep their lines apart. Sorted.
const JOINED: [&str; 37] = [
    "accept",
    "accept-encoding",
    "access-control-request-headers",
    "access-control-request-method",
    "access-control-request-private-network",
    "authentication",
    "authorization",
    "cache-control",
    "content-encoding",
    "content-type",
    "expect",
    "grpc-accept-encoding",
    "grpc-timeout",
    "if-match",
    "if-modified-since",
    "if-none-match",
    "if-range",
    "if-unmodified-since",
    "origin",
    "pragma",
    "referer",
    "user-agent",
    "via",
    "x-client-trace-id",
    "x-envoy-attempt-count",
    "x-envoy-decorator-operation",
    "x-envoy-downstream-service-cluster",
    "x-envoy-downstream-service-node",
    "x-envoy-external-address",
    "x-envoy-is-timeout-retry",
    "x-envoy-original-host",
    "x-envoy-original-path",
    "x-forwarded-for",
    "x-forwarded-host",
    "x-forwarded-port",
    "x-forwarded-proto",
    "x-request-id",
];

/// Headers that no filter sees: hop-by-hop ones, and those by which a caller would steer Envoy itself (seen on 1.39.3). Sorted.
const REMOVED: [&str; 19] = [
    "connection",
    "keep-alive",
    "proxy-connection",
    "te",
    "x-envoy-expected-rq-timeout-ms",
    "x-envoy-force-trace",
    "x-envoy-hedge-on-per-try-timeout",
    "x-envoy-internal",
    "x-envoy-ip-tags",
    "x-envoy-max-retries",
    "x-envoy-original-url",
    "x-envoy-retriable-header-names",
    "x-envoy-retriable-status-codes",
    "x-envoy-retry-grpc-on",
    "x-envoy-retry-on",
    "x-envoy-upstream-alt-stat-name",
    "x-envoy-upstream-rq-per-try-timeout-ms",
    "x-envoy-upstream-rq-timeout-alt-response",
    "x-envoy-upstream-rq-timeout-ms",
];

/// Envoy adds no empty value to a line.
fn joined(lines: Vec<&str>) -> Vec<Cow<'_, str>> {
    let filled: Vec<&str> = lines.iter().copied().filter(|line| !line.is_empty()).collect();
    match (lines.len(), filled.as_slice()) {
        (0 | 1, _) => lines.into_iter().map(Cow::from).collect(),
        (_, []) => vec![Cow::from("")],
        (_, [one]) => vec![Cow::from(*one)],
        _ => vec![Cow::from(filled.join(","))],
    }
}

#[cfg(test)]
mod tests {
    use super::{JOINED, REMOVED};

    #[test]
    fn lists_are_searched_as_sorted_ones() {
        assert!(JOINED.is_sorted() && REMOVED.is_sorted());
    }
}
