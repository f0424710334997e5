//! **Purpose.** The end of a running proxy: connections finish, then workers, then the process.
//!
//! **Shape.** Two steps, so that a workload that is still answering what came before may go on asking others:
//! ```text
//!   listeners closed but for outbound ones ──▶ nothing inbound is open ──▶ outbound ones closed ──▶ nothing is open ──▶ ended
//!            │ deadline, or another signal: all that is left is reset ─────────────────────────────────────────────▶ ended
//! ```
//!
//! **Errors.** [`Failure::Broke`] when connections were cut off: whoever started the process is to learn of it.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use tokio::signal::unix::Signal;

use super::Failure;
use super::control::Control;
use super::glue::Phase;
use super::leave::{self, Left};
use super::thread::{Command, WorkerThread};
use crate::config::Direction;

/// How long workers may take to end, and the time between two looks at whether they have.
const STOP_TIME: Duration = Duration::from_secs(2);
const STOP_TICK: Duration = Duration::from_millis(1);
/// Time between two looks at a drain's progress.
const DRAIN_TICK: Duration = Duration::from_millis(20);

impl Control {
    /// Closes the listeners, waits for the connections until `deadline`, ends the workers. `left` is what was waited for before.
    pub(super) async fn drain(
        &self,
        (deadline, left): (Instant, Option<Left>),
        (terminate, interrupt): (&mut Signal, &mut Signal),
    ) -> Result<(), Failure> {
        let began = Instant::now();
        let left = left.map_or_else(|| "nobody was waited for".to_owned(), |left| left.to_string());
        let time = deadline.saturating_duration_since(began);
        tracing::info!(?time, "draining: no new connections, waiting for the open ones; {left}");
        drop(self.sockets.borrow_mut().close());
        let closed = Arc::<AtomicUsize>::default();
        for worker in self.workers.iter() {
            worker.send(Command::Drain { closed: closed.clone() });
        }
        let over = tokio::time::sleep(time);
        tokio::pin!(over);
        let mut ticks = tokio::time::interval(DRAIN_TICK);
        let mut is_finishing = false;
        let why = loop {
            if !is_finishing && self.may_finish(&closed) {
                is_finishing = true;
                self.workers.iter().for_each(|worker| _ = worker.send(Command::Finish));
            }
            if self.workers.iter().all(WorkerThread::is_finished) {
                break "";
            }
            tokio::select! {
                _ = ticks.tick() => {}
                () = &mut over => break "the time is over",
                _ = terminate.recv() => break "told to end at once",
                _ = interrupt.recv() => break "told to end at once",
            }
        };
        let cut: usize = match why {
            "" => 0,
            _ => self.workers.iter().map(WorkerThread::connections).sum(),
        };
        self.stop().await;
        self.phase.send_replace(Phase::Ended);
        let drained = began.elapsed();
        if cut == 0 {
            tracing::info!(?drained, "ended: every connection finished; {left}");
            return Ok(());
        }
        tracing::warn!(?drained, cut, "ended: {why}, and connections with work under way were cut off; {left}");
        Err(Failure::Broke(format!("{why}: {cut} connections were cut off; more --drain-time may let them finish")))
    }

    /// True when nothing that came from outside is open any more, so that the workload need not ask anybody.
    fn may_finish(&self, closed: &AtomicUsize) -> bool {
        let snapshot = self.publisher.current();
        let has_outbound = snapshot.listeners().iter().any(|listener| listener.direction == Direction::Outbound);
        let has_closed = closed.load(Ordering::Acquire) == self.workers.len();
        !has_outbound || (has_closed && leave::inbound_connections(&snapshot, &self.shared.registry) <= 0)
    }

    /// Ends the workers, and waits while they do: connections that the end of the process closes would not be reset.
    async fn stop(&self) {
        for worker in self.workers.iter() {
            worker.send(Command::Stop);
        }
        let ended = async {
            while !self.workers.iter().all(WorkerThread::is_finished) {
                tokio::time::sleep(STOP_TICK).await;
            }
        };
        if tokio::time::timeout(STOP_TIME, ended).await.is_err() {
            tracing::warn!(stop_time = ?STOP_TIME, "a worker does not end: its connections end with the process");
        }
    }
}
