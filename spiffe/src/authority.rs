//! A signing authority: root key and certificate, and the certificates it makes.
//!
//! Signs what it is told for the identity it is told: whether the caller may have that identity is decided before. Does
//! not store anything.

use rcgen::{
    BasicConstraints, CertificateParams, DistinguishedName, DnType, ExtendedKeyUsagePurpose, IsCa, Issuer,
    KeyUsagePurpose, PublicKeyData, SanType, SerialNumber, string::Ia5String,
};
use time::{Duration, OffsetDateTime};
use x509_parser::prelude::{FromDer, X509Certificate};

use crate::{BundleError, PrivateKey, SigningRequest, SpiffeId, TrustBundle, TrustDomain, pem, x509};

/// How far before now a certificate begins, for callers whose clock is behind (semantics §6.7).
pub const BACKDATE: Duration = Duration::minutes(2);

/// Why an authority could not be made or loaded, or did not sign.
#[derive(Debug, thiserror::Error)]
pub enum AuthorityError {
    #[error("the root certificate cannot be used")]
    Root(#[source] BundleError),
    #[error("there is not exactly one root certificate")]
    RootCount,
    #[error("the signing certificate or one above it may not sign certificates")]
    RootUsage,
    #[error("the private key is not the signing certificate's")]
    OtherKey,
    #[error("no chain leads from the signing certificate to a root")]
    Chain,
    #[error("the root certificate expired at {0}")]
    Expired(OffsetDateTime),
    #[error("the root certificate is not valid before {0}")]
    NotYetValid(OffsetDateTime),
    #[error("the lifetime must be positive")]
    Lifetime,
    #[error("{0:?} is no DNS name")]
    DnsName(String),
    #[error("signing failed")]
    Sign(#[source] rcgen::Error),
    #[error("there is no randomness for a serial number")]
    Random,
}

/// What a leaf may be used for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Usage {
    /// serverAuth and clientAuth: workloads and the control plane.
    ServerAndClient,
    /// clientAuth only: agents, who never serve with it.
    Client,
}

/// The certificate asked of an [`Authority`].
#[derive(Clone, Debug)]
pub struct Mint {
    pub id: SpiffeId,
    pub dns_names: Vec<String>,
    /// From now on; shortened to the root's own end if that comes first.
    pub lifetime: Duration,
    pub usage: Usage,
}

/// A signed leaf.
#[derive(Clone, Debug)]
pub struct Issued {
    /// DER.
    pub certificate: Vec<u8>,
    /// Lower-case hexadecimal.
    pub serial: String,
    pub not_before: OffsetDateTime,
    pub not_after: OffsetDateTime,
}

impl Issued {
    /// The certificate as one PEM block with a trailing newline.
    pub fn to_pem(&self) -> String {
        String::clone(&pem::encode("CERTIFICATE", &self.certificate))
    }
}

/// Intermediate certificates between a signing certificate and its root, at most.
const MAX_CHAIN: usize = 8;

/// A signing certificate with its private key: a self-signed root, or one below somebody else's root.
#[derive(Debug)]
pub struct Authority {
    root: TrustBundle,
    issuer: Issuer<'static, PrivateKey>,
    /// DER, from the signing certificate up, without the root; empty if the root itself signs.
    intermediates: Vec<Vec<u8>>,
    not_before: OffsetDateTime,
    not_after: OffsetDateTime,
}

impl Authority {
    /// Makes a new ECDSA P-256 key and a self-signed root for `domain` with URI name `spiffe://TD`.
    pub fn create(
        domain: &TrustDomain,
        now: OffsetDateTime,
        lifetime: Duration,
    ) -> Result<Self, AuthorityError> {
        if !lifetime.is_positive() {
            return Err(AuthorityError::Lifetime);
        }
        let key = PrivateKey::generate().map_err(|error| match error {
            crate::KeyError::Key(source) => AuthorityError::Sign(source),
            crate::KeyError::Pem => AuthorityError::Random,
        })?;
        let serial = serial()?;
        let mut params = CertificateParams::default();
        params.not_before = now - BACKDATE;
        params.not_after = now + lifetime;
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
        params.subject_alt_names = vec![uri(&domain.id())];
        params.distinguished_name = DistinguishedName::new();
        params.distinguished_name.push(DnType::OrganizationName, "Countersign");
        // Two roots of one domain live side by side during a rotation: verifiers find theirs faster by name.
        params.distinguished_name.push(DnType::CommonName, format!("root {}", x509::hex(&serial[..4])));
        params.serial_number = Some(SerialNumber::from_slice(&serial));
        let certificate = params.self_signed(&key).map_err(AuthorityError::Sign)?;
        Self::from_der(certificate.der().to_vec(), key)
    }

    /// Takes up a root made earlier, from PEM. The key must be the certificate's.
    pub fn load(root: &[u8], key: PrivateKey) -> Result<Self, AuthorityError> {
        let bundle = TrustBundle::from_pem(root).map_err(AuthorityError::Root)?;
        let mut roots = bundle.roots();
        match (roots.next(), roots.next()) {
            (Some(root), None) => Self::from_der(root.to_vec(), key),
            _ => Err(AuthorityError::RootCount),
        }
    }

    /// Takes up a signing certificate (PEM, exactly one) below `roots` (PEM, at least one), with what lies between them
    /// somewhere in `chain` (PEM, may be empty, may hold more). The signing certificate may be one of the roots.
    pub fn plugged(
        certificate: &[u8],
        key: PrivateKey,
        chain: &[u8],
        roots: &[u8],
    ) -> Result<Self, AuthorityError> {
        let bundle = |text| TrustBundle::from_pem(text).map_err(AuthorityError::Root);
        let (certificate, roots) = (bundle(certificate)?, bundle(roots)?);
        let chain = if chain.trim_ascii().is_empty() { None } else { Some(bundle(chain)?) };
        let mut only = certificate.roots();
        let (Some(der), None) = (only.next(), only.next()) else { return Err(AuthorityError::RootCount) };
        let mut authority = Self::from_der(der.to_vec(), key)?;
        let between: Vec<&[u8]> = chain.iter().flat_map(TrustBundle::roots).collect();
        let roots_der: Vec<&[u8]> = roots.roots().collect();
        let path = path_to_root(der, &between, &roots_der)?;
        for der in &path {
            let certificate = ca_certificate(der)?;
            let validity = certificate.validity();
            authority.not_before = authority.not_before.max(validity.not_before.to_datetime());
            authority.not_after = authority.not_after.min(validity.not_after.to_datetime());
        }
        // The last one is the root, which peers have.
        authority.intermediates = path[..path.len() - 1].iter().map(|der| der.to_vec()).collect();
        authority.root = roots;
        Ok(authority)
    }

    fn from_der(der: Vec<u8>, key: PrivateKey) -> Result<Self, AuthorityError> {
        let certificate = ca_certificate(&der)?;
        if certificate.public_key().raw != key.public_key_der() {
            return Err(AuthorityError::OtherKey);
        }
        let (not_before, not_after) =
            (certificate.validity().not_before.to_datetime(), certificate.validity().not_after.to_datetime());
        let issuer = Issuer::from_ca_cert_der(&der.as_slice().into(), key).map_err(AuthorityError::Sign)?;
        let root = TrustBundle::from_ders([der]).map_err(AuthorityError::Root)?;
        Ok(Self { root, issuer, intermediates: Vec::new(), not_before, not_after })
    }

    /// What a leaf's chain holds between the leaf and the root, as DER: the signing certificate first.
    pub fn intermediates(&self) -> impl ExactSizeIterator<Item = &[u8]> {
        self.intermediates.iter().map(Vec::as_slice)
    }

    /// The same, one PEM block with a trailing newline each.
    pub fn intermediates_pem(&self) -> impl Iterator<Item = String> + '_ {
        self.intermediates().map(|der| String::clone(&pem::encode("CERTIFICATE", der)))
    }

    /// The root certificate, as a bundle of one; several if the signing certificate was given with several.
    pub fn root(&self) -> &TrustBundle {
        &self.root
    }

    /// The trust domain that the root is for: its only URI name, `spiffe://TD`. `None` if it says none.
    pub fn trust_domain(&self) -> Option<TrustDomain> {
        self.root.trust_domain()
    }

    /// The root's private key, for storing it. Secret.
    pub fn key(&self) -> &PrivateKey {
        self.issuer.key()
    }

    /// The end of the root's validity; no leaf lives longer.
    pub fn not_after(&self) -> OffsetDateTime {
        self.not_after
    }

    /// Signs a leaf for the key of `request`, with the names of `mint` and nothing else from the request.
    ///
    /// The leaf begins [`BACKDATE`] before `now`, has an empty subject (so its name extension is critical, RFC 5280
    /// §4.2.1.6), and ends with the root at the latest. An expired root signs nothing.
    pub fn sign(
        &self,
        request: &SigningRequest,
        mint: &Mint,
        now: OffsetDateTime,
    ) -> Result<Issued, AuthorityError> {
        self.sign_key(&request.public_key, mint, now)
    }

    /// The same for a key of our own process, whose possession needs no proof.
    pub fn sign_own(
        &self,
        key: &PrivateKey,
        mint: &Mint,
        now: OffsetDateTime,
    ) -> Result<Issued, AuthorityError> {
        self.sign_key(key, mint, now)
    }

    fn sign_key(
        &self,
        key: &impl PublicKeyData,
        mint: &Mint,
        now: OffsetDateTime,
    ) -> Result<Issued, AuthorityError> {
        let Mint { id, dns_names, lifetime, usage } = mint;
        if now >= self.not_after {
            return Err(AuthorityError::Expired(self.not_after));
        }
        if now < self.not_before {
            return Err(AuthorityError::NotYetValid(self.not_before));
        }
        if !lifetime.is_positive() {
            return Err(AuthorityError::Lifetime);
        }
        let serial = serial()?;
        let mut params = CertificateParams::default();
        // Certificates count whole seconds; what we report must be what they say.
        params.not_before = whole_seconds(now - BACKDATE);
        params.not_after = whole_seconds(now.saturating_add(*lifetime)).min(self.not_after);
        params.distinguished_name = DistinguishedName::new();
        params.is_ca = IsCa::ExplicitNoCa;
        params.key_usages = vec![KeyUsagePurpose::DigitalSignature, KeyUsagePurpose::KeyEncipherment];
        params.extended_key_usages = match usage {
            Usage::ServerAndClient => {
                vec![ExtendedKeyUsagePurpose::ServerAuth, ExtendedKeyUsagePurpose::ClientAuth]
            }
            Usage::Client => vec![ExtendedKeyUsagePurpose::ClientAuth],
        };
        params.subject_alt_names = vec![uri(id)];
        for name in dns_names {
            params.subject_alt_names.push(SanType::DnsName(dns(name)?));
        }
        params.use_authority_key_identifier_extension = true;
        params.serial_number = Some(SerialNumber::from_slice(&serial));
        let (not_before, not_after) = (params.not_before, params.not_after);
        let certificate = params.signed_by(key, &self.issuer).map_err(AuthorityError::Sign)?;
        Ok(Issued {
            certificate: certificate.der().to_vec(),
            serial: x509::hex(&serial),
            not_before,
            not_after,
        })
    }
}

/// Parses a certificate that may sign others.
fn ca_certificate(der: &[u8]) -> Result<X509Certificate<'_>, AuthorityError> {
    let malformed = |_| AuthorityError::Root(BundleError::Certificate);
    let (_, certificate) = X509Certificate::from_der(der).map_err(malformed)?;
    let usage = certificate.key_usage().ok().flatten();
    if certificate.is_ca() && usage.is_some_and(|usage| usage.value.key_cert_sign()) {
        Ok(certificate)
    } else {
        Err(AuthorityError::RootUsage)
    }
}

/// The certificates from `signer` to one of `roots`, both included, each signed by the next.
fn path_to_root<'a>(
    signer: &'a [u8],
    between: &[&'a [u8]],
    roots: &[&'a [u8]],
) -> Result<Vec<&'a [u8]>, AuthorityError> {
    let mut path = vec![signer];
    loop {
        let last = path[path.len() - 1];
        if roots.contains(&last) {
            return Ok(path);
        }
        if path.len() > MAX_CHAIN {
            return Err(AuthorityError::Chain);
        }
        let child = ca_certificate(last)?;
        let signed_by = |der: &&&[u8]| {
            ca_certificate(der).is_ok_and(|parent| {
                parent.subject().as_raw() == child.issuer().as_raw()
                    && child.verify_signature(Some(parent.public_key())).is_ok()
            })
        };
        let next = roots
            .iter()
            .find(signed_by)
            .or_else(|| between.iter().filter(|der| !path.contains(der)).find(signed_by))
            .ok_or(AuthorityError::Chain)?;
        path.push(next);
    }
}

fn whole_seconds(time: OffsetDateTime) -> OffsetDateTime {
    time.replace_nanosecond(0).expect("zero is a nanosecond")
}

fn uri(id: &SpiffeId) -> SanType {
    SanType::URI(id.as_str().try_into().expect("a SPIFFE ID is ASCII"))
}

fn dns(name: &str) -> Result<Ia5String, AuthorityError> {
    let label = |label: &str| {
        (1..=63).contains(&label.len())
            && label.bytes().all(|byte| byte.is_ascii_alphanumeric() || byte == b'-' || byte == b'_')
    };
    let bad = || AuthorityError::DnsName(name.to_owned());
    if name.len() > 253 || !name.split('.').all(label) {
        return Err(bad());
    }
    name.try_into().map_err(|_| bad())
}

/// 126 random bits (RFC 5280 §4.1.2.2, CA/B §7.1): positive, and always 16 bytes.
fn serial() -> Result<[u8; 16], AuthorityError> {
    let mut serial = [0; 16];
    aws_lc_rs::rand::fill(&mut serial).map_err(|_| AuthorityError::Random)?;
    serial[0] = serial[0] & 0x7f | 0x40;
    Ok(serial)
}

#[cfg(test)]
mod tests;
