//! The webhook's serving certificate: made here, renewed in two steps, swapped under running connections. Each
//! certificate has an authority of its own whose key is thrown away once it has signed, so that whoever steals the Secret
//! can pose as this webhook until the next renewal and sign nothing else. Where the bytes are kept is
//! `source::kubernetes::webhook`'s.
//!
//! ```text
//! in use ─(two thirds of its life)─► next staged: its authority is published ─(settled)─► next in use, the old
//!                                                                                authority published until it ends
//! ```

use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use arc_swap::ArcSwapOption;
use rcgen::{
    BasicConstraints, CertificateParams, DistinguishedName, DnType, ExtendedKeyUsagePurpose, IsCa, Issuer,
    KeyPair, KeyUsagePurpose, SanType,
};
use rustls::pki_types::pem::PemObject as _;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use rustls::server::{ClientHello, ResolvesServerCert};
use rustls::sign::CertifiedKey;
use source::kubernetes::webhook::{Data, Keys};
use time::OffsetDateTime;
use time::format_description::well_known::Rfc3339;
use x509_parser::prelude::{FromDer as _, GeneralName, X509Certificate};

use super::metrics::Metrics;

/// Keys of the Secret: the certificate in use, its key and its authority ..
const USED: [&str; 3] = ["tls.crt", "tls.key", "ca.crt"];
/// .. the same of the one that will be used next ..
const NEXT: [&str; 3] = ["next-tls.crt", "next-tls.key", "next-ca.crt"];
/// .. since when it has been waiting (RFC 3339), and the authority of the one before.
const STAGED: &str = "next-since";
const PREVIOUS: &str = "previous-ca.crt";

/// Certificates begin so much before they are made: clocks differ.
const BACKDATED: Duration = Duration::from_secs(3600);

/// How long things last.
#[derive(Clone, Copy, Debug)]
pub struct Lifetimes {
    /// Of a certificate. It is renewed after two thirds.
    pub certificate: Duration,
    /// Between telling the API servers a new authority and using its certificate: they learn of it by a watch.
    pub settle: Duration,
}

impl Default for Lifetimes {
    fn default() -> Self {
        Self { certificate: Duration::from_secs(90 * 86_400), settle: Duration::from_secs(120) }
    }
}

/// The certificate in use and the rules of its renewal.
#[derive(Debug)]
pub struct Certificates {
    names: BTreeSet<String>,
    lifetimes: Lifetimes,
    used: ArcSwapOption<CertifiedKey>,
    metrics: Metrics,
}

/// A certificate as it is stored, understood.
struct Stored {
    key: CertifiedKey,
    names: BTreeSet<String>,
    from: OffsetDateTime,
    to: OffsetDateTime,
}

impl Certificates {
    /// For a server that is called by `names` (DNS names and IP addresses).
    pub(super) fn new(names: BTreeSet<String>, lifetimes: Lifetimes, metrics: Metrics) -> Arc<Self> {
        Arc::new(Self { names, lifetimes, used: ArcSwapOption::empty(), metrics })
    }

    /// Whether there is a certificate to show.
    pub(super) fn present(&self) -> bool {
        self.used.load().is_some()
    }

    /// A certificate of its own in use at once, for a server whose callers are told the authority (PEM) by hand.
    ///
    /// # Errors
    /// If it cannot be made.
    pub fn alone(&self) -> Result<Vec<u8>, String> {
        let now = SystemTime::now();
        let data = self.next(None, now).ok_or("no certificate could be made")?;
        self.adopt(&data, now)
    }

    fn make(&self, names: &BTreeSet<String>, now: OffsetDateTime) -> Result<[Vec<u8>; 3], rcgen::Error> {
        let valid = |params: &mut CertificateParams| {
            params.not_before = now - BACKDATED;
            params.not_after = now + self.lifetimes.certificate;
        };
        let mut authority = CertificateParams::default();
        authority.distinguished_name = common_name("countersign webhook authority");
        authority.is_ca = IsCa::Ca(BasicConstraints::Constrained(0));
        authority.key_usages = vec![KeyUsagePurpose::KeyCertSign];
        valid(&mut authority);
        let authority_key = KeyPair::generate()?;
        let authority_pem = authority.self_signed(&authority_key)?.pem();
        let issuer = Issuer::new(authority, authority_key);
        let mut leaf = CertificateParams::default();
        leaf.distinguished_name = common_name("countersign webhook");
        for name in names {
            leaf.subject_alt_names.push(match name.parse() {
                Ok(address) => SanType::IpAddress(address),
                Err(_) => SanType::DnsName(name.as_str().try_into()?),
            });
        }
        leaf.key_usages = vec![KeyUsagePurpose::DigitalSignature];
        leaf.extended_key_usages = vec![ExtendedKeyUsagePurpose::ServerAuth];
        leaf.use_authority_key_identifier_extension = true;
        valid(&mut leaf);
        let key = KeyPair::generate()?;
        let pem = leaf.signed_by(&key, &issuer)?.pem();
        Ok([pem.into_bytes(), key.serialize_pem().into_bytes(), authority_pem.into_bytes()])
    }

    fn try_next(&self, stored: Option<&Data>, now: OffsetDateTime) -> Result<Option<Data>, rcgen::Error> {
        let (Some(stored), Ok(used)) = (stored, stored.ok_or(String::new()).and_then(|s| read(s, USED, now)))
        else {
            return Ok(Some(fresh(self.make(&self.names, now)?)));
        };
        let staged = stored.get(STAGED).and_then(|text| std::str::from_utf8(text).ok());
        let staged = staged.and_then(|text| OffsetDateTime::parse(text, &Rfc3339).ok());
        if let Some(since) = staged
            && read(stored, NEXT, now).is_ok()
        {
            // A time in the future is another replica's clock, or nonsense: it must not hold up the renewal.
            let settled = since + self.lifetimes.settle <= now || since > now + self.lifetimes.settle;
            return Ok(settled.then(|| promoted(stored)));
        }
        let worn = now >= used.from + BACKDATED + (used.to - used.from - BACKDATED) * 2 / 3;
        if !worn && self.names.is_subset(&used.names) {
            return Ok(None);
        }
        // Replicas that know of other names must not take turns.
        let names = self.names.union(&used.names).cloned().collect();
        let mut data = stored.clone();
        data.extend(NEXT.map(str::to_owned).into_iter().zip(self.make(&names, now)?));
        let since = now.format(&Rfc3339).unwrap_or_default();
        data.insert(STAGED.to_owned(), since.into_bytes());
        Ok(Some(data))
    }
}

impl Keys for Certificates {
    fn next(&self, stored: Option<&Data>, now: SystemTime) -> Option<Data> {
        self.try_next(stored, now.into()).unwrap_or_else(|error| {
            tracing::error!(%error, "the webhook's certificate cannot be made");
            None
        })
    }

    fn adopt(&self, stored: &Data, now: SystemTime) -> Result<Vec<u8>, String> {
        let now = now.into();
        let Stored { key, names: _, from: _, to } = read(stored, USED, now)?;
        let same = self.used.load().as_ref().is_some_and(|used| used.cert == key.cert);
        if !same {
            self.used.store(Some(Arc::new(key)));
        }
        self.metrics.certificate_expiry.set(to.unix_timestamp());
        let mut bundle = Vec::new();
        for name in [USED[2], NEXT[2], PREVIOUS] {
            // What is over, and what is not a certificate, would make the API server refuse all.
            let pem = stored.get(name).filter(|pem| authority(pem).is_ok_and(|end| end > now));
            bundle.extend(pem.into_iter().flatten());
        }
        Ok(bundle)
    }
}

impl ResolvesServerCert for Certificates {
    fn resolve(&self, _hello: ClientHello<'_>) -> Option<Arc<CertifiedKey>> {
        self.used.load_full()
    }
}

fn common_name(name: &str) -> DistinguishedName {
    let mut names = DistinguishedName::new();
    names.push(DnType::CommonName, name);
    names
}

fn fresh(made: [Vec<u8>; 3]) -> Data {
    USED.map(str::to_owned).into_iter().zip(made).collect()
}

/// The staged one in use; the authority of the one that was stays known.
fn promoted(stored: &Data) -> Data {
    let mut data = Data::new();
    for (used, next) in USED.into_iter().zip(NEXT) {
        data.extend(stored.get(next).map(|value| (used.to_owned(), value.clone())));
    }
    data.extend(stored.get(USED[2]).map(|value| (PREVIOUS.to_owned(), value.clone())));
    data
}

/// The certificate under these keys, if it can be used now.
fn read(stored: &Data, keys: [&str; 3], now: OffsetDateTime) -> Result<Stored, String> {
    let [leaf, key, authority] = keys.map(|key| stored.get(key).map(Vec::as_slice).unwrap_or_default());
    let leaf =
        CertificateDer::from_pem_slice(leaf).map_err(|_| format!("{} is not a certificate", keys[0]))?;
    let key = PrivateKeyDer::from_pem_slice(key).map_err(|_| format!("{} is not a private key", keys[1]))?;
    let authority =
        CertificateDer::from_pem_slice(authority).map_err(|_| format!("{} is not a certificate", keys[2]))?;
    let parsed = parsed(&leaf)?;
    let issuer = self::parsed(&authority)?;
    parsed
        .verify_signature(Some(issuer.public_key()))
        .map_err(|_| "the authority is another one".to_owned())?;
    let validity = parsed.validity();
    let (from, to) = (validity.not_before.to_datetime(), validity.not_after.to_datetime());
    if !(from..to).contains(&now) || issuer.validity().not_after.to_datetime() <= now {
        return Err("it is not valid now".to_owned());
    }
    let names = names(&parsed);
    let provider = rustls::crypto::aws_lc_rs::default_provider();
    let key = CertifiedKey::from_der(vec![leaf.clone()], key, &provider);
    let key = key.map_err(|error| format!("the private key does not fit: {error}"))?;
    Ok(Stored { key, names, from, to })
}

fn parsed<'a>(der: &'a CertificateDer<'_>) -> Result<X509Certificate<'a>, String> {
    let (_, parsed) = X509Certificate::from_der(der).map_err(|error| error.to_string())?;
    Ok(parsed)
}

fn names(certificate: &X509Certificate<'_>) -> BTreeSet<String> {
    let names = certificate.subject_alternative_name().ok().flatten();
    let names = names.into_iter().flat_map(|names| &names.value.general_names);
    let address = |bytes: &[u8]| {
        let v4 = <[u8; 4]>::try_from(bytes).map(std::net::IpAddr::from);
        v4.or_else(|_| <[u8; 16]>::try_from(bytes).map(std::net::IpAddr::from)).ok()
    };
    names
        .filter_map(|name| match name {
            GeneralName::DNSName(name) => Some((*name).to_owned()),
            GeneralName::IPAddress(bytes) => address(bytes).map(|address| address.to_string()),
            _ => None,
        })
        .collect()
}

/// When an authority (PEM) ends.
fn authority(pem: &[u8]) -> Result<OffsetDateTime, String> {
    let der = CertificateDer::from_pem_slice(pem).map_err(|error| error.to_string())?;
    Ok(parsed(&der)?.validity().not_after.to_datetime())
}

#[cfg(test)]
mod tests;
