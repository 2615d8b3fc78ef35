//! A proxy's first request on the controller's TLS port, and what comes back.

use std::time::Duration;

use anyhow::{Context, Result};
use envoy_types::pb::envoy::config::core::v3::{BuildVersion, Node, node::UserAgentVersionType};
use envoy_types::pb::envoy::service::discovery::v3::DeltaDiscoveryRequest;
use envoy_types::pb::envoy::service::discovery::v3::aggregated_discovery_service_client::AggregatedDiscoveryServiceClient;
use envoy_types::pb::envoy::r#type::v3::SemanticVersion;
use tokio_stream::StreamExt as _;
use tonic::{Code, Request, Status};

use super::scene::Client;

const CLUSTERS: &str = "type.googleapis.com/envoy.config.cluster.v3.Cluster";
/// For an answer that should come.
const PATIENCE: Duration = Duration::from_secs(20);

fn node(namespace: &str, pod: &str) -> Node {
    let version = SemanticVersion { major_number: 1, minor_number: 39, patch: 1 };
    let built = BuildVersion { version: Some(version), metadata: None };
    Node {
        id: format!("sidecar~10.9.9.9~{pod}.{namespace}~{namespace}.svc.cluster.local"),
        cluster: format!("{pod}.{namespace}"),
        user_agent_name: "envoy".to_owned(),
        user_agent_version_type: Some(UserAgentVersionType::UserAgentBuildVersion(built)),
        ..Node::default()
    }
}

/// An open stream on which clusters were asked for.
pub(crate) struct Stream {
    /// Ends the stream when dropped.
    _requests: tokio::sync::mpsc::Sender<DeltaDiscoveryRequest>,
    answer: std::pin::Pin<Box<dyn Future<Output = Result<(), Status>> + Send>>,
}

impl Client {
    /// As the proxy of `pod`.
    pub(crate) async fn stream(&self, token: Option<&str>, namespace: &str, pod: &str) -> Result<Stream> {
        let (requests, outgoing) = tokio::sync::mpsc::channel(1);
        let first = DeltaDiscoveryRequest {
            node: Some(node(namespace, pod)),
            type_url: CLUSTERS.to_owned(),
            ..DeltaDiscoveryRequest::default()
        };
        requests.send(first).await.context("the first request")?;
        let mut request = Request::new(tokio_stream::wrappers::ReceiverStream::new(outgoing));
        if let Some(token) = token {
            request.metadata_mut().insert("authorization", format!("Bearer {token}").parse()?);
        }
        let mut client = AggregatedDiscoveryServiceClient::new(self.channel().await?);
        let answer = Box::pin(async move {
            let mut responses = client.delta_aggregated_resources(request).await?.into_inner();
            match responses.next().await {
                Some(response) => response.map(drop),
                None => Err(Status::unknown("the stream ended")),
            }
        });
        Ok(Stream { _requests: requests, answer })
    }

    /// What a stream gets: its first response, or the refusal's code.
    pub(crate) async fn ads(
        &self,
        token: Option<&str>,
        namespace: &str,
        pod: &str,
    ) -> Result<Result<(), Code>> {
        let mut stream = self.stream(token, namespace, pod).await?;
        let answer = tokio::time::timeout(PATIENCE, &mut stream.answer).await;
        let answer = answer.context("neither a response nor a refusal")?;
        Ok(answer.map_err(|status| status.code()))
    }
}

impl Stream {
    /// Whether something came within `time`; a refusal is an error.
    pub(crate) async fn answered(&mut self, time: Duration) -> Result<bool> {
        match tokio::time::timeout(time, &mut self.answer).await {
            Ok(answer) => answer.map(|()| true).map_err(Into::into),
            Err(_) => Ok(false),
        }
    }
}
