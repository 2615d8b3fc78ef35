//! Requests to the API server and their answers, bounded in time and size. It does not decide what an answer means, and
//! tries nothing twice.

use std::sync::Arc;
use std::time::Duration;

use bytes::{Buf, BytesMut};
use http::{Request, Response, StatusCode};
use http_body_util::{BodyExt, Limited};
use kube::Client;
use kube::client::Body;
use serde::Deserialize;
use tokio::time::{Instant, timeout, timeout_at};

use super::slim::{self, Event, Failure, Page, Shape};

/// How long the beginning of an answer may take.
const ANSWER: Duration = Duration::from_secs(6);
/// How long a whole page, or one object, may take.
const WHOLE: Duration = Duration::from_secs(30);
/// How long a streamed list may pause.
const PAUSE: Duration = Duration::from_secs(10);
/// Objects asked for at once where lists are not streamed.
const PAGE: usize = 250;
/// A longer line is no object: etcd takes no more than 1.5 MB, which JSON may lengthen.
const MAX_LINE: usize = 16 << 20;
/// A longer answer is no page.
const MAX_PAGE: usize = 256 << 20;
/// Of an error's message, as much is kept.
const MAX_MESSAGE: usize = 300;

/// Why a request did not lead to its answer.
#[derive(Debug, thiserror::Error)]
pub(super) enum Error {
    /// The API server says no, in its words.
    #[error("{code} {reason}: {message}")]
    Refused { code: u16, reason: String, message: String },
    #[error("{0}")]
    Unreachable(String),
    #[error("no answer within {} s", .0.as_secs())]
    Timeout(Duration),
    #[error("the watch says nothing any more")]
    Silent,
    #[error("the answer cannot be read: {0}")]
    Unreadable(String),
}

impl Error {
    /// There is no watch from that position: everything must be listed again. It is too old, or, where the server was
    /// restored from a backup, one it has not reached.
    pub(super) fn expired(&self) -> bool {
        matches!(self, Self::Refused { code: 410, .. })
            || matches!(self, Self::Refused { reason, message, .. }
                if reason == "Expired" || message.starts_with("Too large resource version"))
    }

    /// The request itself is not understood, as by servers that stream no lists.
    pub(super) fn invalid(&self) -> bool {
        matches!(self, Self::Refused { code: 400 | 405 | 406 | 415 | 422, .. })
    }

    fn status(code: u16, failure: Failure) -> Self {
        let Failure { code: _, reason, message } = failure;
        let message = message.chars().filter(|c| !c.is_control()).take(MAX_MESSAGE).collect();
        Self::Refused { code, reason, message }
    }
}

impl From<Failure> for Error {
    fn from(failure: Failure) -> Self {
        Self::status(failure.code, failure)
    }
}

impl From<serde_json::Error> for Error {
    fn from(error: serde_json::Error) -> Self {
        Self::Unreadable(error.to_string())
    }
}

/// One resource of the API, and what of its objects is wanted.
#[derive(Clone, Debug)]
pub(super) struct Resource {
    /// Empty for the core group.
    pub(super) group: Arc<str>,
    pub(super) version: Arc<str>,
    pub(super) plural: Arc<str>,
    pub(super) kind: Arc<str>,
    /// Only this one object.
    pub(super) only: Option<(Arc<str>, Arc<str>)>,
    /// `None`: only metadata is asked for.
    pub(super) shape: Option<&'static Shape>,
}

impl Resource {
    fn path(&self) -> String {
        let Self { group, version, plural, kind: _, only, shape: _ } = self;
        let root = if group.is_empty() { "/api".to_owned() } else { format!("/apis/{group}") };
        match only {
            Some((namespace, _)) => format!("{root}/{version}/namespaces/{namespace}/{plural}"),
            None => format!("{root}/{version}/{plural}"),
        }
    }

    fn query(&self, mut parameters: Vec<(&str, String)>) -> String {
        if let Some((_, name)) = &self.only {
            parameters.push(("fieldSelector", format!("metadata.name={name}")));
        }
        let pairs = parameters.iter().map(|(key, value)| format!("{key}={}", escape(value)));
        format!("{}?{}", self.path(), pairs.collect::<Vec<_>>().join("&"))
    }

    fn accept(&self, list: bool) -> &'static str {
        match (self.shape, list) {
            (Some(_), _) => "application/json",
            (None, true) => "application/json;as=PartialObjectMetadataList;g=meta.k8s.io;v=v1",
            (None, false) => "application/json;as=PartialObjectMetadata;g=meta.k8s.io;v=v1",
        }
    }

    fn kept(&self) -> &'static Shape {
        self.shape.unwrap_or(&slim::METADATA)
    }

    fn api_version(&self) -> String {
        if self.group.is_empty() {
            self.version.to_string()
        } else {
            format!("{}/{}", self.group, self.version)
        }
    }
}

/// Percent-encodes what is not unreserved (RFC 3986).
fn escape(text: &str) -> String {
    let mut escaped = String::with_capacity(text.len());
    for byte in text.bytes() {
        match byte {
            b'A'..=b'Z' | b'a'..=b'z' | b'0'..=b'9' | b'-' | b'.' | b'_' | b'~' => escaped.push(byte.into()),
            _ => escaped.push_str(&format!("%{byte:02X}")),
        }
    }
    escaped
}

/// Where a watch begins.
#[derive(Clone, Copy, Debug)]
pub(super) enum Start<'a> {
    /// With every object there is, then a bookmark that says so.
    Everything,
    /// After this resource version.
    After(&'a str),
}

/// Opens a watch, which the server ends after `period`.
///
/// # Errors
/// See [`Error`].
pub(super) async fn watch(
    client: &Client,
    resource: &Resource,
    from: Start<'_>,
    period: Duration,
) -> Result<Lines, Error> {
    let mut query = vec![
        ("watch", "true".to_owned()),
        ("allowWatchBookmarks", "true".to_owned()),
        ("timeoutSeconds", period.as_secs().max(1).to_string()),
    ];
    match from {
        Start::Everything => query.extend([
            ("sendInitialEvents", "true".to_owned()),
            ("resourceVersionMatch", "NotOlderThan".to_owned()),
        ]),
        Start::After(version) => query.push(("resourceVersion", version.to_owned())),
    }
    let response = send(client, resource.query(query), resource.accept(false)).await?;
    Ok(Lines { body: response.into_body(), splitter: Splitter::new(resource.kept()) })
}

/// Fetches one page of a consistent list; `next` is the previous page's.
///
/// # Errors
/// See [`Error`].
pub(super) async fn page(client: &Client, resource: &Resource, next: &str) -> Result<Page, Error> {
    let mut query = vec![("limit", PAGE.to_string())];
    if !next.is_empty() {
        query.push(("continue", next.to_owned()));
    }
    let body = whole(client, resource.query(query), resource.accept(true)).await?;
    Ok(slim::page(&body, resource.kept(), &resource.api_version(), &resource.kind)?)
}

const DEFINITIONS: &str = "/apis/apiextensions.k8s.io/v1/customresourcedefinitions";

/// What a CustomResourceDefinition says of itself.
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize)]
pub(super) struct Definition {
    metadata: DefinitionMeta,
    #[serde(default)]
    spec: DefinitionSpec,
    #[serde(default)]
    status: DefinitionStatus,
}

#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "camelCase")]
struct DefinitionMeta {
    uid: Arc<str>,
    deletion_timestamp: Option<String>,
}

#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(default)]
struct DefinitionSpec {
    versions: Vec<DefinitionVersion>,
}

#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(default)]
struct DefinitionVersion {
    name: Arc<str>,
    served: bool,
}

#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(default)]
struct DefinitionStatus {
    conditions: Vec<Condition>,
}

#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(default)]
struct Condition {
    r#type: String,
    status: String,
}

impl Definition {
    pub(super) fn uid(&self) -> &Arc<str> {
        &self.metadata.uid
    }

    pub(super) fn terminating(&self) -> bool {
        self.metadata.deletion_timestamp.is_some()
    }

    pub(super) fn established(&self) -> bool {
        self.status.conditions.iter().any(|c| c.r#type == "Established" && c.status == "True")
    }

    /// The served versions, in the definition's order.
    pub(super) fn served(&self) -> impl Iterator<Item = &Arc<str>> {
        self.spec.versions.iter().filter(|version| version.served).map(|version| &version.name)
    }
}

/// The definition of that name, as it is now; `None` if the API server says that there is none.
///
/// # Errors
/// See [`Error`]. A 404 that does not speak of this definition is one: a server that is starting knows no definitions yet.
pub(super) async fn definition(client: &Client, name: &str) -> Result<Option<Definition>, Error> {
    define(client, name, "application/json").await
}

/// The same with metadata only, which tells whether it is the same one as before, and stays.
///
/// # Errors
/// As [`definition`].
pub(super) async fn definition_metadata(client: &Client, name: &str) -> Result<Option<Definition>, Error> {
    define(client, name, "application/json;as=PartialObjectMetadata;g=meta.k8s.io;v=v1").await
}

async fn define(client: &Client, name: &str, accept: &str) -> Result<Option<Definition>, Error> {
    match whole(client, format!("{DEFINITIONS}/{name}"), accept).await {
        Ok(body) => Ok(Some(serde_json::from_slice(&body)?)),
        Err(Error::Refused { code: 404, message, .. }) if message.contains(&format!("\"{name}\"")) => {
            Ok(None)
        }
        Err(error) => Err(error),
    }
}

/// An open watch.
pub(super) struct Lines {
    body: Body,
    splitter: Splitter,
}

impl Lines {
    /// The next events, as many as have come, at least one; `None` at the orderly end. To be waited for until `until`.
    ///
    /// # Errors
    /// See [`Error`]. `Timeout` if nothing has come by then.
    pub(super) async fn next(&mut self, until: Instant) -> Result<Option<Vec<Event>>, Error> {
        loop {
            let frame = match timeout_at(until, self.body.frame()).await {
                Ok(Some(frame)) => frame.map_err(|error| unreachable(&error))?,
                Ok(None) => return Ok(None),
                Err(_) => return Err(Error::Silent),
            };
            let Ok(data) = frame.into_data() else { continue };
            let events = self.splitter.push(&data)?;
            if !events.is_empty() {
                return Ok(Some(events));
            }
        }
    }

    /// The deadline of the next part of a streamed list.
    pub(super) fn pause() -> Instant {
        Instant::now() + PAUSE
    }
}

/// Puts lines together that come in pieces.
#[derive(Debug)]
struct Splitter {
    buffer: BytesMut,
    /// So many bytes of the buffer hold no end of a line.
    seen: usize,
    shape: &'static Shape,
}

impl Splitter {
    fn new(shape: &'static Shape) -> Self {
        Self { buffer: BytesMut::new(), seen: 0, shape }
    }

    /// The events of all lines that are complete now.
    fn push(&mut self, data: &[u8]) -> Result<Vec<Event>, Error> {
        self.buffer.extend_from_slice(data);
        let mut events = Vec::new();
        while let Some(end) = self.buffer[self.seen..].iter().position(|byte| *byte == b'\n') {
            let line = self.buffer.split_to(self.seen + end);
            self.buffer.advance(1);
            self.seen = 0;
            if !line.is_empty() {
                events.push(slim::event(&line, self.shape)?);
            }
        }
        self.seen = self.buffer.len();
        if self.seen > MAX_LINE {
            return Err(Error::Unreadable("a line without an end".to_owned()));
        }
        Ok(events)
    }
}

async fn whole(client: &Client, uri: String, accept: &str) -> Result<bytes::Bytes, Error> {
    let read = async {
        let body = send(client, uri, accept).await?.into_body();
        let body = Limited::new(body, MAX_PAGE).collect().await;
        body.map(http_body_util::Collected::to_bytes).map_err(|error| unreachable(&*error))
    };
    timeout(WHOLE, read).await.unwrap_or(Err(Error::Timeout(WHOLE)))
}

async fn send(client: &Client, uri: String, accept: &str) -> Result<Response<Body>, Error> {
    let request = Request::get(uri).header(http::header::ACCEPT, accept).body(Body::empty());
    let request = request.map_err(|error| Error::Unreadable(error.to_string()))?;
    let response = match timeout(ANSWER, client.send(request)).await {
        Ok(Ok(response)) => response,
        Ok(Err(error)) => return Err(unreachable(&error)),
        Err(_) => return Err(Error::Timeout(ANSWER)),
    };
    if response.status() == StatusCode::OK { Ok(response) } else { Err(refusal(response).await) }
}

/// What an answer other than 200 says.
async fn refusal(response: Response<Body>) -> Error {
    const ENOUGH: usize = 64 << 10;
    let status = response.status();
    let body = timeout(ANSWER, Limited::new(response.into_body(), ENOUGH).collect()).await;
    let body = body.ok().and_then(Result::ok).map(http_body_util::Collected::to_bytes).unwrap_or_default();
    let failure = serde_json::from_slice(&body).unwrap_or_else(|_| Failure {
        code: status.as_u16(),
        reason: status.canonical_reason().unwrap_or_default().to_owned(),
        message: String::from_utf8_lossy(&body).trim().to_owned(),
    });
    Error::status(status.as_u16(), failure)
}

/// The error and its causes in one line.
fn unreachable(error: &dyn std::error::Error) -> Error {
    let mut text = error.to_string();
    let mut cause = error.source();
    while let Some(error) = cause {
        let more = error.to_string();
        // Many errors repeat their cause.
        if !text.contains(&more) {
            text.push_str(": ");
            text.push_str(&more);
        }
        cause = error.source();
    }
    Error::Unreachable(text.chars().take(MAX_MESSAGE).collect())
}

#[cfg(test)]
mod tests;
