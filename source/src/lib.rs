//! Where objects come from. One interface for a directory of files and for Kubernetes: a stream of [`Change`]s.
//! No policy logic here; parsing and validation are `crds`'s.

pub mod files;
pub mod kubernetes;
mod standing;

use std::sync::Arc;

use crds::{Finding, Object, ObjectRef};

/// What a source tells, in order. Everything up to and including the first `Synced` is the first full list.
#[derive(Debug)]
pub enum Change {
    /// Created or changed; `findings` are warnings, or the reason why it is a degraded (closed) value.
    Apply { object: Box<Object>, origin: String, version: Option<Version>, findings: Vec<Finding> },
    /// Explicitly removed. Never sent for something that merely could not be read (design decision 6).
    Delete(ObjectRef),
    /// An object could not be read and its last good version (if any) stays in force.
    Kept { object: ObjectRef, origin: String, version: Option<Version>, findings: Vec<Finding> },
    /// Something that is not even an object (`origin` is `file:line`); `blocks_ready` if it was there at start and its
    /// kind or namespace cannot be told. `finding: None` clears the earlier report of that origin.
    Unreadable { origin: String, finding: Option<Finding>, blocks_ready: bool },
    /// The mesh configuration, at start and when it changes.
    Mesh(Box<mesh::MeshConfig>),
    /// The first list is complete.
    Synced,
    /// The source is lost (a folder that vanished): what is in force stays frozen, not ready; `None` when it is back.
    Frozen(Option<String>),
    /// What there is of a kind of Istio that has no effect here (`crds::unimplemented`); replaces what was told of it.
    Unimplemented(UnimplementedObjects),
}

/// Objects that have no effect here.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct UnimplementedObjects {
    pub group: Arc<str>,
    pub kind: Arc<str>,
    /// 0: there are none (any more).
    pub count: usize,
    /// Up to five of them, `NAMESPACE/NAME`.
    pub names: Vec<String>,
    /// Why they cannot be counted.
    pub error: Option<String>,
}

/// Which version of a Kubernetes object a change speaks of. Files have none.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Version {
    /// `metadata.uid`.
    pub uid: Arc<str>,
    /// `metadata.generation`: grows with every change of the spec, and is what `observedGeneration` refers to.
    pub generation: i64,
    /// The field manager of the latest entry of `metadata.managedFields` that is not about a subresource; for the audit trail.
    pub manager: Option<Arc<str>>,
}
