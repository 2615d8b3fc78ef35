//! The raw TCP side: each line is answered `NAME> LINE`.

use tokio::io::{AsyncBufReadExt, AsyncReadExt, AsyncWriteExt, BufReader};

use super::{App, Stream};

/// Longer lines end the connection.
const MAX_LINE: u64 = 64 << 10;

/// One connection to its end.
pub(super) async fn serve(stream: Stream, app: &App) {
    let (read, mut write) = tokio::io::split(stream);
    let mut read = BufReader::new(read);
    loop {
        let mut line = Vec::new();
        match (&mut read).take(MAX_LINE).read_until(b'\n', &mut line).await {
            Ok(n) if n > 0 && line.ends_with(b"\n") => {}
            _ => return,
        }
        let answer = [app.name.as_bytes(), b"> ", &line].concat();
        if write.write_all(&answer).await.is_err() {
            return;
        }
    }
}
