//! Who is calling: TLS with SPIFFE identities, for our servers and for our clients.
//!
//! Says who the peer proved to be, and refuses certificates that prove nothing. What an identity may do is decided by the
//! services; who gets an identity is decided by `ca`. Session resumption is off on both sides, so that every connection
//! is judged by the trust bundle of its own time.

mod client;
mod identity;
pub mod jwks;
pub mod limit;
mod request;
pub mod schedule;
mod svid;
pub mod svid_client;
pub mod tls;
pub mod token;
mod trust;

pub use client::{connect, connect_lazy, dial};
pub use identity::{ConnectionInfo, PeerIdentity, connection, peer, token_identity};
pub use request::{RequestError, Requester};
pub use svid::{OwnSvid, UnusableSvid};
pub use trust::{ClientTrust, UnusableTrust, client_config};

/// The one TLS provider of the product (aws-lc-rs), named so that nothing depends on a process-wide default.
fn provider() -> std::sync::Arc<rustls::crypto::CryptoProvider> {
    std::sync::Arc::new(rustls::crypto::aws_lc_rs::default_provider())
}

/// The only application protocol spoken on our ports and by our clients.
const ALPN: &[u8] = b"h2";

/// An error and its causes in one line, for people. A cause that the error names already is not said again.
pub fn chain(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut source = error.source();
    while let Some(cause) = source {
        let said = cause.to_string();
        if !text.contains(&said) {
            text.push_str(": ");
            text.push_str(&said);
        }
        source = cause.source();
    }
    text
}
