//! `istio.v1.auth.IstioCertificateService`: certificates for workloads (semantics §6.7).
//!
//! An agent gets the identity that its workload's registration says; a workload gets its own again.

use std::sync::Arc;

use api::istio::v1::auth::{
    IstioCertificateRequest, IstioCertificateResponse,
    istio_certificate_service_server::IstioCertificateService,
};
use prost_types::value::Kind;
use spiffe::{SigningRequest, SpiffeId};
use time::OffsetDateTime;
use tonic::{Request, Response, Status};

use crate::{Ca, Error, Issuance, Registry, WorkloadName, service::Caller};

/// Metadata keys of Istio's that would change whose certificate it is or who signs it. Ignoring them would hand out
/// another certificate than was asked for.
const UNSUPPORTED: [&str; 2] = ["ImpersonatedIdentity", "CertSigner"];

/// The service, over a shared [`Ca`].
#[derive(Debug)]
pub struct Certificates<R>(Arc<Ca<R>>);

impl<R: Registry> Certificates<R> {
    pub(crate) fn new(ca: Arc<Ca<R>>) -> Self {
        Self(ca)
    }

    fn create(&self, caller: &Caller, message: &IstioCertificateRequest) -> Result<Issuance, Error> {
        let IstioCertificateRequest { csr, validity_duration, metadata } = message;
        let (ca, now) = (&self.0, OffsetDateTime::now_utc());
        let identity = caller.identity(now)?;
        ca.check_issuance(identity)?;
        check_metadata(metadata.as_ref())?;
        let request = SigningRequest::from_pem(csr)?;
        let id = self.granted(identity)?;
        ca.issuer.workload(id, &request, *validity_duration, now)
    }

    /// The identity that `caller` may have a workload certificate for.
    fn granted(&self, caller: &SpiffeId) -> Result<SpiffeId, Error> {
        let ca = &self.0;
        if !caller.is_in(ca.issuer.trust_domain()) {
            return Err(Error::ForeignTrustDomain(caller.clone()));
        }
        if let Some((namespace, name)) = caller.as_agent() {
            return ca.workload_id(&WorkloadName::new(namespace, name)?);
        }
        let unused = || Error::UnusedIdentity(caller.clone());
        let (namespace, service_account) = caller.as_workload().ok_or_else(unused)?;
        if ca.registry.service_account_in_use(namespace, service_account)? {
            Ok(caller.clone())
        } else {
            Err(unused())
        }
    }
}

/// Refuses what would make it another certificate.
pub(crate) fn check_metadata(metadata: Option<&prost_types::Struct>) -> Result<(), Error> {
    for key in UNSUPPORTED {
        let value = metadata.and_then(|metadata| metadata.fields.get(key));
        match value.and_then(|value| value.kind.as_ref()) {
            None | Some(Kind::NullValue(_)) => {}
            Some(Kind::StringValue(text)) if text.is_empty() => {}
            Some(_) => return Err(Error::Unsupported(key)),
        }
    }
    Ok(())
}

#[tonic::async_trait]
impl<R: Registry> IstioCertificateService for Certificates<R> {
    async fn create_certificate(
        &self,
        request: Request<IstioCertificateRequest>,
    ) -> Result<Response<IstioCertificateResponse>, Status> {
        let caller = Caller::of(&request);
        let outcome = self.create(&caller, request.get_ref());
        let Issuance { chain, id: _, leaf: _ } = self.0.conclude("CreateCertificate", &caller, outcome)?;
        Ok(Response::new(IstioCertificateResponse { cert_chain: chain }))
    }
}
