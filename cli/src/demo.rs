//! The demo: a zero-trust shop on this machine, and the applications it is made of.

pub(crate) mod app;
