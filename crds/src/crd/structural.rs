//! Turns the JSON schema of a Rust type into a *structural* schema, the only form that the API server takes in a
//! definition: every value has one `type`, nothing is referred to, and what the API server does by itself (`null` is
//! pruned, so are unknown fields) is not said. It knows only the forms that schemars gives for our wire types.

use serde_json::{Map, Value};

/// Keywords without a meaning there, or that would change objects: a `default` is written into every one.
const DROPPED: [&str; 4] = ["$schema", "title", "default", "format"];

/// The same schema, structural.
pub(super) fn structural(schema: Value) -> Value {
    let Value::Object(schema) = schema else { return schema };
    let mut schema = without_null(schema);
    if schema.get("format").and_then(Value::as_str) == Some("uint32") {
        schema.insert("maximum".into(), u32::MAX.into());
    }
    for keyword in DROPPED {
        schema.remove(keyword);
    }
    if let Some(values) = named_values(&schema) {
        schema.remove("oneOf");
        schema.insert("type".into(), "string".into());
        schema.insert("enum".into(), values);
    }
    // `deny_unknown_fields`: unknown fields are pruned instead, and the two cannot be said together.
    if schema.get("additionalProperties") == Some(&Value::Bool(false)) {
        schema.remove("additionalProperties");
    }
    if let Some(Value::Object(properties)) = schema.get_mut("properties") {
        for property in properties.values_mut() {
            *property = structural(property.take());
        }
    }
    for nested in ["items", "additionalProperties"] {
        if let Some(element) = schema.get_mut(nested) {
            *element = structural(element.take());
            // The field's own description says it.
            if let Value::Object(element) = element {
                element.remove("description");
            }
        }
    }
    if let Some(Value::String(description)) = schema.get_mut("description") {
        *description = description.split_whitespace().collect::<Vec<_>>().join(" ");
    }
    Value::Object(schema)
}

/// An `Option<T>` as a `T`.
fn without_null(mut schema: Map<String, Value>) -> Map<String, Value> {
    if let Some(Value::Array(types)) = schema.get("type") {
        let one = types.iter().find(|one| *one != "null").cloned();
        schema.insert("type".into(), one.unwrap_or_default());
    }
    if let Some(Value::Array(values)) = schema.get_mut("enum") {
        values.retain(|value| !value.is_null());
    }
    if let Some(Value::Array(alternatives)) = schema.remove("anyOf") {
        let some = alternatives.into_iter().find(|one| one.get("type") != Some(&"null".into()));
        if let Some(Value::Object(some)) = some {
            // What is said of the field counts more than what is said of its type.
            for (keyword, value) in some {
                schema.entry(keyword).or_insert(value);
            }
        }
    }
    schema
}

/// The values of an enum whose variants have descriptions.
fn named_values(schema: &Map<String, Value>) -> Option<Value> {
    let variants = schema.get("oneOf")?.as_array()?;
    variants.iter().map(|variant| variant.get("const").cloned()).collect()
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn options_references_and_defaults_go() {
        for (schema, expect) in [
            (
                json!({"type": ["string", "null"], "default": null, "minLength": 1}),
                json!({"type": "string", "minLength": 1}),
            ),
            (
                json!({"anyOf": [{"type": "string", "enum": ["A"], "description": "of the type"}, {"type": "null"}], "description": "of\n the field"}),
                json!({"type": "string", "enum": ["A"], "description": "of the field"}),
            ),
            (
                json!({"type": ["string", "null"], "enum": ["A", null]}),
                json!({"type": "string", "enum": ["A"]}),
            ),
            (
                json!({"oneOf": [{"const": "A", "type": "string"}, {"const": "B", "type": "string", "description": "x"}]}),
                json!({"type": "string", "enum": ["A", "B"]}),
            ),
            (
                json!({"title": "T", "type": "object", "additionalProperties": false, "properties": {"a": {"type": "integer", "format": "uint32", "minimum": 0}}}),
                json!({"type": "object", "properties": {"a": {"type": "integer", "minimum": 0, "maximum": 4_294_967_295_u32}}}),
            ),
            (
                json!({"type": "array", "items": {"type": "object", "description": "of the entry", "default": {}}}),
                json!({"type": "array", "items": {"type": "object"}}),
            ),
        ] {
            assert_eq!(structural(schema.clone()), expect, "{schema}");
        }
    }
}
