//! The client's end of a tunnel, in either version of HTTP.

use std::time::Duration;

use outrigger_tests::world::h2::frame::{Frame, code};
use outrigger_tests::world::{Downstream, H2Downstream};

/// A connection that has left HTTP/1, or a stream of HTTP/2.
pub(super) enum Tunnel {
    One(Downstream),
    Two(H2Downstream, u32),
}

impl Tunnel {
    pub(super) fn send(&mut self, bytes: &[u8]) {
        match self {
            Self::One(client) => client.send(bytes).unwrap(),
            Self::Two(client, stream) => client.send_body(*stream, bytes, false).unwrap(),
        }
    }

    pub(super) fn finish(&mut self) {
        match self {
            Self::One(client) => client.finish_sending().unwrap(),
            Self::Two(client, stream) => client.send_body(*stream, b"", true).unwrap(),
        }
    }

    /// The bytes from `at` on, as many as `count`.
    #[track_caller]
    pub(super) fn read(&mut self, at: usize, count: usize) -> Vec<u8> {
        match self {
            Self::One(client) => client.read_bytes(count).unwrap(),
            Self::Two(client, stream) => client.wait("bytes of the tunnel", |state| {
                state.stream(*stream).body.get(at..at + count).map(<[u8]>::to_vec)
            }),
        }
    }

    /// Waits for any end.
    #[track_caller]
    pub(super) fn wait_over(&mut self, within: Duration) {
        match self {
            Self::One(client) => client.expect_closed(within).unwrap(),
            Self::Two(client, stream) => client.wait("an end", |state| {
                let seen = state.stream(*stream);
                (seen.is_ended || seen.reset.is_some()).then_some(())
            }),
        }
    }

    /// Breaks it off.
    pub(super) fn reset(self) {
        match self {
            Self::One(client) => client.reset().unwrap(),
            Self::Two(client, stream) => client.send(&Frame::reset(stream, code::CANCEL)).unwrap(),
        }
    }
}
