//! What the admin port is told, put together from the rooms that it does not know.

use std::collections::hash_map::RandomState;
use std::hash::{BuildHasher as _, Hasher as _};
use std::io;
use std::net::{Ipv4Addr, Ipv6Addr, SocketAddr};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Instant;

use outrigger_reactor::Probe;
use socket2::{Domain, Protocol, Socket, Type};
use tokio::sync::watch;

use super::Failure;
use super::control::Control;
use super::heartbeat::CaptureProof;
use super::log::LogLevel;
use super::thread::WorkerThread;
use crate::admin::{AdminControl, AdminSources, Condition, Leave, Readiness};
use crate::bootstrap::{HealthAddress, WorkerCount};
use crate::observe::{IoCheck, IoView, LimitLevel, WorkerIo};
use crate::xds::XdsStatus;

/// Connections to the health port that the kernel queues.
const HEALTH_BACKLOG: i32 = 128;

/// Where the process is in its life.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Phase {
    /// No new work; what runs may finish.
    Draining,
    /// Over.
    Ended,
    /// Serving, and waiting for peers to send elsewhere.
    Leaving,
    /// Serving.
    Ready,
    /// Waiting for its first configuration.
    Starting,
}

/// What readiness depends on.
#[derive(Debug, Default)]
pub(super) struct Health {
    /// `POST /healthcheck/fail` was called.
    pub(super) failed: bool,
    /// Listeners that could not be bound.
    pub(super) unbound: Vec<String>,
    /// What the heartbeats have shown; `None`: none are sent.
    pub(super) capture: Option<CaptureProof>,
}

impl Health {
    /// Of a process that begins; `beats`: it is to prove its capture.
    pub(super) fn new(beats: bool) -> Self {
        Self { capture: beats.then(CaptureProof::default), ..Self::default() }
    }
}

/// The admin port's view of a running proxy.
pub(super) fn sources(control: &Control, probe: &Probe, started: Instant) -> Arc<AdminSources> {
    let workers = control.workers.clone();
    let (health, phase, status) = (control.health.clone(), control.phase.clone(), control.status.clone());
    let shared = control.shared.clone();
    let xds = control.status.clone();
    Arc::new(AdminSources {
        registry: control.shared.registry.clone(),
        publisher: control.publisher.clone(),
        epochs: control.epochs.clone(),
        started,
        io: io_view(probe, &control.worker_count),
        workers: Arc::new(move || workers.iter().enumerate().map(|(at, worker)| worker_io(at, worker)).collect()),
        capture: {
            let health = health.clone();
            Arc::new(move || locked(&health).capture.as_ref().map(CaptureProof::view))
        },
        ready: Arc::new(move || readiness(*phase.borrow(), &health, &status)),
        xds: Arc::new(move || xds.view()),
        limits: Arc::new(move || {
            let now_ns = shared.since_start_ns(Instant::now());
            let mut levels = Vec::new();
            shared.buckets.each(|rule, bucket| {
                levels.push(LimitLevel {
                    rule: rule.to_owned(),
                    tokens: u64::from(bucket.tokens(now_ns)),
                    max_tokens: u64::from(bucket.config().max_tokens),
                });
            });
            levels
        }),
        control: Arc::new(Controls {
            phase: control.phase.clone(),
            health: control.health.clone(),
            log: control.log.clone(),
        }),
        node: control.bootstrap.node.id.to_string(),
    })
}

/// What readiness depends on, and what of it is missing.
pub(super) fn readiness(phase: Phase, health: &Mutex<Health>, status: &XdsStatus) -> Readiness {
    let health = locked(health);
    let mut config = status.waiting();
    if phase == Phase::Starting {
        config.insert(0, "waiting for the first configuration".to_owned());
    }
    let draining = match phase {
        Phase::Starting | Phase::Ready => None,
        Phase::Leaving => Some("leaving: told to end, and serving until nobody sends here any more"),
        Phase::Draining | Phase::Ended => Some("draining"),
    };
    let failed = health.failed.then_some("POST /healthcheck/fail was called; POST /healthcheck/ok takes it back");
    let one = |name, reasons| Condition { name, reasons };
    let told = |reason: Option<&str>| reason.map(str::to_owned).into_iter().collect();
    let mut conditions = vec![
        one("config", config),
        one("listeners", health.unbound.clone()),
        one("draining", told(draining)),
        one("healthcheck", told(failed)),
    ];
    if let Some(proof) = &health.capture {
        conditions.insert(2, one("capture", proof.reasons()));
    }
    Readiness { conditions }
}

fn io_view(probe: &Probe, workers: &WorkerCount) -> IoView {
    IoView {
        choice: format!("{:?}", probe.choice).to_lowercase(),
        driver: probe.driver.as_str().to_owned(),
        reason: probe.reason.clone(),
        kernel: probe.kernel.clone(),
        checks: probe
            .checks
            .iter()
            .map(|check| IoCheck { name: check.name.to_owned(), passed: check.passed, detail: check.detail.clone() })
            .collect(),
        worker_count: workers.count,
        worker_reason: workers.reason.clone(),
    }
}

fn worker_io(worker: usize, thread: &WorkerThread) -> WorkerIo {
    let counters = thread.counters();
    WorkerIo {
        worker,
        connections: thread.connections(),
        handed_over: thread.handed_over(),
        turns: counters.turns,
        syscalls: counters.syscalls,
        submissions: counters.submissions,
        completions: counters.completions,
        cancels: counters.cancels,
        recv_bytes: counters.recv_bytes,
        sent_bytes: counters.sent_bytes,
        spliced_bytes: counters.spliced_bytes,
        copied_bytes: counters.copied_bytes,
        zc_sends: counters.zc_sends,
        zc_copied: counters.zc_copied,
        buffers_in_use: counters.buffers_in_use,
        buffer_exhausted: counters.buffer_exhausted,
        tasks: counters.tasks_live,
        sockets: counters.sockets_open,
        timers: counters.timers_armed,
    }
}

struct Controls {
    phase: Arc<watch::Sender<Phase>>,
    health: Arc<Mutex<Health>>,
    log: Arc<LogLevel>,
}

/// The way out for the health port.
pub(super) fn leave(control: &Control) -> Leave {
    let (phase, left) = (control.phase.clone(), control.left.subscribe());
    Arc::new(move || {
        let (mut phases, mut left) = (phase.subscribe(), left.clone());
        begin_to_leave(&phase);
        Box::pin(async move {
            // The senders live as long as the control thread.
            let left = left.wait_for(Option::is_some);
            let gone = phases.wait_for(|phase| matches!(phase, Phase::Draining | Phase::Ended));
            tokio::select! {
                biased;
                Ok(left) = left => left.map_or_else(String::new, |left| left.to_string()),
                _ = gone => "draining already".to_owned(),
            }
        })
    })
}

/// Binds the admin port.
pub(super) async fn bind_admin(address: SocketAddr) -> Result<tokio::net::TcpListener, Failure> {
    tokio::net::TcpListener::bind(address).await.map_err(|error| {
        Failure::Refused(format!(
            "admin: cannot bind {address}: {error}; choose another admin.address, or stop what holds the port"
        ))
    })
}

/// Binds the health port.
pub(super) async fn bind_health(address: HealthAddress) -> Result<tokio::net::TcpListener, Failure> {
    let any = |port| [SocketAddr::from((Ipv6Addr::UNSPECIFIED, port)), (Ipv4Addr::UNSPECIFIED, port).into()];
    let (first, other) = match address {
        HealthAddress::One(address) => (address, None),
        HealthAddress::All(port) => (any(port)[0], Some(any(port)[1])),
    };
    let refused = |error: io::Error| {
        Failure::Refused(format!(
            "--health: cannot bind {address:?}: {error}; choose another address, or stop what holds the port"
        ))
    };
    match (bind(first), other) {
        (Ok(socket), _) => Ok(socket),
        // A machine without IPv6.
        (Err(error), Some(other)) if error.kind() != io::ErrorKind::AddrInUse => bind(other).map_err(refused),
        (Err(error), _) => Err(refused(error)),
    }
}

/// A listening socket; `[::]` takes IPv4 too.
fn bind(address: SocketAddr) -> io::Result<tokio::net::TcpListener> {
    let socket = Socket::new(Domain::for_address(address), Type::STREAM, Some(Protocol::TCP))?;
    socket.set_reuse_address(true)?;
    if address.is_ipv6() {
        socket.set_only_v6(!address.ip().is_unspecified())?;
    }
    socket.bind(&address.into())?;
    socket.listen(HEALTH_BACKLOG)?;
    socket.set_nonblocking(true)?;
    tokio::net::TcpListener::from_std(socket.into())
}

impl AdminControl for Controls {
    fn drain(&self) {
        begin_drain(&self.phase);
    }

    fn quit(&self) {
        // In good order: what runs may finish within the drain time.
        begin_drain(&self.phase);
    }

    fn set_healthy(&self, healthy: bool) {
        locked(&self.health).failed = !healthy;
    }

    fn set_log_level(&self, level: &str) -> Result<(), String> {
        self.log.set(level)
    }

    fn log_level(&self) -> String {
        self.log.text()
    }
}

/// Moves to [`Phase::Draining`] unless that or more has happened.
pub(super) fn begin_drain(phase: &watch::Sender<Phase>) {
    advance(phase, Phase::Draining, |phase| matches!(phase, Phase::Leaving | Phase::Starting | Phase::Ready));
}

/// Moves to [`Phase::Leaving`], unless that or more has happened.
fn begin_to_leave(phase: &watch::Sender<Phase>) {
    advance(phase, Phase::Leaving, |phase| matches!(phase, Phase::Starting | Phase::Ready));
}

/// Begins the end: who has never served is not waited for.
pub(super) fn begin_to_end(phase: &watch::Sender<Phase>) {
    advance(phase, Phase::Draining, |phase| phase == Phase::Starting);
    begin_to_leave(phase);
}

fn advance(phase: &watch::Sender<Phase>, to: Phase, from: impl FnOnce(Phase) -> bool) {
    phase.send_if_modified(|phase| {
        let moves = from(*phase);
        if moves {
            *phase = to;
        }
        moves
    });
}

fn locked(health: &Mutex<Health>) -> MutexGuard<'_, Health> {
    health.lock().unwrap_or_else(PoisonError::into_inner)
}

/// A seed that differs from process to process: the standard library's hash keys, which the system draws.
pub(super) fn seed() -> u64 {
    RandomState::new().build_hasher().finish()
}
