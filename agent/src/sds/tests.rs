use std::time::Duration;

use envoy_types::pb::envoy::service::discovery::v3::{DiscoveryRequest, DiscoveryResponse};
use envoy_types::pb::envoy::service::secret::v3::secret_discovery_service_client::SecretDiscoveryServiceClient;
use hyper_util::rt::TokioIo;
use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;
use tonic::transport::{Channel, Endpoint};

use super::*;

const PATIENCE: Duration = Duration::from_secs(10);

fn pair(text: &str) -> KeyPair {
    KeyPair { chain: text.to_owned(), key: zeroize::Zeroizing::new(text.to_owned()) }
}

async fn client(path: PathBuf) -> SecretDiscoveryServiceClient<Channel> {
    let connector = tower::service_fn(move |_| {
        let path = path.clone();
        async move { UnixStream::connect(path).await.map(TokioIo::new) }
    });
    let channel = Endpoint::from_static("http://sds").connect_with_connector_lazy(connector);
    SecretDiscoveryServiceClient::new(channel)
}

async fn next(answers: &mut tonic::Streaming<DiscoveryResponse>) -> DiscoveryResponse {
    let answer = tokio::time::timeout(PATIENCE, answers.message()).await.expect("an answer in time");
    answer.expect("no error").expect("the stream goes on")
}

fn ask(names: &[&str], nonce: &str) -> DiscoveryRequest {
    DiscoveryRequest {
        resource_names: names.iter().map(|n| (*n).to_owned()).collect(),
        response_nonce: nonce.to_owned(),
        ..Default::default()
    }
}

struct Running {
    path: PathBuf,
    secrets: watch::Sender<Secrets>,
    stop: CancellationToken,
    _dir: tempfile::TempDir,
}

fn start(uids: Vec<u32>) -> Running {
    let dir = tempfile::tempdir().expect("a folder");
    let path = dir.path().join("sds.sock");
    let (secrets, receiver) = watch::channel(Secrets::default());
    let server = Server::bind(&path, uids, receiver).expect("bound");
    let stop = CancellationToken::new();
    tokio::spawn(server.run(stop.clone()));
    Running { path, secrets, stop, _dir: dir }
}

fn me() -> u32 {
    nix::unistd::geteuid().as_raw()
}

#[tokio::test]
async fn a_stream_waits_for_the_certificate_and_follows_renewals() {
    let Running { path, secrets, stop, _dir } = start(vec![me()]);
    let mut client = client(path).await;
    let (requests, stream) = mpsc::channel(4);
    requests.send(ask(&["default"], "")).await.expect("sent");
    let answers = tokio::spawn(async move { client.stream_secrets(ReceiverStream::new(stream)).await });
    secrets.send_modify(|s| s.set_certificate(Some(pair("one"))));
    let mut answers = answers.await.expect("no panic").expect("accepted").into_inner();
    let first = next(&mut answers).await;
    assert_eq!(first.resources.len(), 1);
    requests.send(ask(&["default"], &first.nonce)).await.expect("sent");
    // A change of something else is no news here.
    secrets.send_modify(|s| s.set_bundle("roots".to_owned()));
    secrets.send_modify(|s| s.set_certificate(Some(pair("two"))));
    let second = next(&mut answers).await;
    assert_ne!(first.resources, second.resources);
    stop.cancel();
}

#[tokio::test]
async fn unknown_names_and_other_users_get_nothing() {
    let Running { path, secrets, stop, _dir } = start(vec![me()]);
    secrets.send_modify(|s| s.set_certificate(Some(pair("one"))));
    let error = client(path).await.fetch_secrets(ask(&["other"], "")).await.expect_err("refused");
    assert_eq!(error.code(), tonic::Code::NotFound);
    stop.cancel();

    let Running { path, secrets, stop, _dir } = start(vec![me() + 1]);
    secrets.send_modify(|s| s.set_certificate(Some(pair("one"))));
    let error = client(path).await.fetch_secrets(ask(&["default"], "")).await.expect_err("refused");
    assert_ne!(error.code(), tonic::Code::NotFound);
    stop.cancel();
}

#[test]
fn debug_output_holds_no_key() {
    assert!(!format!("{:?}", pair("secret")).contains("secret"));
}

#[tokio::test]
async fn a_left_over_socket_is_replaced_and_a_file_is_not() {
    let dir = tempfile::tempdir().expect("a folder");
    let path = dir.path().join("s");
    let (_secrets, receiver) = watch::channel(Secrets::default());
    drop(Server::bind(&path, vec![], receiver.clone()).expect("bound"));
    assert!(Server::bind(&path, vec![], receiver.clone()).is_ok());
    fs::remove_file(&path).expect("removed");
    fs::write(&path, "precious").expect("written");
    assert!(matches!(Server::bind(&path, vec![], receiver), Err(SdsError::Taken(_))));
}
