//! `istio.v1.auth.IstioCertificateService` in a cluster (semantics §6.7): who the caller is, whether its pod lives, and the
//! certificate for exactly that identity. Nothing of the request but its key counts.

use std::{
    net::{IpAddr, Ipv6Addr},
    sync::Arc,
};

use api::istio::v1::auth::{
    IstioCertificateRequest, IstioCertificateResponse,
    istio_certificate_service_server::{IstioCertificateService, IstioCertificateServiceServer},
};
use authn::token::{self, Source, TokenIdentity, TokenReviewer};
use spiffe::{IdError, SigningRequest, SpiffeId, TrustDomain};
use time::OffsetDateTime;
use tonic::{Request, Response, Status};

use super::Pods;
use crate::{Counters, Error, Issuance, Issuer, MAX_MESSAGE_BYTES, certificates::check_metadata, desk::Desk};

/// Metadata key of a relayed request: the address that the relay took it from. For limits and the log only.
pub const RELAYED_FOR: &str = "countersign-relayed-for";

/// The control plane's own identities and names.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Names {
    /// Who may relay requests of others.
    pub controller: SpiffeId,
    /// DNS names of the controller's certificate.
    pub controller_dns: Vec<String>,
    /// This process. Nobody gets a certificate for it.
    pub ca: SpiffeId,
    /// DNS names of this process's certificate.
    pub ca_dns: Vec<String>,
}

impl Names {
    /// Those of the control plane in `namespace`, for Istio's revision `revision`.
    pub fn new(domain: &TrustDomain, namespace: &str, revision: &str) -> Result<Self, IdError> {
        let service = |name: &str| format!("{name}.{namespace}.svc");
        Ok(Self {
            controller: SpiffeId::workload(domain, namespace, "countersign")?,
            controller_dns: vec![
                service("countersign"),
                service("istiod"),
                service(&format!("istiod-{revision}")),
                service("istio-pilot"),
                "localhost".to_owned(),
            ],
            ca: SpiffeId::workload(domain, namespace, "countersign-ca")?,
            ca_dns: vec![service("countersign-ca"), "localhost".to_owned()],
        })
    }
}

/// The service.
pub struct ClusterCertificates {
    issuer: Arc<Issuer>,
    reviewer: Arc<TokenReviewer>,
    pods: Box<dyn Pods>,
    names: Names,
    desk: Desk,
}

impl std::fmt::Debug for ClusterCertificates {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("ClusterCertificates").field("names", &self.names).finish_non_exhaustive()
    }
}

/// Who called, as far as proven so far; told in the audit line whatever comes of it.
struct Caller {
    address: IpAddr,
    proven: String,
}

impl ClusterCertificates {
    /// Signs with `issuer` for whom `reviewer` knows and whose pods live.
    pub fn new(
        issuer: Arc<Issuer>,
        reviewer: Arc<TokenReviewer>,
        pods: impl Pods,
        names: Names,
        counters: Arc<Counters>,
    ) -> Self {
        Self { issuer, reviewer, pods: Box::new(pods), names, desk: Desk::new(counters) }
    }

    /// For [`authn::tls::grpc_server`].
    pub fn server(self) -> IstioCertificateServiceServer<Self> {
        IstioCertificateServiceServer::new(self).max_decoding_message_size(MAX_MESSAGE_BYTES)
    }

    async fn create(
        &self,
        request: &Request<IstioCertificateRequest>,
        caller: &mut Caller,
    ) -> Result<Issuance, Error> {
        let id = self.prove(request, caller).await?;
        if id == self.names.ca {
            return Err(Error::Reserved(id));
        }
        let IstioCertificateRequest { csr, validity_duration, metadata } = request.get_ref();
        check_metadata(metadata.as_ref())?;
        let request = SigningRequest::from_pem(csr)?;
        let dns = if id == self.names.controller { self.names.controller_dns.clone() } else { Vec::new() };
        self.issuer.named_workload(id, dns, &request, *validity_duration, OffsetDateTime::now_utc())
    }

    /// Whose certificate it is to be. A bearer token decides if there is one; a bad one is never made up for by the
    /// connection's certificate, which may be the relay's.
    async fn prove<T>(&self, request: &Request<T>, caller: &mut Caller) -> Result<SpiffeId, Error> {
        let connection = authn::connection(request);
        let certificate = connection.and_then(|connection| connection.identity.as_ref());
        if let Some(certificate) = certificate {
            caller.proven = certificate.id.to_string();
            if certificate.is_expired(OffsetDateTime::now_utc()) {
                return Err(Error::ExpiredIdentity);
            }
            if !certificate.id.is_in(self.issuer.trust_domain()) {
                return Err(Error::ForeignTrustDomain(certificate.id.clone()));
            }
        }
        let certificate = certificate.map(|certificate| &certificate.id);
        let relays = certificate == Some(&self.names.controller);
        let relayed_for = request.metadata().get(RELAYED_FOR);
        let bearer = token::bearer(request.metadata().as_ref()).map_err(|_| Error::Bearer)?;
        match (bearer, certificate) {
            (Some(bearer), certificate) => {
                let source = match relayed_for.filter(|_| relays) {
                    Some(text) => {
                        let address = text.to_str().ok().and_then(|text| text.parse().ok());
                        Source::Relayed(address.unwrap_or(caller.address))
                    }
                    None => Source::Peer(caller.address),
                };
                let identity = self.reviewer.judge(bearer, source).await?;
                // A caller that has shown a good token is not what a flood of idle connections may displace.
                if certificate.is_none()
                    && connection.is_some_and(|connection| !connection.identify(&identity))
                {
                    return Err(Error::RateLimited);
                }
                let via = std::mem::take(&mut caller.proven);
                caller.proven = describe(&identity, &via);
                self.by_token(&identity, certificate.filter(|_| !relays)).await
            }
            // Whoever relays for somebody without a token must not be mistaken for who asks for itself.
            (None, Some(_)) if relayed_for.is_some() => Err(Error::RelayedWithoutToken),
            (None, Some(certificate)) => self.by_certificate(certificate).await,
            (None, None) => Err(Error::NoIdentity),
        }
    }

    async fn by_token(
        &self,
        identity: &TokenIdentity,
        certificate: Option<&SpiffeId>,
    ) -> Result<SpiffeId, Error> {
        let id = identity.spiffe_id(self.issuer.trust_domain()).map_err(Error::Identity)?;
        if let Some(certificate) = certificate.filter(|certificate| **certificate != id) {
            return Err(Error::TwoIdentities { token: id, certificate: certificate.clone() });
        }
        let TokenIdentity { namespace, service_account, pod, expires: _ } = identity;
        let Some(token::Pod { name, uid }) = pod else {
            // Of a controller outside the cluster, or made by hand: as good as a certificate, no better.
            self.desk.check_issuance(id.as_str())?;
            let own = id == self.names.controller;
            if !own && !self.in_use(namespace, service_account).await? {
                return Err(Error::UnusedIdentity(id));
            }
            return Ok(id);
        };
        // Before the API server is asked. Per pod: a Deployment's pods that start all at once must not take each other's
        // share.
        self.desk.check_issuance(&format!("{id} {uid}"))?;
        // The review may be a minute old, and says nothing of how the pod is.
        let found = self.pods.pod(namespace, name).await.map_err(Error::NoPods)?;
        let fits = found
            .is_some_and(|pod| pod.lives && *pod.uid == **uid && *pod.service_account == **service_account);
        if fits { Ok(id) } else { Err(Error::PodGone) }
    }

    async fn by_certificate(&self, id: &SpiffeId) -> Result<SpiffeId, Error> {
        let unused = || Error::UnusedIdentity(id.clone());
        let (namespace, service_account) = id.as_workload().ok_or_else(unused)?;
        self.desk.check_issuance(id.as_str())?;
        if !self.in_use(namespace, service_account).await? {
            return Err(unused());
        }
        Ok(id.clone())
    }

    async fn in_use(&self, namespace: &str, service_account: &str) -> Result<bool, Error> {
        self.pods.service_account_in_use(namespace, service_account).await.map_err(Error::NoPods)
    }
}

/// For the audit line: every part is a Kubernetes name, by the API server's word.
fn describe(identity: &TokenIdentity, via: &str) -> String {
    let TokenIdentity { namespace, service_account, pod, expires: _ } = identity;
    let mut text = format!("token of {namespace}/{service_account}");
    if let Some(token::Pod { name, uid }) = pod {
        text += &format!(" in pod {name} {uid}");
    }
    if via != "none" {
        text += &format!(" by way of {via}");
    }
    text
}

#[tonic::async_trait]
impl IstioCertificateService for ClusterCertificates {
    async fn create_certificate(
        &self,
        request: Request<IstioCertificateRequest>,
    ) -> Result<Response<IstioCertificateResponse>, Status> {
        let address = authn::connection(&request).map_or(Ipv6Addr::UNSPECIFIED.into(), |info| info.peer.ip());
        let mut caller = Caller { address, proven: "none".to_owned() };
        let outcome = self.create(&request, &mut caller).await;
        let Issuance { chain, id: _, leaf: _ } =
            self.desk.conclude("CreateCertificate", &caller.proven, address, outcome)?;
        Ok(Response::new(IstioCertificateResponse { cert_chain: chain }))
    }
}
