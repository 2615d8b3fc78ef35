//! Deciding about and signing certificates, without I/O.
//!
//! Everything it needs is passed in: the proven identity of the caller, what the registry says, the time. Nothing of a
//! signing request counts but its key.

use std::sync::Arc;

use arc_swap::ArcSwap;
use spiffe::{
    Authority, Issued, Mint, PrivateKey, SigningRequest, SpiffeId, Svid, TrustBundle, TrustDomain, Usage,
};
use time::{Duration, OffsetDateTime};
use tokio::sync::watch;

use crate::{Error, WorkloadName};

/// How long certificates live.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Lifetimes {
    /// A workload's, if it asks for nothing.
    pub workload: Duration,
    /// The longest that a workload may ask for; more is an error, not shortened (semantics §6.7).
    pub workload_max: Duration,
    /// An agent's. It is the longest outage of agent or CA after which no new join token is needed.
    pub agent: Duration,
}

impl Default for Lifetimes {
    fn default() -> Self {
        // Istio's agents ask for 24 hours.
        Self { workload: Duration::HOUR, workload_max: Duration::DAY, agent: Duration::days(7) }
    }
}

/// A certificate that was signed.
#[derive(Clone, Debug)]
pub struct Issuance {
    pub id: SpiffeId,
    pub leaf: Issued,
    /// PEM with trailing newline: the leaf, what is between it and the root, then all trusted roots as one element.
    pub chain: Vec<String>,
}

#[derive(Debug)]
struct Signer {
    authority: Authority,
    /// What our side trusts: the authority's root and, while roots change, others.
    bundle: TrustBundle,
}

/// Signs for one trust domain.
#[derive(Debug)]
pub struct Issuer {
    domain: TrustDomain,
    lifetimes: Lifetimes,
    signer: ArcSwap<Signer>,
    /// Counts replacements of the signer.
    generation: watch::Sender<u64>,
}

impl Issuer {
    /// Signs with `authority` for `domain`.
    pub fn new(domain: TrustDomain, authority: Authority, lifetimes: Lifetimes) -> Arc<Self> {
        let bundle = authority.root().clone();
        let signer = ArcSwap::from_pointee(Signer { authority, bundle });
        Arc::new(Self { domain, lifetimes, signer, generation: watch::Sender::new(0) })
    }

    /// How long certificates live.
    pub fn lifetimes(&self) -> Lifetimes {
        self.lifetimes
    }

    /// The trust domain signed for.
    pub fn trust_domain(&self) -> &TrustDomain {
        &self.domain
    }

    /// The roots that callers are told to trust.
    pub fn bundle(&self) -> TrustBundle {
        self.signer.load().bundle.clone()
    }

    /// The end of the signing root.
    pub fn root_not_after(&self) -> OffsetDateTime {
        self.signer.load().authority.not_after()
    }

    /// Rotation: signs with `authority` from now on and hands out its root together with `others`.
    ///
    /// Call it first with the old authority and the new root among `others`, until everybody has the new root; then with
    /// the new authority and the old root among `others`, until no leaf of the old one lives (semantics §10.23).
    pub fn rotate(&self, authority: Authority, others: &[TrustBundle]) {
        let bundle = others.iter().fold(authority.root().clone(), TrustBundle::union);
        self.signer.store(Arc::new(Signer { authority, bundle }));
        self.generation.send_modify(|generation| *generation += 1);
    }

    /// Changes whenever the signer was replaced.
    pub fn generation(&self) -> watch::Receiver<u64> {
        self.generation.subscribe()
    }

    /// The identity that a registration gives: the service account's in the workload's namespace.
    pub fn workload_id(&self, workload: &WorkloadName, service_account: &str) -> Result<SpiffeId, Error> {
        SpiffeId::workload(&self.domain, workload.namespace(), service_account).map_err(Error::Identity)
    }

    /// Signs a workload's certificate for `id`, which the caller has been found to speak for.
    ///
    /// `seconds` is the lifetime asked for; zero and less ask for the default.
    pub fn workload(
        &self,
        id: SpiffeId,
        request: &SigningRequest,
        seconds: i64,
        now: OffsetDateTime,
    ) -> Result<Issuance, Error> {
        self.named_workload(id, Vec::new(), request, seconds, now)
    }

    /// The same with DNS names, for a workload that clients know by them.
    pub fn named_workload(
        &self,
        id: SpiffeId,
        dns_names: Vec<String>,
        request: &SigningRequest,
        seconds: i64,
        now: OffsetDateTime,
    ) -> Result<Issuance, Error> {
        let Lifetimes { workload, workload_max, agent: _ } = self.lifetimes;
        let lifetime = if seconds <= 0 { workload } else { Duration::seconds(seconds) };
        if lifetime > workload_max {
            return Err(Error::Lifetime { max: workload_max });
        }
        self.sign(request, Mint { id, dns_names, lifetime, usage: Usage::ServerAndClient }, now)
    }

    /// Signs the certificate of the agent beside `workload`. Good for calling us, not for serving.
    pub fn agent(
        &self,
        workload: &WorkloadName,
        request: &SigningRequest,
        now: OffsetDateTime,
    ) -> Result<Issuance, Error> {
        let id =
            SpiffeId::agent(&self.domain, workload.namespace(), workload.name()).map_err(Error::Identity)?;
        let mint = Mint { id, dns_names: Vec::new(), lifetime: self.lifetimes.agent, usage: Usage::Client };
        self.sign(request, mint, now)
    }

    /// An SVID with a new key for this process itself, which needs to ask nobody.
    pub fn own(&self, id: SpiffeId, dns_names: Vec<String>, now: OffsetDateTime) -> Result<Svid, Error> {
        let key = PrivateKey::generate().map_err(|_| Error::Task)?;
        let mint = Mint { id, dns_names, lifetime: self.lifetimes.workload, usage: Usage::ServerAndClient };
        let signer = self.signer.load();
        let issued = signer.authority.sign_own(&key, &mint, now)?;
        let above = signer.authority.intermediates().map(<[u8]>::to_vec);
        Svid::new(std::iter::once(issued.certificate).chain(above).collect(), key).map_err(|_| Error::Task)
    }

    fn sign(&self, request: &SigningRequest, mint: Mint, now: OffsetDateTime) -> Result<Issuance, Error> {
        let signer = self.signer.load();
        let leaf = signer.authority.sign(request, &mint, now)?;
        let chain = std::iter::once(leaf.to_pem())
            .chain(signer.authority.intermediates_pem())
            .chain(std::iter::once(signer.bundle.to_pem()))
            .collect();
        Ok(Issuance { id: mint.id, leaf, chain })
    }
}

#[cfg(test)]
mod tests;
