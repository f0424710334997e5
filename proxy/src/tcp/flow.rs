//! One direction of an opaque connection.
//!
//! **Shape.**
//! ```text
//!   moving ──source ended or reset──▶ emptying ──all sent──▶ over (FIN passed on | source reset)
//!     └───────sending failed────────────┴──────────────────▶ over (sink lost)
//! ```
//! The slice that was received is the slice that is sent. Bulk is spliced: once one look finds [`BULK_BYTES`] waiting, bytes
//! stay in the kernel until they come in small pieces again.
//!
//! **Cancel.** Plain state, polled by its owner: no byte of the sockets' queues is lost.

use std::task::{Context, Poll};

use outrigger_reactor::{Buf, Splice, SpliceFault, Spliced, TcpStream};

/// Slices waiting to be sent at which nothing more is read. Each is at most one received block, 4 KiB: that bounds the
/// bytes and, with senders of single bytes, the blocks that one connection can take from all others.
const SLICES_MAX: usize = 16;

/// Bytes received at one look from which on they are spliced.
const BULK_BYTES: usize = 32 * 1024;
/// A splice that moves fewer at once, twice in a row, costs more than receiving and sending them.
const SMALL_BYTES: u64 = 8 * 1024;

/// Bytes on their way from one socket to the other.
#[derive(Debug, Default)]
pub(super) struct Flow {
    state: State,
    /// The source is known to be broken: its end is no orderly one.
    is_source_broken: bool,
    /// Bytes moved so far, but for those that a splice in hand has delivered.
    passed: u64,
    splicing: Option<Splice>,
    /// The last splice moved little.
    was_small: bool,
    /// No pipe could be had: nothing is spliced any more.
    is_pipeless: bool,
}

/// How a flow came to its end.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum End {
    /// The source finished, and the sink was told.
    Finished,
    /// Sending failed.
    SinkLost,
    /// The source was reset; what it had sent before was passed on.
    SourceReset,
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
enum State {
    /// The source has ended: what is queued leaves.
    Emptying(End),
    #[default]
    Moving,
    Over(End),
}

impl Flow {
    /// How it ended, once it has.
    pub(super) fn end(&self) -> Option<End> {
        match self.state {
            State::Over(end) => Some(end),
            State::Moving | State::Emptying(_) => None,
        }
    }

    /// Bytes moved so far.
    pub(super) fn moved(&self) -> u64 {
        self.passed + self.splicing.as_ref().map_or(0, Splice::delivered)
    }

    /// True when bytes were taken from the source that the sink has not got.
    pub(super) fn holds_bytes(&self) -> bool {
        self.splicing.as_ref().is_some_and(|splice| splice.held() > 0)
    }

    /// Sending to the source failed: it may have lost bytes, whatever its receiving side will say.
    pub(super) fn distrust_source(&mut self) {
        self.is_source_broken = true;
    }

    /// Moves what can be moved; ready when it is over.
    pub(super) fn poll_moved(&mut self, from: &TcpStream, to: &TcpStream, cx: &mut Context<'_>) -> Poll<End> {
        loop {
            if self.splicing.is_some() && self.state == State::Moving && self.poll_spliced(from, to, cx).is_pending() {
                return Poll::Pending;
            }
            let is_starved = self.fill(from, to, cx);
            // What goes before an end or a splice must have left, and at the bound some of it; the rest leaves by itself.
            let sent = if is_starved { to.poll_hand_over(cx) } else { to.poll_flush_now(cx) };
            match (sent, self.state) {
                (_, State::Over(end)) => return Poll::Ready(end),
                (Poll::Ready(Err(_)), _) => return self.over(End::SinkLost),
                (Poll::Ready(Ok(())), State::Emptying(End::Finished)) => {
                    let told = to.shutdown_write();
                    return self.over(if told.is_ok() { End::Finished } else { End::SinkLost });
                }
                (Poll::Ready(Ok(())), State::Emptying(end)) => return self.over(end),
                (Poll::Ready(Ok(())), State::Moving) if !is_starved => {}
                (Poll::Ready(Ok(())), State::Moving) | (Poll::Pending, _) => return Poll::Pending,
            }
        }
    }

    /// Queues what has been received, up to the bound; true when there is no more for now.
    fn fill(&mut self, from: &TcpStream, to: &TcpStream, cx: &mut Context<'_>) -> bool {
        while self.state == State::Moving && self.splicing.is_none() && to.queued_slices() < SLICES_MAX {
            match from.poll_recv(cx) {
                Poll::Pending => return true,
                Poll::Ready(Ok(bytes)) if bytes.is_empty() => self.source_ended(),
                Poll::Ready(Ok(bytes)) => self.pass(bytes, to),
                Poll::Ready(Err(_)) => self.state = State::Emptying(End::SourceReset),
            }
        }
        false
    }

    fn pass(&mut self, bytes: Buf, to: &TcpStream) {
        self.passed += bytes.len() as u64;
        to.queue(bytes);
        if to.queued_bytes() >= BULK_BYTES && !self.is_pipeless {
            self.splicing = Some(Splice::default());
            self.was_small = false;
        }
    }

    /// Moves bytes inside the kernel; ready when that is over.
    fn poll_spliced(&mut self, from: &TcpStream, to: &TcpStream, cx: &mut Context<'_>) -> Poll<()> {
        while let Some(splice) = &mut self.splicing {
            if to.queued_bytes() > 0 {
                match to.poll_flush_now(cx) {
                    Poll::Ready(Ok(())) => {}
                    Poll::Ready(Err(_)) => self.state = State::Over(End::SinkLost),
                    Poll::Pending => return Poll::Pending,
                }
            }
            if self.state != State::Moving {
                break;
            }
            let Poll::Ready(moved) = splice.poll_move(from, to, u64::MAX, cx) else { return Poll::Pending };
            match moved {
                Ok(Spliced::Moved(bytes)) => {
                    let is_small = bytes < SMALL_BYTES;
                    if std::mem::replace(&mut self.was_small, is_small) && is_small {
                        break;
                    }
                }
                Ok(Spliced::Received) => self.pass_received(from, to, cx),
                Ok(Spliced::End) => self.source_ended(),
                Err(SpliceFault::NoPipe(_)) => {
                    self.is_pipeless = true;
                    break;
                }
                Err(SpliceFault::Sink(_)) => self.state = State::Over(End::SinkLost),
                Err(SpliceFault::Source(_)) => self.state = State::Emptying(End::SourceReset),
            }
        }
        if let Some(splice) = self.splicing.take() {
            self.passed += splice.delivered();
        }
        Poll::Ready(())
    }

    /// Queues what was received before the splice began.
    fn pass_received(&mut self, from: &TcpStream, to: &TcpStream, cx: &mut Context<'_>) {
        while from.has_received()
            && let Poll::Ready(Ok(bytes)) = from.poll_recv(cx)
        {
            self.passed += bytes.len() as u64;
            to.queue(bytes);
        }
    }

    fn source_ended(&mut self) {
        self.state = State::Emptying(if self.is_source_broken { End::SourceReset } else { End::Finished });
    }

    fn over(&mut self, end: End) -> Poll<End> {
        self.state = State::Over(end);
        Poll::Ready(end)
    }
}

#[cfg(test)]
mod tests {
    use std::future::poll_fn;
    use std::io::Write as _;
    use std::net::{self, Ipv4Addr};

    use outrigger_reactor::{DriverKind, Options, Runtime, yield_now};

    use super::*;

    /// Both ends of a connection; the second never blocks.
    fn pair() -> (net::TcpStream, net::TcpStream) {
        let listener = net::TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).unwrap();
        let connecting = net::TcpStream::connect(listener.local_addr().unwrap()).unwrap();
        connecting.set_nodelay(true).unwrap();
        let accepted = listener.accept().unwrap().0;
        accepted.set_nonblocking(true).unwrap();
        (connecting, accepted)
    }

    #[test]
    fn single_bytes_to_a_reader_that_stops_take_few_blocks() {
        for driver in [DriverKind::Epoll, DriverKind::Uring] {
            let mut runtime = Runtime::new(driver, &Options::default()).unwrap();
            runtime.block_on(async {
                let (mut sender, source) = pair();
                let (_reader, mut sink) = pair();
                while sink.write(&[0; 65_536]).is_ok() {}
                let from = TcpStream::from_std(source).unwrap();
                let to = TcpStream::from_std(sink).unwrap();
                let mut flow = Flow::default();
                for sent in 1..=SLICES_MAX as u64 {
                    sender.write_all(b"x").unwrap();
                    poll_fn(|cx| {
                        assert!(flow.poll_moved(&from, &to, cx).is_pending(), "{driver:?}");
                        if flow.moved() == sent { Poll::Ready(()) } else { Poll::Pending }
                    })
                    .await;
                }
                assert_eq!(to.queued_slices(), SLICES_MAX, "{driver:?}");
                for _ in 0..1_000 {
                    sender.write_all(b"x").unwrap();
                    assert!(poll_fn(|cx| Poll::Ready(flow.poll_moved(&from, &to, cx))).await.is_pending());
                    yield_now().await;
                }
                assert_eq!(flow.moved(), SLICES_MAX as u64, "{driver:?}: the rest waits in the kernel");
            });
        }
    }
}
