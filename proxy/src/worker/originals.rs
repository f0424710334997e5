//! **Purpose.** A cluster whose endpoints are the destinations of its connections: one is made when it is first asked for.
//!
//! **Shape.** An [`Originals`] belongs to one worker's [`Cluster`]; each destination is a cluster of its own with that one
//! endpoint, so that everything else treats it like any other. Settings, limits and counters are the whole's; pools are each
//! destination's.
//!
//! **Limits.** [`DESTINATIONS_MAX`] destinations; for a further one those in no use give way, the longest unused first.
//! One without connections is forgotten when nobody has asked for it for `cleanup_interval`.
//!
//! **Errors.** [`Kind::ConnectLoop`] for a listener of ours, [`Kind::NoOriginal`] for what is no destination,
//! [`Kind::MaxConnections`] when all places are in use.
//!
//! **Source.** Envoy, `ORIGINAL_DST`. Differs: a destination keeps its idle connections until they time out.

use std::cell::{Cell, RefCell};
use std::collections::HashMap;
use std::net::SocketAddr;
use std::rc::Rc;
use std::sync::Arc;
use std::time::{Duration, Instant};

use outrigger_reactor::now;

use super::{Cluster, Worker};
use crate::fault::Kind;
use crate::stats::EndpointCell;
use crate::upstream::Reuse;

/// Most destinations of one cluster on one worker.
const DESTINATIONS_MAX: usize = 1024;

/// What is known of the destinations of a cluster.
#[derive(Debug, Default)]
pub(super) struct Originals {
    members: RefCell<HashMap<SocketAddr, Member>>,
    /// Of all of them: an address that a client chose is no label for a metric.
    cell: Arc<EndpointCell>,
}

#[derive(Debug)]
struct Member {
    cluster: Rc<Cluster>,
    used_at: Cell<Instant>,
}

impl Member {
    /// Somebody has it in hand.
    fn is_in_use(&self) -> bool {
        Rc::strong_count(&self.cluster) > 1
    }
}

impl Cluster {
    /// The part of it that is `destination`.
    pub fn toward(&self, destination: SocketAddr, worker: &Worker) -> Result<Rc<Self>, Kind> {
        let Some(originals) = self.originals() else { return Err(Kind::Internal) };
        if destination.port() == 0 || destination.ip().is_unspecified() {
            return Err(Kind::NoOriginal);
        }
        if let Some(listener) = worker.shared.own.listener_at(destination) {
            tracing::debug!(cluster = %self.name(), %destination, %listener, "a connection to this proxy itself is refused");
            return Err(Kind::ConnectLoop);
        }
        let now = now();
        if let Some(member) = originals.members.borrow().get(&destination) {
            member.used_at.set(now);
            return Ok(member.cluster.clone());
        }
        if originals.members.borrow().len() >= DESTINATIONS_MAX && !originals.make_room() {
            return Err(Kind::MaxConnections);
        }
        let cluster = Rc::new(self.with_endpoint(destination, originals));
        let member = Member { cluster: cluster.clone(), used_at: Cell::new(now) };
        originals.members.borrow_mut().insert(destination, member);
        Ok(cluster)
    }
}

impl Originals {
    /// What all destinations are counted in.
    pub(super) fn cell(&self) -> &Arc<EndpointCell> {
        &self.cell
    }

    /// Closes an idle connection to any of them.
    pub(super) fn close_one(&self) -> bool {
        // Taken out first: a close may wake who looks in here.
        let found: Vec<Rc<Cluster>> = {
            let members = self.members.borrow();
            let has_idle = |member: &&Member| member.cluster.idle_connections() > 0;
            members.values().find(has_idle).map(|member| member.cluster.clone()).into_iter().collect()
        };
        found.iter().any(|cluster| cluster.close_own())
    }

    /// Forgets the quarter of those in no use that were asked for longest ago; false when there are none.
    fn make_room(&self) -> bool {
        let mut unused: Vec<(Instant, SocketAddr)> = {
            let members = self.members.borrow();
            let unused = members.iter().filter(|(_, member)| !member.is_in_use());
            unused.map(|(address, member)| (member.used_at.get(), *address)).collect()
        };
        unused.sort_unstable();
        let count = unused.len().div_ceil(4);
        let gone: Vec<Member> = {
            let mut members = self.members.borrow_mut();
            unused.iter().take(count).filter_map(|(_, address)| members.remove(address)).collect()
        };
        gone.iter().for_each(|member| member.cluster.retire());
        count > 0
    }

    /// Closes connections that were idle for too long, and forgets destinations. To be called about once a second.
    pub(super) fn sweep(&self, now: Instant, (reuse, unused_for): (Reuse, Duration)) {
        let all: Vec<(SocketAddr, Rc<Cluster>)> = {
            let members = self.members.borrow();
            members.iter().map(|(address, member)| (*address, member.cluster.clone())).collect()
        };
        for (address, cluster) in all {
            cluster.sweep_own(now, reuse);
            let is_idle = cluster.idle_connections() == 0;
            drop(cluster);
            let mut members = self.members.borrow_mut();
            let is_old = |member: &Member| now.saturating_duration_since(member.used_at.get()) >= unused_for;
            if is_idle && members.get(&address).is_some_and(|member| !member.is_in_use() && is_old(member)) {
                members.remove(&address);
            }
        }
    }

    /// Destinations known.
    #[cfg(test)]
    pub(super) fn len(&self) -> usize {
        self.members.borrow().len()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::{
        CircuitLimits, ClusterConfig, Discovery, Http2Config, LoadBalancing, OriginalCluster, Publisher, Resources,
        Snapshot, UpstreamProtocol,
    };
    use crate::drain::Load;
    use crate::stats::Registry;
    use crate::worker::Shared;
    use outrigger_reactor::{DriverKind, Options, Runtime};

    const UNUSED_FOR: Duration = Duration::from_secs(5);

    fn config() -> ClusterConfig {
        ClusterConfig {
            name: "pass".into(),
            discovery: Discovery::Original(OriginalCluster { header: None, port: None, cleanup_interval: UNUSED_FOR }),
            connect_timeout: Duration::from_secs(1),
            balancing: LoadBalancing::RoundRobin,
            limits: CircuitLimits {
                max_connections: 1024,
                max_pending_requests: 1024,
                max_requests: 1024,
                max_retries: 3,
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
        }
    }

    fn with_cluster(act: impl FnOnce(&Rc<Worker>, &Rc<Cluster>)) {
        let mut runtime = Runtime::new(DriverKind::Epoll, &Options::default()).unwrap();
        runtime.block_on(async {
            let mut resources = Resources::default();
            resources.clusters.insert("pass".into(), Arc::new(config()));
            let publisher = Publisher::new();
            let (snapshot, dangling) = Snapshot::link(1, &resources);
            assert!(dangling.is_empty(), "it waits for no endpoints");
            publisher.publish(Arc::new(snapshot));
            let shared = Shared::new(Arc::<Registry>::default(), Instant::now());
            let worker = Worker::new(shared, publisher.reader(), 1, Arc::<Load>::default());
            let view = worker.view();
            let index = publisher.current().cluster_index("pass").unwrap();
            let cluster = view.cluster_at(index, &worker).unwrap();
            act(&worker, &cluster);
        });
    }

    fn destination(at: usize) -> SocketAddr {
        let [.., high, low] = at.to_be_bytes();
        SocketAddr::from(([192, 0, high, low], 80))
    }

    #[test]
    fn a_destination_is_one_endpoint_and_is_forgotten_when_unused() {
        with_cluster(|worker, cluster| {
            let originals = cluster.originals().unwrap();
            let one = cluster.toward(destination(1), worker).unwrap();
            assert!(Rc::ptr_eq(&one, &cluster.toward(destination(1), worker).unwrap()));
            let pick = one.pick(&[], &worker.chance).unwrap();
            assert_eq!((pick.index, one.set.endpoints[0].address), (0, destination(1)));
            cluster.toward(destination(2), worker).unwrap();
            let reuse = Reuse { idle_timeout: None, max_requests: None };
            originals.sweep(now(), (reuse, UNUSED_FOR));
            assert_eq!(originals.len(), 2, "not yet");
            originals.sweep(now() + UNUSED_FOR, (reuse, UNUSED_FOR));
            assert_eq!(originals.len(), 1, "what is in use stays");
            drop(one);
            originals.sweep(now() + UNUSED_FOR, (reuse, UNUSED_FOR));
            assert_eq!(originals.len(), 0);
        });
    }

    #[test]
    fn destinations_are_bounded() {
        with_cluster(|worker, cluster| {
            let originals = cluster.originals().unwrap();
            for at in 0..DESTINATIONS_MAX {
                cluster.toward(destination(at), worker).unwrap();
            }
            assert_eq!(originals.len(), DESTINATIONS_MAX);
            let held: Vec<_> = (0..10).map(|at| cluster.toward(destination(at), worker).unwrap()).collect();
            cluster.toward(destination(DESTINATIONS_MAX), worker).unwrap();
            assert!(originals.len() < DESTINATIONS_MAX, "those in no use give way");
            for (at, held) in held.iter().enumerate() {
                assert!(Rc::ptr_eq(held, &cluster.toward(destination(at), worker).unwrap()), "those in use stay");
            }
            let all: Vec<_> =
                (0..DESTINATIONS_MAX).filter_map(|at| cluster.toward(destination(at), worker).ok()).collect();
            let more = (DESTINATIONS_MAX..).map(|at| cluster.toward(destination(at), worker));
            let mut more: Vec<_> = more.take(DESTINATIONS_MAX + 1 - all.len()).collect();
            assert_eq!(more.pop().unwrap().unwrap_err(), Kind::MaxConnections, "all are in use");
        });
    }

    #[test]
    fn what_is_no_destination_and_what_is_our_own_is_refused() {
        with_cluster(|worker, cluster| {
            for none in ["0.0.0.0:80", "[::]:80", "192.0.2.1:0"] {
                assert_eq!(cluster.toward(none.parse().unwrap(), worker).unwrap_err(), Kind::NoOriginal, "{none}");
            }
            worker.shared.own.set_listeners(vec![("out".into(), "0.0.0.0:15001".parse().unwrap())]);
            let own = "127.0.0.9:15001".parse().unwrap();
            assert_eq!(cluster.toward(own, worker).unwrap_err(), Kind::ConnectLoop);
            assert!(cluster.toward("192.0.2.1:15001".parse().unwrap(), worker).is_ok());
        });
    }
}
