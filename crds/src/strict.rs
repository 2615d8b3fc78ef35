//! A `serde_json::Value` as a deserializer that takes an object, and nothing else, for a struct, and text for an enum.
//!
//! What serde derives also reads a struct from a list, by position, so that `rules: [[]]` would pass for a rule without
//! conditions. Kubernetes refuses that, and so must everything that reads policy.

use serde::de::value::{MapDeserializer, SeqDeserializer};
use serde::de::{Deserialize, Deserializer, Error as _, IntoDeserializer, Unexpected, Visitor};
use serde_json::{Error, Value};

use crate::path::{FieldPath, Segment};

/// Reads `value`; the error comes with its place.
pub(crate) fn read<'de, T: Deserialize<'de>>(value: &'de Value) -> Result<T, (FieldPath, String)> {
    serde_path_to_error::deserialize(Strict(value)).map_err(|error| {
        let steps = error.path().iter().map_while(|segment| match segment {
            serde_path_to_error::Segment::Seq { index } => Some(Segment::Index(*index)),
            serde_path_to_error::Segment::Map { key } => Some(Segment::Key(key.clone())),
            serde_path_to_error::Segment::Enum { .. } | serde_path_to_error::Segment::Unknown => None,
        });
        (FieldPath(steps.collect()), error.inner().to_string())
    })
}

#[derive(Clone, Copy)]
struct Strict<'de>(&'de Value);

impl<'de> IntoDeserializer<'de, Error> for Strict<'de> {
    type Deserializer = Self;

    fn into_deserializer(self) -> Self {
        self
    }
}

fn unexpected(value: &Value) -> Unexpected<'_> {
    match value {
        Value::Null => Unexpected::Unit,
        Value::Bool(v) => Unexpected::Bool(*v),
        Value::Number(_) => Unexpected::Other("number"),
        Value::String(v) => Unexpected::Str(v),
        Value::Array(_) => Unexpected::Seq,
        Value::Object(_) => Unexpected::Map,
    }
}

impl<'de> Deserializer<'de> for Strict<'de> {
    type Error = Error;

    fn deserialize_any<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, Error> {
        match self.0 {
            Value::Array(items) => visitor.visit_seq(SeqDeserializer::new(items.iter().map(Strict))),
            Value::Object(map) => visitor.visit_map(MapDeserializer::new(
                map.iter().map(|(key, value)| (key.as_str(), Strict(value))),
            )),
            scalar => scalar.deserialize_any(visitor),
        }
    }

    fn deserialize_option<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, Error> {
        if self.0.is_null() { visitor.visit_none() } else { visitor.visit_some(self) }
    }

    fn deserialize_newtype_struct<V: Visitor<'de>>(
        self,
        _: &'static str,
        visitor: V,
    ) -> Result<V::Value, Error> {
        visitor.visit_newtype_struct(self)
    }

    fn deserialize_struct<V: Visitor<'de>>(
        self,
        _: &'static str,
        _: &'static [&'static str],
        visitor: V,
    ) -> Result<V::Value, Error> {
        if self.0.is_object() {
            self.deserialize_any(visitor)
        } else {
            Err(Error::invalid_type(unexpected(self.0), &visitor))
        }
    }

    fn deserialize_enum<V: Visitor<'de>>(
        self,
        name: &'static str,
        variants: &'static [&'static str],
        visitor: V,
    ) -> Result<V::Value, Error> {
        if self.0.is_string() {
            self.0.deserialize_enum(name, variants, visitor)
        } else {
            Err(Error::invalid_type(unexpected(self.0), &"one of the names of the values"))
        }
    }

    serde::forward_to_deserialize_any! {
        bool i8 i16 i32 i64 i128 u8 u16 u32 u64 u128 f32 f64 char str string bytes byte_buf unit unit_struct
        seq tuple tuple_struct map identifier ignored_any
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use super::*;

    #[derive(Debug, Default, PartialEq, serde::Deserialize)]
    #[serde(deny_unknown_fields, default)]
    struct Outer {
        inner: Option<Inner>,
        list: Vec<Inner>,
        map: BTreeMap<String, Inner>,
        choice: Option<Choice>,
    }

    #[derive(Debug, Default, PartialEq, serde::Deserialize)]
    #[serde(default)]
    struct Inner {
        a: u16,
    }

    #[derive(Debug, PartialEq, serde::Deserialize)]
    enum Choice {
        This,
    }

    #[test]
    fn a_list_is_no_object() {
        for (text, place) in [
            ("[]", ""),
            (r#"{"inner": []}"#, "inner"),
            (r#"{"inner": [1]}"#, "inner"),
            (r#"{"list": [{}, []]}"#, "list[1]"),
            (r#"{"map": {"x": [1]}}"#, "map.x"),
            (r#"{"list": {}}"#, "list"),
            (r#"{"map": []}"#, "map"),
            (r#"{"choice": {"This": {}}}"#, "choice"),
            (r#"{"choice": ["This"]}"#, "choice"),
            (r#"{"inner": {"a": 65536}}"#, "inner.a"),
            (r#"{"inner": {"a": "1"}}"#, "inner.a"),
            (r#"{"other": 1}"#, "other"),
            (r#""text""#, ""),
        ] {
            let value = serde_json::from_str(text).unwrap();
            let (path, _) = read::<Outer>(&value).expect_err(text);
            assert_eq!(path.to_string(), place, "{text}");
        }
        let value =
            serde_json::from_str(r#"{"inner": {"a": 1}, "list": [{}], "map": {"x": {}}, "choice": "This"}"#)
                .unwrap();
        let expect = Outer {
            inner: Some(Inner { a: 1 }),
            list: vec![Inner::default()],
            map: [("x".to_owned(), Inner::default())].into(),
            choice: Some(Choice::This),
        };
        assert_eq!(read::<Outer>(&value).unwrap(), expect);
    }
}
