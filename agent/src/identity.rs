//! The life of the certificates: join once, renew before it is time, say when it fails. One task, no locks; what is due when
//! is [`crate::renewal`]'s to say, how to ask is [`crate::enroll`]'s.
//!
//! Outage budget: [`WORKLOAD_OUTAGE_BUDGET`](crate::WORKLOAD_OUTAGE_BUDGET) and
//! [`AGENT_OUTAGE_BUDGET`](crate::AGENT_OUTAGE_BUDGET). What is left is in the metrics; while renewal fails and less than a
//! third of a lifetime is left, every failure is logged as an error and `countersign_agent_renewal_alert` is 1.

use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use authn::svid_client::{self, SourceError};
use authn::{OwnSvid, RequestError, Requester};
use spiffe::{PrivateKey, SpiffeId, Svid, TrustBundle};
use time::OffsetDateTime;
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;

use crate::Error;
use crate::args::{AgentArgs, trust_domain};
use crate::enroll::{Authority, EnrollError};
use crate::health::Health;
use crate::renewal::{Renewal, Step, Which};
use crate::sds::{KeyPair, Secrets};
use crate::state::{self, State, StateError};

/// How often the trust bundle file and expiry are looked at.
const TICK: Duration = Duration::from_secs(2);
/// New roots: certificates under them are wanted by then, not from every agent at once.
const NEW_ROOTS: Duration = Duration::from_secs(10);
/// So many failures in a row while there is no certificate yet are a hiccup or a slow start, not an error.
const PATIENCE: u32 = 4;

/// The trust bundle and where it comes from.
#[derive(Debug)]
pub(crate) struct Trust {
    path: PathBuf,
    bundle: TrustBundle,
    /// The file as last seen, readable or not.
    seen: Option<Vec<u8>>,
    pub(crate) server_id: SpiffeId,
    /// Who answers at `--ca-addr`.
    ca_id: SpiffeId,
}

impl Trust {
    pub(crate) fn load(args: &AgentArgs) -> Result<Self, Error> {
        let path = args.bundle_path();
        let name = || path.display().to_string();
        let text = std::fs::read(&path).map_err(|e| Error::Bundle { path: name(), source: e.into() })?;
        let bundle =
            TrustBundle::from_pem(&text).map_err(|e| Error::Bundle { path: name(), source: e.into() })?;
        let of_control_plane = |account| {
            let domain =
                bundle.trust_domain().or_else(trust_domain).ok_or_else(|| Error::NoTrustDomain(name()))?;
            SpiffeId::workload(&domain, "istio-system", account)
                .map_err(|e| Error::Bundle { path: name(), source: e.into() })
        };
        let server_id = match &args.server_id {
            Some(id) => id.clone(),
            None => of_control_plane("countersign")?,
        };
        let relayed = args.ca_addr.as_ref().is_none_or(|address| *address == args.server);
        let ca_id = match &args.ca_id {
            Some(id) => id.clone(),
            None if relayed => server_id.clone(),
            None => of_control_plane("countersign-ca")?,
        };
        Ok(Self { path, bundle, seen: Some(text), server_id, ca_id })
    }

    /// Reads the file again; whether the roots are others now. What cannot be read changes nothing, and is said once.
    fn refresh(&mut self) -> bool {
        let text = std::fs::read(&self.path);
        if text.as_ref().ok() == self.seen.as_ref() {
            return false;
        }
        let bundle = match &text {
            Ok(text) => TrustBundle::from_pem(text).map_err(|error| error.to_string()),
            Err(error) => Err(error.to_string()),
        };
        self.seen = text.ok();
        match bundle {
            Ok(bundle) if bundle != self.bundle => {
                self.bundle = bundle;
                true
            }
            Ok(_) => false,
            Err(error) => {
                tracing::warn!(error, file = %self.path.display(), "the trust bundle cannot be read: the last one stays");
                false
            }
        }
    }
}

/// Why a step brought nothing.
#[derive(Debug, thiserror::Error)]
enum StepError {
    #[error(
        "cannot enroll: there is no join token (give --join-token-file; make one with `countersign join-token create`)"
    )]
    NoToken,
    #[error(transparent)]
    Enroll(#[from] EnrollError),
    #[error(transparent)]
    State(#[from] StateError),
    #[error(transparent)]
    Tls(#[from] authn::UnusableSvid),
    #[error(transparent)]
    Token(#[from] SourceError),
    #[error(transparent)]
    Request(#[from] RequestError),
}

/// In a Kubernetes pod: the workload's certificate by the pod's own token.
struct ByToken {
    requester: Requester,
    file: PathBuf,
    namespace: String,
}

/// The agent's certificates.
pub(crate) struct Identity {
    authority: Authority,
    token_file: Option<PathBuf>,
    workload: String,
    state: State,
    trust: Trust,
    /// In the place of joining.
    by_token: Option<ByToken>,
    /// Presented to the control plane: the agent's, or with a token the workload's.
    agent: Arc<OwnSvid>,
    renewal: Renewal,
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
        let by_token = args.token_file.clone().map(|file| ByToken {
            requester: Requester {
                address: args.ca_addr.clone().unwrap_or_else(|| args.server.clone()),
                server: trust.ca_id.clone(),
                mark,
            },
            file,
            namespace: args.workload.namespace.clone(),
        });
        let now = OffsetDateTime::now_utc();
        let renewal = if by_token.is_some() { Renewal::by_token(now) } else { Renewal::new(now) };
        let bundle = trust.bundle.to_pem();
        secrets.send_modify(|secrets| secrets.set_bundle(bundle));
        Self {
            authority: Authority { address: args.server.clone(), server, mark },
            token_file: args.join_token_file.clone(),
            workload: args.workload.to_string(),
            state,
            trust,
            by_token,
            agent: OwnSvid::empty(),
            renewal,
            secrets,
            health,
        }
    }

    /// Until `stop`. Failures are retried for ever: the control plane may come back.
    pub(crate) async fn run(mut self, stop: CancellationToken) -> Result<(), std::convert::Infallible> {
        if self.by_token.is_none()
            && let Err(error) = self.remember()
        {
            tracing::warn!(
                error = &error as &dyn std::error::Error,
                "the stored agent certificate cannot be used"
            );
        }
        while !stop.is_cancelled() {
            self.follow_roots();
            self.expire();
            let wait = match self.renewal.next(OffsetDateTime::now_utc()) {
                Step::Wait(wait) => wait.min(TICK),
                // Not to be interrupted: the token would be spent for nothing.
                Step::Join => self.act(Step::Join).await,
                step => tokio::select! {
                    () = stop.cancelled() => return Ok(()),
                    wait = self.act(step) => wait,
                },
            };
            tokio::select! {
                () = stop.cancelled() => {}
                () = tokio::time::sleep(wait) => {}
            }
        }
        Ok(())
    }

    /// Takes up the certificate of an earlier life.
    fn remember(&mut self) -> Result<(), StepError> {
        let Some((key, chain)) = self.state.credential()? else { return Ok(()) };
        let key = PrivateKey::from_pem(&key).map_err(EnrollError::from)?;
        let svid = Svid::from_pem(&chain, key).map_err(EnrollError::from)?;
        if svid.leaf.not_after > OffsetDateTime::now_utc() {
            self.adopt(&svid)?;
        }
        Ok(())
    }

    fn adopt(&mut self, svid: &Svid) -> Result<(), StepError> {
        self.agent.replace(svid)?;
        self.health.agent_expires(Some(svid.leaf.not_after));
        self.renewal.got(Which::Agent, (&svid.leaf).into(), OffsetDateTime::now_utc(), rand::random());
        Ok(())
    }

    fn follow_roots(&mut self) {
        if self.trust.refresh() {
            tracing::info!("the trust bundle changed");
            let bundle = self.trust.bundle.to_pem();
            self.secrets.send_modify(|secrets| secrets.set_bundle(bundle));
            self.renewal.hurry(OffsetDateTime::now_utc(), NEW_ROOTS, rand::random());
        }
    }

    /// Does what is due, and notes what came of it; how long to pause (what is due then is asked again).
    async fn act(&mut self, step: Step) -> Duration {
        let (which, result) = match step {
            Step::Join => (Which::Agent, self.join().await),
            Step::RenewAgent => (Which::Agent, self.renew_agent().await),
            Step::Workload => (Which::Workload, self.renew_workload().await),
            Step::Wait(wait) => return wait,
        };
        let now = OffsetDateTime::now_utc();
        if let Err(error) = result {
            self.renewal.failed(which, now, rand::random());
            self.report(which, &error, now);
        }
        self.health.renewal_alert(self.renewal.alert(now));
        Duration::ZERO
    }

    async fn renew_agent(&mut self) -> Result<(), StepError> {
        match self.authority.renew(&self.trust.bundle, self.agent.clone()).await {
            Ok(svid) => self.keep(&svid),
            // Perhaps the control plane has been set up anew, and a token for that is there.
            Err(error) if error.final_for_credential() && self.token_file.is_some() => self.join().await,
            Err(error) => Err(error.into()),
        }
    }

    async fn renew_workload(&mut self) -> Result<(), StepError> {
        let svid = match &self.by_token {
            None => self.authority.workload(&self.trust.bundle, self.agent.clone()).await?,
            Some(by_token) => {
                let svid = by_token.request(&self.trust.bundle, &self.agent).await?;
                self.agent.replace(&svid)?;
                svid
            }
        };
        let leaf = &svid.leaf;
        tracing::info!(id = %leaf.id, serial = leaf.serial, until = %leaf.not_after, "workload certificate");
        let pair = KeyPair { chain: svid.chain_pem(), key: svid.key.to_pem() };
        self.secrets.send_modify(|secrets| secrets.set_certificate(Some(pair)));
        self.health.renewed(leaf.not_after);
        self.renewal.got(Which::Workload, leaf.into(), OffsetDateTime::now_utc(), rand::random());
        Ok(())
    }

    async fn join(&mut self) -> Result<(), StepError> {
        let path = self.token_file.as_ref().ok_or(StepError::NoToken)?;
        let token = state::join_token(path)?;
        let svid = self.authority.join(&self.trust.bundle, &token, &self.workload).await?;
        self.keep(&svid)
    }

    /// Stores before use: what is lost in between could not be asked for again.
    fn keep(&mut self, svid: &Svid) -> Result<(), StepError> {
        self.state.store(&svid.key.to_pem(), &svid.chain_pem())?;
        tracing::info!(id = %svid.leaf.id, until = %svid.leaf.not_after, "agent certificate");
        self.adopt(svid)
    }

    /// An expired certificate is offered to nobody.
    fn expire(&mut self) {
        let now = OffsetDateTime::now_utc();
        if self.renewal.expire(Which::Workload, now) {
            tracing::error!("the workload certificate has expired: not ready");
            self.secrets.send_modify(|secrets| secrets.set_certificate(None));
            if self.by_token.is_some() {
                self.agent.clear();
            }
            self.health.expired();
        }
        if self.renewal.expire(Which::Agent, now) {
            tracing::error!("the agent certificate has expired: a new join token is needed");
            self.health.agent_expires(None);
        }
    }

    fn report(&self, which: Which, error: &StepError, now: OffsetDateTime) {
        self.health.failed(&authn::chain(error));
        let error = error as &dyn std::error::Error;
        let failures = self.renewal.failures(which);
        let left = |which| self.renewal.left(which, now).map(time::Duration::whole_seconds);
        let (workload_seconds_left, agent_seconds_left) = (left(Which::Workload), left(Which::Agent));
        if self.renewal.alert(now) && failures > PATIENCE {
            tracing::error!(
                error,
                failures,
                workload_seconds_left,
                agent_seconds_left,
                "no new certificate for too long: somebody must look"
            );
        } else {
            tracing::warn!(error, failures, workload_seconds_left, agent_seconds_left, "no new certificate");
        }
    }
}

impl ByToken {
    /// By the token as it is now. A pod whose token cannot be read has its last certificate to show, which the authority
    /// itself takes (a relay does not).
    async fn request(&self, bundle: &TrustBundle, own: &Arc<OwnSvid>) -> Result<Svid, StepError> {
        let svid = match svid_client::read_token(&self.file) {
            Ok(token) => self.requester.request(bundle, OwnSvid::empty(), Some(&token)).await?,
            Err(error) if own.is_empty() => return Err(error.into()),
            Err(error) => {
                tracing::warn!(error = authn::chain(&error), "no token: asking by the last certificate");
                self.requester.request(bundle, own.clone(), None).await?
            }
        };
        let id = &svid.leaf.id;
        let ours = id.trust_domain() == self.requester.server.trust_domain()
            && id.as_workload().is_some_and(|(namespace, _)| namespace == self.namespace);
        if ours {
            Ok(svid)
        } else {
            let wanted = format!("a workload of the namespace {}", self.namespace);
            Err(EnrollError::Identity { got: svid.leaf.id, wanted }.into())
        }
    }
}

#[cfg(test)]
mod tests;
