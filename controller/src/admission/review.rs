//! AdmissionReview v1 in, AdmissionReview v1 out, and what admission thinks of one object. Pure: the same conversion as
//! ingestion (`crds::parse`) decides, so that what is admitted is what is enforced. Knows no cluster.

use crds::{Content, Finding, Object, Severity};
use serde::Deserialize;
use serde_json::{Value, json};

/// The group whose kinds are judged.
const GROUP: &str = "security.istio.io";
const API_VERSION: &str = "admission.k8s.io/v1";
/// Errors named in one answer, and the longest of them in bytes: it must fit into what `kubectl` shows.
const ERRORS: usize = 100;
const ERROR: usize = 1024;
/// What Kubernetes asks of warnings: so many characters each, and so many bytes in all.
const WARNING: usize = 120;
const WARNINGS: usize = 4096;

#[derive(Debug, Deserialize)]
#[serde(rename_all = "camelCase")]
struct Review {
    api_version: String,
    kind: String,
    request: Option<Request>,
}

/// What the API server asks. Fields that decide nothing are left out.
#[derive(Debug, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(super) struct Request {
    pub(super) uid: String,
    kind: GroupKind,
    #[serde(default)]
    sub_resource: String,
    #[serde(default)]
    name: String,
    #[serde(default)]
    pub(super) namespace: String,
    pub(super) operation: String,
    #[serde(default)]
    user_info: UserInfo,
    pub(super) object: Option<Value>,
    old_object: Option<Value>,
    dry_run: Option<bool>,
}

#[derive(Debug, Deserialize)]
struct GroupKind {
    #[serde(default)]
    group: String,
    kind: String,
}

#[derive(Debug, Default, Deserialize)]
struct UserInfo {
    #[serde(default)]
    username: String,
}

/// Reads a request's body.
///
/// # Errors
/// What is wrong with it, for the API server's log.
pub(super) fn read(body: &[u8]) -> Result<Request, String> {
    let review: Review =
        serde_json::from_slice(body).map_err(|error| format!("not an AdmissionReview: {error}"))?;
    let Review { api_version, kind, request } = review;
    if (&*api_version, &*kind) != (API_VERSION, "AdmissionReview") {
        return Err(format!(
            "AdmissionReview of {API_VERSION} is understood, {kind:?} of {api_version:?} is not"
        ));
    }
    request.ok_or_else(|| "an AdmissionReview without a request".to_owned())
}

impl Request {
    pub(super) fn user(&self) -> &str {
        &self.user_info.username
    }

    /// A pod that is to be made.
    pub(super) fn makes_pod(&self) -> bool {
        self.kind.group.is_empty()
            && self.kind.kind == "Pod"
            && self.operation == "CREATE"
            && self.sub_resource.is_empty()
    }

    pub(super) fn dry_run(&self) -> bool {
        self.dry_run == Some(true)
    }

    /// `KIND NAMESPACE/NAME`.
    pub(super) fn subject(&self) -> String {
        format!("{} {}/{}", self.kind.kind, self.namespace, self.object_name())
    }

    /// Labels of the object as it is to be.
    pub(super) fn labels(&self) -> std::collections::BTreeMap<String, String> {
        let labels = self.object.as_ref().and_then(|object| object["metadata"]["labels"].as_object());
        let text = |(key, value): (&String, &Value)| Some((key.clone(), value.as_str()?.to_owned()));
        labels.into_iter().flatten().filter_map(text).collect()
    }

    fn object_name(&self) -> &str {
        let own = self.object.as_ref().and_then(|object| object["metadata"]["name"].as_str());
        own.filter(|name| !name.is_empty()).unwrap_or(&self.name)
    }
}

/// What admission thinks.
#[derive(Debug)]
pub(super) enum Verdict {
    /// Nothing to judge: a deletion, a status, another group's object.
    Ignored,
    /// Understood; the findings are warnings.
    Good { object: Box<Object>, findings: Vec<Finding> },
    /// At least one finding is an error.
    Bad { findings: Vec<Finding> },
}

/// Judges the object of a request.
pub(super) fn judge(request: &Request) -> Verdict {
    let bad = |message: String| Verdict::Bad { findings: vec![Finding::error(message)] };
    if !matches!(&*request.operation, "CREATE" | "UPDATE") || !request.sub_resource.is_empty() {
        return Verdict::Ignored;
    }
    if request.kind.group != GROUP {
        return Verdict::Ignored;
    }
    let Some(object) = &request.object else {
        return bad(format!("{} without an object", request.operation));
    };
    // What is being deleted must be able to go: only its finalizers still change.
    if request.old_object.as_ref().is_some_and(|old| vanishing(old, object)) {
        return Verdict::Ignored;
    }
    // Nobody but the API server says whose object it is; the two must not differ.
    let group =
        object["apiVersion"].as_str().and_then(|version| version.split_once('/')).map(|(group, _)| group);
    if (group, object["kind"].as_str()) != (Some(GROUP), Some(&*request.kind.kind))
        || object["metadata"]["namespace"].as_str() != Some(&*request.namespace)
    {
        return bad("the object is not of the kind or namespace that the request names".to_owned());
    }
    let parsed = match named(object) {
        Some(named) => crds::parse(&named),
        None => crds::parse(object),
    };
    match parsed.content {
        Content::Object(object) => Verdict::Good { object, findings: parsed.findings },
        Content::Invalid { .. } | Content::Unreadable | Content::Unsupported => {
            let mut findings = parsed.findings;
            if !findings.iter().any(|finding| finding.severity == Severity::Error) {
                findings.push(Finding::error(format!("there is no kind `{}` in {GROUP}", request.kind.kind)));
            }
            Verdict::Bad { findings }
        }
    }
}

/// Whether `new` is `old` on its way out, changed in nothing that means something.
fn vanishing(old: &Value, new: &Value) -> bool {
    let same = |field: &str| old["metadata"].get(field) == new["metadata"].get(field);
    !new["metadata"]["deletionTimestamp"].is_null()
        && !old["metadata"]["deletionTimestamp"].is_null()
        && old.get("spec") == new.get("spec")
        && same("annotations")
        && same("labels")
}

/// With a name, where the API server has yet to make one up.
fn named(object: &Value) -> Option<Value> {
    let metadata = &object["metadata"];
    let prefix = metadata["generateName"].as_str()?;
    if metadata["name"].as_str().is_some_and(|name| !name.is_empty()) {
        return None;
    }
    let mut named = object.clone();
    named["metadata"]["name"] = format!("{prefix}00000").into();
    Some(named)
}

/// The answer that lets the object pass.
pub(super) fn allowed(request: &Request, warnings: &[String]) -> Value {
    let mut response = json!({"uid": request.uid, "allowed": true});
    let warnings = fit(warnings);
    if !warnings.is_empty() {
        response["warnings"] = warnings.into();
    }
    review(&response)
}

/// The reasons of a refusal, one per error, with the field that it is about.
pub(super) fn reasons(findings: &[Finding]) -> Vec<String> {
    errors(findings).map(|finding| cut(&finding.to_string(), ERROR)).collect()
}

/// The answer that does not.
pub(super) fn denied(request: &Request, findings: &[Finding]) -> Value {
    let cause = |finding: &Finding| json!({"reason": "FieldValueInvalid", "field": finding.field, "message": cut(&finding.message, ERROR)});
    let causes: Vec<_> = errors(findings).take(ERRORS).map(cause).collect();
    let mut listed: Vec<_> = reasons(findings);
    let more = listed.len().saturating_sub(ERRORS);
    listed.truncate(ERRORS);
    if more > 0 {
        listed.push(format!("and {more} more errors"));
    }
    let (name, namespace) = (request.object_name(), &request.namespace);
    let message =
        format!("configuration is invalid: invalid policy {name}.{namespace}: {}", listed.join("; "));
    let kind = &request.kind.kind;
    let details = json!({"name": name, "group": GROUP, "kind": kind, "causes": causes});
    let status = json!({"status": "Failure", "code": 400, "reason": "BadRequest", "message": message, "details": details});
    let warnings = fit(&warnings(findings));
    let mut response = json!({"uid": request.uid, "allowed": false, "status": status});
    if !warnings.is_empty() {
        response["warnings"] = warnings.into();
    }
    review(&response)
}

/// The findings that are warnings, as text.
pub(super) fn warnings(findings: &[Finding]) -> Vec<String> {
    let warnings = findings.iter().filter(|finding| finding.severity == Severity::Warning);
    warnings.map(ToString::to_string).collect()
}

fn errors(findings: &[Finding]) -> impl Iterator<Item = &Finding> {
    findings.iter().filter(|finding| finding.severity == Severity::Error)
}

pub(super) fn review(response: &Value) -> Value {
    json!({"apiVersion": API_VERSION, "kind": "AdmissionReview", "response": response})
}

/// As many as may be sent, each as long as it may be, each once.
pub(super) fn fit(warnings: &[String]) -> Vec<String> {
    const MORE: &str = "and more warnings";
    let mut fitting: Vec<String> = Vec::new();
    let mut bytes = 0;
    for warning in warnings {
        let warning = cut(&printable(warning), WARNING);
        if fitting.contains(&warning) {
            continue;
        }
        if bytes + warning.len() + MORE.len() > WARNINGS {
            fitting.push(MORE.to_owned());
            break;
        }
        bytes += warning.len();
        fitting.push(warning);
    }
    fitting
}

/// At most so many bytes, by whole characters.
pub(super) fn cut(text: &str, max: usize) -> String {
    if text.len() <= max {
        return text.to_owned();
    }
    format!("{}…", &text[..text.floor_char_boundary(max - '…'.len_utf8())])
}

/// Warnings become HTTP headers.
fn printable(text: &str) -> String {
    text.chars().map(|c| if c.is_control() { ' ' } else { c }).collect()
}

#[cfg(test)]
mod tests;
