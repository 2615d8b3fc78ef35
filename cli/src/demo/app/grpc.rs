//! `countersign.echo.v1.Echo` on the HTTP listeners, chosen by content type.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use ::http::{HeaderMap, Request, Response as HttpResponse, header};
use api::countersign::echo::v1::echo_server::{Echo, EchoServer};
use api::countersign::echo::v1::{SayRequest, SayResponse, StreamRequest};
use hyper::body::Incoming;
use tokio_stream::{Stream, StreamExt};
use tonic::body::Body;
use tonic::codegen::Service;
use tonic::metadata::MetadataMap;
use tonic::{Request as Call, Response, Status};

use super::{App, http};

pub(super) fn is(request: &Request<Incoming>) -> bool {
    let kind = request.headers().get(header::CONTENT_TYPE).and_then(|kind| kind.to_str().ok());
    kind.is_some_and(|kind| kind.starts_with("application/grpc"))
}

pub(super) async fn answer(app: &Arc<App>, request: Request<Incoming>) -> HttpResponse<Body> {
    let mut server = EchoServer::new(Answers(app.clone()));
    match server.call(request).await {
        Ok(response) => response,
        Err(never) => match never {},
    }
}

struct Answers(Arc<App>);

/// What the server saw: the call's metadata and, as `peer`, the direct caller's verified identity.
fn seen(metadata: &MetadataMap) -> BTreeMap<String, String> {
    let map: HeaderMap = metadata.clone().into_headers();
    let mut seen = http::headers(&map);
    seen.extend(http::peer(&map).map(|peer| ("peer".to_owned(), peer)));
    seen
}

#[tonic::async_trait]
impl Echo for Answers {
    async fn say(&self, call: Call<SayRequest>) -> Result<Response<SayResponse>, Status> {
        let metadata = seen(call.metadata());
        let SayRequest { text } = call.into_inner();
        Ok(Response::new(SayResponse { text, app: self.0.name.clone(), metadata }))
    }

    type StreamStream = std::pin::Pin<Box<dyn Stream<Item = Result<SayResponse, Status>> + Send>>;

    async fn stream(&self, call: Call<StreamRequest>) -> Result<Response<Self::StreamStream>, Status> {
        let metadata = seen(call.metadata());
        let StreamRequest { count, interval_milliseconds } = call.into_inner();
        let app = self.0.name.clone();
        let ticks = tokio::time::interval(Duration::from_millis(u64::from(interval_milliseconds.max(1))));
        let mut n = 0;
        let messages =
            tokio_stream::wrappers::IntervalStream::new(ticks).take(count as usize).map(move |_| {
                n += 1;
                Ok(SayResponse { text: (n - 1).to_string(), app: app.clone(), metadata: metadata.clone() })
            });
        Ok(Response::new(Box::pin(messages)))
    }
}
