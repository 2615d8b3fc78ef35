use super::*;

/// The keywords that a structural schema may have (apiextensions.k8s.io/v1, JSONSchemaProps) and ours do.
const KEYWORDS: [&str; 19] = [
    "additionalProperties",
    "anyOf",
    "description",
    "enum",
    "format",
    "items",
    "maxItems",
    "maxLength",
    "maxProperties",
    "maximum",
    "minLength",
    "minProperties",
    "minimum",
    "pattern",
    "properties",
    "required",
    "type",
    "x-kubernetes-int-or-string",
    "x-kubernetes-preserve-unknown-fields",
];

#[test]
fn every_schema_is_structural() {
    fn check(schema: &Value, at: &str) {
        let schema = schema.as_object().unwrap_or_else(|| panic!("{at}: {schema}"));
        for (keyword, value) in schema {
            match keyword.as_str() {
                "properties" => {
                    for (name, property) in value.as_object().unwrap() {
                        check(property, &format!("{at}.{name}"));
                    }
                }
                "items" | "additionalProperties" => check(value, &format!("{at}[]")),
                "x-kubernetes-validations" => {
                    for rule in value.as_array().unwrap() {
                        assert!(rule["rule"].is_string() && rule["message"].is_string(), "{at}: {rule}");
                    }
                }
                known => assert!(KEYWORDS.contains(&known), "{at}: {known}"),
            }
        }
        let open = schema.contains_key("x-kubernetes-int-or-string");
        assert!(open || schema["type"].is_string(), "{at}: a type is missing");
        assert!(
            !(schema.contains_key("properties") && schema.contains_key("additionalProperties")),
            "{at}: fields or keys, not both"
        );
        let named = at.ends_with("[]") || schema.contains_key("description");
        assert!(named, "{at}: kubectl explain would say nothing");
    }
    for definition in definitions() {
        for version in definition.value()["spec"]["versions"].as_array().unwrap() {
            let at = format!("{}/{}", definition.name(), version["name"]);
            check(&version["schema"]["openAPIV3Schema"], &at);
        }
    }
}

#[test]
fn every_kind_that_is_not_kubernetes_own_has_a_definition() {
    let own: Vec<Kind> = definitions().iter().map(|definition| definition.kind).collect();
    for kind in Kind::ALL {
        assert_eq!(kind.group().ends_with("istio.io"), own.contains(&kind), "{kind}");
    }
}

/// The one version that is stored is the first; the others have the same schema, so that none loses a field.
#[test]
fn versions_are_equal() {
    for definition in definitions() {
        let versions = definition.value()["spec"]["versions"].as_array().unwrap();
        let names: Vec<_> = versions.iter().map(|version| version["name"].as_str().unwrap()).collect();
        assert_eq!(names, definition.kind.versions());
        for (index, version) in versions.iter().enumerate() {
            assert_eq!(version["storage"], index == 0);
            assert_eq!(version["served"], true);
            assert_eq!(version["schema"], versions[0]["schema"]);
        }
    }
}

#[test]
fn no_uninstall_takes_them_along() {
    for definition in definitions() {
        assert_eq!(definition.value()["metadata"]["annotations"]["helm.sh/resource-policy"], "keep");
        assert_eq!(definition.value()["metadata"]["labels"][PART_OF_LABEL.0], PART_OF_LABEL.1);
    }
}
