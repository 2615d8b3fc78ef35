//! What a proxy asks for in its node metadata: how traffic reaches it and where its application listens.
//! Says nothing about who the proxy is; policies are never chosen by anything in here (design decision 7).

use std::collections::BTreeMap;
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;

use envoy_types::pb::envoy::config::core::v3::Node;
use envoy_types::pb::google::protobuf::{Struct, value::Kind};

/// The part of a proxy's own wishes that changes the resources it gets. Equal shapes get equal resources.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct ProxyShape {
    pub capture: Capture,
    /// RBAC and JWT are written into the listener instead of travelling as extension configs.
    pub inline_policy: bool,
    /// The wildcard listeners also bind `[::]`.
    pub ipv6: bool,
}

/// How connections come to the proxy.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub enum Capture {
    /// Istio's own redirection: upstream connections of inbound clusters are bound to 127.0.0.6, which its rules let pass.
    Redirect,
    /// Our nftables rules: the proxy is known by uid or socket mark, so no source address is bound.
    Nft,
    /// No redirection: the proxy binds the workload's ports itself.
    None { apps: BTreeMap<u16, AppAddress>, upstreams: BTreeMap<Upstream, SocketAddr> },
}

/// Where an application listens, in capture mode none.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub enum AppAddress {
    Pipe(Arc<str>),
    Tcp { host: Arc<str>, port: u16 },
}

/// A TCP service as a client names it: any of its names, and the service port.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Upstream {
    pub host: Arc<str>,
    pub port: u16,
}

/// What of a shape [`super::service`] and, for captured proxies, [`super::outbound`] depend on: the key under which
/// their results can be shared.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct SharedShape {
    pub captured: bool,
    pub ipv6: bool,
}

/// A metadata value that cannot be understood. The stream should be refused: guessing could leave a port unprotected.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("node metadata {key}: {reason}")]
pub struct ShapeError {
    pub key: &'static str,
    pub reason: String,
}

impl ProxyShape {
    /// Reads `INSTANCE_IPS` and the `COUNTERSIGN_*` keys of the node's metadata.
    pub fn from_node(node: &Node) -> Result<Self, ShapeError> {
        let metadata = node.metadata.as_ref();
        let capture = match text(metadata, "COUNTERSIGN_CAPTURE").as_deref() {
            None | Some("") => Capture::Redirect,
            Some("nft") => Capture::Nft,
            Some("none") => Capture::None { apps: apps(metadata)?, upstreams: upstreams(metadata)? },
            Some(other) => {
                return Err(error("COUNTERSIGN_CAPTURE", format!("{other:?} is neither nft nor none")));
            }
        };
        let inline_policy = match text(metadata, "COUNTERSIGN_INLINE_POLICY").as_deref() {
            None | Some("" | "false") => false,
            Some("true") => true,
            Some(other) => {
                return Err(error("COUNTERSIGN_INLINE_POLICY", format!("{other:?} is not a boolean")));
            }
        };
        let ips = text(metadata, "INSTANCE_IPS").unwrap_or_default();
        let own_ip = node.id.split('~').nth(1).unwrap_or_default();
        let ipv6 = ips.split(',').chain([own_ip]).any(|ip| matches!(ip.trim().parse(), Ok(IpAddr::V6(_))));
        Ok(Self { capture, inline_policy, ipv6 })
    }

    /// Whether traffic is redirected to 15006 and 15001 (either kind of redirection).
    pub fn captured(&self) -> bool {
        !matches!(self.capture, Capture::None { .. })
    }

    pub fn shared(&self) -> SharedShape {
        SharedShape { captured: self.captured(), ipv6: self.ipv6 }
    }
}

fn error(key: &'static str, reason: String) -> ShapeError {
    ShapeError { key, reason }
}

/// A string, or a boolean as its word.
fn text(metadata: Option<&Struct>, key: &str) -> Option<String> {
    match metadata?.fields.get(key)?.kind.as_ref()? {
        Kind::StringValue(text) => Some(text.clone()),
        Kind::BoolValue(value) => Some(value.to_string()),
        _ => None,
    }
}

/// The entries of an object whose values are strings.
fn entries(metadata: Option<&Struct>, key: &'static str) -> Result<Vec<(String, String)>, ShapeError> {
    let Some(value) = metadata.and_then(|m| m.fields.get(key)) else { return Ok(Vec::new()) };
    let Some(Kind::StructValue(object)) = &value.kind else {
        return Err(error(key, "not an object".to_owned()));
    };
    let entry = |(name, value): (&String, &envoy_types::pb::google::protobuf::Value)| match &value.kind {
        Some(Kind::StringValue(text)) => Ok((name.clone(), text.clone())),
        _ => Err(error(key, format!("the value of {name:?} is not a string"))),
    };
    object.fields.iter().map(entry).collect()
}

fn apps(metadata: Option<&Struct>) -> Result<BTreeMap<u16, AppAddress>, ShapeError> {
    const KEY: &str = "COUNTERSIGN_APPS";
    let mut apps = BTreeMap::new();
    for (port, address) in entries(metadata, KEY)? {
        let number = port.parse().map_err(|_| error(KEY, format!("{port:?} is not a port")))?;
        let app = match address.strip_prefix("unix:") {
            Some(path) if path.starts_with('/') => AppAddress::Pipe(path.into()),
            Some(_) => return Err(error(KEY, format!("{address:?} is not an absolute path"))),
            None => {
                let Upstream { host, port } = host_port(KEY, &address)?;
                AppAddress::Tcp { host, port }
            }
        };
        apps.insert(number, app);
    }
    Ok(apps)
}

fn upstreams(metadata: Option<&Struct>) -> Result<BTreeMap<Upstream, SocketAddr>, ShapeError> {
    const KEY: &str = "COUNTERSIGN_UPSTREAMS";
    let mut upstreams = BTreeMap::new();
    for (service, address) in entries(metadata, KEY)? {
        let bind = address.parse().map_err(|_| error(KEY, format!("{address:?} is not ADDRESS:PORT")))?;
        upstreams.insert(host_port(KEY, &service)?, bind);
    }
    Ok(upstreams)
}

fn host_port(key: &'static str, value: &str) -> Result<Upstream, ShapeError> {
    let wrong = || error(key, format!("{value:?} is not HOST:PORT"));
    let (host, port) = value.rsplit_once(':').ok_or_else(wrong)?;
    let host = host.strip_prefix('[').and_then(|h| h.strip_suffix(']')).unwrap_or(host);
    if host.is_empty() {
        return Err(wrong());
    }
    Ok(Upstream { host: host.to_ascii_lowercase().into(), port: port.parse().map_err(|_| wrong())? })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn node(metadata: serde_json::Value) -> Node {
        fn value(json: serde_json::Value) -> envoy_types::pb::google::protobuf::Value {
            let kind = match json {
                serde_json::Value::String(s) => Kind::StringValue(s),
                serde_json::Value::Bool(b) => Kind::BoolValue(b),
                serde_json::Value::Object(o) => {
                    Kind::StructValue(Struct { fields: o.into_iter().map(|(k, v)| (k, value(v))).collect() })
                }
                other => panic!("{other}"),
            };
            envoy_types::pb::google::protobuf::Value { kind: Some(kind) }
        }
        let Some(Kind::StructValue(metadata)) = value(metadata).kind else { panic!("an object") };
        Node {
            id: "sidecar~10.0.0.1~v1.foo~foo.svc.cluster.local".into(),
            metadata: Some(metadata),
            ..Default::default()
        }
    }

    #[test]
    fn capture_modes() {
        let shape = |json| ProxyShape::from_node(&node(json));
        let redirect = shape(serde_json::json!({})).unwrap();
        assert_eq!(redirect, ProxyShape { capture: Capture::Redirect, inline_policy: false, ipv6: false });
        let nft = shape(serde_json::json!({
            "COUNTERSIGN_CAPTURE": "nft", "INSTANCE_IPS": "10.0.0.1,fd00::1", "COUNTERSIGN_INLINE_POLICY": true
        }));
        assert_eq!(nft.unwrap(), ProxyShape { capture: Capture::Nft, inline_policy: true, ipv6: true });
        let none = shape(serde_json::json!({
            "COUNTERSIGN_CAPTURE": "none",
            "COUNTERSIGN_APPS": {"8080": "unix:/run/app.sock", "9": "127.0.0.1:99", "10": "[::1]:7"},
            "COUNTERSIGN_UPSTREAMS": {"DB.shop:5432": "127.0.0.5:5432"},
        }));
        let Capture::None { apps, upstreams } = none.unwrap().capture else { panic!("none") };
        assert_eq!(apps[&8080], AppAddress::Pipe("/run/app.sock".into()));
        assert_eq!(apps[&10], AppAddress::Tcp { host: "::1".into(), port: 7 });
        assert_eq!(upstreams[&Upstream { host: "db.shop".into(), port: 5432 }].port(), 5432);
    }

    #[test]
    fn nonsense_is_refused() {
        for metadata in [
            serde_json::json!({"COUNTERSIGN_CAPTURE": "iptables"}),
            serde_json::json!({"COUNTERSIGN_INLINE_POLICY": "yes"}),
            serde_json::json!({"COUNTERSIGN_CAPTURE": "none", "COUNTERSIGN_APPS": "8080"}),
            serde_json::json!({"COUNTERSIGN_CAPTURE": "none", "COUNTERSIGN_APPS": {"x": "127.0.0.1:1"}}),
            serde_json::json!({"COUNTERSIGN_CAPTURE": "none", "COUNTERSIGN_APPS": {"1": "unix:rel"}}),
            serde_json::json!({"COUNTERSIGN_CAPTURE": "none", "COUNTERSIGN_UPSTREAMS": {"db": "127.0.0.1:1"}}),
            serde_json::json!({"COUNTERSIGN_CAPTURE": "none", "COUNTERSIGN_UPSTREAMS": {"db:1": "localhost:1"}}),
        ] {
            assert!(ProxyShape::from_node(&node(metadata.clone())).is_err(), "{metadata}");
        }
    }
}
