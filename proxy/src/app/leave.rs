//! **Purpose.** When a proxy that is to end may begin to drain: once nobody sends to it any more.
//!
//! **Shape.** [`Leaving`] is a clock that is shown, at each tick, what is true now; it says once that the proxy has left.
//! ```text
//!   told to leave ──▶ own addresses in some endpoint set? ──no──▶ no arrival for 1 s ──▶ left
//!                        │ yes: peers still choose it                │ arrivals
//!                        └──────────── time is over ◀──────────────┘──▶ left all the same
//! ```
//! All the while everything is served. Where the addresses are not known, or in no set that this proxy was sent, arrivals
//! alone decide. A part of the time is kept for the drain that follows.
//!
//! **Source.** Kubernetes takes a pod out of its EndpointSlices at the moment that it tells the pod to end: both go
//! their ways, and whoever has not heard of the first still sends to the second.
//!
//! **Tests.** Below; `tests/tests/scenario/leave.rs`.

use std::fmt;
use std::net::IpAddr;
use std::time::{Duration, Instant};

use crate::config::{Direction, Discovery, EndpointHealth, Snapshot};
use crate::stats::Registry;

/// How long nothing may have come.
const QUIET: Duration = Duration::from_secs(1);
/// Of the whole time, what is kept for what is under way: a quarter, and no more than this.
const KEPT_MAX: Duration = Duration::from_secs(5);

/// A proxy on its way out.
#[derive(Debug)]
pub(super) struct Leaving {
    began: Instant,
    /// When what is under way is cut off.
    deadline: Instant,
    /// When the wait for peers is over.
    watch_until: Instant,
    arrivals: u64,
    arrived_at: Instant,
    was_listed: bool,
    /// Since when it is in no endpoint set.
    unlisted_at: Option<Instant>,
}

/// What is true at one moment.
#[derive(Clone, Copy, Debug)]
pub(super) struct Seen {
    /// One of its addresses is in an endpoint set, to be chosen.
    pub(super) is_listed: bool,
    /// One ever was.
    pub(super) was_listed: bool,
    /// Connections and requests that came from outside, ever.
    pub(super) arrivals: u64,
}

/// What was waited for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Left {
    /// How long.
    waited: Duration,
    /// When its endpoint was out of the sets; `None`: it never was in one.
    unlisted_after: Option<Duration>,
    /// The time was over before.
    pub(super) is_late: Option<Late>,
}

/// What was still so when the time was over.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Late {
    /// Its endpoint was in a set.
    Listed,
    /// Arrivals went on.
    Visited,
}

impl Leaving {
    /// A proxy that begins to leave, with so much time in all.
    pub(super) fn begin(now: Instant, time: Duration, seen: Seen) -> Self {
        Self {
            began: now,
            deadline: now + time,
            watch_until: now + (time - KEPT_MAX.min(time / 4)),
            arrivals: seen.arrivals,
            arrived_at: now,
            was_listed: seen.was_listed,
            unlisted_at: (!seen.is_listed).then_some(now),
        }
    }

    /// When what is under way is cut off.
    pub(super) fn deadline(&self) -> Instant {
        self.deadline
    }

    /// Looks at what is true now; `Some` once it has left, and ever after.
    pub(super) fn step(&mut self, now: Instant, seen: Seen) -> Option<Left> {
        if seen.arrivals != self.arrivals {
            (self.arrivals, self.arrived_at) = (seen.arrivals, now);
        }
        self.was_listed |= seen.was_listed;
        if seen.is_listed {
            self.unlisted_at = None;
        } else {
            self.unlisted_at.get_or_insert(now);
        }
        let quiet_since = self.unlisted_at.map(|unlisted_at| unlisted_at.max(self.arrived_at));
        let is_quiet = quiet_since.is_some_and(|since| now.saturating_duration_since(since) >= QUIET);
        let is_late = match (is_quiet, self.unlisted_at) {
            (true, _) => None,
            (false, _) if now < self.watch_until => return None,
            (false, None) => Some(Late::Listed),
            (false, Some(_)) => Some(Late::Visited),
        };
        let unlisted_at = self.unlisted_at.filter(|_| self.was_listed);
        let since_beginning = |at: Instant| at.saturating_duration_since(self.began);
        Some(Left { waited: since_beginning(now), unlisted_after: unlisted_at.map(since_beginning), is_late })
    }
}

impl fmt::Display for Left {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let waited = self.waited.as_secs_f64();
        match (self.is_late, self.unlisted_after) {
            (Some(Late::Listed), _) => {
                write!(
                    f,
                    "waited {waited:.1}s in vain for this endpoint to leave the endpoint sets: is the control plane there?"
                )
            }
            (Some(Late::Visited), _) => write!(f, "waited {waited:.1}s in vain for arrivals to stop"),
            (None, Some(after)) => {
                let after = after.as_secs_f64();
                write!(
                    f,
                    "this endpoint left the endpoint sets after {after:.1}s, nothing came any more after {waited:.1}s"
                )
            }
            (None, None) => write!(f, "this endpoint was in no endpoint set, nothing came for {waited:.1}s"),
        }
    }
}

/// True while one of `own` is in an endpoint set of discovery, and may be chosen.
pub(super) fn is_listed(snapshot: &Snapshot, own: &[IpAddr]) -> bool {
    let is_ours = |address: IpAddr| own.contains(&address.to_canonical());
    let discovers = |discovery: &Discovery| matches!(discovery, Discovery::Dns { .. } | Discovery::Eds(_));
    !own.is_empty()
        && snapshot.clusters().iter().filter(|(config, _)| discovers(&config.discovery)).any(|(_, set)| {
            set.endpoints.iter().any(|one| is_ours(one.address.ip()) && one.health != EndpointHealth::Draining)
        })
}

/// Connections and requests that came from outside so far: by every listener but those of the workload's own traffic.
pub(super) fn arrivals(snapshot: &Snapshot, registry: &Registry) -> u64 {
    let mut count = 0_u64;
    registry.listeners(|name, cells| {
        if is_outbound(snapshot, name) {
            return;
        }
        for cell in cells {
            let came = cell.accepted.value().wrapping_add(cell.requests.value());
            count = count.wrapping_add(came).wrapping_sub(cell.heartbeats.value());
        }
    });
    count
}

/// Connections open that came from outside.
pub(super) fn inbound_connections(snapshot: &Snapshot, registry: &Registry) -> i64 {
    let mut open = 0;
    registry.listeners(|name, cells| {
        if !is_outbound(snapshot, name) {
            open += cells.iter().map(|cell| cell.connections.value()).sum::<i64>();
        }
    });
    open
}

fn is_outbound(snapshot: &Snapshot, listener: &str) -> bool {
    snapshot.listener(listener).is_some_and(|listener| listener.direction == Direction::Outbound)
}

#[cfg(test)]
mod tests {
    use super::*;

    const TIME: Duration = Duration::from_secs(12);

    /// Shows `seen` at tenths of a second; when it had left, and what was told.
    fn run(seen: impl Fn(u32) -> (bool, u64)) -> (u32, String) {
        let began = Instant::now();
        let at = |tenth| {
            let (is_listed, arrivals) = seen(tenth);
            Seen { is_listed, was_listed: seen(0).0, arrivals }
        };
        let mut leaving = Leaving::begin(began, TIME, at(0));
        assert_eq!(leaving.deadline(), began + TIME);
        for tenth in 1..=200 {
            let now = began + Duration::from_millis(100) * tenth;
            if let Some(left) = leaving.step(now, at(tenth)) {
                assert_eq!(leaving.step(now, at(tenth)), Some(left), "it stays so");
                return (tenth, left.to_string());
            }
        }
        panic!("it never left");
    }

    #[test]
    fn it_leaves_when_no_set_has_it_and_nothing_comes() {
        let (at, told) = run(|_| (false, 7));
        assert_eq!((at, told.as_str()), (10, "this endpoint was in no endpoint set, nothing came for 1.0s"));
        let (at, told) = run(|tenth| (tenth < 20, 7));
        assert_eq!(at, 30, "{told}");
        assert!(told.contains("after 2.0s, nothing came any more after 3.0s"), "{told}");
        let (at, told) = run(|tenth| (tenth < 20, u64::from(tenth.min(35))));
        assert_eq!(at, 45, "{told}");
        let (at, _) = run(|tenth| (tenth < 20 || tenth == 25, 7));
        assert_eq!(at, 36, "it was back in between");
    }

    #[test]
    fn its_time_ends_and_leaves_some_for_what_is_under_way() {
        let (at, told) = run(|_| (true, 7));
        assert_eq!(at, 90, "a quarter is kept");
        assert!(told.contains("in vain for this endpoint to leave"), "{told}");
        let (at, told) = run(|tenth| (false, tenth.into()));
        assert_eq!((at, told.as_str()), (90, "waited 9.0s in vain for arrivals to stop"));
        let seen = Seen { is_listed: true, was_listed: true, arrivals: 0 };
        let now = Instant::now();
        assert!(Leaving::begin(now, Duration::ZERO, seen).step(now, seen).is_some(), "no time at all");
        let hour = Leaving::begin(now, Duration::from_secs(3_600), seen);
        assert_eq!(hour.deadline - hour.watch_until, KEPT_MAX);
    }
}
