//! What the operator decides about injection: a YAML file (the chart's ConfigMap), read as a whole or not at all. An
//! unknown field is an error: a setting that is misspelt must not be a setting that is not there.

use std::collections::BTreeMap;

use serde::Deserialize;
use serde_json::Value;

use super::selection::LabelSelector;
use super::values::{self, Networks, Ports};

/// The whole file. Defaults are the chart's.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "camelCase")]
pub struct Settings {
    /// Of the capture and of the proxy.
    pub image: String,
    #[serde(default = "pull_policy")]
    pub image_pull_policy: String,
    /// Names of Secrets of the pod's namespace, added to every injected pod.
    #[serde(default)]
    pub image_pull_secrets: Vec<String>,
    /// The control plane's own namespace: nothing is injected there.
    #[serde(default = "namespace")]
    pub namespace: String,
    #[serde(default = "revision")]
    pub revision: String,
    /// `HOST:PORT` of the control plane [default: countersign.NAMESPACE.svc:15012].
    #[serde(default)]
    pub server: String,
    #[serde(default)]
    pub native_sidecar: NativeSidecar,
    /// For proxies that are ordinary containers.
    #[serde(default = "yes")]
    pub hold_application_until_proxy_starts: bool,
    #[serde(default = "yes", rename = "rewriteAppHTTPProbe")]
    pub rewrite_app_http_probe: bool,
    #[serde(default = "yes")]
    pub enable_prometheus_merge: bool,
    #[serde(default)]
    pub enable_namespaces_by_default: bool,
    /// Without it, a pod must say so itself, or an alwaysInjectSelector.
    #[serde(default = "yes")]
    pub auto_inject: bool,
    #[serde(default)]
    pub never_inject_selector: Vec<LabelSelector>,
    #[serde(default)]
    pub always_inject_selector: Vec<LabelSelector>,
    /// What `sidecar.istio.io/proxyImage` may name; an entry that ends with `*` is a prefix.
    #[serde(default)]
    pub allowed_proxy_images: Vec<String>,
    #[serde(default)]
    pub injected_annotations: BTreeMap<String, String>,
    #[serde(default)]
    pub proxy: Proxy,
}

/// `auto`: as the API server's version allows.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum NativeSidecar {
    #[default]
    Auto,
    Yes,
    No,
}

impl<'de> Deserialize<'de> for NativeSidecar {
    fn deserialize<D: serde::Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        match Value::deserialize(deserializer)? {
            Value::Bool(true) => Ok(Self::Yes),
            Value::Bool(false) => Ok(Self::No),
            Value::String(text) if text == "auto" => Ok(Self::Auto),
            other => Err(serde::de::Error::custom(format!("{other} is none of auto, true and false"))),
        }
    }
}

/// `global.proxy` of the chart.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "camelCase", default)]
pub struct Proxy {
    /// Kubernetes' ResourceRequirements.
    pub resources: Value,
    pub init_resources: Value,
    /// Of Envoy.
    pub log_level: String,
    /// Envoy's threads.
    pub concurrency: u32,
    pub drain_seconds: u64,
    pub status_port: u16,
    pub readiness_initial_delay_seconds: u32,
    pub readiness_period_seconds: u32,
    pub readiness_failure_threshold: u32,
    pub startup_failure_threshold: u32,
    #[serde(rename = "includeIPRanges", deserialize_with = "networks")]
    pub include_ip_ranges: Networks,
    #[serde(rename = "excludeIPRanges", deserialize_with = "networks")]
    pub exclude_ip_ranges: Networks,
    #[serde(deserialize_with = "ports")]
    pub include_inbound_ports: Ports,
    #[serde(deserialize_with = "ports")]
    pub exclude_inbound_ports: Ports,
    #[serde(deserialize_with = "ports")]
    pub include_outbound_ports: Ports,
    #[serde(deserialize_with = "ports")]
    pub exclude_outbound_ports: Ports,
}

impl Default for Proxy {
    fn default() -> Self {
        let init =
            serde_json::json!({"requests": {"cpu": "10m", "memory": "16Mi"}, "limits": {"memory": "64Mi"}});
        Self {
            resources: serde_json::json!({
                "requests": {"cpu": "100m", "memory": "128Mi"}, "limits": {"cpu": "2", "memory": "1Gi"},
            }),
            init_resources: init,
            log_level: "warning".to_owned(),
            concurrency: 2,
            drain_seconds: 5,
            status_port: 15020,
            readiness_initial_delay_seconds: 0,
            readiness_period_seconds: 15,
            readiness_failure_threshold: 4,
            startup_failure_threshold: 600,
            include_ip_ranges: Networks::All,
            exclude_ip_ranges: Networks::none(),
            include_inbound_ports: Ports::All,
            exclude_inbound_ports: Ports::none(),
            include_outbound_ports: Ports::none(),
            exclude_outbound_ports: Ports::none(),
        }
    }
}

fn pull_policy() -> String {
    "IfNotPresent".to_owned()
}

fn namespace() -> String {
    "istio-system".to_owned()
}

fn revision() -> String {
    "default".to_owned()
}

fn yes() -> bool {
    true
}

fn ports<'de, D: serde::Deserializer<'de>>(deserializer: D) -> Result<Ports, D::Error> {
    values::ports(&String::deserialize(deserializer)?).map_err(serde::de::Error::custom)
}

fn networks<'de, D: serde::Deserializer<'de>>(deserializer: D) -> Result<Networks, D::Error> {
    values::networks(&String::deserialize(deserializer)?).map_err(serde::de::Error::custom)
}

impl Settings {
    /// Reads the file's text.
    ///
    /// # Errors
    /// What is wrong with it.
    pub fn read(text: &str) -> Result<Self, String> {
        let settings: Self = serde_yaml::from_str(text).map_err(|error| error.to_string())?;
        settings.check()?;
        Ok(settings)
    }

    /// Defaults around an image.
    ///
    /// # Errors
    /// If the image has no name.
    pub fn of_image(image: &str) -> Result<Self, String> {
        Self::read(&serde_json::json!({"image": image}).to_string())
    }

    fn check(&self) -> Result<(), String> {
        values::image(&self.image).map_err(|why| format!("image: {why}"))?;
        values::envoy_level(&self.proxy.log_level).map_err(|why| format!("proxy.logLevel: {why}"))?;
        if !["Always", "IfNotPresent", "Never"].contains(&&*self.image_pull_policy) {
            return Err(format!("imagePullPolicy: {:?} is no policy", self.image_pull_policy));
        }
        if self.proxy.status_port < 1024 {
            return Err("proxy.statusPort: a port from 1024 on is needed".to_owned());
        }
        let Proxy { exclude_inbound_ports, exclude_outbound_ports, include_outbound_ports, .. } = &self.proxy;
        for (name, ports) in [
            ("excludeInboundPorts", exclude_inbound_ports),
            ("excludeOutboundPorts", exclude_outbound_ports),
            ("includeOutboundPorts", include_outbound_ports),
        ] {
            if *ports == Ports::All {
                return Err(format!("proxy.{name}: * would be all ports; name them"));
            }
        }
        if self.proxy.exclude_ip_ranges == Networks::All {
            return Err("proxy.excludeIPRanges: * would be all addresses; name them".to_owned());
        }
        let selectors = self.never_inject_selector.iter().chain(&self.always_inject_selector);
        selectors.into_iter().try_for_each(LabelSelector::check)
    }

    /// `HOST:PORT` of the control plane.
    pub(super) fn server(&self) -> String {
        match &*self.server {
            "" => format!("countersign.{}.svc:15012", self.namespace),
            server => server.to_owned(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The chart's values are these settings, by the same names and with the same defaults.
    #[test]
    fn the_chart_says_the_same() {
        let chart = |file: &str| {
            let root = concat!(env!("CARGO_MANIFEST_DIR"), "/../charts/countersign/");
            std::fs::read_to_string(format!("{root}{file}")).unwrap()
        };
        let values: Value = serde_yaml::from_str(&chart("values.yaml")).unwrap();
        let template = chart("templates/injection.yaml");
        let mut proxy = values["global"]["proxy"].clone();
        let fields = proxy.as_object_mut().unwrap();
        for elsewhere in [
            "image",
            "allowedImages",
            "autoInject",
            "nativeSidecar",
            "holdApplicationUntilProxyStarts",
            "prometheusMerge",
        ] {
            assert!(fields.remove(elsewhere).is_some(), "{elsewhere}");
            assert!(template.contains(&format!("$proxy.{elsewhere}")), "{elsewhere}");
        }
        let startup = fields.remove("startupProbe").unwrap()["failureThreshold"].clone();
        assert!(fields.keys().all(|name| template.contains(&format!("\"{name}\""))), "{fields:?}");
        fields.insert("startupFailureThreshold".to_owned(), startup);
        let hook = &values["sidecarInjectorWebhook"];
        let text = serde_json::json!({
            "image": "a", "proxy": proxy, "neverInjectSelector": hook["neverInjectSelector"],
            "rewriteAppHTTPProbe": hook["rewriteAppHTTPProbe"],
            "enableNamespacesByDefault": hook["enableNamespacesByDefault"],
        });
        let of_chart = Settings::read(&text.to_string()).unwrap();
        assert_eq!(format!("{of_chart:?}"), format!("{:?}", Settings::of_image("a").unwrap()));
    }

    #[test]
    fn defaults_are_there_and_mistakes_are_named() {
        let settings = Settings::read("image: r/c:1\n").unwrap();
        assert_eq!(settings.server(), "countersign.istio-system.svc:15012");
        assert_eq!(settings.native_sidecar, NativeSidecar::Auto);
        assert_eq!(
            Settings::read("{image: a, nativeSidecar: false}").unwrap().native_sidecar,
            NativeSidecar::No
        );
        for (text, part) in [
            ("{}", "image"),
            ("image: ''", "image"),
            ("image: 'a b'", "image"),
            ("{image: a, rewriteAppHttpProbe: true}", "rewriteAppHttpProbe"),
            ("{image: a, nativeSidecar: sometimes}", "sometimes"),
            ("{image: a, imagePullPolicy: Once}", "Once"),
            ("{image: a, proxy: {excludeInboundPorts: '80,http'}}", "http"),
            ("{image: a, proxy: {excludeInboundPorts: '*'}}", "excludeInboundPorts"),
            ("{image: a, proxy: {includeIPRanges: '10.0.0.0'}}", "10.0.0.0"),
            ("{image: a, proxy: {excludeIPRanges: '*'}}", "excludeIPRanges"),
            ("{image: a, proxy: {statusPort: 80}}", "statusPort"),
            ("{image: a, proxy: {logLevel: loud}}", "loud"),
            ("{image: a, neverInjectSelector: [{matchExpressions: [{key: a, operator: Like}]}]}", "Like"),
            ("{image: a, neverInjectSelector: [{matchExpressions: [{key: a, operator: In}]}]}", "values"),
        ] {
            let error = Settings::read(text).unwrap_err();
            assert!(error.contains(part), "{text}: {error}");
        }
    }
}
