//! From an accepted connection to one that is relayed, or closed.
//!
//! **Cancel.** Dropping the future closes both connections; no byte was passed on.

use std::net::SocketAddr;
use std::rc::Rc;
use std::sync::Arc;
use std::time::Duration;

use outrigger_reactor::{TcpStream, sleep};

use super::clock::Clock;
use super::relay::Relay;
use crate::balance::{Draw, hash_of};
use crate::chance::Chance;
use crate::config::{AccessFilter, ClusterShare, ListenerName, TcpConnectionConfig};
use crate::drain::Watch;
use crate::fault::{Fault, Kind, Side};
use crate::policy::Verdict;
use crate::route::{self, Caller};
use crate::stats::ListenerCell;
use crate::upstream::{Connection, Ends};
use crate::worker::{Cluster, FirstWord, InFlight, View, Worker};

/// Pause before endpoints that all failed are tried again.
const PAUSE: Duration = Duration::from_millis(25);

/// An opaque connection that a client made to us.
#[derive(Debug)]
pub struct Downstream {
    worker: Rc<Worker>,
    stream: TcpStream,
    source: SocketAddr,
    destination: Option<SocketAddr>,
    open: Open,
}

/// What is known of a connection by the time that it comes here.
#[derive(Debug)]
pub struct Origin {
    /// Where it comes from.
    pub source: SocketAddr,
    /// Where it was made to; `None`: where it was accepted.
    pub destination: Option<SocketAddr>,
    /// Its client said nothing: who does first is to be told.
    pub first_word: Option<FirstWord>,
}

/// Counted while it lives, and waited for by a drain.
#[derive(Debug)]
pub(super) struct Open {
    pub(super) listener: ListenerName,
    pub(super) cell: Arc<ListenerCell>,
    /// Until somebody has spoken, where it matters who does first.
    pub(super) first_word: Option<FirstWord>,
    _watch: Watch,
}

impl Drop for Open {
    fn drop(&mut self) {
        self.cell.connections.add(-1);
    }
}

/// What an endpoint gave.
#[derive(Debug)]
pub(super) struct Connected {
    pub(super) connection: Connection,
    _in_flight: Option<InFlight>,
}

impl Downstream {
    /// A connection just accepted.
    pub fn new(worker: Rc<Worker>, listener: ListenerName, stream: TcpStream, origin: Origin) -> Self {
        let cell = worker.listener_cell(&listener);
        cell.connections.add(1);
        let Origin { source, destination, first_word } = origin;
        let open = Open { listener, cell, first_word, _watch: worker.drain.watch() };
        Self { worker, stream, source, destination, open }
    }

    /// Where it comes from and was made to.
    fn ends(&self) -> Ends {
        Ends { source: self.source, destination: self.destination.unwrap_or_else(|| self.stream.local_addr()) }
    }

    /// Serves it under `settings` of `view` until both its ends have finished.
    pub fn serve(self, view: Rc<View>, settings: Arc<TcpConnectionConfig>) -> impl Future<Output = ()> + use<> {
        // What connecting takes, the snapshot before all, is given back before the bytes flow: hence the box.
        let connecting = Box::pin(self.connect(view, settings));
        async move {
            let relay = connecting.await;
            if let Some(relay) = relay {
                relay.await;
            }
        }
    }

    async fn connect(self, view: Rc<View>, settings: Arc<TcpConnectionConfig>) -> Option<Relay> {
        match self.try_connect(&view, &settings).await {
            Ok(connected) => {
                let clock = Clock::new(settings.idle_timeout, settings.max_connection_duration);
                Some(Relay::new(self.stream, connected, self.open, clock))
            }
            Err(fault) => {
                self.open.cell.faults.add_one(fault.kind);
                let (peer, fault) = (self.source, fault.header(view.epoch()));
                tracing::debug!(listener = %self.open.listener, %peer, %fault, "opaque connection closed");
                // A client that has sent something gets a reset: the kernel sees that it was not read.
                None
            }
        }
    }

    async fn try_connect(&self, view: &Rc<View>, settings: &TcpConnectionConfig) -> Result<Connected, Fault> {
        self.authorize(&settings.access)?;
        let worker = &*self.worker;
        let share = choose(&settings.clusters, &worker.chance);
        let name = share.map(|share| Arc::from(share.cluster.as_str())).unwrap_or_default();
        let cluster = share.and_then(|share| share.index).and_then(|index| view.cluster_at(index, worker));
        let cluster = cluster.ok_or_else(|| Fault::new(Kind::NoCluster).with_cluster(name))?;
        let cluster = self.toward(cluster, view)?;
        self.admit(&cluster)?;
        let hash = settings.hashes_source.then(|| hash_of(self.source.ip().to_canonical().to_string().as_bytes()));
        let mut tried = Vec::new();
        let mut failed = Kind::NoEndpoint;
        for attempt in 1..=settings.max_connect_attempts {
            if attempt > 1 {
                cluster.cell.retries.add_one();
            }
            failed = match self.try_once(&cluster, &mut tried, hash).await {
                Ok(connected) => return Ok(connected),
                Err(kind) => kind,
            };
            if failed.side() != Side::Upstream {
                break;
            }
        }
        Err(Fault::new(failed).with_cluster(cluster.name().clone()))
    }

    /// What is asked of a connection never changes, so it is asked as it is accepted, whatever `enforcement_type` says.
    fn authorize(&self, filters: &[AccessFilter]) -> Result<(), Fault> {
        if filters.is_empty() {
            return Ok(());
        }
        let Ends { source, destination } = self.ends();
        let (direct, source) = (self.stream.peer_addr().ip(), source.ip());
        let caller = Caller { direct, source, remote: source, destination };
        route::authorize(filters.iter().map(|filter| &filter.rules), &caller, None, &self.open.cell.access)
    }

    /// The cluster itself, or, where its endpoints are original destinations, what it has for this connection's.
    fn toward(&self, cluster: Rc<Cluster>, view: &View) -> Result<Rc<Cluster>, Fault> {
        let Some(original) = cluster.original() else { return Ok(cluster) };
        let is_known = view.listener(&self.open.listener).is_some_and(|chain| chain.config().knows_destinations());
        let mut destination = self.ends().destination;
        destination.set_port(original.port.unwrap_or(destination.port()));
        let part = if is_known { cluster.toward(destination, &self.worker) } else { Err(Kind::NoOriginal) };
        part.map_err(|kind| {
            cluster.cell.faults.add_one(kind);
            Fault::new(kind).with_cluster(cluster.name().clone())
        })
    }

    /// One connect to one endpoint, which is told to outlier detection.
    async fn try_once(
        &self,
        cluster: &Rc<Cluster>,
        tried: &mut Vec<usize>,
        hash: Option<u64>,
    ) -> Result<Connected, Kind> {
        let worker = &*self.worker;
        let pick = cluster.pick(tried, Draw { chance: &worker.chance, hash }).ok_or(Kind::NoEndpoint)?;
        if tried.contains(&pick.index) {
            // All have failed just now: without a pause many attempts would be a storm.
            tried.clear();
            sleep(PAUSE).await;
        }
        tried.push(pick.index);
        cluster.cell.requests.add_one();
        let in_flight = cluster.in_flight(pick.index);
        match cluster.open_unpooled(pick.index, || self.ends()).await {
            Ok(connection) => {
                cluster.connected(pick.index, worker);
                Ok(Connected { connection, _in_flight: in_flight })
            }
            Err(fault) => {
                cluster.failed(pick.index, fault.kind(), worker);
                Err(fault.kind())
            }
        }
    }

    fn admit(&self, cluster: &Cluster) -> Result<(), Fault> {
        let (Some(limit), Some(bucket)) = (&cluster.config.rate_limit, cluster.bucket()) else { return Ok(()) };
        match self.worker.admit(limit, bucket) {
            Verdict::Admitted | Verdict::WouldLimit => Ok(()),
            Verdict::Limited => {
                let fault = Fault::new(Kind::ClusterLimited).with_rule(limit.rule.clone());
                Err(fault.with_cluster(cluster.name().clone()))
            }
        }
    }
}

/// Draws a share by weight.
fn choose<'a>(shares: &'a [ClusterShare], chance: &Chance) -> Option<&'a ClusterShare> {
    if let [only] = shares {
        return Some(only);
    }
    let total = shares.iter().map(|share| u64::from(share.weight)).sum();
    let mut left = chance.below(total);
    shares.iter().find(|share| {
        let weight = u64::from(share.weight);
        let is_drawn = left < weight;
        left = left.saturating_sub(weight);
        is_drawn
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn shares_are_drawn_by_weight() {
        let share = |name: &str, weight| ClusterShare { cluster: name.into(), index: None, weight };
        let shares = [share("a", 1), share("b", u32::MAX), share("c", u32::MAX)];
        let chance = Chance::from_seed(1);
        let mut drawn = [0; 3];
        for _ in 0..10_000 {
            let name = choose(&shares, &chance).unwrap().cluster.as_str();
            drawn[usize::from(name.as_bytes()[0] - b'a')] += 1;
        }
        assert!(drawn[0] <= 1 && (4_500..=5_500).contains(&drawn[1]), "{drawn:?}");
        assert_eq!(choose(&shares[..1], &chance).unwrap().cluster.as_str(), "a");
        assert!(choose(&[], &chance).is_none());
    }
}
