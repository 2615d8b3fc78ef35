//! `istio.io/rev`: which control plane of several an object is meant for (semantics §12.10). It judges labels only; who
//! asks must do so before an object counts for anything.

use std::collections::BTreeMap;

/// The label that names a revision.
pub const REVISION: &str = "istio.io/rev";
/// The revision of a control plane that was not given one.
pub const DEFAULT_REVISION: &str = "default";

/// Whether an object with these labels is meant for the control plane of `revision` (an empty one is
/// [`DEFAULT_REVISION`]). An object without the label is meant for every control plane; one with an empty label for none,
/// as with Istio. Another revision's object must be treated as if it did not exist, and a change of the label as its
/// creation or deletion.
pub fn revision_matches(labels: &BTreeMap<String, String>, revision: &str) -> bool {
    let revision = if revision.is_empty() { DEFAULT_REVISION } else { revision };
    labels.get(REVISION).is_none_or(|label| label == revision)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_label_decides() {
        for (label, revision, expect) in [
            (None, "default", true),
            (None, "canary", true),
            (Some(""), "canary", false),
            (Some(""), "", false),
            (Some("default"), "default", true),
            (Some("default"), "", true),
            (Some("canary"), "canary", true),
            (Some("canary"), "default", false),
            (Some("canary"), "", false),
            (Some("default"), "canary", false),
            (Some("Canary"), "canary", false),
            (Some("canary-2"), "canary", false),
        ] {
            let labels = label.map(|label| (REVISION.to_owned(), label.to_owned())).into_iter().collect();
            assert_eq!(revision_matches(&labels, revision), expect, "{label:?} {revision:?}");
        }
    }
}
