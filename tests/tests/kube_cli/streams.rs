//! Who may open a stream on the TLS port, and who waits: with tokens and pods of a real API server.

use std::time::Duration;

use anyhow::{Context, Result, ensure};
use authn::OwnSvid;
use envoy_types::pb::envoy::config::core::v3::Node;
use envoy_types::pb::envoy::service::discovery::v3::aggregated_discovery_service_client::AggregatedDiscoveryServiceClient;
use envoy_types::pb::envoy::service::discovery::v3::{DiscoveryRequest, DiscoveryResponse};
use tests::here;
use tests::lab::kube::{self, Claims, Kube};
use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;
use tonic::{Code, Request, Status, Streaming};
use xds::ResourceType;

use super::plane::{Plane, plane};

/// What a caller shows.
#[derive(Clone, Copy)]
enum Shows<'a> {
    Nothing,
    Token(&'a str),
    /// A certificate of this service account.
    Certificate(&'a str, &'a str),
}

/// A stream on which listeners were asked for.
struct Stream {
    _requests: mpsc::Sender<DiscoveryRequest>,
    responses: Streaming<DiscoveryResponse>,
}

impl Stream {
    /// As the proxy of pod `name`.
    async fn open(
        plane: &Plane,
        shows: Shows<'_>,
        namespace: &str,
        name: &str,
    ) -> Result<Result<Self, Status>> {
        let own = match shows {
            Shows::Certificate(namespace, account) => plane.certificate(namespace, account)?.own(),
            Shows::Nothing | Shows::Token(_) => OwnSvid::empty(),
        };
        let config = authn::client_config(&plane.roots, plane.id.clone(), own)?;
        let channel = authn::connect(&plane.address.to_string(), config, None).await?;
        let (requests, outgoing) = mpsc::channel(4);
        let id = format!("sidecar~10.1.0.1~{name}.{namespace}~{namespace}.svc.cluster.local");
        let type_url = ResourceType::Listener.type_url().to_owned();
        let node = Some(Node { id, ..Node::default() });
        requests.send(DiscoveryRequest { node, type_url, ..Default::default() }).await?;
        let mut request = Request::new(ReceiverStream::new(outgoing));
        if let Shows::Token(token) = shows {
            request.metadata_mut().insert("authorization", format!("Bearer {token}").parse()?);
        }
        let answer =
            AggregatedDiscoveryServiceClient::new(channel).stream_aggregated_resources(request).await;
        Ok(answer.map(|answer| Self { _requests: requests, responses: answer.into_inner() }))
    }

    async fn next(&mut self) -> Result<Result<DiscoveryResponse, Status>> {
        let next = tokio::time::timeout(Duration::from_secs(20), self.responses.message()).await;
        match next.context("no answer")? {
            Ok(response) => Ok(Ok(response.context("the stream ended in peace")?)),
            Err(status) => Ok(Err(status)),
        }
    }
}

/// How it ends: the code, or `Ok` if it is served.
async fn asked(plane: &Plane, shows: Shows<'_>, namespace: &str, name: &str) -> Result<Code> {
    let answer = match Stream::open(plane, shows, namespace, name).await? {
        Ok(mut stream) => stream.next().await?,
        Err(status) => Err(status),
    };
    Ok(answer.map_or_else(|status| status.code(), |_| Code::Ok))
}

async fn pod(kube: &Kube, namespace: &str, name: &str) -> Result<String> {
    kube.pod(namespace, name, "web", &[("app", "web")], "10.1.0.1", &[8080]).await
}

async fn token(kube: &Kube, namespace: &str, name: &str, uid: &str) -> Result<String> {
    kube.token(namespace, "web", "istio-ca", Some((name, uid)), 3600).await
}

#[test]
fn only_its_own_pod_is_served() {
    kube::shared(here!(), async |kube| {
        let (a, b) = (kube.fresh_namespace("a").await?, kube.fresh_namespace("b").await?);
        let (uid, other) = (pod(kube, &a, "web-1").await?, pod(kube, &b, "web-1").await?);
        pod(kube, &a, "web-2").await?;
        let plane = plane(kube).await?;
        let good = token(kube, &a, "web-1", &uid).await?;
        let foreign = token(kube, &b, "web-1", &other).await?;
        let unbound = kube.token(&a, "web", "istio-ca", None, 3600).await?;
        let audience = kube.token(&a, "web", "elsewhere", Some(("web-1", &uid)), 3600).await?;
        let account = kube.service_account(&a, "web").await?;
        let claims = Claims {
            namespace: &a,
            account: "web",
            uid: &account,
            audience: "istio-ca",
            pod: Some(("web-1", &uid)),
            expires: -60,
        };
        let expired = kube.mint_token(&claims)?;
        let wrong_uid = kube.mint_token(&Claims { pod: Some(("web-1", &other)), expires: 600, ..claims })?;
        for (what, shows, code) in [
            ("its own token", Shows::Token(&good), Code::Ok),
            ("its own certificate", Shows::Certificate(&a, "web"), Code::Ok),
            ("nothing", Shows::Nothing, Code::Unauthenticated),
            ("a token of namespace b", Shows::Token(&foreign), Code::PermissionDenied),
            ("a certificate of namespace b", Shows::Certificate(&b, "web"), Code::PermissionDenied),
            ("another account's certificate", Shows::Certificate(&a, "other"), Code::PermissionDenied),
            ("a token of no pod", Shows::Token(&unbound), Code::PermissionDenied),
            ("a token for another audience", Shows::Token(&audience), Code::Unauthenticated),
            ("an expired token", Shows::Token(&expired), Code::Unauthenticated),
            ("a token of another pod's UID", Shows::Token(&wrong_uid), Code::Unauthenticated),
            ("no token at all", Shows::Token("x"), Code::Unauthenticated),
        ] {
            assert_eq!(asked(&plane, shows, &a, "web-1").await?, code, "{what}");
        }
        assert_eq!(asked(&plane, Shows::Token(&good), &a, "web-2").await?, Code::PermissionDenied, "web-2");
        assert_eq!(asked(&plane, Shows::Token(&good), &b, "web-1").await?, Code::PermissionDenied, "b");
        Ok(())
    });
}

#[test]
fn a_stream_waits_for_its_pod_and_ends_with_it() {
    kube::shared(here!(), async |kube| {
        let ns = kube.fresh_namespace("hold").await?;
        let plane = plane(kube).await?;
        let opened = Stream::open(&plane, Shows::Certificate(&ns, "web"), &ns, "web-1").await?;
        let mut waiting = opened.map_err(|status| anyhow::anyhow!("{status}"))?;
        let early = tokio::time::timeout(Duration::from_millis(300), waiting.responses.message()).await;
        ensure!(early.is_err(), "answered before its pod is there: {early:?}");
        let uid = pod(kube, &ns, "web-1").await?;
        let served = waiting.next().await?.map_err(|status| anyhow::anyhow!("{status}"))?;
        ensure!(!served.resources.is_empty(), "it has listeners");
        // With a token, too; and its stream ends with the pod, whose token is worth nothing afterwards.
        let own = token(kube, &ns, "web-1", &uid).await?;
        let opened = Stream::open(&plane, Shows::Token(&own), &ns, "web-1").await?;
        let mut by_token = opened.map_err(|status| anyhow::anyhow!("{status}"))?;
        ensure!(by_token.next().await?.is_ok());
        kube.delete_pod(&ns, "web-1").await?;
        for stream in [&mut waiting, &mut by_token] {
            let ended = stream.next().await?.expect_err("the pod is gone");
            assert_eq!(ended.code(), Code::Unavailable, "{ended}");
        }
        let again = pod(kube, &ns, "web-1").await?;
        ensure!(again != uid);
        let code = asked(&plane, Shows::Token(&own), &ns, "web-1").await?;
        ensure!(
            [Code::PermissionDenied, Code::Unauthenticated].contains(&code),
            "the dead pod's token: {code:?}"
        );
        let new = token(kube, &ns, "web-1", &again).await?;
        assert_eq!(asked(&plane, Shows::Token(&new), &ns, "web-1").await?, Code::Ok);
        Ok(())
    });
}
