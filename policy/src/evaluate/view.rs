//! What the authorization filters see of a request: no identity where mTLS is off, no token that was not verified, no
//! header that token verification took away.

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

    /// Without query and fragment.
    pub(super) fn path(&self) -> &'r str {
        let path: &'r str = &self.request.path;
        path.split(['?', '#']).next().unwrap_or(path)
    }

    /// Every value of a header, by its name in lower case. Pseudo-headers come from their own fields; `host` is another
    /// name for `:authority`.
    pub(super) fn header<'v>(&'v self, name: &'v str) -> Vec<&'v str> {
        let present = |value: &'r str| if value.is_empty() { vec![] } else { vec![value] };
        match name {
            ":method" => present(&self.request.method),
            ":path" => present(&self.request.path),
            ":authority" | "host" => present(&self.request.host),
            _ if self.token.as_ref().is_some_and(|token| token.took(name)) => vec![],
            _ => {
                let named = self.request.headers.iter().filter(|(n, _)| n.eq_ignore_ascii_case(name));
                named.map(|(_, value)| value.as_str()).collect()
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
