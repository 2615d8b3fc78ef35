//! The control plane's own SVID: signed in this process, renewed at half life, given to the TLS servers.
//!
//! Never written to disk: a restart makes another.

use std::{
    sync::{Arc, atomic::Ordering},
    time::Duration,
};

use authn::OwnSvid;
use spiffe::{SpiffeId, Svid};
use time::OffsetDateTime;
use tokio::sync::watch;
use tokio_util::task::AbortOnDropHandle;

use crate::{Counters, Error, Issuer};

/// Pause after a failed renewal.
const RETRY: Duration = Duration::from_secs(15);

/// Keeps the SVID fresh as long as it lives.
#[derive(Debug)]
pub struct ServerIdentity {
    id: SpiffeId,
    own: Arc<OwnSvid>,
    /// Ends with us.
    _renewing: AbortOnDropHandle<()>,
}

impl ServerIdentity {
    /// The control plane's SPIFFE ID: `spiffe://TD/ns/ROOTNS/sa/countersign`.
    pub fn id_for(issuer: &Issuer, root_namespace: &str) -> Result<SpiffeId, Error> {
        SpiffeId::workload(issuer.trust_domain(), root_namespace, "countersign").map_err(Error::Identity)
    }

    /// Signs the first SVID, and starts the task that renews it at half life and when the CA's root changes.
    ///
    /// Must be called in a tokio runtime.
    pub fn start(issuer: Arc<Issuer>, root_namespace: &str, counters: Arc<Counters>) -> Result<Self, Error> {
        let id = Self::id_for(&issuer, root_namespace)?;
        let dns_names = vec![
            format!("countersign.{root_namespace}.svc"),
            format!("istiod.{root_namespace}.svc"),
            "localhost".to_owned(),
        ];
        Self::start_as(issuer, id, dns_names, counters)
    }

    /// The same for any identity and any names.
    pub fn start_as(
        issuer: Arc<Issuer>,
        id: SpiffeId,
        dns_names: Vec<String>,
        counters: Arc<Counters>,
    ) -> Result<Self, Error> {
        let renewal = Renewal { issuer, id: id.clone(), dns_names, counters };
        // Before the first signature, so that no change of the root after it is missed.
        let generation = renewal.issuer.generation();
        let (svid, own) = renewal.first()?;
        let renewing = AbortOnDropHandle::new(tokio::spawn(renewal.run(svid, Arc::clone(&own), generation)));
        Ok(Self { id, own, _renewing: renewing })
    }

    /// The SPIFFE ID that clients should expect.
    pub fn id(&self) -> &SpiffeId {
        &self.id
    }

    /// The slot for [`authn::tls::server_config`].
    pub fn own(&self) -> Arc<OwnSvid> {
        Arc::clone(&self.own)
    }
}

struct Renewal {
    issuer: Arc<Issuer>,
    id: SpiffeId,
    dns_names: Vec<String>,
    counters: Arc<Counters>,
}

impl Renewal {
    fn first(&self) -> Result<(Svid, Arc<OwnSvid>), Error> {
        let svid = self.sign()?;
        let own = OwnSvid::new(&svid).map_err(|_| Error::Task)?;
        Ok((svid, own))
    }

    fn sign(&self) -> Result<Svid, Error> {
        let svid = self.issuer.own(self.id.clone(), self.dns_names.clone(), OffsetDateTime::now_utc())?;
        self.counters.own_expiry.store(svid.leaf.not_after.unix_timestamp(), Ordering::Relaxed);
        let root = self.issuer.root_not_after().unix_timestamp();
        self.counters.root_expiry.store(root, Ordering::Relaxed);
        Ok(svid)
    }

    async fn run(self, first: Svid, own: Arc<OwnSvid>, mut generation: watch::Receiver<u64>) {
        let mut pause = until_half_life(&first);
        loop {
            tokio::select! {
                () = tokio::time::sleep(pause) => {}
                // The sender lives in the issuer, which we hold.
                _ = generation.changed() => {}
            }
            pause = match self
                .sign()
                .and_then(|svid| own.replace(&svid).map(|()| svid).map_err(|_| Error::Task))
            {
                Ok(svid) => {
                    tracing::info!(id = %self.id, serial = svid.leaf.serial, "renewed our own certificate");
                    until_half_life(&svid)
                }
                Err(error) => {
                    let cause =
                        std::error::Error::source(&error).map(ToString::to_string).unwrap_or_default();
                    tracing::error!(id = %self.id, %error, cause, "cannot renew our own certificate");
                    RETRY
                }
            };
        }
    }
}

fn until_half_life(svid: &Svid) -> Duration {
    let left = svid.leaf.half_life() - OffsetDateTime::now_utc();
    // At least a second: a root about to end gives lives of nothing, and that must not become a busy loop.
    Duration::try_from(left).unwrap_or_default().max(Duration::from_secs(1))
}
