//! One direction of an opaque connection.
//!
//! **Shape.**
//! ```text
//!   moving ──source ended or reset──▶ emptying ──all sent──▶ over (FIN passed on | source reset)
//!     └───────sending failed────────────┴──────────────────▶ over (sink lost)
//! ```
//! The slice that was received is the slice that is sent.
//!
//! **Cancel.** Plain state, polled by its owner: no byte of the sockets' queues is lost.

use std::task::{Context, Poll};

use outrigger_reactor::{Buf, TcpStream};

/// Slices waiting to be sent at which nothing more is read. Each is at most one received block, 4 KiB: that bounds the
/// bytes and, with senders of single bytes, the blocks that one connection can take from all others.
const SLICES_MAX: usize = 16;

/// Bytes on their way from one socket to the other.
#[derive(Debug, Default)]
pub(super) struct Flow {
    state: State,
    /// The source is known to be broken: its end is no orderly one.
    is_source_broken: bool,
    /// Bytes moved so far.
    pub(super) moved: u64,
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

    /// Sending to the source failed: it may have lost bytes, whatever its receiving side will say.
    pub(super) fn distrust_source(&mut self) {
        self.is_source_broken = true;
    }

    /// Moves what can be moved; ready when it is over.
    pub(super) fn poll_moved(&mut self, from: &TcpStream, to: &TcpStream, cx: &mut Context<'_>) -> Poll<End> {
        loop {
            let is_starved = self.fill(from, to, cx);
            match (to.poll_flush(cx), self.state) {
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
        while self.state == State::Moving && to.queued_slices() < SLICES_MAX {
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
        self.moved += bytes.len() as u64;
        to.queue(bytes);
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
                        if flow.moved == sent { Poll::Ready(()) } else { Poll::Pending }
                    })
                    .await;
                }
                assert_eq!(to.queued_slices(), SLICES_MAX, "{driver:?}");
                for _ in 0..1_000 {
                    sender.write_all(b"x").unwrap();
                    assert!(poll_fn(|cx| Poll::Ready(flow.poll_moved(&from, &to, cx))).await.is_pending());
                    yield_now().await;
                }
                assert_eq!(flow.moved, SLICES_MAX as u64, "{driver:?}: the rest waits in the kernel");
            });
        }
    }
}
