//! The TLS port: xDS for verified identities, and the certificate authority's services. Waits for the controller's first
//! readiness, because before that nobody knows the trust domain or who is registered, and no token, certificate or
//! resource may be given out (design decision 6).

use std::path::PathBuf;
use std::sync::{Arc, OnceLock};

use anyhow::{Context, Result};
use authn::ClientTrust;
use ca::{Ca, Issuer, Lifetimes, ServerIdentity, Storage};
use controller::{Handle, Registered};
use runtime::Metrics;
use runtime::http::Reasons;
use spiffe::TrustDomain;
use time::OffsetDateTime;
use tokio::net::TcpListener;
use tokio_util::sync::CancellationToken;
use xds::ads::server::Ads;

use super::counters;
use crate::routes::{self, Gate, Port};

/// What the port is made of.
#[derive(Debug)]
pub(super) struct Secure {
    pub(super) listener: TcpListener,
    pub(super) state: PathBuf,
    pub(super) controller: Handle,
    pub(super) ads: Ads<Handle>,
    pub(super) metrics: Metrics,
    /// Told once: the trust domain that is signed for.
    pub(super) signs_for: Arc<OnceLock<TrustDomain>>,
}

impl Secure {
    /// Serves until `stop`.
    ///
    /// # Errors
    /// If the state folder's CA cannot be used, or the server fails.
    pub(super) async fn serve(self, stop: CancellationToken) -> Result<()> {
        let Self { listener, state, controller, ads, metrics, signs_for } = self;
        tokio::select! {
            () = controller.wait_ready() => {}
            () = stop.cancelled() => return Ok(()),
        }
        let mesh = controller.mesh();
        let domain: TrustDomain = mesh.trust_domain.parse().context("the mesh's trust domain")?;
        let storage = Storage::open(state)?;
        let authority = {
            let (storage, domain) = (storage.clone(), domain.clone());
            tokio::task::spawn_blocking(move || storage.authority(&domain, OffsetDateTime::now_utc()))
                .await??
        };
        let issuer = Issuer::new(domain.clone(), authority, Lifetimes::default());
        let counted = Arc::new(ca::Counters::default());
        let identity = ServerIdentity::start(issuer.clone(), &mesh.root_namespace, counted.clone())?;
        let trust = ClientTrust::new(&issuer.bundle(), vec![domain.clone()])?;
        let following = follow_roots(issuer.clone(), trust.clone(), domain.clone());
        let config = authn::tls::server_config(identity.own(), trust);
        let incoming = authn::tls::serve(listener, config, authn::tls::Limits::default());
        counters::register(&metrics, counted.clone(), incoming.counters());
        let caller = routes::caller(controller.clone());
        let ca = Ca::new(issuer, storage.join_tokens(), Registry(controller), counted);
        let _ = signs_for.set(domain);
        tracing::info!(identity = %identity.id(), root = %storage.root_path().display(), "serving TLS");
        let serving = authn::tls::grpc_server()
            .layer(Gate::new(Port::Secure, caller.clone(), || None))
            .add_service(ads.identified_by(caller))
            .add_service(ca.enrollment())
            .add_service(ca.certificates())
            .serve_with_incoming_shutdown(incoming, stop.cancelled_owned());
        tokio::select! {
            result = serving => Ok(result?),
            result = following => result,
        }
    }
}

/// Trusts what the issuer says is to be trusted, also after its roots changed.
pub(crate) async fn follow_roots(
    issuer: Arc<Issuer>,
    trust: Arc<ClientTrust>,
    domain: TrustDomain,
) -> Result<()> {
    let mut generation = issuer.generation();
    while generation.changed().await.is_ok() {
        trust.replace(&issuer.bundle(), vec![domain.clone()])?;
    }
    std::future::pending().await
}

/// Not ready before the CA can sign, nor while the mesh names another trust domain than the one that is signed for:
/// certificates and policies would speak of different identities.
pub(super) fn trust_domain_check(
    controller: &Handle,
    signs_for: &OnceLock<TrustDomain>,
) -> Result<(), Reasons> {
    let mesh = controller.mesh();
    match signs_for.get() {
        None => Err(vec!["the certificate authority is not running yet".to_owned()]),
        Some(domain) if *domain.as_str() != *mesh.trust_domain => Err(vec![format!(
            "the mesh's trust domain is now {}, but the CA signs for {domain}: restart with a state folder for it",
            mesh.trust_domain
        )]),
        _ => Ok(()),
    }
}

/// The CA's view of the controller's registry.
#[derive(Debug)]
struct Registry(Handle);

impl ca::Registry for Registry {
    fn service_account(&self, namespace: &str, name: &str) -> Result<Option<String>, ca::NotReady> {
        match self.0.workload(namespace, name) {
            Registered::NotReady => Err(ca::NotReady),
            Registered::Unknown => Ok(None),
            Registered::Workload(workload) => Ok(Some(workload.service_account.to_string())),
        }
    }

    fn service_account_in_use(&self, namespace: &str, service_account: &str) -> Result<bool, ca::NotReady> {
        self.0.service_account_in_use(namespace, service_account).ok_or(ca::NotReady)
    }
}
