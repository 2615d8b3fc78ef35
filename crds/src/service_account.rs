//! ServiceAccount (v1): only that it exists.

use crate::meta::Metadata;
use crate::object::Object;

/// Its metadata is all there is.
pub(crate) fn read(metadata: &Metadata) -> Object {
    Object::ServiceAccount(metadata.id())
}
