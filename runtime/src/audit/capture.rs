//! Carries what libraries log with the target `audit` into the trail of this process: they know who was refused, and not
//! that there is a trail. Works whatever the log filter says.

use std::collections::BTreeMap;
use std::fmt::Debug;
use std::sync::{PoisonError, RwLock};

use tracing::field::{Field, Visit};
use tracing::{Metadata, Subscriber};
use tracing_subscriber::Layer;
use tracing_subscriber::filter::{FilterFn, LevelFilter};
use tracing_subscriber::layer::Context;
use tracing_subscriber::registry::LookupSpan;

use super::{Event, Trail};

/// Target of what belongs into the trail.
const TARGET: &str = "audit";

/// The trail of this process.
static INSTALLED: RwLock<Trail> = RwLock::new(Trail(None));

/// From now on what is logged with the target `audit` goes into `trail`.
pub(super) fn install(trail: Trail) {
    *INSTALLED.write().unwrap_or_else(PoisonError::into_inner) = trail;
}

/// The trail of this process; a disabled one if there is none.
pub(super) fn installed() -> Trail {
    INSTALLED.read().unwrap_or_else(PoisonError::into_inner).clone()
}

/// The layer, for the subscriber of the process.
pub(crate) fn layer<S: Subscriber + for<'a> LookupSpan<'a>>() -> impl Layer<S> {
    let only: fn(&Metadata<'_>) -> bool = |metadata| metadata.target() == TARGET;
    // Without the hint every call for a trace would have to ask.
    Capture.with_filter(FilterFn::new(only).with_max_level_hint(LevelFilter::INFO))
}

struct Capture;

impl<S: Subscriber> Layer<S> for Capture {
    fn on_event(&self, event: &tracing::Event<'_>, _: Context<'_, S>) {
        let trail = installed();
        if trail.is_enabled() {
            let mut said = Said::default();
            event.record(&mut said);
            trail.append(said.event());
        }
    }
}

#[derive(Debug, Default)]
pub(super) struct Said {
    pub(super) message: String,
    pub(super) fields: BTreeMap<String, String>,
}

impl Said {
    fn put(&mut self, field: &Field, value: String) {
        match field.name() {
            "message" => self.message = value,
            name => drop(self.fields.insert(name.to_owned(), value)),
        }
    }

    /// What is known under a name of its own, or else the words as they are.
    pub(super) fn event(mut self) -> Event {
        let mut take = |name: &str| self.fields.remove(name).unwrap_or_default();
        match &*self.message {
            "certificate issued" => Event::CertificateIssued {
                method: take("method"),
                id: take("id"),
                serial: take("serial"),
                not_after: take("not_after"),
                caller: take("caller"),
                address: take("address"),
            },
            "certificate refused" | "certificate request not relayed" => {
                let reasons = [take("error"), take("reason"), take("cause")];
                let reasons: Vec<String> = reasons.into_iter().filter(|reason| !reason.is_empty()).collect();
                Event::CertificateRefused {
                    method: take("method"),
                    caller: take("caller"),
                    address: take("address"),
                    code: take("code"),
                    reason: reasons.join(": "),
                }
            }
            "stream refused" => Event::StreamRefused {
                peer: take("peer"),
                node: take("node"),
                identity: Some(take("identity")).filter(|identity| !identity.is_empty()),
                code: take("code"),
                reason: take("reason"),
            },
            "token refused" => Event::TokenRefused { code: take("code"), reason: take("reason") },
            _ => Event::Logged { message: self.message, fields: self.fields },
        }
    }
}

impl Visit for Said {
    fn record_str(&mut self, field: &Field, value: &str) {
        self.put(field, value.to_owned());
    }

    fn record_debug(&mut self, field: &Field, value: &dyn Debug) {
        self.put(field, format!("{value:?}"));
    }
}
