//! The application behind Envoy: answers HTTP with the path it saw, and sends back what is no HTTP.

use std::net::SocketAddr;

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};

pub(crate) async fn start() -> SocketAddr {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    tokio::spawn(async move {
        while let Ok((stream, _)) = listener.accept().await {
            let _ = stream.set_nodelay(true);
            tokio::spawn(serve(stream));
        }
    });
    address
}

/// An external authorizer that gives everybody this answer.
pub(crate) async fn authorizer(status: u16) -> SocketAddr {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    tokio::spawn(async move {
        while let Ok((mut stream, _)) = listener.accept().await {
            tokio::spawn(async move {
                let mut seen = Vec::new();
                let mut buffer = [0; 8192];
                while let Ok(n) = stream.read(&mut buffer).await {
                    seen.extend_from_slice(&buffer[..n]);
                    if n == 0 {
                        return;
                    }
                    if seen.ends_with(b"\r\n\r\n") {
                        seen.clear();
                        let answer = format!("HTTP/1.1 {status} x\r\ncontent-length: 0\r\n\r\n");
                        if stream.write_all(answer.as_bytes()).await.is_err() {
                            return;
                        }
                    }
                }
            });
        }
    });
    address
}

async fn serve(mut stream: TcpStream) {
    let mut first = [0; 3];
    if stream.peek(&mut first).await.is_ok() && &first == b"PRI" {
        return http2(stream).await;
    }
    let mut seen = Vec::new();
    let mut buffer = [0; 8192];
    while let Ok(n) = stream.read(&mut buffer).await {
        if n == 0 {
            return;
        }
        seen.extend_from_slice(&buffer[..n]);
        let answer = if seen.starts_with(b"hello") {
            std::mem::take(&mut seen)
        } else {
            if !seen.ends_with(b"\r\n\r\n") {
                continue;
            }
            let line = seen.split(|b| *b == b'\r').next().unwrap_or_default();
            let path = line.split(|b| *b == b' ').nth(1).unwrap_or_default();
            let head = line.starts_with(b"HEAD ");
            let mut answer =
                format!("HTTP/1.1 200 OK\r\ncontent-length: {}\r\n\r\n", path.len()).into_bytes();
            if !head {
                answer.extend_from_slice(path);
            }
            seen.clear();
            answer
        };
        if stream.write_all(&answer).await.is_err() {
            return;
        }
    }
}

async fn http2(stream: TcpStream) {
    let answer = |_| async { Ok::<_, std::convert::Infallible>(hyper::Response::new(String::new())) };
    let server = hyper::server::conn::http2::Builder::new(hyper_util::rt::TokioExecutor::new());
    let service = hyper::service::service_fn(answer);
    let _ = server.serve_connection(hyper_util::rt::TokioIo::new(stream), service).await;
}
