//! Worker threads: one runtime each, commanded through a mailbox.

use std::collections::HashMap;
use std::future::poll_fn;
use std::net::SocketAddr;
use std::pin::pin;
use std::rc::Rc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, PoisonError, mpsc};
use std::task::Poll;
use std::thread::JoinHandle;
use std::time::Duration;

use outrigger_reactor::{
    Counters, DriverKind, Mailbox, Options, Runtime, Sender, Task, TcpListener, counters, mailbox, sleep, spawn,
};

use crate::config::{Direction, ListenerName, Reader};
use crate::drain::{Drain, Watch};
use crate::listener::{self, Crew, Handed};
use crate::worker::{Shared, Worker};

/// Time between two looks at idle connections and two reports of counters.
const TICK: Duration = Duration::from_secs(1);

/// What the control thread tells a worker.
#[derive(Debug)]
pub(super) enum Command {
    /// Stop accepting, but for the workload's own traffic, and tell connections to finish; to be counted when done.
    Drain { closed: Arc<AtomicUsize> },
    /// Stop accepting at all, end when the last connection has.
    Finish,
    /// Accept from this socket.
    Listen { listener: ListenerName, configured: SocketAddr, socket: std::net::TcpListener },
    /// End now.
    Stop,
    /// Stop accepting from a socket.
    Unlisten { listener: ListenerName, configured: SocketAddr },
}

/// The control thread's end of a worker.
#[derive(Debug)]
pub(super) struct WorkerThread {
    commands: Sender<Command>,
    counters: Arc<Mutex<Counters>>,
    crew: Crew,
    thread: JoinHandle<()>,
}

/// What a worker is made from.
#[derive(Debug)]
pub(super) struct Seed {
    pub(super) index: usize,
    pub(super) driver: DriverKind,
    pub(super) shared: Arc<Shared>,
    pub(super) reader: Reader,
    pub(super) chance: u64,
    pub(super) crew: Crew,
    pub(super) inbox: Mailbox<Handed>,
}

impl WorkerThread {
    /// Starts a worker and waits until its runtime stands.
    pub(super) fn spawn(seed: Seed) -> std::io::Result<Self> {
        let (started, starting) = mpsc::channel();
        let counters = Arc::<Mutex<Counters>>::default();
        let reported = counters.clone();
        let crew = seed.crew.clone();
        let thread = std::thread::Builder::new().name(format!("worker-{}", seed.index)).spawn(move || {
            let mut runtime = match Runtime::new(seed.driver, &Options::default()) {
                Ok(runtime) => runtime,
                Err(error) => {
                    // The receiver is waiting below: it cannot be gone.
                    let _ = started.send(Err(error));
                    return;
                }
            };
            runtime.block_on(async move {
                let (sender, commands) = mailbox();
                if started.send(Ok(sender)).is_ok() {
                    let worker = Worker::new(seed.shared, seed.reader, seed.chance, seed.crew.load().clone());
                    let _ticking = spawn(tick(worker.clone(), reported));
                    obey(worker, commands, seed.crew, seed.inbox).await;
                }
            });
        })?;
        let commands = starting.recv().map_err(|_| std::io::Error::other("worker ended before it began"))??;
        Ok(Self { commands, counters, crew, thread })
    }

    /// Sends a command. False when the worker has ended.
    pub(super) fn send(&self, command: Command) -> bool {
        self.commands.send(command).is_ok()
    }

    /// Its reactor's counters, at most a second old.
    pub(super) fn counters(&self) -> Counters {
        *self.counters.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Its downstream connections now, with those on their way to it.
    pub(super) fn connections(&self) -> usize {
        self.crew.load().value() as usize
    }

    /// Connections that it accepted and handed to others.
    pub(super) fn handed_over(&self) -> u64 {
        self.crew.handed_over()
    }

    /// True once its last connection is gone or it was stopped.
    pub(super) fn is_finished(&self) -> bool {
        self.thread.is_finished()
    }
}

/// A running accept loop, or the way in for what other workers accept, and the way to end it.
struct Accepting {
    stop: Drain,
    task: Task<()>,
}

impl Accepting {
    fn begin<F: Future<Output = ()> + 'static>(accept: impl FnOnce(Watch) -> F) -> Self {
        let stop = Drain::default();
        let task = spawn(accept(stop.watch()));
        Self { stop, task }
    }

    /// Ends it once it has taken over whoever stands in the kernel's queue, or in the inbox.
    async fn end(self) {
        self.stop.start();
        self.task.await;
    }
}

/// A worker's root task.
async fn obey(worker: Rc<Worker>, mut commands: Mailbox<Command>, crew: Crew, inbox: Mailbox<Handed>) {
    let taking_in = Accepting::begin(|stop| listener::take_in(worker.clone(), inbox, stop));
    let mut accepting: HashMap<(ListenerName, SocketAddr), Accepting> = HashMap::new();
    while let Some(command) = commands.recv().await {
        match command {
            Command::Listen { listener, configured, socket } => match TcpListener::from_std(socket) {
                Ok(socket) => {
                    let (worker, crew) = (worker.clone(), crew.clone());
                    let begun = Accepting::begin(|stop| listener::accept(worker, crew, listener.clone(), socket, stop));
                    accepting.insert((listener, configured), begun);
                }
                Err(error) => tracing::error!(%listener, %configured, %error, "worker cannot use the socket"),
            },
            Command::Unlisten { listener, configured } => {
                if let Some(accepting) = accepting.remove(&(listener, configured)) {
                    accepting.end().await;
                }
            }
            Command::Drain { closed } => {
                let view = worker.view();
                let is_outbound = |name: &ListenerName| {
                    view.listener(name).is_some_and(|chain| chain.config().direction == Direction::Outbound)
                };
                let ending = accepting.extract_if(|(listener, _), _| !is_outbound(listener));
                for (_, accepting) in ending.collect::<Vec<_>>() {
                    accepting.end().await;
                }
                worker.drain.start();
                closed.fetch_add(1, Ordering::Release);
            }
            Command::Finish => {
                // First: others that still accept keep what they would have handed over.
                taking_in.end().await;
                for (_, accepting) in accepting.drain() {
                    accepting.end().await;
                }
                return finish(&worker, commands).await;
            }
            Command::Stop => return,
        }
    }
}

/// Ends when the last connection has, or when told to.
async fn finish(worker: &Worker, mut commands: Mailbox<Command>) {
    worker.drain.start();
    let mut stop = pin!(async {
        while let Some(command) = commands.recv().await {
            if matches!(command, Command::Stop) {
                return;
            }
        }
    });
    poll_fn(|cx| match worker.drain.poll_empty(cx) {
        Poll::Ready(()) => Poll::Ready(()),
        Poll::Pending => stop.as_mut().poll(cx),
    })
    .await;
}

async fn tick(worker: Rc<Worker>, reported: Arc<Mutex<Counters>>) {
    loop {
        sleep(TICK).await;
        worker.sweep();
        *reported.lock().unwrap_or_else(PoisonError::into_inner) = counters();
    }
}
