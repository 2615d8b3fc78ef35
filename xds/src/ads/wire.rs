//! The two response messages of ADS with their resources as [`Bytes`]: wire-compatible with Envoy's, without copying what is
//! already encoded (design decision 4). Decides nothing.

use bytes::Bytes;

use super::server::Fact;
use super::session::{Response, Variant};

/// `envoy.service.discovery.v3.DiscoveryResponse`.
#[derive(Clone, PartialEq, prost::Message)]
pub(crate) struct DiscoveryResponse {
    #[prost(string, tag = "1")]
    version_info: String,
    /// Encoded `google.protobuf.Any`s.
    #[prost(bytes = "bytes", repeated, tag = "2")]
    resources: Vec<Bytes>,
    #[prost(string, tag = "4")]
    type_url: String,
    #[prost(string, tag = "5")]
    nonce: String,
    #[prost(message, optional, tag = "6")]
    control_plane: Option<ControlPlane>,
}

/// `envoy.service.discovery.v3.DeltaDiscoveryResponse`.
#[derive(Clone, PartialEq, prost::Message)]
pub(crate) struct DeltaDiscoveryResponse {
    #[prost(string, tag = "1")]
    system_version_info: String,
    #[prost(message, repeated, tag = "2")]
    resources: Vec<DeltaResource>,
    #[prost(string, tag = "4")]
    type_url: String,
    #[prost(string, tag = "5")]
    nonce: String,
    #[prost(string, repeated, tag = "6")]
    removed_resources: Vec<String>,
    #[prost(message, optional, tag = "7")]
    control_plane: Option<ControlPlane>,
}

/// `envoy.service.discovery.v3.Resource`.
#[derive(Clone, PartialEq, prost::Message)]
struct DeltaResource {
    #[prost(string, tag = "1")]
    version: String,
    /// An encoded `google.protobuf.Any`.
    #[prost(bytes = "bytes", tag = "2")]
    resource: Bytes,
    #[prost(string, tag = "3")]
    name: String,
}

/// `envoy.config.core.v3.ControlPlane`.
#[derive(Clone, PartialEq, prost::Message)]
struct ControlPlane {
    #[prost(string, tag = "1")]
    identifier: String,
}

/// Either message; which one a stream carries never changes.
pub(crate) trait Wire: prost::Message + Default + 'static {
    const VARIANT: Variant;
    fn from_response(response: Response, identifier: &str) -> Self;
    /// The answer to a tool; `nonce` is its version as well.
    fn from_facts(type_url: &str, nonce: String, facts: Vec<Fact>, identifier: &str) -> Self;
}

fn control_plane(identifier: &str) -> Option<ControlPlane> {
    Some(ControlPlane { identifier: identifier.to_owned() })
}

impl Wire for DiscoveryResponse {
    const VARIANT: Variant = Variant::Sotw;

    fn from_response(response: Response, identifier: &str) -> Self {
        let Response { kind, nonce, version, resources, removed: _, transitional: _ } = response;
        Self {
            version_info: version,
            resources: resources.into_iter().map(|r| r.any).collect(),
            type_url: kind.type_url().to_owned(),
            nonce,
            control_plane: control_plane(identifier),
        }
    }

    fn from_facts(type_url: &str, nonce: String, facts: Vec<Fact>, identifier: &str) -> Self {
        Self {
            version_info: nonce.clone(),
            resources: facts.into_iter().map(|fact| fact.any).collect(),
            type_url: type_url.to_owned(),
            nonce,
            control_plane: control_plane(identifier),
        }
    }
}

impl Wire for DeltaDiscoveryResponse {
    const VARIANT: Variant = Variant::Delta;

    fn from_response(response: Response, identifier: &str) -> Self {
        let wrap = |r: &crate::Resource| DeltaResource {
            version: response.version_of(r),
            resource: r.any.clone(),
            name: r.name.to_string(),
        };
        let resources = response.resources.iter().map(wrap).collect();
        let Response { kind, nonce, version, resources: _, removed, transitional: _ } = response;
        Self {
            system_version_info: version,
            resources,
            type_url: kind.type_url().to_owned(),
            nonce,
            removed_resources: removed.iter().map(|name| name.to_string()).collect(),
            control_plane: control_plane(identifier),
        }
    }

    fn from_facts(type_url: &str, nonce: String, facts: Vec<Fact>, identifier: &str) -> Self {
        let wrap = |Fact { name, any }| DeltaResource { version: nonce.clone(), resource: any, name };
        Self {
            system_version_info: nonce.clone(),
            resources: facts.into_iter().map(wrap).collect(),
            type_url: type_url.to_owned(),
            nonce,
            removed_resources: Vec::new(),
            control_plane: control_plane(identifier),
        }
    }
}

#[cfg(test)]
mod tests {
    use envoy_types::pb::envoy::service::discovery::v3 as envoy;
    use envoy_types::pb::google::protobuf::Any;
    use prost::Message;

    use super::*;
    use crate::{Resource, ResourceType};

    fn response() -> (Response, Any) {
        let any = Any { type_url: ResourceType::Cluster.type_url().to_owned(), value: b"content".to_vec() };
        let resource = Resource::new("a", any.encode_to_vec().into());
        let response = Response {
            kind: ResourceType::Cluster,
            nonce: "7".to_owned(),
            version: "v".to_owned(),
            resources: vec![resource],
            removed: vec!["gone".into()],
            transitional: false,
        };
        (response, any)
    }

    #[test]
    fn envoy_reads_what_we_write() {
        let (response, any) = response();
        let sotw = DiscoveryResponse::from_response(response.clone(), "me").encode_to_vec();
        let sotw = envoy::DiscoveryResponse::decode(&*sotw).expect("a DiscoveryResponse");
        assert_eq!((sotw.version_info.as_str(), sotw.nonce.as_str()), ("v", "7"));
        assert_eq!(
            (sotw.resources, sotw.type_url),
            (vec![any.clone()], ResourceType::Cluster.type_url().to_owned())
        );
        let version = response.resources[0].version();
        let delta = DeltaDiscoveryResponse::from_response(response, "me").encode_to_vec();
        let delta = envoy::DeltaDiscoveryResponse::decode(&*delta).expect("a DeltaDiscoveryResponse");
        assert_eq!((delta.nonce.as_str(), delta.removed_resources), ("7", vec!["gone".to_owned()]));
        assert_eq!(delta.control_plane.map(|c| c.identifier).as_deref(), Some("me"));
        let [resource] = &delta.resources[..] else { panic!("one resource") };
        assert_eq!((resource.name.as_str(), resource.version.as_str()), ("a", version.as_str()));
        assert_eq!(resource.resource, Some(any));
    }
}
