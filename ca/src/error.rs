//! Why the CA refuses, and what the caller is told of it.

use spiffe::{AuthorityError, CsrError, IdError, SpiffeId};
use time::Duration;
use tonic::{Code, Status};

use crate::{NotReady, TokenError, WorkloadName, WorkloadNameError};

/// A refusal.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    #[error("a client certificate is needed")]
    NoIdentity,
    #[error("the client certificate has ended")]
    ExpiredIdentity,
    #[error("joining failed")]
    Token(#[source] TokenError),
    #[error("too many requests; wait a minute")]
    RateLimited,
    #[error("workload")]
    WorkloadName(#[from] WorkloadNameError),
    #[error("certificate signing request")]
    Csr(#[from] CsrError),
    #[error("the longest lifetime is {} seconds", .max.whole_seconds())]
    Lifetime { max: Duration },
    #[error("{0} is not supported")]
    Unsupported(&'static str),
    #[error("{0} is not an agent")]
    NotAgent(SpiffeId),
    #[error("{0} is not of the trust domain that this CA signs for")]
    ForeignTrustDomain(SpiffeId),
    #[error("the workload {0} is not registered, or has no service account")]
    Unregistered(WorkloadName),
    #[error("no registered workload has the identity {0}")]
    UnusedIdentity(SpiffeId),
    #[error("the registration gives no SPIFFE ID")]
    Identity(#[source] IdError),
    #[error(transparent)]
    NotReady(#[from] NotReady),
    #[error("signing failed")]
    Authority(#[from] AuthorityError),
    #[error("a task of the CA ended early")]
    Task,
    #[error("the authorization header is not one Bearer token")]
    Bearer,
    #[error(transparent)]
    ServiceAccountToken(#[from] authn::token::TokenError),
    #[error("a relayed request needs the caller's own bearer token")]
    RelayedWithoutToken,
    #[error("the token is {token}'s, but the client certificate is {certificate}'s")]
    TwoIdentities { token: SpiffeId, certificate: SpiffeId },
    #[error("the pod that the token is bound to is gone, has ended, or runs as another service account")]
    PodGone,
    #[error("{0} is the certificate authority's own identity")]
    Reserved(SpiffeId),
    #[error("the API server cannot be asked about pods now")]
    NoPods(#[source] Box<dyn std::error::Error + Send + Sync>),
}

impl Error {
    fn code(&self) -> Code {
        match self {
            Self::NoIdentity
            | Self::ExpiredIdentity
            | Self::Token(TokenError::Refused)
            | Self::Bearer
            | Self::RelayedWithoutToken => Code::Unauthenticated,
            Self::ServiceAccountToken(error) => Status::from(error).code(),
            Self::RateLimited => Code::ResourceExhausted,
            Self::WorkloadName(_) | Self::Csr(_) | Self::Lifetime { .. } | Self::Unsupported(_) => {
                Code::InvalidArgument
            }
            Self::NotAgent(_)
            | Self::ForeignTrustDomain(_)
            | Self::Unregistered(_)
            | Self::UnusedIdentity(_)
            | Self::TwoIdentities { .. }
            | Self::PodGone
            | Self::Reserved(_)
            | Self::Identity(_) => Code::PermissionDenied,
            Self::NotReady(_) | Self::NoPods(_) => Code::Unavailable,
            Self::Token(_) | Self::Authority(_) | Self::Task => Code::Internal,
        }
    }
}

/// The one place where a refusal becomes a gRPC status. Causes are told where they are about the caller's own input;
/// what is ours (paths, keys, the CA's state) stays in our log.
impl From<&Error> for Status {
    fn from(error: &Error) -> Self {
        let message = match error {
            Error::Token(TokenError::Refused) => TokenError::Refused.to_string(),
            Error::Csr(cause) => format!("{error}: {cause}"),
            Error::WorkloadName(cause) => format!("{error}: {cause}"),
            Error::Token(_) | Error::Authority(_) | Error::Task => "internal error of the CA".to_owned(),
            _ => error.to_string(),
        };
        Self::new(error.code(), message)
    }
}
