//! The monitoring server: `/ready`, `/healthz`, `/metrics`, `/version`, `/debug/log` and what a process adds, from one table in which
//! every route says who may call it. No TLS and no tokens here: what more than a liveness probe may see is for callers
//! on this machine only, and the server limits connections, time and bytes of whoever calls.

mod serve;

use std::net::SocketAddr;
use std::sync::Arc;

use axum::extract::{ConnectInfo, Request};
use axum::middleware::Next;
use axum::response::{IntoResponse, Response};
use axum::routing::{MethodRouter, get};
use axum::{Json, Router};
use http::StatusCode;
use tokio::net::TcpListener;
use tokio_util::sync::CancellationToken;

use crate::{Metrics, Version};

pub use serve::Limits;

/// Why a process is not ready: one reason per entry, never empty.
pub type Reasons = Vec<String>;

/// Who may call a route.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Authn {
    /// Anybody who reaches the port: probes and numbers without names.
    Open,
    /// A peer on a loopback address that also asked for a loopback name, so that a web page in a browser on this
    /// machine cannot ask by a DNS name that it has pointed here.
    Loopback,
}

/// One line of the route table.
#[derive(Clone, Debug)]
pub struct Route {
    pub path: &'static str,
    pub authn: Authn,
    pub handler: MethodRouter,
}

/// The monitoring server of a process, before it listens.
#[derive(Debug)]
pub struct Monitoring {
    routes: Vec<Route>,
    pub limits: Limits,
}

impl Monitoring {
    /// The routes of every process. `ready` is asked at each call.
    pub fn new(
        version: Version,
        metrics: Metrics,
        ready: impl Fn() -> Result<(), Reasons> + Clone + Send + Sync + 'static,
    ) -> Self {
        let ready = move || {
            let ready = ready.clone();
            async move { readiness(ready()) }
        };
        let metrics = move || {
            let metrics = metrics.clone();
            async move { ([(http::header::CONTENT_TYPE, crate::metrics::CONTENT_TYPE)], metrics.encode()) }
        };
        let version = move || {
            let version = version.clone();
            async move { Json(version) }
        };
        let open = |path, handler| Route { path, authn: Authn::Open, handler };
        let routes = vec![
            open("/healthz", get(async || "ok\n")),
            open("/ready", get(ready)),
            open("/metrics", get(metrics)),
            open("/version", get(version)),
            Route { path: "/debug/log", authn: Authn::Loopback, handler: get(log).put(set_log) },
        ];
        Self { routes, limits: Limits::default() }
    }

    /// These routes and no others.
    pub fn of(routes: Vec<Route>) -> Self {
        Self { routes, limits: Limits::default() }
    }

    /// Adds a route of this process.
    #[must_use]
    pub fn route(mut self, route: Route) -> Self {
        self.routes.push(route);
        self
    }

    /// Every route and who may call it; tests compare it with what is allowed.
    pub fn table(&self) -> Vec<(&'static str, Authn)> {
        self.routes.iter().map(|route| (route.path, route.authn)).collect()
    }

    /// Serves until `stop`, then finishes what is under way.
    ///
    /// # Errors
    /// If the listener fails for good.
    pub async fn serve(self, listener: TcpListener, stop: CancellationToken) -> std::io::Result<()> {
        let limits = self.limits;
        serve::serve(self.router(), listener, limits, stop).await
    }

    fn router(self) -> Router {
        self.routes.into_iter().fold(Router::new(), |router, Route { path, authn, handler }| {
            let guard = axum::middleware::from_fn(move |request, next| guard(authn, request, next));
            router.route(path, handler.layer(guard))
        })
    }
}

/// What is logged.
async fn log() -> Response {
    let filter = crate::log::filter();
    filter.map_or_else(|| StatusCode::NOT_FOUND.into_response(), |filter| (filter + "\n").into_response())
}

/// Changes it to the body, a filter as `--log` takes it.
async fn set_log(filter: String) -> Response {
    match crate::log::set_filter(filter.trim()) {
        Ok(()) => log().await,
        Err(error) => (StatusCode::BAD_REQUEST, format!("{error}\n")).into_response(),
    }
}

fn readiness(ready: Result<(), Reasons>) -> Response {
    match ready {
        Ok(()) => "ready\n".into_response(),
        Err(reasons) => {
            let text = reasons.iter().fold(String::from("not ready\n"), |text, r| text + "- " + r + "\n");
            (StatusCode::SERVICE_UNAVAILABLE, text).into_response()
        }
    }
}

async fn guard(authn: Authn, request: Request, next: Next) -> Response {
    match authn {
        Authn::Open => next.run(request).await,
        Authn::Loopback if from_loopback(&request) => next.run(request).await,
        Authn::Loopback => {
            (StatusCode::FORBIDDEN, "only callers on this machine, by a loopback address\n").into_response()
        }
    }
}

fn from_loopback(request: &Request) -> bool {
    let peer = request.extensions().get::<ConnectInfo<SocketAddr>>();
    let host = request.headers().get(http::header::HOST).and_then(|host| host.to_str().ok());
    peer.is_some_and(|peer| peer.0.ip().to_canonical().is_loopback()) && host.is_some_and(loopback_host)
}

/// Whether a Host header names this machine: `localhost` or a loopback address, with or without a port.
fn loopback_host(host: &str) -> bool {
    let Ok(authority) = host.parse::<http::uri::Authority>() else { return false };
    let name = authority.host().trim_start_matches('[').trim_end_matches(']');
    name.eq_ignore_ascii_case("localhost")
        || name.parse::<std::net::IpAddr>().is_ok_and(|ip| ip.to_canonical().is_loopback())
}

/// A readiness that several parts contribute to: ready when each says so.
#[derive(Clone, Default)]
pub struct Readiness(Arc<Vec<Check>>);

/// One part's answer.
pub type Check = Box<dyn Fn() -> Result<(), Reasons> + Send + Sync>;

impl Readiness {
    pub fn of(checks: Vec<Check>) -> Self {
        Self(Arc::new(checks))
    }

    /// Every reason of every part.
    ///
    /// # Errors
    /// The reasons, if there is one.
    pub fn get(&self) -> Result<(), Reasons> {
        let reasons: Reasons = self.0.iter().filter_map(|check| check().err()).flatten().collect();
        if reasons.is_empty() { Ok(()) } else { Err(reasons) }
    }
}

impl std::fmt::Debug for Readiness {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_tuple("Readiness").field(&self.0.len()).finish()
    }
}

#[cfg(test)]
mod tests;
