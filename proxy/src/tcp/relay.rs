//! An opaque connection with both its ends: two flows and a clock.
//!
//! **Cancel.** Dropped before its end it resets both connections: what was passed on may not be the whole.

use std::pin::Pin;
use std::task::{Context, Poll};

use outrigger_reactor::{TcpStream, now};

use super::clock::Clock;
use super::connect::{Connected, Open};
use super::flow::{End, Flow};
use crate::fault::Kind;

/// A future that is ready when nothing is left to pass on.
#[derive(Debug)]
pub(super) struct Relay {
    downstream: TcpStream,
    connected: Connected,
    up: Flow,
    down: Flow,
    clock: Clock,
    /// What the peers are to see when the sockets close.
    close: Close,
    open: Open,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Close {
    Orderly,
    Reset,
}

impl Relay {
    /// A relay at its start.
    pub(super) fn new(downstream: TcpStream, connected: Connected, open: Open, clock: Clock) -> Self {
        let (up, down) = Default::default();
        Self { downstream, connected, up, down, clock, close: Close::Reset, open }
    }

    /// Moves bytes both ways; ready when it is over, with what went wrong.
    fn poll_over(&mut self, cx: &mut Context<'_>) -> Poll<Option<Kind>> {
        let Self { downstream, connected, up, down, clock, open, .. } = self;
        let upstream = connected.connection.stream();
        let before = (up.moved(), down.moved());
        if up.end().is_none() && up.poll_moved(downstream, upstream, cx) == Poll::Ready(End::SinkLost) {
            down.distrust_source();
        }
        if down.end().is_none() && down.poll_moved(upstream, downstream, cx) == Poll::Ready(End::SinkLost) {
            up.distrust_source();
        }
        let (sent, received) = (up.moved() - before.0, down.moved() - before.1);
        open.cell.bytes_in.add(sent);
        open.cell.bytes_out.add(received);
        if sent + received > 0
            && let Some(first_word) = open.first_word.take()
        {
            match sent {
                0 => first_word.is_servers(now(), &open.cell),
                _ => first_word.is_clients(),
            }
        }
        match (up.end(), down.end()) {
            (Some(End::SourceReset), _) | (Some(_), Some(End::SinkLost)) => Poll::Ready(Some(Kind::RelayGone)),
            (_, Some(End::SourceReset)) | (Some(End::SinkLost), Some(_)) => Poll::Ready(Some(Kind::RelayReset)),
            (Some(End::Finished), Some(End::Finished)) => Poll::Ready(None),
            (None, _) | (_, None) => clock.poll_due(sent + received > 0, cx).map(Some),
        }
    }

    /// Counts how it ended, and decides what its peers see of it.
    fn settle(&mut self, fault: Option<Kind>) {
        let upstream = self.connected.connection.stream();
        let is_sent = self.downstream.queued_bytes() == 0 && upstream.queued_bytes() == 0;
        let is_empty = is_sent && !self.up.holds_bytes() && !self.down.holds_bytes();
        let Some(kind) = fault else {
            self.close = Close::Orderly;
            return;
        };
        if kind == Kind::RelayIdle && is_empty {
            self.close = Close::Orderly;
        }
        self.open.cell.faults.add_one(kind);
        let (peer, endpoint) = (self.downstream.peer_addr(), upstream.peer_addr());
        let (received, sent) = (self.up.moved(), self.down.moved());
        let (side, stage, kind) = (kind.side().label(), kind.stage().label(), kind.label());
        let listener = &self.open.listener;
        tracing::debug!(%listener, %peer, %endpoint, side, stage, kind, received, sent, "opaque connection broken off");
    }
}

impl Future for Relay {
    type Output = ();

    fn poll(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<()> {
        let relay = self.get_mut();
        relay.poll_over(cx).map(|fault| relay.settle(fault))
    }
}

impl Drop for Relay {
    fn drop(&mut self) {
        if self.close == Close::Reset {
            self.downstream.reset_on_close();
            self.connected.connection.stream().reset_on_close();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_idle_relay_is_small() {
        let bytes = size_of::<Relay>();
        assert!(bytes <= 512, "{bytes} bytes: mind what an idle connection holds");
    }
}
