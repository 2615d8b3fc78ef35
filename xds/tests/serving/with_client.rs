//! The server as a gRPC client sees it: what travels, who is refused and how, what is limited.

use std::time::Duration;

use envoy_types::pb::envoy::config::core::v3::Node;
use envoy_types::pb::envoy::service::discovery::v3::aggregated_discovery_service_client::AggregatedDiscoveryServiceClient;
use envoy_types::pb::envoy::service::discovery::v3::{
    DeltaDiscoveryRequest, DeltaDiscoveryResponse, DiscoveryRequest, DiscoveryResponse,
};
use envoy_types::pb::google::rpc;
use prost::Message;
use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;
use tonic::transport::Channel;
use tonic::{Code, Status, Streaming};
use xds::ads::Event;
use xds::ads::server::{Limits, Refused};
use xds::{Resource, ResourceType};

use super::server::{Resources, Server};

fn resource(kind: ResourceType, name: &str, content: &str) -> (ResourceType, Resource) {
    let any = envoy_types::pb::google::protobuf::Any {
        type_url: kind.type_url().to_owned(),
        value: content.as_bytes().to_vec(),
    };
    (kind, Resource::new(name, any.encode_to_vec().into()))
}

fn listeners(named: &[(&str, &str)]) -> Resources {
    named.iter().map(|(name, content)| resource(ResourceType::Listener, name, content)).collect()
}

fn node() -> Node {
    Node { id: "sidecar~10.0.0.1~web.shop~shop.svc.cluster.local".to_owned(), ..Node::default() }
}

fn first() -> DeltaDiscoveryRequest {
    let type_url = ResourceType::Listener.type_url().to_owned();
    DeltaDiscoveryRequest { node: Some(node()), type_url, ..Default::default() }
}

async fn connect(server: &Server) -> AggregatedDiscoveryServiceClient<Channel> {
    let channel =
        Channel::from_shared(format!("http://{}", server.address)).unwrap().connect().await.unwrap();
    AggregatedDiscoveryServiceClient::new(channel)
}

struct Delta {
    requests: mpsc::Sender<DeltaDiscoveryRequest>,
    responses: Streaming<DeltaDiscoveryResponse>,
}

impl Delta {
    async fn open(client: &mut AggregatedDiscoveryServiceClient<Channel>) -> Result<Self, Status> {
        let (requests, outgoing) = mpsc::channel(8);
        let responses = client.delta_aggregated_resources(ReceiverStream::new(outgoing)).await?.into_inner();
        Ok(Self { requests, responses })
    }

    async fn send(&self, request: DeltaDiscoveryRequest) {
        self.requests.send(request).await.unwrap();
    }

    async fn next(&mut self) -> Result<DeltaDiscoveryResponse, Status> {
        let next = tokio::time::timeout(Duration::from_secs(20), self.responses.message()).await;
        next.expect("an answer").map(|message| message.expect("the stream goes on"))
    }

    /// How the stream ends.
    async fn end(&mut self) -> Status {
        loop {
            if let Err(status) = self.next().await {
                return status;
            }
        }
    }

    async fn answer(&self, response: &DeltaDiscoveryResponse, error: Option<&str>) {
        let error_detail = error.map(|e| rpc::Status { message: e.to_owned(), ..Default::default() });
        self.send(DeltaDiscoveryRequest {
            type_url: response.type_url.clone(),
            response_nonce: response.nonce.clone(),
            error_detail,
            ..Default::default()
        })
        .await;
    }
}

fn contents(response: &DeltaDiscoveryResponse) -> Vec<(&str, &[u8])> {
    response
        .resources
        .iter()
        .map(|r| (r.name.as_str(), &*r.resource.as_ref().expect("a resource").value))
        .collect()
}

#[tokio::test]
async fn delta_resources_updates_refusals_and_coming_back() {
    let mut server = Server::start(Limits::default(), &listeners(&[("a", "1"), ("b", "1")])).await;
    let mut client = connect(&server).await;
    let mut stream = Delta::open(&mut client).await.unwrap();
    stream.send(first()).await;
    let response = stream.next().await.unwrap();
    assert_eq!(contents(&response), [("a", &b"1"[..]), ("b", b"1")]);
    assert_eq!(response.type_url, ResourceType::Listener.type_url());
    assert_eq!(response.control_plane.as_ref().unwrap().identifier, "test");
    stream.answer(&response, None).await;
    server.acked(ResourceType::Listener, 1).await;
    assert_eq!((&*server.proxy().id.name, &*server.proxy().id.namespace), ("web", "shop"));

    server.publish(&listeners(&[("a", "2")]));
    let update = stream.next().await.unwrap();
    assert_eq!(
        (contents(&update), update.removed_resources.clone()),
        (vec![("a", &b"2"[..])], vec!["b".to_owned()])
    );
    stream.answer(&update, Some("no good")).await;
    let rejected = |event: &Event| match event {
        Event::Rejected { message, .. } => Some(message.clone()),
        _ => None,
    };
    assert_eq!(server.journal.next(rejected).await, "no good");
    drop(stream);

    let mut stream = Delta::open(&mut client).await.unwrap();
    let versions = |response: &DeltaDiscoveryResponse| {
        response.resources.iter().map(|r| (r.name.clone(), r.version.clone())).collect()
    };
    stream.send(DeltaDiscoveryRequest { initial_resource_versions: versions(&response), ..first() }).await;
    let again = stream.next().await.unwrap();
    assert_eq!(contents(&again), [("a", &b"2"[..])], "only what differs");
}

#[tokio::test]
async fn sotw_sends_the_world() {
    let mut server = Server::start(Limits::default(), &listeners(&[("a", "1"), ("b", "1")])).await;
    let mut client = connect(&server).await;
    let (requests, outgoing) = mpsc::channel(8);
    let type_url = ResourceType::Listener.type_url().to_owned();
    let ask = DiscoveryRequest { node: Some(node()), type_url, ..Default::default() };
    requests.send(ask.clone()).await.unwrap();
    let mut responses =
        client.stream_aggregated_resources(ReceiverStream::new(outgoing)).await.unwrap().into_inner();
    let values = |r: &DiscoveryResponse| r.resources.iter().map(|any| any.value.clone()).collect::<Vec<_>>();
    let first = responses.message().await.unwrap().unwrap();
    assert_eq!(values(&first), [b"1".to_vec(), b"1".to_vec()]);
    let ack =
        DiscoveryRequest { node: None, version_info: first.version_info, response_nonce: first.nonce, ..ask };
    requests.send(ack).await.unwrap();
    server.acked(ResourceType::Listener, 1).await;
    assert!(!server.proxy().delta);
    server.publish(&listeners(&[("a", "2"), ("b", "1")]));
    let second = responses.message().await.unwrap().unwrap();
    assert_eq!(values(&second), [b"2".to_vec(), b"1".to_vec()]);
}

#[tokio::test]
async fn refusals_have_their_codes() {
    let server = Server::start(Limits::default(), &Vec::new()).await;
    let mut client = connect(&server).await;
    let cases = [
        (Refused::Unauthenticated, Code::Unauthenticated),
        (Refused::PermissionDenied("not yours".to_owned()), Code::PermissionDenied),
        (Refused::NotReady("lists".to_owned()), Code::Unavailable),
        (Refused::Invalid("what".to_owned()), Code::InvalidArgument),
    ];
    for (refused, code) in cases {
        server.refuse(refused.clone());
        let mut stream = Delta::open(&mut client).await.unwrap();
        stream.send(first()).await;
        assert_eq!(stream.end().await.code(), code, "{refused:?}");
    }
}

#[tokio::test]
async fn the_first_message_says_who_it_is() {
    let server = Server::start(Limits::default(), &Vec::new()).await;
    let mut client = connect(&server).await;
    let other = |id: &str| Some(Node { id: id.to_owned(), ..Node::default() });
    for node in [None, other("me"), other("ztunnel~10.0.0.1~a.b~c")] {
        let mut stream = Delta::open(&mut client).await.unwrap();
        stream.send(DeltaDiscoveryRequest { node, ..first() }).await;
        assert_eq!(stream.end().await.code(), Code::InvalidArgument);
    }
}

#[tokio::test]
async fn silence_floods_and_size_end_a_stream() {
    let limits = Limits {
        first_message: Duration::from_millis(50),
        message_bytes: 10_000,
        requests_per_second: 1,
        request_burst: 3,
        ..Limits::default()
    };
    let server = Server::start(limits, &Vec::new()).await;
    let mut client = connect(&server).await;
    let mut silent = Delta::open(&mut client).await.unwrap();
    assert_eq!(silent.end().await.code(), Code::DeadlineExceeded);

    let mut long = Delta::open(&mut client).await.unwrap();
    long.send(DeltaDiscoveryRequest { resource_names_subscribe: vec!["x".repeat(20_000)], ..first() }).await;
    assert_eq!(long.end().await.code(), Code::OutOfRange);

    let mut flood = Delta::open(&mut client).await.unwrap();
    for _ in 0..5 {
        flood.send(first()).await;
    }
    assert_eq!(flood.end().await.code(), Code::ResourceExhausted);
}

#[tokio::test]
async fn streams_are_counted_and_given_back() {
    let limits = Limits { streams: 3, streams_per_peer: 2, ..Limits::default() };
    let server = Server::start(limits, &listeners(&[("a", "1")])).await;
    let mut client = connect(&server).await;
    let mut open = Vec::new();
    for _ in 0..2 {
        let mut stream = Delta::open(&mut client).await.unwrap();
        stream.send(first()).await;
        stream.next().await.unwrap();
        open.push(stream);
    }
    let mut third = Delta::open(&mut client).await.unwrap();
    assert_eq!(third.end().await.code(), Code::ResourceExhausted);
    open.pop();
    // The server learns of it when it learns of it.
    for _ in 0..1000 {
        let mut stream = Delta::open(&mut client).await.unwrap();
        stream.send(first()).await;
        if stream.next().await.is_ok() {
            return;
        }
    }
    panic!("the place is not given back");
}

#[tokio::test]
async fn a_stream_ends_when_there_is_nothing_to_follow() {
    let server = Server::start(Limits::default(), &listeners(&[("a", "1")])).await;
    let mut client = connect(&server).await;
    let mut stream = Delta::open(&mut client).await.unwrap();
    stream.send(first()).await;
    stream.next().await.unwrap();
    server.end();
    assert_eq!(stream.end().await.code(), Code::Unavailable);
}
