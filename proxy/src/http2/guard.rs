//! **Purpose.** What `h2` does not tell of the frames of a peer: whether they do anything but make work (floods of PING,
//! SETTINGS, PRIORITY, empty DATA or CONTINUATION, streams opened to be reset); since when a header block has been coming;
//! and the code of an error where `h2` has the general one only.
//!
//! **Shape.** A [`Guard`] walks the frames of what is received, whatever pieces it comes in, and takes each frame's
//! cost from an allowance that time refills. Once it is spent, or a frame is wrong, nothing more is to be passed on, and the
//! connection is to be closed with the [`Guard::refusal`].
//!
//! **Units.** An allowance of [`BURST`] points, [`PER_SECOND`] of them back each second. A frame that moves nothing costs 1
//! point, a reset [`RESET_COST`]: half of that is what a client may do that gives up every request it makes.
//!
//! **Source.** CVE-2019-9511 to 9518, CVE-2023-44487, CVE-2024-27316. Envoy bounds the same by kind and by frames sent.

use std::time::{Duration, Instant};

use h2::Reason;

use super::preface::PREFACE;

/// Points at rest.
const BURST: u32 = 1_000;
/// Points that a second brings.
const PER_SECOND: u32 = 250;
/// What a reset costs.
const RESET_COST: u32 = 3;
/// Bytes of a frame's head. Source: RFC 9113 §4.1.
const HEAD_BYTES: usize = 9;
/// Bytes of a setting. Source: RFC 9113 §6.5.1.
const SETTING_BYTES: usize = 6;

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
    /// A frame of a header block came, and not yet all of the frame that ends it.
    block: Block,
    block_since: Option<Instant>,
    /// Of the SETTINGS at hand.
    setting: Option<Setting>,
    wrong: Option<Reason>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Block {
    None,
    Open,
    /// The frame at hand ends it.
    Ending,
}

/// One setting in the making.
#[derive(Clone, Copy, Debug, Default)]
struct Setting {
    bytes: [u8; SETTING_BYTES],
    have: usize,
}

impl Guard {
    /// For what a client sends, its preface first.
    pub fn of_client() -> Self {
        Self {
            skip: PREFACE.len(),
            head: [0; HEAD_BYTES],
            have: 0,
            points: BURST,
            refilled: None,
            block: Block::None,
            block_since: None,
            setting: None,
            wrong: None,
        }
    }

    /// For what a server sends.
    pub fn of_server() -> Self {
        Self { skip: 0, ..Self::of_client() }
    }

    /// Why the connection is to be closed, once it is.
    pub fn refusal(&self) -> Option<Reason> {
        self.wrong.or((self.points == 0).then_some(Reason::ENHANCE_YOUR_CALM))
    }

    /// Since when a header block has been coming.
    pub fn block_since(&self) -> Option<Instant> {
        self.block_since
    }

    /// To be shown every byte received, in order. Gives how many of them are to be passed on: all, or those before what is
    /// wrong. `now` is asked only when points are to be taken, or when a header block does not end with these bytes.
    pub fn see(&mut self, bytes: &[u8], now: impl Fn() -> Instant) -> usize {
        let mut rest = bytes;
        while !rest.is_empty() && self.wrong.is_none() {
            rest = if self.skip > 0 { self.see_payload(rest) } else { self.see_head(rest, &now) };
        }
        match self.block {
            Block::None => self.block_since = None,
            Block::Open | Block::Ending => {
                self.block_since.get_or_insert_with(now);
            }
        }
        bytes.len() - rest.len()
    }

    /// Gives the bytes after those it used; all of them when the frame is wrong.
    fn see_head<'a>(&mut self, bytes: &'a [u8], now: &impl Fn() -> Instant) -> &'a [u8] {
        let take = (HEAD_BYTES - self.have).min(bytes.len());
        self.head[self.have..self.have + take].copy_from_slice(&bytes[..take]);
        self.have += take;
        if self.have < HEAD_BYTES {
            return &bytes[take..];
        }
        self.have = 0;
        let [high, mid, low, kind, flags, ..] = self.head;
        let length = usize::from(high) << 16 | usize::from(mid) << 8 | usize::from(low);
        if is_wrong_size(kind, flags, length) {
            self.wrong = Some(Reason::FRAME_SIZE_ERROR);
            return bytes;
        }
        self.skip = length;
        self.setting = (kind == SETTINGS).then(Setting::default);
        if matches!(kind, HEADERS | CONTINUATION) {
            self.block = if flags & END_HEADERS == 0 { Block::Open } else { Block::Ending };
            self.end_block();
        }
        self.charge(cost(kind, flags, length), now);
        &bytes[take..]
    }

    fn see_payload<'a>(&mut self, bytes: &'a [u8]) -> &'a [u8] {
        let (payload, rest) = bytes.split_at(self.skip.min(bytes.len()));
        self.skip -= payload.len();
        self.end_block();
        let Some(setting) = &mut self.setting else { return rest };
        for byte in payload {
            setting.bytes[setting.have] = *byte;
            setting.have = (setting.have + 1) % SETTING_BYTES;
            // The highest bit of a window: RFC 9113 §6.5.2.
            if let (0, [0, INITIAL_WINDOW_SIZE, high, ..]) = (setting.have, setting.bytes)
                && high >= 0x80
            {
                self.wrong = Some(Reason::FLOW_CONTROL_ERROR);
                return bytes;
            }
        }
        rest
    }

    fn end_block(&mut self) {
        if self.block == Block::Ending && self.skip == 0 {
            self.block = Block::None;
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

const HEADERS: u8 = 1;
const SETTINGS: u8 = 4;
const CONTINUATION: u8 = 9;
const ACK: u8 = 1;
const END_HEADERS: u8 = 4;
const INITIAL_WINDOW_SIZE: u8 = 4;

/// Frames of fixed length, of which another is an error of the connection.
fn is_wrong_size(kind: u8, flags: u8, length: usize) -> bool {
    match kind {
        // RST_STREAM, WINDOW_UPDATE.
        3 | 8 => length != 4,
        SETTINGS if flags & ACK != 0 => length != 0,
        SETTINGS => !length.is_multiple_of(SETTING_BYTES),
        // PING.
        6 => length != 8,
        _ => false,
    }
}

/// What a frame costs. Those that carry something, and those that our own sending asks for, are free.
fn cost(kind: u8, flags: u8, length: usize) -> u32 {
    const END_STREAM: u8 = 1;
    match kind {
        // DATA: empty and not the end.
        0 if length == 0 && flags & END_STREAM == 0 => 1,
        // PRIORITY, CONTINUATION.
        2 | CONTINUATION => 1,
        3 => RESET_COST,
        // SETTINGS, PING.
        SETTINGS | 6 if flags & ACK == 0 => 1,
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

    fn is_spent(guard: &Guard) -> bool {
        guard.refusal() == Some(Reason::ENHANCE_YOUR_CALM)
    }

    #[test]
    fn a_block_is_open_until_all_of_its_last_frame_is_there() {
        let now = Instant::now();
        for piece in [1, 7, 1 << 20] {
            for open in [frame(1, 0, 20), frame(1, 4, 20)[..28].to_vec(), [frame(1, 1, 20), frame(9, 0, 5)].concat()] {
                assert_eq!(seen(&open, piece, now).block_since(), Some(now), "{open:?}");
            }
            for ended in [frame(1, 4, 20), frame(1, 4, 0), [frame(1, 0, 20), frame(9, 4, 0)].concat(), frame(0, 0, 20)]
            {
                assert_eq!(seen(&ended, piece, now).block_since(), None, "{ended:?}");
            }
        }
    }

    #[test]
    fn nothing_from_a_wrong_frame_on_is_passed_on() {
        let now = Instant::now();
        let mut window = frame(4, 0, 12);
        window[9..].copy_from_slice(&[0, 3, 0x80, 0, 0, 0, 0, 4, 0x80, 0, 0, 0]);
        let size = Some(Reason::FRAME_SIZE_ERROR);
        for (wrong, reason) in [
            (frame(4, 1, 6), size),
            (frame(4, 0, 5), size),
            (frame(6, 0, 7), size),
            (frame(3, 0, 5), size),
            (frame(8, 0, 3), size),
            (window, Some(Reason::FLOW_CONTROL_ERROR)),
        ] {
            let good = [PREFACE, &frame(1, 5, 20)].concat();
            let mut guard = Guard::of_client();
            let passed = guard.see(&[&good[..], &wrong, b"more"].concat(), || now);
            assert_eq!(guard.refusal(), reason, "{wrong:?}");
            assert!((good.len()..good.len() + wrong.len()).contains(&passed), "{wrong:?}: {passed}");
            for piece in [1, 7] {
                assert_eq!(seen(&wrong, piece, now).refusal(), reason, "{wrong:?} in pieces of {piece}");
            }
        }
        let mut right = frame(4, 0, 12);
        right[9..].copy_from_slice(&[0, 3, 0x80, 0, 0, 0, 0, 4, 0x7f, 0xff, 0xff, 0xff]);
        assert_eq!(seen(&right, 5, now).refusal(), None);
    }

    #[test]
    fn floods_are_told_from_traffic_whatever_pieces_they_come_in() {
        let now = Instant::now();
        for piece in [1, 7, 9, 4096, 1 << 20] {
            for (kind, flags, payload, limit) in
                [(6, 0, 8, 1000), (4, 0, 0, 1000), (2, 0, 5, 1000), (0, 0, 0, 1000), (9, 0, 0, 1000), (3, 0, 4, 334)]
            {
                let one = frame(kind, flags, payload);
                assert!(!is_spent(&seen(&one.repeat(limit - 1), piece, now)), "kind {kind} in pieces of {piece}");
                assert!(is_spent(&seen(&one.repeat(limit), piece, now)), "kind {kind} in pieces of {piece}");
            }
            for (kind, flags, payload) in [(0, 0, 100), (0, 1, 0), (1, 4, 20), (4, 1, 0), (6, 1, 8), (8, 0, 4)] {
                assert!(!is_spent(&seen(&frame(kind, flags, payload).repeat(5_000), piece, now)), "kind {kind}");
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
        assert!(!is_spent(&guard));
    }
}
