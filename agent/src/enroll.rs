//! The calls to the certificate authority, one connection each: they are minutes apart. Decides nothing about when.

use std::sync::Arc;
use std::time::Duration;

use api::countersign::ca::v1::{
    AgentCredential, JoinRequest, RenewRequest, enrollment_client::EnrollmentClient,
};
use api::istio::v1::auth::{
    IstioCertificateRequest, istio_certificate_service_client::IstioCertificateServiceClient,
};
use authn::OwnSvid;
use spiffe::{PrivateKey, SigningRequest, SpiffeId, Svid, TrustBundle};
use tonic::transport::Channel;

/// Longest time for one call.
const TIMEOUT: Duration = Duration::from_secs(10);

/// Why there is no new certificate.
#[derive(Debug, thiserror::Error)]
pub(crate) enum EnrollError {
    #[error("the control plane at {address} cannot be reached")]
    Unreachable { address: String, source: tonic::transport::Error },
    #[error("the control plane refused")]
    Refused(#[source] Box<tonic::Status>),
    #[error("no key could be made")]
    Key(#[from] spiffe::KeyError),
    #[error("no signing request could be made")]
    Request(#[source] Box<dyn std::error::Error + Send + Sync>),
    #[error("the control plane answered a certificate that cannot be used")]
    Answer(#[from] spiffe::SvidError),
    #[error("the control plane answered a certificate for {got}, not for {wanted}")]
    Identity { got: SpiffeId, wanted: String },
    #[error("TLS cannot be set up")]
    Tls(#[source] Box<dyn std::error::Error + Send + Sync>),
}

impl EnrollError {
    /// Trying again with the same credential is of no use.
    pub(crate) fn final_for_credential(&self) -> bool {
        let code = |status: &tonic::Status| {
            matches!(status.code(), tonic::Code::Unauthenticated | tonic::Code::PermissionDenied)
        };
        matches!(self, Self::Refused(status) if code(status))
    }
}

/// Whom to call, and as whom.
#[derive(Clone, Debug)]
pub(crate) struct Authority {
    pub(crate) address: String,
    pub(crate) server: SpiffeId,
    pub(crate) mark: Option<u32>,
}

impl Authority {
    async fn channel(&self, bundle: &TrustBundle, own: Arc<OwnSvid>) -> Result<Channel, EnrollError> {
        let config =
            authn::client_config(bundle, self.server.clone(), own).map_err(|e| EnrollError::Tls(e.into()))?;
        authn::connect(&self.address, config, self.mark)
            .await
            .map_err(|source| EnrollError::Unreachable { address: self.address.clone(), source })
    }

    /// Redeems a join token. The key in the answer is new.
    pub(crate) async fn join(
        &self,
        bundle: &TrustBundle,
        token: &str,
        workload: &str,
    ) -> Result<Svid, EnrollError> {
        let (key, csr) = request()?;
        let channel = self.channel(bundle, OwnSvid::empty()).await?;
        let request = JoinRequest { token: token.to_owned(), csr, workload: workload.to_owned() };
        let answer = EnrollmentClient::new(channel).join(timed(request)).await.map_err(refused)?;
        credential(answer.into_inner(), key)
    }

    /// Replaces the agent's certificate, with a new key.
    pub(crate) async fn renew(&self, bundle: &TrustBundle, agent: Arc<OwnSvid>) -> Result<Svid, EnrollError> {
        let (key, csr) = request()?;
        let channel = self.channel(bundle, agent).await?;
        let answer =
            EnrollmentClient::new(channel).renew(timed(RenewRequest { csr })).await.map_err(refused)?;
        credential(answer.into_inner(), key)
    }

    /// A certificate for the workload, with a new key.
    pub(crate) async fn workload(
        &self,
        bundle: &TrustBundle,
        agent: Arc<OwnSvid>,
    ) -> Result<Svid, EnrollError> {
        let (key, csr) = request()?;
        let channel = self.channel(bundle, agent).await?;
        let request = IstioCertificateRequest { csr, validity_duration: 0, metadata: None };
        let mut client = IstioCertificateServiceClient::new(channel);
        let answer = client.create_certificate(timed(request)).await.map_err(refused)?;
        let svid = Svid::from_pem(&answer.into_inner().cert_chain.concat(), key)?;
        if svid.leaf.id.trust_domain() != self.server.trust_domain() || svid.leaf.id.as_agent().is_some() {
            let wanted = format!("a workload of {}", self.server.trust_domain());
            return Err(EnrollError::Identity { got: svid.leaf.id, wanted });
        }
        Ok(svid)
    }
}

fn timed<T>(message: T) -> tonic::Request<T> {
    let mut request = tonic::Request::new(message);
    request.set_timeout(TIMEOUT);
    request
}

fn refused(status: tonic::Status) -> EnrollError {
    EnrollError::Refused(Box::new(status))
}

fn request() -> Result<(PrivateKey, String), EnrollError> {
    let key = PrivateKey::generate()?;
    let csr = SigningRequest::create(&key).map_err(|e| EnrollError::Request(e.into()))?;
    Ok((key, csr))
}

fn credential(answer: AgentCredential, key: PrivateKey) -> Result<Svid, EnrollError> {
    let AgentCredential { cert_chain, workload_id: _ } = answer;
    let svid = Svid::from_pem(&cert_chain.concat(), key)?;
    if svid.leaf.id.as_agent().is_none() {
        return Err(EnrollError::Identity { got: svid.leaf.id, wanted: "an agent".to_owned() });
    }
    Ok(svid)
}
