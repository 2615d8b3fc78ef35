//! What tools are told about proxies, in Envoy's and Istio's words (semantics §6.8). Pure; who may be told is the caller's.

use std::time::{SystemTime, UNIX_EPOCH};

use bytes::Bytes;
use envoy_types::pb::envoy::admin::v3::{
    ClustersConfigDump, EcdsConfigDump, EndpointsConfigDump, ListenersConfigDump, RoutesConfigDump,
    UpdateFailureState, clusters_config_dump::DynamicCluster, ecds_config_dump::EcdsFilterConfig,
    endpoints_config_dump::DynamicEndpointConfig, listeners_config_dump::DynamicListener,
    listeners_config_dump::DynamicListenerState, routes_config_dump::DynamicRouteConfig,
};
use envoy_types::pb::envoy::config::core::v3::Node;
use envoy_types::pb::envoy::service::status::v3::client_config::GenericXdsConfig;
use envoy_types::pb::envoy::service::status::v3::{ClientConfig, ConfigStatus};
use envoy_types::pb::google::protobuf::value::Kind;
use envoy_types::pb::google::protobuf::{Any, Struct, Timestamp, Value};
use prost::{Message, Name};

use super::server::Fact;
use crate::resource::{Resource, ResourceType, Snapshot};

/// The type of [`ProxyFact`]s.
pub const SYNCZ: &str = "istio.io/debug/syncz";
/// The type of [`config_dump`].
pub const CONFIG_DUMP: &str = "istio.io/debug/config_dump";

/// By this `istioctl` tells that another replica may know more.
const NOT_CONNECTED: &str =
    "Proxy not connected to this Pilot instance. It may be connected to another instance.";

/// How far a proxy is with one type.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Sync {
    NotSent,
    Synced,
    /// Sent, and not answered yet.
    Stale,
    Error,
}

/// One type of one proxy.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TypeFact {
    pub kind: ResourceType,
    pub sync: Sync,
    /// When something was last sent.
    pub sent: Option<SystemTime>,
    /// What it said when it last refused something.
    pub error: Option<String>,
}

/// One proxy; its own words in bounded length.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ProxyFact {
    /// `NAME.NAMESPACE`, Istio's proxy id.
    pub id: String,
    pub namespace: String,
    pub cluster: String,
    pub istio_version: String,
    /// Only types that it asked for.
    pub types: Vec<TypeFact>,
}

impl ProxyFact {
    /// An `envoy.service.status.v3.ClientConfig`.
    pub fn encode(self) -> Fact {
        let Self { id, namespace, cluster, istio_version, types } = self;
        let metadata = [("CLUSTER_ID", cluster), ("NAMESPACE", namespace), ("ISTIO_VERSION", istio_version)];
        let text = |text| Value { kind: Some(Kind::StringValue(text)) };
        let fields = metadata.into_iter().filter(|(_, value)| !value.is_empty());
        let fields = fields.map(|(key, value)| (key.to_owned(), text(value))).collect();
        let node = Node { id: id.clone(), metadata: Some(Struct { fields }), ..Node::default() };
        let config = ClientConfig {
            node: Some(node),
            generic_xds_configs: types.into_iter().map(generic).collect(),
            ..ClientConfig::default()
        };
        Fact { name: id, any: any(&config) }
    }
}

fn generic(fact: TypeFact) -> GenericXdsConfig {
    let TypeFact { kind, sync, sent, error } = fact;
    let status = match sync {
        Sync::NotSent => ConfigStatus::NotSent,
        Sync::Synced => ConfigStatus::Synced,
        Sync::Stale => ConfigStatus::Stale,
        Sync::Error => ConfigStatus::Error,
    };
    let sent = sent.map(timestamp);
    let failed = |details| UpdateFailureState { last_update_attempt: sent, details, ..Default::default() };
    GenericXdsConfig {
        type_url: kind.type_url().to_owned(),
        last_updated: sent,
        config_status: status.into(),
        error_state: error.map(failed),
        ..GenericXdsConfig::default()
    }
}

fn timestamp(at: SystemTime) -> Timestamp {
    let since = at.duration_since(UNIX_EPOCH).unwrap_or_default();
    let seconds = i64::try_from(since.as_secs()).unwrap_or(i64::MAX);
    Timestamp { seconds, nanos: i32::try_from(since.subsec_nanos()).unwrap_or(0) }
}

fn any<M: Message + Name>(message: &M) -> Bytes {
    Any { type_url: M::type_url(), value: message.encode_to_vec() }.encode_to_vec().into()
}

/// What a proxy is to have, as parts of an `envoy.admin.v3.ConfigDump`.
pub fn config_dump(snapshot: &Snapshot) -> Vec<Fact> {
    let version = snapshot.generation.to_string();
    let of = |kind| {
        let mut all: Vec<(&Resource, Any)> =
            snapshot.of(kind).iter().filter_map(|r| Some((r, Any::decode(&*r.any).ok()?))).collect();
        all.sort_by(|(a, _), (b, _)| a.name.cmp(&b.name));
        all.into_iter().map(|(r, any)| (r.name.to_string(), r.version(), Some(any)))
    };
    let cluster = |(_, version_info, cluster)| DynamicCluster { version_info, cluster, ..Default::default() };
    let clusters = ClustersConfigDump {
        version_info: version.clone(),
        dynamic_active_clusters: of(ResourceType::Cluster).map(cluster).collect(),
        ..ClustersConfigDump::default()
    };
    let listener = |(name, version_info, listener)| DynamicListener {
        name,
        active_state: Some(DynamicListenerState { version_info, listener, ..Default::default() }),
        ..DynamicListener::default()
    };
    let listeners = ListenersConfigDump {
        version_info: version,
        dynamic_listeners: of(ResourceType::Listener).map(listener).collect(),
        ..ListenersConfigDump::default()
    };
    let route = |(_, version_info, route_config)| DynamicRouteConfig {
        version_info,
        route_config,
        ..DynamicRouteConfig::default()
    };
    let routes = RoutesConfigDump {
        dynamic_route_configs: of(ResourceType::Route).map(route).collect(),
        ..RoutesConfigDump::default()
    };
    let endpoint = |(_, version_info, endpoint_config)| DynamicEndpointConfig {
        version_info,
        endpoint_config,
        ..DynamicEndpointConfig::default()
    };
    let endpoints = EndpointsConfigDump {
        dynamic_endpoint_configs: of(ResourceType::Endpoint).map(endpoint).collect(),
        ..EndpointsConfigDump::default()
    };
    let extension = |(_, version_info, ecds_filter)| EcdsFilterConfig {
        version_info,
        ecds_filter,
        ..EcdsFilterConfig::default()
    };
    let extensions = EcdsConfigDump { ecds_filters: of(ResourceType::Extension).map(extension).collect() };
    let fact = |name: &str, any| Fact { name: name.to_owned(), any };
    vec![
        fact("clusters", any(&clusters)),
        fact("listeners", any(&listeners)),
        fact("routes", any(&routes)),
        fact("endpoints", any(&endpoints)),
        fact("extensions", any(&extensions)),
    ]
}

/// The answer about a proxy that is not connected here, or that the caller may not know of: the same for both.
pub fn not_connected() -> Vec<Fact> {
    let any = Any { type_url: String::new(), value: NOT_CONNECTED.as_bytes().to_vec() };
    vec![Fact { name: String::new(), any: any.encode_to_vec().into() }]
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;
    use std::time::Duration;

    use super::*;
    use crate::{Layers, Table};

    #[test]
    fn a_proxy_is_told_of_as_istioctl_reads_it() {
        let types = vec![
            TypeFact { kind: ResourceType::Cluster, sync: Sync::Synced, sent: None, error: None },
            TypeFact {
                kind: ResourceType::Listener,
                sync: Sync::Error,
                sent: Some(UNIX_EPOCH + Duration::from_millis(1500)),
                error: Some("no".to_owned()),
            },
        ];
        let fact = ProxyFact {
            id: "web-1.shop".to_owned(),
            namespace: "shop".to_owned(),
            cluster: "Kubernetes".to_owned(),
            istio_version: String::new(),
            types,
        };
        let fact = fact.encode();
        assert_eq!(fact.name, "web-1.shop");
        let any = Any::decode(&*fact.any).expect("an Any");
        assert_eq!(any.type_url, "type.googleapis.com/envoy.service.status.v3.ClientConfig");
        let config = ClientConfig::decode(&*any.value).expect("a ClientConfig");
        let node = config.node.expect("a node");
        assert_eq!(node.id, "web-1.shop");
        let metadata = node.metadata.expect("metadata").fields;
        let mut keys: Vec<&str> = metadata.keys().map(String::as_str).collect();
        keys.sort_unstable();
        assert_eq!(keys, ["CLUSTER_ID", "NAMESPACE"]);
        let [cds, lds] = &config.generic_xds_configs[..] else { panic!("two types") };
        assert_eq!((cds.config_status(), &cds.error_state), (ConfigStatus::Synced, &None));
        assert_eq!(lds.config_status(), ConfigStatus::Error);
        assert_eq!(lds.last_updated, Some(Timestamp { seconds: 1, nanos: 500_000_000 }));
        assert_eq!(lds.error_state.as_ref().map(|e| e.details.as_str()), Some("no"));
    }

    #[test]
    fn a_dump_holds_every_resource_once() {
        let mut snapshot = Snapshot::new(7);
        for kind in ResourceType::ALL {
            let any = Any { type_url: kind.type_url().to_owned(), value: vec![1] };
            let table: Table =
                ["b", "a"].map(|name| Resource::new(name, any.encode_to_vec().into())).into_iter().collect();
            *snapshot.of_mut(kind) = Layers { own: Arc::new(table), ..Layers::default() };
        }
        let dump: Vec<Any> =
            config_dump(&snapshot).iter().map(|f| Any::decode(&*f.any).expect("an Any")).collect();
        let types: Vec<&str> = dump.iter().map(|a| a.type_url.rsplit('.').next().unwrap_or("")).collect();
        let expected =
            ["ClustersConfigDump", "ListenersConfigDump", "RoutesConfigDump", "EndpointsConfigDump"];
        assert_eq!(types[..4], expected);
        let listeners = ListenersConfigDump::decode(&*dump[1].value).expect("listeners");
        let names: Vec<&str> = listeners.dynamic_listeners.iter().map(|l| l.name.as_str()).collect();
        assert_eq!(names, ["a", "b"]);
        let clusters = ClustersConfigDump::decode(&*dump[0].value).expect("clusters");
        assert_eq!(clusters.dynamic_active_clusters.len(), 2);
        assert_eq!(clusters.version_info, "7");
    }
}
