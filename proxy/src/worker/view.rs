//! A snapshot, ready to run on one worker.

use std::cell::{OnceCell, RefCell};
use std::collections::HashMap;
use std::net::SocketAddr;
use std::rc::Rc;
use std::sync::Arc;

use super::{Cluster, Worker};
use crate::config::{
    ClusterIndex, ClusterName, HttpConnectionConfig, ListenerName, LocalRateLimit, Protocol, RouteTable, Snapshot,
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
    routes: RefCell<HashMap<ListenerName, Option<Rc<Routes>>>>,
    buckets: RefCell<Vec<(Arc<LocalRateLimit>, Arc<TokenBucket>)>>,
}

/// The routes of one listener.
#[derive(Debug)]
pub struct Routes {
    /// How it is searched.
    pub index: route::Index,
    listener: Arc<str>,
    cells: Vec<Box<[OnceCell<Arc<RouteCell>>]>>,
}

impl View {
    /// A view without a past.
    pub fn new(snapshot: Arc<Snapshot>) -> Self {
        Self {
            clusters: RefCell::new(vec![None; snapshot.clusters().len()]),
            snapshot,
            before: RefCell::default(),
            routes: RefCell::default(),
            buckets: RefCell::default(),
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

    /// What the connections of a listener are; `None` once the listener is gone.
    pub fn protocol(&self, listener: &ListenerName) -> Option<&Protocol> {
        Some(&self.snapshot.listener(listener.as_str())?.protocol)
    }

    /// HTTP settings of a listener; `None` once the listener is gone or serves HTTP no more.
    pub fn http(&self, listener: &ListenerName) -> Option<Arc<HttpConnectionConfig>> {
        self.snapshot.listener(listener.as_str())?.http().cloned()
    }

    /// Routes of a listener; `None` when its table has not arrived.
    pub fn routes(&self, listener: &ListenerName) -> Option<Rc<Routes>> {
        let mut routes = self.routes.borrow_mut();
        if let Some(known) = routes.get(listener) {
            return known.clone();
        }
        let config = self.snapshot.listener(listener.as_str());
        let built = config.and_then(|config| {
            let table = self.snapshot.routes_of(config)?.clone();
            Some(Rc::new(Routes::new(listener, table)))
        });
        routes.insert(listener.clone(), built.clone());
        built
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
            Some(old) if Arc::ptr_eq(&old.config, config) && Arc::ptr_eq(&old.set, set) => old,
            _ => Rc::new(Cluster::new(config.clone(), set.clone(), worker)),
        };
        Some(place.insert(cluster).clone())
    }

    /// The bucket of a rate limit, found once a view.
    pub fn bucket(&self, limit: &Arc<LocalRateLimit>, worker: &Worker) -> Arc<TokenBucket> {
        let mut buckets = self.buckets.borrow_mut();
        if let Some((_, bucket)) = buckets.iter().find(|(known, _)| Arc::ptr_eq(known, limit)) {
            return bucket.clone();
        }
        let bucket = worker.shared.buckets.bucket(limit, worker.shared.since_start_ns(outrigger_reactor::now()));
        buckets.push((limit.clone(), bucket.clone()));
        bucket
    }

    /// True when the snapshot has it.
    pub(super) fn has_cluster(&self, cluster: &str) -> bool {
        self.snapshot.cluster_index(cluster).is_some()
    }

    /// How long connections to an endpoint are kept; `None` when the snapshot no longer has it.
    pub(super) fn reuse_of(&self, cluster: &ClusterName, address: SocketAddr) -> Option<Reuse> {
        let (config, set) = self.snapshot.cluster(self.snapshot.cluster_index(cluster.as_str())?)?;
        let is_there = set.endpoints.iter().any(|endpoint| endpoint.address == address);
        is_there
            .then_some(Reuse { idle_timeout: config.idle_timeout, max_requests: config.max_requests_per_connection })
    }
}

impl Routes {
    fn new(listener: &ListenerName, table: Arc<RouteTable>) -> Self {
        let of_host = |routes: usize| (0..routes).map(|_| OnceCell::new()).collect();
        let cells = table.virtual_hosts.iter().map(|host| of_host(host.routes.len())).collect();
        Self { index: route::Index::build(table), cells, listener: listener.as_str().into() }
    }

    /// The table.
    pub fn table(&self) -> &Arc<RouteTable> {
        self.index.table()
    }

    /// This worker's counters of a route.
    pub fn cell(&self, worker: &Worker, host: usize, route: usize) -> Option<&Arc<RouteCell>> {
        let place = self.cells.get(host)?.get(route)?;
        let host = self.table().virtual_hosts.get(host)?;
        let route = host.routes.get(route)?;
        Some(place.get_or_init(|| {
            worker.route_cell(RouteKey {
                listener: self.listener.clone(),
                virtual_host: host.name.clone(),
                route: route.name.clone(),
            })
        }))
    }
}
