//! Asking the certificate authority for an SVID by `IstioCertificateService` (semantics §6.7), one connection each: requests
//! are minutes apart. When to ask is the caller's business.

use std::{sync::Arc, time::Duration};

use api::istio::v1::auth::{
    IstioCertificateRequest, istio_certificate_service_client::IstioCertificateServiceClient,
};
use spiffe::{KeyError, PrivateKey, SigningRequest, SpiffeId, Svid, SvidError, TrustBundle};
use tonic::{Request, Status, metadata::AsciiMetadataValue};

use crate::{OwnSvid, UnusableTrust, client_config, connect};

/// For one request.
const TIMEOUT: Duration = Duration::from_secs(10);

/// Why there is no certificate.
#[derive(Debug, thiserror::Error)]
pub enum RequestError {
    #[error("the certificate authority at {address} cannot be reached")]
    Unreachable { address: String, source: tonic::transport::Error },
    #[error("the certificate authority does not answer in time")]
    Timeout,
    #[error("the certificate authority refused")]
    Refused(#[source] Box<Status>),
    #[error("no key could be made")]
    Key(#[from] KeyError),
    #[error("no signing request could be made")]
    Csr(#[source] Box<dyn std::error::Error + Send + Sync>),
    #[error("the token holds what no header may")]
    Token,
    #[error("the trust bundle cannot be used")]
    Trust(#[from] UnusableTrust),
    #[error("the certificate authority answered a certificate that cannot be used")]
    Answer(#[from] SvidError),
}

/// Whom to ask.
#[derive(Clone, Debug)]
pub struct Requester {
    /// `HOST:PORT`.
    pub address: String,
    /// Who must answer.
    pub server: SpiffeId,
    /// SO_MARK, where traffic is captured.
    pub mark: Option<u32>,
}

impl Requester {
    /// A certificate for a new key. The caller proves itself by `token` or, without one, by what `own` holds.
    pub async fn request(
        &self,
        bundle: &TrustBundle,
        own: Arc<OwnSvid>,
        token: Option<&str>,
    ) -> Result<Svid, RequestError> {
        let key = PrivateKey::generate()?;
        let csr = SigningRequest::create(&key).map_err(|error| RequestError::Csr(error.into()))?;
        let message = IstioCertificateRequest { csr, validity_duration: 0, metadata: None };
        let mut request = Request::new(message);
        request.set_timeout(TIMEOUT);
        let headers = request.metadata_mut();
        // Istio's agents say which cluster's API server knows the token; there is one.
        headers.insert("clusterid", AsciiMetadataValue::from_static("Kubernetes"));
        if let Some(token) = token {
            let mut value: AsciiMetadataValue =
                format!("Bearer {token}").parse().map_err(|_| RequestError::Token)?;
            value.set_sensitive(true);
            headers.insert("authorization", value);
        }
        let config = client_config(bundle, self.server.clone(), own)?;
        let channel = connect(&self.address, config, self.mark)
            .await
            .map_err(|source| RequestError::Unreachable { address: self.address.clone(), source })?;
        let mut client = IstioCertificateServiceClient::new(channel);
        let answer = tokio::time::timeout(TIMEOUT, client.create_certificate(request)).await;
        let answer = answer.map_err(|_| RequestError::Timeout)?;
        let answer = answer.map_err(|status| RequestError::Refused(Box::new(status)))?;
        Ok(Svid::from_pem(&answer.into_inner().cert_chain.concat(), key)?)
    }
}
