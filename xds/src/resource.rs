//! Encoded resources and the snapshots of them that a proxy is to have. Encode once, share bytes, compare hashes
//! (design decision 4).

use std::sync::Arc;

use bytes::Bytes;

use crate::table::Table;

/// The xDS types we serve, in the order in which changes are pushed (semantics §6.4), ECDS before LDS so that a rule
/// is in force before the chain that relies on it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum ResourceType {
    Cluster,
    Endpoint,
    Extension,
    Listener,
    Route,
}

impl ResourceType {
    pub const ALL: [Self; 5] = [Self::Cluster, Self::Endpoint, Self::Extension, Self::Listener, Self::Route];

    pub fn type_url(self) -> &'static str {
        match self {
            Self::Cluster => "type.googleapis.com/envoy.config.cluster.v3.Cluster",
            Self::Endpoint => "type.googleapis.com/envoy.config.endpoint.v3.ClusterLoadAssignment",
            Self::Extension => "type.googleapis.com/envoy.config.core.v3.TypedExtensionConfig",
            Self::Listener => "type.googleapis.com/envoy.config.listener.v3.Listener",
            Self::Route => "type.googleapis.com/envoy.config.route.v3.RouteConfiguration",
        }
    }

    pub fn from_type_url(url: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|t| t.type_url() == url)
    }

    /// Label of metrics and `proxy-status`.
    pub fn short(self) -> &'static str {
        match self {
            Self::Cluster => "cds",
            Self::Endpoint => "eds",
            Self::Extension => "ecds",
            Self::Listener => "lds",
            Self::Route => "rds",
        }
    }

    /// An empty subscription means "everything" (CDS and LDS).
    pub fn wildcard(self) -> bool {
        matches!(self, Self::Cluster | Self::Listener)
    }
}

/// One encoded resource. Equality is equality of name and content hash.
#[derive(Clone, Debug)]
pub struct Resource {
    pub name: Arc<str>,
    /// First 64 bits of the XXH3-128 of `any`.
    pub hash: u64,
    /// An encoded `google.protobuf.Any` (type URL and value), ready to be put on the wire as a field's bytes.
    pub any: Bytes,
}

impl PartialEq for Resource {
    fn eq(&self, other: &Self) -> bool {
        self.hash == other.hash && self.name == other.name
    }
}

impl Resource {
    /// Encodes `message` deterministically. Messages with map fields must not reach this with more than one entry in
    /// such a map unless the type was made sorted (see `build::encode`).
    pub fn new(name: impl Into<Arc<str>>, any: Bytes) -> Self {
        let hash = twox_hash::XxHash3_128::oneshot(&any);
        Self { name: name.into(), hash: (hash >> 64) as u64, any }
    }

    /// The version Envoy sees: 16 hex digits of the content hash.
    pub fn version(&self) -> String {
        format!("{:016x}", self.hash)
    }
}

/// One type's resources for one proxy: what the namespace shares and what is the workload's own. Names are disjoint;
/// `own` wins if they are not.
#[derive(Clone, Debug, Default)]
pub struct Layers {
    pub shared: Arc<Table>,
    pub own: Arc<Table>,
}

impl Layers {
    pub fn get(&self, name: &str) -> Option<&Resource> {
        self.own.get(name).or_else(|| self.shared.get(name))
    }

    /// Every resource, `own` after `shared`.
    pub fn iter(&self) -> impl Iterator<Item = &Resource> {
        let shadowed = |r: &&Resource| !self.own.contains(&r.name);
        self.shared.iter().filter(shadowed).chain(self.own.iter())
    }

    /// Whether both layers are the very same tables (pointers), so nothing can differ.
    pub fn same(&self, other: &Self) -> bool {
        Arc::ptr_eq(&self.shared, &other.shared) && Arc::ptr_eq(&self.own, &other.own)
    }
}

/// Everything one proxy is to have, at one moment. Cheap to clone.
#[derive(Clone, Debug, Default)]
pub struct Snapshot {
    /// Indexed by [`ResourceType`].
    layers: [Layers; 5],
    /// Ever-growing number of the state it was built from; for status and receipts only.
    pub generation: u64,
}

impl Snapshot {
    pub fn new(generation: u64) -> Self {
        Self { layers: Default::default(), generation }
    }

    pub fn of(&self, kind: ResourceType) -> &Layers {
        &self.layers[kind as usize]
    }

    pub fn of_mut(&mut self, kind: ResourceType) -> &mut Layers {
        &mut self.layers[kind as usize]
    }
}
