//! What comes into force when a version of an object has been read (design decision 5): the half that all sources share.
//! It keeps nothing and tells nobody.

use std::sync::Arc;

use crds::{Closed, Finding, Object, ObjectRef, Severity};

/// What one version of an object turned out to be.
#[derive(Clone, Debug)]
pub(crate) enum Value {
    Good(Arc<Object>),
    /// It has errors, or is no longer seen in full. `None` where nothing stands for it: kinds that are not policies.
    Bad(Option<Closed>),
}

/// What it leads to.
#[derive(Clone, Debug, PartialEq)]
pub(crate) enum Standing {
    /// This comes into force: the version itself, or its closed value.
    Applied(Arc<Object>),
    /// Nothing changes: the last good version stays, or, if there never was one, nothing is there.
    Kept,
}

impl Value {
    /// `good`: there has been a good version.
    pub(crate) fn standing(&self, good: bool) -> Standing {
        match self {
            Self::Good(object) => Standing::Applied(object.clone()),
            Self::Bad(Some(closed)) if !good => Standing::Applied(Arc::new((*closed.object).clone())),
            Self::Bad(_) => Standing::Kept,
        }
    }

    /// Whether readiness must wait for it: it may apply to the whole mesh, and there is no good version to go by.
    pub(crate) fn blocks(&self, good: bool, object: &ObjectRef, root_namespace: &str) -> bool {
        let unknown = matches!(self, Self::Bad(Some(closed)) if closed.scope_unknown);
        unknown && !good && *object.id.namespace == *root_namespace
    }
}

/// The first error, or what there is.
pub(crate) fn first_error(findings: &[Finding]) -> Finding {
    let error = findings.iter().find(|f| f.severity == Severity::Error).or(findings.first());
    error.cloned().unwrap_or_else(|| Finding::error("cannot be read"))
}

#[cfg(test)]
mod tests {
    use crds::Kind;
    use policy::ObjectName;

    use super::*;

    fn namespace(name: &str) -> Arc<Object> {
        Arc::new(Object::Namespace { name: name.into(), labels: Default::default() })
    }

    #[test]
    fn a_closed_value_stands_only_where_there_was_no_good_one() {
        let closed =
            |scope_unknown| Closed { object: Box::new((*namespace("closed")).clone()), scope_unknown };
        let (good, shut, kept) =
            (Standing::Applied(namespace("good")), Standing::Applied(namespace("closed")), Standing::Kept);
        for (value, had_good, expect) in [
            (Value::Good(namespace("good")), false, &good),
            (Value::Good(namespace("good")), true, &good),
            (Value::Bad(Some(closed(false))), false, &shut),
            (Value::Bad(Some(closed(true))), true, &kept),
            (Value::Bad(None), false, &kept),
            (Value::Bad(None), true, &kept),
        ] {
            assert_eq!(&value.standing(had_good), expect, "{value:?} {had_good}");
        }
        let object = |namespace: &str| ObjectRef {
            kind: Kind::AuthorizationPolicy,
            id: ObjectName { namespace: namespace.into(), name: "a".into() },
        };
        for (unknown, had_good, of, expect) in [
            (true, false, "root", true),
            (true, false, "other", false),
            (true, true, "root", false),
            (false, false, "root", false),
        ] {
            let value = Value::Bad(Some(closed(unknown)));
            assert_eq!(value.blocks(had_good, &object(of), "root"), expect, "{unknown} {had_good} {of}");
        }
        assert!(!Value::Good(namespace("good")).blocks(false, &object("root"), "root"));
    }
}
