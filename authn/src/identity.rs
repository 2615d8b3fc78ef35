//! What a verified connection says of its peer, and how a request handler reads it.

use std::{
    net::SocketAddr,
    sync::{Arc, Weak},
};

use spiffe::{Leaf, SpiffeId, SvidError};
use time::{Duration, OffsetDateTime};

use crate::{tls::Place, token::TokenIdentity};

/// The identity that the peer proved with its client certificate, in this connection's handshake.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PeerIdentity {
    pub id: SpiffeId,
    /// Serial number of its leaf, lower-case hexadecimal.
    pub serial: String,
    /// Last second of the leaf's validity. A connection by [`crate::tls::Incoming`] ends after it.
    pub not_after: OffsetDateTime,
    /// The leaf as DER.
    pub certificate: Arc<[u8]>,
}

impl PeerIdentity {
    /// Reads a leaf that the TLS stack has verified.
    pub(crate) fn of_verified(der: &[u8]) -> Result<Self, SvidError> {
        let Leaf { id, serial, not_after, not_before: _, dns_names: _, public_key: _ } = Leaf::parse(der)?;
        Ok(Self { id, serial, not_after, certificate: der.into() })
    }

    /// The first instant at which the certificate is no longer valid: `not_after` is counted in whole seconds and still
    /// belongs to the validity period (RFC 5280 §4.1.2.5), as the verifier sees it, too.
    pub fn ends_at(&self) -> OffsetDateTime {
        self.not_after + Duration::SECOND
    }

    /// Whether the certificate's validity has ended.
    pub fn is_expired(&self, now: OffsetDateTime) -> bool {
        now >= self.ends_at()
    }
}

/// What is known of a connection; in the extensions of each of its requests.
#[derive(Clone, Debug)]
pub struct ConnectionInfo {
    /// The peer's address and port.
    pub peer: SocketAddr,
    /// `None` if the peer presented no certificate.
    pub identity: Option<Arc<PeerIdentity>>,
    /// Where the connection is counted; gone when it has ended.
    place: Weak<Place>,
}

impl ConnectionInfo {
    pub(crate) fn new(peer: SocketAddr, identity: Option<Arc<PeerIdentity>>, place: &Arc<Place>) -> Self {
        Self { peer, identity, place: Arc::downgrade(place) }
    }

    /// Tells the listener that the caller has proven itself by a token: newcomers no longer displace its connection.
    /// False if it has too many connections already, or this one is ending.
    pub fn identify(&self, caller: &TokenIdentity) -> bool {
        self.place.upgrade().is_some_and(|place| place.identify(caller))
    }
}

/// The connection that a request came by; `None` if not by [`crate::tls::Incoming`].
pub fn connection<T>(request: &tonic::Request<T>) -> Option<&ConnectionInfo> {
    request.extensions().get()
}

/// The verified identity of a request's caller; `None` if it proved none.
pub fn peer<T>(request: &tonic::Request<T>) -> Option<&Arc<PeerIdentity>> {
    connection(request)?.identity.as_ref()
}

/// The identity that a request's caller proved by a token, behind a [`crate::token::TokenLayer`]; `None` if it did not.
pub fn token_identity<T>(request: &tonic::Request<T>) -> Option<&Arc<TokenIdentity>> {
    request.extensions().get()
}
