//! What is generated, against real Envoys and against golden files.
//! Envoy is `$ENVOY` or the one in `.cache/envoy`; without either, the tests that need it say so and pass.

#![allow(clippy::unwrap_used, clippy::print_stderr, reason = "a test panics, and says when it is skipped")]

mod accepted;
mod bed;
mod client;
mod custom;
mod envoy;
mod fixtures;
mod golden;
mod matchers;
mod net;
mod pki;
#[allow(dead_code, reason = "shared with the unit tests")]
#[path = "../../src/build/rbac/samples.rs"]
mod samples;
mod serve;
mod tokens;
mod traffic;
