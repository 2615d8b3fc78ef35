//! Resources as JSON: the proto3 JSON form that Envoy reads and people can too. Knows exactly the messages and fields
//! that translation makes (`json/schema.txt`, taken from Envoy's protos): an unknown field is an error, never
//! left out, so what is shown is all there is. Reads nothing back.

use std::collections::{BTreeMap, HashMap};
use std::sync::OnceLock;

use envoy_types::pb::google::protobuf as google;
use prost::Message;
use prost::bytes::Buf;
use prost::encoding::{WireType, decode_key, decode_varint};
use serde_json::{Map, Value, json};

use crate::Resource;

const SCHEMA: &str = include_str!("json/schema.txt");

/// Bytes that are no message of ours.
#[derive(Debug, thiserror::Error)]
pub enum JsonError {
    #[error("not a protobuf message")]
    Decode(#[from] prost::DecodeError),
    #[error("not a protobuf message: it ends within a field, or has a group")]
    Wire,
    #[error("message {0} is not in the schema")]
    Message(String),
    #[error("field {field} of {message} is not in the schema")]
    Field { message: String, field: u32 },
}

/// `resource`, with its type under `@type`.
pub fn resource(resource: &Resource) -> Result<Value, JsonError> {
    any(&resource.any)
}

/// An encoded `google.protobuf.Any`.
fn any(bytes: &[u8]) -> Result<Value, JsonError> {
    let google::Any { type_url, value } = google::Any::decode(bytes)?;
    let name = type_url.strip_prefix("type.googleapis.com/").unwrap_or(&type_url).to_owned();
    let mut fields = object(&name, &value)?;
    fields.insert("@type".to_owned(), type_url.into());
    Ok(sorted(fields))
}

pub(super) type Fields = BTreeMap<String, Value>;

/// In a fixed order, whatever a `Map` does with it.
pub(super) fn sorted(fields: Fields) -> Value {
    Value::Object(fields.into_iter().collect::<Map<_, _>>())
}

#[derive(Debug)]
struct Field {
    name: &'static str,
    kind: &'static str,
    shape: Shape,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Shape {
    One,
    List,
    Map,
}

#[derive(Debug, Default)]
struct Schema {
    messages: HashMap<&'static str, HashMap<u32, Field>>,
    enums: HashMap<&'static str, HashMap<u64, &'static str>>,
}

fn schema() -> &'static Schema {
    static PARSED: OnceLock<Schema> = OnceLock::new();
    PARSED.get_or_init(|| {
        let mut schema = Schema::default();
        let mut current = "";
        for line in SCHEMA.lines() {
            let words: Vec<&str> = line.split_whitespace().collect();
            let number = words[0].parse::<u32>().unwrap_or_default();
            match (line.starts_with(' '), &*words) {
                (false, ["enum", name]) => {
                    schema.enums.insert(name, HashMap::new());
                    current = name;
                }
                (false, [name]) => {
                    schema.messages.insert(name, HashMap::new());
                    current = name;
                }
                (true, [_, name]) => {
                    let values = schema.enums.get_mut(current).expect("values follow their enum");
                    values.insert(number.into(), name);
                }
                (true, [_, name, rest @ .., kind]) => {
                    let shape = match rest {
                        ["list"] => Shape::List,
                        ["map"] => Shape::Map,
                        _ => Shape::One,
                    };
                    let fields = schema.messages.get_mut(current).expect("fields follow their message");
                    fields.insert(number, Field { name, kind, shape });
                }
                _ => unreachable!("schema.txt: {line}"),
            }
        }
        schema
    })
}

/// One field as it stands on the wire.
enum Raw<'a> {
    Number(u64),
    Bytes(&'a [u8]),
}

fn next<'a>(bytes: &mut &'a [u8]) -> Result<(u32, Raw<'a>), JsonError> {
    let (field, wire) = decode_key(bytes)?;
    let raw = match wire {
        WireType::Varint => Raw::Number(decode_varint(bytes)?),
        WireType::LengthDelimited => {
            let length = usize::try_from(decode_varint(bytes)?).unwrap_or(usize::MAX);
            let Some((value, rest)) = bytes.split_at_checked(length) else {
                return Err(JsonError::Wire);
            };
            *bytes = rest;
            Raw::Bytes(value)
        }
        WireType::SixtyFourBit if bytes.len() >= 8 => Raw::Number(bytes.get_u64_le()),
        WireType::ThirtyTwoBit if bytes.len() >= 4 => Raw::Number(bytes.get_u32_le().into()),
        _ => return Err(JsonError::Wire),
    };
    Ok((field, raw))
}

pub(super) fn object(message: &str, mut bytes: &[u8]) -> Result<Fields, JsonError> {
    let fields = schema().messages.get(message).ok_or_else(|| JsonError::Message(message.to_owned()))?;
    let mut object = Fields::new();
    while !bytes.is_empty() {
        let (number, raw) = next(&mut bytes)?;
        let unknown = || JsonError::Field { message: message.to_owned(), field: number };
        let Field { name, kind, shape } = fields.get(&number).ok_or_else(unknown)?;
        match shape {
            Shape::One => drop(object.insert((*name).to_owned(), value(kind, &raw)?)),
            Shape::List => {
                let list = object.entry((*name).to_owned()).or_insert_with(|| json!([]));
                list.as_array_mut().expect("made above").push(value(kind, &raw)?);
            }
            Shape::Map => {
                let (key, entry) = entry(kind, &raw)?;
                let map = object.entry((*name).to_owned()).or_insert_with(|| json!({}));
                map.as_object_mut().expect("made above").insert(key, entry);
            }
        }
    }
    Ok(object)
}

/// A map entry is a message of key (1, always a string here) and value (2).
fn entry(kind: &str, raw: &Raw<'_>) -> Result<(String, Value), JsonError> {
    let Raw::Bytes(mut bytes) = *raw else { return Err(JsonError::Message(kind.to_owned())) };
    let mut key = String::new();
    let mut found = None;
    while !bytes.is_empty() {
        match next(&mut bytes)? {
            (1, Raw::Bytes(text)) => key = String::from_utf8_lossy(text).into_owned(),
            (_, raw) => found = Some(value(kind, &raw)?),
        }
    }
    // An entry without a value has the default one: an empty message.
    Ok((key, found.map_or_else(|| value(kind, &Raw::Bytes(&[])), Ok)?))
}

fn value(kind: &str, raw: &Raw<'_>) -> Result<Value, JsonError> {
    Ok(match (kind, raw) {
        ("bool", Raw::Number(value)) => (*value != 0).into(),
        ("string", Raw::Bytes(text)) => String::from_utf8_lossy(text).into(),
        ("google.protobuf.Any", Raw::Bytes(bytes)) => any(bytes)?,
        ("google.protobuf.BoolValue", Raw::Bytes(bytes)) => google::BoolValue::decode(*bytes)?.value.into(),
        ("google.protobuf.UInt32Value", Raw::Bytes(bytes)) => {
            google::UInt32Value::decode(*bytes)?.value.into()
        }
        ("google.protobuf.Duration", Raw::Bytes(bytes)) => {
            duration(&google::Duration::decode(*bytes)?).into()
        }
        ("google.protobuf.Empty", Raw::Bytes(_)) => json!({}),
        ("google.protobuf.Struct", Raw::Bytes(bytes)) => structure(google::Struct::decode(*bytes)?),
        (_, Raw::Bytes(bytes)) => sorted(object(kind, bytes)?),
        (_, Raw::Number(number)) => match schema().enums.get(kind).and_then(|values| values.get(number)) {
            Some(name) => (*name).into(),
            None => (*number).into(),
        },
    })
}

fn duration(duration: &google::Duration) -> String {
    let google::Duration { seconds, nanos } = duration;
    if *nanos == 0 { format!("{seconds}s") } else { format!("{seconds}.{nanos:09}s") }
}

fn structure(object: google::Struct) -> Value {
    fn plain(value: google::Value) -> Value {
        match value.kind {
            None | Some(google::value::Kind::NullValue(_)) => Value::Null,
            Some(google::value::Kind::NumberValue(value)) => value.into(),
            Some(google::value::Kind::StringValue(value)) => value.into(),
            Some(google::value::Kind::BoolValue(value)) => value.into(),
            Some(google::value::Kind::StructValue(value)) => structure(value),
            Some(google::value::Kind::ListValue(list)) => list.values.into_iter().map(plain).collect(),
        }
    }
    sorted(object.fields.into_iter().map(|(name, value)| (name, plain(value))).collect())
}
