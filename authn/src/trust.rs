//! Verifying the other side: the chain by the trust bundle, then the leaf as an X.509-SVID (X509-SVID §5).
//!
//! Names other than the SPIFFE ID prove nothing here. No revocation lists: SVIDs are short-lived.

use std::{fmt, sync::Arc};

use arc_swap::ArcSwap;
use rustls::{
    CertificateError, ClientConfig, DigitallySignedStruct, DistinguishedName, Error, OtherError,
    RootCertStore, SignatureScheme,
    client::{
        Resumption,
        danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier},
        verify_server_cert_signed_by_trust_anchor,
    },
    crypto::{WebPkiSupportedAlgorithms, verify_tls12_signature, verify_tls13_signature},
    pki_types::{CertificateDer, ServerName, UnixTime},
    server::{
        ParsedCertificate, VerifierBuilderError, WebPkiClientVerifier,
        danger::{ClientCertVerified, ClientCertVerifier},
    },
};
use spiffe::{Leaf, SpiffeId, SvidError, TrustBundle, TrustDomain};

use crate::{ALPN, OwnSvid, provider};

/// Why a trust bundle cannot be used for TLS.
#[derive(Debug, thiserror::Error)]
pub enum UnusableTrust {
    #[error("a root certificate cannot be used as a trust anchor")]
    Root(#[source] Error),
    #[error("no verifier can be built from the roots")]
    Verifier(#[source] VerifierBuilderError),
}

/// Why a peer's certificate, though of our roots, is refused. Travels inside the handshake's error.
#[derive(Debug, thiserror::Error)]
enum Refused {
    #[error("the certificate is no X.509-SVID")]
    Form(#[source] SvidError),
    #[error("{0} is of a trust domain that is not accepted")]
    TrustDomain(SpiffeId),
    #[error("the server is {found}, not {expected}")]
    OtherServer { found: SpiffeId, expected: SpiffeId },
}

impl From<Refused> for Error {
    fn from(refused: Refused) -> Self {
        CertificateError::Other(OtherError(Arc::new(refused))).into()
    }
}

fn anchors(bundle: &TrustBundle) -> Result<Arc<RootCertStore>, UnusableTrust> {
    let mut store = RootCertStore::empty();
    for root in bundle.roots() {
        store.add(CertificateDer::from(root)).map_err(UnusableTrust::Root)?;
    }
    Ok(Arc::new(store))
}

/// Which clients a server believes; replaceable, for instance when a root is rotated.
pub struct ClientTrust {
    current: ArcSwap<Accepted>,
    algorithms: WebPkiSupportedAlgorithms,
}

struct Accepted {
    chain: Arc<dyn ClientCertVerifier>,
    /// Our trust domain and its aliases.
    domains: Vec<TrustDomain>,
}

impl ClientTrust {
    /// Accepts SVIDs of `domains` (ours and its aliases) that chain to `bundle`.
    pub fn new(bundle: &TrustBundle, domains: Vec<TrustDomain>) -> Result<Arc<Self>, UnusableTrust> {
        let algorithms = provider().signature_verification_algorithms;
        Ok(Arc::new(Self { current: ArcSwap::from_pointee(accepted(bundle, domains)?), algorithms }))
    }

    /// The same for handshakes from now on. On error the last trust stays.
    pub fn replace(&self, bundle: &TrustBundle, domains: Vec<TrustDomain>) -> Result<(), UnusableTrust> {
        self.current.store(Arc::new(accepted(bundle, domains)?));
        Ok(())
    }
}

fn accepted(bundle: &TrustBundle, domains: Vec<TrustDomain>) -> Result<Accepted, UnusableTrust> {
    let chain = WebPkiClientVerifier::builder_with_provider(anchors(bundle)?, provider())
        .allow_unauthenticated()
        .build()
        .map_err(UnusableTrust::Verifier)?;
    Ok(Accepted { chain, domains })
}

impl fmt::Debug for ClientTrust {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("ClientTrust").field("domains", &self.current.load().domains).finish_non_exhaustive()
    }
}

impl ClientCertVerifier for ClientTrust {
    /// No certificate is not an error here: joining needs none. Services ask for [`crate::peer`].
    fn client_auth_mandatory(&self) -> bool {
        false
    }

    /// None: they would have to live as long as we do, and clients have but one certificate to choose from.
    fn root_hint_subjects(&self) -> &[DistinguishedName] {
        &[]
    }

    fn verify_client_cert(
        &self,
        end_entity: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        now: UnixTime,
    ) -> Result<ClientCertVerified, Error> {
        let accepted = self.current.load();
        let verified = accepted.chain.verify_client_cert(end_entity, intermediates, now)?;
        let leaf = Leaf::parse(end_entity).map_err(Refused::Form)?;
        if accepted.domains.iter().any(|domain| leaf.id.is_in(domain)) {
            Ok(verified)
        } else {
            Err(Refused::TrustDomain(leaf.id).into())
        }
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        verify_tls12_signature(message, certificate, signature, &self.algorithms)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        verify_tls13_signature(message, certificate, signature, &self.algorithms)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.algorithms.supported_schemes()
    }
}

/// TLS for a client that talks to exactly one identity.
///
/// The server must chain to `bundle` and be `server`, whatever name or address it was reached by. `own` is presented if
/// it holds an SVID at the time of the handshake.
pub fn client_config(
    bundle: &TrustBundle,
    server: SpiffeId,
    own: Arc<OwnSvid>,
) -> Result<Arc<ClientConfig>, UnusableTrust> {
    let roots = anchors(bundle)?;
    let provider = provider();
    let algorithms = provider.signature_verification_algorithms;
    let verifier = Arc::new(OneServer { roots, server, algorithms });
    let mut config = ClientConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .expect("the provider has the suites of TLS 1.2 and 1.3")
        .dangerous()
        .with_custom_certificate_verifier(verifier)
        .with_client_cert_resolver(own);
    config.alpn_protocols = vec![ALPN.to_vec()];
    config.resumption = Resumption::disabled();
    Ok(Arc::new(config))
}

/// Verifies that the server is one SPIFFE ID. DNS names are not looked at.
struct OneServer {
    roots: Arc<RootCertStore>,
    server: SpiffeId,
    algorithms: WebPkiSupportedAlgorithms,
}

impl fmt::Debug for OneServer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("OneServer").field("server", &self.server).finish_non_exhaustive()
    }
}

impl ServerCertVerifier for OneServer {
    fn verify_server_cert(
        &self,
        end_entity: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        _name: &ServerName<'_>,
        _ocsp: &[u8],
        now: UnixTime,
    ) -> Result<ServerCertVerified, Error> {
        let parsed = ParsedCertificate::try_from(end_entity)?;
        verify_server_cert_signed_by_trust_anchor(
            &parsed,
            &self.roots,
            intermediates,
            now,
            self.algorithms.all,
        )?;
        let leaf = Leaf::parse(end_entity).map_err(Refused::Form)?;
        if leaf.id == self.server {
            Ok(ServerCertVerified::assertion())
        } else {
            Err(Refused::OtherServer { found: leaf.id, expected: self.server.clone() }.into())
        }
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        verify_tls12_signature(message, certificate, signature, &self.algorithms)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        verify_tls13_signature(message, certificate, signature, &self.algorithms)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.algorithms.supported_schemes()
    }
}
