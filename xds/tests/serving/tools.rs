//! Streams of tools, message by message, and streams that wait for an answer.

use std::time::Duration;

use envoy_types::pb::envoy::config::core::v3::Node;
use envoy_types::pb::envoy::service::discovery::v3::aggregated_discovery_service_client::AggregatedDiscoveryServiceClient;
use envoy_types::pb::envoy::service::discovery::v3::{
    DeltaDiscoveryRequest, DiscoveryRequest, DiscoveryResponse,
};
use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;
use tonic::transport::Channel;
use tonic::{Code, Status, Streaming};
use xds::ResourceType;
use xds::ads::facts;
use xds::ads::server::{Limits, Refused};

use super::server::Server;

async fn connect(server: &Server) -> AggregatedDiscoveryServiceClient<Channel> {
    let channel = Channel::from_shared(format!("http://{}", server.address)).unwrap();
    AggregatedDiscoveryServiceClient::new(channel.connect().await.unwrap())
}

/// A tool's stream.
struct Tool {
    requests: mpsc::Sender<DiscoveryRequest>,
    responses: Streaming<DiscoveryResponse>,
}

impl Tool {
    async fn open(server: &Server) -> Self {
        let (requests, outgoing) = mpsc::channel(64);
        let responses =
            connect(server).await.stream_aggregated_resources(ReceiverStream::new(outgoing)).await;
        Self { requests, responses: responses.unwrap().into_inner() }
    }

    /// As istioctl asks: a node that is no proxy's, and a nonce that nobody gave out.
    async fn ask(&mut self, type_url: &str, names: &[&str]) -> Result<DiscoveryResponse, Status> {
        let node =
            Node { id: "sidecar~192.168.0.7~test.default~default.svc.x".to_owned(), ..Node::default() };
        self.send(DiscoveryRequest {
            node: Some(node),
            type_url: type_url.to_owned(),
            resource_names: names.iter().map(|name| (*name).to_owned()).collect(),
            response_nonce: "2026-11-24 12:00:00 +0000 UTC m=+0.1".to_owned(),
            ..DiscoveryRequest::default()
        })
        .await;
        self.next().await
    }

    async fn send(&self, request: DiscoveryRequest) {
        self.requests.send(request).await.unwrap();
    }

    async fn next(&mut self) -> Result<DiscoveryResponse, Status> {
        let next = tokio::time::timeout(Duration::from_secs(20), self.responses.message()).await;
        next.expect("an answer").map(|message| message.expect("the stream goes on"))
    }
}

fn values(response: &DiscoveryResponse) -> Vec<String> {
    response.resources.iter().map(|any| String::from_utf8_lossy(&any.value).into_owned()).collect()
}

#[tokio::test]
async fn each_question_has_one_answer() {
    let server = Server::start(Limits::default(), &Vec::new()).await;
    let mut tool = Tool::open(&server).await;
    let first = tool.ask(facts::SYNCZ, &[]).await.unwrap();
    assert_eq!((first.type_url.as_str(), values(&first)), (facts::SYNCZ, vec!["fact".to_owned()]));
    assert_eq!(first.control_plane.map(|c| c.identifier).as_deref(), Some("test"));
    // Some clients acknowledge. That is no question.
    let response_nonce = first.nonce.clone();
    tool.send(DiscoveryRequest { type_url: facts::SYNCZ.to_owned(), response_nonce, ..Default::default() })
        .await;
    let second = tool.ask(facts::CONFIG_DUMP, &["web-1.shop"]).await.unwrap();
    assert_eq!(
        (second.type_url.as_str(), values(&second)),
        (facts::CONFIG_DUMP, vec!["fact".to_owned(), "web-1.shop".to_owned()])
    );
    assert_ne!(first.nonce, second.nonce);
}

#[tokio::test]
async fn delta_streams_are_answered_too() {
    let server = Server::start(Limits::default(), &Vec::new()).await;
    let request = DeltaDiscoveryRequest {
        node: Some(Node::default()),
        type_url: facts::SYNCZ.to_owned(),
        ..DeltaDiscoveryRequest::default()
    };
    let (requests, outgoing) = mpsc::channel(1);
    requests.send(request).await.unwrap();
    let responses = connect(&server).await.delta_aggregated_resources(ReceiverStream::new(outgoing)).await;
    let response = responses.unwrap().into_inner().message().await.unwrap().unwrap();
    assert_eq!(response.resources[0].name, "fact");
}

#[tokio::test]
async fn a_tool_gets_nothing_but_debug_types_and_a_refusal_says_why() {
    let server = Server::start(Limits::default(), &Vec::new()).await;
    let mut tool = Tool::open(&server).await;
    tool.ask(facts::SYNCZ, &[]).await.unwrap();
    let status = tool.ask(ResourceType::Listener.type_url(), &[]).await.unwrap_err();
    assert_eq!(status.code(), Code::InvalidArgument);
    let long = "x".repeat(2000);
    let status = Tool::open(&server).await.ask(facts::CONFIG_DUMP, &[&long]).await.unwrap_err();
    assert_eq!(status.code(), Code::InvalidArgument);
    let status = Tool::open(&server).await.ask(&format!("istio.io/debug/{long}"), &[]).await.unwrap_err();
    assert_eq!(status.code(), Code::InvalidArgument);
    for (refused, code) in [
        (Refused::Unauthenticated, Code::Unauthenticated),
        (Refused::PermissionDenied("no".to_owned()), Code::PermissionDenied),
        (Refused::Busy("later"), Code::ResourceExhausted),
    ] {
        server.refuse(refused);
        assert_eq!(Tool::open(&server).await.ask(facts::SYNCZ, &[]).await.unwrap_err().code(), code);
    }
}

#[tokio::test]
async fn tools_are_limited_in_number_rate_and_size() {
    let limits = Limits { tools_per_peer: 1, ..Limits::default() };
    let server = Server::start(limits, &Vec::new()).await;
    let mut one = Tool::open(&server).await;
    one.ask(facts::SYNCZ, &[]).await.unwrap();
    let busy = Tool::open(&server).await.ask(facts::SYNCZ, &[]).await.unwrap_err();
    assert_eq!(busy.code(), Code::ResourceExhausted);

    let limits = Limits { questions_per_second: 1, question_burst: 2, ..Limits::default() };
    let server = Server::start(limits, &Vec::new()).await;
    let mut tool = Tool::open(&server).await;
    let mut last = Ok(DiscoveryResponse::default());
    for _ in 0..20 {
        last = tool.ask(facts::SYNCZ, &[]).await;
        if last.is_err() {
            break;
        }
    }
    assert_eq!(last.unwrap_err().code(), Code::ResourceExhausted);

    let server = Server::start(Limits { answer_bytes: 10, ..Limits::default() }, &Vec::new()).await;
    let long = Tool::open(&server).await.ask(facts::SYNCZ, &[]).await.unwrap_err();
    assert_eq!(long.code(), Code::ResourceExhausted);
}

#[tokio::test]
async fn a_stream_that_waits_for_an_answer_can_leave() {
    let server = Server::start(Limits::default(), &Vec::new()).await;
    server.hold();
    let open = async || {
        let mut tool = Tool::open(&server).await;
        let node = Node { id: "sidecar~10.0.0.1~web.shop~shop.svc.x".to_owned(), ..Node::default() };
        let type_url = ResourceType::Listener.type_url().to_owned();
        tool.send(DiscoveryRequest { node: Some(node), type_url, ..Default::default() }).await;
        let waiting = tokio::time::timeout(Duration::from_millis(50), tool.responses.message()).await;
        assert!(waiting.is_err(), "answered: {waiting:?}");
        tool
    };
    let (one, two) = (open().await, open().await);
    server.held(2).await;
    drop(one);
    server.held(1).await;
    drop(two);
    server.held(0).await;
}
