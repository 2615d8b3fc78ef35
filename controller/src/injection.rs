//! Injection: a pod in, the same pod with a sidecar out, or why not. Pure: no cluster, no clock, no files. Who is asked about
//! is [`selection`]'s, what the pod may decide is [`annotations`]', what is put in is [`containers`]'. Admission and
//! `countersign inject` call the same function.
//!
//! ```text
//! pod, namespace, settings ─► selection ─► annotations ─► probes, containers ─► pod ─► patch
//!                               └─► Skip      └─► Refused (names the annotation)
//! ```
//! Fails closed: what cannot be understood refuses the pod, because a pod that starts without its sidecar, or with a wider
//! hole in its capture than was meant, starts unprotected.

mod annotations;
mod containers;
mod probes;
mod selection;
mod settings;
mod values;
mod workload;

#[cfg(test)]
mod tests;

use serde_json::{Value, json};

pub use selection::{LabelSelector, Skip, asked};
pub use settings::{NativeSidecar, Proxy, Settings};
pub use workload::template_of;

use annotations::Knobs;
use containers::{CAPTURE, PROXY, PROXY_USER, Plan, VOLUMES};
use values::Texts;

/// Says what was injected.
pub(crate) const STATUS: &str = "sidecar.istio.io/status";
/// Ports that are the proxy's: an application cannot listen there, or would go past policy.
const TAKEN: [u64; 4] = [15001, 15006, 15020, 15021];
/// Parts of a pod that change.
const CHANGED: [&[&str]; 6] = [
    &["metadata", "labels"],
    &["metadata", "annotations"],
    &["spec", "initContainers"],
    &["spec", "containers"],
    &["spec", "volumes"],
    &["spec", "imagePullSecrets"],
];

/// Where a pod is to be.
#[derive(Clone, Copy, Debug)]
pub struct Context<'a> {
    pub namespace: &'a str,
    /// The namespace's labels; `None` where the API server has judged them.
    pub namespace_labels: Option<&'a Texts>,
    pub trust_domain: &'a str,
    /// Whether the cluster runs native sidecars, for [`NativeSidecar::Auto`].
    pub native: bool,
    /// Random text that ends the path of lifecycle hooks.
    pub secret: &'a str,
}

/// What became of a pod.
#[derive(Clone, Debug, PartialEq)]
pub enum Outcome {
    Skipped(Skip),
    Injected { pod: Box<Value>, warnings: Vec<String> },
}

/// Why a pod must not start: everything that is wrong with it.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{}", .0.join("; "))]
pub struct Refused(pub Vec<String>);

/// A pod (or a pod template: `metadata` and `spec`) with a sidecar.
///
/// # Errors
/// Why it must not start.
pub fn inject(pod: &Value, context: &Context<'_>, settings: &Settings) -> Result<Outcome, Refused> {
    if !pod["spec"].is_object() {
        return Err(Refused(vec!["not a pod: it has no spec".to_owned()]));
    }
    let one = |why| Refused(vec![why]);
    let labels = texts(&pod["metadata"]["labels"]).map_err(one)?;
    let annotations = texts(&pod["metadata"]["annotations"]).map_err(one)?;
    if let Some(of_namespace) = context.namespace_labels
        && !asked(context.namespace, of_namespace, &labels, settings)
    {
        return Ok(Outcome::Skipped(Skip::NotAsked));
    }
    let required = selection::required(context.namespace, &labels, &annotations, &pod["spec"], settings);
    if let Some(skip) = required.map_err(one)? {
        return Ok(Outcome::Skipped(skip));
    }
    if annotations.contains_key(STATUS) && all_containers(pod).any(|container| container["name"] == PROXY) {
        return Ok(Outcome::Skipped(Skip::Injected));
    }
    let mut warnings = Vec::new();
    let knobs = Knobs::read(&annotations, settings, &mut warnings).map_err(Refused)?;
    let errors = conflicts(pod, &mut warnings);
    if !errors.is_empty() {
        return Err(Refused(errors));
    }
    let pod = injected(pod, context, settings, &knobs, (labels, annotations), &mut warnings).map_err(one)?;
    Ok(Outcome::Injected { pod: Box::new(pod), warnings })
}

/// The difference as a JSON patch (RFC 6902).
pub fn patch(old: &Value, new: &Value) -> Vec<Value> {
    let mut operations = Vec::new();
    for path in CHANGED {
        let pointer = format!("/{}", path.join("/"));
        let (before, after) = (old.pointer(&pointer), new.pointer(&pointer));
        if before == after {
            continue;
        }
        // `add` replaces a member that is there.
        if let Some(value) = after {
            operations.push(json!({"op": "add", "path": pointer, "value": value}));
        }
    }
    operations
}

/// Text by text; anything else is nothing that the API server would have taken.
fn texts(value: &Value) -> Result<Texts, String> {
    let text = |(key, value): (&String, &Value)| match value {
        Value::String(text) => Ok((key.clone(), text.clone())),
        _ => Err(format!("{key}: {value} is no text")),
    };
    value.as_object().into_iter().flatten().map(text).collect()
}

fn list<'a>(pod: &'a Value, field: &str) -> impl Iterator<Item = &'a Value> {
    pod["spec"][field].as_array().into_iter().flatten()
}

fn all_containers(pod: &Value) -> impl Iterator<Item = &Value> {
    list(pod, "initContainers").chain(list(pod, "containers"))
}

/// What in the pod cannot be together with a sidecar; what only weakens it goes to `warnings`.
fn conflicts(pod: &Value, warnings: &mut Vec<String>) -> Vec<String> {
    let mut errors = Vec::new();
    let proxy_user = |context: &Value| context["runAsUser"].as_u64() == Some(PROXY_USER.into());
    let why = format!("user {PROXY_USER} is the proxy's: its traffic is not captured");
    if proxy_user(&pod["spec"]["securityContext"]) {
        errors.push(format!("spec.securityContext.runAsUser: {why}"));
    }
    for container in all_containers(pod) {
        let name = container["name"].as_str().unwrap_or_default();
        if [CAPTURE, PROXY].contains(&name) {
            errors.push(format!(
                "container {name:?}: the name is the sidecar's, which cannot be written by hand"
            ));
        }
        let security = &container["securityContext"];
        if proxy_user(security) {
            errors.push(format!("container {name:?}: {why}"));
        }
        let added = security["capabilities"]["add"].as_array().into_iter().flatten();
        let net_admin =
            |capability: &Value| ["NET_ADMIN", "CAP_NET_ADMIN", "ALL"].map(Value::from).contains(capability);
        if security["privileged"] == true || added.into_iter().any(net_admin) {
            warnings
                .push(format!("container {name} can take its own capture away (NET_ADMIN or privileged)"));
        }
        for port in container["ports"].as_array().into_iter().flatten() {
            let number = port["containerPort"].as_u64().unwrap_or_default();
            let tcp = port["protocol"].as_str().is_none_or(|protocol| protocol == "TCP");
            if tcp && TAKEN.contains(&number) {
                errors.push(format!("container {name:?}: port {number} is the proxy's"));
            }
        }
    }
    for volume in list(pod, "volumes").filter_map(|volume| volume["name"].as_str()) {
        if VOLUMES.contains(&volume) {
            errors.push(format!("volume {volume:?}: the name is the sidecar's"));
        }
    }
    errors
}

fn injected(
    pod: &Value,
    context: &Context<'_>,
    settings: &Settings,
    knobs: &Knobs,
    (labels, annotations): (Texts, Texts),
    warnings: &mut Vec<String>,
) -> Result<Value, String> {
    let native = match knobs.native {
        NativeSidecar::Auto => context.native,
        NativeSidecar::Yes => true,
        NativeSidecar::No => false,
    };
    let mut containers: Vec<Value> = list(pod, "containers").cloned().collect();
    let mut first: Vec<Value> = list(pod, "initContainers").cloned().collect();
    let mut questions = probes::Questions::new();
    if knobs.rewrite_probes {
        let sidecars = first.iter_mut().filter(|container| container["restartPolicy"] == "Always");
        for container in containers.iter_mut().chain(sidecars) {
            probes::rewrite(container, knobs.status_port, context.secret, &mut questions, warnings)?;
        }
    }
    let default_container = containers.first().and_then(|first| first["name"].as_str()).map(str::to_owned);
    let (annotations, app_metrics) =
        annotated(annotations, settings, knobs, native, default_container.as_deref())?;
    let plan = Plan { settings, knobs, trust_domain: context.trust_domain, native, questions, app_metrics };
    if native {
        first.splice(0..0, [plan.capture(), plan.proxy()]);
    } else {
        // Last: what other init containers do before has no proxy to go through.
        first.push(plan.capture());
        let at = if knobs.hold { 0 } else { containers.len() };
        containers.insert(at, plan.proxy());
    }
    let mut new = pod.clone();
    if !new["metadata"].is_object() {
        new["metadata"] = json!({});
    }
    new["metadata"]["labels"] = json!(labelled(labels, pod));
    new["metadata"]["annotations"] = json!(annotations);
    let spec = &mut new["spec"];
    spec["initContainers"] = first.into();
    spec["containers"] = containers.into();
    spec["volumes"] = list(pod, "volumes").cloned().chain(containers::volumes()).collect::<Vec<_>>().into();
    if !settings.image_pull_secrets.is_empty() {
        let mut secrets: Vec<Value> = list(pod, "imagePullSecrets").cloned().collect();
        let ours = settings.image_pull_secrets.iter().map(|name| json!({"name": name}));
        ours.for_each(|secret| {
            if !secrets.contains(&secret) {
                secrets.push(secret);
            }
        });
        spec["imagePullSecrets"] = secrets.into();
    }
    Ok(new)
}

fn labelled(mut labels: Texts, pod: &Value) -> Texts {
    let (name, revision) = workload::canonical(&labels, pod);
    let ours = [
        ("security.istio.io/tlsMode", "istio".to_owned()),
        ("service.istio.io/canonical-name", name),
        ("service.istio.io/canonical-revision", revision),
    ];
    for (key, value) in ours {
        labels.entry(key.to_owned()).or_insert(value);
    }
    labels
}

/// The annotations, and where the application's own metrics are.
fn annotated(
    mut annotations: Texts,
    settings: &Settings,
    knobs: &Knobs,
    native: bool,
    default_container: Option<&str>,
) -> Result<(Texts, Option<String>), String> {
    let app_metrics = if knobs.merge_metrics { scraped(&mut annotations, knobs.status_port)? } else { None };
    let (init, running) = if native { (vec![CAPTURE, PROXY], vec![]) } else { (vec![CAPTURE], vec![PROXY]) };
    let status = json!({
        "initContainers": init, "containers": running, "volumes": VOLUMES,
        "imagePullSecrets": settings.image_pull_secrets, "revision": settings.revision,
    });
    for (key, value) in &settings.injected_annotations {
        annotations.entry(key.clone()).or_insert_with(|| value.clone());
    }
    for key in ["kubectl.kubernetes.io/default-container", "kubectl.kubernetes.io/default-logs-container"] {
        if let Some(name) = default_container {
            annotations.entry(key.to_owned()).or_insert_with(|| name.to_owned());
        }
    }
    annotations.insert("istio.io/rev".to_owned(), settings.revision.clone());
    annotations.insert(STATUS.to_owned(), status.to_string());
    Ok((annotations, app_metrics))
}

/// Leads Prometheus to the agent, which adds the application's numbers to its own. An application that is not to be scraped
/// is left alone; one that says nothing has no numbers of its own.
fn scraped(annotations: &mut Texts, status_port: u16) -> Result<Option<String>, String> {
    const NAMES: [&str; 3] = ["prometheus.io/scrape", "prometheus.io/port", "prometheus.io/path"];
    let [scrape, port, path] = NAMES.map(|name| annotations.get(name).cloned());
    if scrape.as_deref() == Some("false") {
        return Ok(None);
    }
    let of = |name: &'static str| move |why: String| format!("annotation {name}: {why}");
    let own = match (scrape.as_deref(), port) {
        (Some("true"), Some(port)) => Some(values::port(port.trim()).map_err(of(NAMES[1]))?),
        (Some("true"), None) => Some(80),
        _ => None,
    };
    let path = values::url_path(path.as_deref().unwrap_or("/metrics")).map_err(of(NAMES[2]))?;
    let ours = ["true".to_owned(), status_port.to_string(), "/stats/prometheus".to_owned()];
    annotations.extend(NAMES.map(str::to_owned).into_iter().zip(ours));
    Ok(own.filter(|port| *port != status_port).map(|port| format!("{port}{path}")))
}
