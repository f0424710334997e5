//! Purpose: named, packed resources with versions that are digests of their content, so that a
//! restarted server gives the same version to the same content.
//! Source: FNV-1a (64 bit); a digest tells equal from changed, it does not protect anything.

use std::collections::BTreeMap;
use std::sync::Arc;

use envoy_types::pb::google::protobuf::Any;
use prost::{Message, Name};

/// The xDS types we serve, in the order in which an update is pushed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum ResourceType {
    /// CDS.
    Cluster,
    /// EDS.
    Endpoints,
    /// LDS.
    Listener,
    /// RDS.
    Routes,
}

impl ResourceType {
    /// All of them, in push order.
    pub const ALL: [Self; 4] = [Self::Cluster, Self::Endpoints, Self::Listener, Self::Routes];

    /// Its type URL.
    #[must_use]
    pub fn type_url(self) -> &'static str {
        match self {
            Self::Cluster => "type.googleapis.com/envoy.config.cluster.v3.Cluster",
            Self::Endpoints => "type.googleapis.com/envoy.config.endpoint.v3.ClusterLoadAssignment",
            Self::Listener => "type.googleapis.com/envoy.config.listener.v3.Listener",
            Self::Routes => "type.googleapis.com/envoy.config.route.v3.RouteConfiguration",
        }
    }

    /// The type of a type URL.
    #[must_use]
    pub fn from_type_url(url: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|kind| kind.type_url() == url)
    }

    /// The short name operators use.
    #[must_use]
    pub fn short_name(self) -> &'static str {
        match self {
            Self::Cluster => "CDS",
            Self::Endpoints => "EDS",
            Self::Listener => "LDS",
            Self::Routes => "RDS",
        }
    }

    /// Whether a first request without names means "all of them".
    #[must_use]
    pub fn has_wildcard(self) -> bool {
        matches!(self, Self::Cluster | Self::Listener)
    }
}

/// One packed resource.
#[derive(Debug, Clone, PartialEq)]
pub struct Resource {
    /// Its name.
    pub name: String,
    /// Its packed message.
    pub any: Arc<Any>,
    /// Digest of its content.
    pub digest: u64,
}

impl Resource {
    /// Packs a message that holds no map with two entries or more.
    #[must_use]
    pub fn pack<M: Message + Name>(name: String, message: &M) -> Self {
        let value = message.encode_to_vec();
        let digest = Digest::new().with(&value).finish();
        let any = Any { type_url: M::type_url(), value };
        Self { name, any: Arc::new(any), digest }
    }
}

/// Resources of one type by name.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct ResourceSet {
    by_name: BTreeMap<String, Resource>,
}

impl ResourceSet {
    /// Adds or replaces one.
    pub fn insert(&mut self, resource: Resource) {
        self.by_name.insert(resource.name.clone(), resource);
    }

    /// All, by name.
    pub fn iter(&self) -> impl Iterator<Item = &Resource> {
        self.by_name.values()
    }

    /// One by name.
    #[must_use]
    pub fn find(&self, name: &str) -> Option<&Resource> {
        self.by_name.get(name)
    }
}

impl FromIterator<Resource> for ResourceSet {
    fn from_iter<I: IntoIterator<Item = Resource>>(resources: I) -> Self {
        Self { by_name: resources.into_iter().map(|one| (one.name.clone(), one)).collect() }
    }
}

/// A running digest; parts are kept apart by their length.
#[derive(Debug, Clone, Copy)]
pub struct Digest(u64);

impl Digest {
    /// An empty one.
    #[must_use]
    pub fn new() -> Self {
        Self(0xcbf2_9ce4_8422_2325)
    }

    /// Adds a part.
    #[must_use]
    pub fn with(self, part: &[u8]) -> Self {
        let length = u64::try_from(part.len()).unwrap_or(u64::MAX).to_le_bytes();
        let step = |hash: u64, byte: &u8| (hash ^ u64::from(*byte)).wrapping_mul(0x0100_0000_01b3);
        Self(part.iter().fold(length.iter().fold(self.0, step), step))
    }

    /// The value.
    #[must_use]
    pub fn finish(self) -> u64 {
        self.0
    }
}

impl Default for Digest {
    fn default() -> Self {
        Self::new()
    }
}
