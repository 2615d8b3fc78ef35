//! Finds the line and column of a field by reading the text once more and failing, on purpose, where the field is:
//! both parsers put their position on errors that a visitor raises. Used only when there is something to report.

use std::fmt;

use serde::de::{self, DeserializeSeed, Deserializer, IgnoredAny, MapAccess, SeqAccess, Visitor};

use super::{Format, Position};
use crate::path::{FieldPath, Segment};

/// The position of the field at `path`, or of the closest parent that is there, within `text`.
pub(super) fn locate(text: &str, format: Format, path: &FieldPath) -> Option<Position> {
    let seed = Seek { path: &path.0 };
    match format {
        Format::Json => {
            let error = seed.deserialize(&mut serde_json::Deserializer::from_str(text)).err()?;
            is_mark(&error).then(|| Position { line: error.line(), column: error.column() })
        }
        Format::Yaml => {
            let error = seed.deserialize(serde_yaml::Deserializer::from_str(text)).err()?;
            let location = error.location()?;
            is_mark(&error).then(|| Position { line: location.line(), column: location.column() })
        }
    }
}

const MARK: &str = "this is the place that was looked for";

fn is_mark(error: &impl fmt::Display) -> bool {
    error.to_string().contains(MARK)
}

#[derive(Clone, Copy)]
struct Seek<'p> {
    path: &'p [Segment],
}

impl<'de> DeserializeSeed<'de> for Seek<'_> {
    type Value = ();

    fn deserialize<D: Deserializer<'de>>(self, deserializer: D) -> Result<(), D::Error> {
        deserializer.deserialize_any(self)
    }
}

impl<'de> Visitor<'de> for Seek<'_> {
    type Value = ();

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(MARK)
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut seq: A) -> Result<(), A::Error> {
        if let Some((Segment::Index(index), rest)) = self.path.split_first() {
            for _ in 0..*index {
                seq.next_element::<IgnoredAny>()?;
            }
            seq.next_element_seed(Self { path: rest })?;
        }
        // The place itself, or as close to it as it gets.
        Err(de::Error::custom(MARK))
    }

    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<(), A::Error> {
        if let Some((Segment::Key(wanted), rest)) = self.path.split_first() {
            while let Some(found) = map.next_key_seed(SeekKey { wanted, last: rest.is_empty() })? {
                if found {
                    map.next_value_seed(Self { path: rest })?;
                } else {
                    map.next_value::<IgnoredAny>()?;
                }
            }
        }
        Err(de::Error::custom(MARK))
    }
}

/// Whether a key is the wanted one; if it is also the last step, this is the place.
#[derive(Clone, Copy)]
struct SeekKey<'p> {
    wanted: &'p str,
    last: bool,
}

impl SeekKey<'_> {
    fn judge<E: de::Error>(self, key: &str) -> Result<bool, E> {
        match (key == self.wanted, self.last) {
            (false, _) => Ok(false),
            (true, false) => Ok(true),
            (true, true) => Err(E::custom(MARK)),
        }
    }
}

impl<'de> DeserializeSeed<'de> for SeekKey<'_> {
    type Value = bool;

    fn deserialize<D: Deserializer<'de>>(self, deserializer: D) -> Result<bool, D::Error> {
        deserializer.deserialize_any(self)
    }
}

impl<'de> Visitor<'de> for SeekKey<'_> {
    type Value = bool;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a name")
    }

    fn visit_bool<E: de::Error>(self, v: bool) -> Result<bool, E> {
        self.judge(&v.to_string())
    }

    fn visit_i64<E: de::Error>(self, v: i64) -> Result<bool, E> {
        self.judge(&v.to_string())
    }

    fn visit_u64<E: de::Error>(self, v: u64) -> Result<bool, E> {
        self.judge(&v.to_string())
    }

    fn visit_str<E: de::Error>(self, v: &str) -> Result<bool, E> {
        self.judge(v)
    }
}
