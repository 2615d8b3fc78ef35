//! What the control plane may do in the API server: the one table that the RBAC manifests and `countersign check` are made
//! of. It asks for nothing and grants nothing.

/// Stub.
#[derive(Debug)]
pub struct Right;
/// Stub.
#[derive(Debug)]
pub enum Scope {
    Cluster,
}
/// Stub.
#[derive(Debug)]
pub enum Need {
    Required,
}
/// Stub.
pub fn rights() -> &'static [Right] {
    &[]
}
