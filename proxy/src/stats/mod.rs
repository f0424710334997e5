//! **Purpose.** Counters and latency histograms that cost the data path a plain add.
//!
//! **Shape.** A worker asks the [`Registry`] once for its own cell of a route, a cluster or a listener and keeps it; only
//! that worker writes to the cell, so a write is a relaxed load and store, without a locked instruction or a shared cache
//! line. The control thread merges all cells of one key when somebody looks ([`Registry::routes`] and its siblings).
//! [`EndpointCell`]s are shared by all workers, since ejection and least-request must see the whole.
//!
//! **Units.** Latency in microseconds.
//!
//! **Limits.** Cells of keys that left the configuration are dropped by [`Registry::retain_clusters`] and [`Registry::retain_endpoints`]; their counts are then gone.

mod cells;
mod histogram;
mod methods;

pub use cells::{AccessCounters, ClusterCell, Detected, EndpointCell, ListenerCell, RouteCell, SuppressReason};
pub use histogram::{Histogram, HistogramReport, SparseReport};
pub use methods::{Call, METHODS_MAX, MethodCell, MethodKey, MethodTable};

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::sync::atomic::{AtomicI64, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use crate::fault::Kind;

/// A count written by one thread and read by any.
#[derive(Debug, Default)]
pub struct Counter(AtomicU64);

impl Counter {
    /// Adds one. Only the owning worker may call it.
    #[inline]
    pub fn add_one(&self) {
        self.add(1);
    }

    /// Adds `count`. Only the owning worker may call it.
    #[inline]
    pub fn add(&self, count: u64) {
        self.0.store(self.0.load(Ordering::Relaxed).wrapping_add(count), Ordering::Relaxed);
    }

    /// The count.
    pub fn value(&self) -> u64 {
        self.0.load(Ordering::Relaxed)
    }
}

/// A level written by one thread and read by any.
#[derive(Debug, Default)]
pub struct Gauge(AtomicI64);

impl Gauge {
    /// Moves the level. Only the owning worker may call it.
    #[inline]
    pub fn add(&self, delta: i64) {
        self.0.store(self.0.load(Ordering::Relaxed).wrapping_add(delta), Ordering::Relaxed);
    }

    /// The level.
    pub fn value(&self) -> i64 {
        self.0.load(Ordering::Relaxed)
    }
}

/// Which route a cell belongs to.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct RouteKey {
    /// Listener the request came in by.
    pub listener: Arc<str>,
    /// Name of the virtual host; empty when none matched.
    pub virtual_host: Arc<str>,
    /// Name of the route; empty when none matched.
    pub route: Arc<str>,
}

type EndpointCells = BTreeMap<(Arc<str>, SocketAddr), Arc<EndpointCell>>;

/// Every count of the process.
#[derive(Debug, Default)]
pub struct Registry {
    routes: Mutex<BTreeMap<RouteKey, Vec<Arc<RouteCell>>>>,
    clusters: Mutex<BTreeMap<Arc<str>, Vec<Arc<ClusterCell>>>>,
    listeners: Mutex<BTreeMap<Arc<str>, Vec<Arc<ListenerCell>>>>,
    endpoints: Mutex<EndpointCells>,
    methods: Mutex<BTreeMap<MethodKey, Vec<Arc<MethodCell>>>>,
}

impl Registry {
    /// A new cell of that route, for one worker.
    pub fn route(&self, key: RouteKey) -> Arc<RouteCell> {
        let cell = Arc::<RouteCell>::default();
        lock(&self.routes).entry(key).or_default().push(cell.clone());
        cell
    }

    /// A new cell of that cluster, for one worker.
    pub fn cluster(&self, name: Arc<str>) -> Arc<ClusterCell> {
        let cell = Arc::<ClusterCell>::default();
        lock(&self.clusters).entry(name).or_default().push(cell.clone());
        cell
    }

    /// A new cell of that listener, for one worker.
    pub fn listener(&self, name: Arc<str>) -> Arc<ListenerCell> {
        let cell = Arc::<ListenerCell>::default();
        lock(&self.listeners).entry(name).or_default().push(cell.clone());
        cell
    }

    /// The one cell of that endpoint, the same for every worker.
    pub fn endpoint(&self, cluster: &Arc<str>, address: SocketAddr) -> Arc<EndpointCell> {
        lock(&self.endpoints).entry((cluster.clone(), address)).or_default().clone()
    }

    /// A new cell of that method, for one worker.
    pub fn method(&self, key: MethodKey) -> Arc<MethodCell> {
        let cell = Arc::<MethodCell>::default();
        lock(&self.methods).entry(key).or_default().push(cell.clone());
        cell
    }

    /// Visits every route with its cells, sorted by key.
    pub fn routes(&self, mut visit: impl FnMut(&RouteKey, &[Arc<RouteCell>])) {
        lock(&self.routes).iter().for_each(|(key, cells)| visit(key, cells));
    }

    /// Visits every cluster with its cells, sorted by name.
    pub fn clusters(&self, mut visit: impl FnMut(&Arc<str>, &[Arc<ClusterCell>])) {
        lock(&self.clusters).iter().for_each(|(key, cells)| visit(key, cells));
    }

    /// Visits every listener with its cells, sorted by name.
    pub fn listeners(&self, mut visit: impl FnMut(&Arc<str>, &[Arc<ListenerCell>])) {
        lock(&self.listeners).iter().for_each(|(key, cells)| visit(key, cells));
    }

    /// Visits every method with its cells, sorted by cluster, service and name.
    pub fn methods(&self, mut visit: impl FnMut(&MethodKey, &[Arc<MethodCell>])) {
        lock(&self.methods).iter().for_each(|(key, cells)| visit(key, cells));
    }

    /// Visits every endpoint, sorted by cluster and address.
    pub fn endpoints(&self, mut visit: impl FnMut(&Arc<str>, SocketAddr, &EndpointCell)) {
        lock(&self.endpoints).iter().for_each(|((cluster, address), cell)| visit(cluster, *address, cell));
    }

    /// Forgets endpoints that `keep` denies.
    pub fn retain_endpoints(&self, mut keep: impl FnMut(&str, SocketAddr) -> bool) {
        lock(&self.endpoints).retain(|(cluster, address), _| keep(cluster, *address));
    }

    /// Forgets clusters that `keep` denies, with their methods.
    pub fn retain_clusters(&self, mut keep: impl FnMut(&str) -> bool) {
        lock(&self.clusters).retain(|name, _| keep(name));
        lock(&self.methods).retain(|key, _| keep(&key.cluster));
    }
}

/// Counts per fault kind.
#[derive(Debug)]
pub struct FaultCounters([Counter; Kind::ALL.len()]);

impl Default for FaultCounters {
    fn default() -> Self {
        Self(std::array::from_fn(|_| Counter::default()))
    }
}

impl FaultCounters {
    /// Counts one fault of that kind.
    #[inline]
    pub fn add_one(&self, kind: Kind) {
        self.0[kind as usize].add_one();
    }

    /// Kinds that have occurred, with their counts.
    pub fn nonzero(&self) -> impl Iterator<Item = (Kind, u64)> + '_ {
        Kind::ALL.iter().map(|&kind| (kind, self.0[kind as usize].value())).filter(|(_, count)| *count > 0)
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    // A poisoned lock means that a reader panicked while it looked; the counts themselves are sound.
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
