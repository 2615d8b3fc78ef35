//! What the schemas of the wire types say beyond their Rust types: patterns, and rules in CEL. Each is what Istio's
//! definitions demand (semantics §1.2–1.5), no more and no less, in our words. It holds no limits: those are constants
//! beside the code that checks them.
//!
//! The API server estimates what a rule may cost at worst and refuses a definition that costs too much; so lists and
//! texts that a rule walks need a bound.

use schemars::{Schema, SchemaGenerator, json_schema};
use serde_json::{Value, json};

use crate::selector::{MAX_LABEL_VALUE, MAX_LABELS};

/// An API group, or nothing.
pub(crate) const GROUP: &str = r"^$|^[a-z0-9]([-a-z0-9]*[a-z0-9])?(\.[a-z0-9]([-a-z0-9]*[a-z0-9])?)*$";
/// The name of a kind.
pub(crate) const KIND: &str = "^[a-zA-Z]([-a-zA-Z0-9]*[a-zA-Z0-9])?$";
/// The name of a header.
pub(crate) const HEADER: &str = "^[-_A-Za-z0-9]+$";

/// The value of `x-kubernetes-validations`: rules, each with what is said where it does not hold.
fn rules(rules: &[(&str, &str)]) -> Value {
    rules.iter().map(|(rule, message)| json!({ "rule": rule, "message": message })).collect()
}

/// On a spec with `selector`, `targetRef` and `targetRefs`.
pub(crate) fn one_attachment() -> Value {
    rules(&[(
        "!(has(self.selector) && has(self.targetRef)) && !(has(self.selector) && has(self.targetRefs)) && !(has(self.targetRef) && has(self.targetRefs))",
        "only one of selector, targetRef and targetRefs can be given",
    )])
}

/// On the namespace of a target.
pub(crate) fn own_namespace() -> Value {
    rules(&[("self == ''", "a policy can only refer to its own namespace: leave it out")])
}

/// On the spec of a PeerAuthentication.
pub(crate) fn ports_need_labels() -> Value {
    rules(&[(
        "!has(self.portLevelMtls) || (has(self.selector) && has(self.selector.matchLabels) && self.selector.matchLabels.size() > 0)",
        "ports can only be given together with a selector that has labels",
    )])
}

/// On a map keyed by ports.
pub(crate) fn port_keys() -> Value {
    rules(&[("self.all(port, int(port) >= 1 && int(port) <= 65535)", "a port is a number from 1 to 65535")])
}

/// On a source.
pub(crate) fn accounts_alone() -> Value {
    rules(&[(
        "!(has(self.serviceAccounts) || has(self.notServiceAccounts)) || !(has(self.principals) || has(self.notPrincipals) || has(self.namespaces) || has(self.notNamespaces))",
        "service accounts cannot be combined with principals or namespaces",
    )])
}

/// On a rule for tokens.
pub(crate) fn one_key_source() -> Value {
    rules(&[(
        "!(has(self.jwksUri) && has(self.jwks)) && !(has(self.jwksUri) && has(self.jwks_uri)) && !(has(self.jwks_uri) && has(self.jwks))",
        "only one of jwksUri and jwks can be given",
    )])
}

/// On a URL of keys.
pub(crate) fn http_url() -> Value {
    rules(&[("url(self).getScheme() in ['http', 'https']", "must be a URL whose scheme is http or https")])
}

/// On the time that fetching keys may take.
pub(crate) fn one_millisecond() -> Value {
    rules(&[("duration(self) >= duration('1ms')", "must be a duration of at least 1ms")])
}

/// A list of objects that are read by others.
pub(crate) fn anything_listed(_: &mut SchemaGenerator) -> Schema {
    json_schema!({
        "type": "array",
        "items": { "type": "object", "x-kubernetes-preserve-unknown-fields": true },
    })
}

/// On the spec of a WorkloadEntry.
pub(crate) fn entry_address() -> Value {
    rules(&[
        ("has(self.address) || has(self.network)", "an address is required"),
        (
            "!has(self.ports) || !has(self.address) || !self.address.startsWith('unix://')",
            "a Unix socket has no ports",
        ),
    ])
}

/// On the address of a WorkloadEntry.
pub(crate) fn unix_socket() -> Value {
    rules(&[
        (
            "!self.startsWith('unix://') || self.startsWith('unix:///') || self.startsWith('unix://@')",
            "a Unix socket is an absolute path or an abstract name that begins with @",
        ),
        ("!self.startsWith('unix://') || !self.endsWith('/')", "a Unix socket is not a folder"),
    ])
}

/// `ports` of a WorkloadEntry.
pub(crate) fn named_ports(_: &mut SchemaGenerator) -> Schema {
    let number = rules(&[("self >= 1 && self <= 65535", "a port is a number from 1 to 65535")]);
    let names = rules(&[(
        "self.all(name, name.size() < 63 && name.matches('^[a-zA-Z0-9](?:[-a-zA-Z0-9]*[a-zA-Z0-9])?$'))",
        "a port's name has letters, digits and -, and at most 62 characters",
    )]);
    json_schema!({
        "type": "object",
        "maxProperties": 128,
        "additionalProperties": {
            "type": "integer", "minimum": 0, "maximum": u32::MAX, "x-kubernetes-validations": number,
        },
        "x-kubernetes-validations": names,
    })
}

/// An object of which nothing is read.
pub(crate) fn anything(_: &mut SchemaGenerator) -> Schema {
    json_schema!({ "type": "object", "x-kubernetes-preserve-unknown-fields": true })
}

/// `matchLabels` of a selector.
pub(crate) fn match_labels(_: &mut SchemaGenerator) -> Schema {
    let keys = rules(&[
        ("self.all(name, !name.contains('*'))", "wildcards are not supported in labels"),
        ("self.all(name, name != '')", "a label needs a name"),
    ]);
    let values = rules(&[("!self.contains('*')", "wildcards are not supported in labels")]);
    json_schema!({
        "type": "object",
        "maxProperties": MAX_LABELS,
        "additionalProperties": {
            "type": "string", "maxLength": MAX_LABEL_VALUE, "x-kubernetes-validations": values,
        },
        "x-kubernetes-validations": keys,
    })
}
