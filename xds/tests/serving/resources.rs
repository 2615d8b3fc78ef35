//! A small configuration: one listener with policy slots and routes by RDS, one cluster with endpoints by EDS.

use std::net::SocketAddr;

use envoy_types::pb::envoy::config::cluster::v3::Cluster;
use envoy_types::pb::envoy::config::cluster::v3::cluster::{
    ClusterDiscoveryType, DiscoveryType, EdsClusterConfig,
};
use envoy_types::pb::envoy::config::core::v3::address::Address as Kind;
use envoy_types::pb::envoy::config::core::v3::config_source::ConfigSourceSpecifier;
use envoy_types::pb::envoy::config::core::v3::socket_address::PortSpecifier;
use envoy_types::pb::envoy::config::core::v3::{
    Address, AggregatedConfigSource, ApiVersion, ConfigSource, ExtensionConfigSource, SocketAddress,
    TypedExtensionConfig,
};
use envoy_types::pb::envoy::config::endpoint::v3::lb_endpoint::HostIdentifier;
use envoy_types::pb::envoy::config::endpoint::v3::{
    ClusterLoadAssignment, Endpoint, LbEndpoint, LocalityLbEndpoints,
};
use envoy_types::pb::envoy::config::listener::v3::filter::ConfigType;
use envoy_types::pb::envoy::config::listener::v3::{Filter, FilterChain, Listener};
use envoy_types::pb::envoy::config::rbac::v3::{
    Permission, Policy, Principal, Rbac as Rules, permission, principal, rbac::Action,
};
use envoy_types::pb::envoy::config::route::v3::{
    Route, RouteAction, RouteConfiguration, RouteMatch, VirtualHost, route, route_action, route_match,
};
use envoy_types::pb::envoy::extensions::filters::http::rbac::v3::Rbac;
use envoy_types::pb::envoy::extensions::filters::http::router::v3::Router;
use envoy_types::pb::envoy::extensions::filters::network::http_connection_manager::v3 as hcm;
use envoy_types::pb::envoy::r#type::matcher::v3::{PathMatcher, StringMatcher, path_matcher, string_matcher};
use envoy_types::pb::google::protobuf::{Any, Duration};
use prost::{Message, Name};
use xds::{Resource, ResourceType};

use super::server::Resources;

const SLOTS: [&str; 3] = ["inbound.rbac.audit", "inbound.rbac.deny", "inbound.rbac.allow"];

/// What is to be configured.
#[derive(Clone)]
pub(crate) struct World {
    pub(crate) listen: SocketAddr,
    pub(crate) app: SocketAddr,
    /// Something of the cluster that can change: its connect timeout in seconds.
    pub(crate) timeout: i64,
    /// Paths that are denied, and the only ones that are allowed.
    pub(crate) deny: Vec<&'static str>,
    pub(crate) allow: Option<Vec<&'static str>>,
}

impl World {
    pub(crate) fn resources(&self) -> Resources {
        let slot = |name: &str, action: Action, paths: Option<&[&str]>| {
            let filter = Rbac { rules: paths.map(|paths| rules(action, paths)), ..Default::default() };
            let config = TypedExtensionConfig { name: name.to_owned(), typed_config: Some(any(&filter)) };
            resource(name, &config)
        };
        let deny = Some(&self.deny[..]).filter(|deny| !deny.is_empty());
        vec![
            resource("app", &self.cluster()),
            resource("app", &self.endpoints()),
            slot(SLOTS[0], Action::Log, None),
            slot(SLOTS[1], Action::Deny, deny),
            slot(SLOTS[2], Action::Allow, self.allow.as_deref()),
            resource("inbound", &listener("inbound", self.listen)),
            resource("routes", &routes()),
        ]
    }

    fn cluster(&self) -> Cluster {
        Cluster {
            name: "app".to_owned(),
            cluster_discovery_type: Some(ClusterDiscoveryType::Type(DiscoveryType::Eds as i32)),
            eds_cluster_config: Some(EdsClusterConfig { eds_config: ads(), ..Default::default() }),
            connect_timeout: Some(Duration { seconds: self.timeout, nanos: 0 }),
            ..Default::default()
        }
    }

    fn endpoints(&self) -> ClusterLoadAssignment {
        let endpoint = Endpoint { address: Some(address(self.app)), ..Default::default() };
        let identifier = HostIdentifier::Endpoint(endpoint);
        let lb_endpoints = vec![LbEndpoint { host_identifier: Some(identifier), ..Default::default() }];
        ClusterLoadAssignment {
            cluster_name: "app".to_owned(),
            endpoints: vec![LocalityLbEndpoints { lb_endpoints, ..Default::default() }],
            ..Default::default()
        }
    }
}

/// A listener that Envoy refuses: no filter can be made of its only one.
pub(crate) fn bad_listener() -> (ResourceType, Resource) {
    let mut listener = listener("bad", "127.0.0.1:1".parse().unwrap());
    let unknown = Any { type_url: "type.googleapis.com/google.protobuf.Empty".to_owned(), value: Vec::new() };
    listener.filter_chains[0].filters[0].config_type = Some(ConfigType::TypedConfig(unknown));
    resource("bad", &listener)
}

fn any<M: Message + Name>(message: &M) -> Any {
    Any { type_url: M::type_url(), value: message.encode_to_vec() }
}

fn resource<M: Message + Name>(name: &str, message: &M) -> (ResourceType, Resource) {
    let any = any(message);
    let kind = ResourceType::from_type_url(&any.type_url).unwrap();
    (kind, Resource::new(name, any.encode_to_vec().into()))
}

fn ads() -> Option<ConfigSource> {
    Some(ConfigSource {
        initial_fetch_timeout: Some(Duration::default()),
        resource_api_version: ApiVersion::V3 as i32,
        config_source_specifier: Some(ConfigSourceSpecifier::Ads(AggregatedConfigSource {})),
        ..Default::default()
    })
}

fn address(at: SocketAddr) -> Address {
    let port = PortSpecifier::PortValue(at.port().into());
    let socket =
        SocketAddress { address: at.ip().to_string(), port_specifier: Some(port), ..Default::default() };
    Address { address: Some(Kind::SocketAddress(socket)) }
}

fn listener(name: &str, at: SocketAddr) -> Listener {
    use hcm::http_connection_manager::{CodecType, RouteSpecifier};
    let slot = |name: &str| {
        let source = ExtensionConfigSource {
            config_source: ads(),
            type_urls: vec![Rbac::type_url()],
            ..Default::default()
        };
        hcm::HttpFilter {
            name: name.to_owned(),
            config_type: Some(hcm::http_filter::ConfigType::ConfigDiscovery(source)),
            ..Default::default()
        }
    };
    let router = hcm::HttpFilter {
        name: "router".to_owned(),
        config_type: Some(hcm::http_filter::ConfigType::TypedConfig(any(&Router::default()))),
        ..Default::default()
    };
    let rds = hcm::Rds { config_source: ads(), route_config_name: "routes".to_owned() };
    let manager = hcm::HttpConnectionManager {
        codec_type: CodecType::Auto as i32,
        stat_prefix: name.to_owned(),
        http_filters: SLOTS.into_iter().map(slot).chain([router]).collect(),
        route_specifier: Some(RouteSpecifier::Rds(rds)),
        ..Default::default()
    };
    let filter = Filter { name: "hcm".to_owned(), config_type: Some(ConfigType::TypedConfig(any(&manager))) };
    Listener {
        name: name.to_owned(),
        address: Some(address(at)),
        filter_chains: vec![FilterChain { filters: vec![filter], ..Default::default() }],
        ..Default::default()
    }
}

fn routes() -> RouteConfiguration {
    let cluster = route_action::ClusterSpecifier::Cluster("app".to_owned());
    let action = RouteAction { cluster_specifier: Some(cluster), ..Default::default() };
    let prefix = route_match::PathSpecifier::Prefix("/".to_owned());
    let everything = Route {
        r#match: Some(RouteMatch { path_specifier: Some(prefix), ..Default::default() }),
        action: Some(route::Action::Route(action)),
        ..Default::default()
    };
    let host = VirtualHost {
        name: "all".to_owned(),
        domains: vec!["*".to_owned()],
        routes: vec![everything],
        ..Default::default()
    };
    RouteConfiguration { name: "routes".to_owned(), virtual_hosts: vec![host], ..Default::default() }
}

fn rules(action: Action, paths: &[&str]) -> Rules {
    let policy = |path: &&str| {
        let pattern = string_matcher::MatchPattern::Exact((*path).to_owned());
        let matcher = StringMatcher { match_pattern: Some(pattern), ..Default::default() };
        let rule = permission::Rule::UrlPath(PathMatcher { rule: Some(path_matcher::Rule::Path(matcher)) });
        let policy = Policy {
            permissions: vec![Permission { rule: Some(rule) }],
            principals: vec![Principal { identifier: Some(principal::Identifier::Any(true)) }],
            ..Default::default()
        };
        (format!("path {path}"), policy)
    };
    Rules { action: action as i32, policies: paths.iter().map(policy).collect(), ..Default::default() }
}
