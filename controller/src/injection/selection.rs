//! Which pods are injected (semantics §7.1): first the entries of the webhook's configuration, by labels of namespace and
//! pod, then what is judged in process. Pure tables.

use std::collections::BTreeMap;

use serde::Deserialize;
use serde_json::Value;

use super::settings::Settings;

pub(super) const INJECT: &str = "sidecar.istio.io/inject";
const NAMESPACE_INJECTION: &str = "istio-injection";
const REVISION: &str = crds::REVISION;
/// Where nothing is injected, besides the control plane's own namespace.
const IGNORED: [&str; 3] = ["kube-system", "kube-public", "kube-node-lease"];
/// Where nothing is injected only because a namespace says nothing.
const QUIET: &str = "local-path-storage";

type Labels = BTreeMap<String, String>;

/// Kubernetes' LabelSelector.
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "camelCase", default)]
pub struct LabelSelector {
    pub match_labels: Labels,
    pub match_expressions: Vec<Expression>,
}

#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "camelCase")]
pub struct Expression {
    pub key: String,
    pub operator: Operator,
    #[serde(default)]
    pub values: Vec<String>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize)]
pub enum Operator {
    In,
    NotIn,
    Exists,
    DoesNotExist,
}

impl LabelSelector {
    /// # Errors
    /// An operator whose values are missing, or that takes none.
    pub(super) fn check(&self) -> Result<(), String> {
        for Expression { key, operator, values } in &self.match_expressions {
            if matches!(operator, Operator::In | Operator::NotIn) == values.is_empty() {
                return Err(format!("selector on {key:?}: {operator:?} with {} values", values.len()));
            }
        }
        Ok(())
    }

    /// An empty selector selects nothing here, as with Istio.
    fn matches(&self, labels: &Labels) -> bool {
        let Self { match_labels, match_expressions } = self;
        let expression = |Expression { key, operator, values }: &Expression| {
            let value = labels.get(key);
            match operator {
                Operator::In => value.is_some_and(|value| values.contains(value)),
                Operator::NotIn => value.is_none_or(|value| !values.contains(value)),
                Operator::Exists => value.is_some(),
                Operator::DoesNotExist => value.is_none(),
            }
        };
        let empty = match_labels.is_empty() && match_expressions.is_empty();
        !empty
            && match_labels.iter().all(|(key, value)| labels.get(key) == Some(value))
            && match_expressions.iter().all(expression)
    }
}

/// Why a pod is left as it is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Skip {
    /// It shares the node's network: its traffic cannot be told from the node's.
    HostNetwork,
    Windows,
    IgnoredNamespace,
    /// No label of the namespace or the pod asks for it.
    NotAsked,
    /// A label or annotation of the pod says no.
    Refused,
    NeverInjectSelector,
    /// There is a sidecar already.
    Injected,
}

impl Skip {
    /// Whether somebody may have expected otherwise, and is to be told.
    pub fn surprising(self) -> bool {
        matches!(self, Self::HostNetwork | Self::Windows)
    }
}

impl std::fmt::Display for Skip {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            Self::HostNetwork => {
                "no sidecar: a pod on the host network cannot be captured and is NOT protected"
            }
            Self::Windows => "no sidecar: a Windows pod cannot be captured and is NOT protected",
            Self::IgnoredNamespace => "nothing is injected in this namespace",
            Self::NotAsked => "neither namespace nor pod asks for a sidecar",
            Self::Refused => "the pod asks for no sidecar",
            Self::NeverInjectSelector => "a neverInjectSelector matches",
            Self::Injected => "it has a sidecar already",
        })
    }
}

/// Whether an entry of the webhook's configuration matches: the API server would ask.
pub fn asked(namespace: &str, of_namespace: &Labels, of_pod: &Labels, settings: &Settings) -> bool {
    if namespace == settings.namespace || IGNORED.contains(&namespace) {
        return false;
    }
    let revision = &*settings.revision;
    let injection = of_namespace.get(NAMESPACE_INJECTION).map(String::as_str);
    let (namespace_rev, pod_rev) = (of_namespace.get(REVISION), of_pod.get(REVISION));
    let inject = of_pod.get(INJECT).map(String::as_str);
    let willing = inject != Some("false");
    let silent = injection.is_none() && namespace_rev.is_none();
    let by_revision = namespace_rev.is_some_and(|rev| rev == revision) && injection.is_none() && willing
        || silent && pod_rev.is_some_and(|rev| rev == revision) && willing;
    let default = revision == crds::DEFAULT_REVISION;
    let by_default = injection == Some("enabled") && willing
        || silent && inject == Some("true") && pod_rev.is_none()
        || settings.enable_namespaces_by_default
            && silent
            && namespace != QUIET
            && inject.is_none()
            && pod_rev.is_none();
    by_revision || default && by_default
}

/// What is judged in process, once the API server asks.
///
/// # Errors
/// A label or annotation that is neither true nor false: Istio would start the pod bare.
pub(super) fn required(
    namespace: &str,
    labels: &Labels,
    annotations: &Labels,
    spec: &Value,
    settings: &Settings,
) -> Result<Option<Skip>, String> {
    if spec["hostNetwork"] == true {
        return Ok(Some(Skip::HostNetwork));
    }
    if spec["os"]["name"] == "windows" || spec["nodeSelector"]["kubernetes.io/os"] == "windows" {
        return Ok(Some(Skip::Windows));
    }
    if namespace == settings.namespace || IGNORED.contains(&namespace) {
        return Ok(Some(Skip::IgnoredNamespace));
    }
    let said = match labels.get(INJECT) {
        Some(value) => Some(("label", value)),
        None => annotations.get(INJECT).map(|value| ("annotation", value)),
    };
    match said {
        Some((_, value)) if value == "true" => return Ok(None),
        Some((_, value)) if value == "false" => return Ok(Some(Skip::Refused)),
        Some((what, value)) if !value.is_empty() => {
            return Err(format!("{what} {INJECT}: {value:?} is neither true nor false"));
        }
        _ => {}
    }
    let matches = |selectors: &[LabelSelector]| selectors.iter().any(|selector| selector.matches(labels));
    if matches(&settings.never_inject_selector) {
        return Ok(Some(Skip::NeverInjectSelector));
    }
    let chosen = settings.auto_inject || matches(&settings.always_inject_selector);
    Ok((!chosen).then_some(Skip::NotAsked))
}
