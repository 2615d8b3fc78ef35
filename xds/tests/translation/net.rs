//! An application and a client, by hand: what travels is exactly what the test says.

use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;
use std::sync::atomic::{AtomicU8, AtomicUsize, Ordering};

use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer, ServerName};
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};

use super::pki::Identity;

pub(crate) trait Stream: AsyncRead + AsyncWrite + Unpin + Send {}
impl<T: AsyncRead + AsyncWrite + Unpin + Send> Stream for T {}

/// A loopback address that no other test of this process uses.
pub(crate) fn own_address() -> IpAddr {
    static NEXT: AtomicU8 = AtomicU8::new(1);
    let last = NEXT.fetch_add(1, Ordering::Relaxed);
    // The process id keeps test processes apart.
    let id = std::process::id();
    IpAddr::from([127, 64 + (id >> 8 & 0x3f) as u8, (id & 0xff) as u8, last])
}

/// An application that answers HTTP requests with their head as the body, and echoes what is no HTTP.
pub(crate) async fn app() -> SocketAddr {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    tokio::spawn(async move {
        while let Ok((mut stream, _)) = listener.accept().await {
            tokio::spawn(async move {
                let mut seen = Vec::new();
                let mut buffer = [0; 4096];
                let mut first = [0; 3];
                if stream.peek(&mut first).await.is_ok() && &first == b"PRI" {
                    return http2(stream).await;
                }
                while let Ok(n) = stream.read(&mut buffer).await {
                    if n == 0 {
                        return;
                    }
                    seen.extend_from_slice(&buffer[..n]);
                    let text = String::from_utf8_lossy(&seen).into_owned();
                    let answer = if text.contains(" HTTP/1.1\r\n") {
                        if !text.contains("\r\n\r\n") {
                            continue;
                        }
                        format!("HTTP/1.1 200 OK\r\ncontent-length: {}\r\n\r\n{text}", text.len())
                    } else {
                        text
                    };
                    seen.clear();
                    if stream.write_all(answer.as_bytes()).await.is_err() {
                        return;
                    }
                }
            });
        }
    });
    address
}

async fn http2(stream: TcpStream) {
    let answer = |_| async { Ok::<_, std::convert::Infallible>(hyper::Response::new(String::new())) };
    let server = hyper::server::conn::http2::Builder::new(hyper_util::rt::TokioExecutor::new());
    let _ = server
        .serve_connection(hyper_util::rt::TokioIo::new(stream), hyper::service::service_fn(answer))
        .await;
}

/// An application that speaks first, and how many connections it has accepted.
pub(crate) async fn greeter() -> (SocketAddr, Arc<AtomicUsize>) {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    let accepted = Arc::new(AtomicUsize::new(0));
    let count = accepted.clone();
    tokio::spawn(async move {
        let mut open = Vec::new();
        while let Ok((mut stream, _)) = listener.accept().await {
            count.fetch_add(1, Ordering::Relaxed);
            let _ = stream.write_all(b"hello\n").await;
            open.push(stream);
        }
    });
    (address, accepted)
}

/// Whether the greeting comes without a word from here.
pub(crate) async fn greeted(stream: &mut Box<dyn Stream>) -> bool {
    let mut buffer = [0; 6];
    let read = tokio::time::timeout(std::time::Duration::from_secs(10), stream.read_exact(&mut buffer)).await;
    matches!(read, Ok(Ok(_))) && &buffer == b"hello\n"
}

/// An mTLS connection that offers `alpn`. Whoever answers is believed: the tests look at what Envoy decides.
pub(crate) async fn tls(
    to: SocketAddr,
    identity: Option<&Identity>,
    alpn: &[&str],
) -> std::io::Result<Box<dyn Stream>> {
    let builder =
        rustls::ClientConfig::builder_with_provider(Arc::new(rustls::crypto::aws_lc_rs::default_provider()))
            .with_safe_default_protocol_versions()
            .unwrap()
            .dangerous()
            .with_custom_certificate_verifier(Arc::new(trust::Everyone));
    let mut config = match identity {
        Some(id) => {
            let chain = CertificateDer::pem_slice_iter(id.cert.as_bytes()).collect::<Result<_, _>>().unwrap();
            builder
                .with_client_auth_cert(chain, PrivateKeyDer::from_pem_slice(id.key.as_bytes()).unwrap())
                .unwrap()
        }
        None => builder.with_no_client_auth(),
    };
    config.alpn_protocols = alpn.iter().map(|p| p.as_bytes().to_vec()).collect();
    let tcp = TcpStream::connect(to).await?;
    let name = ServerName::try_from("outbound_.80_._.test").unwrap_or_else(|_| ServerName::from(to.ip()));
    let stream = tokio_rustls::TlsConnector::from(Arc::new(config)).connect(name, tcp).await?;
    Ok(Box::new(stream))
}

pub(crate) async fn plain(to: SocketAddr) -> std::io::Result<Box<dyn Stream>> {
    Ok(Box::new(TcpStream::connect(to).await?))
}

/// Waits until something listens at `address`.
pub(crate) async fn opens(address: SocketAddr) {
    for _ in 0..500 {
        if TcpStream::connect(address).await.is_ok() {
            return;
        }
        tokio::time::sleep(std::time::Duration::from_millis(10)).await;
    }
    panic!("{address} does not open");
}

/// One request on an open connection: status and body, or why there was no answer.
pub(crate) async fn http(
    stream: &mut Box<dyn Stream>,
    method: &str,
    path: &str,
    headers: &str,
) -> Result<(u16, String), String> {
    http_to(stream, "test", method, path, headers).await
}

/// The same with a host.
pub(crate) async fn http_to(
    stream: &mut Box<dyn Stream>,
    host: &str,
    method: &str,
    path: &str,
    headers: &str,
) -> Result<(u16, String), String> {
    let request = format!("{method} {path} HTTP/1.1\r\nhost: {host}\r\ncontent-length: 0\r\n{headers}\r\n");
    stream.write_all(request.as_bytes()).await.map_err(|e| e.to_string())?;
    let mut seen = Vec::new();
    let mut buffer = [0; 4096];
    loop {
        let read = tokio::time::timeout(std::time::Duration::from_secs(10), stream.read(&mut buffer)).await;
        let n = read.map_err(|_| "no answer".to_owned())?.map_err(|e| e.to_string())?;
        if n == 0 {
            return Err("closed".to_owned());
        }
        seen.extend_from_slice(&buffer[..n]);
        let text = String::from_utf8_lossy(&seen);
        let Some((head, body)) = text.split_once("\r\n\r\n") else { continue };
        let length = head
            .lines()
            .filter_map(|line| line.split_once(':'))
            .find(|(name, _)| name.eq_ignore_ascii_case("content-length"))
            .map_or(0, |(_, value)| value.trim().parse().unwrap());
        if body.len() >= length {
            let status = head.split(' ').nth(1).and_then(|s| s.parse().ok()).ok_or("no status")?;
            return Ok((status, body.to_owned()));
        }
    }
}

/// Sends some bytes that are no HTTP and says whether the application echoed them.
pub(crate) async fn echo(stream: &mut Box<dyn Stream>) -> bool {
    if stream.write_all(b"hello\n").await.is_err() {
        return false;
    }
    let mut buffer = [0; 6];
    let read = stream.read_exact(&mut buffer);
    matches!(tokio::time::timeout(std::time::Duration::from_secs(10), read).await, Ok(Ok(_)))
        && &buffer == b"hello\n"
}

/// The status of one HTTP/2 request with prior knowledge.
pub(crate) async fn http2_status(to: SocketAddr) -> u16 {
    let stream = hyper_util::rt::TokioIo::new(TcpStream::connect(to).await.unwrap());
    let executor = hyper_util::rt::TokioExecutor::new();
    let (mut sender, connection) = hyper::client::conn::http2::handshake(executor, stream).await.unwrap();
    tokio::spawn(connection);
    let request = hyper::Request::get("http://test/").body(String::new()).unwrap();
    sender.send_request(request).await.unwrap().status().as_u16()
}

/// Waits until the other side closes.
pub(crate) async fn closed(stream: &mut Box<dyn Stream>) {
    let mut buffer = [0; 1];
    let read = stream.read(&mut buffer);
    let end = tokio::time::timeout(std::time::Duration::from_secs(20), read).await;
    assert!(matches!(end, Ok(Ok(0) | Err(_))), "still open: {end:?}");
}

mod trust {
    use rustls::DigitallySignedStruct;
    use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
    use rustls::pki_types::{CertificateDer, ServerName, UnixTime};

    #[derive(Debug)]
    pub(super) struct Everyone;

    impl ServerCertVerifier for Everyone {
        fn verify_server_cert(
            &self,
            _: &CertificateDer<'_>,
            _: &[CertificateDer<'_>],
            _: &ServerName<'_>,
            _: &[u8],
            _: UnixTime,
        ) -> Result<ServerCertVerified, rustls::Error> {
            Ok(ServerCertVerified::assertion())
        }

        fn verify_tls12_signature(
            &self,
            _: &[u8],
            _: &CertificateDer<'_>,
            _: &DigitallySignedStruct,
        ) -> Result<HandshakeSignatureValid, rustls::Error> {
            Ok(HandshakeSignatureValid::assertion())
        }

        fn verify_tls13_signature(
            &self,
            _: &[u8],
            _: &CertificateDer<'_>,
            _: &DigitallySignedStruct,
        ) -> Result<HandshakeSignatureValid, rustls::Error> {
            Ok(HandshakeSignatureValid::assertion())
        }

        fn supported_verify_schemes(&self) -> Vec<rustls::SignatureScheme> {
            rustls::crypto::aws_lc_rs::default_provider()
                .signature_verification_algorithms
                .supported_schemes()
        }
    }
}
