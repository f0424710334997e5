//! **Purpose.** Decide when what was accepted becomes what runs: in one swap, and only as a closed graph.
//!
//! **Shape.** [`Warm::step`] is pure: the wanted resources and the time in, a snapshot or a time to come back out.
//! ```text
//!   accepted ──► closed? ──yes──► differs from what runs? ──yes──► publish, epoch + 1
//!                  │ no
//!                  ├─ a cluster went that routes or listeners still name ──► it lingers for a while
//!                  ├─ names something not there yet ──► wait for it, up to a deadline; meanwhile new endpoints of
//!                  │                                     what runs are published
//!                  └─ deadline passed ──► publish without it, remember that it is missing
//! ```
//! What is known to be missing holds nothing up until it has been there again.
//!
//! **Limits.** Waits end after `initial_fetch_timeout` (0: never); for a cluster that is named and that the server's last
//! word on clusters does not list, after 250 ms; one that went lingers for 2 s.

use std::collections::{HashMap, HashSet};
use std::hash::Hash;
use std::sync::Arc;
use std::time::Duration;

use tokio::time::Instant;

use crate::config::{ClusterName, Dangling, Resources, Snapshot};

const UNLISTED_CLUSTER_WAIT: Duration = Duration::from_millis(250);
const LINGER: Duration = Duration::from_secs(2);

/// Decides when to publish.
#[derive(Debug)]
pub(super) struct Warm {
    /// Zero: waits do not end.
    initial_fetch_timeout: Duration,
    started: Instant,
    held_since: Option<Instant>,
    missing_since: HashMap<Dangling, Instant>,
    known_missing: HashSet<Dangling>,
    lingering_since: HashMap<ClusterName, Instant>,
    running: Resources,
    epoch: u64,
}

/// What the server has said so far.
#[derive(Clone, Copy, Debug)]
pub(super) struct Answered {
    /// Clusters were told, or nobody asks for them.
    pub(super) clusters: bool,
    /// Listeners were told, or nobody asks for them.
    pub(super) listeners: bool,
}

/// What to do now.
#[derive(Debug, Default)]
pub(super) struct Step {
    /// To publish.
    pub(super) publish: Option<Arc<Snapshot>>,
    /// Everything accepted runs, and no listener or cluster of it lacks a part.
    pub(super) is_warm: bool,
    /// When to ask again.
    pub(super) wake: Option<Instant>,
    /// What is waited for.
    pub(super) waiting: Vec<String>,
    /// What is no longer waited for, from this step on.
    pub(super) gave_up: Vec<String>,
    /// All that is missing and not waited for.
    pub(super) missing: Vec<String>,
}

impl Warm {
    pub(super) fn new(initial_fetch_timeout: Duration, now: Instant) -> Self {
        Self {
            initial_fetch_timeout,
            started: now,
            held_since: None,
            missing_since: HashMap::new(),
            known_missing: HashSet::new(),
            lingering_since: HashMap::new(),
            running: Resources::default(),
            epoch: 0,
        }
    }

    pub(super) fn step(&mut self, accepted: &Resources, answered: Answered, now: Instant) -> Step {
        let mut step = Step::default();
        let mut wanted = accepted.clone();
        let (_, dangling) = Snapshot::link(0, &wanted);
        let dangling = self.linger(&mut wanted, dangling, now, &mut step);
        self.missing_since.retain(|known, _| dangling.contains(known));
        self.known_missing.retain(|known| dangling.contains(known));
        self.wait_for_first_answers(answered, now, &mut step);
        self.wait_for_missing(&dangling, answered, now, &mut step);
        step.missing = self.known_missing.iter().map(described).collect();
        step.missing.sort_unstable();
        if !step.waiting.is_empty() {
            self.held_since.get_or_insert(now);
            self.publish_endpoints(&wanted, &mut step);
            return step;
        }
        self.held_since = None;
        let has_gap = |d: &Dangling| matches!(d, Dangling::RouteTable { .. } | Dangling::Endpoints { .. });
        step.is_warm = answered.clusters && answered.listeners && !dangling.iter().any(has_gap);
        if self.epoch == 0 || !is_same(&self.running, &wanted) {
            self.publish(wanted, &mut step);
        }
        step
    }

    /// Puts back clusters that went while routes still name them; returns what dangles all the same.
    fn linger(
        &mut self,
        wanted: &mut Resources,
        dangling: Vec<Dangling>,
        now: Instant,
        step: &mut Step,
    ) -> Vec<Dangling> {
        let mut lingering = HashMap::new();
        let mut left = Vec::with_capacity(dangling.len());
        for one in dangling {
            let (Dangling::Cluster { cluster, .. } | Dangling::ListenerCluster { cluster, .. }) = &one else {
                left.push(one);
                continue;
            };
            let Some(old) = self.running.clusters.get(cluster) else {
                left.push(one);
                continue;
            };
            let since = *self.lingering_since.get(cluster).unwrap_or(&now);
            lingering.insert(cluster.clone(), since);
            if now < since + LINGER {
                step.wake_at(since + LINGER);
                wanted.clusters.insert(cluster.clone(), old.clone());
                if let Some(endpoints) = self.running.endpoints.get(cluster) {
                    wanted.endpoints.insert(cluster.clone(), endpoints.clone());
                }
            } else {
                if self.known_missing.insert(one.clone()) {
                    step.gave_up.push(described(&one));
                }
                left.push(one);
            }
        }
        self.lingering_since = lingering;
        left
    }

    fn wait_for_first_answers(&self, answered: Answered, now: Instant, step: &mut Step) {
        if self.epoch > 0 {
            return;
        }
        for (is_told, what) in [(answered.clusters, "clusters"), (answered.listeners, "listeners")] {
            if is_told {
                continue;
            }
            match self.deadline(self.started) {
                Some(deadline) if now >= deadline => step.gave_up.push(format!("the server's first {what}")),
                deadline => {
                    deadline.into_iter().for_each(|at| step.wake_at(at));
                    step.waiting.push(format!("the server's first {what}"));
                }
            }
        }
    }

    fn wait_for_missing(&mut self, dangling: &[Dangling], answered: Answered, now: Instant, step: &mut Step) {
        // However many things come and go meanwhile, nothing is held up longer than one timeout.
        let overdue = self.held_since.and_then(|since| self.deadline(since)).is_some_and(|at| now >= at);
        for one in dangling {
            if self.known_missing.contains(one) {
                continue;
            }
            let since = *self.missing_since.entry(one.clone()).or_insert(now);
            let deadline = match one {
                Dangling::Cluster { .. } | Dangling::ListenerCluster { .. } if answered.clusters => {
                    Some(since + UNLISTED_CLUSTER_WAIT)
                }
                Dangling::Cluster { .. }
                | Dangling::Endpoints { .. }
                | Dangling::ListenerCluster { .. }
                | Dangling::RouteTable { .. } => self.deadline(since),
            };
            if overdue || deadline.is_some_and(|at| now >= at) {
                self.known_missing.insert(one.clone());
                step.gave_up.push(described(one));
            } else {
                deadline.into_iter().for_each(|at| step.wake_at(at));
                step.waiting.push(described(one));
            }
        }
        if let Some(at) = self.held_since.and_then(|since| self.deadline(since)).filter(|at| *at > now) {
            step.wake_at(at);
        }
    }

    /// While an update is held up, endpoints of what runs go on changing: they are no part of the graph.
    fn publish_endpoints(&mut self, wanted: &Resources, step: &mut Step) {
        if self.epoch == 0 {
            return;
        }
        let mut next = self.running.clone();
        for (name, endpoints) in &wanted.endpoints {
            let (Some(old), Some(new)) = (self.running.clusters.get(name), wanted.clusters.get(name)) else { continue };
            if old.discovery == new.discovery {
                next.endpoints.insert(name.clone(), endpoints.clone());
            }
        }
        if !is_same(&self.running, &next) {
            self.publish(next, step);
        }
    }

    fn publish(&mut self, wanted: Resources, step: &mut Step) {
        self.epoch += 1;
        let (snapshot, _) = Snapshot::link(self.epoch, &wanted);
        self.running = wanted;
        step.publish = Some(Arc::new(snapshot));
    }

    fn deadline(&self, since: Instant) -> Option<Instant> {
        (!self.initial_fetch_timeout.is_zero()).then(|| since.checked_add(self.initial_fetch_timeout)).flatten()
    }
}

impl Step {
    fn wake_at(&mut self, at: Instant) {
        self.wake = Some(self.wake.map_or(at, |earlier| earlier.min(at)));
    }
}

fn described(dangling: &Dangling) -> String {
    match dangling {
        Dangling::Cluster { route_table, cluster } => format!("cluster {cluster:?} of route table {route_table:?}"),
        Dangling::Endpoints { cluster } => format!("endpoints of cluster {cluster:?}"),
        Dangling::ListenerCluster { listener, cluster } => format!("cluster {cluster:?} of listener {listener:?}"),
        Dangling::RouteTable { listener, route_table } => {
            format!("route table {route_table:?} of listener {listener:?}")
        }
    }
}

fn is_same(a: &Resources, b: &Resources) -> bool {
    same_map(&a.clusters, &b.clusters)
        && same_map(&a.endpoints, &b.endpoints)
        && same_map(&a.listeners, &b.listeners)
        && same_map(&a.route_tables, &b.route_tables)
}

fn same_map<K: Eq + Hash, V: PartialEq>(a: &HashMap<K, Arc<V>>, b: &HashMap<K, Arc<V>>) -> bool {
    a.len() == b.len()
        && a.iter().all(|(key, value)| b.get(key).is_some_and(|other| Arc::ptr_eq(value, other) || value == other))
}
