//! The parts of the controller and the channels between them.

use std::path::Path;
use std::sync::{Arc, OnceLock};

use anyhow::Result;
use controller::admission::{self, Injector, Webhook};
use controller::{Controller, Handle};
use runtime::{Metrics, Tasks};
use source::kubernetes::events::Events;
use source::kubernetes::webhook;
use tokio::net::TcpListener;
use tokio::sync::{mpsc, watch};
use xds::ads::server::{Ads, Limits};

use super::secure::{Secure, dialer};
use super::settings::{Kubeconfig, Settings};
use super::{replica, source_metrics};
use crate::listen::address;
use crate::plaintext;
use crate::standalone::wiring::{fetch_keys, identifier, monitoring_server, until_stopped};
use crate::version::VERSION;

/// Changes that may wait for the controller; the source waits when there are more.
const CHANGES: usize = 4096;

/// Binds the ports, starts every part and returns. What is wrong in the cluster shows in the status.
///
/// # Errors
/// If the API server's address or credentials cannot be read, an address cannot be bound, or the audit trail not written.
pub(crate) async fn start(settings: Settings) -> Result<Tasks> {
    let Settings {
        kubeconfig,
        namespace,
        revision,
        mesh,
        plaintext,
        secure,
        monitoring,
        webhook,
        webhook_configuration,
        webhook_host,
        injection_config,
        ca,
        token_file,
        advertise,
        audit_log,
        keys,
    } = settings;
    let keys = keys.client()?;
    let trail = crate::audit::open(&audit_log)?;
    let client = source::kubernetes::client(match &kubeconfig {
        Kubeconfig::InCluster => None,
        Kubeconfig::File(path) => Some(path),
    })
    .await?;
    let plaintext = plaintext.bind("plaintext").await?;
    let monitoring = monitoring.bind("monitoring").await?;
    let webhook = webhook.bind("webhook").await?;
    // It opens later; that it cannot is to be said now.
    drop(secure.bind("secure").await?);
    tracing::info!(
        plaintext = ?address(plaintext.as_ref())?, monitoring = ?address(monitoring.as_ref())?,
        webhook = ?address(webhook.as_ref())?, "listening"
    );
    let metrics = Metrics::new(VERSION);
    trail.register(&metrics);
    let mut tasks = Tasks::new();
    let stop = tasks.stop();
    let (sender, changes) = mpsc::channel(CHANGES);
    let (controller, owner) = Controller::audited(&metrics, changes, trail.clone());
    tasks.spawn("controller", until_stopped(stop.clone(), owner));
    tasks.spawn("key fetching", until_stopped(stop.clone(), fetch_keys(controller.clone(), keys)));
    let revision: Arc<str> = revision.into();
    let counters = Arc::new(source::kubernetes::Counters::default());
    source_metrics::register(&metrics, counters.clone());
    let source =
        source::kubernetes::Settings { client: client.clone(), mesh, revision: revision.clone(), counters };
    let source = endless(async { source::kubernetes::watch(source, sender).await });
    tasks.spawn("source", until_stopped(stop.clone(), source));
    let ads = Ads::new(Arc::new(controller.clone()), Limits::default(), &identifier(), plaintext::peer);
    if let Some(listener) = plaintext {
        tasks.spawn("plaintext xDS", plaintext::serve(ads.clone(), listener, stop.clone()));
    }
    let me = replica::me(advertise, secure);
    let (events, sending) = Events::start(client.clone(), &me.name);
    tasks.spawn("events", until_stopped(stop.clone(), endless(sending)));
    let (identity, proof) = watch::channel(None);
    replica::start(&mut tasks, &client, &namespace, me, controller.clone(), dialer(proof), events.clone());
    if let Some(listener) = webhook {
        let settings = admission::Settings {
            names: admission::names(&namespace, webhook_host.as_deref()),
            revision,
            lifetimes: admission::Lifetimes::default(),
            limits: admission::Limits::default(),
        };
        let keeping = webhook::Settings {
            client: client.clone(),
            namespace: namespace.clone(),
            configuration: webhook_configuration,
            look: None,
        };
        let server = Webhook::new(controller.clone(), trail, &metrics, settings);
        let server = injecting(&mut tasks, server, injection_config.as_deref(), &keeping, &events, &metrics)?;
        start_webhook(&mut tasks, server, keeping, listener);
    }
    let secure = Secure {
        listen: secure,
        ca,
        kubeconfig,
        token_file,
        namespace,
        client,
        controller: controller.clone(),
        ads,
        metrics: metrics.clone(),
        events,
        identity,
    };
    tasks.spawn("secure port", secure.serve(stop));
    start_monitoring(&mut tasks, metrics, controller, monitoring);
    Ok(tasks)
}

/// The webhook, which also puts sidecars into pods if that is set up.
fn injecting(
    tasks: &mut Tasks,
    server: Webhook,
    config: Option<&Path>,
    kept: &webhook::Settings,
    events: &Events,
    metrics: &Metrics,
) -> Result<Webhook> {
    let Some(config) = config else { return Ok(server) };
    let native = Arc::new(OnceLock::new());
    let injector =
        Injector::new(config, (&kept.namespace, server.revision()), native.clone(), events.clone(), metrics);
    let client = kept.client.clone();
    let learn = endless(async move {
        // Told once.
        let _ = native.set(source::kubernetes::native_sidecars(client).await);
        std::future::pending::<()>().await;
    });
    tasks.spawn("API server version", until_stopped(tasks.stop(), learn));
    Ok(server.injecting(injector.map_err(anyhow::Error::msg)?))
}

fn start_webhook(tasks: &mut Tasks, server: Webhook, keeping: webhook::Settings, listener: TcpListener) {
    let certificates = server.certificates();
    tasks.spawn("admission webhook", server.serve(listener, tasks.stop()));
    let keeping = endless(async { webhook::keep(keeping, certificates).await });
    tasks.spawn("webhook certificate", until_stopped(tasks.stop(), keeping));
}

async fn endless(part: impl Future<Output = ()>) -> Result<(), std::convert::Infallible> {
    part.await;
    Ok(())
}

fn start_monitoring(tasks: &mut Tasks, metrics: Metrics, controller: Handle, listener: Option<TcpListener>) {
    if let Some(listener) = listener {
        let server = monitoring_server(metrics, controller, None);
        tasks.spawn("monitoring", server.serve(listener, tasks.stop()));
    }
}
