//! gRPC clients of the echo service, over one connection that is never opened again.

use std::fmt;
use std::net::SocketAddr;
use std::pin::Pin;
use std::task::{Context, Poll};

use api::countersign::echo::v1::echo_client::EchoClient;
use api::countersign::echo::v1::{SayRequest, SayResponse, StreamRequest};
use http::{Request, Response};
use hyper::body::Incoming;
use hyper::client::conn::http2;
use tonic::metadata::AsciiMetadataKey;
use tonic::{Code, Status, Streaming};

use super::client::{Caller, Got};

/// One HTTP/2 connection as a gRPC channel.
#[derive(Clone)]
pub struct OneConnection(pub(super) http2::SendRequest<tonic::body::Body>);

impl fmt::Debug for OneConnection {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("OneConnection").finish()
    }
}

impl tonic::codegen::Service<Request<tonic::body::Body>> for OneConnection {
    type Response = Response<Incoming>;
    type Error = hyper::Error;
    type Future = Pin<Box<dyn Future<Output = Result<Self::Response, Self::Error>> + Send>>;

    fn poll_ready(&mut self, task: &mut Context<'_>) -> Poll<Result<(), hyper::Error>> {
        self.0.poll_ready(task)
    }

    fn call(&mut self, request: Request<tonic::body::Body>) -> Self::Future {
        Box::pin(self.0.send_request(request))
    }
}

/// The echo service at the other end of one connection.
#[derive(Clone, Debug)]
pub struct Echo(EchoClient<OneConnection>);

impl Echo {
    pub(super) fn new(connection: OneConnection) -> Self {
        let origin = http::Uri::from_static("http://app.example");
        Self(EchoClient::with_origin(connection, origin))
    }

    /// Calls `Say` with metadata.
    ///
    /// # Errors
    /// What the server, or an Envoy before it, answered instead.
    pub async fn say(&mut self, metadata: &[(&'static str, &str)]) -> Result<SayResponse, Got> {
        let request = with(SayRequest { text: "hello".to_owned() }, metadata);
        Ok(self.0.say(request).await.map_err(|status| got(&status))?.into_inner())
    }

    /// Opens a stream of `count` messages.
    ///
    /// # Errors
    /// What the server, or an Envoy before it, answered instead.
    pub async fn stream(
        &mut self,
        count: u32,
        interval_milliseconds: u32,
    ) -> Result<Streaming<SayResponse>, Got> {
        let request = with(StreamRequest { count, interval_milliseconds }, &[]);
        Ok(self.0.stream(request).await.map_err(|status| got(&status))?.into_inner())
    }
}

fn with<T>(message: T, metadata: &[(&'static str, &str)]) -> tonic::Request<T> {
    let mut request = tonic::Request::new(message);
    for (name, value) in metadata {
        let value = value.parse().expect("a test writes ASCII");
        request.metadata_mut().insert(AsciiMetadataKey::from_static(name), value);
    }
    request
}

/// PERMISSION_DENIED is 403 and UNAUTHENTICATED 401, as Envoy translates them.
fn got(status: &Status) -> Got {
    match (status.code(), std::error::Error::source(status)) {
        (_, Some(cause)) => Got::from_error(cause),
        (Code::PermissionDenied, None) => Got::Status(403),
        (Code::Unauthenticated, None) => Got::Status(401),
        (code, None) => Got::Grpc(code as i32),
    }
}

impl Caller {
    /// One `Say` over a connection of its own.
    pub async fn say(&self, to: SocketAddr, metadata: &[(&'static str, &str)]) -> Got {
        match self.grpc(to).await {
            Ok(mut echo) => echo.say(metadata).await.map_or_else(|got| got, |_| Got::Status(200)),
            Err(got) => got,
        }
    }
}
