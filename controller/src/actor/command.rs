//! What the state's owner can be asked, and its answers.

use std::sync::{Arc, Mutex};

use crds::Object;
use runtime::http::Reasons;
use tokio::sync::{oneshot, watch};
use xds::Snapshot;

use crate::publish::{Refusal, SlotKey};
use crate::status::{Connected, Journal, Report, SessionId};

/// What others ask of the state's owner.
#[derive(Debug)]
pub(crate) enum Command {
    Subscribe(Box<Subscribe>),
    Report(oneshot::Sender<Report>),
    /// What the author of a policy should know: [`crate::admission::advice`].
    Advise {
        object: Box<Object>,
        reply: oneshot::Sender<Vec<String>>,
    },
}

/// A proxy that asks for its snapshots.
#[derive(Debug)]
pub(crate) struct Subscribe {
    pub(crate) key: SlotKey,
    pub(crate) proxy: Connected,
    /// Where its stream writes down what it says.
    pub(crate) journal: Arc<Mutex<Journal>>,
    pub(crate) reply: oneshot::Sender<Result<Opened, Denied>>,
}

/// An open subscription.
#[derive(Debug)]
pub(crate) struct Opened {
    pub(crate) id: SessionId,
    pub(crate) snapshots: watch::Receiver<Arc<Snapshot>>,
}

/// Why a subscription is refused.
#[derive(Debug)]
pub(crate) enum Denied {
    /// The first list is not complete: the reasons.
    NotReady(Reasons),
    Refused(Refusal),
}
