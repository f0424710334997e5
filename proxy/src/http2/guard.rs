//! **Purpose.** Whether the frames of a peer do anything but make work: floods of PING, SETTINGS, PRIORITY, empty DATA or
//! CONTINUATION, and streams opened to be reset.
//!
//! **Shape.** A [`Guard`] walks the frame heads of what is received, whatever pieces it comes in, and takes each frame's
//! cost from an allowance that time refills. Once it is spent the connection is to be closed.
//!
//! **Units.** An allowance of [`BURST`] points, [`PER_SECOND`] of them back each second. A frame that moves nothing costs 1
//! point, a reset [`RESET_COST`]: half of that is what a client may do that gives up every request it makes.
//!
//! **Source.** CVE-2019-9511 to 9518, CVE-2023-44487, CVE-2024-27316. Envoy bounds the same by kind and by frames sent.

use std::time::{Duration, Instant};

/// Points at rest.
const BURST: u32 = 1_000;
/// Points that a second brings.
const PER_SECOND: u32 = 250;
/// What a reset costs.
const RESET_COST: u32 = 3;
/// Bytes of a frame's head. Source: RFC 9113 §4.1.
const HEAD_BYTES: usize = 9;
/// What a client sends before its first frame. Source: RFC 9113 §3.4.
pub const PREFACE: &[u8] = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n";

/// Walks the frames of one peer.
#[derive(Debug)]
pub struct Guard {
    /// Bytes still to pass before the next head.
    skip: usize,
    head: [u8; HEAD_BYTES],
    /// Of the head at hand.
    have: usize,
    points: u32,
    refilled: Option<Instant>,
}

impl Guard {
    /// For what a client sends, its preface first.
    pub fn of_client() -> Self {
        Self { skip: PREFACE.len(), head: [0; HEAD_BYTES], have: 0, points: BURST, refilled: None }
    }

    /// For what a server sends.
    pub fn of_server() -> Self {
        Self { skip: 0, ..Self::of_client() }
    }

    /// True once its allowance is spent.
    pub fn is_spent(&self) -> bool {
        self.points == 0
    }

    /// To be shown every byte received, in order. `now` is asked only when points are to be taken.
    pub fn see(&mut self, mut bytes: &[u8], now: impl Fn() -> Instant) {
        while !bytes.is_empty() {
            if self.skip > 0 {
                let skipped = self.skip.min(bytes.len());
                self.skip -= skipped;
                bytes = &bytes[skipped..];
                continue;
            }
            let take = (HEAD_BYTES - self.have).min(bytes.len());
            self.head[self.have..self.have + take].copy_from_slice(&bytes[..take]);
            self.have += take;
            bytes = &bytes[take..];
            if self.have == HEAD_BYTES {
                self.have = 0;
                let [high, mid, low, kind, flags, ..] = self.head;
                let length = usize::from(high) << 16 | usize::from(mid) << 8 | usize::from(low);
                self.skip = length;
                self.charge(cost(kind, flags, length), &now);
            }
        }
    }

    fn charge(&mut self, cost: u32, now: &impl Fn() -> Instant) {
        if cost == 0 || self.points == 0 {
            return;
        }
        let now = now();
        let since = self.refilled.map_or(Duration::ZERO, |last| now.saturating_duration_since(last));
        let earned = u128::from(PER_SECOND) * since.as_millis() / 1000;
        if earned > 0 || self.refilled.is_none() {
            self.refilled = Some(now);
            let earned = u32::try_from(earned).unwrap_or(BURST);
            self.points = self.points.saturating_add(earned).min(BURST);
        }
        self.points = self.points.saturating_sub(cost);
    }
}

/// What a frame costs. Those that carry something, and those that our own sending asks for, are free.
fn cost(kind: u8, flags: u8, length: usize) -> u32 {
    const ACK: u8 = 1;
    const END_STREAM: u8 = 1;
    match kind {
        // DATA: empty and not the end.
        0 if length == 0 && flags & END_STREAM == 0 => 1,
        // PRIORITY, CONTINUATION.
        2 | 9 => 1,
        3 => RESET_COST,
        // SETTINGS, PING.
        4 | 6 if flags & ACK == 0 => 1,
        _ => 0,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn frame(kind: u8, flags: u8, payload: usize) -> Vec<u8> {
        let length = u32::try_from(payload).unwrap().to_be_bytes();
        let mut bytes = vec![length[1], length[2], length[3], kind, flags, 0, 0, 0, 1];
        bytes.resize(9 + payload, 0);
        bytes
    }

    fn seen(frames: &[u8], piece: usize, now: Instant) -> Guard {
        let mut guard = Guard::of_client();
        let bytes = [PREFACE, frames].concat();
        for piece in bytes.chunks(piece) {
            guard.see(piece, || now);
        }
        guard
    }

    #[test]
    fn floods_are_told_from_traffic_whatever_pieces_they_come_in() {
        let now = Instant::now();
        for piece in [1, 7, 9, 4096, 1 << 20] {
            for (kind, flags, payload, limit) in
                [(6, 0, 8, 1000), (4, 0, 0, 1000), (2, 0, 5, 1000), (0, 0, 0, 1000), (9, 0, 0, 1000), (3, 0, 4, 334)]
            {
                let one = frame(kind, flags, payload);
                assert!(!seen(&one.repeat(limit - 1), piece, now).is_spent(), "kind {kind} in pieces of {piece}");
                assert!(seen(&one.repeat(limit), piece, now).is_spent(), "kind {kind} in pieces of {piece}");
            }
            for (kind, flags, payload) in [(0, 0, 100), (0, 1, 0), (1, 4, 20), (4, 1, 0), (6, 1, 8), (8, 0, 4)] {
                assert!(!seen(&frame(kind, flags, payload).repeat(5_000), piece, now).is_spent(), "kind {kind}");
            }
        }
    }

    #[test]
    fn time_gives_points_back() {
        let mut now = Instant::now();
        let mut guard = Guard::of_server();
        for _ in 0..20 {
            for _ in 0..200 {
                guard.see(&frame(6, 0, 8), || now);
            }
            now += Duration::from_secs(1);
        }
        assert!(!guard.is_spent());
    }
}
