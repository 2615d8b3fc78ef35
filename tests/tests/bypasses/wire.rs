//! Requests as bytes, and an application that says what came of them. No library here corrects what a test writes.

use std::net::{Ipv6Addr, SocketAddr};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use anyhow::{Context, Result, anyhow};
use tests::lab::{Caller, Got, Lab, PodId};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

/// Far longer than an answer takes.
const PATIENCE: Duration = Duration::from_secs(10);

/// The port of [`Application`]; a Service of its own names it as HTTP.
pub(crate) const PORT: u16 = 8090;

/// A Service for [`PORT`] of the pod labelled `app: app`.
pub(crate) const SERVICE: &str = "
apiVersion: v1
kind: Service
metadata: {name: bytes, namespace: default}
spec:
  clusterIP: 10.96.0.200
  selector: {app: app}
  ports: [{name: http-bytes, port: 8090, targetPort: 8090, protocol: TCP}]
";

/// Header lines: names and values.
pub(crate) type Headers<'a> = &'a [(&'a str, &'a [u8])];

/// A request with `target` as it is, and the header lines of `headers` after a Host.
pub(crate) fn get(target: &str, headers: Headers<'_>) -> Vec<u8> {
    request("GET", target, "app.example", headers)
}

pub(crate) fn request(method: &str, target: &str, host: &str, headers: Headers<'_>) -> Vec<u8> {
    let mut all = format!("{method} {target} HTTP/1.1\r\nhost: {host}\r\nconnection: close\r\n").into_bytes();
    for (name, value) in headers {
        all.extend_from_slice(name.as_bytes());
        all.extend_from_slice(b": ");
        all.extend_from_slice(value);
        all.extend_from_slice(b"\r\n");
    }
    all.extend_from_slice(b"\r\n");
    all
}

/// What came back, and what the application was sent if it answered.
#[derive(Clone, Debug)]
pub(crate) struct Reply {
    pub(crate) got: Got,
    /// Request line and headers as they arrived, letters of names in lower case.
    pub(crate) head: String,
}

impl Reply {
    /// The path as it arrived.
    pub(crate) fn target(&self) -> &str {
        self.head.split(' ').nth(1).unwrap_or_default()
    }

    /// The values of a header as they arrived.
    pub(crate) fn values(&self, name: &str) -> Vec<&str> {
        let lines = self.head.lines().skip(1).filter_map(|line| line.split_once(": "));
        lines.filter(|(n, _)| *n == name).map(|(_, value)| value).collect()
    }
}

pub(crate) async fn ask(caller: &Caller, to: SocketAddr, bytes: &[u8]) -> Reply {
    let answer = match caller.exchange(to, bytes).await {
        Ok(answer) => answer,
        Err(got) => return Reply { got, head: String::new() },
    };
    let text = String::from_utf8_lossy(&answer);
    let (lines, body) = text.split_once("\r\n\r\n").unwrap_or((&text, ""));
    let status = lines.strip_prefix("HTTP/1.1 ").and_then(|rest| rest.get(..3)?.parse().ok());
    let head = if status == Some(200) { body.to_owned() } else { String::new() };
    Reply { got: status.map_or(Got::Closed, Got::Status), head }
}

/// Answers every HTTP/1.1 request with its own head, and counts everything that arrives.
#[derive(Clone, Debug)]
pub(crate) struct Application(Arc<AtomicUsize>);

impl Application {
    /// Listens on [`PORT`] in the pod.
    pub(crate) async fn start(lab: &Lab, pod: PodId) -> Result<Self> {
        let listener = lab[pod].at.listen((Ipv6Addr::UNSPECIFIED, PORT).into()).await?;
        let arrived = Arc::new(AtomicUsize::new(0));
        let count = arrived.clone();
        tokio::spawn(async move {
            while let Ok((stream, _)) = listener.accept().await {
                tokio::spawn(serve(stream, count.clone()));
            }
        });
        Ok(Self(arrived))
    }

    /// How many requests, or beginnings of anything, arrived so far.
    pub(crate) fn arrived(&self) -> usize {
        self.0.load(Ordering::SeqCst)
    }
}

async fn serve(mut stream: TcpStream, count: Arc<AtomicUsize>) {
    let mut seen = Vec::new();
    let mut buffer = [0; 8192];
    while let Ok(n @ 1..) = stream.read(&mut buffer).await {
        seen.extend_from_slice(&buffer[..n]);
        // HTTP/2 arrived; nobody has to understand it.
        if seen.starts_with(b"PRI ") {
            count.fetch_add(1, Ordering::SeqCst);
            return;
        }
        let Some(end) = seen.windows(4).position(|w| w == b"\r\n\r\n") else { continue };
        count.fetch_add(1, Ordering::SeqCst);
        let head = String::from_utf8_lossy(&seen[..end]).into_owned();
        let length = head.len();
        let answer =
            format!("HTTP/1.1 200 OK\r\ncontent-length: {length}\r\nconnection: close\r\n\r\n{head}");
        stream.write_all(answer.as_bytes()).await.ok();
        return;
    }
}

/// Sends one HTTP/2 request with exactly these fields (RFC 9113, RFC 7541 §6.2.3), and waits until it is answered or
/// reset, or the connection is.
pub(crate) async fn http2(caller: &Caller, to: SocketAddr, fields: &[(&str, &str)]) -> Result<()> {
    http2_with(caller, to, fields, None).await
}

/// The same, with the beginning of a body that never ends.
pub(crate) async fn http2_with(
    caller: &Caller,
    to: SocketAddr,
    fields: &[(&str, &str)],
    body: Option<&[u8]>,
) -> Result<()> {
    let mut block = Vec::new();
    for (name, value) in fields {
        // A literal that is never indexed, without Huffman code.
        block.push(0x10);
        for text in [name, value] {
            block.push(u8::try_from(text.len()).ok().filter(|n| *n < 127).context("a short text")?);
            block.extend_from_slice(text.as_bytes());
        }
    }
    let mut bytes = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n\0\0\0\x04\0\0\0\0\0".to_vec();
    bytes.extend_from_slice(&u32::try_from(block.len())?.to_be_bytes()[1..]);
    // HEADERS of stream 1 with END_HEADERS, and END_STREAM if nothing follows.
    bytes.extend_from_slice(&[1, if body.is_some() { 0x04 } else { 0x05 }, 0, 0, 0, 1]);
    bytes.extend_from_slice(&block);
    if let Some(body) = body {
        bytes.extend_from_slice(&u32::try_from(body.len())?.to_be_bytes()[1..]);
        bytes.extend_from_slice(&[0, 0, 0, 0, 0, 1]);
        bytes.extend_from_slice(body);
    }
    let mut stream = caller.connect(to, &["istio-h2", "h2"]).await.map_err(|got| anyhow!("{got}"))?;
    stream.write_all(&bytes).await?;
    let answer = async {
        loop {
            let mut head = [0; 9];
            if stream.read_exact(&mut head).await.is_err() {
                return;
            }
            let length = u32::from_be_bytes([0, head[0], head[1], head[2]]);
            let mut payload = vec![0; length as usize];
            // HEADERS, RST_STREAM, GOAWAY.
            if stream.read_exact(&mut payload).await.is_err() || [1, 3, 7].contains(&head[3]) {
                return;
            }
        }
    };
    tokio::time::timeout(PATIENCE, answer).await.context("an answer to an HTTP/2 request")
}
