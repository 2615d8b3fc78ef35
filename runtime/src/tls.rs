//! Chooses the one cryptography provider of the process. Builds no TLS configuration: that is `authn`'s.

/// Makes aws-lc-rs the process-wide rustls provider. Call first in `main`; calling it again does nothing.
pub fn install_provider() {
    // An Err only says that a provider is installed already, and it is always this one.
    let _ = rustls::crypto::aws_lc_rs::default_provider().install_default();
}
