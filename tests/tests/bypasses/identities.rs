//! Certificates that say more, or something else, than they seem to.

use std::net::{Ipv4Addr, SocketAddr};
use std::sync::Arc;

use anyhow::{Context, Result};
use rustls::client::Resumption;
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer, ServerName};
use rustls::{HandshakeKind, SupportedProtocolVersion};
use tests::here;
use tests::lab::{self, ALLOWED, AnyServer, Authority, DENIED, Got, Leaf, PodSpec, Protocol};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

const POLICIES: &str = r#"
apiVersion: security.istio.io/v1
kind: PeerAuthentication
metadata: {name: default, namespace: istio-system}
spec: {mtls: {mode: STRICT}}
---
apiVersion: security.istio.io/v1
kind: AuthorizationPolicy
metadata: {name: allow, namespace: default}
spec:
  rules:
  - from: [{source: {principals: ["cluster.local/ns/default/sa/payment"]}}]
    to: [{operation: {ports: ["8080", "5432"]}}]
  - from: [{source: {namespaces: [a.b]}}, {source: {serviceAccounts: ["a.b/c"]}}]
    to: [{operation: {ports: ["8081", "5433"]}}]
  - from: [{source: {principals: ["*"], notPrincipals: ["*/sa/bad"]}}]
    to: [{operation: {ports: ["8082", "5434"]}}]
---
apiVersion: security.istio.io/v1
kind: AuthorizationPolicy
metadata: {name: deny, namespace: default}
spec:
  action: DENY
  rules:
  - from: [{source: {principals: ["*/sa/bad"]}}]
    to: [{operation: {ports: ["8080", "5432"]}}]
"#;

fn pod(name: &str) -> PodSpec {
    let http = [8080, 8081, 8082].into_iter();
    let tcp = [5432, 5433, 5434].into_iter();
    let spec = http.fold(PodSpec::new("default", name), |spec, port| spec.port(port, Protocol::Http));
    tcp.fold(spec, |spec, port| spec.port(port, Protocol::Tcp))
}

/// HTTP and TCP decide alike about every certificate (CVE-2020-16844, CVE-2026-39350), and a NUL ends no name
/// (CVE-2025-66220, CVE-2026-47778).
#[test]
fn names_with_nul_metacharacters_and_neighbours() {
    let base = "spiffe://cluster.local/ns/default/sa/payment";
    let uri = |text: &str| Leaf::new([text.to_owned()]);
    let other = |text: &str| {
        // A user principal name (1.3.6.1.4.1.311.20.2.3), as the advisory has it.
        let kind = vec![1, 3, 6, 1, 4, 1, 311, 20, 2, 3];
        let mut leaf = Leaf::new(Vec::<String>::new());
        leaf.others.push((kind, text.to_owned()));
        leaf
    };
    let dns = |text: &str| Leaf { dns: vec![text.to_owned()], ..Leaf::new(Vec::<String>::new()) };
    // Who, and what is open to them: `p`assed, `d`enied or `r`efused by TLS, on each pair of ports.
    let rows: Vec<(&str, Leaf, &str)> = vec![
        ("payment", uri(base), "pdp"),
        ("bad", uri("spiffe://cluster.local/ns/default/sa/bad"), "ddd"),
        ("bad in another namespace", uri("spiffe://cluster.local/ns/x/sa/bad"), "ddd"),
        ("NUL after the name", uri(&format!("{base}\0")), "ddp"),
        ("NUL and more", uri(&format!("{base}\0.evil.example/x")), "ddp"),
        ("NUL in the trust domain", uri("spiffe://cluster.local\0/ns/default/sa/payment"), "rrr"),
        ("NUL before the name", uri(&format!("\0{base}")), "rrr"),
        ("longer", uri(&format!("{base}/x")), "ddp"),
        ("upper case", uri("SPIFFE://CLUSTER.LOCAL/ns/default/sa/payment"), "rrr"),
        ("encoded", uri("spiffe://cluster.local/ns/default/sa/%70ayment"), "ddp"),
        ("a neighbouring trust domain", uri("spiffe://cluster.localx/ns/default/sa/payment"), "rrr"),
        ("a trust domain below", uri("spiffe://cluster.local.evil/ns/default/sa/payment"), "rrr"),
        ("a trust domain above", uri("spiffe://local/ns/default/sa/payment"), "rrr"),
        ("a user in the authority", uri("spiffe://cluster.local@evil/ns/default/sa/payment"), "rrr"),
        ("the dot is a dot", uri("spiffe://cluster.local/ns/a.b/sa/c"), "dpp"),
        ("and not any letter", uri("spiffe://cluster.local/ns/axb/sa/c"), "ddp"),
        ("only an otherName", other(base), "rrr"),
        ("an otherName with NUL", other(&format!("{base}\0.evil.example")), "rrr"),
        ("only a DNS name", dns("payment.default.svc.cluster.local"), "rrr"),
    ];
    lab::run(here!(), async |lab| {
        lab.save("policies.yaml", POLICIES)?;
        lab.start().await?;
        let app = lab.pod(pod("app")).await?;
        let authority = lab.authority()?;
        for (name, leaf, expected) in &rows {
            let caller = lab.caller(authority.mint(leaf).with_context(|| (*name).to_owned())?);
            let (mut http, mut tcp) = (String::new(), String::new());
            for port in [8080, 8081, 8082] {
                http.push(match caller.get(lab[app].on(port), "/").await.got {
                    ALLOWED => 'p',
                    DENIED => 'd',
                    Got::TlsRefused => 'r',
                    // Not forwarded: what is said of the certificate is no header.
                    Got::Status(503) => 'u',
                    other => panic!("{name}: {other}"),
                });
            }
            for port in [5432, 5433, 5434] {
                tcp.push(match caller.line(lab[app].on(port), "hello").await {
                    Got::Line => 'p',
                    Got::Closed => 'd',
                    Got::TlsRefused => 'r',
                    other => panic!("{name}: {other}"),
                });
            }
            assert_eq!(
                (http.replace('u', "p").as_str(), tcp.as_str()),
                (*expected, *expected),
                "{name}: {http}"
            );
        }
        Ok(())
    });
}

/// Envoy verifies every handshake: whoever was let in once shows its certificate again, which may meanwhile be of no
/// worth (2022-21654). The same client does resume where a server lets it.
#[test]
fn no_session_is_resumed() {
    lab::run(here!(), async |lab| {
        lab.save("policies.yaml", POLICIES)?;
        lab.start().await?;
        let app = lab.pod(pod("app").without_capture()).await?;
        let authority = lab.authority()?;
        let control = resuming_server(&authority).await?;
        for version in [&rustls::version::TLS12, &rustls::version::TLS13] {
            let client = client(&authority, version)?;
            let from = &lab[app].at;
            for port in [8080, 5432] {
                for n in 0..3 {
                    let stream = from.dial(lab[app].on(port)).await?;
                    let kind = handshake(&client, stream).await?;
                    assert_eq!(kind, HandshakeKind::Full, "handshake {n} to {port} with {version:?}");
                }
            }
            handshake(&client, TcpStream::connect(control).await?).await?;
            let kind = handshake(&client, TcpStream::connect(control).await?).await?;
            assert_eq!(kind, HandshakeKind::Resumed, "the control with {version:?}");
        }
        Ok(())
    });
}

fn client(
    authority: &Authority,
    version: &'static SupportedProtocolVersion,
) -> Result<Arc<rustls::ClientConfig>> {
    let (chain, key) = authority.mint_pem(&Leaf::new(["spiffe://cluster.local/ns/default/sa/payment"]))?;
    let chain = CertificateDer::pem_slice_iter(chain.as_bytes()).collect::<Result<_, _>>()?;
    let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
    let mut config = rustls::ClientConfig::builder_with_provider(provider.clone())
        .with_protocol_versions(&[version])?
        .dangerous()
        .with_custom_certificate_verifier(Arc::new(AnyServer(provider)))
        .with_client_auth_cert(chain, PrivateKeyDer::from_pem_slice(key.as_bytes())?)?;
    config.alpn_protocols = vec![b"istio".to_vec(), b"istio-http/1.1".to_vec()];
    config.resumption = Resumption::in_memory_sessions(16);
    Ok(Arc::new(config))
}

/// Shakes hands and waits for an answer, so that a ticket has arrived if there is one.
async fn handshake(client: &Arc<rustls::ClientConfig>, stream: TcpStream) -> Result<HandshakeKind> {
    let name = ServerName::try_from("app.default.svc.cluster.local")?;
    let mut tls = tokio_rustls::TlsConnector::from(client.clone()).connect(name, stream).await?;
    tls.write_all(b"GET / HTTP/1.1\r\nhost: a\r\n\r\n").await?;
    anyhow::ensure!(tls.read(&mut [0; 64]).await? > 0, "no answer");
    tls.get_ref().1.handshake_kind().context("a handshake that is done")
}

/// A server that answers one line and resumes whom it knows.
async fn resuming_server(authority: &Authority) -> Result<SocketAddr> {
    let (chain, key) = authority.mint_pem(&Leaf::new(["spiffe://cluster.local/ns/default/sa/app"]))?;
    let chain = CertificateDer::pem_slice_iter(chain.as_bytes()).collect::<Result<_, _>>()?;
    let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
    let mut config = rustls::ServerConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()?
        .with_no_client_auth()
        .with_single_cert(chain, PrivateKeyDer::from_pem_slice(key.as_bytes())?)?;
    config.alpn_protocols = vec![b"istio".to_vec()];
    let listener = tokio::net::TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await?;
    let address = listener.local_addr()?;
    let acceptor = tokio_rustls::TlsAcceptor::from(Arc::new(config));
    tokio::spawn(async move {
        while let Ok((stream, _)) = listener.accept().await {
            let acceptor = acceptor.clone();
            tokio::spawn(async move {
                let mut tls = acceptor.accept(stream).await?;
                let mut buffer = [0; 64];
                let _ = tls.read(&mut buffer).await?;
                tls.write_all(b"hello\n").await?;
                // Until the client goes.
                let _ = tls.read(&mut buffer).await?;
                std::io::Result::Ok(())
            });
        }
    });
    Ok(address)
}
