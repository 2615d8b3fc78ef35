//! What is written down. Names, numbers and reasons only; never a key, a token or a body.

use std::collections::BTreeMap;

use serde::Serialize;
use serde_json::{Map, Value};

/// Longest text of a field in bytes, and most entries of a list. Some come from strangers.
const MAX_TEXT: usize = 1024;
const MAX_LIST: usize = 64;

/// One thing that happened. Field names must not be those of the line itself (`seq`, `time`, `prev`, `hash`).
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[serde(tag = "kind", rename_all_fields = "camelCase")]
#[non_exhaustive]
pub enum Event {
    Started {
        component: String,
        version: String,
    },
    Stopped {
        component: String,
        reason: String,
    },
    /// The control plane took over a policy: `compiled` is [`super::digest`] of what it means.
    PolicyChanged {
        /// `KIND NAMESPACE/NAME`.
        object: String,
        /// Where it was read: `kubernetes`, or `FILE:LINE`.
        origin: String,
        state: PolicyState,
        uid: Option<String>,
        generation: Option<i64>,
        /// The field manager of its last change.
        manager: Option<String>,
        compiled: Option<String>,
        findings: Vec<String>,
        /// It was there when the process started; it need not have changed.
        at_start: bool,
    },
    PolicyDeleted {
        object: String,
    },
    /// Admission let a write pass; the API server may still refuse it for another reason.
    PolicyAdmitted {
        object: String,
        operation: String,
        user: String,
        /// Who told of the review: the API server, or somebody who pretends to be it.
        caller: String,
        compiled: Option<String>,
        dry_run: bool,
    },
    PolicyRejected {
        object: String,
        operation: String,
        user: String,
        caller: String,
        reasons: Vec<String>,
        dry_run: bool,
    },
    /// A proxy was not let in.
    StreamRefused {
        peer: String,
        node: String,
        identity: Option<String>,
        code: String,
        reason: String,
    },
    CertificateIssued {
        method: String,
        id: String,
        serial: String,
        not_after: String,
        caller: String,
        address: String,
    },
    CertificateRefused {
        method: String,
        caller: String,
        address: String,
        code: String,
        reason: String,
    },
    /// A bearer token that is no proof of anything.
    TokenRefused {
        code: String,
        reason: String,
    },
    /// Something else that a library logged for the trail.
    Logged {
        message: String,
        fields: BTreeMap<String, String>,
    },
    MeshChanged {
        compiled: String,
        trust_domain: String,
        root_namespace: String,
    },
    SourceFrozen {
        reason: String,
    },
    SourceRestored {},
    /// The first line of a file; `prev` is the last line of `previous_file`, if there is one.
    Genesis {
        format: u32,
        previous_file: Option<String>,
    },
    /// So many events are missing here: the queue was full, or refusals came too fast.
    EventsDropped {
        count: u64,
    },
    /// The file ended in the middle of a line; those bytes lie in `kept_in`.
    TornLine {
        bytes: u64,
        kept_in: String,
    },
    /// The file's end did not hold together; it lies in `kept_in`.
    ChainBroken {
        kept_in: String,
        fault: String,
    },
    /// Somebody removed or replaced the file while it was being written.
    FileReplaced {},
}

/// How a policy that was read stands.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub enum PolicyState {
    /// Understood, and in force as written.
    Accepted,
    /// Not understood; its last good version stays in force.
    Kept,
    /// Not understood, and there is no good version: closed (it denies, or allows nothing).
    Closed,
}

/// Events that come from whoever reaches a port.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Provoked {
    Refusal,
    Review,
    Logged,
}

impl Event {
    /// Which share of the trail it counts against, if strangers can cause as many as they like.
    pub(super) fn provoked(&self) -> Option<Provoked> {
        match self {
            Self::StreamRefused { .. } | Self::CertificateRefused { .. } | Self::TokenRefused { .. } => {
                Some(Provoked::Refusal)
            }
            Self::Logged { .. } => Some(Provoked::Logged),
            Self::PolicyAdmitted { .. } | Self::PolicyRejected { .. } => Some(Provoked::Review),
            _ => None,
        }
    }

    /// Kind and fields, cut to size, without those that are not known.
    pub(super) fn fields(&self) -> (String, Map<String, Value>) {
        let Ok(Value::Object(mut fields)) = serde_json::to_value(self) else {
            // Structs of text and numbers always become a mapping.
            return ("Unwritable".to_owned(), Map::new());
        };
        let kind = match fields.remove("kind") {
            Some(Value::String(kind)) => kind,
            _ => String::new(),
        };
        fields.retain(|_, value| !value.is_null());
        fields.values_mut().for_each(cut);
        (kind, fields)
    }
}

fn cut(value: &mut Value) {
    match value {
        Value::String(text) if text.len() > MAX_TEXT => {
            text.truncate(text.floor_char_boundary(MAX_TEXT));
            text.push('…');
        }
        Value::Object(fields) => fields.values_mut().for_each(cut),
        Value::Array(list) => {
            let more = list.len().saturating_sub(MAX_LIST);
            list.truncate(MAX_LIST);
            if more > 0 {
                list.push(format!("and {more} more").into());
            }
            list.iter_mut().for_each(cut);
        }
        _ => {}
    }
}
