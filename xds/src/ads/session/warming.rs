//! Which endpoints Envoy waits for after it took a cluster. It completes the warming of a cluster that changed only when
//! it is told that cluster's endpoints again, although it knows them (xDS protocol, "Resource warming").

use std::sync::Arc;

use prost::Message;

use crate::resource::Resource;

/// `envoy.config.cluster.v3.Cluster.DiscoveryType.EDS`.
const EDS: i32 = 3;

/// The fields of `envoy.config.cluster.v3.Cluster` that matter here; the rest is skipped over.
#[derive(Clone, PartialEq, Message)]
struct Cluster {
    #[prost(int32, optional, tag = "2")]
    discovery_type: Option<i32>,
    #[prost(message, optional, tag = "3")]
    eds_cluster_config: Option<EdsClusterConfig>,
}

/// `envoy.config.cluster.v3.Cluster.EdsClusterConfig`.
#[derive(Clone, PartialEq, Message)]
struct EdsClusterConfig {
    #[prost(string, tag = "2")]
    service_name: String,
}

/// `google.protobuf.Any` without its type.
#[derive(Clone, PartialEq, Message)]
struct Any {
    #[prost(bytes = "bytes", tag = "2")]
    value: bytes::Bytes,
}

/// The name of the endpoints that `cluster` waits for; `None` if it brings its own. One that cannot be read is taken to
/// wait for those of its name: being told them once too often harms nobody.
pub(super) fn endpoints_of(cluster: &Resource) -> Option<Arc<str>> {
    let decoded = Any::decode(cluster.any.clone()).and_then(|any| Cluster::decode(any.value));
    let Ok(Cluster { discovery_type, eds_cluster_config }) = decoded else {
        return Some(cluster.name.clone());
    };
    if discovery_type != Some(EDS) {
        return None;
    }
    match eds_cluster_config {
        Some(EdsClusterConfig { service_name }) if !service_name.is_empty() => Some(service_name.into()),
        _ => Some(cluster.name.clone()),
    }
}

#[cfg(test)]
mod tests {
    use envoy_types::pb::envoy::config::cluster::v3 as envoy;
    use prost::Name;

    use super::*;

    fn endpoints(cluster: &envoy::Cluster) -> Option<String> {
        let any = envoy_types::pb::google::protobuf::Any {
            type_url: envoy::Cluster::type_url(),
            value: cluster.encode_to_vec(),
        };
        endpoints_of(&Resource::new("c", any.encode_to_vec().into())).map(|name| name.to_string())
    }

    #[test]
    fn only_clusters_with_eds_wait() {
        use envoy::cluster::{ClusterDiscoveryType, DiscoveryType, EdsClusterConfig};
        let of = |kind: DiscoveryType, service_name: &str| envoy::Cluster {
            name: "c".to_owned(),
            cluster_discovery_type: Some(ClusterDiscoveryType::Type(kind as i32)),
            eds_cluster_config: Some(EdsClusterConfig {
                service_name: service_name.to_owned(),
                ..Default::default()
            }),
            ..Default::default()
        };
        assert_eq!(endpoints(&of(DiscoveryType::Eds, "")).as_deref(), Some("c"));
        assert_eq!(endpoints(&of(DiscoveryType::Eds, "shared")).as_deref(), Some("shared"));
        assert_eq!(endpoints(&of(DiscoveryType::Static, "")), None);
        let unreadable = Resource::new("c", bytes::Bytes::from_static(b"\xff"));
        assert_eq!(endpoints_of(&unreadable).as_deref(), Some("c"));
    }
}
