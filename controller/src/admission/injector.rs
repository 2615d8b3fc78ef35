//! Injection as the API server asks for it: a review in, a JSON patch out. Holds the settings, which are read again when
//! their file changes: a file that became wrong is told and the last good settings stay. What becomes of a pod is
//! [`crate::injection`]'s to say.

use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, OnceLock, PoisonError};
use std::time::{Instant, SystemTime};

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::histogram::Histogram;
use prometheus_client::registry::Registry;
use serde_json::{Value, json};
use source::kubernetes::events::{About, Events, Reason};

use super::review::{self, Request};
use crate::injection::{Context, Outcome, Refused, Settings, inject, patch};

/// Longest message of a refusal, in bytes.
const MESSAGE: usize = 4096;

/// Named as Istio's.
#[derive(Clone, Debug)]
struct Metrics {
    requests: Counter,
    success: Counter,
    failure: Counter,
    skip: Counter,
    seconds: Histogram,
}

impl Metrics {
    fn new(registry: &mut Registry) -> Self {
        let metrics = Self {
            requests: Counter::default(),
            success: Counter::default(),
            failure: Counter::default(),
            skip: Counter::default(),
            seconds: Histogram::new([0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.5]),
        };
        let Self { requests, success, failure, skip, seconds } = &metrics;
        for (name, help, counter) in [
            ("sidecar_injection_requests", "Pods that the API server asked about", requests),
            ("sidecar_injection_success", "Pods that got a sidecar", success),
            ("sidecar_injection_failure", "Pods that were refused", failure),
            ("sidecar_injection_skip", "Pods that were left as they are", skip),
        ] {
            registry.register(name, help, counter.clone());
        }
        registry.register("sidecar_injection_time_seconds", "Time to answer for a pod", seconds.clone());
        metrics
    }
}

/// The settings in force, and when their file was written.
#[derive(Debug)]
struct Loaded {
    settings: Arc<Settings>,
    written: Option<SystemTime>,
}

/// What answers for pods.
#[derive(Debug)]
pub struct Injector {
    file: PathBuf,
    namespace: String,
    revision: String,
    loaded: Mutex<Loaded>,
    native: Arc<OnceLock<bool>>,
    events: Events,
    metrics: Metrics,
}

impl Injector {
    /// By the settings in `file`, for the control plane of `namespace` and `revision`. `native` is told later whether the
    /// cluster runs native sidecars; until then pods are refused.
    ///
    /// # Errors
    /// What is wrong with the file.
    pub fn new(
        file: &Path,
        (namespace, revision): (&str, &str),
        native: Arc<OnceLock<bool>>,
        events: Events,
        metrics: &runtime::Metrics,
    ) -> Result<Self, String> {
        let loaded = load(file, namespace, revision)?;
        Ok(Self {
            file: file.to_owned(),
            namespace: namespace.to_owned(),
            revision: revision.to_owned(),
            loaded: Mutex::new(loaded),
            native,
            events,
            metrics: metrics.register(Metrics::new),
        })
    }

    fn settings(&self) -> Arc<Settings> {
        let mut loaded = self.loaded.lock().unwrap_or_else(PoisonError::into_inner);
        let written = written(&self.file);
        if written.is_some() && written != loaded.written {
            match load(&self.file, &self.namespace, &self.revision) {
                Ok(new) => {
                    tracing::info!("the injection's settings were read again");
                    *loaded = new;
                }
                Err(error) => {
                    tracing::error!(
                        error,
                        "the injection's settings cannot be read; the last good ones stay"
                    );
                    loaded.written = written;
                }
            }
        }
        loaded.settings.clone()
    }

    /// The review's answer.
    ///
    /// # Errors
    /// If it is not known yet what the cluster can run.
    pub(super) fn answer(&self, request: &Request, trust_domain: &str) -> Result<Value, String> {
        let Some(pod) = request.object.as_ref().filter(|_| request.makes_pod()) else {
            return Ok(review::allowed(request, &[]));
        };
        let start = Instant::now();
        self.metrics.requests.inc();
        let native = *self.native.get().ok_or_else(|| {
            self.metrics.failure.inc();
            "not ready: the API server's version is not known yet".to_owned()
        })?;
        let secret = format!("{:032x}", rand::random::<u128>());
        let context = Context {
            namespace: &request.namespace,
            namespace_labels: None,
            trust_domain,
            native,
            secret: &secret,
        };
        let outcome = inject(pod, &context, &self.settings());
        let answer = match outcome {
            Ok(Outcome::Injected { pod: new, warnings }) => {
                self.metrics.success.inc();
                injected(request, &patch(pod, &new), &warnings)
            }
            Ok(Outcome::Skipped(skip)) => {
                self.metrics.skip.inc();
                let told = if skip.surprising() { vec![skip.to_string()] } else { Vec::new() };
                if let (Some(about), [note], false) = (about(request, pod), &told[..], request.dry_run()) {
                    self.events.tell(about, Reason::NotInjected, note);
                }
                review::allowed(request, &told)
            }
            Err(refused) => {
                self.metrics.failure.inc();
                tracing::info!(pod = ?request.subject(), %refused, "pod refused");
                denied(request, &refused)
            }
        };
        self.metrics.seconds.observe(start.elapsed().as_secs_f64());
        Ok(answer)
    }
}

fn written(file: &Path) -> Option<SystemTime> {
    std::fs::metadata(file).and_then(|metadata| metadata.modified()).ok()
}

fn load(file: &Path, namespace: &str, revision: &str) -> Result<Loaded, String> {
    let named = |why: String| format!("{}: {why}", file.display());
    // Before the text: what is written in between is read again.
    let written = written(file);
    let text = std::fs::read_to_string(file).map_err(|error| named(error.to_string()))?;
    let settings = Settings::read(&text).map_err(named)?;
    let settings = Settings { namespace: namespace.to_owned(), revision: revision.to_owned(), ..settings };
    Ok(Loaded { settings: Arc::new(settings), written })
}

fn injected(request: &Request, patch: &[Value], warnings: &[String]) -> Value {
    let patch = STANDARD.encode(Value::from(patch).to_string());
    let mut response = json!({"uid": request.uid, "allowed": true, "patchType": "JSONPatch", "patch": patch});
    let warnings = review::fit(warnings);
    if !warnings.is_empty() {
        response["warnings"] = warnings.into();
    }
    review::review(&response)
}

fn denied(request: &Request, Refused(reasons): &Refused) -> Value {
    let message = review::cut(&format!("no sidecar can be injected: {}", reasons.join("; ")), MESSAGE);
    let status = json!({"status": "Failure", "code": 400, "reason": "BadRequest", "message": message});
    review::review(&json!({"uid": request.uid, "allowed": false, "status": status}))
}

/// Whom the pod comes from: it has no name of its own yet, as a rule.
fn about(request: &Request, pod: &Value) -> Option<About> {
    let text = |value: &Value| value.as_str().filter(|text| !text.is_empty()).map(str::to_owned);
    let owners = pod["metadata"]["ownerReferences"].as_array();
    let owner = owners.into_iter().flatten().find(|owner| owner["controller"] == true);
    let namespace = request.namespace.clone();
    if let Some(owner) = owner {
        return Some(About {
            api_version: text(&owner["apiVersion"])?,
            kind: text(&owner["kind"])?,
            namespace,
            name: text(&owner["name"])?,
            uid: text(&owner["uid"]).unwrap_or_default(),
        });
    }
    let name = text(&pod["metadata"]["name"])?;
    Some(About { api_version: "v1".to_owned(), kind: "Pod".to_owned(), namespace, name, uid: String::new() })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn injector(text: &str) -> (Injector, tempfile::NamedTempFile, runtime::Metrics) {
        let file = tempfile::NamedTempFile::new().unwrap();
        std::fs::write(file.path(), text).unwrap();
        let native = Arc::new(OnceLock::new());
        native.set(true).unwrap();
        let metrics = runtime::Metrics::new(runtime::Version::of("test"));
        let injector =
            Injector::new(file.path(), ("istio-system", "default"), native, Events::disabled(), &metrics);
        (injector.unwrap(), file, metrics)
    }

    fn request(pod: &Value) -> Request {
        let review = json!({
            "apiVersion": "admission.k8s.io/v1", "kind": "AdmissionReview",
            "request": {"uid": "u", "kind": {"group": "", "version": "v1", "kind": "Pod"}, "namespace": "shop",
                        "operation": "CREATE", "object": pod},
        });
        review::read(review.to_string().as_bytes()).unwrap()
    }

    fn spec(more: &str) -> Value {
        serde_yaml::from_str(&format!("{{metadata: {{}}, spec: {{{more} containers: [{{name: app}}]}}}}"))
            .unwrap()
    }

    #[test]
    fn a_pod_is_patched_left_or_refused_and_counted() {
        let (injector, _file, metrics) = injector("image: r/c:1");
        let answer = injector.answer(&request(&spec("")), "td").unwrap();
        let response = &answer["response"];
        assert_eq!((&response["allowed"], &response["patchType"]), (&json!(true), &json!("JSONPatch")));
        let patch = STANDARD.decode(response["patch"].as_str().unwrap()).unwrap();
        let patch: Vec<Value> = serde_json::from_slice(&patch).unwrap();
        assert!(patch.iter().all(|operation| operation["op"] == "add"), "{patch:?}");
        assert!(patch.iter().any(|o| o.to_string().contains("spiffe://td/ns/istio-system/sa/countersign")));

        let host = injector.answer(&request(&spec("hostNetwork: true,")), "td").unwrap();
        assert_eq!(host["response"]["allowed"], true);
        assert!(host["response"]["patch"].is_null());
        assert!(host["response"]["warnings"][0].as_str().unwrap().contains("NOT protected"), "{host}");

        let bad = injector.answer(&request(&spec("securityContext: {runAsUser: 1337},")), "td").unwrap();
        assert_eq!(bad["response"]["allowed"], false);
        assert!(bad["response"]["status"]["message"].as_str().unwrap().contains("1337"), "{bad}");

        let text = metrics.encode();
        for line in [
            "sidecar_injection_requests_total 3",
            "sidecar_injection_success_total 1",
            "sidecar_injection_skip_total 1",
            "sidecar_injection_failure_total 1",
        ] {
            assert!(text.contains(line), "{line}: {text}");
        }
    }

    #[test]
    fn settings_follow_their_file_and_a_broken_file_changes_nothing() {
        let (injector, file, _) = injector("image: r/c:1");
        let rewrite = |text: &str, seconds| {
            std::fs::write(file.path(), text).unwrap();
            let at = SystemTime::UNIX_EPOCH + std::time::Duration::from_secs(seconds);
            std::fs::File::options().write(true).open(file.path()).unwrap().set_modified(at).unwrap();
        };
        rewrite("image: r/c:2", 1000);
        assert_eq!(injector.settings().image, "r/c:2");
        rewrite("imagee: r/c:3", 2000);
        assert_eq!(injector.settings().image, "r/c:2");
        rewrite("{image: r/c:4, namespace: evil}", 3000);
        assert_eq!((&*injector.settings().image, &*injector.settings().namespace), ("r/c:4", "istio-system"));
    }

    #[test]
    fn nothing_is_decided_before_the_version_is_known() {
        let (injector, _file, _) = injector("image: r/c:1");
        let injector = Injector { native: Arc::default(), ..injector };
        assert!(injector.answer(&request(&spec("")), "td").unwrap_err().contains("not ready"));
    }
}
