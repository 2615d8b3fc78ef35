//! Serves one Envoy what it is to have (ADS, state of the world), and hears what it thinks of it.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::pin::Pin;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use envoy_types::pb::envoy::service::discovery::v3::aggregated_discovery_service_server::{
    AggregatedDiscoveryService, AggregatedDiscoveryServiceServer,
};
use envoy_types::pb::envoy::service::discovery::v3::{
    DeltaDiscoveryRequest, DeltaDiscoveryResponse, DiscoveryRequest, DiscoveryResponse,
};
use envoy_types::pb::google::protobuf::Any;
use tokio::sync::{mpsc, watch};
use tokio_stream::wrappers::ReceiverStream;
use tonic::{Request, Response, Status, Streaming};
use xds::ResourceType;

type Out<T> = Pin<Box<dyn tokio_stream::Stream<Item = Result<T, Status>> + Send>>;

/// Everything there is, by type and name.
pub(crate) type World = BTreeMap<ResourceType, BTreeMap<String, Any>>;

#[derive(Default)]
struct Heard {
    /// By type: the version last answered, and whether it was taken.
    answered: BTreeMap<ResourceType, u64>,
    refusals: Vec<String>,
}

#[derive(Clone)]
pub(crate) struct Server {
    pub(crate) address: SocketAddr,
    world: watch::Sender<Arc<(u64, World)>>,
    heard: Arc<Mutex<Heard>>,
}

impl Server {
    pub(crate) async fn start() -> Self {
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let world = watch::channel(Arc::default()).0;
        let server = Self { address, world, heard: Arc::default() };
        let service = AggregatedDiscoveryServiceServer::new(server.clone());
        let router = tonic::transport::Server::builder().add_service(service);
        tokio::spawn(router.serve_with_incoming(tokio_stream::wrappers::TcpListenerStream::new(listener)));
        server
    }

    /// What Envoy refused of the last load, as far as it has answered.
    pub(crate) fn refused(&self) -> Vec<String> {
        self.heard.lock().unwrap().refusals.clone()
    }

    /// Replaces everything and waits until Envoy has answered; extension configs may come later.
    pub(crate) async fn publish(&self, world: World) {
        let version = self.world.borrow().0 + 1;
        self.heard.lock().unwrap().refusals.clear();
        self.world.send_replace(Arc::new((version, world)));
        for _ in 0..6000 {
            {
                let heard = self.heard.lock().unwrap();
                let done = |kind| heard.answered.get(&kind) >= Some(&version);
                if done(ResourceType::Cluster) && done(ResourceType::Listener) {
                    return;
                }
            }
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
        panic!("Envoy does not answer");
    }
}

/// One subscription of a stream.
#[derive(Default)]
struct Subscription {
    names: Vec<String>,
    sent: Option<u64>,
}

async fn serve(
    server: Server,
    mut requests: Streaming<DiscoveryRequest>,
    out: mpsc::Sender<Result<DiscoveryResponse, Status>>,
) {
    let mut world = server.world.subscribe();
    let mut subscriptions: BTreeMap<ResourceType, Subscription> = BTreeMap::new();
    loop {
        tokio::select! {
            request = requests.message() => {
                let Ok(Some(request)) = request else { return };
                let Some(kind) = ResourceType::from_type_url(&request.type_url) else { continue };
                let subscription = subscriptions.entry(kind).or_default();
                if let Ok(nonce) = request.response_nonce.parse() {
                    let mut heard = server.heard.lock().unwrap();
                    heard.answered.insert(kind, nonce);
                    heard.refusals.extend(request.error_detail.map(|status| status.message));
                }
                if subscription.names != request.resource_names {
                    subscription.names = request.resource_names;
                    subscription.sent = None;
                }
            }
            changed = world.changed() => if changed.is_err() { return },
        }
        let current = world.borrow_and_update().clone();
        let (version, world) = &*current;
        // Clusters before listeners, as ever.
        for (kind, subscription) in &mut subscriptions {
            if *version == 0 || subscription.sent == Some(*version) {
                continue;
            }
            subscription.sent = Some(*version);
            let all = world.get(kind).into_iter().flatten();
            let wanted = all.filter(|(name, _)| kind.wildcard() || subscription.names.contains(name));
            let response = DiscoveryResponse {
                version_info: version.to_string(),
                resources: wanted.map(|(_, any)| any.clone()).collect(),
                type_url: kind.type_url().into(),
                nonce: version.to_string(),
                ..Default::default()
            };
            if out.send(Ok(response)).await.is_err() {
                return;
            }
        }
    }
}

#[tonic::async_trait]
impl AggregatedDiscoveryService for Server {
    type StreamAggregatedResourcesStream = Out<DiscoveryResponse>;
    type DeltaAggregatedResourcesStream = Out<DeltaDiscoveryResponse>;

    async fn stream_aggregated_resources(
        &self,
        request: Request<Streaming<DiscoveryRequest>>,
    ) -> Result<Response<Self::StreamAggregatedResourcesStream>, Status> {
        let (sender, receiver) = mpsc::channel(16);
        tokio::spawn(serve(self.clone(), request.into_inner(), sender));
        Ok(Response::new(Box::pin(ReceiverStream::new(receiver))))
    }

    async fn delta_aggregated_resources(
        &self,
        _: Request<Streaming<DeltaDiscoveryRequest>>,
    ) -> Result<Response<Self::DeltaAggregatedResourcesStream>, Status> {
        Err(Status::unimplemented("state of the world only"))
    }
}
