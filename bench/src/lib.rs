//! Measurements behind every published figure: see `benches/` and docs/performance.md. Holds no code of its own and asserts
//! nothing that depends on how fast a machine is.
