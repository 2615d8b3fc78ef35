//! What is generated, against real Envoys and against golden files.
//! Envoy is `$ENVOY` or the one in `.cache/envoy`; without either, the tests that need it say so and pass.

mod envoy;
mod fixtures;
mod net;
mod pki;
mod serve;
mod traffic;
