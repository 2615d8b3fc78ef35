//! Wire formats: one file per kind, its validation (semantics §1), and its conversion into `policy` and `mesh`.
//! Also the CustomResourceDefinitions made from them (`crd`). Reads text and values only; never a file, never a cluster.
//!
//! ```text
//! text ─read─► Document…     one per YAML document or List item, each with its own outcome
//! JSON value ─parse─► Parsed  the same for one object (admission, the API server)
//!                      └─ Object | Invalid { closed value } | Unreadable | Unsupported, plus findings
//! ```
//!
//! Reading is total: an object with errors still has a closed value (design decision 5, `degrade`), which its source
//! enforces only while there is no earlier, good version.

mod authorization_policy;
pub mod crd;
mod degrade;
mod destination_rule;
mod endpoint_slice;
mod export_to;
mod finding;
mod host;
pub mod mesh_config;
mod meta;
mod namespace;
mod object;
mod parse;
mod path;
mod peer_authentication;
mod pod;
mod read;
mod request_authentication;
mod revision;
mod salvage;
mod selector;
mod service;
mod service_account;
mod sidecar;
mod strict;
mod telemetry;
mod unimplemented;
mod values;
mod when;
mod wire;
mod workload_entry;

pub use finding::{Finding, Severity};
pub use object::{Kind, Object, ObjectRef};
pub use parse::{Closed, Content, Parsed, parse};
pub use read::{Document, MAX_DOCUMENT, MAX_FILE, read};
pub use request_authentication::jwks::{PublicKeys, public as public_jwks};
pub use revision::{DEFAULT_REVISION, REVISION, revision_matches};
pub use unimplemented::{Access, Unimplemented, unimplemented};

/// The wire types, one module per kind.
pub mod spec {
    pub use crate::authorization_policy::{
        Action, AuthorizationPolicySpec, Condition, From, Operation, Provider, Rule, Source, To,
    };
    pub use crate::destination_rule::{
        ClientTlsSettings, DestinationRuleSpec, PortSelector, PortTrafficPolicy, Subset, TlsMode,
        TrafficPolicy,
    };
    pub use crate::endpoint_slice::EndpointSliceDocument;
    pub use crate::peer_authentication::{Mode, MutualTls, PeerAuthenticationSpec};
    pub use crate::pod::{PodSpec, PodStatus};
    pub use crate::request_authentication::{
        ClaimToHeader, JwtHeader, JwtRule, Presence, RequestAuthenticationSpec,
    };
    pub use crate::selector::{PolicyTargetReference, WorkloadSelector};
    pub use crate::service::ServiceSpec;
    pub use crate::sidecar::{
        CaptureMode, EgressListener, IngressListener, NetworkingSelector, OutboundMode,
        OutboundTrafficPolicy, SidecarPort, SidecarSpec,
    };
    pub use crate::telemetry::{
        AccessLoggingEntry, Filter, LogSelector, ProviderReference, TelemetrySpec, WorkloadMode,
    };
    pub use crate::workload_entry::WorkloadEntrySpec;
}

/// A policy as it was read: what it means, or its closed value.
#[derive(Debug)]
pub(crate) struct Reading {
    object: Object,
    /// What it applies to could not be read, so it applies to its whole namespace.
    scope_unknown: bool,
}

impl Reading {
    fn understood(object: Object) -> Self {
        Self { object, scope_unknown: false }
    }
}
