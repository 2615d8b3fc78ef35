//! The life of the certificates: join once, renew before it is time, say when it fails. One task, no locks.
//!
//! Outage budget: with the default lifetimes a workload certificate (1 h) is renewed with 27 to 33 minutes left and the agent's
//! own (7 days) with about 3.5 days left; a control plane that is away for less than that changes nothing.

use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use authn::OwnSvid;
use spiffe::{Leaf, PrivateKey, SpiffeId, Svid, TrustBundle};
use time::OffsetDateTime;
use tokio::sync::watch;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

use crate::Error;
use crate::args::AgentArgs;
use crate::enroll::{Authority, EnrollError};
use crate::health::Health;
use crate::schedule;
use crate::sds::{KeyPair, Secrets};
use crate::state::{State, StateError};

/// How often the trust bundle file and expiry are looked at.
const TICK: Duration = Duration::from_secs(2);
/// Join token files are small.
const MAX_TOKEN_BYTES: usize = 4096;

/// The trust bundle and where it comes from.
#[derive(Debug)]
pub(crate) struct Trust {
    path: PathBuf,
    bundle: TrustBundle,
    pub(crate) server_id: SpiffeId,
}

impl Trust {
    pub(crate) fn load(args: &AgentArgs) -> Result<Self, Error> {
        let path = args.trust_bundle.clone();
        let name = || path.display().to_string();
        let text = std::fs::read(&path).map_err(|e| Error::Bundle { path: name(), source: e.into() })?;
        let bundle =
            TrustBundle::from_pem(&text).map_err(|e| Error::Bundle { path: name(), source: e.into() })?;
        let server_id = match &args.server_id {
            Some(id) => id.clone(),
            None => {
                let domain = bundle.trust_domain().ok_or_else(|| Error::NoTrustDomain(name()))?;
                SpiffeId::workload(&domain, "istio-system", "countersign")
                    .map_err(|e| Error::Bundle { path: name(), source: e.into() })?
            }
        };
        Ok(Self { path, bundle, server_id })
    }

    /// Reads the file again. What cannot be read changes nothing.
    fn refresh(&mut self) -> bool {
        let bundle = std::fs::read(&self.path).ok().and_then(|text| TrustBundle::from_pem(&text).ok());
        match bundle {
            Some(bundle) if bundle != self.bundle => {
                self.bundle = bundle;
                true
            }
            _ => false,
        }
    }
}

/// Why a round brought nothing.
#[derive(Debug, thiserror::Error)]
enum RoundError {
    #[error(
        "cannot enroll: there is no join token (give --join-token-file; make one with `countersign join-token create`)"
    )]
    NoToken,
    #[error("cannot read the join token {path}")]
    Token { path: String, source: std::io::Error },
    #[error(transparent)]
    Enroll(#[from] EnrollError),
    #[error(transparent)]
    State(#[from] StateError),
    #[error(transparent)]
    Tls(#[from] authn::UnusableSvid),
}

/// The agent's certificates.
pub(crate) struct Identity {
    authority: Authority,
    token_file: Option<PathBuf>,
    workload: String,
    state: State,
    trust: Trust,
    /// Presented to the control plane.
    agent: Arc<OwnSvid>,
    agent_leaf: Option<Leaf>,
    workload_leaf: Option<Leaf>,
    secrets: watch::Sender<Secrets>,
    health: Arc<Health>,
}

impl Identity {
    pub(crate) fn new(
        args: &AgentArgs,
        state: State,
        trust: Trust,
        mark: Option<u32>,
        secrets: watch::Sender<Secrets>,
        health: Arc<Health>,
    ) -> Self {
        let server = trust.server_id.clone();
        let bundle = trust.bundle.to_pem();
        secrets.send_modify(|secrets| secrets.set_bundle(bundle));
        Self {
            authority: Authority { address: args.server.clone(), server, mark },
            token_file: args.join_token_file.clone(),
            workload: args.workload.to_string(),
            state,
            trust,
            agent: OwnSvid::empty(),
            agent_leaf: None,
            workload_leaf: None,
            secrets,
            health,
        }
    }

    /// Until `stop`. Failures are retried for ever: the control plane may come back.
    pub(crate) async fn run(mut self, stop: CancellationToken) -> Result<(), std::convert::Infallible> {
        if let Err(error) = self.remember() {
            tracing::warn!(
                error = &error as &dyn std::error::Error,
                "the stored agent certificate cannot be used"
            );
        }
        let mut failures = 0;
        let mut due = Instant::now();
        loop {
            if self.trust.refresh() {
                tracing::info!("the trust bundle changed");
                let bundle = self.trust.bundle.to_pem();
                self.secrets.send_modify(|secrets| secrets.set_bundle(bundle));
            }
            self.expire(OffsetDateTime::now_utc());
            if Instant::now() >= due {
                match self.round().await {
                    Ok(wait) => {
                        failures = 0;
                        due = Instant::now() + wait;
                    }
                    Err(error) => {
                        failures += 1;
                        self.report(&error, failures);
                        due = Instant::now() + schedule::retry(failures, rand::random());
                    }
                }
            }
            tokio::select! {
                () = stop.cancelled() => return Ok(()),
                () = tokio::time::sleep_until(due.min(Instant::now() + TICK)) => {}
            }
        }
    }

    /// Takes up the certificate of an earlier life.
    fn remember(&mut self) -> Result<(), RoundError> {
        let Some((key, chain)) = self.state.credential()? else { return Ok(()) };
        let key = PrivateKey::from_pem(&key).map_err(EnrollError::from)?;
        let svid = Svid::from_pem(&chain, key).map_err(EnrollError::from)?;
        if svid.leaf.not_after > OffsetDateTime::now_utc() {
            self.adopt(svid)?;
        }
        Ok(())
    }

    fn adopt(&mut self, svid: Svid) -> Result<(), RoundError> {
        self.agent.replace(&svid)?;
        self.health.agent_expires(svid.leaf.not_after);
        self.agent_leaf = Some(svid.leaf);
        Ok(())
    }

    /// Gets whatever is due; how long until something is due again.
    async fn round(&mut self) -> Result<Duration, RoundError> {
        let now = OffsetDateTime::now_utc();
        match &self.agent_leaf {
            Some(leaf) if now < leaf.half_life() => {}
            Some(leaf) if now < leaf.not_after => {
                let renewed = self.authority.renew(&self.trust.bundle, self.agent.clone()).await;
                match renewed {
                    Ok(svid) => self.keep(svid)?,
                    Err(error) if error.final_for_credential() && self.token_file.is_some() => {
                        self.join().await?;
                    }
                    Err(error) => return Err(error.into()),
                }
            }
            _ => self.join().await?,
        }
        let current = |leaf: &Leaf| schedule::until_renewal(leaf.not_before, leaf.not_after, now, 0.5);
        let left = self.workload_leaf.as_ref().map(current).unwrap_or_default();
        if left > TICK {
            return Ok(left);
        }
        let svid = self.authority.workload(&self.trust.bundle, self.agent.clone()).await?;
        let leaf = svid.leaf.clone();
        tracing::info!(id = %leaf.id, serial = leaf.serial, until = %leaf.not_after, "workload certificate");
        let pair = KeyPair { chain: svid.chain_pem(), key: svid.key.to_pem() };
        self.secrets.send_modify(|secrets| secrets.set_certificate(Some(pair)));
        self.health.renewed(leaf.not_after);
        let wait = schedule::until_renewal(
            leaf.not_before,
            leaf.not_after,
            OffsetDateTime::now_utc(),
            rand::random(),
        );
        self.workload_leaf = Some(leaf);
        Ok(wait)
    }

    async fn join(&mut self) -> Result<(), RoundError> {
        let path = self.token_file.as_ref().ok_or(RoundError::NoToken)?;
        let mut token = std::fs::read_to_string(path)
            .map_err(|source| RoundError::Token { path: path.display().to_string(), source })?;
        token.truncate(MAX_TOKEN_BYTES);
        let svid = self.authority.join(&self.trust.bundle, token.trim(), &self.workload).await?;
        self.keep(svid)
    }

    /// Stores before use: what is lost in between could not be asked for again.
    fn keep(&mut self, svid: Svid) -> Result<(), RoundError> {
        self.state.store(&svid.key.to_pem(), &svid.chain_pem())?;
        tracing::info!(id = %svid.leaf.id, until = %svid.leaf.not_after, "agent certificate");
        self.adopt(svid)
    }

    /// An expired certificate is offered to nobody.
    fn expire(&mut self, now: OffsetDateTime) {
        if self.workload_leaf.as_ref().is_some_and(|leaf| leaf.not_after <= now) {
            tracing::error!("the workload certificate has expired: not ready");
            self.workload_leaf = None;
            self.secrets.send_modify(|secrets| secrets.set_certificate(None));
            self.health.expired();
        }
        if self.agent_leaf.as_ref().is_some_and(|leaf| leaf.not_after <= now) {
            tracing::error!("the agent certificate has expired: a new join token is needed");
            self.agent_leaf = None;
        }
    }

    fn report(&self, error: &RoundError, failures: u32) {
        self.health.failed(&chain(error));
        let left = self.workload_leaf.as_ref().map(|leaf| leaf.not_after - OffsetDateTime::now_utc());
        let seconds_left = left.map(time::Duration::whole_seconds);
        tracing::warn!(error = error as &dyn std::error::Error, failures, seconds_left, "no new certificate");
    }
}

/// An error and its causes in one line.
fn chain(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut source = error.source();
    while let Some(cause) = source {
        text.push_str(": ");
        text.push_str(&cause.to_string());
        source = cause.source();
    }
    text
}
