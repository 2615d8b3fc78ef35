//! The parts of standalone mode and the channels between them.

use std::sync::{Arc, OnceLock};

use anyhow::Result;
use authn::jwks::{Client, Schedule};
use axum::Json;
use axum::response::IntoResponse;
use axum::routing::get;
use controller::{Controller, Handle};
use runtime::http::{Authn, Monitoring, Readiness, Route};
use runtime::{Metrics, Tasks};
use spiffe::TrustDomain;
use tokio::sync::mpsc;
use tokio_util::sync::CancellationToken;
use xds::ads::server::{Ads, Limits};

use super::files::{Addresses, write_addresses};
use super::secure::{Secure, trust_domain_check};
use super::settings::Settings;
use crate::listen::address;
use crate::plaintext;
use crate::version::VERSION;

/// Changes that may wait for the controller; the source waits when there are more.
const CHANGES: usize = 4096;

/// A started control plane.
#[derive(Debug)]
pub(crate) struct Running {
    pub(crate) tasks: Tasks,
    pub(crate) addresses: Addresses,
}

/// Binds every port, starts every part and returns. What was wrong with the files shows in the status.
///
/// # Errors
/// If the state folder cannot be used or an address cannot be bound.
pub(crate) async fn start(settings: Settings) -> Result<Running> {
    let Settings { dir, state, mesh_config, plaintext, secure, monitoring, keys } = settings;
    let keys = keys.client()?;
    // Made with the rights that agents need to read the root certificate in it.
    ca::Storage::open(&state)?;
    let plaintext_listener = plaintext.bind("plaintext").await?;
    let secure = secure.bind("secure").await?;
    let monitoring = monitoring.bind("monitoring").await?;
    let addresses = Addresses {
        plaintext: address(plaintext_listener.as_ref())?,
        secure: address(secure.as_ref())?,
        monitoring: address(monitoring.as_ref())?,
    };

    let metrics = Metrics::new(VERSION);
    let mut tasks = Tasks::new();
    let (sender, changes) = mpsc::channel(CHANGES);
    let (controller, owner) = Controller::start(&metrics, changes);
    tasks.spawn("controller", until_stopped(tasks.stop(), owner));
    tasks.spawn("key fetching", until_stopped(tasks.stop(), fetch_keys(controller.clone(), keys)));
    let source = source::files::watch(dir, mesh_config, sender);
    let source = async {
        source.await;
        Ok::<_, std::convert::Infallible>(())
    };
    tasks.spawn("source", until_stopped(tasks.stop(), source));
    let ads = Ads::new(Arc::new(controller.clone()), Limits::default(), &identifier(), plaintext::peer);
    if let Some(listener) = plaintext_listener {
        tasks.spawn("plaintext xDS", plaintext::serve(ads.clone(), listener, tasks.stop()));
    }
    let signs_for = secure.is_some().then(|| Arc::new(OnceLock::new()));
    if let (Some(listener), Some(signs_for)) = (secure, signs_for.clone()) {
        let (controller, metrics) = (controller.clone(), metrics.clone());
        let secure = Secure { listener, state: state.clone(), controller, ads, metrics, signs_for };
        tasks.spawn("secure xDS and CA", secure.serve(tasks.stop()));
    }
    if let Some(listener) = monitoring {
        let server = monitoring_server(metrics, controller, signs_for);
        tasks.spawn("monitoring", server.serve(listener, tasks.stop()));
    }
    write_addresses(&state, &addresses)?;
    Ok(Running { tasks, addresses })
}

/// Fetches the signing keys that policies name the place of.
pub(crate) async fn fetch_keys(
    controller: Handle,
    (client, schedule): (Client, Schedule),
) -> Result<(), std::convert::Infallible> {
    controller.fetch_keys(client, schedule).await;
    Ok(())
}

/// A part without an orderly end of its own is dropped once the process stops; nothing it holds outlives the process.
pub(crate) async fn until_stopped<E>(
    stop: CancellationToken,
    part: impl Future<Output = Result<(), E>>,
) -> Result<(), E> {
    tokio::select! {
        // First: parts end each other by being dropped, and that is no failure then.
        biased;
        () = stop.cancelled() => Ok(()),
        result = part => result,
    }
}

/// What proxies and tools see as the control plane's name (semantics §6.8). Unmodified tools read it, so it says
/// `istiod`; the replica is told by its pod's name.
pub(crate) fn identifier() -> String {
    let named = |variable| std::env::var(variable).ok().filter(|name: &String| !name.is_empty());
    let id = named("POD_NAME").or_else(|| named("HOSTNAME")).unwrap_or_else(|| "countersign".to_owned());
    let version = VERSION.version;
    let info = serde_json::json!({
        "version": version,
        "revision": VERSION.revision,
        "golang_version": "",
        "status": "countersign",
        "tag": version,
    });
    serde_json::json!({"Component": "istiod", "ID": id, "Info": info}).to_string()
}

/// The monitoring routes of this process.
pub(crate) fn monitoring_server(
    metrics: Metrics,
    controller: Handle,
    signs_for: Option<Arc<OnceLock<TrustDomain>>>,
) -> Monitoring {
    let (all, checked) = (controller.clone(), controller.clone());
    let authority = move || signs_for.as_ref().map_or(Ok(()), |domain| trust_domain_check(&checked, domain));
    let ready = Readiness::of(vec![Box::new(move || all.ready()), Box::new(authority)]);
    let status = move || {
        let controller = controller.clone();
        async move {
            match controller.status().await {
                Some(report) => Json(report).into_response(),
                None => http::StatusCode::SERVICE_UNAVAILABLE.into_response(),
            }
        }
    };
    Monitoring::new(VERSION, metrics, move || ready.get()).route(Route {
        path: "/status",
        authn: Authn::Loopback,
        handler: get(status),
    })
}
