//! A server that writes down how it was spoken to: plaintext or TLS, with which names, and whose certificate was shown.

use std::net::SocketAddr;
use std::sync::{Arc, Mutex};

use anyhow::{Context, Result};
use rustls::DigitallySignedStruct;
use rustls::client::danger::HandshakeSignatureValid;
use rustls::crypto::{CryptoProvider, aws_lc_rs, verify_tls12_signature, verify_tls13_signature};
use rustls::pki_types::pem::PemObject as _;
use rustls::pki_types::{CertificateDer, PrivateKeyDer, UnixTime};
use rustls::server::danger::{ClientCertVerified, ClientCertVerifier};
use rustls::server::{Acceptor, ClientHello};
use tests::lab::net::Namespace;
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};
use tokio::net::TcpStream;

/// How one connection began.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Seen {
    Plaintext,
    Tls {
        sni: Option<String>,
        alpn: Vec<String>,
        /// The certificate that the client showed; `None` also if it gave up before.
        client: Option<CertificateDer<'static>>,
        /// The client found the server's certificate good.
        completed: bool,
    },
}

/// Answers whoever comes, on any of its ports, with the certificate that it has just then.
#[derive(Clone, Debug)]
pub(crate) struct Server {
    seen: Arc<Mutex<Vec<Seen>>>,
    certificate: Arc<Mutex<(String, String)>>,
}

impl Server {
    /// # Errors
    /// If it cannot listen.
    pub(crate) async fn start(at: &Namespace, ports: &[u16], certificate: (String, String)) -> Result<Self> {
        let server = Self { seen: Arc::default(), certificate: Arc::new(Mutex::new(certificate)) };
        for port in ports {
            let listener = at.listen(SocketAddr::new(at.v4.into(), *port)).await?;
            let server = server.clone();
            tokio::spawn(async move {
                while let Ok((stream, _)) = listener.accept().await {
                    let server = server.clone();
                    tokio::spawn(async move { drop(server.serve(stream).await) });
                }
            });
        }
        Ok(server)
    }

    /// Shows this chain and key (PEM) from now on.
    pub(crate) fn becomes(&self, certificate: (String, String)) {
        *self.certificate.lock().expect("nobody panics with it") = certificate;
    }

    /// What came since the last time it was asked.
    pub(crate) fn taken(&self) -> Vec<Seen> {
        std::mem::take(&mut *self.seen.lock().expect("nobody panics with it"))
    }

    fn saw(&self, seen: Seen) {
        self.seen.lock().expect("nobody panics with it").push(seen);
    }

    async fn serve(&self, stream: TcpStream) -> Result<()> {
        let mut first = [0];
        if stream.peek(&mut first).await? == 0 {
            return Ok(());
        }
        if first[0] != 0x16 {
            self.saw(Seen::Plaintext);
            return answer(stream).await;
        }
        let accepted = tokio_rustls::LazyConfigAcceptor::new(Acceptor::default(), stream).await?;
        let hello = accepted.client_hello();
        let (sni, alpn) = (hello.server_name().map(str::to_owned), alpn(&hello));
        let finished = accepted.into_stream(Arc::new(self.config(&alpn)?)).await;
        let client = finished
            .as_ref()
            .ok()
            .and_then(|stream| Some(stream.get_ref().1.peer_certificates()?.first()?.clone().into_owned()));
        self.saw(Seen::Tls { sni, alpn, client, completed: finished.is_ok() });
        answer(finished?).await
    }

    fn config(&self, alpn: &[String]) -> Result<rustls::ServerConfig> {
        let (chain, key) = self.certificate.lock().expect("nobody panics with it").clone();
        let chain: Vec<_> = CertificateDer::pem_slice_iter(chain.as_bytes()).collect::<Result<_, _>>()?;
        let key = PrivateKeyDer::from_pem_slice(key.as_bytes())?;
        let provider = Arc::new(aws_lc_rs::default_provider());
        // In TLS 1.2 a client that refuses the server's certificate does so before the handshake is complete.
        let mut config = rustls::ServerConfig::builder_with_provider(provider.clone())
            .with_protocol_versions(&[&rustls::version::TLS12])?
            .with_client_cert_verifier(Arc::new(AnyClient(provider)))
            .with_single_cert(chain, key)?;
        config.alpn_protocols = alpn.iter().take(1).map(|name| name.as_bytes().to_vec()).collect();
        Ok(config)
    }
}

fn alpn(hello: &ClientHello<'_>) -> Vec<String> {
    hello.alpn().into_iter().flatten().map(|name| String::from_utf8_lossy(name).into_owned()).collect()
}

/// Reads one request's head and answers it.
async fn answer(mut stream: impl AsyncRead + AsyncWrite + Unpin) -> Result<()> {
    let mut head = Vec::new();
    while !head.windows(4).any(|end| end == b"\r\n\r\n") {
        let mut part = [0; 1024];
        let read = stream.read(&mut part).await?;
        anyhow::ensure!(read > 0, "no whole request");
        head.extend_from_slice(&part[..read]);
    }
    let text = "HTTP/1.1 200 OK\r\ncontent-length: 0\r\nconnection: close\r\n\r\n";
    stream.write_all(text.as_bytes()).await?;
    stream.shutdown().await.context("the end")
}

/// Asks for a certificate and takes whatever there is.
#[derive(Debug)]
struct AnyClient(Arc<CryptoProvider>);

impl ClientCertVerifier for AnyClient {
    fn root_hint_subjects(&self) -> &[rustls::DistinguishedName] {
        &[]
    }

    fn client_auth_mandatory(&self) -> bool {
        false
    }

    fn verify_client_cert(
        &self,
        _: &CertificateDer<'_>,
        _: &[CertificateDer<'_>],
        _: UnixTime,
    ) -> Result<ClientCertVerified, rustls::Error> {
        Ok(ClientCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        verify_tls12_signature(message, cert, dss, &self.0.signature_verification_algorithms)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        verify_tls13_signature(message, cert, dss, &self.0.signature_verification_algorithms)
    }

    fn supported_verify_schemes(&self) -> Vec<rustls::SignatureScheme> {
        self.0.signature_verification_algorithms.supported_schemes()
    }
}
