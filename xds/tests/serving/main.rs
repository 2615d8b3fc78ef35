//! ADS over a loopback port: with a plain gRPC client, and with a real Envoy.
//! Envoy is `$ENVOY` or the one in `.cache/envoy`; without either, the tests that need it say so and pass.

#![allow(clippy::unwrap_used, clippy::print_stderr, reason = "a test panics, and says when it is skipped")]

mod envoy;
mod resources;
mod server;
mod tools;
mod with_client;
mod with_envoy;
