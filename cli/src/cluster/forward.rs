//! HTTP GET to a port of a pod, through the API server. One connection per question.

use std::time::Duration;

use anyhow::{Context, Result};
use http_body_util::{BodyExt, Empty, Limited};
use hyper_util::rt::TokioIo;
use k8s_openapi::api::core::v1::Pod;
use kube::api::Api;

use super::{Cluster, DEADLINE};

/// For the node's words after it has closed the stream.
const LATE: Duration = Duration::from_secs(1);
/// Bytes of an answer.
const LARGEST: usize = 256 << 20;

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
        let answered = async {
            let (mut sender, connection) =
                hyper::client::conn::http1::handshake(TokioIo::new(stream)).await?;
            let connection = tokio::spawn(connection);
            let request = http::Request::get(path)
                .header(http::header::HOST, format!("localhost:{port}"))
                .body(Empty::<hyper::body::Bytes>::new())?;
            let answer = sender.send_request(request).await?;
            let status = answer.status();
            let body = Limited::new(answer.into_body(), LARGEST).collect().await;
            connection.abort();
            let body = body.map_err(|error| anyhow::anyhow!(error))?.to_bytes();
            Ok::<_, anyhow::Error>((status, String::from_utf8_lossy(&body).into_owned()))
        };
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
