//! X.509-SVIDs (X509-SVID specification): reading leaf certificates, and certificate chains with their key.
//!
//! [`Leaf::parse`] judges the certificate's form. It does not verify who signed it nor whether it is in its validity
//! period: the TLS stack does, for every handshake.

use std::collections::HashSet;

use time::{Duration, OffsetDateTime};
use x509_parser::{
    extensions::GeneralName,
    prelude::{FromDer, X509Certificate, X509Version},
};

use crate::{IdError, PrivateKey, SpiffeId, pem};

/// Why a certificate is no X.509-SVID leaf, or a chain and a key are no SVID.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum SvidError {
    #[error("not PEM certificates")]
    Pem,
    #[error("the certificate cannot be parsed")]
    Malformed,
    #[error("the certificate may sign others")]
    Ca,
    #[error("the key usage is missing, not critical, or not that of a leaf")]
    KeyUsage,
    #[error("the certificate has no SPIFFE ID")]
    NoId,
    #[error("the certificate has more than one URI name")]
    SeveralIds,
    #[error("the certificate has a name that could be read in two ways")]
    Name,
    #[error("the certificate's URI name is no SPIFFE ID")]
    Id(#[source] IdError),
    #[error("the certificate is for the trust domain itself, not for a workload")]
    RootId,
    #[error("the private key is not the certificate's")]
    OtherKey,
}

/// A leaf certificate of the right form.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Leaf {
    /// Its only URI name.
    pub id: SpiffeId,
    /// Serial number in lower-case hexadecimal.
    pub serial: String,
    pub not_before: OffsetDateTime,
    pub not_after: OffsetDateTime,
    /// DNS names, in order.
    pub dns_names: Vec<String>,
    /// SubjectPublicKeyInfo as DER.
    pub public_key: Vec<u8>,
}

impl Leaf {
    /// Reads a leaf and holds it to X509-SVID §2 to §5: one URI name, which is a SPIFFE ID with a path; not a CA;
    /// critical key usage with digitalSignature and without keyCertSign and cRLSign.
    pub fn parse(der: &[u8]) -> Result<Self, SvidError> {
        let (rest, certificate) = X509Certificate::from_der(der).map_err(|_| SvidError::Malformed)?;
        if !rest.is_empty() || certificate.version() != X509Version::V3 {
            return Err(SvidError::Malformed);
        }
        check_usage(&certificate)?;
        let (id, dns_names) = names(&certificate)?;
        let validity = certificate.validity();
        Ok(Self {
            id,
            serial: hex(certificate.raw_serial()),
            not_before: validity.not_before.to_datetime(),
            not_after: validity.not_after.to_datetime(),
            dns_names,
            public_key: certificate.public_key().raw.to_vec(),
        })
    }

    /// When half of the validity period has passed: the time to renew.
    pub fn half_life(&self) -> OffsetDateTime {
        self.not_before + self.lifetime() / 2
    }

    /// The validity period.
    pub fn lifetime(&self) -> Duration {
        self.not_after - self.not_before
    }
}

fn check_usage(certificate: &X509Certificate<'_>) -> Result<(), SvidError> {
    let mut seen = HashSet::new();
    if !certificate.extensions().iter().all(|extension| seen.insert(extension.oid.clone())) {
        return Err(SvidError::Malformed);
    }
    let constraints = certificate.basic_constraints().map_err(|_| SvidError::Malformed)?;
    if constraints.is_some_and(|constraints| constraints.value.ca) {
        return Err(SvidError::Ca);
    }
    let usage = certificate.key_usage().map_err(|_| SvidError::Malformed)?.ok_or(SvidError::KeyUsage)?;
    let (critical, usage) = (usage.critical, usage.value);
    if !critical || !usage.digital_signature() || usage.key_cert_sign() || usage.crl_sign() {
        return Err(SvidError::KeyUsage);
    }
    Ok(())
}

/// The SPIFFE ID and the DNS names. An otherName, an undecodable name, or a byte that a C string would end at or that
/// is no IA5 character is refused anywhere: another reader may see another identity (CVE-2025-66220, CVE-2026-47778).
fn names(certificate: &X509Certificate<'_>) -> Result<(SpiffeId, Vec<String>), SvidError> {
    let names =
        certificate.subject_alternative_name().map_err(|_| SvidError::Malformed)?.ok_or(SvidError::NoId)?;
    let (mut uris, mut dns_names) = (Vec::new(), Vec::new());
    for name in &names.value.general_names {
        match name {
            GeneralName::URI(uri) => uris.push(plain(uri)?),
            GeneralName::DNSName(dns) => dns_names.push(plain(dns)?.to_owned()),
            GeneralName::RFC822Name(mail) => drop(plain(mail)?),
            GeneralName::IPAddress(_) | GeneralName::DirectoryName(_) => {}
            _ => return Err(SvidError::Name),
        }
    }
    let id: SpiffeId = match uris.as_slice() {
        [] => return Err(SvidError::NoId),
        [uri] => uri.parse().map_err(SvidError::Id)?,
        _ => return Err(SvidError::SeveralIds),
    };
    if id.path().is_empty() {
        return Err(SvidError::RootId);
    }
    Ok((id, dns_names))
}

fn plain(name: &str) -> Result<&str, SvidError> {
    if name.bytes().all(|byte| byte.is_ascii_graphic()) { Ok(name) } else { Err(SvidError::Name) }
}

/// An SVID ready for use: the chain and its leaf's private key.
#[derive(Clone, Debug)]
pub struct Svid {
    /// The parsed first certificate of the chain.
    pub leaf: Leaf,
    /// DER certificates, leaf first, without the root.
    pub chain: Vec<Vec<u8>>,
    /// The leaf's private key.
    pub key: PrivateKey,
}

impl Svid {
    /// Puts a chain (DER, leaf first) and its key together. Self-signed roots at the end are left out, as TLS wants it.
    pub fn new(mut chain: Vec<Vec<u8>>, key: PrivateKey) -> Result<Self, SvidError> {
        let leaf = Leaf::parse(chain.first().ok_or(SvidError::Pem)?)?;
        if leaf.public_key != key.public_key_der() {
            return Err(SvidError::OtherKey);
        }
        while chain.len() > 1 && chain.last().is_some_and(|der| is_self_issued(der)) {
            chain.pop();
        }
        Ok(Self { leaf, chain, key })
    }

    /// The same from PEM blocks as the CA answers them, leaf first.
    pub fn from_pem(chain: &str, key: PrivateKey) -> Result<Self, SvidError> {
        let blocks = pem::decode(chain.as_bytes()).ok_or(SvidError::Pem)?;
        let certificate = |(label, der): (String, zeroize::Zeroizing<Vec<u8>>)| {
            (label == "CERTIFICATE").then(|| der.to_vec()).ok_or(SvidError::Pem)
        };
        Self::new(blocks.into_iter().map(certificate).collect::<Result<_, _>>()?, key)
    }

    /// The chain as PEM, leaf first, without the root.
    pub fn chain_pem(&self) -> String {
        self.chain.iter().map(|der| String::clone(&pem::encode("CERTIFICATE", der))).collect()
    }
}

fn is_self_issued(der: &[u8]) -> bool {
    X509Certificate::from_der(der).is_ok_and(|(_, c)| c.subject().as_raw() == c.issuer().as_raw())
}

pub(crate) fn hex(bytes: &[u8]) -> String {
    use std::fmt::Write;
    bytes.iter().fold(String::with_capacity(bytes.len() * 2), |mut text, byte| {
        write!(text, "{byte:02x}").expect("a String takes everything");
        text
    })
}
