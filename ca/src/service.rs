//! What both gRPC services of a CA with a registry share: the registry, limits, and who called.

use std::{
    net::{IpAddr, Ipv6Addr},
    sync::{Arc, Mutex, PoisonError},
    time::{Duration, Instant},
};

use api::{
    countersign::ca::v1::enrollment_server::EnrollmentServer,
    istio::v1::auth::istio_certificate_service_server::IstioCertificateServiceServer,
};
use authn::{
    PeerIdentity,
    limit::{Limiter, Rate, host},
};
use spiffe::SpiffeId;
use time::OffsetDateTime;
use tonic::{Request, Status};

use crate::{
    Certificates, Counters, Enrollment, Error, Issuance, Issuer, JoinTokens, WorkloadName, desk::Desk,
};

/// Longest message in bytes that the services read.
pub const MAX_MESSAGE_BYTES: usize = 64 * 1024;
/// Failed attempts to join, per host.
const FAILURES: Rate = Rate { burst: 10, refill: Duration::from_secs(6) };

/// Where it is written down which workloads there are. Implemented over the controller's state.
pub trait Registry: Send + Sync + 'static {
    /// The service account of the Pod or WorkloadEntry of that name; `None` if there is none.
    ///
    /// # Errors
    /// [`NotReady`] while the first full list is not there: "unknown" would then be a lie.
    fn service_account(&self, namespace: &str, name: &str) -> Result<Option<String>, NotReady>;

    /// Whether any workload in `namespace` runs as `service_account`. It is what ends the renewals of a workload SVID
    /// whose workload is gone.
    ///
    /// # Errors
    /// As above.
    fn service_account_in_use(&self, namespace: &str, service_account: &str) -> Result<bool, NotReady>;
}

/// The registry is not complete yet.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("the registry of workloads is not complete yet")]
pub struct NotReady;

/// The CA of one process.
#[derive(Debug)]
pub struct Ca<R> {
    pub(crate) issuer: Arc<Issuer>,
    pub(crate) tokens: JoinTokens,
    pub(crate) registry: R,
    desk: Desk,
    failures: Mutex<Limiter<IpAddr>>,
}

/// Who called, as far as proven.
pub(crate) struct Caller {
    identity: Option<Arc<PeerIdentity>>,
    /// For limits and the log; unspecified if not by TLS.
    pub(crate) address: IpAddr,
}

impl Caller {
    pub(crate) fn of<T>(request: &Request<T>) -> Self {
        let connection = authn::connection(request);
        Self {
            identity: connection.and_then(|connection| connection.identity.clone()),
            address: connection.map_or(Ipv6Addr::UNSPECIFIED.into(), |connection| connection.peer.ip()),
        }
    }

    /// The proven identity. A connection may be older than the end of its certificate.
    pub(crate) fn identity(&self, now: OffsetDateTime) -> Result<&SpiffeId, Error> {
        match &self.identity {
            None => Err(Error::NoIdentity),
            Some(identity) if identity.is_expired(now) => Err(Error::ExpiredIdentity),
            Some(identity) => Ok(&identity.id),
        }
    }
}

impl<R: Registry> Ca<R> {
    /// A CA that signs with `issuer` for workloads of `registry`.
    pub fn new(issuer: Arc<Issuer>, tokens: JoinTokens, registry: R, counters: Arc<Counters>) -> Arc<Self> {
        let failures = Mutex::new(Limiter::new(FAILURES));
        Arc::new(Self { issuer, tokens, registry, desk: Desk::new(counters), failures })
    }

    /// `countersign.ca.v1.Enrollment`, for [`authn::tls::grpc_server`].
    pub fn enrollment(self: &Arc<Self>) -> EnrollmentServer<Enrollment<R>> {
        EnrollmentServer::new(Enrollment::new(Arc::clone(self))).max_decoding_message_size(MAX_MESSAGE_BYTES)
    }

    /// `istio.v1.auth.IstioCertificateService`, for [`authn::tls::grpc_server`].
    pub fn certificates(self: &Arc<Self>) -> IstioCertificateServiceServer<Certificates<R>> {
        IstioCertificateServiceServer::new(Certificates::new(Arc::clone(self)))
            .max_decoding_message_size(MAX_MESSAGE_BYTES)
    }

    /// The identity that the registry gives to `workload` now.
    pub(crate) fn workload_id(&self, workload: &WorkloadName) -> Result<SpiffeId, Error> {
        let service_account = self
            .registry
            .service_account(workload.namespace(), workload.name())?
            .filter(|service_account| !service_account.is_empty())
            .ok_or_else(|| Error::Unregistered(workload.clone()))?;
        self.issuer.workload_id(workload, &service_account)
    }

    /// Refuses a host that has failed to join too often lately.
    pub(crate) fn check_failures(&self, address: IpAddr) -> Result<(), Error> {
        let failures = self.failures.lock().unwrap_or_else(PoisonError::into_inner);
        if failures.allows(&host(address), Instant::now()) { Ok(()) } else { Err(Error::RateLimited) }
    }

    pub(crate) fn count_failure(&self, address: IpAddr) {
        let mut failures = self.failures.lock().unwrap_or_else(PoisonError::into_inner);
        failures.take(&host(address), Instant::now());
    }

    /// Refuses an identity that has asked for too many certificates lately.
    pub(crate) fn check_issuance(&self, caller: &SpiffeId) -> Result<(), Error> {
        self.desk.check_issuance(caller.as_str())
    }

    /// Counts the outcome, writes the audit line, and turns a refusal into a status.
    pub(crate) fn conclude(
        &self,
        method: &'static str,
        caller: &Caller,
        outcome: Result<Issuance, Error>,
    ) -> Result<Issuance, Status> {
        let proven = caller.identity.as_ref().map_or("none", |identity| identity.id.as_str());
        self.desk.conclude(method, proven, caller.address, outcome)
    }

    pub(crate) fn counters(&self) -> &Counters {
        self.desk.counters()
    }
}
