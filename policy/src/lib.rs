//! The core: validated policies, which of them apply to a workload, and what they decide.
//!
//! This crate does no I/O and knows neither YAML, Kubernetes, Envoy nor gRPC. Objects come in already parsed
//! (crate `crds`), and leave as an [`EffectivePolicy`] that `xds::build` compiles and [`evaluate`] interprets.
//!
//! ```text
//! PolicySet ──resolve(&WorkloadKey)──► EffectivePolicy ──► xds::build (Envoy) | evaluate (in process) ──► explain
//! ```

pub mod effective;
pub mod evaluate;
pub mod explain;
pub mod matcher;
pub mod model;
mod resolve;
mod set;
pub mod trust;

pub use effective::{ActionRules, Clause, EffectiveMtls, EffectivePolicy, EffectiveRule, MtlsGuard};
pub use evaluate::{
    Deciding, Decision, DryRun, Mismatch, NearMiss, Protocol, Refusal, Request, Verdict, covers, evaluate,
    evaluate_with_nearest, never_matches,
};
pub use explain::{Applying, Explanation, Stage, applying, explain};
pub use matcher::{Atom, PathMatch, RequestPrincipal, StringMatch, TrustDomainMatch};
pub use model::{
    Action, Attachment, AuthorizationPolicy, ClaimToHeader, Condition, Jwks, JwtHeader, JwtRule, Match, Meta,
    MtlsMode, ObjectName, Operation, PeerAuthentication, Presence, RequestAuthentication, Rule, Side, Source,
    TargetRef,
};
pub use resolve::{GATEWAY_LABEL, resolve};
pub use set::{PolicySet, Scope, WorkloadKey};
