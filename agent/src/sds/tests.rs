use std::os::unix::fs::PermissionsExt;
use std::time::Duration;

use envoy_types::pb::envoy::service::discovery::v3::{
    DeltaDiscoveryRequest, DiscoveryRequest, DiscoveryResponse,
};
use envoy_types::pb::envoy::service::secret::v3::secret_discovery_service_client::SecretDiscoveryServiceClient;
use hyper_util::rt::TokioIo;
use tokio::net::UnixStream;
use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;
use tonic::transport::{Channel, Endpoint};

use super::service::Subscription as _;
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

    let Running { path, secrets, stop, _dir } = start(vec![]);
    secrets.send_modify(|s| s.set_certificate(Some(pair("one"))));
    let error = client(path.clone()).await.fetch_secrets(ask(&["default"], "")).await.expect_err("refused");
    assert_eq!(error.code(), tonic::Code::PermissionDenied);
    let (_requests, stream) = mpsc::channel(1);
    let error = client(path).await.stream_secrets(ReceiverStream::new(stream)).await.expect_err("refused");
    assert_eq!(error.code(), tonic::Code::PermissionDenied);
    stop.cancel();
}

const SOCKET: &str = "AGENT_TEST_SDS_SOCKET";

/// Not a test of its own: what another user's process runs.
#[tokio::test]
#[ignore = "run by another_users_process_is_refused"]
async fn asks_as_another_user() {
    let Ok(path) = std::env::var(SOCKET) else { return };
    let error = client(path.into()).await.fetch_secrets(ask(&["default"], "")).await.expect_err("refused");
    println!("answer: {:?}", error.code());
}

#[tokio::test]
async fn another_users_process_is_refused() {
    if me() != 0 {
        return println!("skipped: only root can become another user");
    }
    let Running { path, secrets, stop, _dir } = start(vec![me()]);
    secrets.send_modify(|s| s.set_certificate(Some(pair("one"))));
    let ask = |path: &Path| {
        let mut command = tokio::process::Command::new("setpriv");
        command.args(["--reuid=65534", "--regid=65534", "--clear-groups"]);
        command.arg(std::env::current_exe().expect("a path"));
        command.args(["--exact", "sds::tests::asks_as_another_user", "--ignored", "--nocapture"]);
        command.env(SOCKET, path);
        command
    };
    let Ok(output) = ask(&path).output().await else { return println!("skipped: no setpriv") };
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    if !text.contains("answer: ") {
        return println!(
            "skipped: another user cannot run this test: {}",
            String::from_utf8_lossy(&output.stderr)
        );
    }
    assert!(!text.contains("PermissionDenied"), "already the folder keeps it out: {text}");
    // If the folder did not, the check of the peer does.
    for open in [_dir.path(), &path] {
        fs::set_permissions(open, fs::Permissions::from_mode(0o777)).expect("set");
    }
    let output = ask(&path).output().await.expect("runs");
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    assert!(text.contains("answer: PermissionDenied"), "{text}");
    stop.cancel();
}

#[tokio::test]
async fn the_socket_is_private() {
    let Running { path, stop, _dir, .. } = start(vec![me()]);
    let mode = fs::metadata(&path).expect("there").permissions().mode();
    assert_eq!(mode & 0o777, 0o600);
    stop.cancel();
}

#[tokio::test]
async fn a_delta_stream_gets_what_it_subscribes_to_once_and_again_when_it_changes() {
    let Running { path, secrets, stop, _dir } = start(vec![me()]);
    secrets.send_modify(|s| s.set_bundle("roots".to_owned()));
    let (requests, stream) = mpsc::channel(4);
    let delta = |names: &[&str], drop: &[&str]| DeltaDiscoveryRequest {
        resource_names_subscribe: names.iter().map(|n| (*n).to_owned()).collect(),
        resource_names_unsubscribe: drop.iter().map(|n| (*n).to_owned()).collect(),
        ..Default::default()
    };
    requests.send(delta(&["ROOTCA", "default"], &[])).await.expect("sent");
    let mut client = client(path).await;
    let mut answers = client.delta_secrets(ReceiverStream::new(stream)).await.expect("accepted").into_inner();
    let mut names = async || {
        let answer = tokio::time::timeout(PATIENCE, answers.message()).await.expect("an answer in time");
        let resources = answer.expect("no error").expect("the stream goes on").resources;
        resources.into_iter().map(|r| r.name).collect::<Vec<_>>()
    };
    assert_eq!(names().await, ["ROOTCA"], "what there is");
    secrets.send_modify(|s| s.set_certificate(Some(pair("one"))));
    assert_eq!(names().await, ["default"]);
    // An expired one is not sent, and neither is anything that was unsubscribed from.
    secrets.send_modify(|s| s.set_certificate(None));
    requests.send(delta(&[], &["ROOTCA"])).await.expect("sent");
    secrets.send_modify(|s| s.set_certificate(Some(pair("two"))));
    assert_eq!(names().await, ["default"]);
    stop.cancel();
}

#[test]
fn a_refusal_is_noted_and_the_same_is_not_sent_again() {
    let mut secrets = Secrets::default();
    secrets.set_certificate(Some(pair("one")));
    let mut sotw = service::Sotw::default();
    let first = sotw.request(ask(&["default"], ""), &secrets).expect("known").expect("an answer");
    let mut nack = ask(&["default"], &first.nonce);
    nack.error_detail =
        Some(envoy_types::pb::google::rpc::Status { message: "bad key".to_owned(), ..Default::default() });
    assert_eq!(sotw.request(nack, &secrets).expect("known"), None);
    secrets.set_certificate(Some(pair("two")));
    assert!(sotw.changed(&secrets).is_some());
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
    let running = Server::bind(&path, vec![], receiver.clone()).expect("bound");
    assert!(matches!(Server::bind(&path, vec![], receiver.clone()), Err(SdsError::InUse(_))));
    drop(running);
    assert!(Server::bind(&path, vec![], receiver.clone()).is_ok());
    fs::remove_file(&path).expect("removed");
    fs::write(&path, "precious").expect("written");
    assert!(matches!(Server::bind(&path, vec![], receiver), Err(SdsError::Taken(_))));
}
