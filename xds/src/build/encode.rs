//! Deterministic encoding: equal content is equal bytes in every process (design decision 4).
//! prost's maps are `HashMap`s and would come out in random order, so every message here that can hold more than one
//! entry in a map is a type of our own with the same field numbers and a `BTreeMap`. Decides nothing about content.

use std::collections::BTreeMap;
use std::sync::Arc;

use bytes::Bytes;
use prost::{Message, Name};

use super::pb::{Any, core, jwt_authn, rbac};
use crate::{Resource, ResourceType};

/// `google.protobuf.Any` of `message`.
pub(crate) fn any<M: Message + Name>(message: &M) -> Any {
    Any { type_url: M::type_url(), value: message.encode_to_vec() }
}

/// A resource named `name`, of the type that `M` is.
pub(crate) fn resource<M: Message + Name>(
    name: impl Into<Arc<str>>,
    message: &M,
) -> (ResourceType, Resource) {
    let any = any(message);
    let kind = ResourceType::from_type_url(&any.type_url).expect("only resources are encoded as such");
    (kind, Resource::new(name, Bytes::from(any.encode_to_vec())))
}

/// An extension config named `name`.
pub(crate) fn extension(name: &str, config: Any) -> (ResourceType, Resource) {
    resource(name, &core::TypedExtensionConfig { name: name.to_owned(), typed_config: Some(config) })
}

macro_rules! named {
    ($type:ty, $package:literal, $name:literal) => {
        impl Name for $type {
            const NAME: &'static str = $name;
            const PACKAGE: &'static str = $package;
            fn full_name() -> String {
                concat!($package, ".", $name).to_owned()
            }
            fn type_url() -> String {
                concat!("type.googleapis.com/", $package, ".", $name).to_owned()
            }
        }
    };
}

/// `envoy.config.rbac.v3.RBAC`.
#[derive(Clone, PartialEq, Message)]
pub(crate) struct Rules {
    #[prost(enumeration = "rbac::rbac::Action", tag = "1")]
    pub(crate) action: i32,
    #[prost(btree_map = "string, message", tag = "2")]
    pub(crate) policies: BTreeMap<String, rbac::Policy>,
}

/// `envoy.extensions.filters.http.rbac.v3.RBAC`.
#[derive(Clone, PartialEq, Message)]
pub(crate) struct HttpRbac {
    #[prost(message, optional, tag = "1")]
    pub(crate) rules: Option<Rules>,
    #[prost(message, optional, tag = "2")]
    pub(crate) shadow_rules: Option<Rules>,
    #[prost(string, tag = "3")]
    pub(crate) shadow_rules_stat_prefix: String,
}
named!(HttpRbac, "envoy.extensions.filters.http.rbac.v3", "RBAC");

/// `envoy.extensions.filters.network.rbac.v3.RBAC`.
#[derive(Clone, PartialEq, Message)]
pub(crate) struct NetworkRbac {
    #[prost(message, optional, tag = "1")]
    pub(crate) rules: Option<Rules>,
    #[prost(message, optional, tag = "2")]
    pub(crate) shadow_rules: Option<Rules>,
    #[prost(string, tag = "3")]
    pub(crate) stat_prefix: String,
    #[prost(string, tag = "5")]
    pub(crate) shadow_rules_stat_prefix: String,
}
named!(NetworkRbac, "envoy.extensions.filters.network.rbac.v3", "RBAC");

/// `envoy.extensions.filters.http.jwt_authn.v3.JwtAuthentication`.
#[derive(Clone, PartialEq, Message)]
pub(crate) struct JwtAuthentication {
    #[prost(btree_map = "string, message", tag = "1")]
    pub(crate) providers: BTreeMap<String, jwt_authn::JwtProvider>,
    #[prost(message, repeated, tag = "2")]
    pub(crate) rules: Vec<jwt_authn::RequirementRule>,
    #[prost(bool, tag = "4")]
    pub(crate) bypass_cors_preflight: bool,
}
named!(JwtAuthentication, "envoy.extensions.filters.http.jwt_authn.v3", "JwtAuthentication");

/// `envoy.extensions.access_loggers.file.v3.FileAccessLog`.
#[derive(Clone, PartialEq, Message)]
pub(crate) struct FileAccessLog {
    #[prost(string, tag = "1")]
    pub(crate) path: String,
    #[prost(message, optional, tag = "5")]
    pub(crate) log_format: Option<LogFormat>,
}
named!(FileAccessLog, "envoy.extensions.access_loggers.file.v3", "FileAccessLog");

/// `envoy.config.core.v3.SubstitutionFormatString`.
#[derive(Clone, PartialEq, Message)]
pub(crate) struct LogFormat {
    #[prost(message, optional, tag = "2")]
    pub(crate) json_format: Option<Struct>,
    #[prost(message, optional, tag = "5")]
    pub(crate) text_format_source: Option<core::DataSource>,
}

/// `google.protobuf.Struct`.
#[derive(Clone, PartialEq, Message)]
pub(crate) struct Struct {
    #[prost(btree_map = "string, message", tag = "1")]
    pub(crate) fields: BTreeMap<String, Value>,
}

/// `google.protobuf.Value`.
#[derive(Clone, PartialEq, Message)]
pub(crate) struct Value {
    #[prost(oneof = "Kind", tags = "1, 2, 3, 4, 5, 6")]
    pub(crate) kind: Option<Kind>,
}

#[derive(Clone, PartialEq, prost::Oneof)]
pub(crate) enum Kind {
    #[prost(int32, tag = "1")]
    Null(i32),
    #[prost(double, tag = "2")]
    Number(f64),
    #[prost(string, tag = "3")]
    String(String),
    #[prost(bool, tag = "4")]
    Bool(bool),
    #[prost(message, tag = "5")]
    Struct(Struct),
    #[prost(message, tag = "6")]
    List(ListValue),
}

/// `google.protobuf.ListValue`.
#[derive(Clone, PartialEq, Message)]
pub(crate) struct ListValue {
    #[prost(message, repeated, tag = "1")]
    pub(crate) values: Vec<Value>,
}

impl From<&serde_json::Value> for Value {
    fn from(json: &serde_json::Value) -> Self {
        let kind = match json {
            serde_json::Value::Null => Kind::Null(0),
            serde_json::Value::Bool(value) => Kind::Bool(*value),
            serde_json::Value::Number(value) => Kind::Number(value.as_f64().unwrap_or_default()),
            serde_json::Value::String(value) => Kind::String(value.clone()),
            serde_json::Value::Array(values) => {
                Kind::List(ListValue { values: values.iter().map(Self::from).collect() })
            }
            serde_json::Value::Object(fields) => {
                Kind::Struct(Struct { fields: fields.iter().map(|(k, v)| (k.clone(), v.into())).collect() })
            }
        };
        Self { kind: Some(kind) }
    }
}

/// A `Struct` with a single string field, in Envoy's own type (one entry: its order cannot vary).
pub(crate) fn one_field(name: &str, value: &str) -> envoy_types::pb::google::protobuf::Struct {
    use envoy_types::pb::google::protobuf::{Struct, Value, value::Kind};
    let value = Value { kind: Some(Kind::StringValue(value.to_owned())) };
    Struct { fields: [(name.to_owned(), value)].into() }
}
