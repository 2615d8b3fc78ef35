//! HTTP GET to a port of a pod, through the API server. One connection per question.

use std::time::Duration;

use anyhow::{Context, Result};
use k8s_openapi::api::core::v1::Pod;
use kube::api::Api;

use super::{Cluster, DEADLINE};
use crate::monitoring::ask;

/// For the node's words after it has closed the stream.
const LATE: Duration = Duration::from_secs(1);

/// Status and body.
///
/// # Errors
/// If the pod cannot be reached, or does not answer in time.
pub(crate) async fn get(
    cluster: &Cluster,
    pod: &str,
    port: u16,
    path: &str,
) -> Result<(http::StatusCode, String)> {
    let question = async {
        let pods: Api<Pod> = Api::namespaced(cluster.client.clone(), &cluster.namespace);
        let mut forwarder = pods.portforward(pod, &[port]).await.context("port-forward")?;
        let failed = forwarder.take_error(port);
        let stream = forwarder.take_stream(port).context("port-forward gave no stream")?;
        let answered = ask(stream, format!("localhost:{port}"), path);
        let answer = match (answered.await, failed) {
            (Err(error), Some(failed)) => match tokio::time::timeout(LATE, failed).await {
                // The node knows better why.
                Ok(Some(why)) => Err(anyhow::Error::msg(why).context("port-forward")),
                _ => Err(error),
            },
            (answer, _) => answer,
        };
        forwarder.abort();
        answer
    };
    tokio::time::timeout(DEADLINE, question).await.context("no answer in time").flatten()
}
