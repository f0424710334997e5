//! The idle timeout and the longest life of an opaque connection, behind one timer.
//!
//! **Shape.** The timer is armed for the soonest of both and looks again when it fires: bytes that move only store a time.

use std::pin::Pin;
use std::task::{Context, Poll};
use std::time::{Duration, Instant};

use outrigger_reactor::{Sleep, now, sleep_until};

use crate::fault::Kind;

/// What ends a connection that does not end by itself.
#[derive(Debug)]
pub(super) struct Clock {
    /// `None`: nothing does.
    timer: Option<Sleep>,
    is_armed: bool,
    idle: Option<Duration>,
    moved_at: Instant,
    over_age: Option<Instant>,
}

impl Clock {
    /// A clock that runs from now on.
    pub(super) fn new(idle: Option<Duration>, life: Option<Duration>) -> Self {
        let moved_at = now();
        let over_age = life.map(|life| moved_at + life);
        let mut clock = Self { timer: None, is_armed: false, idle, moved_at, over_age };
        clock.timer = clock.soonest().map(|(at, _)| sleep_until(at));
        clock
    }

    /// Takes note of whether bytes moved since the last call; ready with what is due. To be polled by one task only: the
    /// timer is not looked at before its time.
    pub(super) fn poll_due(&mut self, has_moved: bool, cx: &mut Context<'_>) -> Poll<Kind> {
        let Some(timer) = &mut self.timer else { return Poll::Pending };
        let now = now();
        if has_moved {
            self.moved_at = now;
        }
        if self.is_armed && now < timer.deadline() {
            return Poll::Pending;
        }
        self.poll_timer(now, cx)
    }

    fn poll_timer(&mut self, now: Instant, cx: &mut Context<'_>) -> Poll<Kind> {
        let soonest = self.soonest();
        let (Some(timer), Some((at, kind))) = (&mut self.timer, soonest) else { return Poll::Pending };
        if at <= now {
            return Poll::Ready(kind);
        }
        self.is_armed = true;
        timer.reset(at);
        // Not due, as just seen: this leaves the waker with the timer.
        Pin::new(timer).poll(cx).map(|()| kind)
    }

    fn soonest(&self) -> Option<(Instant, Kind)> {
        let idle = self.idle.map(|idle| (self.moved_at + idle, Kind::RelayIdle));
        let over_age = self.over_age.map(|at| (at, Kind::RelayOverAge));
        idle.into_iter().chain(over_age).min_by_key(|(at, _)| *at)
    }
}
