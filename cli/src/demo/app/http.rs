//! HTTP/1.1 and HTTP/2: every path answers JSON about the request; `/stream` goes on for as long as it is asked to.

use std::collections::BTreeMap;
use std::convert::Infallible;
use std::sync::Arc;
use std::time::Duration;

use ::http::{HeaderMap, Method, Request, Response, StatusCode, header};
use bytes::Bytes;
use http_body_util::{BodyExt, Full, Limited, StreamBody};
use hyper::body::{Frame, Incoming};
use hyper_util::rt::{TokioExecutor, TokioIo, TokioTimer};
use serde_json::{Value, json};
use tokio_stream::StreamExt;
use tonic::body::Body;

use super::{App, Stream, grpc, next};

/// Bytes of a request's body that are read and counted; a longer one is answered 413.
const MAX_BODY: usize = 1 << 20;
/// How long a client may take over its request's headers.
const HEADER_TIMEOUT: Duration = Duration::from_secs(30);

/// Whether a connection that begins so speaks HTTP: a method's first letters, or HTTP/2's preface.
pub(super) fn begins(first: [u8; 4]) -> bool {
    [b"GET ", b"HEAD", b"POST", b"PUT ", b"DELE", b"PATC", b"OPTI", b"TRAC", b"CONN", b"PRI "]
        .contains(&&first)
}

/// One connection to its end.
pub(super) async fn serve(stream: Stream, app: Arc<App>) {
    let mut server = hyper_util::server::conn::auto::Builder::new(TokioExecutor::new());
    server.http1().timer(TokioTimer::new()).header_read_timeout(HEADER_TIMEOUT);
    let service = hyper::service::service_fn(move |request| {
        let app = app.clone();
        async move { Ok::<_, Infallible>(answer(app, request).await) }
    });
    // An error here is the peer leaving or speaking nonsense.
    drop(server.serve_connection(TokioIo::new(stream), service).await);
}

async fn answer(app: Arc<App>, request: Request<Incoming>) -> Response<Body> {
    if grpc::is(&request) {
        return grpc::answer(&app, request).await;
    }
    if request.uri().path() == "/stream" {
        return stream(&app.name, request.uri().query().unwrap_or_default());
    }
    let (parts, body) = request.into_parts();
    let Ok(body) = Limited::new(body, MAX_BODY).collect().await.map(|body| body.to_bytes()) else {
        return reply(StatusCode::PAYLOAD_TOO_LARGE, &json!({ "app": app.name, "error": "body too large" }));
    };
    let mut seen = json!({
        "app": app.name,
        "method": parts.method.as_str(),
        "path": parts.uri.path_and_query().map_or("", |p| p.as_str()),
        "protocol": format!("{:?}", parts.version),
        "host": parts.uri.authority().map(|a| a.as_str())
            .or_else(|| parts.headers.get(header::HOST).and_then(|h| h.to_str().ok())),
        "peer": peer(&parts.headers),
        "headers": headers(&parts.headers),
        "body_bytes": body.len(),
    });
    let mut status = StatusCode::OK;
    if let Some(next) = app.next.iter().find(|next| next.applies(&parts)) {
        match next::send(next, &app, &parts, body).await {
            Ok(value) => seen["next"] = value,
            Err(why) => {
                status = StatusCode::BAD_GATEWAY;
                seen["next"] = json!({ "error": format!("{why:#}") });
            }
        }
    }
    if parts.method == Method::HEAD {
        return reply(status, &Value::Null);
    }
    reply(status, &seen)
}

fn reply(status: StatusCode, value: &Value) -> Response<Body> {
    let body = if value.is_null() { Bytes::new() } else { Bytes::from(format!("{value}\n")) };
    let mut response = Response::new(Body::new(Full::new(body)));
    *response.status_mut() = status;
    response.headers_mut().insert(header::CONTENT_TYPE, header::HeaderValue::from_static("application/json"));
    response
}

/// `/stream?count=N&interval=MILLISECONDS`: a numbered line every interval (defaults: 10 lines, 100 ms; 0 lines: no end).
fn stream(name: &str, query: &str) -> Response<Body> {
    let number = |key: &str, default: u64| {
        let value = query.split('&').filter_map(|pair| pair.split_once('=')).find(|(k, _)| *k == key);
        value.and_then(|(_, v)| v.trim_end_matches("ms").parse().ok()).unwrap_or(default)
    };
    let count = match number("count", 10) {
        0 => usize::MAX,
        count => usize::try_from(count).unwrap_or(usize::MAX),
    };
    let ticks = tokio::time::interval(Duration::from_millis(number("interval", 100).max(1)));
    let name = name.to_owned();
    let mut n = 0_u64;
    let lines = tokio_stream::wrappers::IntervalStream::new(ticks).take(count).map(move |_| {
        n += 1;
        Ok::<_, Infallible>(Frame::data(Bytes::from(format!("{name} {}\n", n - 1))))
    });
    let mut response = Response::new(Body::new(StreamBody::new(lines)));
    response.headers_mut().insert(header::CONTENT_TYPE, header::HeaderValue::from_static("text/plain"));
    response
}

/// Every header by lower-case name; repeated ones joined by `, `.
pub(super) fn headers(map: &HeaderMap) -> BTreeMap<String, String> {
    let mut all: BTreeMap<String, String> = BTreeMap::new();
    for (name, value) in map {
        let value = String::from_utf8_lossy(value.as_bytes()).into_owned();
        all.entry(name.as_str().to_owned()).and_modify(|v| *v = format!("{v}, {value}")).or_insert(value);
    }
    all
}

/// The verified identity of the direct caller: the URI of the last element that our own Envoy appended to
/// `x-forwarded-client-cert`.
pub(super) fn peer(map: &HeaderMap) -> Option<String> {
    let last = map.get_all("x-forwarded-client-cert").iter().next_back()?.to_str().ok()?;
    let element = last.rsplit(',').next()?;
    element
        .split(';')
        .find_map(|pair| pair.trim().strip_prefix("URI="))
        .map(|uri| uri.trim_matches('"').to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_peer_is_the_last_element_of_the_header() {
        for (value, expected) in [
            ("By=spiffe://td/me;Hash=ab;URI=spiffe://td/ns/a/sa/b", Some("spiffe://td/ns/a/sa/b")),
            ("URI=spiffe://td/forged,By=x;URI=spiffe://td/real", Some("spiffe://td/real")),
            ("By=x;Hash=y", None),
        ] {
            let mut map = HeaderMap::new();
            map.insert("x-forwarded-client-cert", value.parse().unwrap());
            assert_eq!(peer(&map).as_deref(), expected, "{value}");
        }
        assert_eq!(peer(&HeaderMap::new()), None);
    }
}
