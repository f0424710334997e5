//! What all workers and the control thread share.

use std::collections::{HashMap, HashSet};
use std::sync::atomic::{AtomicU32, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use super::{Bell, Own, ServerFirst};
use crate::balance::Ejector;
use crate::config::{ClusterConfig, ClusterName, OutlierDetection, Snapshot};
use crate::policy::{Buckets, CircuitState};
use crate::stats::Registry;

/// Counters, token buckets and the live state of clusters.
#[derive(Debug)]
pub struct Shared {
    /// Every count of the process.
    pub registry: Arc<Registry>,
    /// Token buckets by rule.
    pub buckets: Buckets,
    /// When the process began, by the monotonic clock.
    pub started: Instant,
    /// The same moment by the wall clock, since the Unix epoch.
    pub started_at: Duration,
    /// Destinations whose server speaks first.
    pub server_first: Arc<ServerFirst>,
    /// Where this process listens itself.
    pub own: Own,
    /// Rung at each ejection, for whoever calls [`Shared::sweep`].
    pub ejections: Bell,
    clusters: Mutex<HashMap<ClusterName, Arc<ClusterState>>>,
}

/// Live state of a cluster; outlives every snapshot that has the cluster.
#[derive(Debug, Default)]
pub struct ClusterState {
    /// Requests, waiting requests and retries in flight.
    pub circuit: Arc<CircuitState>,
    /// Outlier detection.
    pub ejector: Ejector,
    /// Connections open.
    pub open: Arc<AtomicU32>,
    next_sweep_ns: AtomicU64,
}

impl Shared {
    /// The state of a process that begins now.
    pub fn new(registry: Arc<Registry>, started: Instant) -> Arc<Self> {
        Arc::new(Self {
            registry,
            buckets: Buckets::default(),
            started,
            started_at: super::wall_clock(),
            server_first: Arc::new(ServerFirst::new(started)),
            own: Own::default(),
            ejections: Bell::default(),
            clusters: Mutex::default(),
        })
    }

    /// Nanoseconds from the start of the process to `now`.
    pub fn since_start_ns(&self, now: Instant) -> u64 {
        u64::try_from(now.saturating_duration_since(self.started).as_nanos()).unwrap_or(u64::MAX)
    }

    /// The live state of a cluster.
    pub fn cluster(&self, name: &ClusterName) -> Arc<ClusterState> {
        lock(&self.clusters).entry(name.clone()).or_default().clone()
    }

    /// Forgets what `snapshot` no longer has: clusters, endpoints, ejections, buckets.
    pub fn follow(&self, snapshot: &Snapshot) {
        lock(&self.clusters).retain(|name, _| snapshot.cluster_index(name.as_str()).is_some());
        self.registry.retain_clusters(|name| snapshot.cluster_index(name).is_some());
        let mut members = snapshot.members();
        self.registry.retain_endpoints(|cluster, address| members.has(cluster, address));
        for (config, set) in snapshot.clusters() {
            if config.outlier.is_some() {
                self.cluster(&config.name).ejector.set_members(set.endpoints.iter().map(|endpoint| endpoint.address));
            }
        }
        let mut limits = HashSet::new();
        snapshot.each_rate_limit(&mut |limit| {
            limits.insert((limit.rule.clone(), limit.bucket));
        });
        self.buckets.retain(|rule, bucket| limits.contains(&(Arc::from(rule), *bucket)));
    }

    /// Brings ejected endpoints back whose time is over. Gives when to call again; `None`: not before the next snapshot, or the
    /// next of [`Shared::ejections`].
    pub fn sweep(&self, snapshot: &Snapshot, now: Instant) -> Option<Instant> {
        let now_ns = self.since_start_ns(now);
        let mut next_ns = None;
        for (config, _) in snapshot.clusters() {
            let Some(state) = lock(&self.clusters).get(&config.name).cloned() else { continue };
            if state.is_due(config.outlier.as_ref(), now_ns) {
                self.bring_back(config, &state, now_ns);
            }
            if config.outlier.is_some() && state.ejector.is_restless() {
                let due_ns = state.next_sweep_ns.load(Ordering::Relaxed);
                next_ns = Some(next_ns.map_or(due_ns, |next_ns: u64| next_ns.min(due_ns)));
            }
        }
        next_ns.map(|next_ns| self.started + Duration::from_nanos(next_ns))
    }

    fn bring_back(&self, config: &ClusterConfig, state: &ClusterState, now_ns: u64) {
        for address in state.ejector.sweep(config.outlier.as_ref(), now_ns) {
            let cell = self.registry.endpoint(&config.name.as_str().into(), address);
            cell.ejected.store(false, Ordering::Relaxed);
            cell.ejected_at_ms.store(0, Ordering::Relaxed);
            cell.ejected_until_ms.store(0, Ordering::Relaxed);
            tracing::info!(cluster = %config.name, %address, "endpoint returned from ejection");
        }
    }
}

impl ClusterState {
    /// Each interval; at once where detection was switched off.
    fn is_due(&self, outlier: Option<&OutlierDetection>, now_ns: u64) -> bool {
        let Some(knobs) = outlier else { return true };
        if now_ns < self.next_sweep_ns.load(Ordering::Relaxed) {
            return false;
        }
        let interval = u64::try_from(knobs.interval.as_nanos()).unwrap_or(u64::MAX);
        self.next_sweep_ns.store(now_ns.saturating_add(interval), Ordering::Relaxed);
        true
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    // The values behind these locks are whole between any two statements: a panic elsewhere does not break them.
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
