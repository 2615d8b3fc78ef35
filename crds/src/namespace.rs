//! Namespace (v1): a name and its labels.

use crate::meta::Metadata;
use crate::object::Object;

/// Its metadata is all there is.
pub(crate) fn read(metadata: &Metadata) -> Object {
    Object::Namespace { name: metadata.name.clone(), labels: metadata.labels.clone() }
}
