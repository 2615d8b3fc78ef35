//! `countersign.ca.v1.Enrollment`: an agent's first identity, by token, and the next ones, by the last.

use std::sync::Arc;

use api::countersign::ca::v1::{AgentCredential, JoinRequest, RenewRequest, enrollment_server};
use spiffe::SigningRequest;
use time::OffsetDateTime;
use tonic::{Request, Response, Status};
use zeroize::Zeroizing;

use crate::{Ca, Counters, Error, Issuance, Registry, TokenError, WorkloadName, service::Caller};

/// The service, over a shared [`Ca`].
#[derive(Debug)]
pub struct Enrollment<R>(Arc<Ca<R>>);

impl<R: Registry> Enrollment<R> {
    pub(crate) fn new(ca: Arc<Ca<R>>) -> Self {
        Self(ca)
    }

    /// Everything that may fail without the token being at fault is tried before the token is used up.
    async fn join_with(&self, caller: &Caller, message: JoinRequest) -> Result<(Issuance, String), Error> {
        let JoinRequest { token, csr, workload } = message;
        let (ca, token, now) = (&self.0, Zeroizing::new(token), OffsetDateTime::now_utc());
        ca.check_failures(caller.address)?;
        let workload: WorkloadName = workload.parse()?;
        let request = SigningRequest::from_pem(&csr)?;
        // Before the registry is asked: only who holds a valid token learns whether the workload is registered.
        self.token(token.clone(), workload.clone(), now, false).await?;
        let id = ca.workload_id(&workload)?;
        let issuance = ca.issuer.agent(&workload, &request, now)?;
        self.token(token, workload, now, true).await?;
        Counters::add(&ca.counters().joined);
        Ok((issuance, id.to_string()))
    }

    /// Checks or redeems the token, off the threads that serve connections: it reads and syncs files.
    async fn token(
        &self,
        token: Zeroizing<String>,
        workload: WorkloadName,
        now: OffsetDateTime,
        redeem: bool,
    ) -> Result<(), Error> {
        let tokens = self.0.tokens.clone();
        tokio::task::spawn_blocking(move || {
            if redeem { tokens.redeem(&token, &workload, now) } else { tokens.check(&token, &workload, now) }
        })
        .await
        .map_err(|_| Error::Task)?
        .map_err(Error::Token)
    }

    fn renew_for(&self, caller: &Caller, message: &RenewRequest) -> Result<(Issuance, String), Error> {
        let RenewRequest { csr } = message;
        let (ca, now) = (&self.0, OffsetDateTime::now_utc());
        let agent = caller.identity(now)?;
        ca.check_issuance(agent)?;
        if !agent.is_in(ca.issuer.trust_domain()) {
            return Err(Error::ForeignTrustDomain(agent.clone()));
        }
        let (namespace, name) = agent.as_agent().ok_or_else(|| Error::NotAgent(agent.clone()))?;
        let workload = WorkloadName::new(namespace, name)?;
        let request = SigningRequest::from_pem(csr)?;
        let id = ca.workload_id(&workload)?;
        Ok((ca.issuer.agent(&workload, &request, now)?, id.to_string()))
    }

    fn answer(
        &self,
        method: &'static str,
        caller: &Caller,
        outcome: Result<(Issuance, String), Error>,
    ) -> Result<Response<AgentCredential>, Status> {
        let (outcome, workload_id) = match outcome {
            Ok((issuance, workload_id)) => (Ok(issuance), workload_id),
            Err(error) => (Err(error), String::new()),
        };
        let Issuance { chain, id: _, leaf: _ } = self.0.conclude(method, caller, outcome)?;
        Ok(Response::new(AgentCredential { cert_chain: chain, workload_id }))
    }
}

#[tonic::async_trait]
impl<R: Registry> enrollment_server::Enrollment for Enrollment<R> {
    async fn join(&self, request: Request<JoinRequest>) -> Result<Response<AgentCredential>, Status> {
        let caller = Caller::of(&request);
        let outcome = self.join_with(&caller, request.into_inner()).await;
        if let Err(Error::Token(TokenError::Refused)) = outcome {
            self.0.count_failure(caller.address);
        }
        self.answer("Join", &caller, outcome)
    }

    async fn renew(&self, request: Request<RenewRequest>) -> Result<Response<AgentCredential>, Status> {
        let caller = Caller::of(&request);
        let outcome = self.renew_for(&caller, request.get_ref());
        self.answer("Renew", &caller, outcome)
    }
}
