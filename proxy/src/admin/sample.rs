//! **Purpose.** Turns counters into rates and window quantiles, once a second for all viewers.
//!
//! **Shape.** A [`Sampler`] remembers of each key what was counted a second ago and the differences of the last ten
//! seconds. [`Sampler::take`] reads the registry and makes a [`Frame`].
//!
//! **Limits.** Rows: 200 routes, 100 clusters, 100 endpoints a cluster; what has traffic comes first, the rest is counted.
//! Totals are over everything.

use std::collections::{BTreeMap, HashMap, HashSet, VecDeque};
use std::hash::Hash;
use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::Ordering::Relaxed;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use super::AdminSources;
use super::frame::{
    ClusterRow, Ejection, EndpointRow, FaultRow, Frame, History, ListenerRow, RouteRow, Totals, XdsRow,
};
use crate::config::{EndpointSet, Snapshot};
use crate::fault::Kind;
use crate::observe::describe;
use crate::stats::{Counter, FaultCounters, Histogram, HistogramReport, RouteCell, RouteKey, SparseReport};

/// Seconds in the window.
const WINDOW: usize = 10;
/// Seconds of history.
const HISTORY: usize = 60;
const MAX_ROUTES: usize = 200;
const MAX_CLUSTERS: usize = 100;
const MAX_ENDPOINTS: usize = 100;

/// Counts of one key at one moment. What a kind of key does not count stays 0.
#[derive(Clone, Debug, Default)]
struct Counts {
    requests: u64,
    answered: u64,
    failed: u64,
    retries: u64,
    suppressed: u64,
    limited: u64,
    accepted: u64,
    faults: BTreeMap<usize, u64>,
}

/// What was counted within one second.
#[derive(Clone, Debug, Default)]
struct Second {
    span: f64,
    counts: Counts,
    latency: SparseReport,
}

/// The memory of one key.
#[derive(Debug, Default)]
struct Track {
    last: Counts,
    latency: Option<HistogramReport>,
    seconds: VecDeque<Second>,
    rates: VecDeque<f64>,
    active: u64,
    seen: u64,
}

/// The window of a key, added up.
struct Window {
    span: f64,
    sum: Counts,
}

#[derive(Debug)]
struct EndpointState {
    active: u32,
    connections: u32,
    ejections: u64,
    ejected: Option<Ejection>,
}

/// Reads all counters each second.
#[derive(Debug)]
pub(super) struct Sampler {
    sources: Arc<AdminSources>,
    at: Instant,
    turn: u64,
    routes: HashMap<RouteKey, Track>,
    listeners: HashMap<Arc<str>, Track>,
    clusters: HashMap<Arc<str>, Track>,
    endpoints: HashMap<(Arc<str>, SocketAddr), Track>,
    total: VecDeque<f64>,
}

impl Sampler {
    /// Takes the first marks: rates begin with the next [`Self::take`].
    pub(super) fn new(sources: Arc<AdminSources>, now: Instant) -> Self {
        let mut sampler = Self {
            sources,
            at: now,
            turn: 0,
            routes: HashMap::new(),
            listeners: HashMap::new(),
            clusters: HashMap::new(),
            endpoints: HashMap::new(),
            total: VecDeque::new(),
        };
        sampler.read(0.0);
        sampler
    }

    /// One second's frame, and the history up to it.
    pub(super) fn take(&mut self, now: Instant) -> (Frame, History) {
        let span = now.saturating_duration_since(self.at).as_secs_f64().max(0.001);
        self.at = now;
        self.turn += 1;
        let at_unix_ms = unix_ms(SystemTime::now());
        let states = self.read(span);
        let snapshot = self.sources.publisher.current();
        let (totals, rate) = self.totals(&snapshot, &states);
        push_bounded(&mut self.total, rate, HISTORY);
        let (routes, route_history, routes_left_out) = self.route_rows(&snapshot);
        let (clusters, clusters_left_out) = self.cluster_rows(&snapshot, &states);
        let readiness = (self.sources.ready)();
        let (is_ready, not_ready) = (readiness.is_ready(), readiness.reasons());
        let frame = Frame {
            at_unix_ms,
            uptime_seconds: self.sources.started.elapsed().as_secs(),
            epoch: snapshot.epoch,
            epoch_unix_ms: self.sources.epochs.published_unix_ms(snapshot.epoch),
            is_ready,
            not_ready,
            xds: self.xds_row(),
            totals,
            listeners: self.listener_rows(&snapshot),
            routes,
            routes_left_out,
            clusters,
            clusters_left_out,
        };
        let history = History { total: self.total.iter().copied().collect(), routes: route_history };
        (frame, history)
    }

    /// Moves every track on by one turn, and drops those whose key is gone.
    fn read(&mut self, span: f64) -> HashMap<(Arc<str>, SocketAddr), EndpointState> {
        let turn = self.turn;
        self.read_routes(span);
        self.read_clusters(span);
        self.read_listeners(span);
        let states = self.read_endpoints(span);
        self.routes.retain(|_, track| track.seen == turn);
        self.clusters.retain(|_, track| track.seen == turn);
        self.listeners.retain(|_, track| track.seen == turn);
        self.endpoints.retain(|_, track| track.seen == turn);
        states
    }

    fn read_routes(&mut self, span: f64) {
        let turn = self.turn;
        self.sources.registry.routes(|key, cells| {
            let sum = |part: fn(&RouteCell) -> &Counter| cells.iter().map(|cell| part(cell).value()).sum();
            let faults = sum_faults(cells.iter().map(|cell| &cell.faults));
            let by_class = sum_classes(cells.iter().map(|cell| &cell.by_class));
            // A downstream that left before its answer is no failure of the route.
            let gone = faults.get(&(Kind::Gone as usize)).copied().unwrap_or(0).min(by_class[0]);
            let counts = Counts {
                requests: sum(|cell| &cell.requests),
                answered: by_class.iter().sum::<u64>() - gone,
                failed: by_class[5] + by_class[0] - gone,
                retries: sum(|cell| &cell.retries),
                suppressed: cells.iter().flat_map(|cell| &cell.retry_suppressed).map(Counter::value).sum(),
                limited: sum(|cell| &cell.limited),
                faults,
                ..Counts::default()
            };
            let track = track_of(&mut self.routes, key);
            track.active = level(cells.iter().map(|cell| cell.active.value()).sum());
            let latency = track.latency_since(&counts, cells.iter().map(|cell| &cell.latency));
            track.advance(counts, latency, (turn, span));
        });
    }

    fn read_clusters(&mut self, span: f64) {
        let turn = self.turn;
        self.sources.registry.clusters(|name, cells| {
            let by_class = sum_classes(cells.iter().map(|cell| &cell.by_class));
            let counts = Counts {
                requests: cells.iter().map(|cell| cell.requests.value()).sum(),
                answered: by_class.iter().sum(),
                failed: by_class[5] + by_class[0],
                ..Counts::default()
            };
            let track = track_of(&mut self.clusters, name);
            track.active = level(cells.iter().map(|cell| cell.connections.value()).sum());
            let latency = track.latency_since(&counts, cells.iter().map(|cell| &cell.latency));
            track.advance(counts, latency, (turn, span));
        });
    }

    fn read_listeners(&mut self, span: f64) {
        let turn = self.turn;
        self.sources.registry.listeners(|name, cells| {
            let counts = Counts {
                requests: cells.iter().map(|cell| cell.requests.value()).sum(),
                accepted: cells.iter().map(|cell| cell.accepted.value()).sum(),
                faults: sum_faults(cells.iter().map(|cell| &cell.faults)),
                ..Counts::default()
            };
            let track = track_of(&mut self.listeners, name);
            track.active = level(cells.iter().map(|cell| cell.connections.value()).sum());
            track.advance(counts, SparseReport::default(), (turn, span));
        });
    }

    fn read_endpoints(&mut self, span: f64) -> HashMap<(Arc<str>, SocketAddr), EndpointState> {
        let turn = self.turn;
        let uptime_ms = u64::try_from(self.sources.started.elapsed().as_millis()).unwrap_or(u64::MAX);
        let mut states = HashMap::new();
        self.sources.registry.endpoints(|cluster, address, cell| {
            let key = (cluster.clone(), address);
            let failures = cell.failures.load(Relaxed);
            let counts = Counts { requests: cell.requests.load(Relaxed), failed: failures, ..Counts::default() };
            track_of(&mut self.endpoints, &key).advance(counts, SparseReport::default(), (turn, span));
            let (at, until) = (cell.ejected_at_ms.load(Relaxed), cell.ejected_until_ms.load(Relaxed));
            let ejected = cell.ejected.load(Relaxed).then(|| Ejection {
                age_ms: (at > 0).then(|| uptime_ms.saturating_sub(at)),
                remaining_ms: (until > 0).then(|| until.saturating_sub(uptime_ms)),
            });
            states.insert(
                key,
                EndpointState {
                    active: cell.active.load(Relaxed),
                    connections: cell.connections.load(Relaxed),
                    ejections: cell.ejections.load(Relaxed),
                    ejected,
                },
            );
        });
        states
    }

    fn totals(&self, snapshot: &Snapshot, states: &HashMap<(Arc<str>, SocketAddr), EndpointState>) -> (Totals, f64) {
        let mut latency = HistogramReport::merge([]);
        let mut sum = Counts::default();
        let (mut rate, mut active, mut retry_rate, mut limited_rate) = (0.0, 0, 0.0, 0.0);
        for track in self.routes.values() {
            let window = track.window();
            rate += track.rate();
            active += track.active;
            retry_rate += per_second(window.sum.retries, window.span);
            limited_rate += per_second(window.sum.limited, window.span);
            sum.answered += window.sum.answered;
            sum.failed += window.sum.failed;
            track.seconds.iter().for_each(|second| latency.add(&second.latency));
        }
        let totals = Totals {
            rate,
            success: success(&sum),
            p50_us: latency.quantile(0.5),
            p99_us: latency.quantile(0.99),
            active,
            retry_rate,
            limited_rate,
            ejected: states.values().filter(|state| state.ejected.is_some()).count(),
            // Counted from the configuration: an endpoint that nothing was sent to yet has no numbers.
            endpoints: snapshot.clusters().iter().map(|(_, set)| set.endpoints.len()).sum(),
        };
        (totals, rate)
    }

    fn route_rows(&self, snapshot: &Snapshot) -> (Vec<RouteRow>, Vec<Vec<f64>>, usize) {
        let mut keys = configured_routes(snapshot);
        let known: HashSet<RouteKey> = keys.iter().map(|(key, _)| key.clone()).collect();
        let mut others: Vec<_> = self
            .routes
            .iter()
            .filter(|(key, track)| !known.contains(*key) && (track.last.requests > 0 || track.active > 0))
            .map(|(key, _)| (key.clone(), String::new()))
            .collect();
        others.sort();
        keys.extend(others);
        let busy = |(key, _): &(RouteKey, String)| self.routes.get(key).is_some_and(|track| track.rates_sum() > 0.0);
        let left_out = thin_out(&mut keys, MAX_ROUTES, busy);
        let idle = Track::default();
        let rows = keys.iter().map(|(key, matches)| self.routes.get(key).unwrap_or(&idle).route_row(key, matches));
        let history = keys.iter().map(|(key, _)| {
            self.routes.get(key).map(|track| track.rates.iter().copied().collect()).unwrap_or_default()
        });
        (rows.collect(), history.collect(), left_out)
    }

    fn listener_rows(&self, snapshot: &Snapshot) -> Vec<ListenerRow> {
        let idle = Track::default();
        let row = |listener: &Arc<crate::config::ListenerConfig>| {
            let track = self.listeners.get(listener.name.as_str()).unwrap_or(&idle);
            let window = track.window();
            ListenerRow {
                name: listener.name.as_str().into(),
                addresses: listener.addresses.iter().map(ToString::to_string).collect(),
                connections: track.active,
                accept_rate: per_second(window.sum.accepted, window.span),
                rate: track.rate(),
                faults: fault_rows(&window),
            }
        };
        snapshot.listeners().iter().map(row).collect()
    }

    fn cluster_rows(
        &self,
        snapshot: &Snapshot,
        states: &HashMap<(Arc<str>, SocketAddr), EndpointState>,
    ) -> (Vec<ClusterRow>, usize) {
        let mut clusters: Vec<_> = snapshot.clusters().iter().collect();
        let busy = |(config, _): &&(Arc<_>, Arc<EndpointSet>)| {
            let config: &crate::config::ClusterConfig = config;
            self.clusters.get(config.name.as_str()).is_some_and(|track| track.rates_sum() > 0.0)
        };
        let left_out = thin_out(&mut clusters, MAX_CLUSTERS, busy);
        let idle = Track::default();
        let rows = clusters.into_iter().map(|(config, set)| {
            let name: Arc<str> = Arc::from(config.name.as_str());
            let track = self.clusters.get(&name).unwrap_or(&idle);
            let (window, latency) = (track.window(), track.window_latency());
            let (endpoints, endpoints_left_out) = self.endpoint_rows(&name, set, states);
            ClusterRow {
                name: name.to_string(),
                rate: track.rate(),
                success: success(&window.sum),
                p50_us: latency.quantile(0.5),
                p99_us: latency.quantile(0.99),
                connections: track.active,
                endpoints,
                endpoints_left_out,
            }
        });
        (rows.collect(), left_out)
    }

    fn endpoint_rows(
        &self,
        cluster: &Arc<str>,
        set: &EndpointSet,
        states: &HashMap<(Arc<str>, SocketAddr), EndpointState>,
    ) -> (Vec<EndpointRow>, usize) {
        let mut endpoints: Vec<_> = set.endpoints.iter().collect();
        let state_of = |address: SocketAddr| states.get(&(cluster.clone(), address));
        let left_out = thin_out(&mut endpoints, MAX_ENDPOINTS, |endpoint| {
            state_of(endpoint.address).is_some_and(|state| state.ejected.is_some() || state.connections > 0)
        });
        let rows = endpoints.into_iter().map(|endpoint| {
            let key = (cluster.clone(), endpoint.address);
            let window = self.endpoints.get(&key).map(Track::window);
            let state = states.get(&key);
            let ejected = state.and_then(|state| state.ejected.clone());
            EndpointRow {
                address: endpoint.address.to_string(),
                weight: endpoint.weight,
                priority: endpoint.priority,
                locality: endpoint.locality.to_string(),
                health: describe::health(endpoint.health),
                active: state.map_or(0, |state| state.active),
                connections: state.map_or(0, |state| state.connections),
                rate: self.endpoints.get(&key).map_or(0.0, Track::rate),
                failure_rate: window.map_or(0.0, |window| per_second(window.sum.failed, window.span)),
                ejections: state.map_or(0, |state| state.ejections),
                ejected,
            }
        });
        (rows.collect(), left_out)
    }

    fn xds_row(&self) -> XdsRow {
        let xds = (self.sources.xds)();
        XdsRow {
            configured: xds.configured,
            connected: xds.connected,
            server: xds.server,
            last_heard_seconds: xds.last_heard.as_ref().map(Duration::as_secs),
            last_error: xds.last_error,
            rejections: xds
                .types
                .into_iter()
                .filter_map(|one| Some(format!("{}: {}", one.name, one.last_rejection?)))
                .collect(),
        }
    }
}

impl Track {
    /// Moves on to `now`. `turn` 0 only takes marks: a key that comes later has counted from zero since the turn before.
    fn advance(&mut self, now: Counts, latency: SparseReport, (turn, span): (u64, f64)) {
        if turn > 0 {
            push_bounded(&mut self.seconds, Second { span, counts: now.since(&self.last), latency }, WINDOW);
            let rate = self.rate();
            push_bounded(&mut self.rates, rate, HISTORY);
        }
        self.last = now;
        self.seen = turn;
    }

    /// What was added to `latency` since the last call; not looked at when nothing was counted since.
    fn latency_since<'a>(&mut self, now: &Counts, latency: impl Iterator<Item = &'a Histogram>) -> SparseReport {
        let is_quiet = now.answered == self.last.answered && now.requests == self.last.requests;
        if is_quiet && self.latency.is_some() {
            return SparseReport::default();
        }
        let report = HistogramReport::merge(latency);
        let added = self.latency.as_ref().map_or_else(|| report.sparse(), |before| report.since(before).sparse());
        self.latency = Some(report);
        added
    }

    /// Requests a second in the last second.
    fn rate(&self) -> f64 {
        self.seconds.back().map_or(0.0, |second| per_second(second.counts.requests, second.span))
    }

    fn rates_sum(&self) -> f64 {
        self.rates.iter().sum()
    }

    fn window(&self) -> Window {
        let mut window = Window { span: 0.0, sum: Counts::default() };
        for second in &self.seconds {
            window.span += second.span;
            window.sum.add(&second.counts);
        }
        window
    }

    /// Latencies in the window.
    fn window_latency(&self) -> HistogramReport {
        let mut latency = HistogramReport::merge([]);
        self.seconds.iter().for_each(|second| latency.add(&second.latency));
        latency
    }

    fn route_row(&self, key: &RouteKey, matches: &str) -> RouteRow {
        let (window, latency) = (self.window(), self.window_latency());
        RouteRow {
            listener: key.listener.to_string(),
            virtual_host: key.virtual_host.to_string(),
            route: key.route.to_string(),
            matches: matches.to_owned(),
            rate: self.rate(),
            success: success(&window.sum),
            p50_us: latency.quantile(0.5),
            p99_us: latency.quantile(0.99),
            active: self.active,
            retry_rate: per_second(window.sum.retries, window.span),
            suppressed_rate: per_second(window.sum.suppressed, window.span),
            limited_rate: per_second(window.sum.limited, window.span),
            faults: fault_rows(&window),
        }
    }
}

impl Counts {
    fn since(&self, before: &Self) -> Self {
        let faults = self.faults.iter().filter_map(|(kind, count)| {
            let new = count.saturating_sub(before.faults.get(kind).copied().unwrap_or(0));
            (new > 0).then_some((*kind, new))
        });
        Self {
            requests: self.requests.saturating_sub(before.requests),
            answered: self.answered.saturating_sub(before.answered),
            failed: self.failed.saturating_sub(before.failed),
            retries: self.retries.saturating_sub(before.retries),
            suppressed: self.suppressed.saturating_sub(before.suppressed),
            limited: self.limited.saturating_sub(before.limited),
            accepted: self.accepted.saturating_sub(before.accepted),
            faults: faults.collect(),
        }
    }

    fn add(&mut self, other: &Self) {
        self.requests += other.requests;
        self.answered += other.answered;
        self.failed += other.failed;
        self.retries += other.retries;
        self.suppressed += other.suppressed;
        self.limited += other.limited;
        self.accepted += other.accepted;
        other.faults.iter().for_each(|(kind, count)| *self.faults.entry(*kind).or_default() += count);
    }
}

fn track_of<'a, K: Clone + Eq + Hash>(tracks: &'a mut HashMap<K, Track>, key: &K) -> &'a mut Track {
    // Two look-ups instead of a clone of the key each second.
    if !tracks.contains_key(key) {
        tracks.insert(key.clone(), Track::default());
    }
    tracks.get_mut(key).expect("inserted above")
}

/// Routes in the order they are tried, listener by listener, with their match in one line.
fn configured_routes(snapshot: &Snapshot) -> Vec<(RouteKey, String)> {
    let mut keys = Vec::new();
    for listener in snapshot.listeners() {
        let name: Arc<str> = Arc::from(listener.name.as_str());
        let mut seen = HashSet::new();
        let tables = listener.https().filter_map(|http| snapshot.routes_of(http));
        let tables = tables.filter(|table| seen.insert(Arc::as_ptr(table)));
        for host in tables.flat_map(|table| &table.virtual_hosts) {
            keys.extend(host.routes.iter().map(|route| {
                let key =
                    RouteKey { listener: name.clone(), virtual_host: host.name.clone(), route: route.name.clone() };
                (key, describe::matches_line(&route.matches))
            }));
        }
    }
    keys
}

/// Cuts `rows` to `most`, those that are not `busy` first, order kept; returns how many went.
fn thin_out<T>(rows: &mut Vec<T>, most: usize, busy: impl Fn(&T) -> bool) -> usize {
    let excess = rows.len().saturating_sub(most);
    let mut left = excess;
    rows.retain(|row| {
        let goes = left > 0 && !busy(row);
        left -= usize::from(goes);
        !goes
    });
    rows.truncate(most);
    excess
}

/// Answers that configuration asks for are no refusals.
fn fault_rows(window: &Window) -> Vec<FaultRow> {
    let refusals = window
        .sum
        .faults
        .iter()
        .map(|(kind, count)| (Kind::ALL[*kind], *count))
        .filter(|(kind, _)| !matches!(kind, Kind::DirectResponse | Kind::Redirect));
    refusals
        .map(|(kind, count)| FaultRow {
            side: kind.side().label(),
            stage: kind.stage().label(),
            kind: kind.label(),
            rate: per_second(count, window.span),
        })
        .collect()
}

fn sum_faults<'a>(parts: impl Iterator<Item = &'a FaultCounters>) -> BTreeMap<usize, u64> {
    let mut sum = BTreeMap::new();
    for (kind, count) in parts.flat_map(FaultCounters::nonzero) {
        *sum.entry(kind as usize).or_default() += count;
    }
    sum
}

fn sum_classes<'a>(parts: impl Iterator<Item = &'a [Counter; 6]>) -> [u64; 6] {
    parts.fold([0; 6], |sum, part| std::array::from_fn(|class| sum[class] + part[class].value()))
}

/// Share of answers that are no failure, 0.0..=1.0.
#[allow(clippy::cast_precision_loss, reason = "a share for people")]
fn success(sum: &Counts) -> Option<f64> {
    (sum.answered > 0).then(|| 1.0 - sum.failed.min(sum.answered) as f64 / sum.answered as f64)
}

#[allow(clippy::cast_precision_loss, reason = "a rate for people")]
fn per_second(count: u64, span: f64) -> f64 {
    if span > 0.0 { count as f64 / span } else { 0.0 }
}

/// Workers move a level one after the other, so a sum taken between two of them may dip below zero.
fn level(sum: i64) -> u64 {
    sum.max(0).unsigned_abs()
}

fn push_bounded<T>(values: &mut VecDeque<T>, value: T, most: usize) {
    if values.len() == most {
        values.pop_front();
    }
    values.push_back(value);
}

fn unix_ms(at: SystemTime) -> u64 {
    u64::try_from(at.duration_since(UNIX_EPOCH).unwrap_or_default().as_millis()).unwrap_or(u64::MAX)
}
