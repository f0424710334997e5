//! **Purpose.** The several clocks of one exchange behind one timer.
//!
//! **Shape.** [`Deadlines`] knows when the route timeout, the try's timeout and the idle timeout end. Its timer is armed
//! for the soonest that it has seen and looks again when it fires: bytes that move only store a time.
//!
//! **Cancel.** Plain state, polled by its owner.

use std::pin::Pin;
use std::task::{Context, Poll};
use std::time::{Duration, Instant};

use outrigger_reactor::{Sleep, now, sleep_until};

use crate::fault::Kind;

/// What binds an exchange at the moment.
#[derive(Debug)]
pub(super) struct Deadlines {
    timer: Sleep,
    armed: Instant,
    /// When each of [`BOUNDS`] happens.
    bounds: [Option<Instant>; BOUNDS.len()],
    idle: Option<(Duration, Instant)>,
}

/// What happens at a point in time. Of those at the same point the first here counts.
const BOUNDS: [Kind; 7] = [
    Kind::HeadTimeout,
    Kind::RequestTimeout,
    Kind::CallTimeout,
    Kind::RouteTimeout,
    Kind::PerTryTimeout,
    Kind::StreamOverAge,
    Kind::StreamIdle,
];

impl Deadlines {
    /// Nothing bound yet.
    pub(super) fn new() -> Self {
        // Armed far off: an hour later it looks, finds nothing due and is set anew.
        let armed = now() + Duration::from_secs(3600);
        Self { timer: sleep_until(armed), armed, bounds: [None; BOUNDS.len()], idle: None }
    }

    /// Forgets every bound.
    pub(super) fn clear(&mut self) {
        self.bounds = [None; BOUNDS.len()];
        self.idle = None;
    }

    /// From now on `kind` happens at `at`; `None` lifts it.
    pub(super) fn set(&mut self, kind: Kind, at: Option<Instant>) {
        let Some(place) = place(kind) else { return };
        self.bounds[place] = at;
        if let Some(at) = at {
            self.arm(at);
        }
    }

    /// [`Kind::StreamIdle`] happens when nothing moves for `span`; `None` lifts it.
    pub(super) fn set_idle(&mut self, span: Option<Duration>) {
        self.idle = span.map(|span| (span, now()));
        if let Some((span, since)) = self.idle {
            self.arm(since + span);
        }
    }

    /// Something moved.
    pub(super) fn touch(&mut self) {
        if let Some((_, since)) = &mut self.idle {
            *since = now();
        }
    }

    /// When `kind` happens.
    pub(super) fn at(&self, kind: Kind) -> Option<Instant> {
        self.bounds[place(kind)?]
    }

    /// Ready with the first bound that has passed.
    pub(super) fn poll_passed(&mut self, cx: &mut Context<'_>) -> Poll<Kind> {
        loop {
            if Pin::new(&mut self.timer).poll(cx).is_pending() {
                return Poll::Pending;
            }
            let now = now();
            let (soonest, kind) = self.soonest().unwrap_or((now + Duration::from_secs(3600), Kind::StreamIdle));
            if soonest <= now {
                return Poll::Ready(kind);
            }
            self.armed = soonest;
            self.timer.reset(soonest);
        }
    }

    fn soonest(&self) -> Option<(Instant, Kind)> {
        let idle = self.idle.map(|(span, since)| (since + span, Kind::StreamIdle));
        let bounds = self.bounds.iter().zip(BOUNDS).filter_map(|(at, kind)| Some(((*at)?, kind)));
        bounds.chain(idle).min_by_key(|(at, _)| *at)
    }

    /// One copy: every bound that is set ends here.
    #[inline(never)]
    fn arm(&mut self, at: Instant) {
        // A later bound needs no re-arming: the timer looks again when it fires.
        if at < self.armed || self.armed <= now() {
            self.armed = at;
            self.timer.reset(at);
        }
    }
}

#[inline]
fn place(kind: Kind) -> Option<usize> {
    let place = BOUNDS.iter().position(|bound| *bound == kind);
    debug_assert!(place.is_some(), "{kind:?} has no place among the deadlines");
    place
}
