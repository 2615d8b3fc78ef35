//! `ingress[]` of a Sidecar: the ports that its workloads serve, and where their applications listen. It opens nothing:
//! what may come in at a port is decided by PeerAuthentication and policies.

use std::collections::BTreeSet;
use std::net::{Ipv4Addr, Ipv6Addr, SocketAddr};

use mesh::{Ingress, IngressApp, Protocol};
use serde_json::Value;

use super::{CaptureMode, IngressListener, SidecarPort};
use crate::finding::Issues;
use crate::path::At;
use crate::wire;

pub(super) fn read(listeners: &[IngressListener], at: &At<'_>, issues: &mut Issues) -> Vec<Ingress> {
    let mut seen = BTreeSet::new();
    let mut read = Vec::with_capacity(listeners.len());
    for (index, listener) in listeners.iter().enumerate() {
        let at = at.index(index);
        let IngressListener { port, bind, capture_mode, default_endpoint, tls, connection_pool } = listener;
        let Some(port) = port else {
            issues.error(&at.key("port"), "a port is required");
            continue;
        };
        let number = number(port, &at.key("port"), issues);
        if number.is_some_and(|number| !seen.insert(number)) {
            issues.error(&at.key("port"), "this port is given twice");
        }
        for (given, field) in [
            (!bind.is_empty(), "bind"),
            (*capture_mode == CaptureMode::None, "captureMode"),
            (connection_pool.is_some(), "connectionPool"),
        ] {
            if given {
                issues.warning(&at.key(field), "it has no effect");
            }
        }
        if let Some(tls) = tls {
            read_tls(tls, &at.key("tls"), issues);
        }
        let app = app(default_endpoint, &at.key("defaultEndpoint"), issues);
        let protocol = protocol(port);
        read.extend(number.map(|port| Ingress { port, protocol, app }));
    }
    read
}

/// The number of a port whose protocol is known or left out.
pub(super) fn number(port: &SidecarPort, at: &At<'_>, issues: &mut Issues) -> Option<u16> {
    let SidecarPort { number, protocol, name: _, target_port } = port;
    if !known(protocol) {
        issues.error(&at.key("protocol"), format!("`{protocol}` is not the name of a protocol"));
    }
    if *target_port != 0 {
        issues.warning(&at.key("targetPort"), "it has no effect");
    }
    wire::port(*number, &at.key("number"), issues)
}

/// Istio's names of protocols.
pub(crate) fn known(protocol: &str) -> bool {
    const NAMES: [&str; 13] = [
        "",
        "TCP",
        "UDP",
        "HTTP",
        "HTTP2",
        "HTTP_PROXY",
        "HTTPS",
        "GRPC",
        "GRPC-WEB",
        "TLS",
        "MONGO",
        "REDIS",
        "MYSQL",
    ];
    NAMES.iter().any(|name| name.eq_ignore_ascii_case(protocol))
}

fn protocol(port: &SidecarPort) -> Protocol {
    let number = u16::try_from(port.number).unwrap_or_default();
    Protocol::detect((!port.protocol.is_empty()).then_some(port.protocol.as_str()), "", number)
}

/// Without Istio's experimental switch it has no effect there either; what its admission refuses is refused.
fn read_tls(tls: &Value, at: &At<'_>, issues: &mut Issues) {
    match tls.get("mode").and_then(Value::as_str) {
        Some("SIMPLE" | "MUTUAL" | "OPTIONAL_MUTUAL") => {
            issues.warning(at, "it has no effect: PeerAuthentication decides what the port takes");
        }
        mode => {
            let mode = mode.unwrap_or_default();
            issues.error(&at.key("mode"), format!("`{mode}` is not possible at a Sidecar: SIMPLE or MUTUAL"));
        }
    }
}

fn app(endpoint: &str, at: &At<'_>, issues: &mut Issues) -> Option<IngressApp> {
    if endpoint.is_empty() {
        return None;
    }
    if let Some(path) = endpoint.strip_prefix("unix://") {
        if path.starts_with('/') && !path.ends_with('/') {
            return Some(IngressApp::Pipe(path.into()));
        }
    } else if let Ok(address) = endpoint.parse::<SocketAddr>()
        && address.port() > 0
    {
        if address.ip() == Ipv4Addr::LOCALHOST || address.ip() == Ipv6Addr::LOCALHOST {
            return Some(IngressApp::Loopback(address));
        }
        if address.ip().is_unspecified() {
            return Some(IngressApp::Own { ipv6: address.is_ipv6(), port: address.port() });
        }
    }
    issues.error(
        at,
        format!(
            "`{endpoint}` is neither 127.0.0.1:PORT, [::1]:PORT, 0.0.0.0:PORT, [::]:PORT nor unix:///PATH"
        ),
    );
    None
}
