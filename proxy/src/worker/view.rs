//! A snapshot, ready to run on one worker.

use std::cell::{Cell, OnceCell, RefCell};
use std::collections::HashMap;
use std::net::SocketAddr;
use std::ops::Range;
use std::rc::Rc;
use std::sync::Arc;
use std::time::Instant;

use outrigger_reactor::now;

use super::{Cluster, Worker};
use crate::config::{
    ChainId, ClusterIndex, ClusterName, EndpointSet, HttpConnectionConfig, ListenerConfig, ListenerName,
    LocalRateLimit, Protocol, RouteTable, Snapshot,
};
use crate::policy::TokenBucket;
use crate::route;
use crate::stats::{RouteCell, RouteKey};
use crate::upstream::Reuse;

/// What a request runs under, from its head to its end.
#[derive(Debug)]
pub struct View {
    pub(super) snapshot: Arc<Snapshot>,
    clusters: RefCell<Vec<Option<Rc<Cluster>>>>,
    /// Clusters of the view before this one, by name: taken over where nothing changed.
    before: RefCell<HashMap<ClusterName, Rc<Cluster>>>,
    /// One for each filter chain: those of a listener in their order, listeners sorted by name as in the snapshot.
    chains: Box<[ListenerView]>,
    /// Place of the chain that was asked for last: requests come in runs.
    last: Cell<usize>,
}

/// What a request needs of the filter chain that its connection came in by, found once a view.
#[derive(Debug)]
pub struct ListenerView {
    config: Arc<ListenerConfig>,
    /// Its place in the listener.
    place: usize,
    id: Rc<ChainId>,
    limit: OnceCell<Limit>,
    routes: OnceCell<Option<Routes>>,
}

/// The routes of one listener.
#[derive(Debug)]
pub struct Routes {
    /// How it is searched.
    pub index: route::Index,
    listener: Arc<str>,
    /// By virtual host and route; empty before the first request.
    live: Vec<Box<[OnceCell<Box<LiveRoute>>]>>,
}

/// What is live of a route.
#[derive(Debug)]
pub struct LiveRoute {
    /// This worker's counters of it.
    pub cell: Arc<RouteCell>,
    /// The limit that applies to it: its own, or else its virtual host's.
    pub limit: Option<Limit>,
}

/// A rate limit with its tokens.
#[derive(Debug)]
pub struct Limit {
    /// How it is set.
    pub config: Arc<LocalRateLimit>,
    /// What is left.
    pub bucket: Arc<TokenBucket>,
}

impl View {
    /// A view without a past.
    pub fn new(snapshot: Arc<Snapshot>) -> Self {
        Self {
            clusters: RefCell::new(vec![None; snapshot.clusters().len()]),
            before: RefCell::default(),
            chains: snapshot.listeners().iter().flat_map(ListenerView::of).collect(),
            last: Cell::new(0),
            snapshot,
        }
    }

    /// A view of `snapshot` that takes over the clusters which are the same in both.
    pub(super) fn follow(&self, snapshot: Arc<Snapshot>) -> Self {
        let mut before = self.before.take();
        // What left is let go: names that come and go would else pile up.
        before.retain(|name, _| snapshot.cluster_index(name.as_str()).is_some());
        before.extend(self.clusters.borrow().iter().flatten().map(|one| (one.config.name.clone(), one.clone())));
        let next = Self::new(snapshot);
        next.before.replace(before);
        next
    }

    /// The epoch of the snapshot.
    pub fn epoch(&self) -> u64 {
        self.snapshot.epoch
    }

    /// The filter chains of a listener, in its order; none once the listener is gone.
    pub fn chains(&self, listener: &ListenerName) -> &[ListenerView] {
        &self.chains[self.places_of(listener)]
    }

    fn places_of(&self, listener: &ListenerName) -> Range<usize> {
        let from = self.chains.partition_point(|chain| chain.config.name < *listener);
        let count = self.chains[from..].iter().take_while(|chain| chain.config.name == *listener).count();
        from..from + count
    }

    /// The first filter chain of a listener; `None` once the listener is gone.
    pub fn listener(&self, name: &ListenerName) -> Option<&ListenerView> {
        self.chains(name).first()
    }

    /// A filter chain; `None` once it is gone.
    pub fn chain(&self, id: &ChainId) -> Option<&ListenerView> {
        match self.chains.get(self.last.get()) {
            Some(chain) if *chain.id == *id => Some(chain),
            _ => self.search(id),
        }
    }

    fn search(&self, id: &ChainId) -> Option<&ListenerView> {
        let place = self.places_of(&id.listener).find(|place| self.chains[*place].id.chain == id.chain)?;
        self.last.set(place);
        self.chains.get(place)
    }

    /// HTTP settings of a filter chain, to be kept beyond this view; `None` once the chain is gone or serves HTTP no more.
    pub fn http(&self, id: &ChainId) -> Option<Arc<HttpConnectionConfig>> {
        self.chain(id)?.http().cloned()
    }

    /// Routes of a filter chain; `None` when its table has not arrived.
    pub fn routes<'a>(&'a self, listener: &'a ListenerView) -> Option<&'a Routes> {
        let build = || Some(Routes::new(&listener.config.name, self.snapshot.routes_of(listener.http()?)?.clone()));
        listener.routes.get_or_init(build).as_ref()
    }

    /// The cluster that a route chose.
    pub fn cluster(&self, chosen: &route::Chosen<'_, '_>, worker: &Worker) -> Option<Rc<Cluster>> {
        let index = match chosen {
            route::Chosen::Linked { index, .. } => (*index)?,
            route::Chosen::Named(name) => self.snapshot.cluster_index(std::str::from_utf8(name).ok()?)?,
            route::Chosen::Missing => return None,
        };
        self.cluster_at(index, worker)
    }

    /// The cluster at a place of this view's snapshot.
    pub fn cluster_at(&self, index: ClusterIndex, worker: &Worker) -> Option<Rc<Cluster>> {
        let mut clusters = self.clusters.borrow_mut();
        let place = clusters.get_mut(usize::try_from(index.0).ok()?)?;
        if let Some(cluster) = place {
            return Some(cluster.clone());
        }
        let (config, set) = self.snapshot.cluster(index)?;
        let cluster = match self.before.borrow_mut().remove(&config.name) {
            Some(old) if Arc::ptr_eq(&old.config, config) && (Arc::ptr_eq(&old.set, set) || has_none(&old, set)) => old,
            _ => Rc::new(Cluster::new(config.clone(), set.clone(), worker)),
        };
        Some(place.insert(cluster).clone())
    }

    /// The chains of the listener that is handed connections to `destination`; none when there is no such listener.
    pub fn handed_to(&self, destination: SocketAddr) -> Option<&ListenerView> {
        self.listener(&self.snapshot.handed_to(destination)?.name)
    }

    /// Has clusters of original destinations forget those that nobody uses.
    pub(super) fn sweep_originals(&self, now: Instant) {
        let is_one = |cluster: &&Rc<Cluster>| cluster.originals().is_some();
        let mut all: Vec<_> = self.clusters.borrow().iter().flatten().filter(is_one).cloned().collect();
        all.extend(self.before.borrow().values().filter(is_one).cloned());
        for cluster in &all {
            if let (Some(originals), Some(config)) = (cluster.originals(), cluster.original()) {
                originals.sweep(now, (cluster.reuse(), config.cleanup_interval));
            }
        }
    }

    /// True when the snapshot has it.
    pub(super) fn has_cluster(&self, cluster: &str) -> bool {
        self.snapshot.cluster_index(cluster).is_some()
    }

    /// How long connections of a cluster are kept; `None` when the snapshot no longer has it.
    pub(super) fn reuse_of(&self, cluster: &ClusterName) -> Option<Reuse> {
        let (config, _) = self.snapshot.cluster(self.snapshot.cluster_index(cluster.as_str())?)?;
        Some(Reuse { idle_timeout: config.idle_timeout, max_requests: config.max_requests_per_connection })
    }
}

/// Both are without endpoints: an empty set is made anew for each snapshot.
fn has_none(cluster: &Cluster, set: &EndpointSet) -> bool {
    cluster.set.endpoints.is_empty() && set.endpoints.is_empty()
}

impl ListenerView {
    /// One for each chain of a listener.
    fn of(config: &Arc<ListenerConfig>) -> impl Iterator<Item = Self> + use<'_> {
        config.chains.iter().enumerate().map(|(place, chain)| Self {
            config: config.clone(),
            place,
            id: Rc::new(ChainId { listener: config.name.clone(), chain: chain.name.clone() }),
            limit: OnceCell::new(),
            routes: OnceCell::new(),
        })
    }

    /// The listener.
    pub fn config(&self) -> &Arc<ListenerConfig> {
        &self.config
    }

    /// The name to find it by in a later view.
    pub fn id(&self) -> &Rc<ChainId> {
        &self.id
    }

    /// What its connections are.
    pub fn protocol(&self) -> &Protocol {
        &self.config.chains[self.place].protocol
    }

    /// Its HTTP settings; `None`: it does not serve HTTP.
    pub fn http(&self) -> Option<&Arc<HttpConnectionConfig>> {
        self.protocol().http()
    }

    /// The limit over all its requests.
    pub fn limit(&self, worker: &Worker) -> Option<&Limit> {
        let limit = self.http()?.rate_limit.as_ref()?;
        Some(self.limit.get_or_init(|| Limit::new(limit, worker)))
    }
}

impl Limit {
    fn new(config: &Arc<LocalRateLimit>, worker: &Worker) -> Self {
        let now_ns = worker.shared.since_start_ns(now());
        Self { bucket: worker.shared.buckets.bucket(config, now_ns), config: config.clone() }
    }
}

impl Routes {
    fn new(listener: &ListenerName, table: Arc<RouteTable>) -> Self {
        let of_host = |routes: usize| (0..routes).map(|_| OnceCell::new()).collect();
        let live = table.virtual_hosts.iter().map(|host| of_host(host.routes.len())).collect();
        Self { index: route::Index::build(table), live, listener: listener.as_str().into() }
    }

    /// The table.
    pub fn table(&self) -> &Arc<RouteTable> {
        self.index.table()
    }

    /// What is live of a route, by the places of its virtual host and itself.
    pub fn live(&self, worker: &Worker, host: usize, route: usize) -> Option<&LiveRoute> {
        let live = self.live.get(host)?.get(route)?;
        if let Some(live) = live.get() {
            return Some(live);
        }
        let host = self.table().virtual_hosts.get(host)?;
        let route = host.routes.get(route)?;
        let key =
            RouteKey { listener: self.listener.clone(), virtual_host: host.name.clone(), route: route.name.clone() };
        let limit = route.rate_limit.as_ref().or(host.rate_limit.as_ref());
        let limit = limit.map(|limit| Limit::new(limit, worker));
        Some(live.get_or_init(|| Box::new(LiveRoute { cell: worker.route_cell(key), limit })))
    }
}
