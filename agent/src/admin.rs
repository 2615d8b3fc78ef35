//! Envoy's admin interface on its Unix socket: one request, one answer. Interprets nothing.

use std::io;
use std::path::Path;
use std::time::Duration;

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::UnixStream;

/// Longest time for one exchange.
const TIMEOUT: Duration = Duration::from_secs(2);
/// Longer answers are cut: only status and short texts are of interest.
const MAX_BYTES: u64 = 64 << 10;

#[derive(Debug)]
pub(crate) struct Answer {
    pub(crate) status: u16,
    /// Everything after the status line, as it came (headers, chunk sizes): to be searched, not to be parsed.
    pub(crate) rest: String,
}

/// Sends `method path` and waits for the answer.
pub(crate) async fn request(socket: &Path, method: &str, path: &str) -> io::Result<Answer> {
    let exchange = async {
        let mut stream = UnixStream::connect(socket).await?;
        let request = format!(
            "{method} {path} HTTP/1.1\r\nhost: agent\r\nconnection: close\r\ncontent-length: 0\r\n\r\n"
        );
        stream.write_all(request.as_bytes()).await?;
        let mut answer = Vec::new();
        stream.take(MAX_BYTES).read_to_end(&mut answer).await?;
        Ok::<_, io::Error>(answer)
    };
    let answer = tokio::time::timeout(TIMEOUT, exchange).await.map_err(|_| io::ErrorKind::TimedOut)??;
    let answer = String::from_utf8_lossy(&answer);
    let (line, rest) = answer.split_once("\r\n").ok_or(io::ErrorKind::InvalidData)?;
    let status = line.split(' ').nth(1).and_then(|status| status.parse().ok());
    Ok(Answer { status: status.ok_or(io::ErrorKind::InvalidData)?, rest: rest.to_owned() })
}
