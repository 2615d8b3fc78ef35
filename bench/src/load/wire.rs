//! ADS messages as far as a client has to read them: resources stay encoded, and of those only names, content hashes and
//! what they refer to are looked at. Each distinct content is read once, whoever receives it ([`Memo`]).

use std::collections::HashMap;
use std::sync::{Arc, PoisonError, RwLock};

use bytes::Bytes;
use prost::Message;

/// The types a sidecar asks for, in the order in which Envoy first does.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Kind {
    Cluster,
    Endpoint,
    Listener,
    Extension,
    Route,
}

impl Kind {
    pub const ALL: [Self; 5] = [Self::Cluster, Self::Endpoint, Self::Listener, Self::Extension, Self::Route];

    pub fn type_url(self) -> &'static str {
        match self {
            Self::Cluster => "type.googleapis.com/envoy.config.cluster.v3.Cluster",
            Self::Endpoint => "type.googleapis.com/envoy.config.endpoint.v3.ClusterLoadAssignment",
            Self::Listener => "type.googleapis.com/envoy.config.listener.v3.Listener",
            Self::Extension => "type.googleapis.com/envoy.config.core.v3.TypedExtensionConfig",
            Self::Route => "type.googleapis.com/envoy.config.route.v3.RouteConfiguration",
        }
    }

    pub fn of(type_url: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|kind| kind.type_url() == type_url)
    }

    /// Asked for as a whole, not by names.
    pub fn wildcard(self) -> bool {
        matches!(self, Self::Cluster | Self::Listener)
    }
}

/// `DiscoveryRequest`; the node is encoded already.
#[derive(Clone, PartialEq, Message)]
pub struct SotwRequest {
    #[prost(string, tag = "1")]
    pub version_info: String,
    #[prost(bytes = "bytes", tag = "2")]
    pub node: Bytes,
    #[prost(string, repeated, tag = "3")]
    pub resource_names: Vec<String>,
    #[prost(string, tag = "4")]
    pub type_url: String,
    #[prost(string, tag = "5")]
    pub response_nonce: String,
}

/// `DiscoveryResponse`.
#[derive(Clone, PartialEq, Message)]
pub struct SotwResponse {
    #[prost(string, tag = "1")]
    pub version_info: String,
    /// Encoded `Any`s.
    #[prost(bytes = "bytes", repeated, tag = "2")]
    pub resources: Vec<Bytes>,
    #[prost(string, tag = "4")]
    pub type_url: String,
    #[prost(string, tag = "5")]
    pub nonce: String,
}

/// `DeltaDiscoveryRequest`; the node is encoded already.
#[derive(Clone, PartialEq, Message)]
pub struct DeltaRequest {
    #[prost(bytes = "bytes", tag = "1")]
    pub node: Bytes,
    #[prost(string, tag = "2")]
    pub type_url: String,
    #[prost(string, repeated, tag = "3")]
    pub subscribe: Vec<String>,
    #[prost(string, repeated, tag = "4")]
    pub unsubscribe: Vec<String>,
    #[prost(btree_map = "string, string", tag = "5")]
    pub initial_versions: std::collections::BTreeMap<String, String>,
    #[prost(string, tag = "6")]
    pub response_nonce: String,
}

/// `DeltaDiscoveryResponse`.
#[derive(Clone, PartialEq, Message)]
pub struct DeltaResponse {
    #[prost(message, repeated, tag = "2")]
    pub resources: Vec<DeltaResource>,
    #[prost(string, tag = "4")]
    pub type_url: String,
    #[prost(string, tag = "5")]
    pub nonce: String,
    #[prost(string, repeated, tag = "6")]
    pub removed: Vec<String>,
}

/// `envoy.service.discovery.v3.Resource`.
#[derive(Clone, PartialEq, Message)]
pub struct DeltaResource {
    #[prost(string, tag = "1")]
    pub version: String,
    /// An encoded `Any`.
    #[prost(bytes = "bytes", tag = "2")]
    pub resource: Bytes,
    #[prost(string, tag = "3")]
    pub name: String,
}

#[derive(Clone, PartialEq, Message)]
struct Any {
    #[prost(string, tag = "1")]
    type_url: String,
    #[prost(bytes = "bytes", tag = "2")]
    value: Bytes,
}

/// Every type we read has its name in field 1.
#[derive(Clone, PartialEq, Message)]
struct Named {
    #[prost(string, tag = "1")]
    name: String,
}

#[derive(Clone, PartialEq, Message)]
struct Cluster {
    #[prost(string, tag = "1")]
    name: String,
    #[prost(int32, tag = "2")]
    discovery: i32,
    #[prost(message, optional, tag = "3")]
    eds: Option<Eds>,
}

#[derive(Clone, PartialEq, Message)]
struct Eds {
    #[prost(string, tag = "2")]
    service_name: String,
}

/// `Cluster.DiscoveryType.EDS`
const EDS: i32 = 3;

#[derive(Clone, PartialEq, Message)]
struct Listener {
    #[prost(string, tag = "1")]
    name: String,
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

/// A listener, network or HTTP filter.
#[derive(Clone, PartialEq, Message)]
struct Filter {
    #[prost(string, tag = "1")]
    name: String,
    #[prost(message, optional, tag = "4")]
    typed_config: Option<Any>,
    #[prost(message, optional, tag = "5")]
    config_discovery: Option<Present>,
}

#[derive(Clone, PartialEq, Message)]
struct Present {}

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

/// What is known of one resource's content.
#[derive(Debug, PartialEq, Eq)]
pub struct Parsed {
    pub name: Arc<str>,
    /// Of the encoded `Any`.
    pub hash: u64,
    /// What it makes a proxy ask for next.
    pub refers: Vec<(Kind, Arc<str>)>,
}

/// Every content seen so far, by hash.
#[derive(Debug, Default)]
pub struct Memo(RwLock<HashMap<(Kind, u64), Arc<Parsed>>>);

impl Memo {
    /// What `any` holds.
    ///
    /// # Errors
    /// If it is no such message.
    pub fn read(&self, kind: Kind, any: &Bytes) -> Result<Arc<Parsed>, prost::DecodeError> {
        let hash = twox_hash::XxHash3_64::oneshot(any);
        let key = (kind, hash);
        if let Some(known) = self.0.read().unwrap_or_else(PoisonError::into_inner).get(&key) {
            return Ok(known.clone());
        }
        let value = Any::decode(any.clone())?.value;
        let parsed = Arc::new(parse(kind, hash, value)?);
        let mut known = self.0.write().unwrap_or_else(PoisonError::into_inner);
        Ok(known.entry(key).or_insert(parsed).clone())
    }
}

fn parse(kind: Kind, hash: u64, value: Bytes) -> Result<Parsed, prost::DecodeError> {
    let (name, mut refers) = match kind {
        Kind::Cluster => {
            let Cluster { name, discovery, eds } = Cluster::decode(value)?;
            let asked = eds.map(|eds| eds.service_name).filter(|name| !name.is_empty());
            let asked = (discovery == EDS).then(|| asked.unwrap_or_else(|| name.clone()));
            (name, asked.into_iter().map(|name| (Kind::Endpoint, name.into())).collect())
        }
        Kind::Listener => listener(value)?,
        Kind::Endpoint | Kind::Extension | Kind::Route => (Named::decode(value)?.name, Vec::new()),
    };
    refers.sort_unstable();
    refers.dedup();
    Ok(Parsed { name: name.into(), hash, refers })
}

type Refers = Vec<(Kind, Arc<str>)>;

fn listener(value: Bytes) -> Result<(String, Refers), prost::DecodeError> {
    let Listener { name, filter_chains, listener_filters, default_filter_chain } = Listener::decode(value)?;
    let mut refers = Vec::new();
    let network = filter_chains.into_iter().chain(default_filter_chain).flat_map(|chain| chain.filters);
    for filter in network.chain(listener_filters) {
        discovered(&filter, &mut refers);
        let Some(any) = filter.typed_config.filter(|any| any.type_url.ends_with(MANAGER)) else { continue };
        let Manager { rds, http_filters } = Manager::decode(any.value)?;
        http_filters.iter().for_each(|filter| discovered(filter, &mut refers));
        refers.extend(rds.map(|rds| (Kind::Route, rds.route_config_name.into())));
    }
    Ok((name, refers))
}

fn discovered(filter: &Filter, refers: &mut Refers) {
    if filter.config_discovery.is_some() {
        refers.push((Kind::Extension, filter.name.as_str().into()));
    }
}

/// For tests: an encoded `Any` of a kind.
#[cfg(test)]
pub(super) mod samples {
    use super::*;

    fn any(type_url: &str, message: &impl Message) -> Any {
        Any { type_url: type_url.to_owned(), value: message.encode_to_vec().into() }
    }

    pub(crate) fn named(kind: Kind, name: &str, more: &str) -> Bytes {
        #[derive(Clone, PartialEq, Message)]
        struct Filled {
            #[prost(string, tag = "1")]
            name: String,
            #[prost(string, tag = "1000")]
            more: String,
        }
        let message = Filled { name: name.to_owned(), more: more.to_owned() };
        any(kind.type_url(), &message).encode_to_vec().into()
    }

    pub(crate) fn cluster(name: &str, eds: bool, service_name: &str) -> Bytes {
        let eds_config = eds.then(|| Eds { service_name: service_name.to_owned() });
        let cluster =
            Cluster { name: name.to_owned(), discovery: if eds { EDS } else { 0 }, eds: eds_config };
        any(Kind::Cluster.type_url(), &cluster).encode_to_vec().into()
    }

    pub(crate) fn listener(name: &str, slots: &[&str], route: Option<&str>) -> Bytes {
        let filter = |name: &&str| Filter {
            name: (*name).to_owned(),
            typed_config: None,
            config_discovery: Some(Present {}),
        };
        let manager = Manager {
            rds: route.map(|name| Rds { route_config_name: name.to_owned() }),
            http_filters: slots.iter().map(filter).collect(),
        };
        let network = Filter {
            name: "http".to_owned(),
            typed_config: Some(any(&format!("type.googleapis.com/{MANAGER}"), &manager)),
            config_discovery: None,
        };
        let chain = FilterChain { filters: vec![network] };
        let listener = Listener {
            name: name.to_owned(),
            filter_chains: vec![chain.clone()],
            listener_filters: Vec::new(),
            default_filter_chain: Some(chain),
        };
        any(Kind::Listener.type_url(), &listener).encode_to_vec().into()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn refers(kind: Kind, any: &Bytes) -> (String, Vec<(Kind, String)>) {
        let parsed = Memo::default().read(kind, any).unwrap();
        (parsed.name.to_string(), parsed.refers.iter().map(|(k, n)| (*k, n.to_string())).collect())
    }

    #[test]
    fn clusters_name_their_endpoints_only_if_those_come_by_eds() {
        let endpoint = |name: &str| vec![(Kind::Endpoint, name.to_owned())];
        for (any, wanted) in [
            (samples::cluster("a", true, ""), endpoint("a")),
            (samples::cluster("a", true, "b"), endpoint("b")),
            (samples::cluster("a", false, ""), vec![]),
        ] {
            assert_eq!(refers(Kind::Cluster, &any), ("a".to_owned(), wanted));
        }
    }

    #[test]
    fn listeners_name_slots_and_routes_once_each() {
        let any = samples::listener("in", &["deny", "allow", "deny"], Some("80"));
        let (name, found) = refers(Kind::Listener, &any);
        let wanted = [(Kind::Extension, "allow"), (Kind::Extension, "deny"), (Kind::Route, "80")];
        assert_eq!(name, "in");
        assert_eq!(found, wanted.map(|(kind, name)| (kind, name.to_owned())));
    }

    #[test]
    fn equal_content_is_read_once_and_garbage_is_an_error() {
        let memo = Memo::default();
        let first = memo.read(Kind::Route, &samples::named(Kind::Route, "r", "x")).unwrap();
        let again = memo.read(Kind::Route, &samples::named(Kind::Route, "r", "x")).unwrap();
        let other = memo.read(Kind::Route, &samples::named(Kind::Route, "r", "y")).unwrap();
        assert!(Arc::ptr_eq(&first, &again) && first.hash != other.hash);
        assert!(memo.read(Kind::Route, &Bytes::from_static(b"\xff\xff")).is_err());
    }
}
