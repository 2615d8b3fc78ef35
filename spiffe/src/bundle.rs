//! Trust bundles: the root certificates of a trust domain.
//!
//! Holds and prints them; does not verify chains and does not fetch anything.

use x509_parser::{
    extensions::GeneralName,
    prelude::{FromDer, X509Certificate},
};

use crate::{SpiffeId, TrustDomain, pem};

/// Why text or bytes are no trust bundle.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum BundleError {
    #[error("not PEM")]
    Pem,
    #[error("holds a PEM block {0:?}, where only certificates belong")]
    Label(String),
    #[error("holds a certificate that cannot be parsed")]
    Certificate,
    #[error("holds a certificate that is no CA")]
    NotCa,
    #[error("holds no certificate")]
    Empty,
}

/// Root certificates in order, each once, at least one, all of them CAs.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TrustBundle {
    roots: Vec<Vec<u8>>,
}

impl TrustBundle {
    /// Reads PEM. One bad block refuses the whole, so that a cut-off file never silently drops a root.
    pub fn from_pem(text: &[u8]) -> Result<Self, BundleError> {
        let blocks = pem::decode(text).ok_or(BundleError::Pem)?;
        let certificate = |(label, der): (String, zeroize::Zeroizing<Vec<u8>>)| match label.as_str() {
            "CERTIFICATE" => Ok(der.to_vec()),
            _ => Err(BundleError::Label(label)),
        };
        Self::from_ders(blocks.into_iter().map(certificate).collect::<Result<Vec<_>, _>>()?)
    }

    /// Takes DER certificates.
    pub fn from_ders(ders: impl IntoIterator<Item = Vec<u8>>) -> Result<Self, BundleError> {
        let mut roots: Vec<Vec<u8>> = Vec::new();
        for der in ders {
            let (rest, certificate) =
                X509Certificate::from_der(&der).map_err(|_| BundleError::Certificate)?;
            if !rest.is_empty() {
                return Err(BundleError::Certificate);
            }
            if !certificate.is_ca() {
                return Err(BundleError::NotCa);
            }
            if !roots.contains(&der) {
                roots.push(der);
            }
        }
        if roots.is_empty() { Err(BundleError::Empty) } else { Ok(Self { roots }) }
    }

    /// This bundle and what `other` has besides. Both old and new roots are trusted while a root is replaced.
    pub fn union(mut self, other: &Self) -> Self {
        for root in &other.roots {
            if !self.roots.contains(root) {
                self.roots.push(root.clone());
            }
        }
        self
    }

    /// The trust domain that the first root is for: its only URI name, `spiffe://TD`. `None` if it says none.
    pub fn trust_domain(&self) -> Option<TrustDomain> {
        let (_, certificate) = X509Certificate::from_der(self.roots.first()?).ok()?;
        let names = certificate.subject_alternative_name().ok()??;
        let mut uris = names.value.general_names.iter().filter_map(|name| match name {
            GeneralName::URI(uri) => Some(*uri),
            _ => None,
        });
        let (id, None) = (uris.next()?.parse::<SpiffeId>().ok()?, uris.next()) else { return None };
        if id.path().is_empty() { id.trust_domain().parse().ok() } else { None }
    }

    /// The roots as DER.
    pub fn roots(&self) -> impl ExactSizeIterator<Item = &[u8]> {
        self.roots.iter().map(Vec::as_slice)
    }

    /// The roots as PEM blocks, one after another.
    pub fn to_pem(&self) -> String {
        self.roots().map(|der| String::clone(&pem::encode("CERTIFICATE", der))).collect()
    }
}
