//! One object as a JSON value: which kind it is, whose it is, and what it means. The same function serves files, the
//! API server and admission. It does not know where in a text a field stands; see `read`.

use serde_json::{Map, Value};

use crate::finding::{Finding, Issue, Issues};
use crate::meta::Metadata;
use crate::object::{Kind, Object, ObjectRef};
use crate::path::At;
use crate::salvage::Spec;
use crate::{
    authorization_policy, destination_rule, endpoint_slice, namespace, peer_authentication, pod,
    request_authentication, service, service_account, sidecar, telemetry, unimplemented, workload_entry,
};

/// What a document turned out to be.
#[derive(Clone, Debug, PartialEq)]
pub enum Content {
    /// Understood; its findings are warnings.
    Object(Box<Object>),
    /// Identified, with errors. `closed` is what it is enforced as while there is no good version of it; `None` for
    /// kinds that are not policies: such an object is simply not there.
    Invalid { object: ObjectRef, closed: Option<Closed> },
    /// Nobody can tell whose it is. It may have been a policy.
    Unreadable,
    /// A kind that has no effect here; the finding names it.
    Unsupported,
}

/// See design decision 5.
#[derive(Clone, Debug, PartialEq)]
pub struct Closed {
    pub object: Box<Object>,
    /// What it applies to could not be read, so that the object applies to its whole namespace: in the root namespace
    /// that is the mesh, and then the control plane must not call itself ready.
    pub scope_unknown: bool,
}

/// One object and everything found in it.
#[derive(Clone, Debug, PartialEq)]
pub struct Parsed {
    pub content: Content,
    pub findings: Vec<Finding>,
}

/// Reads one object. Never fails: errors are in the result.
pub fn parse(value: &Value) -> Parsed {
    let mut issues = Issues::default();
    let content = parse_value(value, &mut issues);
    Parsed { content, findings: issues.findings() }
}

pub(crate) fn parse_value(value: &Value, issues: &mut Issues) -> Content {
    match value {
        Value::Object(document) => content(document, true, issues),
        _ => {
            issues.error(
                &At::ROOT,
                "not a Kubernetes object: a mapping with apiVersion, kind and metadata is expected",
            );
            Content::Unreadable
        }
    }
}

/// The same for a document that broke off: `seen` are the parts that were read before that.
pub(crate) fn parse_broken(seen: &Map<String, Value>, broken: Issue, issues: &mut Issues) -> Content {
    issues.0.push(broken);
    if seen.get("kind").is_none_or(|kind| !kind.is_string()) || !seen.contains_key("metadata") {
        return Content::Unreadable;
    }
    content(seen, false, issues)
}

fn content(document: &Map<String, Value>, complete: bool, issues: &mut Issues) -> Content {
    let kind = match recognise(document, complete, issues) {
        Recognised::Kind(kind) => kind,
        Recognised::Unsupported => return Content::Unsupported,
        Recognised::Unreadable => return Content::Unreadable,
    };
    let Some(metadata) = Metadata::read(kind, document.get("metadata"), issues) else {
        return Content::Unreadable;
    };
    let reading = if kind == Kind::Sidecar {
        let reading = sidecar::read(&metadata, document, complete, issues);
        (Some(reading.object), reading.scope_unknown)
    } else if kind.has_closed_value() {
        let reading = policy(kind, &metadata, document, complete, issues);
        (Some(reading.object), reading.scope_unknown)
    } else {
        (complete.then(|| other(kind, &metadata, document, issues)).flatten(), false)
    };
    match reading {
        (Some(object), _) if !issues.has_errors() => Content::Object(Box::new(object)),
        (closed, scope_unknown) => {
            let closed = closed.filter(|_| kind.has_closed_value());
            let closed = closed.map(|object| Closed { object: Box::new(object), scope_unknown });
            Content::Invalid { object: metadata.object_ref(kind), closed }
        }
    }
}

fn policy(
    kind: Kind,
    metadata: &Metadata,
    document: &Map<String, Value>,
    complete: bool,
    issues: &mut Issues,
) -> crate::Reading {
    // The API server prunes and the webhook refuses these (semantics §1.5): `specs:` must not pass for no spec.
    for key in document.keys() {
        if !matches!(key.as_str(), "apiVersion" | "kind" | "metadata" | "spec" | "status") {
            issues.error(&At::ROOT.key(key), "unknown field");
        }
    }
    let spec = match document.get("spec") {
        _ if !complete => Spec::Unreadable,
        None => Spec::Absent,
        Some(spec) => Spec::Value(spec),
    };
    match kind {
        Kind::DestinationRule => destination_rule::read(metadata, spec, issues),
        Kind::PeerAuthentication => peer_authentication::read(metadata, spec, issues),
        Kind::RequestAuthentication => request_authentication::read(metadata, spec, issues),
        _ => authorization_policy::read(metadata, spec, issues),
    }
}

fn other(
    kind: Kind,
    metadata: &Metadata,
    document: &Map<String, Value>,
    issues: &mut Issues,
) -> Option<Object> {
    match kind {
        Kind::Namespace => Some(namespace::read(metadata)),
        Kind::ServiceAccount => Some(service_account::read(metadata)),
        Kind::Service => service::read(metadata, document, issues),
        Kind::Pod => pod::read(metadata, document, issues),
        Kind::WorkloadEntry => workload_entry::read(metadata, document, issues),
        Kind::EndpointSlice => endpoint_slice::read(metadata, document, issues),
        Kind::Telemetry => telemetry::read(metadata, document, issues),
        Kind::DestinationRule
        | Kind::Sidecar
        | Kind::PeerAuthentication
        | Kind::RequestAuthentication
        | Kind::AuthorizationPolicy => None,
    }
}

enum Recognised {
    Kind(Kind),
    Unsupported,
    Unreadable,
}

/// Of the tools, not of the control plane: it may lie beside the policies that it tests.
const POLICY_TEST: (&str, &str) = ("countersign.io", "PolicyTest");

/// A kind that is not ours is a warning; one that may be a misspelt policy is an error, for ignoring it would open what
/// it was meant to close.
fn recognise(document: &Map<String, Value>, complete: bool, issues: &mut Issues) -> Recognised {
    let kind_at = At::ROOT.key("kind");
    let version_at = At::ROOT.key("apiVersion");
    let Some(Value::String(name)) = document.get("kind") else {
        issues.error(&kind_at, "the kind is missing");
        return Recognised::Unreadable;
    };
    let kind = Kind::ALL.into_iter().find(|kind| kind.as_str() == name);
    let api_version = match (document.get("apiVersion"), kind) {
        (Some(Value::String(api_version)), _) => api_version.as_str(),
        // The break may have come before it; the kind's own group is the likeliest.
        (None, Some(kind)) if !complete => return Recognised::Kind(kind),
        _ => {
            issues.error(&version_at, "the apiVersion is missing");
            return Recognised::Unreadable;
        }
    };
    let (group, version) = api_version.split_once('/').unwrap_or(("", api_version));
    if (group, name.as_str()) == POLICY_TEST {
        return Recognised::Unsupported;
    }
    match kind {
        Some(kind) if kind.group() == group => {
            if !kind.versions().contains(&version) {
                let known = kind.versions()[0];
                issues.warning(&version_at, format!("version `{version}` is not known; read as `{known}`"));
            }
            Recognised::Kind(kind)
        }
        Some(kind) if kind.is_policy() => {
            issues.error(&version_at, format!("{kind} belongs to the group {}, not `{group}`", kind.group()));
            Recognised::Unreadable
        }
        _ if name == "List" => {
            issues.error(&kind_at, "a List needs a list of items");
            Recognised::Unreadable
        }
        _ if group == "security.istio.io" => {
            issues.error(&kind_at, format!("there is no kind `{name}` in {group}"));
            Recognised::Unreadable
        }
        _ => {
            let known = unimplemented().iter().find(|one| one.group == group && one.kind == name);
            let meaning = known.map(|one| format!(": {}", one.meaning)).unwrap_or_default();
            issues.warning(
                &kind_at,
                format!("kind `{name}` of `{api_version}` is not supported: it has no effect{meaning}"),
            );
            Recognised::Unsupported
        }
    }
}

#[cfg(test)]
mod tests;
