//! PING on connections that are silent.
//!
//! **Cancel.** Plain state, polled by the owner of the connection.
//!
//! **Source.** Envoy, `KeepaliveSettings`.

use std::pin::Pin;
use std::task::{Context, Poll};
use std::time::Duration;

use h2::{Ping, PingPong};
use outrigger_reactor::{Sleep, now, sleep_until};

use crate::chance::Chance;
use crate::config::Http2Keepalive;

/// Tries one connection again and again.
#[derive(Debug)]
pub struct Keepalive {
    pings: PingPong,
    timer: Sleep,
    is_waiting: bool,
    interval: Duration,
    jitter_percent: u32,
    timeout: Duration,
}

/// The peer did not answer in time.
#[derive(Clone, Copy, Debug)]
pub struct Silent;

impl Keepalive {
    /// `None` when nothing is configured to be sent.
    pub fn new(config: Option<Http2Keepalive>, pings: Option<PingPong>, chance: &Chance) -> Option<Self> {
        let Http2Keepalive { interval, timeout, jitter_percent, .. } = config?;
        let (interval, pings) = (interval?, pings?);
        let first = now() + jittered(interval, jitter_percent, chance);
        Some(Self { pings, timer: sleep_until(first), is_waiting: false, interval, jitter_percent, timeout })
    }

    /// Ready when the connection is to be given up.
    pub fn poll_silent(&mut self, chance: &Chance, cx: &mut Context<'_>) -> Poll<Silent> {
        loop {
            if self.is_waiting
                && let Poll::Ready(answer) = self.pings.poll_pong(cx)
            {
                self.is_waiting = false;
                if answer.is_err() {
                    return Poll::Pending;
                }
                self.timer.reset(now() + jittered(self.interval, self.jitter_percent, chance));
            }
            if Pin::new(&mut self.timer).poll(cx).is_pending() {
                return Poll::Pending;
            }
            if self.is_waiting {
                return Poll::Ready(Silent);
            }
            self.is_waiting = self.pings.send_ping(Ping::opaque()).is_ok();
            self.timer.reset(now() + self.timeout);
        }
    }
}

fn jittered(interval: Duration, percent: u32, chance: &Chance) -> Duration {
    let most = u64::try_from(interval.as_nanos()).unwrap_or(u64::MAX) / 100 * u64::from(percent);
    interval + Duration::from_nanos(chance.below(most.max(1)))
}
