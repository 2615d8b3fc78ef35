//! Ways round a policy that were found elsewhere, each tried on a real Envoy behind the whole control plane.
//!
//! `docs/security/bypasses.md` lists which advisory is tried where, here and in the other tests. Not here: what a matcher
//! means (`differential.rs`, the translation tests of `xds`), and what Kubernetes adds (`kube_*.rs`).

#![allow(clippy::unwrap_used, reason = "a test panics")]

#[path = "bypasses/headers.rs"]
mod headers;
#[path = "bypasses/identities.rs"]
mod identities;
#[path = "bypasses/objects.rs"]
mod objects;
#[path = "bypasses/paths.rs"]
mod paths;
#[path = "bypasses/ports.rs"]
mod ports;
#[path = "bypasses/sizes.rs"]
mod sizes;
#[path = "bypasses/tokens.rs"]
mod tokens;
#[path = "bypasses/versions.rs"]
mod versions;
#[path = "bypasses/wire.rs"]
mod wire;
