//! `istio.v1.auth.IstioCertificateService` on the controller's address, for agents that know no other: passes the request and
//! the caller's own bearer token on to the certificate authority, which judges the token itself. Holds no key, decides
//! about no identity, keeps nothing.

use std::{
    net::{IpAddr, Ipv6Addr},
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicU64, Ordering},
    },
    time::{Duration, Instant},
};

use api::istio::v1::auth::{
    IstioCertificateRequest, IstioCertificateResponse,
    istio_certificate_service_client::IstioCertificateServiceClient,
    istio_certificate_service_server::{IstioCertificateService, IstioCertificateServiceServer},
};
use authn::limit::{Limiter, Rate, host};
use tokio::sync::Semaphore;
use tonic::{Code, Request, Response, Status, metadata::AsciiMetadataValue, transport::Channel};

use crate::{MAX_MESSAGE_BYTES, cluster::RELAYED_FOR};

/// Requests under way at once.
const PLACES: usize = 128;
/// For a place, and for the certificate authority's answer.
const QUEUE: Duration = Duration::from_secs(2);
const TIMEOUT: Duration = Duration::from_secs(10);
/// Requests of one host: a node's pods have addresses of their own.
const REQUESTS: Rate = Rate { burst: 50, refill: Duration::from_millis(500) };

/// What has happened so far.
#[derive(Debug, Default)]
pub struct RelayCounters {
    /// `countersign_relay_requests`: passed on.
    pub relayed: AtomicU64,
    /// `countersign_relay_refused`: not passed on.
    pub refused: AtomicU64,
    /// `countersign_relay_failed`: the certificate authority said no, or nothing.
    pub failed: AtomicU64,
}

/// The relay.
pub struct Relay {
    channel: Box<dyn Fn() -> Option<Channel> + Send + Sync>,
    /// The certificate authority's own address, for messages.
    address: String,
    places: Semaphore,
    rate: Mutex<Limiter<IpAddr>>,
    counters: Arc<RelayCounters>,
}

impl std::fmt::Debug for Relay {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Relay").field("address", &self.address).finish_non_exhaustive()
    }
}

impl Relay {
    /// Relays to the certificate authority at `address`, by the channel that `channel` gives at the time (`None` while
    /// there is none). The channel presents the controller's SVID.
    pub fn new(
        address: &str,
        channel: impl Fn() -> Option<Channel> + Send + Sync + 'static,
        counters: Arc<RelayCounters>,
    ) -> Self {
        Self {
            channel: Box::new(channel),
            address: address.to_owned(),
            places: Semaphore::new(PLACES),
            rate: Mutex::new(Limiter::new(REQUESTS)),
            counters,
        }
    }

    /// For [`authn::tls::grpc_server`], behind an [`authn::token::TokenLayer`].
    pub fn server(self) -> IstioCertificateServiceServer<Self> {
        IstioCertificateServiceServer::new(self).max_decoding_message_size(MAX_MESSAGE_BYTES)
    }

    /// What is to be passed on: the request, the caller's own token, and where it came from. Nothing else of the caller's.
    fn outgoing(
        &self,
        request: Request<IstioCertificateRequest>,
    ) -> Result<(Request<IstioCertificateRequest>, Channel), Status> {
        let connection = authn::connection(&request);
        let address = connection.map_or(Ipv6Addr::UNSPECIFIED.into(), |connection| connection.peer.ip());
        if connection.is_some_and(|connection| connection.identity.is_some()) {
            // What we would show the authority is our certificate, never the caller's.
            return Err(Status::failed_precondition(format!(
                "a certificate is renewed at the certificate authority itself, {}; here only by bearer token and without client certificate",
                self.address
            )));
        }
        if authn::token_identity(&request).is_none() {
            return Err(Status::unauthenticated("a service-account token (authorization: Bearer) is needed"));
        }
        {
            let mut rate = self.rate.lock().unwrap_or_else(PoisonError::into_inner);
            if !rate.take(&host(address), Instant::now()) {
                return Err(Status::resource_exhausted("too many requests; wait a minute"));
            }
        }
        let channel = (self.channel)()
            .ok_or_else(|| Status::unavailable("the certificate authority's roots are not known yet"))?;
        let (headers, _, message) = request.into_parts();
        let mut outgoing = Request::new(message);
        outgoing.set_timeout(TIMEOUT);
        let metadata = outgoing.metadata_mut();
        if let Some(token) = headers.get("authorization") {
            let mut token = token.clone();
            token.set_sensitive(true);
            metadata.insert("authorization", token);
        }
        let address = AsciiMetadataValue::try_from(address.to_string());
        metadata.insert(RELAYED_FOR, address.map_err(|_| Status::internal("an address is ASCII"))?);
        Ok((outgoing, channel))
    }
}

#[tonic::async_trait]
impl IstioCertificateService for Relay {
    async fn create_certificate(
        &self,
        request: Request<IstioCertificateRequest>,
    ) -> Result<Response<IstioCertificateResponse>, Status> {
        let counters = &self.counters;
        let refused = |status: Status| {
            counters.refused.fetch_add(1, Ordering::Relaxed);
            tracing::info!(
                target: "audit", method = "CreateCertificate", code = ?status.code(), reason = status.message(),
                "certificate request not relayed"
            );
            status
        };
        let (request, channel) = self.outgoing(request).map_err(refused)?;
        let place = tokio::time::timeout(QUEUE, self.places.acquire()).await;
        let Ok(Ok(_place)) = place else {
            return Err(refused(Status::unavailable("too many certificate requests at once")));
        };
        counters.relayed.fetch_add(1, Ordering::Relaxed);
        let mut client = IstioCertificateServiceClient::new(channel);
        let answer = tokio::time::timeout(TIMEOUT, client.create_certificate(request)).await;
        let answer =
            answer.unwrap_or_else(|_| Err(Status::unavailable("the certificate authority does not answer")));
        answer.map(|answer| Response::new(answer.into_inner())).map_err(|status| {
            counters.failed.fetch_add(1, Ordering::Relaxed);
            answered(&status)
        })
    }
}

/// The authority's word as its own; what went wrong on the way there is ours to say.
fn answered(status: &Status) -> Status {
    if std::error::Error::source(status).is_some() || matches!(status.code(), Code::Unknown | Code::Cancelled)
    {
        tracing::warn!(error = %status, "the certificate authority cannot be reached");
        return Status::unavailable("the certificate authority cannot be reached");
    }
    Status::new(status.code(), status.message())
}
