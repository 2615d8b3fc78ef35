//! The TLS port of the controller: xDS for verified identities (certificate or service-account token), certificate requests
//! handed on to the certificate authority, and receipts for the other replicas. It stays shut until the certificate
//! authority has given this process a certificate, says why, and nothing else waits for it. Holds no CA key.

use std::path::PathBuf;
use std::sync::Arc;

use anyhow::{Context, Result};
use authn::svid_client::{RootSource, Settings as SvidSettings, Standing, SvidClient, TokenSource};
use authn::token::{TokenLayer, TokenReviewer};
use ca::{Relay, RelayCounters};
use controller::Handle;
use controller::receipts::Dialer;
use kube::Client;
use runtime::Metrics;
use source::kubernetes::events::{About, Events, Reason};
use spiffe::{SpiffeId, TrustDomain};
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;
use xds::ads::server::Ads;

use super::secure_metrics;
use super::settings::{CaAddr, Kubeconfig};
use crate::ca::counters::register_tokens;
use crate::listen::Listen;
use crate::routes::{Gate, Port, caller};

/// What the port is made of.
pub(super) struct Secure {
    pub(super) listen: Listen,
    pub(super) ca: CaAddr,
    pub(super) kubeconfig: Kubeconfig,
    pub(super) token_file: PathBuf,
    pub(super) namespace: String,
    pub(super) client: Client,
    pub(super) controller: Handle,
    pub(super) ads: Ads<Handle>,
    pub(super) metrics: Metrics,
    pub(super) events: Events,
    /// Told once there is one: how to reach the other replicas.
    pub(super) identity: watch::Sender<Option<Arc<Identity>>>,
}

/// This process's proof of who it is.
#[derive(Debug)]
pub(super) struct Identity {
    id: SpiffeId,
    /// The trust domain of `id`.
    domain: TrustDomain,
    svid: SvidClient,
}

impl Secure {
    /// Serves until `stop`.
    ///
    /// # Errors
    /// If the address cannot be bound, or the server fails. That there is no certificate is no error: it is waited for.
    pub(super) async fn serve(self, stop: CancellationToken) -> Result<()> {
        tokio::select! {
            result = self.serve_on(stop.clone()) => result,
            () = stop.cancelled() => Ok(()),
        }
    }

    async fn serve_on(self, stop: CancellationToken) -> Result<()> {
        let Self { listen, ca, controller, metrics, client, namespace, events, .. } = &self;
        if *listen == Listen::Off {
            return std::future::pending().await;
        }
        let CaAddr::At(ca) = ca else {
            tracing::warn!("no certificate authority (--ca-addr off): the TLS port stays shut");
            return std::future::pending().await;
        };
        controller.wait_ready().await;
        let domain: TrustDomain =
            controller.mesh().trust_domain.parse().context("the mesh's trust domain")?;
        let identity = Arc::new(self.identity(&domain, ca)?);
        let reviewer = TokenReviewer::of_client(client.clone());
        let relayed = Arc::new(RelayCounters::default());
        secure_metrics::register(metrics, identity.svid.standing(), relayed.clone());
        register_tokens(metrics, reviewer.clone());
        let channel = identity.clone();
        let relay = Relay::new(ca, move || channel.svid.channel(), relayed);
        let watching = watch_standing(identity.svid.standing(), events.clone(), namespace.clone());
        let aliases = follow_aliases(controller.clone(), identity.clone());
        tokio::select! {
            result = self.answer(&identity, reviewer, relay, stop) => result,
            never = watching => match never {},
            never = aliases => match never {},
        }
    }

    /// Opens the port once there is a certificate.
    async fn answer(
        &self,
        identity: &Arc<Identity>,
        reviewer: Arc<TokenReviewer>,
        relay: Relay,
        stop: CancellationToken,
    ) -> Result<()> {
        let trust = identity.svid.ready().await;
        self.identity.send_replace(Some(identity.clone()));
        let Some(listener) = self.listen.bind("secure").await? else { return std::future::pending().await };
        tracing::info!(addr = ?listener.local_addr()?, identity = %identity.id, "serving TLS");
        let config = authn::tls::server_config(identity.svid.own(), trust);
        let incoming = authn::tls::serve(listener, config, authn::tls::Limits::default());
        crate::standalone::counters::register_tls(&self.metrics, incoming.counters());
        let (caller, own) = (caller(self.controller.clone()), identity.id.clone());
        authn::tls::grpc_server()
            .layer(TokenLayer::new(reviewer))
            .layer(Gate::new(Port::Secure, caller.clone(), move || Some(own.clone())))
            .add_service(self.ads.identified_by(caller))
            .add_service(relay.server())
            .add_service(self.controller.receipts_service(identity.id.clone()))
            .serve_with_incoming_shutdown(incoming, stop.cancelled_owned())
            .await?;
        Ok(())
    }

    fn identity(&self, domain: &TrustDomain, ca: &str) -> Result<Identity> {
        let namespace = &self.namespace;
        let id = SpiffeId::workload(domain, namespace, "countersign")?;
        // A projected token in a pod; asked of the API server where a kubeconfig says that this is none.
        let token = match &self.kubeconfig {
            Kubeconfig::File(_) if !self.token_file.exists() => TokenSource::Request {
                client: self.client.clone(),
                namespace: namespace.clone(),
                service_account: "countersign".to_owned(),
            },
            _ => TokenSource::File(self.token_file.clone()),
        };
        let svid = SvidClient::start(SvidSettings {
            address: ca.to_owned(),
            server: SpiffeId::workload(domain, namespace, "countersign-ca")?,
            id: id.clone(),
            domains: domains(&self.controller, domain),
            token,
            roots: RootSource::ConfigMap { client: self.client.clone(), namespace: namespace.clone() },
        });
        Ok(Identity { id, domain: domain.clone(), svid })
    }
}

/// The trust domain signed for, and the mesh's aliases of it. One that cannot be read is no trust domain of anybody's.
fn domains(controller: &Handle, domain: &TrustDomain) -> Vec<TrustDomain> {
    let mesh = controller.mesh();
    let aliases = mesh.trust_domain_aliases.iter().filter_map(|alias| alias.parse().ok());
    std::iter::once(domain.clone()).chain(aliases).collect()
}

/// Clients of the mesh's trust domain aliases are believed as soon as the mesh has them. Another trust domain needs another
/// certificate, and so a restart.
async fn follow_aliases(controller: Handle, identity: Arc<Identity>) -> std::convert::Infallible {
    let domain = &identity.domain;
    loop {
        let mesh = controller.mesh();
        if *mesh.trust_domain != *domain.as_str() {
            tracing::error!(
                now = %mesh.trust_domain, %domain,
                "the mesh's trust domain has changed: restart this process once the certificate authority signs for it"
            );
        }
        identity.svid.accept(domains(&controller, domain));
        controller.mesh_changed(&mesh).await;
    }
}

/// Says why the port is shut, or soon will be.
async fn watch_standing(
    mut standing: watch::Receiver<Standing>,
    events: Events,
    namespace: String,
) -> std::convert::Infallible {
    let mut said: Option<String> = None;
    loop {
        let now = standing.borrow_and_update().clone();
        let (why, ends) = match now {
            Standing::Without(why) => (Some(format!("the TLS port is shut: {why}")), false),
            Standing::With { until, failure: Some(failure) } => {
                (Some(format!("the certificate ends at {until} and cannot be renewed: {failure}")), true)
            }
            Standing::With { failure: None, .. } => (None, false),
        };
        if let Some(why) = &why
            && said.as_ref() != Some(why)
        {
            tracing::warn!("{why}");
            if ends {
                let about = About {
                    api_version: "v1".to_owned(),
                    kind: "ServiceAccount".to_owned(),
                    namespace: namespace.clone(),
                    name: "countersign".to_owned(),
                    uid: String::new(),
                };
                events.tell(about, Reason::CertExpiringSoon, why);
            }
        }
        said = why;
        if standing.changed().await.is_err() {
            return std::future::pending().await;
        }
    }
}

/// Reaches the other replicas with this process's certificate, and nobody else.
pub(super) fn dialer(identity: watch::Receiver<Option<Arc<Identity>>>) -> Dialer {
    Dialer::new(move |address: String| {
        let identity = identity.borrow().clone();
        async move {
            let identity = identity.ok_or("this replica has no certificate yet")?;
            let bundle = identity.svid.bundle().borrow().clone().ok_or("the roots are not known yet")?;
            let config = authn::client_config(&bundle, identity.id.clone(), identity.svid.own())?;
            Ok(authn::connect(&address, config, None).await?)
        }
    })
}
