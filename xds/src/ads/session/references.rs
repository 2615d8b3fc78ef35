//! What a proxy's inbound listeners wait for: Envoy acknowledges a listener at once, but does not put it to use before
//! every extension config and route configuration that it names has come. Reads names only.

use std::collections::BTreeSet;
use std::sync::Arc;

use prost::Message;

use crate::resource::{Resource, ResourceType};
use crate::table::Table;

/// `envoy.config.listener.v3.Listener`, as far as it names other resources; the same goes for the messages below.
#[derive(Clone, PartialEq, Message)]
struct Listener {
    #[prost(message, repeated, tag = "3")]
    filter_chains: Vec<FilterChain>,
    #[prost(message, repeated, tag = "9")]
    listener_filters: Vec<Filter>,
    #[prost(message, optional, tag = "25")]
    default_filter_chain: Option<FilterChain>,
}

#[derive(Clone, PartialEq, Message)]
struct FilterChain {
    #[prost(message, repeated, tag = "3")]
    filters: Vec<Filter>,
}

/// A network or an HTTP filter; those of listeners have no `typed_config` here.
#[derive(Clone, PartialEq, Message)]
struct Filter {
    #[prost(string, tag = "1")]
    name: String,
    #[prost(message, optional, tag = "4")]
    typed_config: Option<Any>,
    #[prost(message, optional, tag = "5")]
    config_discovery: Option<Present>,
}

/// Any message that is there.
#[derive(Clone, PartialEq, Message)]
struct Present {}

#[derive(Clone, PartialEq, Message)]
struct Any {
    #[prost(string, tag = "1")]
    type_url: String,
    #[prost(bytes = "bytes", tag = "2")]
    value: bytes::Bytes,
}

/// `HttpConnectionManager`.
#[derive(Clone, PartialEq, Message)]
struct Manager {
    #[prost(message, optional, tag = "3")]
    rds: Option<Rds>,
    #[prost(message, repeated, tag = "5")]
    http_filters: Vec<Filter>,
}

#[derive(Clone, PartialEq, Message)]
struct Rds {
    #[prost(string, tag = "2")]
    route_config_name: String,
}

const MANAGER: &str = "envoy.extensions.filters.network.http_connection_manager.v3.HttpConnectionManager";

/// Names that some listeners refer to, for the tables they were read from.
#[derive(Debug, Default)]
pub(super) struct References {
    of: Arc<Table>,
    names: BTreeSet<(ResourceType, Arc<str>)>,
}

impl References {
    /// Those of `listeners`, which are only read if they are other ones than before.
    pub(super) fn of(&mut self, listeners: &Arc<Table>) -> &BTreeSet<(ResourceType, Arc<str>)> {
        if !Arc::ptr_eq(&self.of, listeners) {
            self.names = listeners.iter().flat_map(references).collect();
            self.of = listeners.clone();
        }
        &self.names
    }
}

/// What `listener` refers to; nothing if it cannot be read, because then Envoy refuses it.
fn references(listener: &Resource) -> BTreeSet<(ResourceType, Arc<str>)> {
    let decoded = Any::decode(listener.any.clone()).and_then(|any| Listener::decode(any.value));
    let Ok(Listener { filter_chains, listener_filters, default_filter_chain }) = decoded else {
        return BTreeSet::new();
    };
    let network = filter_chains.into_iter().chain(default_filter_chain).flat_map(|chain| chain.filters);
    let mut names = BTreeSet::new();
    for filter in network.chain(listener_filters) {
        note(&filter, &mut names);
        let manager = filter.typed_config.filter(|any| any.type_url.ends_with(MANAGER));
        let Some(Ok(Manager { rds, http_filters })) = manager.map(|any| Manager::decode(any.value)) else {
            continue;
        };
        http_filters.iter().for_each(|filter| note(filter, &mut names));
        names.extend(rds.map(|rds| (ResourceType::Route, rds.route_config_name.into())));
    }
    names
}

fn note(filter: &Filter, names: &mut BTreeSet<(ResourceType, Arc<str>)>) {
    if filter.config_discovery.is_some() {
        names.insert((ResourceType::Extension, filter.name.as_str().into()));
    }
}

#[cfg(test)]
mod tests {
    use envoy_types::pb::envoy::config::core::v3::ExtensionConfigSource;
    use envoy_types::pb::envoy::config::listener::v3 as envoy;
    use envoy_types::pb::envoy::extensions::filters::network::http_connection_manager::v3 as hcm;
    use envoy_types::pb::google::protobuf;
    use prost::Name;

    use super::*;

    fn any<M: Name>(message: &M) -> protobuf::Any {
        protobuf::Any { type_url: M::type_url(), value: message.encode_to_vec() }
    }

    fn listener(slot: &str, route: Option<&str>) -> envoy::Listener {
        let discovery = hcm::http_filter::ConfigType::ConfigDiscovery(ExtensionConfigSource::default());
        let manager = hcm::HttpConnectionManager {
            http_filters: vec![
                hcm::HttpFilter { name: slot.to_owned(), config_type: Some(discovery), ..Default::default() },
                hcm::HttpFilter { name: "router".to_owned(), ..Default::default() },
            ],
            route_specifier: route.map(|name| {
                hcm::http_connection_manager::RouteSpecifier::Rds(hcm::Rds {
                    route_config_name: name.to_owned(),
                    ..Default::default()
                })
            }),
            ..Default::default()
        };
        let filter = envoy::Filter {
            name: "hcm".to_owned(),
            config_type: Some(envoy::filter::ConfigType::TypedConfig(any(&manager))),
        };
        let chain = envoy::FilterChain { filters: vec![filter], ..Default::default() };
        envoy::Listener { name: "in".to_owned(), filter_chains: vec![chain], ..Default::default() }
    }

    #[test]
    fn slots_and_routes_of_every_chain_are_found() {
        let mut listener = listener("slot", Some("80"));
        listener.default_filter_chain = self::listener("other", None).filter_chains.pop();
        let discovered =
            envoy::listener_filter::ConfigType::ConfigDiscovery(ExtensionConfigSource::default());
        listener.listener_filters = vec![envoy::ListenerFilter {
            name: "early".to_owned(),
            config_type: Some(discovered),
            ..Default::default()
        }];
        let resource = Resource::new("in", any(&listener).encode_to_vec().into());
        let found: Vec<(ResourceType, String)> =
            references(&resource).into_iter().map(|(kind, name)| (kind, name.to_string())).collect();
        let slot = |name: &str| (ResourceType::Extension, name.to_owned());
        let wanted = [slot("early"), slot("other"), slot("slot"), (ResourceType::Route, "80".to_owned())];
        assert_eq!(found, wanted);
        assert!(references(&Resource::new("in", bytes::Bytes::from_static(b"\xff"))).is_empty());
    }
}
