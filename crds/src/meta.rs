//! `metadata`: identity, age, and the annotations that decide something (semantics §1.5, last paragraph).

use std::collections::BTreeMap;
use std::sync::Arc;

use serde_json::{Map, Value};

use crate::finding::Issues;
use crate::object::{Kind, ObjectRef};
use crate::path::At;
use crate::values::go_bool;

/// AuthorizationPolicy only: evaluated and counted, never enforced (semantics §4.5).
pub(crate) const DRY_RUN: &str = "istio.io/dry-run";
/// Ours: a change of this policy also drains the connections it applies to.
pub(crate) const ON_REVOKE: &str = "countersign.io/on-revoke";
/// Istio's own bookkeeping and its webhook probe: whoever sets them claims to be the control plane.
const RESERVED: [&str; 3] = [
    "internal.istio.io/parents",
    "internal.istio.io/parent-namespace",
    "internal.istio.io/webhook-always-reject",
];

/// The metadata of one object.
#[derive(Clone, Debug)]
pub(crate) struct Metadata {
    pub(crate) name: Arc<str>,
    /// Empty for cluster-scoped kinds, `default` where none is given.
    pub(crate) namespace: Arc<str>,
    pub(crate) labels: BTreeMap<String, String>,
    pub(crate) annotations: BTreeMap<String, String>,
    /// Seconds since the epoch; 0 where there is none, and also where it cannot be read (an error is reported).
    pub(crate) created: i64,
    /// `metadata.uid`, where the API server has given one.
    pub(crate) uid: Option<Arc<str>>,
}

impl Metadata {
    /// `None` if the object cannot be identified; everything else that is wrong is only reported.
    pub(crate) fn read(kind: Kind, metadata: Option<&Value>, issues: &mut Issues) -> Option<Self> {
        let at = At::ROOT.key("metadata");
        let Some(Value::Object(metadata)) = metadata else {
            issues.error(&at, "an object needs metadata with a name");
            return None;
        };
        let name = match metadata.get("name") {
            Some(Value::String(name)) if !name.is_empty() => name,
            _ => {
                issues.error(&at.key("name"), "a name (text) is required");
                return None;
            }
        };
        let namespace = match (kind.cluster_scoped(), metadata.get("namespace")) {
            (true, _) => "",
            (false, None | Some(Value::Null)) => "default",
            (false, Some(Value::String(namespace))) if namespace.is_empty() => "default",
            (false, Some(Value::String(namespace))) => namespace,
            (false, Some(_)) => {
                issues.error(&at.key("namespace"), "a namespace is text");
                return None;
            }
        };
        check_name(name, 253, '.', &at.key("name"), issues);
        if !namespace.is_empty() {
            check_name(namespace, 63, '-', &at.key("namespace"), issues);
        }
        Some(Self {
            name: name.as_str().into(),
            namespace: namespace.into(),
            labels: text_map(metadata, "labels", &at, issues),
            annotations: text_map(metadata, "annotations", &at, issues),
            created: created(metadata, &at, issues),
            uid: metadata.get("uid").and_then(Value::as_str).filter(|uid| !uid.is_empty()).map(Into::into),
        })
    }

    pub(crate) fn id(&self) -> policy::ObjectName {
        policy::ObjectName { namespace: self.namespace.clone(), name: self.name.clone() }
    }

    pub(crate) fn object_ref(&self, kind: Kind) -> ObjectRef {
        ObjectRef { kind, id: self.id() }
    }

    /// The metadata of a policy. What cannot be read here is an error, and until it is mended the stricter of the two
    /// meanings holds: enforced, draining.
    pub(crate) fn policy(&self, kind: Kind, issues: &mut Issues) -> policy::Meta {
        let at = At::ROOT.key("metadata");
        let at = at.key("annotations");
        for key in RESERVED.iter().filter(|key| self.annotations.contains_key(**key)) {
            issues.error(&at.key(key), "this annotation is reserved for the control plane");
        }
        for key in
            self.annotations.keys().filter(|key| key.starts_with("countersign.io/") && *key != ON_REVOKE)
        {
            issues.warning(&at.key(key), "unknown annotation: it has no effect");
        }
        let dry_run = self.annotations.get(DRY_RUN).is_some_and(|value| {
            let at = at.key(DRY_RUN);
            if kind != Kind::AuthorizationPolicy {
                issues.error(&at, "only an AuthorizationPolicy can be a dry run");
            }
            go_bool(value).unwrap_or_else(|| {
                issues.error(&at, format!("`{value}` is neither true nor false"));
                false
            })
        });
        let drain_on_revoke = self.annotations.get(ON_REVOKE).is_some_and(|value| {
            if value != "drain" {
                issues.warning(&at.key(ON_REVOKE), format!("`{value}` is not known; read as `drain`"));
            }
            true
        });
        policy::Meta { id: self.id(), created: self.created, dry_run, drain_on_revoke }
    }
}

/// RFC 1123 as Kubernetes has it: lower-case letters, digits and `-`, and `.` in names. The names appear in the
/// identifiers that Envoy logs, whose brackets must not be forgeable.
fn check_name(name: &str, max: usize, also: char, at: &At<'_>, issues: &mut Issues) {
    let inner = |c: char| c.is_ascii_lowercase() || c.is_ascii_digit() || c == '-' || c == also;
    let end = |c: char| c.is_ascii_lowercase() || c.is_ascii_digit();
    if name.len() > max || !name.chars().all(inner) || !name.starts_with(end) || !name.ends_with(end) {
        issues.error(
            at,
            format!("`{name}` is not a Kubernetes name (a-z, 0-9, `-`, at most {max} characters)"),
        );
    }
}

fn text_map(
    metadata: &Map<String, Value>,
    key: &str,
    at: &At<'_>,
    issues: &mut Issues,
) -> BTreeMap<String, String> {
    let at = at.key(key);
    let mut texts = BTreeMap::new();
    match metadata.get(key) {
        None | Some(Value::Null) => {}
        Some(Value::Object(map)) => {
            for (key, value) in map {
                match value {
                    Value::String(value) => drop(texts.insert(key.clone(), value.clone())),
                    _ => issues.error(&at.key(key), "the value must be text: put it in quotes"),
                }
            }
        }
        Some(_) => issues.error(&at, "must be a mapping of text to text"),
    }
    texts
}

fn created(metadata: &Map<String, Value>, at: &At<'_>, issues: &mut Issues) -> i64 {
    let parse =
        |text: &str| time::OffsetDateTime::parse(text, &time::format_description::well_known::Rfc3339);
    match metadata.get("creationTimestamp") {
        None | Some(Value::Null) => 0,
        Some(Value::String(text)) if parse(text).is_ok() => {
            parse(text).map_or(0, time::OffsetDateTime::unix_timestamp)
        }
        Some(other) => {
            issues.error(&at.key("creationTimestamp"), format!("{other} is not an RFC 3339 time"));
            0
        }
    }
}
