//! The parts of the certificate authority and the channels between them.

use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use anyhow::Result;
use authn::ClientTrust;
use authn::token::TokenReviewer;
use ca::cluster::{ClusterCertificates, Keys, KubePods, Names, RootCounters, Roots};
use ca::{Lifetimes, ServerIdentity};
use runtime::http::{Monitoring, Reasons};
use runtime::{Metrics, Tasks};
use spiffe::TrustDomain;
use tokio::net::TcpListener;
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;
use xds::ads::server::Peer;

use super::counters;
use super::domain::{self, Said};
use super::settings::Settings;
use crate::listen::address;
use crate::routes::{Gate, Port};
use crate::standalone::secure::follow_roots;
use crate::standalone::wiring::until_stopped;
use crate::version::VERSION;

/// Pause before the keys are asked for again.
const RETRY: Duration = Duration::from_secs(1);

/// Binds the ports, starts every part and returns. What is wrong in the cluster shows in `/ready`.
///
/// # Errors
/// If the API server's address or credentials cannot be read, an address cannot be bound, or the audit trail not written.
pub(super) async fn start(settings: Settings) -> Result<Tasks> {
    let Settings { kubeconfig, addr, monitoring, namespace, revision, domain, grace, audit_log } = settings;
    let trail = crate::audit::open(&audit_log)?;
    let client = client(kubeconfig).await?;
    let listener = addr.bind("certificate").await?;
    let monitoring = monitoring.bind("monitoring").await?;
    tracing::info!(
        addr = ?address(listener.as_ref())?, monitoring = ?address(monitoring.as_ref())?, "listening"
    );
    let metrics = Metrics::new(VERSION);
    trail.register(&metrics);
    let mut tasks = Tasks::new();
    let (standing, stands) = watch::channel(Standing::Starting("nothing was read yet".to_owned()));
    let (said, says) = watch::channel(Err("not read yet".to_owned()));
    let following = domain::follow(domain, client.clone(), said);
    let following = async { Err(following.await) };
    tasks.spawn("trust domain", until_stopped(tasks.stop(), following));
    let authority = Authority {
        client,
        namespace,
        revision,
        grace,
        listener,
        metrics: metrics.clone(),
        standing,
        says: says.clone(),
    };
    tasks.spawn("certificate authority", authority.serve(tasks.stop()));
    if let Some(listener) = monitoring {
        let ready = move || ready(&stands.borrow(), &says.borrow());
        let server = Monitoring::new(VERSION, metrics, ready);
        tasks.spawn("monitoring", server.serve(listener, tasks.stop()));
    }
    Ok(tasks)
}

async fn client(kubeconfig: Option<PathBuf>) -> Result<kube::Client> {
    Ok(source::kubernetes::client(kubeconfig.as_deref()).await?)
}

/// How far it is.
#[derive(Debug)]
enum Standing {
    /// And what it waits for.
    Starting(String),
    SignsFor(TrustDomain),
}

/// Not ready before it can sign, nor while the mesh names another trust domain than the one that is signed for:
/// certificates and policies would speak of different identities.
fn ready(standing: &Standing, said: &Said) -> Result<(), Reasons> {
    match (standing, said) {
        (Standing::Starting(why), _) => Err(vec![why.clone()]),
        (Standing::SignsFor(domain), Ok(now)) if now != domain => Err(vec![format!(
            "the mesh's trust domain is now {now}, but this process signs for {domain}: restart it once the Secret {} is for {now}",
            ca::cluster::SECRET
        )]),
        (Standing::SignsFor(_), _) => Ok(()),
    }
}

struct Authority {
    client: kube::Client,
    namespace: String,
    revision: String,
    grace: time::Duration,
    listener: Option<TcpListener>,
    metrics: Metrics,
    standing: watch::Sender<Standing>,
    says: watch::Receiver<Said>,
}

impl Authority {
    /// Serves until `stop`.
    async fn serve(self, stop: CancellationToken) -> Result<()> {
        let (domain, keys) = tokio::select! {
            opened = self.open() => opened,
            () = stop.cancelled() => return Ok(()),
        };
        let Self { client, namespace, revision, listener, metrics, standing, grace: _, says: _ } = self;
        let issuer = keys.issuer();
        let names = Names::new(&domain, &namespace, &revision)?;
        let counted = Arc::new(ca::Counters::default());
        let (ca, dns) = (names.ca.clone(), names.ca_dns.clone());
        let identity = ServerIdentity::start_as(issuer.clone(), ca, dns, counted.clone())?;
        let trust = ClientTrust::new(&issuer.bundle(), vec![domain.clone()])?;
        let following = follow_roots(issuer.clone(), trust.clone(), domain.clone());
        let root_counters = Arc::new(RootCounters::default());
        counters::register_roots(&metrics, root_counters.clone());
        let roots = Roots::new(client.clone(), keys.bundle(), root_counters);
        let keys = keys.run(roots.published());
        let reviewer = TokenReviewer::of_client(client.clone());
        counters::register_tokens(&metrics, reviewer.clone());
        let service =
            ClusterCertificates::new(issuer, reviewer, KubePods::new(client), names, counted.clone())
                .server();
        let serving = async {
            let Some(listener) = listener else { return std::future::pending().await };
            let config = authn::tls::server_config(identity.own(), trust);
            let incoming = authn::tls::serve(listener, config, authn::tls::Limits::default());
            crate::standalone::counters::register(&metrics, counted, incoming.counters());
            authn::tls::grpc_server()
                // The service itself judges who calls.
                .layer(Gate::new(Port::Ca, |_| Peer::default(), || None))
                .add_service(service)
                .serve_with_incoming_shutdown(incoming, stop.clone().cancelled_owned())
                .await
        };
        tracing::info!(identity = %identity.id(), trust_domain = %domain, "signing");
        standing.send_replace(Standing::SignsFor(domain));
        tokio::select! {
            result = serving => Ok(result?),
            result = following => result,
            never = keys => match never {},
            never = roots.run() => match never {},
            () = stop.cancelled() => Ok(()),
        }
    }

    /// The keys, as soon as there is an API server that gives them.
    async fn open(&self) -> (TrustDomain, Keys) {
        let mut says = self.says.clone();
        loop {
            let said = says.borrow_and_update().clone();
            let why = match said {
                Err(why) => why,
                Ok(domain) => {
                    let lifetimes = Lifetimes::default();
                    let keys =
                        Keys::open(self.client.clone(), &self.namespace, &domain, lifetimes, self.grace)
                            .await;
                    match keys {
                        Ok(keys) => return (domain, keys),
                        Err(error) => format!("{:#}", anyhow::Error::from(error)),
                    }
                }
            };
            self.standing.send_if_modified(|standing| {
                let known = matches!(standing, Standing::Starting(last) if *last == why);
                if !known {
                    tracing::warn!(why, "cannot sign yet");
                    *standing = Standing::Starting(why);
                }
                !known
            });
            tokio::select! {
                () = tokio::time::sleep(RETRY) => {}
                Ok(()) = says.changed() => {}
            }
        }
    }
}
