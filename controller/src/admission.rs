//! Admission: the validating webhook that refuses policies which could not be enforced as written, with the same
//! conversion as ingestion, and warns of those that are legal but moot; and, where it is set up, the mutating one that puts
//! a sidecar into pods ([`crate::injection`]). Fails closed: what cannot be understood is refused. Decides nothing about
//! traffic.
//!
//! ```text
//! API server ─TLS─► server ─► review::judge (crds::parse) ─► advice (asks the state's owner, if it is ready) ─► answer
//! Secret ◄─► source::kubernetes::webhook ◄─► certificate          └─► audit trail
//! ```
//! Whoever reaches the port may ask: the API server shows no certificate by default. An answer tells nothing but what is
//! said in `warnings`, and what the caller says of the user goes to the audit trail as its word ([`runtime::audit`]).

pub(crate) mod advice;
mod certificate;
mod injector;
mod metrics;
mod review;
mod server;

#[cfg(test)]
mod tests;

use std::collections::BTreeSet;
use std::net::IpAddr;
use std::sync::Arc;
use std::time::Instant;

use crds::Object;
use runtime::audit::{Event, Trail};
use serde_json::Value;
use tokio::net::TcpListener;
use tokio::sync::Semaphore;
use tokio_util::sync::CancellationToken;

pub use certificate::{Certificates, Lifetimes};
pub use injector::Injector;
pub use server::{Limits, ROUTES};

use crate::Handle;
use metrics::{Metrics, ResultLabel};
use review::{Request, Verdict};

/// Reviews that are worked on at once: what a body of 3 MiB becomes in memory is many times that.
const AT_ONCE: usize = 4;

/// What the webhook needs to know.
#[derive(Clone, Debug)]
pub struct Settings {
    /// Names by which it is called: [`names`].
    pub names: BTreeSet<String>,
    /// Objects of other revisions get no advice: they are another control plane's.
    pub revision: Arc<str>,
    pub lifetimes: Lifetimes,
    pub limits: Limits,
}

/// The names of the webhook's certificate: its Services in `namespace`, loopback, and `own`: the host or address of
/// `clientConfig.url` where the API server calls it from outside.
pub fn names(namespace: &str, own: Option<&str>) -> BTreeSet<String> {
    let services = ["countersign", "istiod"].map(|name| format!("{name}.{namespace}.svc"));
    let fixed = ["localhost", "127.0.0.1", "::1"].map(str::to_owned);
    services.into_iter().chain(fixed).chain(own.map(str::to_owned)).collect()
}

/// The webhook, before it listens.
#[derive(Clone, Debug)]
pub struct Webhook {
    handle: Handle,
    trail: Trail,
    revision: Arc<str>,
    limits: Limits,
    certificates: Arc<Certificates>,
    metrics: Metrics,
    working: Arc<Semaphore>,
    injector: Option<Arc<Injector>>,
}

impl Webhook {
    pub fn new(handle: Handle, trail: Trail, metrics: &runtime::Metrics, settings: Settings) -> Self {
        let Settings { names, revision, lifetimes, limits } = settings;
        let metrics = metrics.register(Metrics::new);
        let certificates = Certificates::new(names, lifetimes, metrics.clone());
        let working = Arc::new(Semaphore::new(AT_ONCE));
        Self { handle, trail, revision, limits, certificates, metrics, working, injector: None }
    }

    /// Also puts sidecars into pods.
    #[must_use]
    pub fn injecting(self, injector: Injector) -> Self {
        Self { injector: Some(Arc::new(injector)), ..self }
    }

    /// The control plane's revision.
    pub fn revision(&self) -> &str {
        &self.revision
    }

    /// The serving certificate, to be kept by `source::kubernetes::webhook::keep`.
    pub fn certificates(&self) -> Arc<Certificates> {
        self.certificates.clone()
    }

    /// Serves until `stop`, then finishes what is under way. Handshakes fail until there is a certificate.
    ///
    /// # Errors
    /// If TLS cannot be set up.
    pub async fn serve(self, listener: TcpListener, stop: CancellationToken) -> std::io::Result<()> {
        server::serve(self, listener, stop).await
    }

    /// Whether it can answer the API server.
    fn ready(&self) -> bool {
        self.certificates.present()
    }

    /// Answers one body from `caller`.
    ///
    /// # Errors
    /// What is wrong with a body that is no review.
    async fn review(&self, body: Vec<u8>, caller: IpAddr) -> Result<Value, String> {
        let start = Instant::now();
        let answer = self.answer(&body, caller).await;
        let allowed = |answer: &Value| answer["response"]["allowed"] == true;
        let result = match &answer {
            Ok(answer) if allowed(answer) => "allowed",
            Ok(_) => "denied",
            Err(_) => "error",
        };
        self.metrics.reviews.get_or_create(&ResultLabel { result }).inc();
        self.metrics.seconds.observe(start.elapsed().as_secs_f64());
        answer
    }

    /// Answers for a pod.
    ///
    /// # Errors
    /// What is wrong with a body that is no review, or with us: the pod is then not made.
    async fn inject(&self, body: Vec<u8>) -> Result<Value, String> {
        let _place = self.working.acquire().await;
        let request = review::read(&body)?;
        let injector = self.injector.as_ref().ok_or("injection is not set up (--injection-config)")?;
        if !self.handle.complete() {
            return Err("not ready: the first list is not complete".to_owned());
        }
        injector.answer(&request, &self.handle.mesh().trust_domain)
    }

    async fn answer(&self, body: &[u8], caller: IpAddr) -> Result<Value, String> {
        let (request, verdict) = {
            // Never closed, so never an error.
            let _place = self.working.acquire().await;
            let request = review::read(body)?;
            let verdict = review::judge(&request);
            (request, verdict)
        };
        Ok(match verdict {
            Verdict::Ignored => review::allowed(&request, &[]),
            Verdict::Good { object, findings } => {
                let mut warnings = review::warnings(&findings);
                if crds::revision_matches(&request.labels(), &self.revision) {
                    warnings.extend(self.handle.advise(&object).await);
                }
                self.admitted(&request, &object, caller);
                review::allowed(&request, &warnings)
            }
            Verdict::Bad { findings } => {
                self.rejected(&request, review::reasons(&findings), caller);
                review::denied(&request, &findings)
            }
        })
    }

    fn admitted(&self, request: &Request, object: &Object, caller: IpAddr) {
        let event = || Event::PolicyAdmitted {
            object: request.subject(),
            operation: request.operation.clone(),
            user: request.user().to_owned(),
            caller: caller.to_string(),
            compiled: crate::audit::compiled(object),
            dry_run: request.dry_run(),
        };
        if self.trail.is_enabled() {
            self.trail.append(event());
        }
    }

    fn rejected(&self, request: &Request, reasons: Vec<String>, caller: IpAddr) {
        let (object, user) = (request.subject(), request.user().to_owned());
        tracing::info!(?object, ?user, reason = ?reasons.first(), reasons = reasons.len(), "policy refused");
        self.trail.append(Event::PolicyRejected {
            object,
            operation: request.operation.clone(),
            user,
            caller: caller.to_string(),
            reasons,
            dry_run: request.dry_run(),
        });
    }
}
