//! Beside a proxy: gets and renews the workload's certificates, serves them to Envoy (SDS), writes Envoy's bootstrap, keeps
//! Envoy running and captures the workload's traffic. Knows no policy: Envoy gets that from the control plane itself.
//!
//! ```text
//! join token ─► enroll ─► agent SVID (file) ─► renew ─► workload SVID (memory) ─► sds ─► Envoy ◄─ bootstrap, supervisor
//! ```
//! In a Kubernetes pod the pod's own service-account token is shown for each workload SVID, and there is no agent SVID.

mod admin;
mod args;
mod bootstrap;
mod capture;
mod enroll;
mod health;
mod identity;
mod renewal;
mod sds;
pub mod sidecar;
mod state;
mod status;
mod supervisor;
#[cfg(test)]
mod testing;

pub use args::{
    AgentArgs, App, AppAddress, AppMetrics, CaptureArgs, CaptureMode, Networks, PortSet, Ports, Questions,
    RuleArgs, ServiceUpstream, XdsProtocol,
};
pub use capture::{CaptureError, once as capture};
pub use renewal::{AGENT_OUTAGE_BUDGET, WORKLOAD_OUTAGE_BUDGET};

use std::sync::Arc;
use std::time::Duration;

use runtime::{Signals, Tasks};
use tokio::sync::watch;

/// Why the agent could not start or ended.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    #[error("{0}")]
    State(#[from] state::StateError),
    #[error("the trust bundle {path} cannot be used")]
    Bundle { path: String, source: Box<dyn std::error::Error + Send + Sync> },
    #[error(
        "the trust bundle {0} names no trust domain (its root has no URI spiffe://TRUST-DOMAIN); give --server-id"
    )]
    NoTrustDomain(String),
    #[error("the workload's address is not known; give --address")]
    NoAddress,
    #[error(transparent)]
    Envoy(#[from] supervisor::EnvoyError),
    #[error(transparent)]
    Capture(#[from] CaptureError),
    #[error(transparent)]
    Sds(#[from] sds::SdsError),
    #[error("cannot listen on {address}")]
    Listen { address: String, source: std::io::Error },
    #[error("no HTTP client: {0}")]
    Client(String),
    #[error("no handler for SIGTERM can be installed")]
    Signals(#[source] std::io::Error),
    #[error(transparent)]
    Task(#[from] runtime::shutdown::TaskError),
}

/// Runs the agent until SIGTERM or SIGINT, then drains Envoy and ends.
///
/// # Errors
/// If something it needs at start is missing or unsafe, or a part of it ends unexpectedly. Losing the control plane is no
/// error: it goes on with what it has and says so.
pub async fn run(args: AgentArgs) -> Result<(), Error> {
    let signals = Signals::new().map_err(Error::Signals)?;
    let mut tasks = Tasks::new();
    let stop = tasks.stop();
    let plan = capture::Plan::new(&args)?;
    let state = state::State::open(&args, plan.proxy_uid())?;
    let trust = identity::Trust::load(&args)?;
    let envoy = supervisor::Envoy::find(&args).await?;
    let bootstrap = bootstrap::write(&args, &state, &trust, &plan)?;
    let health = Arc::new(health::Health::default());

    // The socket first: Envoy may ask before there is a certificate, and then waits.
    let (secrets, served) = watch::channel(sds::Secrets::default());
    let server = sds::Server::bind(&state.sds_socket, plan.allowed_uids(), served.clone())?;
    tasks.spawn("SDS", server.run(stop.clone()));
    let identity = identity::Identity::new(&args, state.clone(), trust, plan.mark(), secrets, health.clone());
    tasks.spawn("identity", identity.run(stop.clone()));
    // Capture before Envoy: until it listens, traffic is refused, never let past.
    plan.apply().await?;
    let supervisor =
        supervisor::Supervisor::new(&args, envoy, &state, bootstrap, &plan, served, health.clone());
    tasks.spawn("Envoy", supervisor.run(stop.clone()));
    tasks.spawn(
        "health",
        health::watch(health.clone(), state.admin_socket.clone(), args.ready_file.clone(), stop),
    );
    status::start(&args, &state, &health, &mut tasks).await?;
    let outcome = tasks.run(signals, Duration::from_secs(args.drain_time + 10)).await;
    if args.cleanup_capture {
        plan.remove().await?;
    }
    Ok(outcome?)
}
