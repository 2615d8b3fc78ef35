//! `envoy.service.discovery.v3.AggregatedDiscoveryService` with our own response messages.

use std::convert::Infallible;
use std::sync::Arc;
use std::task::{Context, Poll};

use envoy_types::pb::envoy::service::discovery::v3::{DeltaDiscoveryRequest, DiscoveryRequest};
use tonic::Status;
use tonic::body::Body;
use tonic::codegen::{BoxFuture, Service, StdError, http};
use tonic::server::NamedService;

use super::admission::Admission;
use super::body;
use super::stream::{self, Message};
use super::{Limits, Peer, Snapshots};

type Identify = Arc<dyn Fn(&http::Extensions) -> Peer + Send + Sync>;

/// The ADS service over some [`Snapshots`]. Cheap to clone; clones share the limits.
pub struct Ads<S> {
    pub(super) snapshots: Arc<S>,
    pub(super) admission: Admission,
    pub(super) limits: Limits,
    /// Reads what the transport knows of the peer from a request's extensions.
    identify: Identify,
    /// `control_plane.identifier` of every response.
    pub(super) identifier: Arc<str>,
}

impl<S> Clone for Ads<S> {
    fn clone(&self) -> Self {
        let Self { snapshots, admission, limits, identify, identifier } = self;
        Self {
            snapshots: snapshots.clone(),
            admission: admission.clone(),
            limits: *limits,
            identify: identify.clone(),
            identifier: identifier.clone(),
        }
    }
}

impl<S> std::fmt::Debug for Ads<S> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Ads").field("limits", &self.limits).finish_non_exhaustive()
    }
}

impl<S: Snapshots> Ads<S> {
    /// `identify` reads from a request's extensions who the transport says is calling.
    pub fn new(
        snapshots: Arc<S>,
        limits: Limits,
        identifier: &str,
        identify: impl Fn(&http::Extensions) -> Peer + Send + Sync + 'static,
    ) -> Self {
        let admission = Admission::new(limits);
        Self { snapshots, admission, limits, identify: Arc::new(identify), identifier: identifier.into() }
    }

    /// The same service and limits for a port whose peers are identified in another way.
    #[must_use]
    pub fn identified_by(
        &self,
        identify: impl Fn(&http::Extensions) -> Peer + Send + Sync + 'static,
    ) -> Self {
        Self { identify: Arc::new(identify), ..self.clone() }
    }
}

impl<S: Snapshots> Ads<S> {
    /// One of the two methods, by its request message.
    fn stream<M: Message, B>(self, request: http::Request<B>) -> http::Response<Body>
    where
        B: tonic::codegen::Body + Send + 'static,
        B::Error: Into<StdError> + Send + 'static,
    {
        let peer = (self.identify)(request.extensions());
        let requests = match body::requests::<M, B>(request, self.limits.message_bytes) {
            Ok(requests) => requests,
            Err(status) => return status.into_http(),
        };
        let mut response = http::Response::new(Body::new(stream::open(self, peer, requests)));
        let grpc = http::HeaderValue::from_static("application/grpc");
        response.headers_mut().insert(http::header::CONTENT_TYPE, grpc);
        response
    }
}

impl<S> NamedService for Ads<S> {
    const NAME: &'static str = "envoy.service.discovery.v3.AggregatedDiscoveryService";
}

impl<S, B> Service<http::Request<B>> for Ads<S>
where
    S: Snapshots,
    B: tonic::codegen::Body + Send + 'static,
    B::Error: Into<StdError> + Send + 'static,
{
    type Response = http::Response<Body>;
    type Error = Infallible;
    type Future = BoxFuture<Self::Response, Self::Error>;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), Self::Error>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, request: http::Request<B>) -> Self::Future {
        let ads = self.clone();
        // Only a stream's task does anything that takes time.
        Box::pin(async move {
            Ok(match request.uri().path() {
                "/envoy.service.discovery.v3.AggregatedDiscoveryService/StreamAggregatedResources" => {
                    ads.stream::<DiscoveryRequest, B>(request)
                }
                "/envoy.service.discovery.v3.AggregatedDiscoveryService/DeltaAggregatedResources" => {
                    ads.stream::<DeltaDiscoveryRequest, B>(request)
                }
                _ => Status::unimplemented("no such method").into_http(),
            })
        })
    }
}
