//! A whole Envoy configuration for one workload's policy, for people without a control plane. What needs one is
//! refused and not left out: keys that would have to be fetched verify nothing, CUSTOM policies deny.

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::net::SocketAddr;

use mesh::{Logs, MeshConfig, Protocol, Workload, WorkloadKind};
use policy::{EffectivePolicy, Jwks, MtlsMode};
use prost::Message;
use serde_json::{Value, json};

use super::chains::{Parts, Port};
use super::json::{JsonError, object};
use super::pb::ip_socket;
use super::pb::listener::{FilterChain, FilterChainMatch, Listener};
use super::shape::{AppAddress, Capture, ProxyShape};
use super::tls::TlsFiles;
use super::{Inbound, cluster, listener, tls};

/// What stands in front of what.
#[derive(Clone, Debug)]
pub struct Static<'a> {
    pub mesh: &'a MeshConfig,
    pub policy: &'a EffectivePolicy,
    pub ports: &'a [StaticPort],
    /// Without certificates there is only plaintext, and no caller has an identity.
    pub tls: Option<&'a TlsFiles>,
}

/// One port of the application. `ports` in policies mean the port of `listen`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct StaticPort {
    pub listen: SocketAddr,
    pub app: SocketAddr,
    pub protocol: Protocol,
}

/// The configuration as YAML with comments. Fails only if translation made something that the JSON form does not know.
pub fn envoy_static(config: &Static<'_>) -> Result<String, JsonError> {
    let workload = Workload {
        namespace: "".into(),
        name: "static".into(),
        kind: WorkloadKind::WorkloadEntry,
        labels: std::sync::Arc::default(),
        service_account: "default".into(),
        addresses: Vec::new(),
        named_ports: BTreeMap::new(),
        mutual_tls: false,
        ready: true,
        created: 0,
        uid: None,
    };
    let shape = ProxyShape {
        capture: Capture::None { apps: BTreeMap::new(), upstreams: BTreeMap::new() },
        inline_policy: true,
        ipv6: false,
    };
    let providers = BTreeMap::new();
    let logs = Logs::of_mesh(config.mesh);
    let parts = Parts::new(&Inbound {
        mesh: config.mesh,
        workload: &workload,
        ports: &[],
        policy: config.policy,
        shape: &shape,
        providers: &providers,
        logs: &logs.server,
    });
    let (mut listeners, mut clusters) = (Vec::new(), Vec::new());
    for port in config.ports {
        let listener = listener(config, &parts, port);
        listeners.push(message("envoy.config.listener.v3.Listener", &listener)?);
        let app = AppAddress::Tcp { host: port.app.ip().to_string().into(), port: port.app.port() };
        let cluster = cluster::bound_app(port.listen.port(), port.protocol, Some(&app));
        clusters.push(message("envoy.config.cluster.v3.Cluster", &cluster)?);
    }
    let bootstrap = json!({
        // Envoy's own limit on regular expressions is too small for two long names.
        "layered_runtime": {"layers": [
            {"name": "static", "static_layer": {"re2.max_program_size.error_level": 32768}}
        ]},
        "static_resources": {"listeners": listeners, "clusters": clusters},
    });
    let mut text = comments(config);
    yaml(&bootstrap, 0, &mut text);
    Ok(text)
}

fn message<M: Message>(name: &str, message: &M) -> Result<Value, JsonError> {
    Ok(super::json::sorted(object(name, &message.encode_to_vec())?))
}

/// Clients here are not ours, so TLS is taken whatever ALPN it offers.
fn listener(config: &Static<'_>, parts: &Parts<'_>, port: &StaticPort) -> Listener {
    let number = port.listen.port();
    let mode = if config.tls.is_some() { config.policy.mtls.port(number) } else { MtlsMode::Disable };
    let name = format!("inbound_{number}");
    // The chains of a plaintext port; the TLS chain is the first of them behind another transport.
    let plain = parts.chains(&Port {
        name: &name,
        stat_prefix: &name,
        cluster: &cluster::inbound_name(number),
        matched_port: None,
        protocol: port.protocol,
        mode: MtlsMode::Disable,
    });
    let mut chains = Vec::new();
    let encrypted = config.tls.filter(|_| mode != MtlsMode::Disable);
    if let (Some(files), Some(first)) = (encrypted, plain.first()) {
        chains.push(FilterChain {
            name: format!("{name}_mtls"),
            filter_chain_match: Some(FilterChainMatch {
                transport_protocol: "tls".to_owned(),
                ..Default::default()
            }),
            transport_socket: Some(tls::downstream_from_files(config.mesh, files)),
            ..first.clone()
        });
    }
    if mode != MtlsMode::Strict {
        chains.extend(plain);
    }
    let tls_inspector = encrypted.map(|_| listener::tls_inspector(None));
    let http_inspector = (port.protocol == Protocol::Auto).then(|| listener::http_inspector(None));
    Listener {
        name,
        address: Some(ip_socket(port.listen.ip(), number)),
        filter_chains: chains,
        listener_filters: tls_inspector.into_iter().chain(http_inspector).collect(),
        ..listener::inbound_listener(config.mesh, parts.logs())
    }
}

fn comments(config: &Static<'_>) -> String {
    let mut text =
        "# Made by `countersign translate -o envoy-static`. Try it: envoy --mode validate -c THIS_FILE\n"
            .to_owned();
    let mut say = |line: &str| text.extend(["# ", line, "\n"]);
    if config.tls.is_none() {
        say(
            "No certificates were given, so this is plaintext: no caller has an identity. Rules with principals,",
        );
        say(
            "namespaces or service accounts match nobody, their negations match everybody, and where mTLS is STRICT",
        );
        say("every request is denied.");
    }
    if config.policy.jwt.iter().any(|rule| matches!(rule.jwks, Jwks::Remote(_))) {
        say(
            "A RequestAuthentication has keys behind a URL. They are fetched by the control plane, so here every",
        );
        say("token of that issuer is refused; put the keys into `jwks`.");
    }
    if !config.policy.custom.is_empty() {
        say("CUSTOM policies need the provider's cluster; here what they match is denied.");
    }
    text
}

/// Block style; strings are quoted as JSON, which YAML reads the same way.
fn yaml(value: &Value, indent: usize, out: &mut String) {
    let pad = "  ".repeat(indent);
    match value {
        Value::Object(fields) if !fields.is_empty() => {
            for (name, field) in fields {
                let plain = name.bytes().all(|b| b.is_ascii_lowercase() || b.is_ascii_digit() || b == b'_');
                let _ = match plain && name.starts_with(|c: char| c.is_ascii_lowercase()) {
                    true => write!(out, "{pad}{name}:"),
                    false => write!(out, "{pad}{}:", Value::from(name.as_str())),
                };
                nested(field, indent + 1, out);
            }
        }
        Value::Array(items) if !items.is_empty() => {
            for item in items {
                let _ = write!(out, "{pad}-");
                nested(item, indent + 1, out);
            }
        }
        scalar => drop(writeln!(out, "{pad}{scalar}")),
    }
}

fn nested(value: &Value, indent: usize, out: &mut String) {
    let block = match value {
        Value::Object(fields) => !fields.is_empty(),
        Value::Array(items) => !items.is_empty(),
        _ => false,
    };
    if block {
        out.push('\n');
        yaml(value, indent, out);
    } else {
        let _ = writeln!(out, " {value}");
    }
}
