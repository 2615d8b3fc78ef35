//! Sending a request on to the next application of a chain, over HTTP or as one line over TCP. No retries, no pool.

use std::str::FromStr;
use std::time::Duration;

use ::http::{Method, Request, Uri, header, request::Parts};
use anyhow::{Context, Result, bail, ensure};
use bytes::Bytes;
use http_body_util::{BodyExt, Full};
use hyper_util::rt::TokioIo;
use serde_json::{Value, json};
use tokio::io::{AsyncBufReadExt, AsyncWriteExt, BufReader};
use tokio::net::TcpStream;

use super::App;

/// How long the whole of the rest of the chain may take.
const TIMEOUT: Duration = Duration::from_secs(10);
/// What an application hands on unchanged: the end user's token and what tests mark requests with.
const HANDED_ON: [&str; 3] = ["authorization", "x-request-id", "x-tenant"];

/// `PREFIX=URL`: a GET request below PREFIX is also sent to URL with the rest of its path appended.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Next {
    prefix: String,
    scheme: Scheme,
    authority: String,
    path: String,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Scheme {
    Http,
    Tcp,
}

impl FromStr for Next {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let (prefix, url) = text.split_once('=').ok_or("expected PREFIX=URL")?;
        let url: Uri = url.parse().map_err(|e| format!("{url}: {e}"))?;
        let scheme = match url.scheme_str() {
            Some("http") => Scheme::Http,
            Some("tcp") => Scheme::Tcp,
            _ => return Err(format!("{url}: expected http:// or tcp://")),
        };
        let authority = url.authority().ok_or("a URL needs a host")?.to_string();
        Ok(Self { prefix: prefix.to_owned(), scheme, authority, path: url.path().to_owned() })
    }
}

impl Next {
    pub(super) fn applies(&self, request: &Parts) -> bool {
        request.method == Method::GET && request.uri.path().starts_with(&self.prefix)
    }

    fn rest<'a>(&self, path: &'a str) -> &'a str {
        path.strip_prefix(self.prefix.as_str()).unwrap_or(path)
    }
}

/// Sends what `parts` and `body` ask for to `next`; what it answered, as JSON.
///
/// # Errors
/// No connection, no answer in time, or an answer other than 200.
pub(super) async fn send(next: &Next, app: &App, parts: &Parts, body: Bytes) -> Result<Value> {
    let answer = async {
        match next.scheme {
            Scheme::Http => http(next, app, parts, body).await,
            Scheme::Tcp => line(next, next.rest(parts.uri.path())).await,
        }
    };
    tokio::time::timeout(TIMEOUT, answer).await.context("no answer in time")?
}

async fn http(next: &Next, app: &App, parts: &Parts, body: Bytes) -> Result<Value> {
    let path = format!("{}{}", next.path, next.rest(parts.uri.path()));
    let mut request = Request::builder().method(&parts.method).header(header::HOST, &next.authority);
    // A forward proxy is asked for the whole URL (RFC 9112 §3.2.2).
    request = match app.proxy {
        Some(_) => request.uri(format!("http://{}{path}", next.authority)),
        None => request.uri(path),
    };
    for name in HANDED_ON {
        if let Some(value) = parts.headers.get(name) {
            request = request.header(name, value);
        }
    }
    let stream = match app.proxy {
        Some(proxy) => TcpStream::connect(proxy).await,
        None => TcpStream::connect(&next.authority).await,
    };
    let stream = stream.with_context(|| format!("connecting towards {}", next.authority))?;
    let (mut sender, connection) = hyper::client::conn::http1::handshake(TokioIo::new(stream)).await?;
    let request = request.body(Full::new(body))?;
    let exchange = async move {
        let response = sender.send_request(request).await?;
        let status = response.status();
        let body = response.into_body().collect().await?.to_bytes();
        anyhow::Ok((status, body))
    };
    let (exchanged, _) = tokio::join!(exchange, connection);
    let (status, body) = exchanged?;
    let text = String::from_utf8_lossy(&body);
    if !status.is_success() {
        bail!("{} answered {status}: {}", next.authority, text.trim());
    }
    Ok(serde_json::from_slice(&body).unwrap_or_else(|_| json!(text)))
}

async fn line(next: &Next, rest: &str) -> Result<Value> {
    let mut stream = TcpStream::connect(&next.authority).await?;
    stream.write_all(format!("get {rest}\n").as_bytes()).await?;
    let mut answer = String::new();
    BufReader::new(stream).read_line(&mut answer).await?;
    ensure!(answer.ends_with('\n'), "the connection to {} was closed without an answer", next.authority);
    Ok(json!(answer.trim_end()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_sent_on_and_where_to() {
        let next: Next = "/shop/=http://orders:8080/orders/".parse().unwrap();
        let parts = |method: &str, path: &str| {
            Request::builder().method(method).uri(path).body(()).unwrap().into_parts().0
        };
        assert!(next.applies(&parts("GET", "/shop/42")));
        assert!(!next.applies(&parts("GET", "/other")) && !next.applies(&parts("POST", "/shop/42")));
        assert_eq!(
            (next.authority.as_str(), next.path.as_str(), next.rest("/shop/42")),
            ("orders:8080", "/orders/", "42")
        );
        assert_eq!("/stock/=tcp://127.0.0.1:5432".parse::<Next>().unwrap().scheme, Scheme::Tcp);
        assert!("/x=ftp://a".parse::<Next>().is_err());
        assert!("/x".parse::<Next>().is_err());
    }
}
