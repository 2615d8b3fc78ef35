//! The server side: accepts TCP, does TLS handshakes side by side, and hands verified connections to tonic.
//!
//! Everybody can reach the port, so nobody may hold it: a handshake that is slow ends after a time limit; when there are
//! too many unfinished handshakes or connections without identity, the oldest gives way to the newest, so that a flood of
//! idle connections displaces itself and not the callers that come now. A connection ends with its certificate.

mod connection;
mod incoming;
mod table;
mod waiting;

use std::{sync::Arc, time::Duration};

use rustls::{ServerConfig, server::NoServerSessionStorage};
use tokio::net::TcpListener;

pub use connection::Connection;
pub use incoming::{CountersHandle, Incoming};
pub use table::Counters;
pub(crate) use table::Place;
pub use waiting::Waiting;

use crate::{ALPN, ClientTrust, OwnSvid, provider};

/// What a listener allows. The defaults fit a process whose file limit is the usual 1024.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Limits {
    /// Longest handshake.
    pub handshake_timeout: Duration,
    /// Handshakes in progress; one more ends the oldest.
    pub handshakes: usize,
    /// Connections of callers without identity; one more ends the oldest.
    pub anonymous: usize,
    /// Connections of callers with identity; one more is refused.
    pub identified: usize,
    /// Connections under one certificate, or of one caller by token; one more is refused.
    pub per_certificate: usize,
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            handshake_timeout: Duration::from_secs(5),
            handshakes: 128,
            anonymous: 128,
            identified: 20_000,
            per_certificate: 64,
        }
    }
}

/// TLS 1.2 and 1.3 with our SVID; a client certificate is asked for, may be missing, and is verified by `trust`.
pub fn server_config(own: Arc<OwnSvid>, trust: Arc<ClientTrust>) -> Arc<ServerConfig> {
    let mut config = ServerConfig::builder_with_provider(provider())
        .with_safe_default_protocol_versions()
        .expect("the provider has the suites of TLS 1.2 and 1.3")
        .with_client_cert_verifier(trust)
        .with_cert_resolver(own);
    config.alpn_protocols = vec![ALPN.to_vec()];
    // A resumed session would skip the verification of the client's certificate.
    config.session_storage = Arc::new(NoServerSessionStorage {});
    config.send_tls13_tickets = 0;
    Arc::new(config)
}

/// Serves `listener`. The stream never ends and never fails; dropping it closes the listener.
pub fn serve(listener: TcpListener, config: Arc<ServerConfig>, limits: Limits) -> Incoming {
    Incoming::start(listener, config, limits)
}

/// A tonic server with limits for a port that everybody can reach: silent peers are dropped, headers and streams are
/// bounded. Message sizes are limited by each service.
pub fn grpc_server() -> tonic::transport::Server {
    tonic::transport::Server::builder()
        .http2_keepalive_interval(Some(Duration::from_secs(20)))
        .http2_keepalive_timeout(Some(Duration::from_secs(10)))
        .max_concurrent_streams(128)
        .http2_max_header_list_size(16 * 1024)
        .http2_max_pending_accept_reset_streams(Some(32))
}
