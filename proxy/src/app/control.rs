//! The control thread.

use std::cell::{Cell, RefCell};
use std::future::pending;
use std::io::ErrorKind;
use std::net::SocketAddr;
use std::rc::Rc;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use outrigger_reactor::Probe;
use tokio::signal::unix::{SignalKind, signal};
use tokio::sync::watch;

use super::Failure;
use super::glue::{self, Health, Phase};
use super::heartbeat;
use super::leave::{self, Leaving, Left, Seen};
use super::log::LogLevel;
use super::thread::{Command, Seed, WorkerThread};
use crate::admin::{self, HealthSources, Readiness};
use crate::bootstrap::{Bootstrap, Settings, WorkerCount};
use crate::config::{Publisher, Snapshot};
use crate::listener::{BindError, Change, Crew, Sockets};
use crate::observe::EpochLog;
use crate::stats::Registry;
use crate::worker::{Bell, Shared};
use crate::xds::{self, XdsStatus};

/// Shortest time between two looks, and the time between them while something is awaited: the start, the end of who sends
/// here. Otherwise the thread sleeps until something is due.
const TICK: Duration = Duration::from_millis(100);
/// Time between two attempts to bind what could not be bound.
const REBIND_EVERY: Duration = Duration::from_secs(1);
/// For how long after the start an address in use is tried again. The kernel takes a ring apart after its process has ended:
/// the listening sockets of a proxy that was killed live on for some milliseconds. nginx tries five times, 500 ms apart.
const BINDS_WITHIN: Duration = Duration::from_secs(2);
/// Time without a publication after which the code that reads configuration is taken out of memory.
const RELEASE_AFTER: Duration = Duration::from_secs(2);

/// What the control thread works with.
pub(super) struct Control {
    pub(super) publisher: Publisher,
    pub(super) shared: Arc<Shared>,
    pub(super) epochs: Arc<EpochLog>,
    pub(super) workers: Arc<Vec<WorkerThread>>,
    pub(super) worker_count: WorkerCount,
    pub(super) phase: Arc<watch::Sender<Phase>>,
    pub(super) health: Arc<Mutex<Health>>,
    pub(super) status: Arc<XdsStatus>,
    pub(super) log: Arc<LogLevel>,
    pub(super) bootstrap: Arc<Bootstrap>,
    pub(super) sockets: RefCell<Sockets>,
    pub(super) left: watch::Sender<Option<Left>>,
    /// An endpoint set has had the workload's address.
    was_listed: Cell<bool>,
    unbound: RefCell<Vec<BindError>>,
    announced: Cell<bool>,
    /// Until when an address in use is no reason to end.
    binds_until: Instant,
    due: Due,
    admin: Option<SocketAddr>,
    driver: &'static str,
}

/// What is to be done without anybody's asking.
struct Due {
    /// Another attempt is made to bind what could not be bound.
    rebind_at: Cell<Option<Instant>>,
    /// The code that reads configuration is taken out of memory.
    release_at: Cell<Option<Instant>>,
    /// Endpoints may come back from ejection.
    sweep_at: Cell<Option<Instant>>,
    /// There is a new snapshot: what is due is due at other times.
    is_new: Bell,
}

impl Due {
    fn after(started: Instant) -> Self {
        Self {
            rebind_at: Cell::new(None),
            release_at: Cell::new(Some(started + RELEASE_AFTER)),
            sweep_at: Cell::new(None),
            is_new: Bell::default(),
        }
    }

    /// There is a new snapshot.
    fn begin_anew(&self, now: Instant) {
        self.release_at.set(Some(now + RELEASE_AFTER));
        self.sweep_at.set(Some(now));
        self.is_new.ring();
    }

    /// An endpoint was ejected. Many may be at once: all share one sweep.
    fn sweep_soon(&self, now: Instant) {
        let soon = now + TICK;
        self.sweep_at.set(Some(self.sweep_at.get().map_or(soon, |at| at.min(soon))));
    }

    fn next(&self) -> Option<Instant> {
        [&self.rebind_at, &self.release_at, &self.sweep_at].into_iter().filter_map(Cell::get).min()
    }

    /// True once a moment has come; it is then no longer due.
    fn has_come(at: &Cell<Option<Instant>>, now: Instant) -> bool {
        let has_come = at.get().is_some_and(|at| at <= now);
        if has_come {
            at.set(None);
        }
        has_come
    }
}

/// Runs the proxy to its end.
pub fn run(settings: &Settings, bootstrap: Bootstrap, probe: Probe, log: LogLevel) -> Result<(), Failure> {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .map_err(|error| Failure::Broke(format!("cannot start the control thread: {error}")))?;
    runtime.block_on(control(settings, Arc::new(bootstrap), probe, Arc::new(log)))
}

async fn control(
    settings: &Settings,
    bootstrap: Arc<Bootstrap>,
    probe: Probe,
    log: Arc<LogLevel>,
) -> Result<(), Failure> {
    let admin_socket = match bootstrap.admin {
        None => None,
        Some(address) => Some(glue::bind_admin(address).await?),
    };
    let health_socket = match settings.health {
        None => None,
        Some(address) => Some(glue::bind_health(address).await?),
    };
    let (started, status) = (Instant::now(), Arc::<XdsStatus>::default());
    let shared = Shared::new(Arc::<Registry>::default(), started);
    shared.own.set_heartbeat_port(settings.heartbeat_port);
    let (publisher, worker_count) = (Publisher::new(), settings.worker_count());
    note(&worker_count);
    let workers = Arc::new(start_workers(worker_count.count, &probe, &shared, &publisher)?);
    let (phase, phases) = watch::channel(Phase::Starting);
    let control = Rc::new(Control {
        publisher,
        shared,
        epochs: Arc::default(),
        workers,
        worker_count,
        phase: Arc::new(phase),
        health: Arc::new(Mutex::new(Health::new(settings.capture_heartbeat))),
        status: status.clone(),
        log,
        sockets: RefCell::default(),
        left: watch::channel(None).0,
        was_listed: Cell::new(false),
        unbound: RefCell::default(),
        announced: Cell::new(false),
        binds_until: started + BINDS_WITHIN,
        due: Due::after(started),
        admin: admin_socket.as_ref().and_then(|socket| socket.local_addr().ok()),
        driver: probe.driver.as_str(),
        bootstrap: bootstrap.clone(),
    });
    let failed = Rc::new(RefCell::new(None));
    let publishing = (control.clone(), failed.clone());
    let configuring = xds::run(bootstrap, status, move |snapshot| {
        if let Err(failure) = publishing.0.publish(&snapshot) {
            publishing.1.replace(Some(failure));
        }
    });
    let sources = glue::sources(&control, &probe, started);
    let ended = || {
        let mut ends = phases.clone();
        async move {
            // The sender lives as long as the control thread: an error means that it is over.
            let _ = ends.wait_for(|phase| *phase == Phase::Ended).await;
        }
    };
    let serving_admin = async {
        match admin_socket {
            None => pending().await,
            Some(socket) => admin::serve(socket, sources.clone(), ended()).await,
        }
    };
    let serving_health = async {
        match health_socket {
            None => pending().await,
            Some(socket) => {
                let health = HealthSources { sources: sources.clone(), leave: glue::leave(&control) };
                admin::serve_health(socket, health, ended()).await
            }
        }
    };
    let beating = async {
        match settings.capture_heartbeat {
            false => pending().await,
            true => heartbeat::beat(settings.heartbeat_port, control.health.clone()).await,
        }
    };
    tokio::select! {
        () = configuring => Err(Failure::Broke("the configuration client ended".to_owned())),
        ended = serving_admin => Err(Failure::Broke(format!("the admin port ended: {ended:?}"))),
        ended = serving_health => Err(Failure::Broke(format!("the health port ended: {ended:?}"))),
        () = beating => Err(Failure::Broke("the heartbeats ended".to_owned())),
        result = live(&control, settings, &failed) => result,
    }
}

/// Says how many workers there are and why.
fn note(workers: &WorkerCount) {
    match workers.is_above_quota {
        false => tracing::info!(count = workers.count, "workers: {}", workers.reason),
        true => tracing::warn!(
            count = workers.count,
            "workers: {}; they will wait for each other: leave --workers out",
            workers.reason
        ),
    }
}

fn start_workers(
    count: usize,
    probe: &Probe,
    shared: &Arc<Shared>,
    publisher: &Publisher,
) -> Result<Vec<WorkerThread>, Failure> {
    let seed = glue::seed();
    let crew = Crew::muster(count).into_iter().enumerate();
    crew.map(|(index, (crew, inbox))| {
        WorkerThread::spawn(Seed {
            index,
            driver: probe.driver,
            shared: shared.clone(),
            reader: publisher.reader(),
            chance: seed.wrapping_add(index as u64),
            crew,
            inbox,
        })
        .map_err(|error| Failure::Broke(format!("cannot start worker {index}: {error}")))
    })
    .collect()
}

/// Ticks and signals until the process is to end.
async fn live(control: &Rc<Control>, settings: &Settings, failed: &RefCell<Option<Failure>>) -> Result<(), Failure> {
    let broke = |error: std::io::Error| Failure::Broke(format!("cannot listen for signals: {error}"));
    let mut terminate = signal(SignalKind::terminate()).map_err(broke)?;
    let mut interrupt = signal(SignalKind::interrupt()).map_err(broke)?;
    let mut phases = control.phase.subscribe();
    let mut leaving: Option<Leaving> = None;
    let mut is_to_end = false;
    let mut start = (!settings.ready_deadline.is_zero()).then(Instant::now);
    let mut next = Some(Instant::now());
    loop {
        tokio::select! {
            _ = terminate.recv() => match std::mem::replace(&mut is_to_end, true) {
                true => glue::begin_drain(&control.phase),
                false => glue::begin_to_end(&control.phase),
            },
            _ = interrupt.recv() => glue::begin_drain(&control.phase),
            _ = phases.changed() => {}
            () = control.due.is_new.heard() => {}
            () = control.shared.ejections.heard() => control.due.sweep_soon(Instant::now()),
            () = at(next) => {}
        }
        if let Some(failure) = failed.borrow_mut().take() {
            return Err(failure);
        }
        let phase = *control.phase.borrow();
        match phase {
            Phase::Ended => return Ok(()),
            Phase::Draining => break,
            Phase::Leaving => {
                let (now, seen) = (Instant::now(), control.seen());
                let leaving = leaving.get_or_insert_with(|| Leaving::begin(now, settings.drain_time, seen));
                if let Some(left) = leaving.step(now, seen) {
                    control.note_left(left);
                    if is_to_end {
                        break;
                    }
                }
            }
            Phase::Starting | Phase::Ready => control.look_at_start(&mut start, settings.ready_deadline)?,
        }
        control.tick()?;
        next = match leaving.is_some() || start.is_some() || !control.announced.get() {
            true => Some(Instant::now() + TICK),
            false => control.due.next().map(|next| next.max(Instant::now() + TICK)),
        };
    }
    let deadline = leaving.map_or_else(|| Instant::now() + settings.drain_time, |leaving| leaving.deadline());
    let left = *control.left.borrow();
    control.drain((deadline, left), (&mut terminate, &mut interrupt)).await
}

/// Ends at a moment, or never.
async fn at(moment: Option<Instant>) {
    match moment {
        Some(moment) => tokio::time::sleep_until(moment.into()).await,
        None => pending().await,
    }
}

impl Control {
    /// Makes a snapshot current and has its listeners served.
    fn publish(&self, snapshot: &Arc<Snapshot>) -> Result<(), Failure> {
        let previous = self.publisher.current();
        self.due.begin_anew(Instant::now());
        self.was_listed.set(self.was_listed.get() || leave::is_listed(snapshot, &self.bootstrap.node.addresses));
        // Before the swap: a worker that sees the snapshot finds the live state of its endpoints.
        self.shared.follow(snapshot);
        self.publisher.publish(snapshot.clone());
        self.epochs.record(&previous, snapshot, std::time::SystemTime::now());
        tracing::info!(
            epoch = snapshot.epoch,
            listeners = snapshot.listeners().len(),
            clusters = snapshot.clusters().len(),
            "configuration published"
        );
        // What drains listens no more, whatever is pushed: nobody would accept.
        match *self.phase.borrow() {
            Phase::Draining | Phase::Ended => Ok(()),
            Phase::Leaving | Phase::Starting | Phase::Ready => self.follow_sockets(snapshot),
        }
    }

    /// Binds and closes what the snapshot asks for. A static listener that cannot be bound at the start ends the
    /// process, after [`BINDS_WITHIN`] where its address is in use; any other is tried again.
    fn follow_sockets(&self, snapshot: &Snapshot) -> Result<(), Failure> {
        let mut sockets = self.sockets.borrow_mut();
        let (changes, errors) = sockets.follow(snapshot);
        // Before anybody accepts from what is new.
        self.shared.own.set_listeners(sockets.addresses());
        for change in changes {
            self.command(&sockets, change);
        }
        if let Some(error) = errors.iter().find(|error| self.is_final(error)) {
            return Err(Failure::Refused(error.to_string()));
        }
        let known: Vec<_> = self.unbound.borrow().iter().map(|error| (error.listener.clone(), error.address)).collect();
        for error in errors.iter().filter(|error| !known.contains(&(error.listener.clone(), error.address))) {
            tracing::error!("{error}");
        }
        self.health.lock().unwrap_or_else(PoisonError::into_inner).unbound =
            errors.iter().map(ToString::to_string).collect();
        self.due.rebind_at.set((!errors.is_empty()).then(|| Instant::now() + REBIND_EVERY));
        self.unbound.replace(errors);
        Ok(())
    }

    /// Whether an address that cannot be bound ends the process.
    fn is_final(&self, error: &BindError) -> bool {
        let may_be_free_soon = error.cause.kind() == ErrorKind::AddrInUse && Instant::now() < self.binds_until;
        !self.announced.get() && !may_be_free_soon && self.bootstrap.resources.listeners.contains_key(&error.listener)
    }

    fn command(&self, sockets: &Sockets, change: Change) {
        for worker in self.workers.iter() {
            let command = match &change {
                Change::Unlisten { listener, configured } => {
                    Command::Unlisten { listener: listener.clone(), configured: *configured }
                }
                Change::Listen { listener, configured } => match sockets.duplicate(listener, *configured) {
                    Some(Ok(socket)) => Command::Listen { listener: listener.clone(), configured: *configured, socket },
                    Some(Err(error)) => {
                        tracing::error!(%listener, %configured, %error, "cannot duplicate the socket for a worker");
                        continue;
                    }
                    None => continue,
                },
            };
            worker.send(command);
        }
    }

    /// What readiness depends on, as it stands.
    pub(super) fn readiness(&self) -> Readiness {
        glue::readiness(*self.phase.borrow(), &self.health, &self.status)
    }

    /// Who still sends here.
    fn seen(&self) -> Seen {
        let snapshot = self.publisher.current();
        Seen {
            is_listed: leave::is_listed(&snapshot, &self.bootstrap.node.addresses),
            was_listed: self.was_listed.get(),
            arrivals: leave::arrivals(&snapshot, &self.shared.registry),
        }
    }

    /// Says once that nothing comes here any more, or that the time for that is over.
    fn note_left(&self, left: Left) {
        self.left.send_if_modified(|known| {
            let is_new = known.is_none();
            if is_new {
                *known = Some(left);
                match left.is_late {
                    None => tracing::info!("left: {left}"),
                    Some(_) => tracing::warn!("leaving all the same: {left}"),
                }
            }
            is_new
        });
    }

    /// Ends a start that takes too long: `began` is forgotten once this proxy was ready.
    fn look_at_start(&self, began: &mut Option<Instant>, deadline: Duration) -> Result<(), Failure> {
        let Some(since) = *began else { return Ok(()) };
        let readiness = self.readiness();
        if readiness.is_ready() {
            *began = None;
        } else if since.elapsed() >= deadline {
            let missing = readiness.reasons().join("; ");
            tracing::error!(?deadline, "not ready in time: {missing}");
            return Err(Failure::Broke(format!("not ready within {deadline:?} (--ready-deadline): {missing}")));
        }
        Ok(())
    }

    fn tick(&self) -> Result<(), Failure> {
        let (snapshot, now) = (self.publisher.current(), Instant::now());
        if Due::has_come(&self.due.sweep_at, now) {
            self.due.sweep_at.set(self.shared.sweep(&snapshot, now));
        }
        if Due::has_come(&self.due.release_at, now) {
            outrigger_reactor::release_image();
        }
        // At the start somebody waits for it.
        let is_due = Due::has_come(&self.due.rebind_at, now) || !self.announced.get();
        if is_due && !self.unbound.borrow().is_empty() {
            self.follow_sockets(&snapshot)?;
        }
        if !self.announced.get() && self.status.is_ready() && self.unbound.borrow().is_empty() {
            self.announce();
        }
        Ok(())
    }

    /// Says once, on standard output, where everything listens.
    fn announce(&self) {
        use std::io::Write as _;
        self.announced.set(true);
        self.phase.send_if_modified(|phase| {
            let starts = *phase == Phase::Starting;
            if starts {
                *phase = Phase::Ready;
            }
            starts
        });
        let listeners: Vec<String> =
            self.sockets.borrow().addresses().into_iter().map(|(name, address)| format!("{name}={address}")).collect();
        let admin = self.admin.map_or_else(|| "none".to_owned(), |address| address.to_string());
        let line = format!("outrigger-proxy ready listeners={} admin={admin} io={}", listeners.join(","), self.driver);
        tracing::info!("{line}");
        // A closed standard output is no reason to stop serving.
        let _ = writeln!(std::io::stdout(), "{line}");
        let _ = std::io::stdout().flush();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_storm_of_ejections_puts_no_sweep_off() {
        let now = Instant::now();
        let due = Due::after(now);
        assert_eq!(due.next(), Some(now + RELEASE_AFTER), "nobody is ejected");
        due.sweep_soon(now);
        due.sweep_soon(now + TICK / 2);
        assert_eq!(due.next(), Some(now + TICK));
        due.begin_anew(now);
        due.sweep_soon(now);
        assert_eq!(due.next(), Some(now), "a new snapshot is looked at at once");
    }
}
