//! What the agent answers by HTTP: whether the workload is ready, numbers (its own, Envoy's and the application's on one
//! page), and the kubelet's questions to the application ([`ask`]). These ports are not captured, so whoever reaches the
//! workload reaches them: nothing here changes anything, lifecycle hooks apart, whose path is a secret of the pod.

mod ask;
mod merge;

use std::collections::BTreeMap;
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::str::FromStr;
use std::sync::Arc;
use std::time::Duration;

use axum::response::{IntoResponse as _, Response};
use axum::routing::get;
use http::header::{CONTENT_TYPE, HeaderMap, USER_AGENT};
use http::{StatusCode, Uri};
use runtime::http::{Authn, Monitoring, Route};
use runtime::{Metrics, Tasks, Version};
use serde::Deserialize;
use tokio::net::TcpListener;

use crate::Error;
use crate::args::{AgentArgs, CaptureMode, Expected};
use crate::health::Health;
use crate::state::State;

/// What Prometheus understands in any case.
const TEXT: &str = "text/plain; version=0.0.4; charset=utf-8";
/// Longest question: a hook may take its time.
const ANSWER: Duration = Duration::from_secs(330);

/// The kubelet's questions, by the path under which it asks us.
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(transparent)]
pub struct Questions(BTreeMap<String, Question>);

#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "camelCase")]
struct Question {
    #[serde(flatten)]
    what: What,
    timeout_seconds: u64,
}

#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "camelCase")]
enum What {
    Http { port: u16, path: String, https: bool, headers: Vec<(String, String)> },
    Tcp { port: u16 },
    Grpc { port: u16, service: String },
}

impl FromStr for Questions {
    type Err = Expected;

    fn from_str(text: &str) -> Result<Self, Expected> {
        let questions: Self =
            serde_json::from_str(text).map_err(|_| Expected("the questions that the injection writes"))?;
        Ok(questions)
    }
}

/// Where the application's own metrics are.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct AppMetrics {
    port: u16,
    path: String,
}

impl FromStr for AppMetrics {
    type Err = Expected;

    fn from_str(text: &str) -> Result<Self, Expected> {
        let error = Expected("PORT/PATH");
        let at = text.find('/').ok_or(error.clone())?;
        let port = text[..at].parse().ok().filter(|port| *port > 0).ok_or(error)?;
        Ok(Self { port, path: text[at..].to_owned() })
    }
}

/// Listens on the addresses that are given.
///
/// # Errors
/// If one cannot be had.
pub(crate) async fn start(
    args: &AgentArgs,
    state: &State,
    health: &Arc<Health>,
    tasks: &mut Tasks,
) -> Result<(), Error> {
    if let Some(address) = args.health_addr {
        let listener = bind(address).await?;
        let server = Monitoring::of(vec![ready(health)]);
        tasks.spawn("health port", server.serve(listener, tasks.stop()));
    }
    let Some(address) = args.monitoring_addr else { return Ok(()) };
    let listener = bind(address).await?;
    let metrics = Metrics::new(Version::of("agent"));
    metrics.register(|registry| health.register(registry));
    let captured = args.capture != CaptureMode::None;
    let asker = ask::Asker::new(args.address.unwrap_or(Ipv4Addr::LOCALHOST.into()), captured);
    let asker = Arc::new(asker.map_err(|error| Error::Client(error.to_string()))?);
    let judged = health.clone();
    let mut server =
        Monitoring::new(Version::of("agent"), metrics.clone(), move || judged.ready()).route(ready(health));
    let page = merge::Page {
        metrics,
        envoy: state.admin_socket.clone(),
        app: args.app_metrics.clone(),
        asker: asker.clone(),
        health: health.clone(),
    };
    server = server.route(merged(page));
    let questions = Arc::new(args.app_probes.clone().unwrap_or_default());
    for path in ["/app-health/{container}/{probe}", "/app-lifecycle/{container}/{hook}/{secret}"] {
        server = server.route(asked(path, &questions, &asker));
    }
    server.limits.request = ANSWER;
    tasks.spawn("monitoring", server.serve(listener, tasks.stop()));
    Ok(())
}

/// Every address of a machine without IPv6 is every IPv4 address.
async fn bind(address: SocketAddr) -> Result<TcpListener, Error> {
    let listener = match TcpListener::bind(address).await {
        Err(_) if address.is_ipv6() && address.ip().is_unspecified() => {
            TcpListener::bind(SocketAddr::new(IpAddr::V4(Ipv4Addr::UNSPECIFIED), address.port())).await
        }
        other => other,
    };
    listener.map_err(|source| Error::Listen { address: address.to_string(), source })
}

fn open(path: &'static str, handler: axum::routing::MethodRouter) -> Route {
    Route { path, authn: Authn::Open, handler }
}

fn ready(health: &Arc<Health>) -> Route {
    let health = health.clone();
    let answer = move || {
        let ready = health.ready();
        async move {
            match ready {
                Ok(()) => (StatusCode::OK, "ready\n".to_owned()),
                Err(reasons) => (StatusCode::SERVICE_UNAVAILABLE, reasons.join("\n") + "\n"),
            }
        }
    };
    open("/healthz/ready", get(answer))
}

fn merged(page: merge::Page) -> Route {
    let page = Arc::new(page);
    let answer = move || {
        let page = page.clone();
        async move { ([(CONTENT_TYPE, TEXT)], page.text().await) }
    };
    open("/stats/prometheus", get(answer))
}

fn asked(path: &'static str, questions: &Arc<Questions>, asker: &Arc<ask::Asker>) -> Route {
    let (questions, asker) = (questions.clone(), asker.clone());
    let answer = move |uri: Uri, headers: HeaderMap| {
        let (questions, asker) = (questions.clone(), asker.clone());
        async move { pass_on(&questions, &asker, &uri, &headers).await }
    };
    open(path, get(answer))
}

/// Nothing of what the caller says goes to the application but that it is the kubelet, and nothing of the application's
/// answer to the caller but its status.
async fn pass_on(questions: &Questions, asker: &ask::Asker, uri: &Uri, headers: &HeaderMap) -> Response {
    let Some(question) = questions.0.get(uri.path()) else {
        return (StatusCode::NOT_FOUND, "no such question\n").into_response();
    };
    let agent = headers.get(USER_AGENT).filter(|agent| agent.as_bytes().starts_with(b"kube-probe/"));
    match asker.ask(question, agent).await {
        Ok(status) if status.is_success() || status.is_redirection() => {
            "the application is well\n".into_response()
        }
        Ok(status) => (status, format!("the application answered {status}\n")).into_response(),
        Err(why) => (StatusCode::SERVICE_UNAVAILABLE, format!("the application did not answer: {why}\n"))
            .into_response(),
    }
}

#[cfg(test)]
mod tests;
