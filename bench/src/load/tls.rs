//! Certificates for the sidecars, minted from a CA whose key is at hand. The server is believed whoever it is: what is
//! measured is its work.

use std::path::Path;
use std::sync::Arc;

use ::tests::lab::{AnyServer, Authority, Leaf};
use anyhow::{Context as _, Result};
use rustls::crypto::aws_lc_rs;
use rustls::pki_types::pem::PemObject as _;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};

/// Makes client certificates.
pub struct Minter(Authority);

impl std::fmt::Debug for Minter {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Minter").finish_non_exhaustive()
    }
}

impl Minter {
    /// Of a folder with `root-cert.pem` and `ca-key.pem`.
    ///
    /// # Errors
    /// If they are not there.
    pub fn of(folder: &Path) -> Result<Self> {
        Authority::of_state(folder).map(Self)
    }

    /// A TLS client with a certificate for `identity`.
    ///
    /// # Errors
    /// If it is no SPIFFE ID.
    pub fn client(&self, identity: &str) -> Result<Arc<rustls::ClientConfig>> {
        let (certificate, key) = self.0.mint_pem(&Leaf::new([identity]))?;
        let chain = vec![CertificateDer::from_pem_slice(certificate.as_bytes()).context("a certificate")?];
        let key = PrivateKeyDer::from_pem_slice(key.as_bytes()).context("a key")?;
        let provider = Arc::new(aws_lc_rs::default_provider());
        let mut config = rustls::ClientConfig::builder_with_provider(provider.clone())
            .with_safe_default_protocol_versions()?
            .dangerous()
            .with_custom_certificate_verifier(Arc::new(AnyServer(provider)))
            .with_client_auth_cert(chain, key)?;
        config.alpn_protocols = vec![b"h2".to_vec()];
        config.resumption = rustls::client::Resumption::disabled();
        Ok(Arc::new(config))
    }
}
