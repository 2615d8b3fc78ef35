//! A YAML or JSON document as one `serde_json::Value`, within limits and without surprises: duplicate keys, merge
//! keys and values that JSON does not have are refused, and so is a document that anchors blow up. It knows nothing of
//! Kubernetes. Keys that are numbers or booleans become text, as `kubectl` does (`portLevelMtls: {8080: …}`).

use std::cell::{Cell, RefCell};
use std::fmt;

use serde::de::{self, DeserializeSeed, Deserializer, IgnoredAny, MapAccess, SeqAccess, Visitor};
use serde_json::{Map, Value};

/// Values and keys one document may hold, aliases expanded. A Kubernetes object of 1 MiB has far fewer.
const MAX_NODES: usize = 100_000;
/// Bytes of text one document may hold, aliases expanded.
const MAX_TEXT: usize = 4 << 20;

/// What of a document's budget is used up.
#[derive(Debug, Default)]
pub(super) struct Budget {
    nodes: Cell<usize>,
    text: Cell<usize>,
}

impl Budget {
    fn spend<E: de::Error>(&self, text: usize) -> Result<(), E> {
        self.nodes.set(self.nodes.get() + 1);
        self.text.set(self.text.get() + text);
        if self.nodes.get() > MAX_NODES || self.text.get() > MAX_TEXT {
            return Err(E::custom(format!(
                "the document is too large once its anchors are expanded (at most {MAX_NODES} values, {MAX_TEXT} bytes)"
            )));
        }
        Ok(())
    }
}

/// The seed of one value.
#[derive(Clone, Copy)]
pub(super) struct Tree<'b>(pub(super) &'b Budget);

impl<'de> DeserializeSeed<'de> for Tree<'_> {
    type Value = Value;

    fn deserialize<D: Deserializer<'de>>(self, deserializer: D) -> Result<Value, D::Error> {
        deserializer.deserialize_any(self)
    }
}

impl<'de> Visitor<'de> for Tree<'_> {
    type Value = Value;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a value that JSON can hold")
    }

    fn visit_bool<E: de::Error>(self, v: bool) -> Result<Value, E> {
        self.0.spend(0)?;
        Ok(Value::Bool(v))
    }

    fn visit_i64<E: de::Error>(self, v: i64) -> Result<Value, E> {
        self.0.spend(0)?;
        Ok(v.into())
    }

    fn visit_u64<E: de::Error>(self, v: u64) -> Result<Value, E> {
        self.0.spend(0)?;
        Ok(v.into())
    }

    fn visit_f64<E: de::Error>(self, v: f64) -> Result<Value, E> {
        self.0.spend(0)?;
        serde_json::Number::from_f64(v).map(Value::Number).ok_or_else(|| E::custom("not a finite number"))
    }

    fn visit_str<E: de::Error>(self, v: &str) -> Result<Value, E> {
        self.0.spend(v.len())?;
        Ok(Value::String(v.to_owned()))
    }

    fn visit_unit<E: de::Error>(self) -> Result<Value, E> {
        self.0.spend(0)?;
        Ok(Value::Null)
    }

    fn visit_none<E: de::Error>(self) -> Result<Value, E> {
        self.visit_unit()
    }

    fn visit_some<D: Deserializer<'de>>(self, deserializer: D) -> Result<Value, D::Error> {
        deserializer.deserialize_any(self)
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut seq: A) -> Result<Value, A::Error> {
        self.0.spend(0)?;
        let mut items = Vec::new();
        while let Some(item) = seq.next_element_seed(self)? {
            items.push(item);
        }
        Ok(Value::Array(items))
    }

    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Value, A::Error> {
        self.0.spend(0)?;
        let mut object = Map::new();
        while let Some(key) = map.next_key_seed(Key { budget: self.0, unlike: Some(&object) })? {
            let value = map.next_value_seed(self)?;
            object.insert(key, value);
        }
        Ok(Value::Object(object))
    }
}

/// The seed of a key that must not be in `unlike` yet: refusing it here puts the error at the second one's position.
pub(super) struct Key<'b> {
    pub(super) budget: &'b Budget,
    pub(super) unlike: Option<&'b Map<String, Value>>,
}

impl Key<'_> {
    fn accept<E: de::Error>(self, key: String) -> Result<String, E> {
        self.budget.spend(key.len())?;
        if key == "<<" {
            return Err(E::custom("merge keys (`<<`) are not supported; write the fields out"));
        }
        if self.unlike.is_some_and(|object| object.contains_key(&key)) {
            return Err(E::custom(format!("key `{key}` is given twice")));
        }
        Ok(key)
    }
}

impl<'de> DeserializeSeed<'de> for Key<'_> {
    type Value = String;

    fn deserialize<D: Deserializer<'de>>(self, deserializer: D) -> Result<String, D::Error> {
        deserializer.deserialize_any(self)
    }
}

impl<'de> Visitor<'de> for Key<'_> {
    type Value = String;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a name")
    }

    fn visit_bool<E: de::Error>(self, v: bool) -> Result<String, E> {
        self.accept(v.to_string())
    }

    fn visit_i64<E: de::Error>(self, v: i64) -> Result<String, E> {
        self.accept(v.to_string())
    }

    fn visit_u64<E: de::Error>(self, v: u64) -> Result<String, E> {
        self.accept(v.to_string())
    }

    fn visit_str<E: de::Error>(self, v: &str) -> Result<String, E> {
        self.accept(v.to_owned())
    }
}

/// The parts of a broken document that tell whose it is, as far as they were read before the break. `metadata` is only
/// there if it was read to its end: a namespace might still have followed.
pub(super) type Identity = RefCell<Map<String, Value>>;

/// The seed that fills an [`Identity`]; its own result does not matter.
pub(super) struct Identify<'b>(pub(super) &'b Identity, pub(super) &'b Budget);

impl<'de> DeserializeSeed<'de> for Identify<'_> {
    type Value = ();

    fn deserialize<D: Deserializer<'de>>(self, deserializer: D) -> Result<(), D::Error> {
        deserializer.deserialize_map(self)
    }
}

impl<'de> Visitor<'de> for Identify<'_> {
    type Value = ();

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("an object")
    }

    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<(), A::Error> {
        while let Some(key) = map.next_key_seed(Key { budget: self.1, unlike: None })? {
            if !matches!(key.as_str(), "apiVersion" | "kind" | "metadata") {
                map.next_value::<IgnoredAny>()?;
                continue;
            }
            let value = map.next_value_seed(Tree(self.1))?;
            // Given twice: nobody can tell which one was meant.
            let value = if self.0.borrow().contains_key(&key) { Value::Null } else { value };
            self.0.borrow_mut().insert(key, value);
        }
        Ok(())
    }
}
