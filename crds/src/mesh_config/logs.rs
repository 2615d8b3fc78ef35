//! Access log providers among `extensionProviders` (semantics §1.6): files, and services that lines are sent to. It looks
//! no service up.

use std::collections::BTreeMap;

use mesh::{LogFormat, LogService, Sink};
use serde::Deserialize;
use serde_json::{Map, Value};

use crate::finding::Issues;
use crate::path::At;
use crate::wire;

/// The log that an access log service is told of, where none is named; Istio's names.
const HTTP_LOG: &str = "http_envoy_accesslog";
const TCP_LOG: &str = "tcp_envoy_accesslog";
const OTEL_LOG: &str = "otel_envoy_accesslog";

/// `envoyFileAccessLog`.
#[derive(Clone, Debug, Default, PartialEq, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub(super) struct File {
    path: String,
    log_format: Option<Format>,
}

#[derive(Clone, Debug, Default, PartialEq, Deserialize)]
#[serde(default)]
struct Format {
    text: Option<String>,
    labels: Option<Map<String, Value>>,
}

/// `envoyHttpAls`, `envoyTcpAls`, `envoyOtelAls`.
#[derive(Clone, Debug, Default, PartialEq, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub(super) struct Service {
    service: String,
    port: u32,
    log_name: String,
    log_format: Option<Format>,
}

/// `defaultProviders`.
#[derive(Clone, Debug, Default, PartialEq, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub(super) struct Defaults {
    pub(super) access_logging: Vec<String>,
}

pub(super) fn read_file(file: File, at: &At<'_>, issues: &mut Issues) -> Sink {
    let File { path, log_format } = file;
    if path.is_empty() {
        issues.error(&at.key("path"), "a path is required");
    }
    let format = match log_format {
        None => LogFormat::Text(String::new()),
        Some(Format { text, labels: None }) => LogFormat::Text(text.unwrap_or_default()),
        Some(Format { text: None, labels: Some(labels) }) => LogFormat::Json(json(labels)),
        Some(Format { text: Some(_), labels: Some(_) }) => {
            issues.error(&at.key("logFormat"), "only one of text and labels can be given");
            LogFormat::Text(String::new())
        }
    };
    Sink::File { path, format }
}

/// With its keys in order, whatever serde_json keeps.
fn json(labels: Map<String, Value>) -> String {
    if labels.is_empty() {
        return String::new();
    }
    let sorted: BTreeMap<String, Value> = labels.into_iter().collect();
    serde_json::to_string(&sorted).expect("a JSON value whose keys are text")
}

pub(super) fn read_service(kind: LogService, service: Service, at: &At<'_>, issues: &mut Issues) -> Sink {
    let Service { service, port, log_name, log_format } = service;
    super::providers::check_service(&service, &at.key("service"), issues);
    let default = match kind {
        LogService::Http => HTTP_LOG,
        LogService::Tcp => TCP_LOG,
        LogService::OpenTelemetry => OTEL_LOG,
    };
    let Format { text, labels } = log_format.unwrap_or_default();
    if kind != LogService::OpenTelemetry && (text.is_some() || labels.is_some()) {
        issues.warning(&at.key("logFormat"), "has no effect here");
    }
    if labels.is_some() {
        issues.warning(&at.key("logFormat").key("labels"), "has no effect here");
    }
    Sink::Service {
        kind,
        service,
        port: wire::port(port, &at.key("port"), issues).unwrap_or_default(),
        log_name: if log_name.is_empty() { default.to_owned() } else { log_name },
        body: text.filter(|_| kind == LogService::OpenTelemetry).unwrap_or_default(),
    }
}
