//! The last published snapshots and what each changed.
//!
//! **Shape.** Whoever publishes calls [`EpochLog::record`] with the snapshot before and the one after.
//!
//! **Limits.** 16 epochs; 64 names a list, the rest is counted.

use std::collections::{BTreeMap, VecDeque};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{SystemTime, UNIX_EPOCH};

use serde::Serialize;
use serde_json::Value;

use super::describe;
use crate::config::Snapshot;

/// Epochs kept.
const KEPT: usize = 16;
/// Names kept a list.
const MAX_NAMES: usize = 64;

/// What was published and when.
#[derive(Debug, Default)]
pub struct EpochLog {
    epochs: Mutex<VecDeque<EpochChange>>,
}

/// One epoch and its difference from the one before.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct EpochChange {
    /// Its number.
    pub epoch: u64,
    /// Milliseconds since the Unix epoch.
    pub published_unix_ms: u64,
    /// Listeners that came, changed or went.
    pub listeners: Difference,
    /// Named route tables.
    pub route_tables: Difference,
    /// Clusters, without their endpoints.
    pub clusters: Difference,
    /// Clusters whose endpoints changed.
    pub endpoints: Difference,
}

/// Names that came, changed and went.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
pub struct Difference {
    /// Only in the later one.
    pub added: Vec<String>,
    /// In both, not equal.
    pub changed: Vec<String>,
    /// Only in the earlier one.
    pub removed: Vec<String>,
    /// Names left out of the three lists.
    pub unlisted: usize,
}

impl EpochLog {
    /// Notes that `next` has replaced `previous`.
    pub fn record(&self, previous: &Snapshot, next: &Snapshot, at: SystemTime) {
        let since = at.duration_since(UNIX_EPOCH).unwrap_or_default();
        let change = EpochChange {
            epoch: next.epoch,
            published_unix_ms: u64::try_from(since.as_millis()).unwrap_or(u64::MAX),
            listeners: Difference::between(&listeners(previous), &listeners(next)),
            route_tables: Difference::between(&route_tables(previous), &route_tables(next)),
            clusters: Difference::between(&clusters(previous), &clusters(next)),
            endpoints: Difference::between(&endpoints(previous), &endpoints(next)),
        };
        let mut epochs = self.lock();
        epochs.push_front(change);
        epochs.truncate(KEPT);
    }

    /// What is remembered, newest first.
    pub fn recent(&self) -> Vec<EpochChange> {
        self.lock().iter().cloned().collect()
    }

    /// When `epoch` was published, if it is remembered.
    pub fn published_unix_ms(&self, epoch: u64) -> Option<u64> {
        self.lock().iter().find(|change| change.epoch == epoch).map(|change| change.published_unix_ms)
    }

    fn lock(&self) -> MutexGuard<'_, VecDeque<EpochChange>> {
        self.epochs.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Difference {
    fn between<T: Same>(before: &BTreeMap<&str, T>, after: &BTreeMap<&str, T>) -> Self {
        let mut difference = Self::default();
        for (name, value) in after {
            match before.get(name) {
                None => keep_name(&mut difference.added, &mut difference.unlisted, name),
                Some(old) if !old.same(value) => {
                    keep_name(&mut difference.changed, &mut difference.unlisted, name);
                }
                Some(_) => {}
            }
        }
        for name in before.keys().filter(|name| !after.contains_key(*name)) {
            keep_name(&mut difference.removed, &mut difference.unlisted, name);
        }
        difference
    }
}

fn keep_name(names: &mut Vec<String>, unlisted: &mut usize, name: &str) {
    if names.len() < MAX_NAMES {
        names.push(name.to_owned());
    } else {
        *unlisted += 1;
    }
}

/// Equality as a reader of the configuration sees it. Linking gives clusters new places when others come or go, which
/// makes values differ that say the same; so what differs is compared again as it is told.
trait Same {
    fn same(&self, other: &Self) -> bool;
}

struct Told<'a, T>(&'a T, fn(&T) -> Value);

impl<T: PartialEq> Same for Told<'_, T> {
    fn same(&self, other: &Self) -> bool {
        std::ptr::eq(self.0, other.0) || self.0 == other.0 || self.1(self.0) == other.1(other.0)
    }
}

fn listeners(snapshot: &Snapshot) -> BTreeMap<&str, Told<'_, crate::config::ListenerConfig>> {
    let told = |value| Told(value, describe::listener);
    snapshot.listeners().iter().map(|listener| (listener.name.as_str(), told(&**listener))).collect()
}

fn route_tables(snapshot: &Snapshot) -> BTreeMap<&str, Told<'_, crate::config::RouteTable>> {
    let told = |value| Told(value, describe::route_table);
    snapshot.route_tables().map(|table| (table.name.as_str(), told(&**table))).collect()
}

fn clusters(snapshot: &Snapshot) -> BTreeMap<&str, Told<'_, crate::config::ClusterConfig>> {
    let told = |value| Told(value, describe::cluster);
    snapshot.clusters().iter().map(|(cluster, _)| (cluster.name.as_str(), told(&**cluster))).collect()
}

fn endpoints(snapshot: &Snapshot) -> BTreeMap<&str, Told<'_, crate::config::EndpointSet>> {
    let told = |value| Told(value, describe::endpoint_set);
    snapshot.clusters().iter().map(|(cluster, set)| (cluster.name.as_str(), told(&**set))).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::Arc;

    use crate::config::{
        CircuitLimits, ClusterConfig, ClusterTarget, Discovery, EndpointSet, ForwardAction, HeaderEdits, Http2Config,
        LoadBalancing, PathMatch, Resources, Route, RouteAction, RouteMatch, RouteTable, UpstreamProtocol, VirtualHost,
    };
    use std::time::Duration;

    fn cluster(name: &str) -> Arc<ClusterConfig> {
        Arc::new(ClusterConfig {
            name: name.into(),
            discovery: Discovery::Static(Arc::new(EndpointSet::default())),
            connect_timeout: Duration::from_secs(5),
            balancing: LoadBalancing::RoundRobin,
            limits: CircuitLimits {
                max_connections: 1,
                max_pending_requests: 1,
                max_requests: 1,
                max_retries: 1,
                retry_budget: None,
            },
            outlier: None,
            panic_threshold_percent: 50,
            idle_timeout: None,
            max_requests_per_connection: None,
            protocol: UpstreamProtocol::Http1,
            http2: Http2Config::default(),
            proxy_header: None,
            rate_limit: None,
        })
    }

    fn table(target: &str) -> Arc<RouteTable> {
        let route = Route {
            access: Vec::new(),
            name: "r".into(),
            matches: RouteMatch {
                path: PathMatch::Prefix("/".into()),
                case_sensitive: true,
                headers: Vec::new(),
                query: Vec::new(),
                fraction_ppm: 1_000_000,
            },
            action: RouteAction::Forward(ForwardAction {
                target: ClusterTarget::One(target.into(), None),
                cluster_not_found_status: 503,
                timeout: None,
                idle_timeout: None,
                retry: None,
                path_rewrite: None,
                host_rewrite: None,
                max_stream_duration: None,
                grpc_timeout_max: None,
                upgrades: Vec::new(),
                hash: Vec::new(),
            }),
            rate_limit: None,
            request_edits: HeaderEdits::default(),
            response_edits: HeaderEdits::default(),
        };
        Arc::new(RouteTable {
            name: "t".into(),
            virtual_hosts: vec![VirtualHost {
                name: "h".into(),
                domains: vec!["*".into()],
                routes: vec![Arc::new(route)],
                request_edits: HeaderEdits::default(),
                response_edits: HeaderEdits::default(),
                rate_limit: None,
            }],
            request_edits: HeaderEdits::default(),
            response_edits: HeaderEdits::default(),
            ignore_port_in_host: false,
        })
    }

    fn linked(epoch: u64, clusters: &[&str], target: &str) -> Snapshot {
        let mut resources = Resources::default();
        for name in clusters {
            resources.clusters.insert((*name).into(), cluster(name));
        }
        resources.route_tables.insert("t".into(), table(target));
        Snapshot::link(epoch, &resources).0
    }

    #[test]
    fn a_new_place_of_a_cluster_is_no_change_of_a_table() {
        let log = EpochLog::default();
        let steps = [
            linked(1, &["m"], "m"),
            // "a" sorts first: "m" gets another index.
            linked(2, &["a", "m"], "m"),
            linked(3, &["a", "m"], "a"),
            linked(4, &["a"], "m"),
        ];
        for pair in steps.windows(2) {
            log.record(&pair[0], &pair[1], UNIX_EPOCH + Duration::from_millis(pair[1].epoch));
        }
        let [fourth, third, second] = &log.recent()[..] else { panic!("three changes") };
        assert_eq!((&second.clusters.added[..], &second.route_tables), (&["a".to_owned()][..], &Difference::default()));
        assert_eq!((&third.route_tables.changed[..], &third.clusters), (&["t".to_owned()][..], &Difference::default()));
        assert_eq!(fourth.clusters.removed, ["m"]);
        assert_eq!(fourth.route_tables.changed, ["t"], "its cluster is not there any more");
        assert_eq!(log.published_unix_ms(3), Some(3));
        assert_eq!(log.published_unix_ms(9), None);
    }

    #[test]
    fn names_beyond_the_bound_are_counted_and_old_epochs_forgotten() {
        let log = EpochLog::default();
        let names: Vec<String> = (0..70).map(|at| format!("c{at:02}")).collect();
        let names: Vec<&str> = names.iter().map(String::as_str).collect();
        for epoch in 1..=20 {
            log.record(&Snapshot::empty(), &linked(epoch, &names, "c00"), UNIX_EPOCH);
        }
        let recent = log.recent();
        assert_eq!((recent.len(), recent[0].epoch, recent[15].epoch), (KEPT, 20, 5));
        assert_eq!((recent[0].clusters.added.len(), recent[0].clusters.unlisted), (MAX_NAMES, 6));
    }
}
