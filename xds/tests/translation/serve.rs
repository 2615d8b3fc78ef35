//! ADS (state of the world) and SDS over one tonic server on a free port.

use std::collections::{BTreeMap, BTreeSet};
use std::net::SocketAddr;
use std::pin::Pin;
use std::sync::{Arc, Mutex};

use envoy_types::pb::envoy::config::core::v3::{DataSource, data_source::Specifier};
use envoy_types::pb::envoy::extensions::transport_sockets::tls::v3::{
    CertificateValidationContext, Secret, TlsCertificate, secret::Type,
};
use envoy_types::pb::envoy::service::discovery::v3::aggregated_discovery_service_server::{
    AggregatedDiscoveryService, AggregatedDiscoveryServiceServer,
};
use envoy_types::pb::envoy::service::discovery::v3::{
    DeltaDiscoveryRequest, DeltaDiscoveryResponse, DiscoveryRequest, DiscoveryResponse,
};
use envoy_types::pb::envoy::service::secret::v3::secret_discovery_service_server::{
    SecretDiscoveryService, SecretDiscoveryServiceServer,
};
use envoy_types::pb::google::protobuf::Any;
use prost::{Message, Name};
use tokio::sync::{mpsc, watch};
use tokio_stream::wrappers::ReceiverStream;
use tonic::{Request, Response, Status, Streaming};
use xds::{Resource, ResourceType};

use super::pki::Identity;

pub(crate) type Resources = Vec<(ResourceType, Resource)>;
type Out<T> = Pin<Box<dyn tokio_stream::Stream<Item = Result<T, Status>> + Send>>;

#[derive(Default)]
struct State {
    /// By type: the version last acknowledged.
    acked: BTreeMap<ResourceType, u64>,
    subscribed: BTreeMap<ResourceType, BTreeSet<String>>,
    nacks: Vec<String>,
}

#[derive(Clone)]
pub(crate) struct Server {
    pub(crate) address: SocketAddr,
    current: watch::Sender<Arc<(u64, Resources)>>,
    state: Arc<Mutex<State>>,
    secrets: Arc<Vec<Secret>>,
}

impl Server {
    pub(crate) async fn start(identity: &Identity, roots: &str) -> Self {
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let text = |t: &str| {
            Some(DataSource { specifier: Some(Specifier::InlineString(t.into())), ..Default::default() })
        };
        let certificate = TlsCertificate {
            certificate_chain: text(&identity.cert),
            private_key: text(&identity.key),
            ..Default::default()
        };
        let context = CertificateValidationContext { trusted_ca: text(roots), ..Default::default() };
        let secrets = vec![
            Secret { name: "default".into(), r#type: Some(Type::TlsCertificate(certificate)) },
            Secret { name: "ROOTCA".into(), r#type: Some(Type::ValidationContext(context)) },
        ];
        let server = Self {
            address,
            current: watch::channel(Arc::new((0, Vec::new()))).0,
            state: Arc::default(),
            secrets: Arc::new(secrets),
        };
        let router = tonic::transport::Server::builder()
            .add_service(AggregatedDiscoveryServiceServer::new(server.clone()))
            .add_service(SecretDiscoveryServiceServer::new(server.clone()));
        tokio::spawn(router.serve_with_incoming(tokio_stream::wrappers::TcpListenerStream::new(listener)));
        server
    }

    /// Replaces everything and waits until Envoy has acknowledged it. `Err` holds what it refused.
    pub(crate) async fn publish(&self, resources: Resources) -> Result<(), Vec<String>> {
        let version = self.current.borrow().0 + 1;
        self.state.lock().unwrap().nacks.clear();
        self.current.send_replace(Arc::new((version, resources)));
        let wanted = |state: &State| {
            let types = [ResourceType::Cluster, ResourceType::Listener];
            types.iter().all(|t| state.subscribed.contains_key(t))
                && state.subscribed.keys().all(|t| state.acked.get(t) >= Some(&version))
        };
        for _ in 0..1000 {
            {
                let state = self.state.lock().unwrap();
                if !state.nacks.is_empty() {
                    return Err(state.nacks.clone());
                }
                if wanted(&state) {
                    return Ok(());
                }
            }
            tokio::time::sleep(std::time::Duration::from_millis(10)).await;
        }
        let state = self.state.lock().unwrap();
        panic!("not acknowledged: acked {:?}, subscribed {:?}", state.acked, state.subscribed);
    }

    fn response(&self, kind: ResourceType) -> DiscoveryResponse {
        let current = self.current.borrow().clone();
        let names = self.state.lock().unwrap().subscribed.get(&kind).cloned().unwrap_or_default();
        let wanted =
            |r: &&(ResourceType, Resource)| r.0 == kind && (kind.wildcard() || names.contains(&*r.1.name));
        DiscoveryResponse {
            version_info: current.0.to_string(),
            resources: current.1.iter().filter(wanted).map(|r| Any::decode(&*r.1.any).unwrap()).collect(),
            type_url: kind.type_url().into(),
            nonce: current.0.to_string(),
            ..Default::default()
        }
    }

    /// What to answer; `None` for an acknowledgement.
    fn request(&self, request: DiscoveryRequest) -> Option<DiscoveryResponse> {
        let kind = ResourceType::from_type_url(&request.type_url)?;
        let mut state = self.state.lock().unwrap();
        let names: BTreeSet<String> = request.resource_names.into_iter().collect();
        let changed = state.subscribed.insert(kind, names.clone()) != Some(names);
        if let Some(error) = request.error_detail {
            state.nacks.push(format!("{}: {}", kind.short(), error.message));
            return None;
        }
        if let Ok(version) = request.response_nonce.parse() {
            state.acked.insert(kind, version);
        }
        drop(state);
        (changed || request.response_nonce.is_empty()).then(|| self.response(kind))
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
        let (sender, receiver) = mpsc::channel(64);
        let server = self.clone();
        let mut requests = request.into_inner();
        let mut changes = self.current.subscribe();
        tokio::spawn(async move {
            loop {
                tokio::select! {
                    request = requests.message() => {
                        let Ok(Some(request)) = request else { return };
                        if let Some(response) = server.request(request) {
                            let _ = sender.send(Ok(response)).await;
                        }
                    }
                    _ = changes.changed() => {
                        let subscribed: Vec<_> = server.state.lock().unwrap().subscribed.keys().copied().collect();
                        for kind in subscribed {
                            let _ = sender.send(Ok(server.response(kind))).await;
                        }
                    }
                }
            }
        });
        Ok(Response::new(Box::pin(ReceiverStream::new(receiver))))
    }

    async fn delta_aggregated_resources(
        &self,
        _: Request<Streaming<DeltaDiscoveryRequest>>,
    ) -> Result<Response<Self::DeltaAggregatedResourcesStream>, Status> {
        Err(Status::unimplemented("sotw only"))
    }
}

#[tonic::async_trait]
impl SecretDiscoveryService for Server {
    type DeltaSecretsStream = Out<DeltaDiscoveryResponse>;
    type StreamSecretsStream = Out<DiscoveryResponse>;

    async fn stream_secrets(
        &self,
        request: Request<Streaming<DiscoveryRequest>>,
    ) -> Result<Response<Self::StreamSecretsStream>, Status> {
        let (sender, receiver) = mpsc::channel(8);
        let secrets = self.secrets.clone();
        let mut requests = request.into_inner();
        tokio::spawn(async move {
            while let Ok(Some(request)) = requests.message().await {
                if !request.response_nonce.is_empty() {
                    continue;
                }
                let wanted = secrets.iter().filter(|s| request.resource_names.contains(&s.name));
                let any = |s: &Secret| Any { type_url: Secret::type_url(), value: s.encode_to_vec() };
                let response = DiscoveryResponse {
                    version_info: "1".into(),
                    nonce: "1".into(),
                    type_url: Secret::type_url(),
                    resources: wanted.map(any).collect(),
                    ..Default::default()
                };
                let _ = sender.send(Ok(response)).await;
            }
        });
        Ok(Response::new(Box::pin(ReceiverStream::new(receiver))))
    }

    async fn delta_secrets(
        &self,
        _: Request<Streaming<DeltaDiscoveryRequest>>,
    ) -> Result<Response<Self::DeltaSecretsStream>, Status> {
        Err(Status::unimplemented("sotw only"))
    }

    async fn fetch_secrets(
        &self,
        _: Request<DiscoveryRequest>,
    ) -> Result<Response<DiscoveryResponse>, Status> {
        Err(Status::unimplemented("streams only"))
    }
}
