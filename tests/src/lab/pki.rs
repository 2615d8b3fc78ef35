//! Certificates of every kind, good and bad, made at run time. Nothing here is trusted but what the test says.

use std::fmt;
use std::path::Path;
use std::sync::Arc;

use anyhow::{Context, Result};
use rcgen::{
    BasicConstraints, Certificate, CertificateParams, ExtendedKeyUsagePurpose, IsCa, Issuer, KeyPair,
    KeyUsagePurpose, OtherNameValue, SanType,
};
use rustls::RootCertStore;
use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::crypto::{CryptoProvider, aws_lc_rs, verify_tls12_signature, verify_tls13_signature};
use rustls::pki_types::pem::PemObject as _;
use rustls::pki_types::{CertificateDer, PrivateKeyDer, PrivatePkcs8KeyDer, ServerName, UnixTime};
use rustls::server::WebPkiClientVerifier;
use time::{Duration, OffsetDateTime};

/// Somebody who signs certificates.
pub struct Authority {
    pub root_pem: String,
    issuer: Issuer<'static, KeyPair>,
}

impl fmt::Debug for Authority {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Authority").finish_non_exhaustive()
    }
}

/// What a client shows in a handshake.
#[derive(Clone, Debug)]
pub enum Credential {
    /// No TLS at all.
    Plaintext,
    /// TLS without a client certificate.
    Anonymous,
    /// TLS with this certificate.
    Certificate(Arc<Keyed>),
}

/// A certificate chain with its key.
pub struct Keyed {
    pub chain: Vec<CertificateDer<'static>>,
    key: PrivateKeyDer<'static>,
}

impl fmt::Debug for Keyed {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Keyed").finish_non_exhaustive()
    }
}

/// A leaf certificate to be minted. The default is valid from an hour ago for an hour from now and names nobody.
#[derive(Clone, Debug)]
pub struct Leaf {
    pub uris: Vec<String>,
    pub dns: Vec<String>,
    /// Names of a type of their own: object identifier and text (`otherName`).
    pub others: Vec<(Vec<u64>, String)>,
    pub not_before: OffsetDateTime,
    pub not_after: OffsetDateTime,
    pub usages: Vec<ExtendedKeyUsagePurpose>,
}

impl Leaf {
    pub fn new<S: Into<String>>(uris: impl IntoIterator<Item = S>) -> Self {
        let now = OffsetDateTime::now_utc();
        Self {
            uris: uris.into_iter().map(Into::into).collect(),
            dns: Vec::new(),
            others: Vec::new(),
            not_before: now - Duration::HOUR,
            not_after: now + Duration::HOUR,
            usages: vec![ExtendedKeyUsagePurpose::ClientAuth, ExtendedKeyUsagePurpose::ServerAuth],
        }
    }

    /// Its last second was a minute ago.
    #[must_use]
    pub fn expired(mut self) -> Self {
        self.not_after = OffsetDateTime::now_utc() - Duration::MINUTE;
        self
    }

    /// Valid in an hour.
    #[must_use]
    pub fn not_yet_valid(mut self) -> Self {
        self.not_before = OffsetDateTime::now_utc() + Duration::HOUR;
        self.not_after = self.not_before + Duration::HOUR;
        self
    }
}

impl Authority {
    /// A root nobody else knows.
    ///
    /// # Errors
    /// If a key cannot be made.
    pub fn new() -> Result<Self> {
        let mut params = CertificateParams::new(Vec::new())?;
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
        let key = KeyPair::generate()?;
        let root_pem = params.self_signed(&key)?.pem();
        Ok(Self { root_pem, issuer: Issuer::new(params, key) })
    }

    /// The CA of a running `countersign standalone`, from its state folder.
    ///
    /// # Errors
    /// If it has none yet.
    pub fn of_state(state: &Path) -> Result<Self> {
        let root_pem = std::fs::read_to_string(state.join("root-cert.pem")).context("root-cert.pem")?;
        Self::from_pem(root_pem, &std::fs::read_to_string(state.join("ca-key.pem")).context("ca-key.pem")?)
    }

    /// A self-signed authority whose key is known.
    ///
    /// # Errors
    /// If they are no certificate and key.
    pub fn from_pem(root_pem: String, key: &str) -> Result<Self> {
        let issuer = Issuer::from_ca_cert_pem(&root_pem, KeyPair::from_pem(key)?)?;
        Ok(Self { root_pem, issuer })
    }

    /// # Errors
    /// If a name cannot be put into a certificate.
    pub fn mint(&self, leaf: &Leaf) -> Result<Credential> {
        let (certificate, key) = self.issue(leaf)?;
        let key = PrivateKeyDer::Pkcs8(PrivatePkcs8KeyDer::from(key.serialize_der()));
        Ok(Credential::Certificate(Arc::new(Keyed { chain: vec![certificate.der().clone()], key })))
    }

    /// Certificate and key as PEM, for a server of secrets.
    ///
    /// # Errors
    /// If a name cannot be put into a certificate.
    pub fn mint_pem(&self, leaf: &Leaf) -> Result<(String, String)> {
        let (certificate, key) = self.issue(leaf)?;
        Ok((certificate.pem(), key.serialize_pem()))
    }

    fn issue(&self, leaf: &Leaf) -> Result<(Certificate, KeyPair)> {
        let Leaf { uris, dns, others, not_before, not_after, usages } = leaf;
        let mut params = CertificateParams::new(dns.clone())?;
        for uri in uris {
            params.subject_alt_names.push(SanType::URI(uri.as_str().try_into()?));
        }
        for (kind, text) in others {
            let name = (kind.clone(), OtherNameValue::Utf8String(text.clone()));
            params.subject_alt_names.push(SanType::OtherName(name));
        }
        params.distinguished_name = rcgen::DistinguishedName::new();
        params.is_ca = IsCa::ExplicitNoCa;
        params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
        params.extended_key_usages.clone_from(usages);
        (params.not_before, params.not_after) = (*not_before, *not_after);
        let key = KeyPair::generate()?;
        Ok((params.signed_by(&key, &self.issuer)?, key))
    }
}

impl Credential {
    /// A TLS client that offers `alpn` and accepts any server: what the server does with *us* is looked at.
    /// `None` for plaintext.
    ///
    /// # Errors
    /// If key and certificate do not fit.
    pub(super) fn tls(&self, alpn: &[&str]) -> Result<Option<rustls::ClientConfig>> {
        let provider = Arc::new(aws_lc_rs::default_provider());
        let builder = rustls::ClientConfig::builder_with_provider(provider.clone())
            // In TLS 1.3 a client is done before the server has looked at its certificate, and may then see a reset instead of
            // the alert; in 1.2 a refusal is always seen as one. Envoys among themselves speak 1.3.
            .with_protocol_versions(&[&rustls::version::TLS12])?
            .with_root_certificates(RootCertStore::empty());
        let mut config = match self {
            Self::Plaintext => return Ok(None),
            Self::Anonymous => builder.with_no_client_auth(),
            Self::Certificate(keyed) => {
                builder.with_client_auth_cert(keyed.chain.clone(), keyed.key.clone_key())?
            }
        };
        config.dangerous().set_certificate_verifier(Arc::new(AnyServer(provider)));
        config.alpn_protocols = alpn.iter().map(|name| name.as_bytes().to_vec()).collect();
        config.resumption = rustls::client::Resumption::disabled();
        Ok(Some(config))
    }

    /// A TLS server with this certificate that wants one of a client, signed by `root`, and takes whoever it names. `None`
    /// where there is no certificate to show.
    ///
    /// # Errors
    /// If key and certificate do not fit, or `root` is none.
    pub(super) fn server(&self, root: &str, alpn: &[&str]) -> Result<Option<rustls::ServerConfig>> {
        let Self::Certificate(keyed) = self else { return Ok(None) };
        let provider = Arc::new(aws_lc_rs::default_provider());
        let mut roots = RootCertStore::empty();
        roots.add(CertificateDer::from_pem_slice(root.as_bytes())?)?;
        let clients =
            WebPkiClientVerifier::builder_with_provider(Arc::new(roots), provider.clone()).build()?;
        let mut config = rustls::ServerConfig::builder_with_provider(provider)
            .with_safe_default_protocol_versions()?
            .with_client_cert_verifier(clients)
            .with_single_cert(keyed.chain.clone(), keyed.key.clone_key())?;
        config.alpn_protocols = alpn.iter().map(|name| name.as_bytes().to_vec()).collect();
        Ok(Some(config))
    }
}

/// Believes whoever answers: what the server decides about the client is looked at.
#[derive(Debug)]
pub struct AnyServer(pub Arc<CryptoProvider>);

impl ServerCertVerifier for AnyServer {
    fn verify_server_cert(
        &self,
        _: &CertificateDer<'_>,
        _: &[CertificateDer<'_>],
        _: &ServerName<'_>,
        _: &[u8],
        _: UnixTime,
    ) -> Result<ServerCertVerified, rustls::Error> {
        Ok(ServerCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &rustls::DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        verify_tls12_signature(message, cert, dss, &self.0.signature_verification_algorithms)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &rustls::DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        verify_tls13_signature(message, cert, dss, &self.0.signature_verification_algorithms)
    }

    fn supported_verify_schemes(&self) -> Vec<rustls::SignatureScheme> {
        self.0.signature_verification_algorithms.supported_schemes()
    }
}
