//! The annotations by which a pod's author tunes its sidecar (semantics §7.2). Each is read into a value of its own type;
//! one that cannot be read refuses the pod by name, because a pod that starts otherwise than its author thinks may start
//! less protected. Those that have no effect are told.

use std::collections::BTreeSet;
use std::time::Duration;

use serde_json::Value;

use super::settings::{NativeSidecar, Proxy, Settings};
use super::values::{self, Networks, Ports, Texts};

/// Everything that a pod may decide about its sidecar, decided.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct Knobs {
    pub(super) image: String,
    /// ResourceRequirements.
    pub(super) resources: Value,
    pub(super) log_level: String,
    pub(super) concurrency: u32,
    pub(super) drain: Duration,
    pub(super) hold: bool,
    pub(super) native: NativeSidecar,
    pub(super) rewrite_probes: bool,
    pub(super) merge_metrics: bool,
    pub(super) status_port: u16,
    pub(super) readiness: [u32; 3],
    pub(super) include_inbound: Ports,
    pub(super) exclude_inbound: Ports,
    pub(super) include_outbound: Ports,
    pub(super) exclude_outbound: Ports,
    pub(super) include_ranges: Networks,
    pub(super) exclude_ranges: Networks,
    pub(super) exclude_interfaces: BTreeSet<String>,
}

/// Readiness in `Knobs::readiness`.
pub(super) const INITIAL_DELAY: usize = 0;
pub(super) const PERIOD: usize = 1;
pub(super) const FAILURES: usize = 2;

/// Named here because they are ours to write, or are read elsewhere.
const OTHERS: [&str; 3] = [super::selection::INJECT, super::STATUS, "sidecar.istio.io/agentLogLevel"];

/// Groups whose unknown annotations are worth a word.
const GROUPS: [&str; 6] = [
    "sidecar.istio.io/",
    "traffic.sidecar.istio.io/",
    "status.sidecar.istio.io/",
    "readiness.status.sidecar.istio.io/",
    "inject.istio.io/",
    "proxy.istio.io/",
];

impl Knobs {
    /// As the operator has it.
    fn of(settings: &Settings) -> Self {
        let Proxy {
            resources,
            init_resources: _,
            log_level,
            concurrency,
            drain_seconds,
            status_port,
            readiness_initial_delay_seconds,
            readiness_period_seconds,
            readiness_failure_threshold,
            startup_failure_threshold: _,
            include_ip_ranges,
            exclude_ip_ranges,
            include_inbound_ports,
            exclude_inbound_ports,
            include_outbound_ports,
            exclude_outbound_ports,
        } = settings.proxy.clone();
        Self {
            image: settings.image.clone(),
            resources,
            log_level,
            concurrency,
            drain: Duration::from_secs(drain_seconds),
            hold: settings.hold_application_until_proxy_starts,
            native: settings.native_sidecar,
            rewrite_probes: settings.rewrite_app_http_probe,
            merge_metrics: settings.enable_prometheus_merge,
            status_port,
            readiness: [
                readiness_initial_delay_seconds,
                readiness_period_seconds,
                readiness_failure_threshold,
            ],
            include_inbound: include_inbound_ports,
            exclude_inbound: exclude_inbound_ports,
            include_outbound: include_outbound_ports,
            exclude_outbound: exclude_outbound_ports,
            include_ranges: include_ip_ranges,
            exclude_ranges: exclude_ip_ranges,
            exclude_interfaces: BTreeSet::new(),
        }
    }

    /// With what a pod's annotations say; what they say in vain goes to `warnings`.
    ///
    /// # Errors
    /// Every annotation that cannot be read.
    pub(super) fn read(
        annotations: &Texts,
        settings: &Settings,
        warnings: &mut Vec<String>,
    ) -> Result<Self, Vec<String>> {
        let mut knobs = Self::of(settings);
        let mut errors = Vec::new();
        // The proxy's configuration first: an annotation of its own says it more closely.
        if let Some(text) = annotations.get("proxy.istio.io/config") {
            let read = knobs.proxy_config(text, warnings);
            errors.extend(read.err().map(|why| format!("annotation proxy.istio.io/config: {why}")));
        }
        for (name, value) in annotations {
            let read = knobs.annotation(name, value.trim(), settings, warnings);
            errors.extend(read.err().map(|why| format!("annotation {name}: {why}")));
        }
        errors.extend(knobs.resource_annotations(annotations).err().into_iter().flatten());
        if errors.is_empty() { Ok(knobs) } else { Err(errors) }
    }

    fn annotation(
        &mut self,
        name: &str,
        value: &str,
        settings: &Settings,
        warnings: &mut Vec<String>,
    ) -> Result<(), String> {
        match name {
            "sidecar.istio.io/interceptionMode" if value == "REDIRECT" => {}
            "sidecar.istio.io/interceptionMode" => {
                return Err(format!(
                    "{value:?}: only REDIRECT is there; without it a pod would be unprotected"
                ));
            }
            "sidecar.istio.io/proxyImage" => self.image = allowed_image(value, settings)?,
            "sidecar.istio.io/logLevel" => self.log_level = values::envoy_level(value)?,
            "sidecar.istio.io/nativeSidecar" => {
                self.native = if values::boolean(value)? { NativeSidecar::Yes } else { NativeSidecar::No };
            }
            "sidecar.istio.io/rewriteAppHTTPProbers" => self.rewrite_probes = values::boolean(value)?,
            "prometheus.istio.io/merge-metrics" => self.merge_metrics = values::boolean(value)?,
            "status.sidecar.istio.io/port" => self.status_port = status_port(value)?,
            "readiness.status.sidecar.istio.io/initialDelaySeconds" => {
                self.readiness[INITIAL_DELAY] = values::number(value, 3600)?;
            }
            "readiness.status.sidecar.istio.io/periodSeconds" => {
                self.readiness[PERIOD] = at_least_one(values::number(value, 3600)?)?;
            }
            "readiness.status.sidecar.istio.io/failureThreshold" => {
                self.readiness[FAILURES] = at_least_one(values::number(value, 3600)?)?;
            }
            "traffic.sidecar.istio.io/includeInboundPorts" => self.include_inbound = values::ports(value)?,
            "traffic.sidecar.istio.io/excludeInboundPorts" => self.exclude_inbound = some_ports(value)?,
            "traffic.sidecar.istio.io/includeOutboundPorts" => self.include_outbound = some_ports(value)?,
            "traffic.sidecar.istio.io/excludeOutboundPorts" => self.exclude_outbound = some_ports(value)?,
            "traffic.sidecar.istio.io/includeOutboundIPRanges" => {
                self.include_ranges = values::networks(value)?;
            }
            "traffic.sidecar.istio.io/excludeOutboundIPRanges" => {
                self.exclude_ranges = match values::networks(value)? {
                    Networks::All => return Err("* would be all addresses; name them".to_owned()),
                    these => these,
                };
            }
            "traffic.sidecar.istio.io/excludeInterfaces" => {
                self.exclude_interfaces = values::interfaces(value)?;
            }
            "traffic.sidecar.istio.io/kubevirtInterfaces"
            | "istio.io/reroute-virtual-interfaces"
            | "sidecar.istio.io/bootstrapOverride"
            | "sidecar.istio.io/discoveryAddress"
            | "sidecar.istio.io/userVolume"
            | "sidecar.istio.io/userVolumeMount" => {
                return Err(
                    "it is not supported, and a pod without it would not be what was meant".to_owned()
                );
            }
            "inject.istio.io/templates" if value == "sidecar" => {}
            "inject.istio.io/templates" => return Err(format!("{value:?}: the only template is sidecar")),
            "sidecar.istio.io/proxyCPU"
            | "sidecar.istio.io/proxyCPULimit"
            | "sidecar.istio.io/proxyMemory"
            | "sidecar.istio.io/proxyMemoryLimit"
            | "proxy.istio.io/config" => {}
            name if OTHERS.contains(&name) => {}
            name if GROUPS.iter().any(|group| name.starts_with(group)) => {
                warnings.push(format!("annotation {name} has no effect here"));
            }
            _ => {}
        }
        Ok(())
    }

    /// As with Istio, any of them replaces all that the operator set.
    fn resource_annotations(&mut self, annotations: &Texts) -> Result<(), Vec<String>> {
        const NAMES: [(&str, &str, &str); 4] = [
            ("sidecar.istio.io/proxyCPU", "requests", "cpu"),
            ("sidecar.istio.io/proxyMemory", "requests", "memory"),
            ("sidecar.istio.io/proxyCPULimit", "limits", "cpu"),
            ("sidecar.istio.io/proxyMemoryLimit", "limits", "memory"),
        ];
        let mut resources = serde_json::json!({});
        let mut errors = Vec::new();
        for (name, what, of) in NAMES {
            match annotations.get(name).map(|value| values::quantity(value.trim())) {
                Some(Ok(amount)) => resources[what][of] = amount.into(),
                Some(Err(why)) => errors.push(format!("annotation {name}: {why}")),
                None => {}
            }
        }
        if resources.as_object().is_some_and(|some| !some.is_empty()) {
            self.resources = resources;
        }
        if errors.is_empty() { Ok(()) } else { Err(errors) }
    }

    /// Istio's ProxyConfig, as YAML: the fields that mean something here.
    fn proxy_config(&mut self, text: &str, warnings: &mut Vec<String>) -> Result<(), String> {
        if text.trim().is_empty() {
            return Ok(());
        }
        let config: Value = serde_yaml::from_str(text).map_err(|error| format!("no YAML: {error}"))?;
        let fields = config.as_object().ok_or("no ProxyConfig: a mapping of fields is expected")?;
        let seconds = |value: &Value| {
            let text = value.as_str().ok_or_else(|| format!("{value} is no duration such as 5s"))?;
            values::duration(text).and_then(|drain| {
                let enough = drain <= Duration::from_secs(600);
                enough.then_some(drain).ok_or_else(|| format!("{text:?} is longer than ten minutes"))
            })
        };
        for (field, value) in fields {
            let read = match &**field {
                "holdApplicationUntilProxyStarts" => {
                    let flag = value.as_bool().ok_or_else(|| format!("{value} is neither true nor false"));
                    flag.map(|flag| self.hold = flag)
                }
                "drainDuration" | "terminationDrainDuration" => {
                    seconds(value).map(|drain| self.drain = drain)
                }
                "concurrency" => {
                    let number =
                        value.as_u64().and_then(|n| u32::try_from(n).ok()).filter(|n| (1..=256).contains(n));
                    let number = number.ok_or_else(|| format!("{value} is no number from 1 to 256"));
                    number.map(|number| self.concurrency = number)
                }
                "statusPort" => status_port(&value.to_string()).map(|port| self.status_port = port),
                "interceptionMode" if *value == "REDIRECT" => Ok(()),
                "interceptionMode" | "discoveryAddress" => Err(format!("{value} is not supported")),
                _ => {
                    warnings.push(format!("annotation proxy.istio.io/config: {field:?} has no effect here"));
                    Ok(())
                }
            };
            read.map_err(|why| format!("{field}: {why}"))?;
        }
        Ok(())
    }
}

fn some_ports(value: &str) -> Result<Ports, String> {
    match values::ports(value)? {
        Ports::All => Err("* would be all ports; name them".to_owned()),
        these @ Ports::These(_) => Ok(these),
    }
}

fn at_least_one(number: u32) -> Result<u32, String> {
    if number == 0 { Err("at least 1 is needed".to_owned()) } else { Ok(number) }
}

/// Ports of Envoy and of the health check are taken.
fn status_port(value: &str) -> Result<u16, String> {
    let port = values::port(value)?;
    let taken = [15000, 15001, 15006, 15008, 15021, 15090].contains(&port);
    (port >= 1024 && !taken)
        .then_some(port)
        .ok_or_else(|| format!("{port} cannot be the port: it is privileged or taken"))
}

fn allowed_image(value: &str, settings: &Settings) -> Result<String, String> {
    let image = values::image(value)?;
    let allows = |entry: &String| match entry.strip_suffix('*') {
        Some(prefix) => image.starts_with(prefix),
        None => *entry == image,
    };
    let allowed = image == settings.image || settings.allowed_proxy_images.iter().any(allows);
    allowed.then_some(image).ok_or_else(|| {
        format!("{value:?} is not among the images that the operator allows (allowedProxyImages)")
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(pairs: &[(&str, &str)]) -> (Result<Knobs, Vec<String>>, Vec<String>) {
        let mut settings = Settings::of_image("r/countersign:1").unwrap();
        settings.allowed_proxy_images = vec!["r/other:*".to_owned(), "r/exact:2".to_owned()];
        let annotations = pairs.iter().map(|(k, v)| ((*k).to_owned(), (*v).to_owned())).collect();
        let mut warnings = Vec::new();
        (Knobs::read(&annotations, &settings, &mut warnings), warnings)
    }

    /// Refused by name, each with values that a template would have let through.
    #[test]
    fn a_value_that_cannot_be_read_refuses_the_pod_and_names_the_annotation() {
        const HOSTILE: [&str; 6] =
            ["\"\n- name: evil\n  image: evil", "$(rm -rf /)", "{{ .Values }}", "1; drop", "'", "\u{0}"];
        let names = [
            "sidecar.istio.io/interceptionMode",
            "sidecar.istio.io/proxyImage",
            "sidecar.istio.io/logLevel",
            "sidecar.istio.io/nativeSidecar",
            "sidecar.istio.io/rewriteAppHTTPProbers",
            "sidecar.istio.io/proxyCPU",
            "sidecar.istio.io/proxyMemory",
            "sidecar.istio.io/proxyCPULimit",
            "sidecar.istio.io/proxyMemoryLimit",
            "prometheus.istio.io/merge-metrics",
            "status.sidecar.istio.io/port",
            "readiness.status.sidecar.istio.io/initialDelaySeconds",
            "readiness.status.sidecar.istio.io/periodSeconds",
            "readiness.status.sidecar.istio.io/failureThreshold",
            "traffic.sidecar.istio.io/includeInboundPorts",
            "traffic.sidecar.istio.io/excludeInboundPorts",
            "traffic.sidecar.istio.io/includeOutboundPorts",
            "traffic.sidecar.istio.io/excludeOutboundPorts",
            "traffic.sidecar.istio.io/includeOutboundIPRanges",
            "traffic.sidecar.istio.io/excludeOutboundIPRanges",
            "traffic.sidecar.istio.io/excludeInterfaces",
            "inject.istio.io/templates",
            "proxy.istio.io/config",
        ];
        for name in names {
            for value in HOSTILE {
                let errors = read(&[(name, value)]).0.expect_err(name);
                assert!(errors[0].contains(name), "{name}: {errors:?}");
            }
        }
    }

    #[test]
    fn what_would_open_a_pod_or_lead_it_elsewhere_is_refused() {
        for (name, value) in [
            ("sidecar.istio.io/interceptionMode", "TPROXY"),
            ("sidecar.istio.io/interceptionMode", "NONE"),
            ("sidecar.istio.io/proxyImage", "evil/envoy:1"),
            ("sidecar.istio.io/proxyImage", "r/exact:3"),
            ("sidecar.istio.io/bootstrapOverride", "cm"),
            ("sidecar.istio.io/discoveryAddress", "evil:15012"),
            ("sidecar.istio.io/userVolume", "[]"),
            ("inject.istio.io/templates", "sidecar,evil"),
            ("inject.istio.io/templates", "gateway"),
            ("traffic.sidecar.istio.io/excludeInboundPorts", "*"),
            ("traffic.sidecar.istio.io/excludeOutboundIPRanges", "*"),
            ("status.sidecar.istio.io/port", "0"),
            ("status.sidecar.istio.io/port", "15006"),
            ("proxy.istio.io/config", "{discoveryAddress: 'evil:15012'}"),
            ("proxy.istio.io/config", "{interceptionMode: TPROXY}"),
            ("proxy.istio.io/config", "{drainDuration: 5}"),
            ("proxy.istio.io/config", "{drainDuration: 2h}"),
            ("proxy.istio.io/config", "{concurrency: -1}"),
            ("proxy.istio.io/config", "{holdApplicationUntilProxyStarts: 'yes'}"),
            ("proxy.istio.io/config", "[]"),
        ] {
            let errors = read(&[(name, value)]).0.expect_err(value);
            assert!(errors[0].contains(name), "{name}: {errors:?}");
        }
    }

    #[test]
    fn values_that_can_be_read_are_taken() {
        let (knobs, warnings) = read(&[
            ("sidecar.istio.io/proxyImage", "r/other:canary"),
            ("sidecar.istio.io/proxyCPU", "250m"),
            ("sidecar.istio.io/nativeSidecar", "false"),
            ("traffic.sidecar.istio.io/excludeInboundPorts", "9090, 22"),
            ("traffic.sidecar.istio.io/includeOutboundIPRanges", "10.0.0.0/8,fd00::/8"),
            ("readiness.status.sidecar.istio.io/periodSeconds", "3"),
            ("proxy.istio.io/config", "drainDuration: 10s\nconcurrency: 4\ntracing: {}\n"),
            ("sidecar.istio.io/statsInclusionPrefixes", "x"),
            ("example.com/mine", "{{ }}"),
        ]);
        let knobs = knobs.unwrap();
        assert_eq!(knobs.image, "r/other:canary");
        assert_eq!(knobs.resources, serde_json::json!({"requests": {"cpu": "250m"}}));
        assert_eq!(knobs.native, NativeSidecar::No);
        assert_eq!(knobs.exclude_inbound.to_string(), "22,9090");
        assert_eq!(knobs.include_ranges.to_string(), "10.0.0.0/8,fd00::/8");
        assert_eq!((knobs.drain.as_secs(), knobs.concurrency, knobs.readiness[PERIOD]), (10, 4, 3));
        assert_eq!(warnings.len(), 2, "{warnings:?}");
    }
}
