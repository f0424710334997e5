//! From counters and state to samples: one pass over the registry at the moment somebody looks.
//!
//! **Limits.** A sample is some hundred bytes; the whole lives only as long as the answer is written.

use std::collections::BTreeMap;
use std::sync::Arc;

use super::{CaptureView, IoView, LimitLevel, Metric, Process, WorkerIo, XdsStatus};
use crate::config::Snapshot;
use crate::fault::Kind;
use crate::stats::{
    ClusterCell, Counter, Detected, FaultCounters, HistogramReport, MethodCell, Registry, RouteCell, SuppressReason,
};

/// Upper bounds of the exposed latency buckets, in microseconds.
pub const BUCKETS_US: [u64; 17] = [
    250, 500, 1_000, 2_500, 5_000, 10_000, 25_000, 50_000, 100_000, 250_000, 500_000, 1_000_000, 2_500_000, 5_000_000,
    10_000_000, 30_000_000, 60_000_000,
];

const CLASSES: [&str; 6] = ["none", "1xx", "2xx", "3xx", "4xx", "5xx"];

/// The state that is told, at one moment.
#[derive(Debug)]
pub struct Observation<'a> {
    /// Counters.
    pub registry: &'a Registry,
    /// Configuration in use.
    pub snapshot: &'a Snapshot,
    /// I/O driver.
    pub io: &'a IoView,
    /// Reactor counters.
    pub workers: &'a [WorkerIo],
    /// xDS client.
    pub xds: &'a XdsStatus,
    /// Buckets of local rate limits.
    pub limits: &'a [LimitLevel],
    /// What the kernel tells.
    pub process: &'a Process,
    /// What `/ready` answers.
    pub is_ready: bool,
    /// What heartbeats have shown; `None`: none are sent.
    pub capture: Option<CaptureView>,
}

/// One value with its labels, in the order of [`Metric::labels`].
#[derive(Clone, Debug, PartialEq)]
pub struct Sample {
    /// Values of the labels.
    pub labels: Vec<Arc<str>>,
    /// The value.
    pub value: Value,
}

/// What a sample holds.
#[derive(Clone, Debug, PartialEq)]
pub enum Value {
    /// A whole number.
    Count(u64),
    /// A measure.
    Real(f64),
    /// A spread of latencies.
    Spread(Box<Spread>),
}

/// A histogram cut to the exposed buckets.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Spread {
    /// Values at or below each of [`BUCKETS_US`].
    pub at_most: [u64; BUCKETS_US.len()],
    /// Values counted.
    pub count: u64,
    /// Their sum in microseconds.
    pub sum_us: u64,
    /// The 50th, 90th and 99th percentile in microseconds; `None` when empty.
    pub quantiles_us: Option<[u64; 3]>,
}

impl Spread {
    fn of(report: &HistogramReport) -> Self {
        let quantile = |q| report.quantile(q);
        Self {
            at_most: BUCKETS_US.map(|bound| report.count_at_most(bound)),
            count: report.count,
            sum_us: report.sum,
            quantiles_us: quantile(0.5).zip(quantile(0.9)).zip(quantile(0.99)).map(|((p50, p90), p99)| [p50, p90, p99]),
        }
    }
}

/// All samples, by metric.
#[derive(Debug)]
pub struct Samples {
    by_metric: Vec<Vec<Sample>>,
}

impl Samples {
    fn new() -> Self {
        Self { by_metric: Metric::ALL.iter().map(|_| Vec::new()).collect() }
    }

    /// The samples of one metric.
    pub fn of(&self, metric: Metric) -> &[Sample] {
        &self.by_metric[metric as usize]
    }

    fn push(&mut self, metric: Metric, labels: &[&Arc<str>], value: Value) {
        debug_assert_eq!(labels.len(), metric.labels().len(), "{metric:?}");
        let labels = labels.iter().map(|&label| label.clone()).collect();
        self.by_metric[metric as usize].push(Sample { labels, value });
    }

    fn count(&mut self, metric: Metric, labels: &[&Arc<str>], value: u64) {
        self.push(metric, labels, Value::Count(value));
    }

    fn real(&mut self, metric: Metric, labels: &[&Arc<str>], value: f64) {
        self.push(metric, labels, Value::Real(value));
    }

    fn with(&mut self, metric: Metric, labels: &[&Arc<str>], last: &str, value: u64) {
        let last = Arc::from(last);
        let labels: Vec<_> = labels.iter().copied().chain([&last]).collect();
        self.count(metric, &labels, value);
    }

    fn faults(&mut self, metric: Metric, labels: &[&Arc<str>], faults: &Faults) {
        for (&kind, &count) in faults {
            let kind = Kind::ALL[kind];
            let [side, stage, name] = [kind.side().label(), kind.stage().label(), kind.label()].map(Arc::<str>::from);
            let labels: Vec<_> = labels.iter().copied().chain([&side, &stage, &name]).collect();
            self.count(metric, &labels, count);
        }
    }
}

/// Counts by place in [`Kind::ALL`].
type Faults = BTreeMap<usize, u64>;

fn add_faults<'a>(total: &mut Faults, parts: impl Iterator<Item = &'a FaultCounters>) {
    for (kind, count) in parts.flat_map(FaultCounters::nonzero) {
        *total.entry(kind as usize).or_default() += count;
    }
}

/// Takes every sample.
pub fn collect(seen: &Observation<'_>) -> Samples {
    let mut samples = Samples::new();
    let mut answered = Faults::new();
    collect_process(seen, &mut samples);
    collect_config(seen, &mut samples);
    collect_listeners(seen.registry, &mut samples, &mut answered);
    collect_routes(seen.registry, &mut samples, &mut answered);
    collect_clusters(seen.registry, &mut samples);
    collect_methods(seen.registry, &mut samples);
    collect_endpoints(seen.registry, &mut samples);
    collect_xds(seen.xds, &mut samples);
    collect_reactors(seen.workers, &mut samples);
    for (kind, count) in answered {
        let kind = Kind::ALL[kind];
        let labels = [kind.side().label(), kind.stage().label(), kind.label(), kind.flag()].map(Arc::<str>::from);
        samples.count(Metric::Faults, &labels.each_ref(), count);
    }
    for limit in seen.limits {
        let rule = Arc::from(&*limit.rule);
        samples.count(Metric::LimitTokens, &[&rule], limit.tokens);
        samples.count(Metric::LimitMaxTokens, &[&rule], limit.max_tokens);
    }
    samples
}

fn collect_process(seen: &Observation<'_>, samples: &mut Samples) {
    let process = seen.process;
    let counts = [
        (Metric::ProcessResident, process.resident_bytes),
        (Metric::ProcessVirtual, process.virtual_bytes),
        (Metric::ProcessThreads, process.threads),
        (Metric::ProcessOpenFds, process.open_fds),
        (Metric::ProcessMaxFds, process.max_fds),
    ];
    for (metric, value) in counts {
        value.into_iter().for_each(|value| samples.count(metric, &[], value));
    }
    for (metric, value) in [(Metric::ProcessCpu, process.cpu_seconds), (Metric::ProcessStart, process.start_seconds)] {
        value.into_iter().for_each(|value| samples.real(metric, &[], value));
    }
}

fn collect_config(seen: &Observation<'_>, samples: &mut Samples) {
    samples.with(Metric::BuildInfo, &[], env!("CARGO_PKG_VERSION"), 1);
    samples.with(Metric::IoDriver, &[&Arc::from(&*seen.io.driver)], &seen.io.reason, 1);
    samples.count(Metric::Ready, &[], u64::from(seen.is_ready));
    if let Some(capture) = &seen.capture {
        samples.count(Metric::CaptureProven, &[], capture.is_proven.into());
        samples.with(Metric::CaptureHeartbeats, &[], "answered", capture.answered);
        samples.with(Metric::CaptureHeartbeats, &[], "lost", capture.lost);
    }
    samples.count(Metric::ConfigEpoch, &[], seen.snapshot.epoch);
    samples.count(Metric::ConfigListeners, &[], seen.snapshot.listeners().len() as u64);
    samples.count(Metric::ConfigClusters, &[], seen.snapshot.clusters().len() as u64);
    for (cluster, endpoints) in seen.snapshot.clusters() {
        let name = Arc::from(cluster.name.as_str());
        samples.count(Metric::ClusterEndpoints, &[&name], endpoints.endpoints.len() as u64);
        let limits = &cluster.limits;
        for (resource, limit) in [
            ("connections", limits.max_connections),
            ("pending_requests", limits.max_pending_requests),
            ("requests", limits.max_requests),
            ("retries", limits.max_retries),
        ] {
            if resource != "retries" || limits.retry_budget.is_none() {
                samples.with(Metric::ClusterLimit, &[&name], resource, limit.into());
            }
        }
    }
}

fn collect_listeners(registry: &Registry, samples: &mut Samples, answered: &mut Faults) {
    registry.listeners(|name, cells| {
        let labels = [name];
        let sum = |part: fn(&crate::stats::ListenerCell) -> &Counter| cells.iter().map(|cell| part(cell).value()).sum();
        samples.count(Metric::ListenerAccepted, &labels, sum(|cell| &cell.accepted));
        samples.count(Metric::ListenerRequests, &labels, sum(|cell| &cell.requests));
        samples.count(Metric::ListenerAcceptFailures, &labels, sum(|cell| &cell.accept_failures));
        samples.count(Metric::ListenerReceived, &labels, sum(|cell| &cell.bytes_in));
        samples.count(Metric::ListenerSent, &labels, sum(|cell| &cell.bytes_out));
        samples.count(Metric::ListenerProxyHeaders, &labels, sum(|cell| &cell.proxy_headers));
        samples.count(Metric::ListenerHanded, &labels, sum(|cell| &cell.handed));
        samples.count(Metric::ListenerHeartbeats, &labels, sum(|cell| &cell.heartbeats));
        samples.count(Metric::ListenerServerFirst, &labels, sum(|cell| &cell.server_first));
        for (verdict, count) in [
            ("allowed", sum(|cell| &cell.access.allowed)),
            ("denied", sum(|cell| &cell.access.denied)),
            ("shadow_allowed", sum(|cell| &cell.access.shadow_allowed)),
            ("shadow_denied", sum(|cell| &cell.access.shadow_denied)),
        ] {
            samples.with(Metric::ListenerAccess, &labels, verdict, count);
        }
        for (at, detected) in Detected::ALL.iter().enumerate() {
            let count = cells.iter().map(|cell| cell.detected[at].value()).sum();
            samples.with(Metric::ListenerDetected, &labels, detected.label(), count);
        }
        let open = cells.iter().map(|cell| cell.connections.value()).sum();
        samples.count(Metric::ListenerConnections, &labels, level(open));
        let mut faults = Faults::new();
        add_faults(&mut faults, cells.iter().map(|cell| &cell.faults));
        add_faults(answered, cells.iter().map(|cell| &cell.faults));
        samples.faults(Metric::ListenerFaults, &labels, &faults);
    });
}

fn collect_routes(registry: &Registry, samples: &mut Samples, answered: &mut Faults) {
    registry.routes(|key, cells| {
        let labels = [&key.listener, &key.virtual_host, &key.route];
        let sum = |part: fn(&RouteCell) -> &Counter| cells.iter().map(|cell| part(cell).value()).sum();
        samples.count(Metric::RouteRequests, &labels, sum(|cell| &cell.requests));
        samples.count(Metric::RouteRetries, &labels, sum(|cell| &cell.retries));
        samples.count(Metric::RouteRetrySuccess, &labels, sum(|cell| &cell.retry_success));
        samples.count(Metric::RouteLimited, &labels, sum(|cell| &cell.limited));
        samples.count(Metric::RouteWouldLimit, &labels, sum(|cell| &cell.would_limit));
        samples.count(Metric::RouteReceived, &labels, sum(|cell| &cell.bytes_in));
        samples.count(Metric::RouteSent, &labels, sum(|cell| &cell.bytes_out));
        let active = cells.iter().map(|cell| cell.active.value()).sum();
        samples.count(Metric::RouteActive, &labels, level(active));
        for (at, class) in CLASSES.iter().enumerate() {
            let count = cells.iter().map(|cell| cell.by_class[at].value()).sum();
            samples.with(Metric::RouteResponses, &labels, class, count);
        }
        for (at, reason) in SuppressReason::ALL.iter().enumerate() {
            let count: u64 = cells.iter().map(|cell| cell.retry_suppressed[at].value()).sum();
            samples.with(Metric::RouteRetrySuppressed, &labels, reason.label(), count);
        }
        let latency = HistogramReport::merge(cells.iter().map(|cell| &cell.latency));
        samples.push(Metric::RouteLatency, &labels, Value::Spread(Box::new(Spread::of(&latency))));
        let mut faults = Faults::new();
        add_faults(&mut faults, cells.iter().map(|cell| &cell.faults));
        add_faults(answered, cells.iter().map(|cell| &cell.faults));
        samples.faults(Metric::RouteFaults, &labels, &faults);
    });
}

fn collect_clusters(registry: &Registry, samples: &mut Samples) {
    registry.clusters(|name, cells| {
        let labels = [name];
        let sum = |part: fn(&ClusterCell) -> &Counter| cells.iter().map(|cell| part(cell).value()).sum();
        samples.count(Metric::ClusterRequests, &labels, sum(|cell| &cell.requests));
        samples.count(Metric::ClusterRetries, &labels, sum(|cell| &cell.retries));
        samples.count(Metric::ClusterConnects, &labels, sum(|cell| &cell.connects));
        samples.count(Metric::ClusterConnectFailures, &labels, sum(|cell| &cell.connect_failures));
        samples.count(Metric::ClusterReuses, &labels, sum(|cell| &cell.reuses));
        samples.count(Metric::ClusterPanicPicks, &labels, sum(|cell| &cell.panic_picks));
        let open = cells.iter().map(|cell| cell.connections.value()).sum();
        samples.count(Metric::ClusterConnections, &labels, level(open));
        for (at, class) in CLASSES.iter().enumerate() {
            let count = cells.iter().map(|cell| cell.by_class[at].value()).sum();
            samples.with(Metric::ClusterResponses, &labels, class, count);
        }
        for (at, reason) in SuppressReason::ALL.iter().enumerate() {
            let count: u64 = cells.iter().map(|cell| cell.retry_suppressed[at].value()).sum();
            samples.with(Metric::ClusterRetrySuppressed, &labels, reason.label(), count);
        }
        let latency = HistogramReport::merge(cells.iter().map(|cell| &cell.latency));
        samples.push(Metric::ClusterLatency, &labels, Value::Spread(Box::new(Spread::of(&latency))));
        let mut faults = Faults::new();
        add_faults(&mut faults, cells.iter().map(|cell| &cell.faults));
        samples.faults(Metric::ClusterFaults, &labels, &faults);
    });
}

fn collect_methods(registry: &Registry, samples: &mut Samples) {
    registry.methods(|key, cells| {
        let labels = [&key.cluster, &key.service, &key.method];
        let sum = |part: fn(&MethodCell) -> &Counter| cells.iter().map(|cell| part(cell).value()).sum();
        samples.count(Metric::GrpcRequestMessages, &labels, sum(|cell| &cell.request_messages));
        samples.count(Metric::GrpcResponseMessages, &labels, sum(|cell| &cell.response_messages));
        for (code, count) in MethodCell::sum(cells) {
            samples.with(Metric::GrpcRequests, &labels, code.label(), count);
        }
    });
}

fn collect_endpoints(registry: &Registry, samples: &mut Samples) {
    use std::sync::atomic::Ordering::Relaxed;
    registry.endpoints(|cluster, address, cell| {
        let address = Arc::from(address.to_string());
        for (metric, value) in [
            (Metric::EndpointActive, cell.active.load(Relaxed).into()),
            (Metric::EndpointRequests, cell.requests.load(Relaxed)),
            (Metric::EndpointSuccesses, cell.successes.load(Relaxed)),
            (Metric::EndpointFailures, cell.failures.load(Relaxed)),
            (Metric::EndpointConnectFailures, cell.connect_failures.load(Relaxed)),
            (Metric::EndpointConnections, cell.connections.load(Relaxed).into()),
            (Metric::EndpointEjected, cell.ejected.load(Relaxed).into()),
            (Metric::EndpointEjections, cell.ejections.load(Relaxed)),
        ] {
            samples.count(metric, &[cluster, &address], value);
        }
    });
}

fn collect_xds(xds: &XdsStatus, samples: &mut Samples) {
    samples.count(Metric::XdsConnected, &[], xds.connected.into());
    samples.count(Metric::XdsConnects, &[], xds.connects);
    if let Some(age) = xds.last_heard {
        samples.real(Metric::XdsAge, &[], age.as_secs_f64());
    }
    for resource in &xds.types {
        samples.with(Metric::XdsAccepted, &[], &resource.name, resource.accepted);
        samples.with(Metric::XdsRejected, &[], &resource.name, resource.rejected);
        samples.with(Metric::XdsResources, &[], &resource.name, resource.resources);
    }
    for (path, count) in &xds.ignored_fields {
        samples.with(Metric::XdsIgnoredFields, &[], path, *count);
    }
}

fn collect_reactors(workers: &[WorkerIo], samples: &mut Samples) {
    for io in workers {
        let worker = io.worker.to_string();
        for (metric, value) in [
            (Metric::WorkerConnections, io.connections as u64),
            (Metric::WorkerHandedOver, io.handed_over),
            (Metric::ReactorTurns, io.turns),
            (Metric::ReactorSyscalls, io.syscalls),
            (Metric::ReactorSubmissions, io.submissions),
            (Metric::ReactorCompletions, io.completions),
            (Metric::ReactorCancels, io.cancels),
            (Metric::ReactorReceived, io.recv_bytes),
            (Metric::ReactorSent, io.sent_bytes),
            (Metric::ReactorSpliced, io.spliced_bytes),
            (Metric::ReactorCopied, io.copied_bytes),
            (Metric::ReactorZeroCopySends, io.zc_sends),
            (Metric::ReactorZeroCopyCopied, io.zc_copied),
            (Metric::ReactorBuffers, io.buffers_in_use),
            (Metric::ReactorExhausted, io.buffer_exhausted),
            (Metric::ReactorTasks, io.tasks),
            (Metric::ReactorSockets, io.sockets),
            (Metric::ReactorTimers, io.timers),
        ] {
            samples.with(metric, &[], &worker, value);
        }
    }
}

/// Workers move a level one after the other, so a sum taken between two of them may dip below zero.
fn level(sum: i64) -> u64 {
    sum.max(0).unsigned_abs()
}
