//! Holds a gRPC port to the route table: what is not in it is not there, and where it asks for an identity nobody comes in
//! without one. A layer around all services of the port; behind the one that reviews tokens.

use std::sync::Arc;
use std::task::{Context, Poll};

use futures::future::{Either, Ready, ready};
use http::{Request, Response};
use spiffe::SpiffeId;
use tonic::Status;
use tower::{Layer, Service};
use xds::ads::server::Peer;

use super::{Access, Port, Route, find};

/// The layer of one port.
#[derive(Clone)]
pub(crate) struct Gate {
    port: Port,
    caller: Arc<dyn Fn(&http::Extensions) -> Peer + Send + Sync>,
    /// The controller's own identity at the moment; nobody is it where that is `None`.
    own: Arc<dyn Fn() -> Option<SpiffeId> + Send + Sync>,
}

impl std::fmt::Debug for Gate {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Gate").field("port", &self.port).finish_non_exhaustive()
    }
}

impl Gate {
    /// `caller` reads from a request's extensions who calls; `own` is whom [`Access::ControlPlane`] means.
    pub(crate) fn new(
        port: Port,
        caller: impl Fn(&http::Extensions) -> Peer + Send + Sync + 'static,
        own: impl Fn() -> Option<SpiffeId> + Send + Sync + 'static,
    ) -> Self {
        Self { port, caller: Arc::new(caller), own: Arc::new(own) }
    }

    fn judge(&self, path: &str, extensions: &http::Extensions) -> Result<(), Status> {
        let Some(Route { access, .. }) = find(self.port, path) else {
            return Err(Status::unimplemented("no such method"));
        };
        match access {
            Access::Anybody | Access::OwnProof => Ok(()),
            Access::Identity => {
                let known = (self.caller)(extensions).identity.is_some();
                known
                    .then_some(())
                    .ok_or_else(|| Status::unauthenticated("a certificate or a token is needed"))
            }
            Access::ControlPlane => {
                let Peer { identity, token, .. } = (self.caller)(extensions);
                let identity =
                    identity.ok_or_else(|| Status::unauthenticated("a client certificate is needed"))?;
                let own = !token && (self.own)().is_some_and(|own| own == identity);
                own.then_some(()).ok_or_else(|| Status::permission_denied("for the control plane's replicas"))
            }
            // No such row is on a gRPC port.
            Access::Loopback | Access::ApiServer => Err(Status::permission_denied("not here")),
        }
    }
}

impl<S> Layer<S> for Gate {
    type Service = Gated<S>;

    fn layer(&self, inner: S) -> Gated<S> {
        Gated { inner, gate: self.clone() }
    }
}

/// The services behind the gate.
#[derive(Clone, Debug)]
pub(crate) struct Gated<S> {
    inner: S,
    gate: Gate,
}

impl<S, B, O> Service<Request<B>> for Gated<S>
where
    S: Service<Request<B>, Response = Response<O>>,
    O: Default,
{
    type Response = S::Response;
    type Error = S::Error;
    type Future = Either<S::Future, Ready<Result<S::Response, S::Error>>>;

    fn poll_ready(&mut self, context: &mut Context<'_>) -> Poll<Result<(), S::Error>> {
        self.inner.poll_ready(context)
    }

    fn call(&mut self, request: Request<B>) -> Self::Future {
        match self.gate.judge(request.uri().path(), request.extensions()) {
            Ok(()) => Either::Left(self.inner.call(request)),
            Err(status) => {
                tracing::info!(
                    path = ?request.uri().path().chars().take(128).collect::<String>(),
                    code = ?status.code(), "call refused"
                );
                Either::Right(ready(Ok(status.into_http())))
            }
        }
    }
}
