//! The mesh that is made: services, their pods and policies, as objects of Kubernetes. Says what they look like and which
//! sidecar sees what; where they are written is [`super::store`]'s business.

use std::net::Ipv4Addr;

use bytes::Bytes;
use prost::Message;
use prost_types::value::Kind as Json;
use prost_types::{Struct, Value as ProtoValue};
use serde_json::{Value, json};

/// How large it is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::Args, serde::Serialize)]
pub struct Size {
    /// Services in all
    #[arg(long, default_value_t = 100)]
    pub services: usize,
    /// Pods of each service
    #[arg(long, default_value_t = 10)]
    pub pods: usize,
    /// Policies in all, each for one service
    #[arg(long, default_value_t = 100)]
    pub policies: usize,
    /// Policies besides, which select nobody
    #[arg(long, default_value_t = 0)]
    pub idle_policies: usize,
    /// Namespaces, over which services are spread
    #[arg(long, default_value_t = 1)]
    pub namespaces: usize,
    /// One Sidecar per namespace that narrows egress to that namespace
    #[arg(long)]
    pub narrowed: bool,
}

/// One pod; what changes of it is here.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Pod {
    pub service: usize,
    /// Of its service.
    pub number: usize,
    /// How often it was replaced by another.
    pub generation: usize,
    pub ip: Ipv4Addr,
    pub special: bool,
}

/// The mesh as it is now.
#[derive(Clone, Debug)]
pub struct Mesh {
    pub size: Size,
    pub pods: Vec<Pod>,
    /// Addresses given out.
    addresses: u32,
}

const LABEL: &str = "bench.countersign.io/tier";

impl Mesh {
    pub fn new(size: Size) -> Self {
        let mut mesh = Self { size, pods: Vec::new(), addresses: 0 };
        for service in 0..size.services {
            for number in 0..size.pods {
                let ip = mesh.address();
                mesh.pods.push(Pod { service, number, generation: 0, ip, special: false });
            }
        }
        mesh
    }

    /// An address that nobody had before; none is a prefix of another.
    pub fn address(&mut self) -> Ipv4Addr {
        let n = self.addresses;
        self.addresses += 1;
        // Three digits each, so that no address begins another one's text.
        let part = |n: u32| u8::try_from(100 + n % 100).unwrap_or(100);
        Ipv4Addr::new(10, part(n / 10_000), part(n / 100), part(n))
    }

    pub fn namespace(&self, service: usize) -> String {
        format!("bench-{}", service % self.size.namespaces.max(1))
    }

    pub fn pod_name(&self, pod: usize) -> String {
        let Pod { service, number, generation, .. } = self.pods[pod];
        format!("svc-{service}-{number}-{generation}")
    }

    /// Whether the proxy of `pod` is to know `service`.
    pub fn sees(&self, pod: usize, service: usize) -> bool {
        !self.size.narrowed || self.namespace(self.pods[pod].service) == self.namespace(service)
    }

    /// Everything, in the order in which it can be created: rounds of objects that do not depend on each other.
    pub fn rounds(&self) -> Vec<Vec<Value>> {
        let namespaces = (0..self.size.namespaces.max(1)).map(|n| format!("bench-{n}"));
        let mut first: Vec<Value> = namespaces.clone().map(|name| namespace(&name)).collect();
        first.push(namespace("istio-system"));
        let mut rest: Vec<Value> = Vec::new();
        if self.size.narrowed {
            rest.extend(namespaces.map(|name| sidecar(&name)));
        }
        for service in 0..self.size.services {
            rest.push(self.account(service));
            rest.push(self.service(service));
            rest.push(self.slice(service));
        }
        rest.extend((0..self.pods.len()).map(|pod| self.pod(pod)));
        rest.extend((0..self.size.policies).map(|n| self.policy(n)));
        rest.extend((0..self.size.idle_policies).map(|n| self.idle_policy(n)));
        vec![first, rest]
    }

    fn account(&self, service: usize) -> Value {
        json!({"apiVersion": "v1", "kind": "ServiceAccount",
               "metadata": {"name": format!("svc-{service}"), "namespace": self.namespace(service)}})
    }

    pub fn service(&self, service: usize) -> Value {
        json!({
            "apiVersion": "v1", "kind": "Service",
            "metadata": {"name": format!("svc-{service}"), "namespace": self.namespace(service)},
            "spec": {
                "clusterIP": format!("10.96.{}.{}", service / 250, 1 + service % 250),
                "selector": {"app": format!("svc-{service}")},
                "ports": [{"name": "http", "port": 80, "targetPort": 8080, "protocol": "TCP"}],
            },
        })
    }

    /// What the endpoint controller would write.
    pub fn slice(&self, service: usize) -> Value {
        let namespace = self.namespace(service);
        let own = self.pods.iter().enumerate().filter(|(_, pod)| pod.service == service);
        let endpoints: Vec<Value> = own
            .map(|(at, pod)| {
                json!({"addresses": [pod.ip], "conditions": {"ready": true},
                       "targetRef": {"kind": "Pod", "name": self.pod_name(at), "namespace": namespace}})
            })
            .collect();
        json!({
            "apiVersion": "discovery.k8s.io/v1", "kind": "EndpointSlice",
            "metadata": {"name": format!("svc-{service}-0"), "namespace": namespace,
                         "labels": {"kubernetes.io/service-name": format!("svc-{service}")}},
            "addressType": "IPv4", "endpoints": endpoints,
            "ports": [{"name": "http", "port": 8080, "protocol": "TCP"}],
        })
    }

    pub fn pod(&self, pod: usize) -> Value {
        let Pod { service, ip, special, .. } = self.pods[pod];
        let mut labels =
            json!({"app": format!("svc-{service}"), "version": "v1", "security.istio.io/tlsMode": "istio"});
        if special {
            labels[LABEL] = json!("special");
        }
        json!({
            "apiVersion": "v1", "kind": "Pod",
            "metadata": {"name": self.pod_name(pod), "namespace": self.namespace(service), "labels": labels,
                         "annotations": {"sidecar.istio.io/status": "{}"}},
            "spec": {
                "serviceAccountName": format!("svc-{service}"), "nodeName": "node-0",
                "containers": [{"name": "app", "image": "app", "ports": [{"containerPort": 8080, "protocol": "TCP"}]}],
            },
            "status": {
                "phase": "Running", "podIP": ip, "podIPs": [{"ip": ip}],
                "conditions": [{"type": "Ready", "status": "True"}],
            },
        })
    }

    fn policy(&self, number: usize) -> Value {
        let service = number % self.size.services.max(1);
        let caller = (number * 7 + 1) % self.size.services.max(1);
        let principal = format!("cluster.local/ns/{}/sa/svc-{caller}", self.namespace(caller));
        let spec = json!({
            "selector": {"matchLabels": {"app": format!("svc-{service}")}},
            "rules": [{"from": [{"source": {"principals": [principal]}}],
                       "to": [{"operation": {"methods": ["GET"], "paths": [format!("/api/{number}/*")]}}]}],
        });
        authorization(&self.namespace(service), &format!("allow-{number}"), &spec)
    }

    fn idle_policy(&self, number: usize) -> Value {
        let spec = json!({
            "selector": {"matchLabels": {"app": format!("nobody-{number}")}},
            "rules": [{"to": [{"operation": {"paths": [format!("/nobody/{number}")]}}]}],
        });
        authorization(&self.namespace(number), &format!("idle-{number}"), &spec)
    }

    /// A policy for one service that says `marker`.
    pub fn deny_service(&self, service: usize, marker: &str) -> Value {
        let spec = json!({"selector": {"matchLabels": {"app": format!("svc-{service}")}}, "action": "DENY", "rules": [paths(marker)]});
        authorization(&self.namespace(service), &format!("deny-svc-{service}"), &spec)
    }

    /// A policy for all workloads of the namespace of service 0 that says `marker`.
    pub fn deny_namespace(&self, marker: &str) -> Value {
        authorization(&self.namespace(0), "deny-all", &json!({"action": "DENY", "rules": [paths(marker)]}))
    }

    /// A policy for the special pods of the namespace of service 0 that says `marker`.
    pub fn deny_special(&self, marker: &str) -> Value {
        let spec = json!({"selector": {"matchLabels": {LABEL: "special"}}, "action": "DENY", "rules": [paths(marker)]});
        authorization(&self.namespace(0), "deny-special", &spec)
    }

    /// The node of the proxy beside `pod`, as an istio-agent writes it; encoded.
    pub fn node(&self, pod: usize) -> Bytes {
        let Pod { service, ip, .. } = self.pods[pod];
        let (name, namespace) = (self.pod_name(pod), self.namespace(service));
        let (account, workload, ip) = (format!("svc-{service}"), format!("svc-{service}"), ip.to_string());
        let text = |value: &str| ProtoValue { kind: Some(Json::StringValue(value.to_owned())) };
        let object = |fields: Vec<(&str, ProtoValue)>| {
            let fields = fields.into_iter().map(|(key, value)| (key.to_owned(), value)).collect();
            Struct { fields }
        };
        let labels = object(vec![
            ("app", text(&workload)),
            ("version", text("v1")),
            ("security.istio.io/tlsMode", text("istio")),
        ]);
        let metadata = object(vec![
            ("CLUSTER_ID", text("Kubernetes")),
            ("INSTANCE_IPS", text(&ip)),
            ("INTERCEPTION_MODE", text("REDIRECT")),
            ("ISTIO_VERSION", text("1.31.0")),
            ("LABELS", ProtoValue { kind: Some(Json::StructValue(labels)) }),
            ("MESH_ID", text("cluster.local")),
            ("NAME", text(&name)),
            ("NAMESPACE", text(&namespace)),
            ("SERVICE_ACCOUNT", text(&account)),
            ("WORKLOAD_NAME", text(&workload)),
        ]);
        let node = Node {
            id: format!("sidecar~{ip}~{name}.{namespace}~{namespace}.svc.cluster.local"),
            cluster: format!("{workload}.{namespace}"),
            metadata: Some(metadata),
            user_agent_name: "envoy".to_owned(),
            user_agent_build_version: Some(Build {
                version: Some(Semantic { major: 1, minor: 39, patch: 3 }),
            }),
        };
        node.encode_to_vec().into()
    }

    /// The SPIFFE ID of the proxy beside `pod`.
    pub fn identity(&self, pod: usize) -> String {
        let service = self.pods[pod].service;
        format!("spiffe://cluster.local/ns/{}/sa/svc-{service}", self.namespace(service))
    }
}

fn namespace(name: &str) -> Value {
    json!({"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": name, "labels": {"istio-injection": "enabled"}}})
}

fn sidecar(namespace: &str) -> Value {
    json!({"apiVersion": "networking.istio.io/v1", "kind": "Sidecar",
           "metadata": {"name": "default", "namespace": namespace}, "spec": {"egress": [{"hosts": ["./*"]}]}})
}

/// Mesh-wide mTLS.
pub fn mesh_mtls(mode: &str) -> Value {
    json!({"apiVersion": "security.istio.io/v1", "kind": "PeerAuthentication",
           "metadata": {"name": "default", "namespace": "istio-system"}, "spec": {"mtls": {"mode": mode}}})
}

fn authorization(namespace: &str, name: &str, spec: &Value) -> Value {
    json!({"apiVersion": "security.istio.io/v1", "kind": "AuthorizationPolicy",
           "metadata": {"name": name, "namespace": namespace}, "spec": spec})
}

fn paths(marker: &str) -> Value {
    json!({"to": [{"operation": {"paths": [format!("/{marker}")]}}]})
}

/// `envoy.config.core.v3.Node`, as far as agents fill it.
#[derive(Clone, PartialEq, Message)]
struct Node {
    #[prost(string, tag = "1")]
    id: String,
    #[prost(string, tag = "2")]
    cluster: String,
    #[prost(message, optional, tag = "3")]
    metadata: Option<Struct>,
    #[prost(string, tag = "6")]
    user_agent_name: String,
    #[prost(message, optional, tag = "8")]
    user_agent_build_version: Option<Build>,
}

#[derive(Clone, PartialEq, Message)]
struct Build {
    #[prost(message, optional, tag = "1")]
    version: Option<Semantic>,
}

#[derive(Clone, PartialEq, Message)]
struct Semantic {
    #[prost(uint32, tag = "1")]
    major: u32,
    #[prost(uint32, tag = "2")]
    minor: u32,
    #[prost(uint32, tag = "3")]
    patch: u32,
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;

    fn size() -> Size {
        Size { services: 4, pods: 3, policies: 6, idle_policies: 2, namespaces: 2, narrowed: true }
    }

    #[test]
    fn it_is_as_large_as_asked_and_every_name_is_used_once() {
        let mesh = Mesh::new(size());
        let objects: Vec<Value> = mesh.rounds().concat();
        let count = |kind: &str| objects.iter().filter(|object| object["kind"] == kind).count();
        let counts =
            ["Namespace", "Service", "EndpointSlice", "Pod", "AuthorizationPolicy", "Sidecar"].map(count);
        assert_eq!(counts, [3, 4, 4, 12, 8, 2]);
        let names: BTreeSet<String> = objects
            .iter()
            .map(|o| format!("{} {} {}", o["kind"], o["metadata"]["namespace"], o["metadata"]["name"]))
            .collect();
        assert_eq!(names.len(), objects.len());
    }

    #[test]
    fn addresses_are_told_apart_by_their_text() {
        let mut mesh = Mesh::new(Size { services: 0, ..size() });
        let all: Vec<String> = (0..30_000).map(|_| mesh.address().to_string()).collect();
        assert!(all.iter().all(|address| address.len() == "10.100.100.100".len()), "none begins another");
        assert_eq!(all.iter().collect::<BTreeSet<_>>().len(), all.len());
    }

    #[test]
    fn a_narrowed_proxy_sees_its_own_namespace() {
        let mesh = Mesh::new(size());
        let seen: Vec<usize> = (0..4).filter(|service| mesh.sees(0, *service)).collect();
        assert_eq!(seen, [0, 2]);
        let wide = Mesh::new(Size { narrowed: false, ..size() });
        assert!((0..4).all(|service| wide.sees(0, service)));
    }
}
