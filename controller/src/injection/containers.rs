//! What is put into a pod: one container that captures its traffic and ends, one that runs the agent and Envoy, and what
//! they mount. Built as values, never as text, and with the least that each needs. Decides nothing.

use serde_json::{Value, json};

use super::annotations::{FAILURES, INITIAL_DELAY, Knobs, PERIOD};
use super::probes::Questions;
use super::settings::Settings;
use super::values::{Networks, Ports};

/// As with Istio: tools and people know the containers by these names.
pub(super) const CAPTURE: &str = "istio-init";
pub(super) const PROXY: &str = "istio-proxy";
/// Whom the capture takes for the proxy.
pub(super) const PROXY_USER: u32 = 1337;
/// Where `/healthz/ready` is.
pub(super) const HEALTH_PORT: u16 = 15021;
pub(super) const VOLUMES: [&str; 3] = ["istio-token", "istio-ca-root-cert", "countersign-run"];
const CONFIG_MAP: &str = "istio-ca-root-cert";

/// What the containers are made from.
pub(super) struct Plan<'a> {
    pub(super) settings: &'a Settings,
    pub(super) knobs: &'a Knobs,
    pub(super) trust_domain: &'a str,
    pub(super) native: bool,
    pub(super) questions: Questions,
    /// `PORT/PATH` of the application's own metrics.
    pub(super) app_metrics: Option<String>,
}

/// The kubelet replaces `$(NAME)` in arguments and environment; what comes from a pod must stay what it is.
fn literal(text: &str) -> String {
    text.replace('$', "$$")
}

impl Plan<'_> {
    /// Redirects the pod's traffic and ends; if it fails, the pod does not start.
    pub(super) fn capture(&self) -> Value {
        let Knobs {
            include_inbound,
            exclude_inbound,
            include_outbound,
            exclude_outbound,
            include_ranges,
            exclude_ranges,
            exclude_interfaces,
            status_port,
            ..
        } = self.knobs;
        let mut args = vec!["capture".to_owned(), format!("--proxy-uid={PROXY_USER}")];
        let mut excluded = exclude_inbound.clone();
        if let Ports::These(ports) = &mut excluded {
            ports.extend([*status_port, HEALTH_PORT]);
        }
        if *include_inbound != Ports::All {
            args.push(format!("--include-inbound-ports={include_inbound}"));
        }
        args.push(format!("--exclude-inbound-ports={excluded}"));
        if *include_ranges != Networks::All {
            args.push(format!("--include-outbound-ip-ranges={include_ranges}"));
        }
        let interfaces: Vec<&str> = exclude_interfaces.iter().map(String::as_str).collect();
        for (flag, value) in [
            ("include-outbound-ports", include_outbound.to_string()),
            ("exclude-outbound-ports", exclude_outbound.to_string()),
            ("exclude-outbound-ip-ranges", exclude_ranges.to_string()),
            ("exclude-interfaces", interfaces.join(",")),
        ] {
            if !value.is_empty() {
                args.push(format!("--{flag}={value}"));
            }
        }
        json!({
            "name": CAPTURE,
            "image": self.knobs.image,
            "imagePullPolicy": self.settings.image_pull_policy,
            "args": args,
            "resources": self.settings.proxy.init_resources,
            "securityContext": {
                "allowPrivilegeEscalation": false, "privileged": false, "readOnlyRootFilesystem": true,
                "runAsUser": 0, "runAsGroup": 0, "runAsNonRoot": false,
                "capabilities": {"drop": ["ALL"], "add": ["NET_ADMIN"]},
                "seccompProfile": {"type": "RuntimeDefault"},
            },
        })
    }

    /// The agent and its Envoy.
    pub(super) fn proxy(&self) -> Value {
        let health = json!({"path": "/healthz/ready", "port": HEALTH_PORT});
        let readiness = self.knobs.readiness;
        let mut container = json!({
            "name": PROXY,
            "image": self.knobs.image,
            "imagePullPolicy": self.settings.image_pull_policy,
            "args": self.arguments(),
            "env": self.environment(),
            "ports": [{"name": "http-envoy-prom", "containerPort": self.knobs.status_port, "protocol": "TCP"}],
            "readinessProbe": {
                "httpGet": health, "timeoutSeconds": 3, "initialDelaySeconds": readiness[INITIAL_DELAY],
                "periodSeconds": readiness[PERIOD], "failureThreshold": readiness[FAILURES],
            },
            "startupProbe": {
                "httpGet": health, "timeoutSeconds": 3, "periodSeconds": 1,
                "failureThreshold": self.settings.proxy.startup_failure_threshold,
            },
            "resources": self.knobs.resources,
            "securityContext": {
                "allowPrivilegeEscalation": false, "privileged": false, "readOnlyRootFilesystem": true,
                "runAsUser": PROXY_USER, "runAsGroup": PROXY_USER, "runAsNonRoot": true,
                "capabilities": {"drop": ["ALL"]},
                "seccompProfile": {"type": "RuntimeDefault"},
            },
            "volumeMounts": [
                {"name": VOLUMES[0], "mountPath": "/var/run/secrets/tokens", "readOnly": true},
                {"name": VOLUMES[1], "mountPath": "/var/run/secrets/istio", "readOnly": true},
                {"name": VOLUMES[2], "mountPath": "/run/countersign"},
            ],
            // The kubelet calls this when the pod is told to end, before the application is: callers go elsewhere meanwhile.
            "lifecycle": {"preStop": {"exec": {"command": ["countersign", "sidecar", "drain"]}}},
        });
        if self.native {
            container["restartPolicy"] = "Always".into();
        } else if self.knobs.hold {
            // The kubelet starts the next container when this has returned.
            container["lifecycle"]["postStart"] =
                json!({"exec": {"command": ["countersign", "sidecar", "wait"]}});
        }
        container
    }

    fn arguments(&self) -> Vec<String> {
        let Settings { namespace, .. } = self.settings;
        let knobs = self.knobs;
        let mut args = vec![
            "agent".to_owned(),
            format!("--server={}", self.settings.server()),
            format!("--server-id=spiffe://{}/ns/{namespace}/sa/countersign", self.trust_domain),
            "--token-file=/var/run/secrets/tokens/istio-token".to_owned(),
            "--trust-bundle=/var/run/secrets/istio/root-cert.pem".to_owned(),
            "--capture=external".to_owned(),
            format!("--concurrency={}", knobs.concurrency),
            format!("--drain-time={}", knobs.drain.as_secs().max(1)),
            format!("--envoy-log-level={}", knobs.log_level),
            format!("--monitoring-addr=[::]:{}", knobs.status_port),
            format!("--health-addr=[::]:{HEALTH_PORT}"),
        ];
        if let Some(metrics) = &self.app_metrics {
            args.push(format!("--app-metrics={}", literal(metrics)));
        }
        args
    }

    fn environment(&self) -> Value {
        let field =
            |name: &str, path: &str| json!({"name": name, "valueFrom": {"fieldRef": {"fieldPath": path}}});
        let mut env = vec![
            field("POD_NAME", "metadata.name"),
            field("POD_NAMESPACE", "metadata.namespace"),
            field("INSTANCE_IP", "status.podIP"),
            field("HOST_IP", "status.hostIP"),
            field("SERVICE_ACCOUNT", "spec.serviceAccountName"),
            json!({"name": "TRUST_DOMAIN", "value": self.trust_domain}),
            // By environment: the hooks need it too.
            json!({"name": "COUNTERSIGN_SDS_SOCKET", "value": "/run/countersign/agent/sds.sock"}),
        ];
        if !self.questions.is_empty() {
            let questions = Value::Object(self.questions.clone()).to_string();
            env.push(json!({"name": "COUNTERSIGN_APP_PROBES", "value": literal(&questions)}));
        }
        Value::Array(env)
    }
}

/// The token that proves who the pod is, the roots, and a folder in memory for keys and sockets.
pub(super) fn volumes() -> [Value; 3] {
    let token = json!({"serviceAccountToken": {"audience": "istio-ca", "expirationSeconds": 43200, "path": "istio-token"}});
    [
        json!({"name": VOLUMES[0], "projected": {"sources": [token]}}),
        json!({"name": VOLUMES[1], "configMap": {"name": CONFIG_MAP}}),
        json!({"name": VOLUMES[2], "emptyDir": {"medium": "Memory", "sizeLimit": "16Mi"}}),
    ]
}
