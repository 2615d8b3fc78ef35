//! Kubernetes Events about policies and certificates, for people. Nobody waits for them and nothing depends on them: what
//! is too much is dropped.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::{Duration, Instant};

use crds::{Kind, ObjectRef};
use k8s_openapi::api::core::v1::ObjectReference;
use kube::Client;
use kube::runtime::events::{Event, EventType, Recorder, Reporter};
use tokio::sync::mpsc;
use tokio::time::timeout;

/// Events that may wait to be sent.
const WAITING: usize = 256;
/// Of all objects together: so many at once, and one more in each such time.
const BURST: f64 = 25.0;
const EVERY: Duration = Duration::from_millis(500);
/// The same reason for the same object at most once in this time.
const QUIET: Duration = Duration::from_secs(10);
/// Objects whose last event is remembered.
const REMEMBERED: usize = 4096;
const REQUEST: Duration = Duration::from_secs(5);
/// The API server takes 1 kB.
const NOTE: usize = 1000;

/// What happened.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Reason {
    /// A policy cannot be understood.
    PolicyRejected,
    /// Every proxy that a policy applies to enforces it.
    PolicyEnforced,
    /// A proxy refuses what a policy was made into.
    ProxyNack,
    CertExpiringSoon,
    /// Keys that a policy needs are not there, so that it refuses tokens.
    KeysNotFetched,
    /// A pod that asks for a sidecar cannot have one.
    NotInjected,
}

impl Reason {
    fn text(self) -> &'static str {
        match self {
            Self::PolicyRejected => "PolicyRejected",
            Self::PolicyEnforced => "PolicyEnforced",
            Self::ProxyNack => "ProxyNACK",
            Self::CertExpiringSoon => "CertExpiringSoon",
            Self::KeysNotFetched => "JwksNotFetched",
            Self::NotInjected => "NotInjected",
        }
    }

    fn action(self) -> &'static str {
        match self {
            Self::PolicyRejected => "Validate",
            Self::PolicyEnforced | Self::ProxyNack => "Program",
            Self::CertExpiringSoon => "Renew",
            Self::KeysNotFetched => "Fetch",
            Self::NotInjected => "Inject",
        }
    }

    fn of_type(self) -> EventType {
        match self {
            Self::PolicyEnforced => EventType::Normal,
            Self::PolicyRejected
            | Self::ProxyNack
            | Self::CertExpiringSoon
            | Self::KeysNotFetched
            | Self::NotInjected => EventType::Warning,
        }
    }
}

/// What an event is about.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct About {
    pub api_version: String,
    pub kind: String,
    pub namespace: String,
    pub name: String,
    /// Empty if unknown.
    pub uid: String,
}

impl About {
    /// A policy.
    pub fn policy(object: &ObjectRef, uid: &str) -> Self {
        let kind: Kind = object.kind;
        let version = kind.versions().first().copied().unwrap_or("v1");
        Self {
            api_version: format!("{}/{version}", kind.group()),
            kind: kind.as_str().to_owned(),
            namespace: object.id.namespace.to_string(),
            name: object.id.name.to_string(),
            uid: uid.to_owned(),
        }
    }
}

/// Where events are told. Cheap to clone; never waits.
#[derive(Clone, Debug)]
pub struct Events(mpsc::Sender<(About, Reason, String)>);

impl Events {
    /// The teller's end, and the task that sends them, until every teller is gone. `instance` names this process.
    pub fn start(client: Client, instance: &str) -> (Self, impl Future<Output = ()> + Send + 'static) {
        let (sender, receiver) = mpsc::channel(WAITING);
        let reporter = Reporter { controller: "countersign".to_owned(), instance: Some(instance.to_owned()) };
        (Self(sender), send(Recorder::new(client, reporter), receiver))
    }

    /// For where there is nobody to tell.
    pub fn disabled() -> Self {
        Self(mpsc::channel(1).0)
    }

    /// Tells that something happened, unless too much does.
    pub fn tell(&self, about: About, reason: Reason, note: &str) {
        if self.0.try_send((about, reason, note.chars().take(NOTE / 4).collect())).is_err() {
            tracing::debug!(
                reason = reason.text(),
                "an event is not sent: too many wait, or nobody sends them"
            );
        }
    }
}

async fn send(recorder: Recorder, mut receiver: mpsc::Receiver<(About, Reason, String)>) {
    let recorder = Arc::new(recorder);
    let mut limit = Limit::new(Instant::now());
    let mut complained = false;
    while let Some((about, reason, note)) = receiver.recv().await {
        if !limit.takes(&about, reason, Instant::now()) {
            tracing::debug!(reason = reason.text(), object = ?about.name, "an event is not sent: too many");
            continue;
        }
        let About { api_version, kind, namespace, name, uid } = about;
        let reference = ObjectReference {
            api_version: Some(api_version),
            kind: Some(kind),
            namespace: Some(namespace),
            name: Some(name),
            uid: Some(uid).filter(|uid| !uid.is_empty()),
            ..ObjectReference::default()
        };
        let event = Event {
            type_: reason.of_type(),
            reason: reason.text().to_owned(),
            note: Some(note),
            action: reason.action().to_owned(),
            secondary: None,
        };
        let sent = timeout(REQUEST, recorder.publish(&event, &reference)).await;
        let failed = !matches!(sent, Ok(Ok(())));
        if failed && !complained {
            tracing::warn!(?sent, "an event could not be sent; this is not said again before one can");
        }
        complained = failed;
    }
}

/// How many events are sent. The clock is passed in.
#[derive(Debug)]
struct Limit {
    level: f64,
    at: Instant,
    last: HashMap<(About, Reason), Instant>,
}

impl Limit {
    fn new(now: Instant) -> Self {
        Self { level: BURST, at: now, last: HashMap::new() }
    }

    fn takes(&mut self, about: &About, reason: Reason, now: Instant) -> bool {
        let passed = now.saturating_duration_since(self.at);
        self.level = (self.level + passed.as_secs_f64() / EVERY.as_secs_f64()).min(BURST);
        self.at = now;
        let key = (about.clone(), reason);
        let recent = |last: &Instant| now.saturating_duration_since(*last) < QUIET;
        if self.level < 1.0 || self.last.get(&key).is_some_and(recent) {
            return false;
        }
        if self.last.len() >= REMEMBERED {
            self.last.retain(|_, last| recent(last));
        }
        if self.last.len() >= REMEMBERED {
            return false;
        }
        self.level -= 1.0;
        self.last.insert(key, now);
        true
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn about(name: &str) -> About {
        let object = ObjectRef { kind: Kind::AuthorizationPolicy, id: policy::ObjectName::new("a", name) };
        About::policy(&object, "u")
    }

    #[test]
    fn the_same_is_not_said_twice_and_all_together_not_too_much() {
        let start = Instant::now();
        let mut limit = Limit::new(start);
        assert!(limit.takes(&about("p"), Reason::ProxyNack, start));
        assert!(!limit.takes(&about("p"), Reason::ProxyNack, start));
        assert!(limit.takes(&about("p"), Reason::PolicyRejected, start), "another reason");
        assert!(limit.takes(&about("p"), Reason::ProxyNack, start + QUIET));
        let sent =
            (0..100).filter(|n| limit.takes(&about(&format!("q-{n}")), Reason::ProxyNack, start + QUIET));
        assert_eq!(sent.count(), 24);
        assert!(limit.takes(&about("r"), Reason::ProxyNack, start + QUIET + EVERY));
    }

    #[test]
    fn objects_are_named_in_full() {
        let About { api_version, kind, .. } = about("p");
        assert_eq!((api_version.as_str(), kind.as_str()), ("security.istio.io/v1", "AuthorizationPolicy"));
    }
}
