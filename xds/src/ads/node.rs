//! Istio's node identifier (semantics §6.2). Says who a proxy claims to be; whether that is true is for others.

use std::net::IpAddr;
use std::sync::Arc;
use std::time::Duration;

use envoy_types::pb::envoy::config::core::v3::Node;
use envoy_types::pb::google::protobuf::value::Kind;

/// Longer identifiers are refused (a pod name has at most 253 characters, a namespace 63).
const MAX_ID_BYTES: usize = 1024;
/// Istio's default.
const DRAIN_TIME: Duration = Duration::from_secs(45);
/// A proxy that claims to drain for longer is not believed.
pub const MAX_DRAIN_TIME: Duration = Duration::from_secs(3600);

/// `TYPE~IP~NAME.NAMESPACE~DOMAIN`, taken apart.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct NodeId {
    pub kind: NodeKind,
    pub address: IpAddr,
    pub name: Arc<str>,
    pub namespace: Arc<str>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum NodeKind {
    Sidecar,
    Router,
}

#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum NodeError {
    #[error("the first request carries no node")]
    Missing,
    #[error("a node id of more than {MAX_ID_BYTES} bytes")]
    TooLong,
    #[error("node id {0:?} is not TYPE~IP~NAME.NAMESPACE~DOMAIN")]
    Format(String),
    #[error("node type {0:?} is not served; known: sidecar, router")]
    Kind(String),
    #[error("node id {0:?} has no valid IP address")]
    Address(String),
}

impl NodeId {
    /// Reads `node.id`. As with Istio, metadata `INSTANCE_IPS` and `NAMESPACE` come before what the id says of them.
    ///
    /// # Errors
    /// If the id has another form, names a type that is not served, or no address is to be found.
    pub fn parse(node: &Node) -> Result<Self, NodeError> {
        if node.id.len() > MAX_ID_BYTES {
            return Err(NodeError::TooLong);
        }
        let id = node.id.clone();
        let parts: Vec<&str> = id.split('~').collect();
        let [kind, address, name, domain] = parts[..] else { return Err(NodeError::Format(id)) };
        let kind = match kind {
            "sidecar" => NodeKind::Sidecar,
            "router" => NodeKind::Router,
            other => return Err(NodeError::Kind(other.to_owned())),
        };
        let instance = text(node, "INSTANCE_IPS").unwrap_or_default();
        let address = instance.split(',').chain([address]).find_map(|ip| ip.trim().parse().ok());
        let Some(address) = address else { return Err(NodeError::Address(id)) };
        // A pod's name may hold dots, a namespace may not.
        let (name, from_id) = name.rsplit_once('.').unwrap_or((name, ""));
        let namespace =
            [text(node, "NAMESPACE").unwrap_or_default(), from_id, domain.split('.').next().unwrap_or("")]
                .into_iter()
                .find(|namespace| !namespace.is_empty());
        let (Some(namespace), false) = (namespace, name.is_empty()) else {
            return Err(NodeError::Format(id));
        };
        Ok(Self { kind, address, name: name.into(), namespace: namespace.into() })
    }
}

/// A string of the node's metadata.
pub fn text<'a>(node: &'a Node, key: &str) -> Option<&'a str> {
    match node.metadata.as_ref()?.fields.get(key)?.kind.as_ref()? {
        Kind::StringValue(text) => Some(text),
        _ => None,
    }
}

/// How long connections of a replaced listener may live on at the proxy, by its own word: ours
/// (`COUNTERSIGN_DRAIN_SECONDS`), else that of Istio's agent (`PROXY_CONFIG.drainDuration`), else what Istio's agent starts
/// Envoy with. Never more than [`MAX_DRAIN_TIME`].
pub fn drain_time(node: &Node) -> Duration {
    let ours = text(node, "COUNTERSIGN_DRAIN_SECONDS").and_then(|text| text.parse().ok());
    let time = ours.map(Duration::from_secs).or_else(|| istio_drain_time(node));
    time.unwrap_or(DRAIN_TIME).min(MAX_DRAIN_TIME)
}

/// As protobuf's JSON writes durations: `45s`, `1.5s`.
fn istio_drain_time(node: &Node) -> Option<Duration> {
    let Kind::StructValue(config) = node.metadata.as_ref()?.fields.get("PROXY_CONFIG")?.kind.as_ref()? else {
        return None;
    };
    let Kind::StringValue(text) = config.fields.get("drainDuration")?.kind.as_ref()? else { return None };
    Duration::try_from_secs_f64(text.strip_suffix('s')?.parse().ok()?).ok()
}

/// Envoy's own version as it reports it.
pub fn envoy_version(node: &Node) -> Option<(u32, u32, u32)> {
    use envoy_types::pb::envoy::config::core::v3::node::UserAgentVersionType;
    match node.user_agent_version_type.as_ref()? {
        UserAgentVersionType::UserAgentBuildVersion(build) => {
            let version = build.version.as_ref()?;
            Some((version.major_number, version.minor_number, version.patch))
        }
        UserAgentVersionType::UserAgentVersion(text) => {
            let mut numbers = text.split('.').map(|n| n.parse().ok());
            Some((numbers.next()??, numbers.next()??, numbers.next()??))
        }
    }
}

#[cfg(test)]
mod tests {
    use envoy_types::pb::envoy::config::core::v3::node::UserAgentVersionType;
    use envoy_types::pb::google::protobuf::{Struct, Value};

    use super::*;

    fn parse(id: &str) -> Result<NodeId, NodeError> {
        NodeId::parse(&Node { id: id.to_owned(), ..Node::default() })
    }

    #[test]
    fn istio_node_ids() {
        let node = parse("sidecar~10.0.0.1~web-1.shop~shop.svc.cluster.local").expect("valid");
        assert_eq!((&*node.name, &*node.namespace), ("web-1", "shop"));
        assert_eq!(&*parse("sidecar~10.0.0.1~a.b.shop~shop.svc.cluster.local").expect("valid").name, "a.b");
        assert_eq!(parse("router~::1~gw.edge~edge.svc.cluster.local").expect("valid").kind, NodeKind::Router);
    }

    fn with_metadata(id: &str, metadata: &[(&str, &str)]) -> Node {
        let field = |(key, value): &(&str, &str)| {
            let value = Value { kind: Some(Kind::StringValue((*value).to_owned())) };
            ((*key).to_owned(), value)
        };
        let metadata = Struct { fields: metadata.iter().map(field).collect() };
        Node { id: id.to_owned(), metadata: Some(metadata), ..Node::default() }
    }

    #[test]
    fn metadata_comes_before_the_id() {
        let id = "sidecar~10.0.0.1~web.shop~shop.svc.cluster.local";
        let parse = |metadata: &[(&str, &str)]| NodeId::parse(&with_metadata(id, metadata)).expect("valid");
        assert_eq!(parse(&[]).address.to_string(), "10.0.0.1");
        assert_eq!(parse(&[("INSTANCE_IPS", "10.0.0.7,fd00::7")]).address.to_string(), "10.0.0.7");
        assert_eq!(parse(&[("INSTANCE_IPS", "nonsense, fd00::7")]).address.to_string(), "fd00::7");
        assert_eq!(parse(&[("INSTANCE_IPS", "")]).address.to_string(), "10.0.0.1");
        assert_eq!(&*parse(&[("NAMESPACE", "other")]).namespace, "other");
        assert_eq!(&*parse(&[("NAMESPACE", "")]).namespace, "shop");
        let nameless = with_metadata("sidecar~~web.shop~x", &[("INSTANCE_IPS", "10.0.0.7")]);
        assert_eq!(NodeId::parse(&nameless).expect("valid").address.to_string(), "10.0.0.7");
    }

    #[test]
    fn versions_are_read_in_both_forms() {
        let text = UserAgentVersionType::UserAgentVersion("1.39.3".to_owned());
        let node = Node { user_agent_version_type: Some(text), ..Node::default() };
        assert_eq!(envoy_version(&node), Some((1, 39, 3)));
        assert_eq!(envoy_version(&Node::default()), None);
    }

    #[test]
    fn drain_times_are_the_proxys_own_word() {
        let of = |metadata: &[(&str, &str)]| drain_time(&with_metadata("", metadata)).as_millis();
        assert_eq!(of(&[]), 45_000);
        assert_eq!(of(&[("COUNTERSIGN_DRAIN_SECONDS", "2")]), 2_000);
        assert_eq!(of(&[("COUNTERSIGN_DRAIN_SECONDS", "soon")]), 45_000);
        assert_eq!(of(&[("COUNTERSIGN_DRAIN_SECONDS", "999999999")]), 3_600_000);
        let mut node = with_metadata("", &[]);
        let config = |text: &str| {
            let value = Value { kind: Some(Kind::StringValue(text.to_owned())) };
            let config = Struct { fields: [("drainDuration".to_owned(), value)].into() };
            Struct {
                fields: [("PROXY_CONFIG".to_owned(), Value { kind: Some(Kind::StructValue(config)) })].into(),
            }
        };
        for (text, milliseconds) in [("5s", 5_000), ("1.5s", 1_500), ("-1s", 45_000), ("5m", 45_000)] {
            node.metadata = Some(config(text));
            assert_eq!(drain_time(&node).as_millis(), milliseconds, "{text}");
        }
    }

    #[test]
    fn anything_else_is_refused() {
        for id in [
            "",
            "sidecar",
            "sidecar~10.0.0.1~a.b",
            "sidecar~10.0.0.1~a.b~c~d",
            "sidecar~10.0.0.1~~",
            "sidecar~10.0.0.1~.b~c",
        ] {
            assert!(matches!(parse(id), Err(NodeError::Format(_))), "{id}");
        }
        assert!(matches!(parse("ztunnel~10.0.0.1~a.b~c"), Err(NodeError::Kind(_))));
        assert!(matches!(parse("sidecar~nowhere~a.b~c"), Err(NodeError::Address(_))));
        assert_eq!(parse(&format!("sidecar~10.0.0.1~{}.b~c", "a".repeat(2000))), Err(NodeError::TooLong));
    }
}
