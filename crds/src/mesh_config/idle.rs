//! Fields of a MeshConfig that nothing here acts on: each that is given gets a warning, so that nobody relies on it. It
//! judges no values.

use serde_json::{Map, Value};

use crate::finding::Issues;
use crate::path::At;

const TOP: [&str; 16] = [
    "trustDomain",
    "trustDomainAliases",
    "rootNamespace",
    "enableAutoMtls",
    "meshMTLS",
    "pathNormalization",
    "protocolDetectionTimeout",
    "inboundTrafficPolicy",
    "outboundTrafficPolicy",
    "defaultServiceExportTo",
    "accessLogFile",
    "accessLogFormat",
    "accessLogEncoding",
    "extensionProviders",
    "defaultProviders",
    "defaultConfig",
];
/// The fields that are acted on, of the objects that tolerate others.
const NESTED: [(&str, &[&str]); 5] = [
    ("meshMTLS", &["minProtocolVersion", "cipherSuites"]),
    ("pathNormalization", &["normalization"]),
    ("inboundTrafficPolicy", &["mode"]),
    ("outboundTrafficPolicy", &["mode"]),
    ("defaultProviders", &["accessLogging"]),
];
const PROVIDER: [&str; 7] = [
    "name",
    "envoyExtAuthzHttp",
    "envoyExtAuthzGrpc",
    "envoyFileAccessLog",
    "envoyHttpAls",
    "envoyTcpAls",
    "envoyOtelAls",
];
/// The fields of providers of access logs that are acted on.
const LOG_PROVIDERS: [(&str, &[&str]); 4] = [
    ("envoyFileAccessLog", &["path", "logFormat"]),
    ("envoyHttpAls", &["service", "port", "logName", "logFormat"]),
    ("envoyTcpAls", &["service", "port", "logName", "logFormat"]),
    ("envoyOtelAls", &["service", "port", "logName", "logFormat"]),
];

/// Warns of each of them in `document`.
pub(super) fn report(document: &Map<String, Value>, issues: &mut Issues) {
    let root = At::ROOT;
    // A misspelt `trustDomian` would leave the default in force without a word.
    others(document, &TOP, &root, issues);
    for (field, known) in NESTED {
        if let Some(Value::Object(nested)) = document.get(field) {
            others(nested, known, &root.key(field), issues);
        }
    }
    if let Some(Value::Object(config)) = document.get("defaultConfig") {
        // All of it belongs to Istio's agent or to gateways. Its one known field is worth a name of its own.
        let at = root.key("defaultConfig");
        others(config, &["gatewayTopology"], &at, issues);
        if let Some(Value::Object(topology)) = config.get("gatewayTopology") {
            others(topology, &[], &at.key("gatewayTopology"), issues);
        }
    }
    if let Some(Value::Array(providers)) = document.get("extensionProviders") {
        let at = root.key("extensionProviders");
        for (index, provider) in providers.iter().enumerate() {
            if let Value::Object(provider) = provider {
                others(provider, &PROVIDER, &at.index(index), issues);
                cleared_route_cache(provider, &at.index(index), issues);
                for (kind, known) in LOG_PROVIDERS {
                    if let Some(Value::Object(log)) = provider.get(kind) {
                        others(log, known, &at.index(index).key(kind), issues);
                    }
                }
            }
        }
    }
}

fn others(object: &Map<String, Value>, known: &[&str], at: &At<'_>, issues: &mut Issues) {
    for (key, value) in object.iter().filter(|(key, _)| !known.contains(&key.as_str())) {
        // What says no more than leaving it out does has nothing to be warned of.
        let nothing = match value {
            Value::Null => true,
            Value::Number(value) => value.as_u64() == Some(0) && key == "numTrustedProxies",
            _ => false,
        };
        if !nothing {
            issues.warning(&at.key(key), "has no effect here");
        }
    }
}

fn cleared_route_cache(provider: &Map<String, Value>, at: &At<'_>, issues: &mut Issues) {
    for kind in ["envoyExtAuthzHttp", "envoyExtAuthzGrpc"] {
        let clear = provider.get(kind).and_then(|service| service.get("clearRouteCache"));
        if clear == Some(&Value::Bool(true)) {
            let at = at.key(kind);
            issues.warning(&at.key("clearRouteCache"), "has no effect here");
        }
    }
}
