//! The tower layer that turns a bearer token into an identity in the request's extensions.

use std::{
    net::Ipv6Addr,
    pin::Pin,
    sync::Arc,
    task::{Context, Poll},
};

use http::{HeaderMap, Request, Response, header::AUTHORIZATION};
use tonic::Status;
use tower::{Layer, Service};

use super::{Source, TokenIdentity, TokenReviewer};
use crate::ConnectionInfo;

/// The bearer token in a request's headers; `None` if there is none.
///
/// # Errors
/// [`tonic::Code::Unauthenticated`] if there is more than one, or something else where it should be.
pub fn bearer(headers: &HeaderMap) -> Result<Option<&str>, Status> {
    let mut values = headers.get_all(AUTHORIZATION).iter();
    let Some(value) = values.next() else { return Ok(None) };
    let bad = || Status::unauthenticated("the authorization header is not one Bearer token");
    if values.next().is_some() {
        return Err(bad());
    }
    let (scheme, token) = value.to_str().ok().and_then(|value| value.split_once(' ')).ok_or_else(bad)?;
    if scheme.eq_ignore_ascii_case("bearer") { Ok(Some(token.trim())) } else { Err(bad()) }
}

/// Reviews the bearer tokens of callers without client certificate, and puts `Arc<TokenIdentity>` into the extensions of
/// their requests. Without a token, or with a certificate, nothing is changed: the services decide what that is worth.
#[derive(Clone, Debug)]
pub struct TokenLayer(Arc<TokenReviewer>);

impl TokenLayer {
    /// By the word of `reviewer`.
    pub fn new(reviewer: Arc<TokenReviewer>) -> Self {
        Self(reviewer)
    }
}

impl<S> Layer<S> for TokenLayer {
    type Service = TokenService<S>;

    fn layer(&self, inner: S) -> TokenService<S> {
        TokenService { inner, reviewer: Arc::clone(&self.0) }
    }
}

/// A service behind a [`TokenLayer`].
#[derive(Clone, Debug)]
pub struct TokenService<S> {
    inner: S,
    reviewer: Arc<TokenReviewer>,
}

impl<S, B, O> Service<Request<B>> for TokenService<S>
where
    S: Service<Request<B>, Response = Response<O>> + Clone + Send + 'static,
    S::Future: Send,
    B: Send + 'static,
    O: Default,
{
    type Response = S::Response;
    type Error = S::Error;
    type Future = Pin<Box<dyn Future<Output = Result<S::Response, S::Error>> + Send>>;

    fn poll_ready(&mut self, context: &mut Context<'_>) -> Poll<Result<(), S::Error>> {
        self.inner.poll_ready(context)
    }

    fn call(&mut self, mut request: Request<B>) -> Self::Future {
        let waiting = self.inner.clone();
        // The one that is ready goes with the request (tower's rule for clones).
        let mut inner = std::mem::replace(&mut self.inner, waiting);
        let reviewer = Arc::clone(&self.reviewer);
        Box::pin(async move {
            // Nobody but us may have put one there.
            request.extensions_mut().remove::<Arc<TokenIdentity>>();
            match identify(&reviewer, request.headers(), request.extensions()).await {
                Ok(None) => {}
                Ok(Some(identity)) => {
                    request.extensions_mut().insert(identity);
                }
                Err(status) => {
                    tracing::info!(target: "audit", code = ?status.code(), reason = status.message(), "token refused");
                    return Ok(status.into_http());
                }
            }
            inner.call(request).await
        })
    }
}

async fn identify(
    reviewer: &TokenReviewer,
    headers: &HeaderMap,
    extensions: &http::Extensions,
) -> Result<Option<Arc<TokenIdentity>>, Status> {
    let connection = extensions.get::<ConnectionInfo>();
    if connection.is_some_and(|connection| connection.identity.is_some()) {
        return Ok(None);
    }
    let Some(token) = bearer(headers)? else { return Ok(None) };
    let address = connection.map_or(Ipv6Addr::UNSPECIFIED.into(), |connection| connection.peer.ip());
    let identity =
        reviewer.judge(token, Source::Peer(address)).await.map_err(|error| Status::from(&error))?;
    if connection.is_some_and(|connection| !connection.identify(&identity)) {
        return Err(Status::resource_exhausted("too many connections of this caller"));
    }
    Ok(Some(identity))
}
