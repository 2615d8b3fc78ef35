//! Keeps the SVID of a process that is no certificate authority: gets it from the CA by the process's own service-account
//! token, renews it, and follows the roots. Never gives up, never ends the process; says why there is no certificate.
//!
//! The token is shown at every renewal rather than the last certificate: a CA that cannot be asked about the caller's token
//! could not judge its certificate either, and a stolen certificate renews nothing.

mod sources;

use std::{
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};

use arc_swap::ArcSwapOption;
use spiffe::{SpiffeId, Svid, TrustBundle, TrustDomain};
use time::OffsetDateTime;
use tokio::sync::watch;
use tokio_util::task::AbortOnDropHandle;
use tonic::transport::Channel;

use crate::{
    ClientTrust, OwnSvid,
    request::{RequestError, Requester},
    schedule,
};
pub use sources::{RootSource, SourceError, TokenSource, read_token};

/// How often the clock and files are looked at.
const TICK: Duration = Duration::from_secs(1);
/// Waits after failures grow up to here.
const LONGEST_RETRY: Duration = Duration::from_secs(5);
/// After a change of roots: every process is to have a certificate under the new ones soon, not all at once.
const NEW_ROOTS: Duration = Duration::from_secs(10);

/// What to get, from whom.
#[derive(Clone, Debug)]
pub struct Settings {
    /// The certificate authority, `HOST:PORT`.
    pub address: String,
    /// Its SPIFFE ID.
    pub server: SpiffeId,
    /// Our own: another answer is refused.
    pub id: SpiffeId,
    /// The trust domain and its aliases whose clients are believed.
    pub domains: Vec<TrustDomain>,
    pub token: TokenSource,
    pub roots: RootSource,
}

/// How it stands.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Standing {
    /// No certificate, and why.
    Without(String),
    /// A certificate until then; why there is no newer one, if that failed.
    With { until: OffsetDateTime, failure: Option<String> },
}

/// Why there is no new certificate.
#[derive(Debug, thiserror::Error)]
enum Failure {
    #[error(transparent)]
    Source(#[from] SourceError),
    #[error(transparent)]
    Request(#[from] RequestError),
    #[error("the certificate authority answered a certificate for {0}")]
    Identity(SpiffeId),
    #[error(transparent)]
    Svid(#[from] crate::UnusableSvid),
}

/// The process's SVID and trust, kept fresh as long as this lives.
#[derive(Debug)]
pub struct SvidClient {
    shared: Arc<Shared>,
    _keeping: AbortOnDropHandle<()>,
}

#[derive(Debug)]
struct Shared {
    own: Arc<OwnSvid>,
    trust: ArcSwapOption<ClientTrust>,
    channel: ArcSwapOption<Channel>,
    domains: Mutex<Vec<TrustDomain>>,
    standing: watch::Sender<Standing>,
    bundle: watch::Sender<Option<TrustBundle>>,
}

impl SvidClient {
    /// Starts asking. Must be called in a tokio runtime.
    pub fn start(settings: Settings) -> Self {
        let Settings { address, server, id, domains, token, roots } = settings;
        let shared = Arc::new(Shared {
            own: OwnSvid::empty(),
            trust: ArcSwapOption::empty(),
            channel: ArcSwapOption::empty(),
            domains: Mutex::new(domains),
            standing: watch::Sender::new(Standing::Without("not asked for yet".to_owned())),
            bundle: watch::Sender::new(None),
        });
        let requester = Requester { address, server, mark: None };
        let keeper = Keeper { shared: Arc::clone(&shared), requester, id, token, roots };
        Self { shared, _keeping: AbortOnDropHandle::new(tokio::spawn(keeper.run())) }
    }

    /// The slot for [`crate::tls::server_config`]; empty until there is a certificate.
    pub fn own(&self) -> Arc<OwnSvid> {
        Arc::clone(&self.shared.own)
    }

    /// Waits until there are a certificate and roots; then whom to believe, which goes on following the roots. Only from
    /// then on is there anything that a TLS server could present.
    pub async fn ready(&self) -> Arc<ClientTrust> {
        let mut standing = self.shared.standing.subscribe();
        loop {
            // The sender lives as long as we do.
            let _ = standing.wait_for(|standing| matches!(standing, Standing::With { .. })).await;
            if let Some(trust) = self.shared.trust.load_full() {
                return trust;
            }
            let _ = standing.changed().await;
        }
    }

    /// How it stands now and later.
    pub fn standing(&self) -> watch::Receiver<Standing> {
        self.shared.standing.subscribe()
    }

    /// The roots that are trusted now and later; `None` until they are known.
    pub fn bundle(&self) -> watch::Receiver<Option<TrustBundle>> {
        self.shared.bundle.subscribe()
    }

    /// A channel to the certificate authority that presents our SVID; `None` until the roots are known.
    pub fn channel(&self) -> Option<Channel> {
        self.shared.channel.load_full().map(|channel| Channel::clone(&channel))
    }

    /// Believes clients of `domains` from now on: the mesh's trust domain aliases have changed.
    pub fn accept(&self, domains: Vec<TrustDomain>) {
        self.shared.domains.lock().unwrap_or_else(PoisonError::into_inner).clone_from(&domains);
        let (trust, bundle) = (self.shared.trust.load_full(), self.shared.bundle.borrow().clone());
        if let (Some(trust), Some(bundle)) = (trust, bundle)
            && let Err(error) = trust.replace(&bundle, domains)
        {
            tracing::error!(error = &error as &dyn std::error::Error, "the trust domains cannot be changed");
        }
    }
}

struct Keeper {
    shared: Arc<Shared>,
    requester: Requester,
    id: SpiffeId,
    token: TokenSource,
    roots: RootSource,
}

impl Keeper {
    async fn run(self) {
        let mut roots = self.roots.follow();
        let mut due = OffsetDateTime::now_utc();
        let mut until: Option<OffsetDateTime> = None;
        let mut failures = 0;
        let mut tick = tokio::time::interval(TICK);
        tick.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
        loop {
            tokio::select! {
                found = roots.next() => if self.roots_are(found) {
                    // The first time at once.
                    let spread = if until.is_some() { NEW_ROOTS.mul_f64(rand::random()) } else { Duration::ZERO };
                    due = due.min(OffsetDateTime::now_utc() + spread);
                    failures = 0;
                },
                // By the clock on the wall: a machine that slept finds its certificate due.
                () = tokio::time::sleep(wait(due)) => {}
                _ = tick.tick() => {}
            }
            let now = OffsetDateTime::now_utc();
            if until.is_some_and(|until| until <= now) {
                until = None;
                self.shared.own.clear();
                tracing::error!(id = %self.id, "our own certificate has expired");
                self.say(Standing::Without("the certificate has expired".to_owned()));
            }
            if due > now {
                continue;
            }
            let Some(bundle) = self.shared.bundle.borrow().clone() else {
                due = now + TICK;
                continue;
            };
            match self.renew(&bundle).await {
                Ok(svid) => {
                    failures = 0;
                    let leaf = &svid.leaf;
                    until = Some(leaf.not_after);
                    due = schedule::renewal(leaf.not_before, leaf.not_after, rand::random()).max(now + TICK);
                    tracing::info!(id = %leaf.id, serial = leaf.serial, until = %leaf.not_after, "our own certificate");
                    self.say(Standing::With { until: leaf.not_after, failure: None });
                }
                Err(error) => {
                    failures += 1;
                    due = OffsetDateTime::now_utc()
                        + schedule::retry(failures, rand::random()).min(LONGEST_RETRY);
                    self.failed(&error, until, failures);
                }
            }
        }
    }

    /// Takes over what the source of roots says; whether they are others now.
    fn roots_are(&self, found: Result<TrustBundle, SourceError>) -> bool {
        let shared = &self.shared;
        let bundle = match found {
            Ok(bundle) => bundle,
            Err(error) => {
                tracing::warn!(error = &error as &dyn std::error::Error, "no roots; those known stay");
                if shared.bundle.borrow().is_none() {
                    self.say(Standing::Without(crate::chain(&error)));
                }
                return false;
            }
        };
        if shared.bundle.borrow().as_ref() == Some(&bundle) {
            return false;
        }
        if let Err(error) = self.adopt(&bundle) {
            tracing::error!(
                error = &error as &dyn std::error::Error,
                "the roots cannot be used; those known stay"
            );
            return false;
        }
        tracing::info!(roots = bundle.roots().len(), "the trusted roots changed");
        shared.bundle.send_replace(Some(bundle));
        true
    }

    fn adopt(&self, bundle: &TrustBundle) -> Result<(), RequestError> {
        let shared = &self.shared;
        let domains = shared.domains.lock().unwrap_or_else(PoisonError::into_inner).clone();
        let config = crate::client_config(bundle, self.requester.server.clone(), Arc::clone(&shared.own))?;
        let address = &self.requester.address;
        let channel = crate::connect_lazy(address, config, None)
            .map_err(|source| RequestError::Unreachable { address: address.clone(), source })?;
        match shared.trust.load_full() {
            Some(trust) => trust.replace(bundle, domains)?,
            None => shared.trust.store(Some(ClientTrust::new(bundle, domains)?)),
        }
        shared.channel.store(Some(Arc::new(channel)));
        Ok(())
    }

    async fn renew(&self, bundle: &TrustBundle) -> Result<Svid, Failure> {
        let token = self.token.read().await?;
        // No certificate: the connection is to be judged by the token alone.
        let svid = self.requester.request(bundle, OwnSvid::empty(), Some(&token)).await?;
        if svid.leaf.id != self.id {
            return Err(Failure::Identity(svid.leaf.id));
        }
        self.shared.own.replace(&svid)?;
        Ok(svid)
    }

    fn failed(&self, error: &Failure, until: Option<OffsetDateTime>, failures: u32) {
        let text = crate::chain(error);
        // A CA that starts after us is no event; one that stays away is, now and then.
        if failures == 3 || failures.is_multiple_of(20) {
            tracing::warn!(error = text, failures, until = ?until, "no new certificate of our own");
        } else {
            tracing::debug!(error = text, failures, "no new certificate of our own");
        }
        self.say(match until {
            Some(until) => Standing::With { until, failure: Some(text) },
            None => Standing::Without(text),
        });
    }

    fn say(&self, standing: Standing) {
        self.shared.standing.send_if_modified(|last| {
            let changed = *last != standing;
            *last = standing;
            changed
        });
    }
}

fn wait(due: OffsetDateTime) -> Duration {
    Duration::try_from(due - OffsetDateTime::now_utc()).unwrap_or_default()
}
