//! Kubernetes service-account tokens: whom a bearer token speaks for, by the API server's own word (TokenReview).
//!
//! A token counts only if the API server says that it was made for our audience; one that ignores audiences says nothing
//! of it, and then nothing is believed. What the identity may do is the services' business; whether its pod still lives is
//! asked of the registry (or of the API server) by who needs it. Nothing here ever logs a token.

mod api_server;
mod cache;
mod claims;
mod judge;
mod layer;

use std::{
    net::IpAddr,
    pin::Pin,
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicU64, Ordering},
    },
    time::{Duration, Instant},
};

use k8s_openapi::api::authentication::v1::TokenReviewStatus;
use spiffe::{IdError, SpiffeId, TrustDomain};
use time::OffsetDateTime;
use tokio::sync::Semaphore;
use tonic::{Code, Status};

use crate::limit::{Limiter, Rate, host};
pub use api_server::ApiServer;
use cache::Cache;
pub use layer::{TokenLayer, TokenService, bearer};

/// The audience that workloads' tokens are made for, as Istio's are (semantics §6.6).
pub const AUDIENCE: &str = "istio-ca";
/// Longest token in bytes that is looked at. Kubernetes' are about 1 KiB.
pub const MAX_TOKEN_BYTES: usize = 8 * 1024;
/// How long an answer of the API server is believed: the longest that a token of a deleted pod goes on working.
const BELIEVED: Duration = Duration::from_secs(60);
/// Positive answers remembered.
const REMEMBERED: usize = 20_000;
/// Reviews under way at once.
const REVIEWS: usize = 32;
/// For a place among them, and for one review.
const QUEUE: Duration = Duration::from_secs(3);
const REVIEW: Duration = Duration::from_secs(5);
/// Refused tokens, per peer.
const REFUSALS: Rate = Rate { burst: 20, refill: Duration::from_secs(3) };

/// The pod that a token is bound to.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Pod {
    pub name: Arc<str>,
    pub uid: Arc<str>,
}

/// Whom a token speaks for, as the API server says.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TokenIdentity {
    pub namespace: Arc<str>,
    pub service_account: Arc<str>,
    /// `None` for a token that is bound to no pod.
    pub pod: Option<Pod>,
    /// From then on the token counts no more.
    pub expires: OffsetDateTime,
}

impl TokenIdentity {
    /// The service account's identity in `domain`.
    pub fn spiffe_id(&self, domain: &TrustDomain) -> Result<SpiffeId, IdError> {
        SpiffeId::workload(domain, &self.namespace, &self.service_account)
    }

    /// What one caller is for limits: its pod, else its service account.
    pub(crate) fn key(&self) -> Arc<[u8]> {
        let Self { namespace, service_account, pod, expires: _ } = self;
        let pod = pod.as_ref().map_or("", |pod| &pod.uid);
        [namespace.as_bytes(), service_account.as_bytes(), pod.as_bytes()].join(&b'/').into()
    }
}

/// Why a token is not believed, or not yet.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum TokenError {
    #[error("the token is longer than 8 KiB")]
    Long,
    #[error("the bearer token is no JSON web token")]
    Malformed,
    #[error("the token is not for the audience {AUDIENCE}")]
    Audience,
    #[error("the token has expired or has no end")]
    Expired,
    #[error(
        "the API server does not know the token: it is forged, for another cluster, expired, or its pod is gone"
    )]
    Unknown,
    #[error("the API server does not say that the token is for the audience {AUDIENCE}")]
    UnsaidAudience,
    #[error("the token is not a service account's")]
    NotServiceAccount,
    #[error("the token is bound to a pod without name or UID")]
    Pod,
    #[error("too many refused tokens; wait a minute")]
    RateLimited,
    #[error("too many tokens are under review")]
    Busy,
    #[error("tokens cannot be reviewed now")]
    Unavailable,
}

impl From<&TokenError> for Status {
    fn from(error: &TokenError) -> Self {
        let code = match error {
            TokenError::Long
            | TokenError::Malformed
            | TokenError::Audience
            | TokenError::Expired
            | TokenError::Unknown
            | TokenError::UnsaidAudience
            | TokenError::NotServiceAccount
            | TokenError::Pod => Code::Unauthenticated,
            TokenError::RateLimited => Code::ResourceExhausted,
            // Nothing is wrong with the token as far as anybody knows: the caller should come again.
            TokenError::Busy | TokenError::Unavailable => Code::Unavailable,
        };
        Self::new(code, error.to_string())
    }
}

/// Where a token came from: what refusals are counted by.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Source {
    /// From the peer itself.
    Peer(IpAddr),
    /// By way of a relay, which says that it is this peer's. Counted apart: a relay's word must not lock the peer out.
    Relayed(IpAddr),
}

impl Source {
    fn key(self) -> Self {
        match self {
            Self::Peer(address) => Self::Peer(host(address)),
            Self::Relayed(address) => Self::Relayed(host(address)),
        }
    }
}

/// The API server could not be asked, or did not answer the question.
#[derive(Debug, thiserror::Error)]
#[error("{0}")]
pub struct NoAnswer(pub String);

/// A review under way.
pub type Reviewing<'a> = Pin<Box<dyn Future<Output = Result<TokenReviewStatus, NoAnswer>> + Send + 'a>>;

/// Who is asked about tokens: the API server, or a test's stand-in.
pub trait Review: Send + Sync + 'static {
    /// The API server's word on `token` for `audience`.
    fn review<'a>(&'a self, token: &'a str, audience: &'a str) -> Reviewing<'a>;
}

/// What has happened so far.
#[derive(Debug, Default)]
pub struct Counters {
    /// `countersign_token_reviews`: questions to the API server.
    pub reviewed: AtomicU64,
    /// `countersign_token_reviews_remembered`.
    pub remembered: AtomicU64,
    /// `countersign_tokens_refused`: not believed, whoever said so.
    pub refused: AtomicU64,
    /// `countersign_tokens_limited`: not looked at, since the peer has shown too many bad ones.
    pub limited: AtomicU64,
    /// `countersign_token_reviews_failed`: nobody could be asked.
    pub unavailable: AtomicU64,
}

/// Judges tokens, with a memory of at most a minute.
pub struct TokenReviewer {
    server: Box<dyn Review>,
    counters: Counters,
    cache: Mutex<Cache>,
    refusals: Mutex<Limiter<Source>>,
    places: Semaphore,
}

impl std::fmt::Debug for TokenReviewer {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("TokenReviewer").finish_non_exhaustive()
    }
}

impl TokenReviewer {
    /// Asks `server`.
    pub fn new(server: impl Review) -> Arc<Self> {
        Arc::new(Self {
            server: Box::new(server),
            counters: Counters::default(),
            cache: Mutex::new(Cache::new(REMEMBERED)),
            refusals: Mutex::new(Limiter::new(REFUSALS)),
            places: Semaphore::new(REVIEWS),
        })
    }

    /// Asks the API server of `client`. It needs the right to create TokenReviews.
    pub fn of_client(client: kube::Client) -> Arc<Self> {
        Self::new(ApiServer::new(client))
    }

    /// What has happened so far.
    pub fn counters(&self) -> &Counters {
        &self.counters
    }

    /// Whom `token` speaks for.
    pub async fn judge(&self, token: &str, source: Source) -> Result<Arc<TokenIdentity>, TokenError> {
        let outcome = self.ask(token, source).await;
        let counted = match &outcome {
            Ok(_) => return outcome,
            Err(TokenError::RateLimited) => &self.counters.limited,
            Err(TokenError::Busy | TokenError::Unavailable) => &self.counters.unavailable,
            Err(_) => &self.counters.refused,
        };
        counted.fetch_add(1, Ordering::Relaxed);
        outcome
    }

    async fn ask(&self, token: &str, source: Source) -> Result<Arc<TokenIdentity>, TokenError> {
        if token.len() > MAX_TOKEN_BYTES {
            return Err(TokenError::Long);
        }
        let now = OffsetDateTime::now_utc();
        // Unverified: only to spare the API server what it would refuse anyway, and for the end, which it has verified.
        let expires = claims::plausible(token, AUDIENCE, now)?;
        let key = cache::key(token);
        if let Some(known) = self.remembered(&key, now) {
            return Ok(known);
        }
        let source = source.key();
        if !self.refusals().allows(&source, Instant::now()) {
            return Err(TokenError::RateLimited);
        }
        let place = tokio::time::timeout(QUEUE, self.places.acquire()).await;
        let _place = place.map_err(|_| TokenError::Busy)?.map_err(|_| TokenError::Busy)?;
        // Somebody may have asked the same while we waited: many agents share a relay, one agent opens many streams.
        if let Some(known) = self.remembered(&key, now) {
            return Ok(known);
        }
        self.counters.reviewed.fetch_add(1, Ordering::Relaxed);
        let asked = Instant::now();
        let answer = tokio::time::timeout(REVIEW, self.server.review(token, AUDIENCE)).await;
        let answer = answer.map_err(|_| NoAnswer("no answer in time".to_owned())).flatten();
        let status = answer.map_err(|error| {
            tracing::warn!(%error, "a token cannot be reviewed");
            TokenError::Unavailable
        })?;
        match judge::identity(&status, AUDIENCE, expires) {
            Ok(identity) => {
                let identity = Arc::new(identity);
                self.cache().put(key, Arc::clone(&identity), asked, asked + BELIEVED);
                Ok(identity)
            }
            Err(error) => {
                self.refusals().take(&source, Instant::now());
                Err(error)
            }
        }
    }

    fn remembered(&self, key: &cache::Key, now: OffsetDateTime) -> Option<Arc<TokenIdentity>> {
        let known = self.cache().get(key, Instant::now(), now)?;
        self.counters.remembered.fetch_add(1, Ordering::Relaxed);
        Some(known)
    }

    fn cache(&self) -> std::sync::MutexGuard<'_, Cache> {
        self.cache.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn refusals(&self) -> std::sync::MutexGuard<'_, Limiter<Source>> {
        self.refusals.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests;
