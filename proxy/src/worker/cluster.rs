//! One cluster on one worker: picking, connecting, judging.

use std::cell::RefCell;
use std::net::SocketAddr;
use std::rc::{Rc, Weak};
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use outrigger_reactor::{Buf, nest, now};

use super::originals::Originals;
use super::{ClusterState, Worker};
use crate::balance::{Balancer, Draw, Ejected, Live, Pick, Record, Ruling, Seen};
use crate::chance::Chance;
use crate::config::{ClusterConfig, Discovery, EndpointConfig, EndpointHealth, EndpointSet, OriginalCluster};
use crate::fault::Kind;
use crate::grpc::GrpcCode;
use crate::policy::TokenBucket;
use crate::stats::{Call, ClusterCell, EndpointCell, MethodTable};
use crate::upstream::{
    ConnectFault, Connection, Endpoint, Ends, Lease, Reuse, Slots, connect, connect_multiplexed, proxy_header,
};

/// A cluster as one worker runs it.
#[derive(Debug)]
pub struct Cluster {
    /// Its settings.
    pub config: Arc<ClusterConfig>,
    /// This worker's counters.
    pub cell: Arc<ClusterCell>,
    /// What all workers share of it.
    pub state: Arc<ClusterState>,
    pub(super) set: Arc<EndpointSet>,
    name: Arc<str>,
    endpoints: Vec<Rc<Endpoint>>,
    /// What outlier detection knows of each endpoint.
    records: Vec<Option<Arc<Record>>>,
    balancer: RefCell<Balancer>,
    slots: Slots,
    bucket: Option<Arc<TokenBucket>>,
    methods: Rc<MethodTable>,
    kin: Kin,
}

/// What a cluster has to do with others of its name.
#[derive(Debug)]
enum Kin {
    /// Nothing: there are no others.
    None,
    /// It is one original destination of these.
    OneOf(Weak<Originals>),
    /// Its endpoints are these.
    Whole(Rc<Originals>),
}

/// Why no connection could be had.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum OpenFault {
    /// The connect failed.
    Connect(ConnectFault),
    /// Its connections begin with the addresses of one client each.
    NotPooled,
    /// `max_connections` are open and none of them is idle.
    TooManyConnections,
    /// `max_pending_requests` others wait already.
    TooManyPending,
}

impl OpenFault {
    /// The kind of fault it is.
    pub fn kind(self) -> Kind {
        match self {
            Self::Connect(ConnectFault::Refused) => Kind::ConnectRefused,
            Self::Connect(ConnectFault::Timeout) => Kind::ConnectTimeout,
            Self::Connect(ConnectFault::Unreachable) => Kind::ConnectUnreachable,
            Self::NotPooled => Kind::ProxyHeaderPooled,
            Self::TooManyConnections => Kind::MaxConnections,
            Self::TooManyPending => Kind::MaxPending,
        }
    }
}

/// Counts a try against its endpoint while it lives.
#[derive(Debug)]
pub struct InFlight(Arc<EndpointCell>);

impl Drop for InFlight {
    fn drop(&mut self) {
        self.0.active.fetch_sub(1, Ordering::Relaxed);
    }
}

impl Cluster {
    pub(super) fn new(config: Arc<ClusterConfig>, set: Arc<EndpointSet>, worker: &Worker) -> Self {
        // Whoever asks may run under a snapshot that is no longer current.
        worker.pruned.set(None);
        let state = worker.shared.cluster(&config.name);
        let name: Arc<str> = config.name.as_str().into();
        let endpoints = set.endpoints.iter().map(|one| worker.endpoint(&config.name, one.address)).collect();
        let records = set.endpoints.iter().map(|one| state.ejector.record(one.address)).collect();
        let balancer = Balancer::new(config.balancing, &set, config.panic_threshold_percent);
        let bucket = config.rate_limit.as_ref().map(|limit| {
            let now_ns = worker.shared.since_start_ns(now());
            worker.shared.buckets.bucket(limit, now_ns)
        });
        let counted = worker.counted(&name, &state);
        let kin = match &config.discovery {
            Discovery::Original(_) => Kin::Whole(Rc::default()),
            Discovery::Dns { .. } | Discovery::Eds(_) | Discovery::Static(_) => Kin::None,
        };
        Self {
            cell: counted.cell,
            methods: counted.methods,
            slots: worker.slots(&config.name, &state),
            name,
            endpoints,
            records,
            balancer: RefCell::new(balancer),
            bucket,
            state,
            set,
            config,
            kin,
        }
    }

    /// As this one, with `destination` for its only endpoint. Outlier detection has nothing to choose between there.
    pub(super) fn with_endpoint(&self, destination: SocketAddr, family: &Rc<Originals>) -> Self {
        let endpoint = EndpointConfig {
            address: destination,
            weight: 1,
            priority: 0,
            locality: "".into(),
            health: EndpointHealth::Unknown,
        };
        let set = Arc::new(EndpointSet { endpoints: vec![endpoint], overprovisioning_percent: 0 });
        let balancer = Balancer::new(self.config.balancing, &set, self.config.panic_threshold_percent);
        Self {
            config: self.config.clone(),
            cell: self.cell.clone(),
            state: self.state.clone(),
            set,
            name: self.name.clone(),
            endpoints: vec![Rc::new(Endpoint::new(destination, family.cell().clone()))],
            records: vec![None],
            balancer: RefCell::new(balancer),
            slots: self.slots.clone(),
            bucket: self.bucket.clone(),
            methods: self.methods.clone(),
            kin: Kin::OneOf(Rc::downgrade(family)),
        }
    }

    /// Its destinations, where they are its endpoints.
    pub(super) fn originals(&self) -> Option<&Rc<Originals>> {
        match &self.kin {
            Kin::Whole(originals) => Some(originals),
            Kin::None | Kin::OneOf(_) => None,
        }
    }

    /// How its destinations are found, where they are its endpoints: it is then of use only by [`Cluster::toward`] one.
    pub fn original(&self) -> Option<&OriginalCluster> {
        match &self.config.discovery {
            Discovery::Original(original) if matches!(self.kin, Kin::Whole(_)) => Some(original),
            Discovery::Dns { .. } | Discovery::Eds(_) | Discovery::Original(_) | Discovery::Static(_) => None,
        }
    }

    /// Closes an idle connection: its place is needed.
    fn close_idle(&self) -> bool {
        match &self.kin {
            Kin::None => self.close_own(),
            Kin::OneOf(family) => family.upgrade().is_some_and(|family| family.close_one()),
            Kin::Whole(originals) => originals.close_one(),
        }
    }

    /// As above, of its own endpoints.
    pub(super) fn close_own(&self) -> bool {
        self.endpoints.iter().any(|other| other.close_one())
    }

    /// Idle connections of its own endpoints.
    pub(super) fn idle_connections(&self) -> usize {
        self.endpoints.iter().map(|endpoint| endpoint.idle_connections()).sum()
    }

    /// Closes connections of its own endpoints that were idle for too long.
    pub(super) fn sweep_own(&self, now: Instant, reuse: Reuse) {
        for endpoint in &self.endpoints {
            endpoint.sweep(now, reuse);
        }
    }

    /// Its endpoints keep no connection from now on.
    pub(super) fn retire(&self) {
        self.endpoints.iter().for_each(|endpoint| endpoint.retire());
    }

    /// Its name, for faults and counters.
    pub fn name(&self) -> &Arc<str> {
        &self.name
    }

    /// The bucket of its rate limit.
    pub fn bucket(&self) -> Option<&Arc<TokenBucket>> {
        self.bucket.as_ref()
    }

    /// Chooses an endpoint: none of `tried` while others are left.
    pub fn pick<'a>(&self, tried: &[usize], draw: impl Into<Draw<'a>>) -> Option<Pick> {
        let generation = self.state.ejector.generation();
        let pick = self.balancer.borrow_mut().pick(self, generation, tried, draw)?;
        if pick.panic {
            self.cell.panic_picks.add_one();
        }
        Some(pick)
    }

    /// Counts a try against an endpoint.
    pub fn in_flight(&self, endpoint: usize) -> Option<InFlight> {
        let cell = &self.endpoints.get(endpoint)?.cell;
        cell.active.fetch_add(1, Ordering::Relaxed);
        cell.requests.fetch_add(1, Ordering::Relaxed);
        Some(InFlight(cell.clone()))
    }

    /// A pooled connection.
    pub fn checkout(&self, endpoint: usize) -> Option<Connection> {
        self.endpoints.get(endpoint)?.checkout(now(), self.reuse())
    }

    /// A new connection, or one that became idle while this waited for a place.
    /// Cancel: the place in line or the half-open connection is given up.
    pub async fn open(&self, index: usize) -> Result<Connection, OpenFault> {
        if self.config.proxy_header.is_some() {
            return Err(OpenFault::NotPooled);
        }
        let limits = &self.config.limits;
        let pending = self.state.circuit.try_pending(limits);
        let _pending = pending.ok_or(OpenFault::TooManyPending)?;
        let unreachable = OpenFault::Connect(ConnectFault::Unreachable);
        let endpoint = self.endpoints.get(index).ok_or(unreachable)?;
        loop {
            if let Some(slot) = self.slots.try_take(limits.max_connections) {
                let connected = nest(connect(endpoint, slot, self.cell.clone(), self.config.connect_timeout)).await;
                return connected.map_err(OpenFault::Connect);
            }
            // Idle connections to other endpoints give way to the one that is wanted.
            if self.close_idle() {
                continue;
            }
            self.slots.turn().await;
            if let Some(connection) = endpoint.checkout(now(), self.reuse()) {
                return Ok(connection);
            }
        }
    }

    /// A new connection for an opaque stream with these `ends`: none that served before would do. It does not wait for a
    /// place, as in Envoy: the client could not be told why it waits.
    /// Cancel: as [`Cluster::open`].
    pub async fn open_unpooled(&self, index: usize, ends: impl FnOnce() -> Ends) -> Result<Connection, OpenFault> {
        let limits = &self.config.limits;
        let pending = self.state.circuit.try_pending(limits);
        let _pending = pending.ok_or(OpenFault::TooManyPending)?;
        let unreachable = OpenFault::Connect(ConnectFault::Unreachable);
        let endpoint = self.endpoints.get(index).ok_or(unreachable)?;
        let slot = loop {
            if let Some(slot) = self.slots.try_take(limits.max_connections) {
                break slot;
            }
            if !self.close_idle() {
                return Err(OpenFault::TooManyConnections);
            }
        };
        let connected = nest(connect(endpoint, slot, self.cell.clone(), self.config.connect_timeout)).await;
        let connection = connected.map_err(OpenFault::Connect)?;
        if let Some(version) = self.config.proxy_header {
            connection.stream().queue(Buf::from(proxy_header(version, ends())));
        }
        Ok(connection)
    }

    /// A place for a stream on a connection of HTTP/2, which is opened when none has room. Requests that come while one is
    /// being opened wait for it, and fail with it.
    /// Cancel: as [`Cluster::open`]; whoever waited for the connection tries for itself.
    pub async fn open_stream(&self, index: usize, chance: &Chance) -> Result<Lease, OpenFault> {
        if self.config.proxy_header.is_some() {
            return Err(OpenFault::NotPooled);
        }
        let unreachable = OpenFault::Connect(ConnectFault::Unreachable);
        let endpoint = self.endpoints.get(index).ok_or(unreachable)?;
        if let Some(lease) = endpoint.lease(now(), self.reuse()) {
            return Ok(lease);
        }
        let limits = &self.config.limits;
        let pending = self.state.circuit.try_pending(limits);
        let _pending = pending.ok_or(OpenFault::TooManyPending)?;
        loop {
            if let Some(lease) = endpoint.lease(now(), self.reuse()) {
                return Ok(lease);
            }
            let Some(opening) = endpoint.begin_opening() else {
                endpoint.opened().await.map_err(OpenFault::Connect)?;
                continue;
            };
            let Some(slot) = self.slots.try_take(limits.max_connections) else {
                drop(opening);
                if !self.close_idle() {
                    self.slots.turn().await;
                }
                continue;
            };
            let timing = (self.config.connect_timeout, &self.config.http2);
            let opened = nest(connect_multiplexed(endpoint, slot, self.cell.clone(), timing, chance.bits())).await;
            opening.settle(&opened);
            opened.map_err(OpenFault::Connect)?;
        }
    }

    /// An opaque stream got its connection, which is all that can be said of the endpoint (Envoy counts it as a 200).
    pub fn connected(&self, endpoint: usize, worker: &Worker) {
        if let Some(endpoint) = self.endpoints.get(endpoint) {
            endpoint.cell.successes.fetch_add(1, Ordering::Relaxed);
        }
        self.judge(endpoint, Seen::Answered(200), worker);
    }

    /// Puts a connection back for the next request.
    pub fn give_back(&self, connection: Connection) {
        connection.give_back(now(), self.reuse());
    }

    pub(super) fn reuse(&self) -> Reuse {
        Reuse { idle_timeout: self.config.idle_timeout, max_requests: self.config.max_requests_per_connection }
    }

    /// An endpoint answered.
    pub fn answered(&self, endpoint: usize, status: u16, worker: &Worker) {
        self.cell.by_class[usize::from(status / 100).min(5)].add_one();
        let Some(cell) = self.endpoints.get(endpoint).map(|endpoint| &endpoint.cell) else { return };
        let counter = if status < 500 { &cell.successes } else { &cell.failures };
        counter.fetch_add(1, Ordering::Relaxed);
        self.judge(endpoint, Seen::Answered(status), worker);
    }

    /// An endpoint answered a call of gRPC with `status`, and ended it with `code`.
    pub fn answered_call(&self, endpoint: usize, status: u16, code: GrpcCode, worker: &Worker) {
        self.cell.by_class[usize::from(status / 100).min(5)].add_one();
        self.ended_call(endpoint, code, worker);
    }

    /// A call that an endpoint had begun to answer ended with `code`.
    pub fn ended_call(&self, endpoint: usize, code: GrpcCode, worker: &Worker) {
        let Some(cell) = self.endpoints.get(endpoint).map(|endpoint| &endpoint.cell) else { return };
        let counter = if code.is_failure() { &cell.failures } else { &cell.successes };
        counter.fetch_add(1, Ordering::Relaxed);
        self.judge(endpoint, Seen::of_grpc(code), worker);
    }

    /// A gRPC call ended: counts it by the method that `path` names. Once a call, whatever tries it took.
    pub fn called(&self, path: &[u8], call: &Call, worker: &Worker) {
        self.methods.count(path, call, &worker.shared.registry);
    }

    /// A try failed. What was our own doing, or the client's, says nothing about the endpoint.
    pub fn failed(&self, endpoint: usize, kind: Kind, worker: &Worker) {
        self.cell.faults.add_one(kind);
        let Some(seen) = Seen::of_fault(kind) else { return };
        if let Some(endpoint) = self.endpoints.get(endpoint) {
            endpoint.cell.failures.fetch_add(1, Ordering::Relaxed);
        }
        self.judge(endpoint, seen, worker);
    }

    fn judge(&self, endpoint: usize, seen: Seen, worker: &Worker) {
        let Some(config) = &self.config.outlier else { return };
        let Some(Some(record)) = self.records.get(endpoint) else { return };
        let ruling = Ruling { config, now_ns: worker.shared.since_start_ns(now()), chance: &worker.chance };
        if let Some(ejected) = self.state.ejector.on_result(record, seen, &ruling) {
            self.show_ejected(endpoint, &ejected, ruling.now_ns);
            worker.shared.ejections.ring();
        }
    }

    fn show_ejected(&self, endpoint: usize, ejected: &Ejected, now_ns: u64) {
        if let Some(endpoint) = self.endpoints.get(endpoint) {
            endpoint.cell.ejected_at_ms.store(now_ns / 1_000_000, Ordering::Relaxed);
            endpoint.cell.ejected_until_ms.store(ejected.until_ns / 1_000_000, Ordering::Relaxed);
            endpoint.cell.ejections.fetch_add(1, Ordering::Relaxed);
            endpoint.cell.ejected.store(true, Ordering::Relaxed);
        }
        let span = Duration::from_nanos(ejected.until_ns.saturating_sub(now_ns));
        let cause = ejected.cause.label();
        tracing::warn!(cluster = %self.name, address = %ejected.address, cause, times = ejected.times, ?span, "endpoint ejected");
    }
}

impl Live for Cluster {
    fn is_up(&self, index: usize) -> bool {
        self.records.get(index).is_some_and(|record| record.as_ref().is_none_or(|record| !record.is_ejected()))
    }

    fn active(&self, index: usize) -> u32 {
        self.endpoints.get(index).map_or(0, |endpoint| endpoint.cell.active.load(Ordering::Relaxed))
    }
}
