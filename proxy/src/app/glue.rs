//! What the admin port is told, put together from the rooms that it does not know.

use std::collections::hash_map::RandomState;
use std::hash::{BuildHasher as _, Hasher as _};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Instant;

use outrigger_reactor::Probe;
use tokio::sync::watch;

use super::control::Control;
use super::log::LogLevel;
use super::thread::WorkerThread;
use crate::admin::{AdminControl, AdminSources, Readiness};
use crate::bootstrap::WorkerCount;
use crate::observe::{IoCheck, IoView, LimitLevel, WorkerIo};

/// Where the process is in its life.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Phase {
    /// No new work; what runs may finish.
    Draining,
    /// Over.
    Ended,
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
        ready: Arc::new(move || readiness(*phase.borrow(), &health, status.waiting())),
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

fn readiness(phase: Phase, health: &Mutex<Health>, waiting: Vec<String>) -> Readiness {
    let health = health.lock().unwrap_or_else(PoisonError::into_inner);
    let mut reasons = health.unbound.clone();
    match phase {
        Phase::Ready => {}
        Phase::Draining | Phase::Ended => reasons.push("draining".to_owned()),
        Phase::Starting => {
            reasons.push("waiting for the first configuration".to_owned());
            reasons.extend(waiting);
        }
    }
    if health.failed {
        reasons.push("POST /healthcheck/fail was called; POST /healthcheck/ok takes it back".to_owned());
    }
    if reasons.is_empty() { Readiness::Ready } else { Readiness::NotReady { reasons } }
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

impl AdminControl for Controls {
    fn drain(&self) {
        begin_drain(&self.phase);
    }

    fn quit(&self) {
        // In good order: what runs may finish within the drain time.
        begin_drain(&self.phase);
    }

    fn set_healthy(&self, healthy: bool) {
        self.health.lock().unwrap_or_else(PoisonError::into_inner).failed = !healthy;
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
    phase.send_if_modified(|phase| {
        let starts = matches!(phase, Phase::Starting | Phase::Ready);
        if starts {
            *phase = Phase::Draining;
        }
        starts
    });
}

/// A seed that differs from process to process: the standard library's hash keys, which the system draws.
pub(super) fn seed() -> u64 {
    RandomState::new().build_hasher().finish()
}
