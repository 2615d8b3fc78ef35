//! The three methods of SDS over the present secrets.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use envoy_types::pb::envoy::service::discovery::v3::{
    DeltaDiscoveryRequest, DeltaDiscoveryResponse, DiscoveryRequest, DiscoveryResponse, Resource,
};
use envoy_types::pb::envoy::service::secret::v3::secret_discovery_service_server::SecretDiscoveryService;
use envoy_types::pb::google::protobuf::Any;
use tokio::sync::{mpsc, watch};
use tokio_stream::wrappers::ReceiverStream;
use tokio_util::sync::CancellationToken;
use tonic::{Request, Response, Status, Streaming};

use super::files;
use super::secrets::{BUNDLE, CERTIFICATE, Secrets, TYPE_URL};

/// How often it is looked whether files are others than they were.
const LOOK: Duration = Duration::from_secs(2);

#[derive(Debug)]
pub(super) struct Service {
    secrets: watch::Receiver<Secrets>,
    stop: CancellationToken,
}

type Outgoing<T> = ReceiverStream<Result<T, Status>>;

impl Service {
    pub(super) fn new(secrets: watch::Receiver<Secrets>, stop: CancellationToken) -> Self {
        Self { secrets, stop }
    }

    /// Runs `subscription` against `requests` until either end leaves.
    fn stream<S: Subscription>(
        &self,
        mut requests: Streaming<S::Request>,
        mut subscription: S,
    ) -> Outgoing<S::Answer> {
        let (tx, rx) = mpsc::channel(4);
        let (mut secrets, stop) = (self.secrets.clone(), self.stop.clone());
        tokio::spawn(async move {
            let mut look = tokio::time::interval(LOOK);
            look.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
            loop {
                let answer = tokio::select! {
                    () = stop.cancelled() => return,
                    () = tx.closed() => return,
                    request = requests.message() => match request {
                        Ok(Some(request)) => subscription.request(request, &secrets.borrow_and_update()),
                        Ok(None) | Err(_) => return,
                    },
                    _ = look.tick(), if subscription.has_files() => Ok(subscription.changed(&secrets.borrow())),
                    changed = secrets.changed() => match changed {
                        Ok(()) => Ok(subscription.changed(&secrets.borrow_and_update())),
                        Err(_) => return,
                    },
                };
                let answer = match answer {
                    Ok(None) => continue,
                    Ok(Some(answer)) => Ok(answer),
                    Err(status) => Err(status),
                };
                let last = answer.is_err();
                if tx.send(answer).await.is_err() || last {
                    return;
                }
            }
        });
        ReceiverStream::new(rx)
    }
}

#[tonic::async_trait]
impl SecretDiscoveryService for Service {
    type DeltaSecretsStream = Outgoing<DeltaDiscoveryResponse>;
    type StreamSecretsStream = Outgoing<DiscoveryResponse>;

    async fn delta_secrets(
        &self,
        request: Request<Streaming<DeltaDiscoveryRequest>>,
    ) -> Result<Response<Self::DeltaSecretsStream>, Status> {
        Ok(Response::new(self.stream(request.into_inner(), Delta::default())))
    }

    async fn stream_secrets(
        &self,
        request: Request<Streaming<DiscoveryRequest>>,
    ) -> Result<Response<Self::StreamSecretsStream>, Status> {
        Ok(Response::new(self.stream(request.into_inner(), Sotw::default())))
    }

    async fn fetch_secrets(
        &self,
        request: Request<DiscoveryRequest>,
    ) -> Result<Response<DiscoveryResponse>, Status> {
        let mut sotw = Sotw::default();
        let answer = sotw.request(request.into_inner(), &self.secrets.borrow())?;
        answer.map(Response::new).ok_or_else(|| Status::unavailable("there is no certificate yet"))
    }
}

/// What one stream asked for and got. Sans I/O.
pub(super) trait Subscription: Send + 'static {
    type Request: Send + 'static;
    type Answer: Send + 'static;
    fn request(&mut self, request: Self::Request, secrets: &Secrets) -> Result<Option<Self::Answer>, Status>;
    fn changed(&mut self, secrets: &Secrets) -> Option<Self::Answer>;
    /// It asked for something that only looking tells a change of.
    fn has_files(&self) -> bool;
}

fn known(name: &str) -> Result<(), Status> {
    if name == CERTIFICATE || name == BUNDLE || files::is_file(name) {
        return Ok(());
    }
    Err(Status::not_found(format!("no secret {name:?}; there are {CERTIFICATE} and {BUNDLE}")))
}

fn get(secrets: &Secrets, name: &str) -> Option<Any> {
    if files::is_file(name) { files::get(name) } else { secrets.get(name) }
}

fn refused(error: Option<&envoy_types::pb::google::rpc::Status>) {
    if let Some(error) = error {
        tracing::error!(reason = error.message, "Envoy refused a certificate");
    }
}

#[derive(Debug, Default)]
pub(super) struct Sotw {
    names: BTreeSet<String>,
    sent: Vec<Any>,
}

impl Sotw {
    /// What was asked for and is there, if it is different from what was sent.
    fn answer(&mut self, secrets: &Secrets) -> Option<DiscoveryResponse> {
        let resources: Vec<Any> = self.names.iter().filter_map(|name| get(secrets, name)).collect();
        if resources.is_empty() || resources == self.sent {
            return None;
        }
        self.sent.clone_from(&resources);
        let version = secrets.version().to_string();
        Some(DiscoveryResponse {
            version_info: version.clone(),
            resources,
            type_url: TYPE_URL.to_owned(),
            nonce: version,
            ..Default::default()
        })
    }
}

impl Subscription for Sotw {
    type Request = DiscoveryRequest;
    type Answer = DiscoveryResponse;

    fn request(
        &mut self,
        request: DiscoveryRequest,
        secrets: &Secrets,
    ) -> Result<Option<DiscoveryResponse>, Status> {
        refused(request.error_detail.as_ref());
        request.resource_names.iter().try_for_each(|name| known(name))?;
        let names: BTreeSet<String> = request.resource_names.into_iter().collect();
        if names != self.names {
            self.names = names;
            self.sent.clear();
        }
        Ok(self.answer(secrets))
    }

    fn changed(&mut self, secrets: &Secrets) -> Option<DiscoveryResponse> {
        self.answer(secrets)
    }

    fn has_files(&self) -> bool {
        self.names.iter().any(|name| files::is_file(name))
    }
}

#[derive(Debug, Default)]
struct Delta {
    sent: BTreeMap<String, Option<Any>>,
}

impl Subscription for Delta {
    type Request = DeltaDiscoveryRequest;
    type Answer = DeltaDiscoveryResponse;

    fn request(
        &mut self,
        request: DeltaDiscoveryRequest,
        secrets: &Secrets,
    ) -> Result<Option<DeltaDiscoveryResponse>, Status> {
        refused(request.error_detail.as_ref());
        for name in request.resource_names_subscribe {
            known(&name)?;
            self.sent.insert(name, None);
        }
        for name in request.resource_names_unsubscribe {
            self.sent.remove(&name);
        }
        Ok(self.changed(secrets))
    }

    fn has_files(&self) -> bool {
        self.sent.keys().any(|name| files::is_file(name))
    }

    fn changed(&mut self, secrets: &Secrets) -> Option<DeltaDiscoveryResponse> {
        let version = secrets.version().to_string();
        let mut resources = Vec::new();
        for (name, sent) in &mut self.sent {
            let current = get(secrets, name);
            if current.is_some() && current != *sent {
                sent.clone_from(&current);
                resources.push(Resource {
                    name: name.clone(),
                    version: version.clone(),
                    resource: current,
                    ..Default::default()
                });
            }
        }
        (!resources.is_empty()).then(|| DeltaDiscoveryResponse {
            system_version_info: version.clone(),
            resources,
            type_url: TYPE_URL.to_owned(),
            nonce: version,
            ..Default::default()
        })
    }
}
