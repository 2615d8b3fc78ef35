//! What every way of asking for a certificate shares: the rate per caller, counters and the audit line.

use std::{
    net::IpAddr,
    sync::{Arc, Mutex, PoisonError},
    time::{Duration, Instant},
};

use authn::limit::{Limiter, Rate};
use time::format_description::well_known::Rfc3339;
use tonic::Status;

use crate::{Counters, Error, Issuance};

/// Certificates, per caller. All replicas of a service may share one identity.
const ISSUANCE: Rate = Rate { burst: 100, refill: Duration::from_millis(200) };

#[derive(Debug)]
pub(crate) struct Desk {
    counters: Arc<Counters>,
    issuance: Mutex<Limiter<Arc<str>>>,
}

impl Desk {
    pub(crate) fn new(counters: Arc<Counters>) -> Self {
        Self { counters, issuance: Mutex::new(Limiter::new(ISSUANCE)) }
    }

    /// Refuses a caller (however it is named) that has asked for too many certificates lately.
    pub(crate) fn check_issuance(&self, caller: &str) -> Result<(), Error> {
        let mut issuance = self.issuance.lock().unwrap_or_else(PoisonError::into_inner);
        if issuance.take(&caller.into(), Instant::now()) { Ok(()) } else { Err(Error::RateLimited) }
    }

    /// Counts the outcome, writes the audit line, and turns a refusal into a status.
    pub(crate) fn conclude(
        &self,
        method: &'static str,
        proven: &str,
        address: IpAddr,
        outcome: Result<Issuance, Error>,
    ) -> Result<Issuance, Status> {
        Counters::add(&self.counters.csr);
        match outcome {
            Ok(issuance) => {
                Counters::add(&self.counters.issued);
                let Issuance { id, leaf, chain: _ } = &issuance;
                let not_after = leaf.not_after.format(&Rfc3339).unwrap_or_default();
                tracing::info!(
                    target: "audit", method, %id, serial = leaf.serial, not_after, caller = proven, %address,
                    "certificate issued"
                );
                Ok(issuance)
            }
            Err(error) => {
                self.count(&error);
                let status = Status::from(&error);
                let cause = std::error::Error::source(&error).map(ToString::to_string).unwrap_or_default();
                tracing::info!(
                    target: "audit", method, caller = proven, %address, code = ?status.code(), %error, cause,
                    "certificate refused"
                );
                Err(status)
            }
        }
    }

    fn count(&self, error: &Error) {
        let counters = &self.counters;
        Counters::add(match error {
            Error::NoIdentity
            | Error::ExpiredIdentity
            | Error::Token(_)
            | Error::Bearer
            | Error::ServiceAccountToken(_)
            | Error::RelayedWithoutToken => &counters.authentication_failure,
            Error::RateLimited => &counters.rate_limited,
            Error::Csr(_) | Error::Lifetime { .. } | Error::Unsupported(_) => &counters.csr_parsing_error,
            Error::WorkloadName(_)
            | Error::NotAgent(_)
            | Error::ForeignTrustDomain(_)
            | Error::Unregistered(_)
            | Error::UnusedIdentity(_)
            | Error::Identity(_)
            | Error::TwoIdentities { .. }
            | Error::PodGone
            | Error::Reserved(_)
            | Error::NoPods(_)
            | Error::NotReady(_) => &counters.id_extraction_error,
            Error::Authority(_) | Error::Task => &counters.csr_sign_error,
        });
    }

    pub(crate) fn counters(&self) -> &Counters {
        &self.counters
    }
}
