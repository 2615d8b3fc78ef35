//! Reads objects out of the API server's JSON and drops, while reading, what nothing here needs: managed fields, statuses
//! of policies, containers' environments. What is dropped is never in memory. It does not judge what it reads.

use std::sync::Arc;

use serde::Deserialize;
use serde::de::{DeserializeSeed, Deserializer, Error as _, IgnoredAny, MapAccess, SeqAccess, Visitor};
use serde_json::{Map, Value};

use crate::Version;

/// Which part of a value is kept.
#[derive(Debug)]
pub(super) enum Shape {
    /// All of it.
    Whole,
    Nothing,
    /// Of a mapping (or of each entry of a list), these fields, each in its shape; all others if `rest`.
    Fields {
        known: &'static [(&'static str, Shape)],
        rest: bool,
    },
}

use Shape::{Fields, Nothing, Whole};

const MANAGED_FIELDS: Shape =
    Fields { known: &[("manager", Whole), ("time", Whole), ("subresource", Whole)], rest: false };
/// Metadata of objects whose annotations mean nothing here.
const PLAIN: Shape =
    Fields { known: &[("managedFields", MANAGED_FIELDS), ("annotations", BOOKMARK)], rest: true };
/// Says that a bookmark ends the initial list.
const BOOKMARK: Shape = Fields { known: &[(INITIAL_EVENTS_END, Whole)], rest: false };
/// Metadata of policies. The copy that `kubectl apply` leaves says nothing that the object does not.
const ANNOTATED: Shape = Fields {
    known: &[
        ("managedFields", MANAGED_FIELDS),
        (
            "annotations",
            Fields { known: &[("kubectl.kubernetes.io/last-applied-configuration", Nothing)], rest: true },
        ),
    ],
    rest: true,
};
/// The annotation of the bookmark that ends a streamed list.
pub(super) const INITIAL_EVENTS_END: &str = "k8s.io/initial-events-end";

/// Policies: everything but the status, which is ours and others' to write.
pub(super) const POLICY: Shape =
    Fields { known: &[("metadata", ANNOTATED), ("status", Nothing)], rest: true };
/// The whole object without annotations and status.
pub(super) const SPEC: Shape = Fields { known: &[("metadata", PLAIN), ("status", Nothing)], rest: true };
/// A Service: as [`SPEC`], with the annotation that says who may see it.
pub(super) const SERVICE: Shape = Fields {
    known: &[
        (
            "metadata",
            Fields {
                known: &[
                    ("managedFields", MANAGED_FIELDS),
                    (
                        "annotations",
                        Fields {
                            known: &[(INITIAL_EVENTS_END, Whole), ("networking.istio.io/exportTo", Whole)],
                            rest: false,
                        },
                    ),
                ],
                rest: true,
            },
        ),
        ("status", Nothing),
    ],
    rest: true,
};
/// Only metadata, and what says that something failed.
pub(super) const METADATA: Shape = Fields {
    known: &[
        ("metadata", PLAIN),
        ("kind", Whole),
        ("apiVersion", Whole),
        ("code", Whole),
        ("reason", Whole),
        ("message", Whole),
    ],
    rest: false,
};
pub(super) const CONFIG_MAP: Shape =
    Fields { known: &[("metadata", PLAIN), ("binaryData", Nothing)], rest: true };
pub(super) const POD: Shape = Fields {
    known: &[
        ("metadata", PLAIN),
        (
            "spec",
            Fields {
                known: &[
                    ("serviceAccountName", Whole),
                    ("serviceAccount", Whole),
                    ("hostNetwork", Whole),
                    ("containers", CONTAINER),
                    ("initContainers", CONTAINER),
                ],
                rest: false,
            },
        ),
        (
            "status",
            Fields {
                known: &[
                    ("phase", Whole),
                    ("podIP", Whole),
                    ("podIPs", Whole),
                    ("conditions", Fields { known: &[("type", Whole), ("status", Whole)], rest: false }),
                ],
                rest: false,
            },
        ),
    ],
    rest: true,
};
const CONTAINER: Shape = Fields { known: &[("ports", Whole), ("restartPolicy", Whole)], rest: false };

/// One object, as far as it was kept.
#[derive(Debug, PartialEq)]
pub(super) struct Slim {
    /// Without `metadata.managedFields` and `metadata.resourceVersion`.
    pub(super) value: Value,
    pub(super) namespace: Arc<str>,
    pub(super) name: Arc<str>,
    /// `None` for what has no UID: bookmarks.
    pub(super) version: Option<Version>,
    pub(super) resource_version: String,
}

impl Slim {
    fn new(mut value: Value) -> Self {
        let mut slim = Self {
            value: Value::Null,
            namespace: "".into(),
            name: "".into(),
            version: None,
            resource_version: String::new(),
        };
        if let Some(Value::Object(metadata)) = value.get_mut("metadata") {
            let text = |key: &str| metadata.get(key).and_then(Value::as_str).unwrap_or_default();
            (slim.namespace, slim.name) = (text("namespace").into(), text("name").into());
            let uid: Arc<str> = text("uid").into();
            let generation = metadata.get("generation").and_then(Value::as_i64).unwrap_or_default();
            if let Some(Value::String(version)) = metadata.remove("resourceVersion") {
                slim.resource_version = version;
            }
            let manager = metadata.remove("managedFields").as_ref().and_then(last_manager);
            slim.version = (!uid.is_empty()).then_some(Version { uid, generation, manager });
        }
        slim.value = value;
        slim
    }

    /// Whether it is the bookmark that ends a streamed list.
    pub(super) fn ends_list(&self) -> bool {
        let annotation = self.value.pointer("/metadata/annotations");
        annotation.and_then(|a| a.get(INITIAL_EVENTS_END)).and_then(Value::as_str) == Some("true")
    }
}

/// Who wrote last what is not a subresource. Times are RFC 3339 in UTC, so that text compares as time does; of equals the
/// later entry.
fn last_manager(fields: &Value) -> Option<Arc<str>> {
    let entries = fields.as_array()?.iter();
    let entries = entries.filter(|e| e.get("subresource").and_then(Value::as_str).is_none_or(str::is_empty));
    let time = |entry: &&Value| entry.get("time").and_then(Value::as_str).unwrap_or_default().to_owned();
    entries.max_by_key(time)?.get("manager")?.as_str().map(Into::into)
}

/// What a line of a watch says.
#[derive(Debug, PartialEq)]
pub(super) enum Event {
    /// Added or modified.
    Upsert(Slim),
    Delete(Slim),
    Bookmark(Slim),
    Error(Failure),
}

/// A `Status` that is a failure.
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(default)]
pub(super) struct Failure {
    pub(super) code: u16,
    pub(super) reason: String,
    pub(super) message: String,
}

/// Reads one line of a watch.
///
/// # Errors
/// If it is not JSON, or not an event.
pub(super) fn event(line: &[u8], shape: &'static Shape) -> Result<Event, serde_json::Error> {
    let mut reader = serde_json::Deserializer::from_slice(line);
    let (kind, value) = Line(shape).deserialize(&mut reader)?;
    reader.end()?;
    Ok(match kind.as_str() {
        "ADDED" | "MODIFIED" => Event::Upsert(Slim::new(value)),
        "DELETED" => Event::Delete(Slim::new(value)),
        "BOOKMARK" => Event::Bookmark(Slim::new(value)),
        "ERROR" => Event::Error(Failure::deserialize(value)?),
        other => return Err(serde_json::Error::custom(format!("unknown event {other:?}"))),
    })
}

/// One page of a list.
#[derive(Debug, Default)]
pub(super) struct Page {
    pub(super) items: Vec<Slim>,
    pub(super) resource_version: String,
    /// Where the next page begins; empty for the last.
    pub(super) next: String,
}

/// Reads one page of a list, whose items do not name their kind.
///
/// # Errors
/// If it is not JSON, or has no metadata with a resource version: a page that is cut short must not pass for a list.
pub(super) fn page(
    body: &[u8],
    shape: &'static Shape,
    api_version: &str,
    kind: &str,
) -> Result<Page, serde_json::Error> {
    let mut reader = serde_json::Deserializer::from_slice(body);
    let mut page = List(shape).deserialize(&mut reader)?;
    reader.end()?;
    if page.resource_version.is_empty() {
        return Err(serde_json::Error::custom("a list without a resource version"));
    }
    for item in &mut page.items {
        if let Value::Object(object) = &mut item.value {
            object.entry("apiVersion").or_insert_with(|| api_version.into());
            object.entry("kind").or_insert_with(|| kind.into());
        }
    }
    Ok(page)
}

impl<'de> DeserializeSeed<'de> for &'static Shape {
    type Value = Value;

    fn deserialize<D: Deserializer<'de>>(self, deserializer: D) -> Result<Value, D::Error> {
        match self {
            Whole => Value::deserialize(deserializer),
            Nothing => IgnoredAny::deserialize(deserializer).map(|_| Value::Null),
            Fields { known, rest } => deserializer.deserialize_any(Keep { known, rest: *rest }),
        }
    }
}

struct Keep {
    known: &'static [(&'static str, Shape)],
    rest: bool,
}

impl<'de> Visitor<'de> for Keep {
    type Value = Value;

    fn expecting(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("a JSON value")
    }

    fn visit_map<A: MapAccess<'de>>(self, mut access: A) -> Result<Value, A::Error> {
        let mut kept = Map::new();
        while let Some(key) = access.next_key::<String>()? {
            let shape = match self.known.iter().find(|(name, _)| *name == key) {
                Some((_, shape)) => shape,
                None if self.rest => &Whole,
                None => &Nothing,
            };
            let value = access.next_value_seed(shape)?;
            if !matches!(shape, Nothing) {
                kept.insert(key, value);
            }
        }
        Ok(Value::Object(kept))
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut access: A) -> Result<Value, A::Error> {
        let mut kept = Vec::new();
        while let Some(value) = access.next_element_seed(Each { known: self.known, rest: self.rest })? {
            kept.push(value);
        }
        Ok(Value::Array(kept))
    }

    // What is no mapping is kept as it is, for its reader to complain about.
    fn visit_bool<E>(self, value: bool) -> Result<Value, E> {
        Ok(value.into())
    }

    fn visit_i64<E>(self, value: i64) -> Result<Value, E> {
        Ok(value.into())
    }

    fn visit_u64<E>(self, value: u64) -> Result<Value, E> {
        Ok(value.into())
    }

    fn visit_f64<E>(self, value: f64) -> Result<Value, E> {
        Ok(value.into())
    }

    fn visit_str<E>(self, value: &str) -> Result<Value, E> {
        Ok(value.into())
    }

    fn visit_unit<E>(self) -> Result<Value, E> {
        Ok(Value::Null)
    }
}

struct Each {
    known: &'static [(&'static str, Shape)],
    rest: bool,
}

impl<'de> DeserializeSeed<'de> for Each {
    type Value = Value;

    fn deserialize<D: Deserializer<'de>>(self, deserializer: D) -> Result<Value, D::Error> {
        deserializer.deserialize_any(Keep { known: self.known, rest: self.rest })
    }
}

/// `{"type": .., "object": ..}`.
struct Line(&'static Shape);

impl<'de> DeserializeSeed<'de> for Line {
    type Value = (String, Value);

    fn deserialize<D: Deserializer<'de>>(self, deserializer: D) -> Result<Self::Value, D::Error> {
        deserializer.deserialize_map(self)
    }
}

impl<'de> Visitor<'de> for Line {
    type Value = (String, Value);

    fn expecting(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("a watch event")
    }

    fn visit_map<A: MapAccess<'de>>(self, mut access: A) -> Result<Self::Value, A::Error> {
        let (mut kind, mut object) = (None, None);
        while let Some(key) = access.next_key::<String>()? {
            match key.as_str() {
                "type" => kind = Some(access.next_value::<String>()?),
                "object" => object = Some(access.next_value_seed(self.0)?),
                _ => drop(access.next_value::<IgnoredAny>()?),
            }
        }
        let kind = kind.ok_or_else(|| A::Error::missing_field("type"))?;
        Ok((kind, object.ok_or_else(|| A::Error::missing_field("object"))?))
    }
}

struct List(&'static Shape);

impl<'de> DeserializeSeed<'de> for List {
    type Value = Page;

    fn deserialize<D: Deserializer<'de>>(self, deserializer: D) -> Result<Page, D::Error> {
        deserializer.deserialize_map(self)
    }
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct ListMeta {
    #[serde(default)]
    resource_version: String,
    #[serde(default, rename = "continue")]
    next: Option<String>,
}

impl<'de> Visitor<'de> for List {
    type Value = Page;

    fn expecting(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("a list of objects")
    }

    fn visit_map<A: MapAccess<'de>>(self, mut access: A) -> Result<Page, A::Error> {
        let (mut page, mut complete) = (Page::default(), false);
        while let Some(key) = access.next_key::<String>()? {
            match key.as_str() {
                "metadata" => {
                    let ListMeta { resource_version, next } = access.next_value()?;
                    (page.resource_version, page.next) = (resource_version, next.unwrap_or_default());
                }
                "items" => {
                    page.items = access.next_value_seed(Items(self.0))?;
                    complete = true;
                }
                _ => drop(access.next_value::<IgnoredAny>()?),
            }
        }
        // No items would mean that all are deleted: that must be said, not left out.
        if complete { Ok(page) } else { Err(A::Error::missing_field("items")) }
    }
}

/// The items of a list, each freed of what is not needed before the next is read. `null` is none.
struct Items(&'static Shape);

impl<'de> DeserializeSeed<'de> for Items {
    type Value = Vec<Slim>;

    fn deserialize<D: Deserializer<'de>>(self, deserializer: D) -> Result<Vec<Slim>, D::Error> {
        deserializer.deserialize_any(self)
    }
}

impl<'de> Visitor<'de> for Items {
    type Value = Vec<Slim>;

    fn expecting(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("a list")
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut access: A) -> Result<Vec<Slim>, A::Error> {
        let mut items = Vec::new();
        while let Some(value) = access.next_element_seed(self.0)? {
            items.push(Slim::new(value));
        }
        Ok(items)
    }

    fn visit_unit<E>(self) -> Result<Vec<Slim>, E> {
        Ok(Vec::new())
    }
}

#[cfg(test)]
mod tests;
