//! The process's own SVID for TLS, replaceable while connections come and go.
//!
//! Does not renew it: whoever does calls [`OwnSvid::replace`].

use std::sync::Arc;

use arc_swap::ArcSwapOption;
use rustls::{
    SignatureScheme,
    client::ResolvesClientCert,
    pki_types::{CertificateDer, PrivateKeyDer, PrivatePkcs8KeyDer},
    server::{ClientHello, ResolvesServerCert},
    sign::CertifiedKey,
};
use spiffe::Svid;

/// Why TLS cannot use an SVID.
#[derive(Debug, thiserror::Error)]
#[error("the SVID's private key cannot be used for TLS")]
pub struct UnusableSvid(#[source] rustls::Error);

/// A slot for our SVID. New handshakes use what was put last; connections keep what they began with.
#[derive(Debug, Default)]
pub struct OwnSvid(ArcSwapOption<CertifiedKey>);

impl OwnSvid {
    /// A slot that holds `svid`.
    pub fn new(svid: &Svid) -> Result<Arc<Self>, UnusableSvid> {
        let slot = Self::default();
        slot.replace(svid)?;
        Ok(Arc::new(slot))
    }

    /// An empty slot: a server refuses every handshake, a client presents no certificate.
    pub fn empty() -> Arc<Self> {
        Arc::default()
    }

    /// Whether there is none.
    pub fn is_empty(&self) -> bool {
        self.0.load().is_none()
    }

    /// Takes the SVID away, as it has expired: a server refuses every handshake, a client presents nothing.
    pub fn clear(&self) {
        self.0.store(None);
    }

    /// Puts `svid` in the place of the last one. On error the last one stays.
    pub fn replace(&self, svid: &Svid) -> Result<(), UnusableSvid> {
        self.0.store(Some(Arc::new(certified(svid)?)));
        Ok(())
    }
}

fn certified(svid: &Svid) -> Result<CertifiedKey, UnusableSvid> {
    let key = PrivateKeyDer::Pkcs8(PrivatePkcs8KeyDer::from(svid.key.pkcs8_der()));
    let key = rustls::crypto::aws_lc_rs::sign::any_supported_type(&key).map_err(UnusableSvid)?;
    Ok(CertifiedKey::new(svid.chain.iter().cloned().map(CertificateDer::from).collect(), key))
}

impl ResolvesServerCert for OwnSvid {
    fn resolve(&self, _hello: ClientHello<'_>) -> Option<Arc<CertifiedKey>> {
        self.0.load_full()
    }
}

impl ResolvesClientCert for OwnSvid {
    fn resolve(&self, _hints: &[&[u8]], _schemes: &[SignatureScheme]) -> Option<Arc<CertifiedKey>> {
        self.0.load_full()
    }

    fn has_certs(&self) -> bool {
        self.0.load().is_some()
    }
}
