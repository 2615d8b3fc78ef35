//! The laboratory of the end-to-end tests. It tests nothing itself, and no production code depends on it.

pub mod lab;
