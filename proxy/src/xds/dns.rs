//! Endpoints of clusters that are found by name.
//!
//! **Shape.** One [`Lookups`]: what is due is looked up at once, each cluster by itself; results come one by one.
//! A failed look-up keeps the last good addresses; the first failure gives none, so that a start does not wait for it.
//!
//! **Limits.** A look-up takes at most 5 s. IPv4 addresses are preferred: IPv6 counts only where there are no others.

use std::collections::{BTreeSet, HashMap};
use std::future::Future;
use std::net::SocketAddr;
use std::pin::Pin;
use std::sync::Arc;
use std::time::Duration;

use futures_util::StreamExt as _;
use futures_util::stream::FuturesUnordered;
use tokio::time::{Instant, timeout};

use crate::config::{ClusterConfig, ClusterName, Discovery, EndpointConfig, EndpointHealth, EndpointSet, Resources};

const LOOKUP_TIMEOUT: Duration = Duration::from_secs(5);
const OVERPROVISIONING_PERCENT: u32 = 140;

type Targets = Vec<(Arc<str>, u16, u32)>;
type Lookup = Pin<Box<dyn Future<Output = (ClusterName, Result<EndpointSet, String>)>>>;

/// The look-ups of all clusters.
#[derive(Default)]
pub(super) struct Lookups {
    clusters: HashMap<ClusterName, Looked>,
    running: FuturesUnordered<Lookup>,
}

struct Looked {
    discovery: Discovery,
    endpoints: Option<Arc<EndpointSet>>,
    last_error: Option<String>,
    /// `None` while a look-up runs.
    due: Option<Instant>,
}

impl Lookups {
    /// Takes over which clusters are looked up.
    pub(super) fn follow<'a>(&mut self, clusters: impl Iterator<Item = &'a Arc<ClusterConfig>>, now: Instant) {
        let mut left: BTreeSet<ClusterName> = self.clusters.keys().cloned().collect();
        for cluster in clusters {
            if !matches!(cluster.discovery, Discovery::Dns { .. }) {
                continue;
            }
            left.remove(&cluster.name);
            let is_known = self.clusters.get(&cluster.name).is_some_and(|looked| looked.discovery == cluster.discovery);
            if !is_known {
                let looked =
                    Looked { discovery: cluster.discovery.clone(), endpoints: None, last_error: None, due: Some(now) };
                self.clusters.insert(cluster.name.clone(), looked);
            }
        }
        for name in left {
            self.clusters.remove(&name);
        }
    }

    /// Starts what is due; returns when something is due next.
    pub(super) fn start_due(&mut self, now: Instant) -> Option<Instant> {
        let mut next: Option<Instant> = None;
        for (name, looked) in &mut self.clusters {
            let Some(due) = looked.due else { continue };
            if due > now {
                next = Some(next.map_or(due, |earlier| earlier.min(due)));
                continue;
            }
            let Discovery::Dns { targets, strict, .. } = &looked.discovery else { continue };
            looked.due = None;
            self.running.push(Box::pin(look_up(name.clone(), targets.clone(), *strict)));
        }
        next
    }

    /// The next finished look-up; true when it changed something. Pending while none runs.
    ///
    /// Cancel: no result is lost.
    pub(super) async fn finished(&mut self) -> bool {
        let Some((name, result)) = self.running.next().await else { return std::future::pending().await };
        let Some(looked) = self.clusters.get_mut(&name) else { return false };
        let Discovery::Dns { refresh, .. } = looked.discovery else { return false };
        looked.due = Some(Instant::now() + refresh);
        match result {
            Ok(set) => {
                looked.last_error = None;
                let is_news = looked.endpoints.as_deref() != Some(&set);
                if is_news {
                    looked.endpoints = Some(Arc::new(set));
                }
                is_news
            }
            Err(error) => {
                if looked.last_error.as_ref() != Some(&error) {
                    tracing::warn!(cluster = name.as_str(), error, "cannot look up; the last addresses stay");
                    looked.last_error = Some(error);
                }
                let is_first = looked.endpoints.is_none();
                looked.endpoints.get_or_insert_with(|| Arc::new(set_of(Vec::new())));
                is_first
            }
        }
    }

    /// Adds what was found.
    pub(super) fn add_to(&self, resources: &mut Resources) {
        for (name, looked) in &self.clusters {
            if let Some(endpoints) = &looked.endpoints {
                resources.endpoints.insert(name.clone(), endpoints.clone());
            }
        }
    }
}

async fn look_up(name: ClusterName, targets: Targets, strict: bool) -> (ClusterName, Result<EndpointSet, String>) {
    let mut found: Vec<(SocketAddr, u32)> = Vec::new();
    for (host, port, weight) in &targets {
        let answer = match timeout(LOOKUP_TIMEOUT, tokio::net::lookup_host((&**host, *port))).await {
            Ok(Ok(addresses)) => addresses.collect::<BTreeSet<_>>(),
            Ok(Err(error)) => return (name, Err(format!("{host}: {error}"))),
            Err(_) => return (name, Err(format!("{host}: no answer within {LOOKUP_TIMEOUT:?}"))),
        };
        let has_v4 = answer.iter().any(SocketAddr::is_ipv4);
        let usable = answer.into_iter().filter(|address| address.is_ipv4() == has_v4);
        for address in usable.take(if strict { usize::MAX } else { 1 }) {
            if !found.iter().any(|(known, _)| *known == address) {
                found.push((address, *weight));
            }
        }
    }
    (name, Ok(set_of(found)))
}

fn set_of(found: Vec<(SocketAddr, u32)>) -> EndpointSet {
    let endpoints = found.into_iter().map(|(address, weight)| EndpointConfig {
        address,
        weight,
        priority: 0,
        locality: "".into(),
        health: EndpointHealth::Unknown,
    });
    EndpointSet { endpoints: endpoints.collect(), overprovisioning_percent: OVERPROVISIONING_PERCENT }
}
