//! Everything the proxy runs at one epoch, as one value.

use std::collections::{HashMap, HashSet};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::sync::Arc;

use super::{
    ClusterConfig, ClusterName, ClusterTarget, EndpointSet, FilterChain, HttpConnectionConfig, ListenerConfig,
    ListenerName, LocalRateLimit, Protocol, RouteAction, RouteSource, RouteTable, RouteTableName,
};

/// Place of a cluster in its snapshot: valid in that snapshot alone.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct ClusterIndex(pub u32);

/// Converted resources before they are linked.
#[derive(Clone, Debug, Default)]
pub struct Resources {
    /// By name.
    pub listeners: HashMap<ListenerName, Arc<ListenerConfig>>,
    /// By name.
    pub route_tables: HashMap<RouteTableName, Arc<RouteTable>>,
    /// By name.
    pub clusters: HashMap<ClusterName, Arc<ClusterConfig>>,
    /// Endpoints of clusters that discover them (EDS, DNS), by cluster.
    pub endpoints: HashMap<ClusterName, Arc<EndpointSet>>,
}

/// A reference to something that is not there.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Dangling {
    /// A route names a cluster that is not there.
    Cluster {
        /** Who refers. */
        route_table: RouteTableName,
        /** To what. */
        cluster: ClusterName,
    },
    /// A cluster's endpoints have not been told.
    Endpoints {
        /** Who refers. */
        cluster: ClusterName,
    },
    /// A listener of opaque connections names a cluster that is not there.
    ListenerCluster {
        /** Who refers. */
        listener: ListenerName,
        /** To what. */
        cluster: ClusterName,
    },
    /// A listener names a route table that is not there.
    RouteTable {
        /** Who refers. */
        listener: ListenerName,
        /** To what. */
        route_table: RouteTableName,
    },
}

/// One epoch of configuration. Immutable; a request takes its `Arc` once and keeps it to its end.
#[derive(Debug)]
pub struct Snapshot {
    /// Its number: grows by one with every publish, from 1. Epoch 0 is the empty start.
    pub epoch: u64,
    listeners: Vec<Arc<ListenerConfig>>,
    route_tables: HashMap<RouteTableName, Arc<RouteTable>>,
    clusters: Vec<(Arc<ClusterConfig>, Arc<EndpointSet>)>,
    cluster_index: HashMap<ClusterName, ClusterIndex>,
    /// Places of the listeners that are handed their connections, by address.
    handed: HashMap<SocketAddr, usize>,
}

impl Snapshot {
    /// What runs before any configuration arrived.
    pub fn empty() -> Self {
        Self {
            epoch: 0,
            listeners: Vec::new(),
            route_tables: HashMap::new(),
            clusters: Vec::new(),
            cluster_index: HashMap::new(),
            handed: HashMap::new(),
        }
    }

    /// Links `resources`: every cluster reference becomes an index. What dangles stays unlinked (the request gets the
    /// route's cluster-not-found code, the opaque connection is closed) and is returned, sorted, for the caller to wait
    /// for or to report.
    pub fn link(epoch: u64, resources: &Resources) -> (Self, Vec<Dangling>) {
        let mut dangling = Vec::new();
        let mut names: Vec<&ClusterName> = resources.clusters.keys().collect();
        names.sort_unstable();
        let mut clusters = Vec::with_capacity(names.len());
        let mut cluster_index = HashMap::with_capacity(names.len());
        for (at, name) in names.into_iter().enumerate() {
            let config = &resources.clusters[name];
            let endpoints = match &config.discovery {
                super::Discovery::Static(set) => set.clone(),
                super::Discovery::Original(_) => Arc::default(),
                super::Discovery::Eds(_) | super::Discovery::Dns { .. } => {
                    resources.endpoints.get(name).cloned().unwrap_or_else(|| {
                        dangling.push(Dangling::Endpoints { cluster: name.clone() });
                        Arc::default()
                    })
                }
            };
            let index = u32::try_from(at).expect("a snapshot holds fewer than 2^32 clusters");
            cluster_index.insert(name.clone(), ClusterIndex(index));
            clusters.push((config.clone(), endpoints));
        }
        let route_tables = resources
            .route_tables
            .iter()
            .map(|(name, table)| (name.clone(), link_table(table, &cluster_index, &mut dangling)))
            .collect::<HashMap<_, _>>();
        let mut listeners: Vec<_> = resources
            .listeners
            .values()
            .map(|listener| link_listener(listener, &route_tables, &cluster_index, &mut dangling))
            .collect();
        listeners.sort_by(|a, b| a.name.cmp(&b.name));
        dangling.sort();
        dangling.dedup();
        let handed = handed(&listeners);
        (Self { epoch, listeners, route_tables, clusters, cluster_index, handed }, dangling)
    }

    /// Listeners, sorted by name.
    pub fn listeners(&self) -> &[Arc<ListenerConfig>] {
        &self.listeners
    }

    /// The listener of that name.
    pub fn listener(&self, name: &str) -> Option<&Arc<ListenerConfig>> {
        let at = self.listeners.binary_search_by(|listener| listener.name.as_str().cmp(name)).ok()?;
        self.listeners.get(at)
    }

    /// The listener that is handed connections to `destination`: one that has it for its address, else one for its port
    /// at every address.
    pub fn handed_to(&self, destination: SocketAddr) -> Option<&Arc<ListenerConfig>> {
        if self.handed.is_empty() {
            return None;
        }
        let any = |ip: IpAddr| SocketAddr::new(ip, destination.port());
        let any_v4 = destination.is_ipv4().then(|| any(Ipv4Addr::UNSPECIFIED.into()));
        // As a socket bound to it, [::] takes IPv4 too.
        let asked = [Some(destination), any_v4, Some(any(Ipv6Addr::UNSPECIFIED.into()))];
        let place = asked.into_iter().flatten().find_map(|address| self.handed.get(&address))?;
        self.listeners.get(*place)
    }

    /// Named route tables, in no order.
    pub fn route_tables(&self) -> impl Iterator<Item = &Arc<RouteTable>> {
        self.route_tables.values()
    }

    /// The routes of HTTP connections; `None` when their named table is not there.
    pub fn routes_of<'a>(&'a self, http: &'a HttpConnectionConfig) -> Option<&'a Arc<RouteTable>> {
        match &http.routes {
            RouteSource::Inline(table) => Some(table),
            RouteSource::Named(name) => self.route_tables.get(name),
        }
    }

    /// Visits every rate limit: of listeners, virtual hosts, routes and clusters.
    pub fn each_rate_limit(&self, visit: &mut dyn FnMut(&Arc<LocalRateLimit>)) {
        let mut of_table = |table: &RouteTable| {
            for host in &table.virtual_hosts {
                host.rate_limit.iter().for_each(&mut *visit);
                host.routes.iter().filter_map(|route| route.rate_limit.as_ref()).for_each(&mut *visit);
            }
        };
        self.route_tables.values().for_each(|table| of_table(table));
        let http = || self.listeners.iter().flat_map(|listener| listener.https());
        for http in http() {
            if let RouteSource::Inline(table) = &http.routes {
                of_table(table);
            }
        }
        http().filter_map(|http| http.rate_limit.as_ref()).for_each(&mut *visit);
        self.clusters.iter().filter_map(|(config, _)| config.rate_limit.as_ref()).for_each(&mut *visit);
    }

    /// Clusters with their endpoints, in index order.
    pub fn clusters(&self) -> &[(Arc<ClusterConfig>, Arc<EndpointSet>)] {
        &self.clusters
    }

    /// A cluster by index of this snapshot.
    pub fn cluster(&self, index: ClusterIndex) -> Option<&(Arc<ClusterConfig>, Arc<EndpointSet>)> {
        self.clusters.get(usize::try_from(index.0).ok()?)
    }

    /// For many questions of who is an endpoint of which cluster.
    pub fn members(&self) -> Members<'_> {
        Members { snapshot: self, known: HashMap::new() }
    }

    /// The index of a cluster by name.
    pub fn cluster_index(&self, name: &str) -> Option<ClusterIndex> {
        self.cluster_index.get(name).copied()
    }
}

/// Who is an endpoint of which cluster: each cluster that is asked about is looked through once.
#[derive(Debug)]
pub struct Members<'a> {
    snapshot: &'a Snapshot,
    known: HashMap<ClusterIndex, HashSet<SocketAddr>>,
}

impl Members<'_> {
    /// True while the snapshot has the endpoint.
    pub fn has(&mut self, cluster: &str, address: SocketAddr) -> bool {
        let Some(index) = self.snapshot.cluster_index(cluster) else { return false };
        let addresses = || {
            let set = self.snapshot.cluster(index).map(|(_, set)| set);
            set.into_iter().flat_map(|set| &set.endpoints).map(|endpoint| endpoint.address).collect()
        };
        self.known.entry(index).or_insert_with(addresses).contains(&address)
    }
}

/// Of two with the same address, the first by name.
fn handed(listeners: &[Arc<ListenerConfig>]) -> HashMap<SocketAddr, usize> {
    let mut handed = HashMap::new();
    for (place, listener) in listeners.iter().enumerate().filter(|(_, listener)| !listener.capture.is_bound) {
        for address in &listener.addresses {
            handed.entry(*address).or_insert(place);
        }
    }
    handed
}

fn link_listener(
    listener: &Arc<ListenerConfig>,
    tables: &HashMap<RouteTableName, Arc<RouteTable>>,
    clusters: &HashMap<ClusterName, ClusterIndex>,
    dangling: &mut Vec<Dangling>,
) -> Arc<ListenerConfig> {
    for name in listener.named_routes().filter(|name| !tables.contains_key(*name)) {
        dangling.push(Dangling::RouteTable { listener: listener.name.clone(), route_table: name.clone() });
    }
    let is_linked = |http: &Arc<HttpConnectionConfig>| matches!(http.routes, RouteSource::Named(_));
    if listener.chains.iter().all(|chain| chain.protocol.http().is_some_and(is_linked)) {
        return listener.clone();
    }
    let mut linked = (**listener).clone();
    for chain in &mut linked.chains {
        link_chain(chain, &listener.name, clusters, dangling);
    }
    Arc::new(linked)
}

fn link_chain(
    chain: &mut FilterChain,
    listener: &ListenerName,
    clusters: &HashMap<ClusterName, ClusterIndex>,
    dangling: &mut Vec<Dangling>,
) {
    match &mut chain.protocol {
        Protocol::Http(http) => {
            if let RouteSource::Inline(table) = &http.routes {
                let routes = RouteSource::Inline(link_table(table, clusters, dangling));
                Arc::make_mut(http).routes = routes;
            }
        }
        Protocol::Tcp(tcp) => {
            for share in &mut Arc::make_mut(tcp).clusters {
                share.index = clusters.get(&share.cluster).copied();
                if share.index.is_none() {
                    let (listener, cluster) = (listener.clone(), share.cluster.clone());
                    dangling.push(Dangling::ListenerCluster { listener, cluster });
                }
            }
        }
    }
}

fn link_table(
    table: &Arc<RouteTable>,
    clusters: &HashMap<ClusterName, ClusterIndex>,
    dangling: &mut Vec<Dangling>,
) -> Arc<RouteTable> {
    let mut linked = (**table).clone();
    let mut resolve = |name: &ClusterName| {
        let index = clusters.get(name).copied();
        if index.is_none() {
            dangling.push(Dangling::Cluster { route_table: table.name.clone(), cluster: name.clone() });
        }
        index
    };
    for host in &mut linked.virtual_hosts {
        for route in &mut host.routes {
            if !matches!(route.action, RouteAction::Forward(_)) {
                continue;
            }
            let route = Arc::make_mut(route);
            if let RouteAction::Forward(forward) = &mut route.action {
                match &mut forward.target {
                    ClusterTarget::Header(_) => {}
                    ClusterTarget::One(name, index) => *index = resolve(name),
                    ClusterTarget::Weighted { choices, .. } => {
                        for choice in choices {
                            choice.index = resolve(&choice.cluster);
                        }
                    }
                }
            }
        }
    }
    Arc::new(linked)
}
