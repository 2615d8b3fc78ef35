//! The parts of the controller and the channels between them.

use std::sync::Arc;

use anyhow::Result;
use controller::Controller;
use runtime::{Metrics, Tasks};
use tokio::sync::mpsc;
use xds::ads::server::{Ads, Limits};

use super::settings::{Kubeconfig, Settings};
use super::source_metrics;
use crate::listen::address;
use crate::plaintext;
use crate::standalone::wiring::{fetch_keys, identifier, monitoring_server, until_stopped};
use crate::version::VERSION;

/// Changes that may wait for the controller; the source waits when there are more.
const CHANGES: usize = 4096;

/// Binds every port, starts every part and returns. What is wrong in the cluster shows in the status.
///
/// # Errors
/// If the API server's address or credentials cannot be read, or an address cannot be bound.
pub(crate) async fn start(settings: Settings) -> Result<Tasks> {
    let Settings {
        kubeconfig,
        namespace: _,
        revision,
        mesh,
        plaintext,
        secure: _,
        monitoring,
        webhook: _,
        ca: _,
        token_file: _,
        advertise: _,
        audit_log: _,
        keys,
    } = settings;
    let keys = keys.client()?;
    let kubeconfig = match &kubeconfig {
        Kubeconfig::InCluster => None,
        Kubeconfig::File(path) => Some(path.as_path()),
    };
    let client = source::kubernetes::client(kubeconfig).await?;
    let plaintext = plaintext.bind("plaintext").await?;
    let monitoring = monitoring.bind("monitoring").await?;
    tracing::info!(
        plaintext = ?address(plaintext.as_ref())?, monitoring = ?address(monitoring.as_ref())?, "listening"
    );
    let metrics = Metrics::new(VERSION);
    let mut tasks = Tasks::new();
    let (sender, changes) = mpsc::channel(CHANGES);
    let (controller, owner) = Controller::start(&metrics, changes);
    tasks.spawn("controller", until_stopped(tasks.stop(), owner));
    let counters = Arc::new(source::kubernetes::Counters::default());
    source_metrics::register(&metrics, counters.clone());
    tasks.spawn("key fetching", until_stopped(tasks.stop(), fetch_keys(controller.clone(), keys)));
    let source = source::kubernetes::Settings { client, mesh, revision: revision.into(), counters };
    let source = async {
        source::kubernetes::watch(source, sender).await;
        Ok::<_, std::convert::Infallible>(())
    };
    tasks.spawn("source", until_stopped(tasks.stop(), source));
    let ads = Ads::new(Arc::new(controller.clone()), Limits::default(), &identifier(), plaintext::peer);
    if let Some(listener) = plaintext {
        tasks.spawn("plaintext xDS", plaintext::serve(ads, listener, tasks.stop()));
    }
    if let Some(listener) = monitoring {
        let server = monitoring_server(metrics, controller, None);
        tasks.spawn("monitoring", server.serve(listener, tasks.stop()));
    }
    Ok(tasks)
}
