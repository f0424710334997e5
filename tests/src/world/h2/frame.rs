//! Purpose: HTTP/2 frames as bytes, and back.
//!
//! Limits: nothing is refused here but a frame larger than [`PAYLOAD_MAX`]: what a frame may hold is for the test to say.

use std::io::{self, Read};

/// What a connection of a client begins with.
pub const PREFACE: &[u8] = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n";
/// The largest payload that is read: more than any peer may send without being told that it may.
pub const PAYLOAD_MAX: usize = 1 << 20;

/// Types of frames.
#[allow(missing_docs, reason = "the names are the RFC's")]
pub mod kind {
    pub const DATA: u8 = 0;
    pub const HEADERS: u8 = 1;
    pub const PRIORITY: u8 = 2;
    pub const RST_STREAM: u8 = 3;
    pub const SETTINGS: u8 = 4;
    pub const PUSH_PROMISE: u8 = 5;
    pub const PING: u8 = 6;
    pub const GOAWAY: u8 = 7;
    pub const WINDOW_UPDATE: u8 = 8;
    pub const CONTINUATION: u8 = 9;
}

/// Flags of frames.
#[allow(missing_docs, reason = "the names are the RFC's")]
pub mod flag {
    pub const ACK: u8 = 0x1;
    pub const END_STREAM: u8 = 0x1;
    pub const END_HEADERS: u8 = 0x4;
    pub const PADDED: u8 = 0x8;
    pub const PRIORITY: u8 = 0x20;
}

/// Identifiers of settings.
#[allow(missing_docs, reason = "the names are the RFC's")]
pub mod setting {
    pub const HEADER_TABLE_SIZE: u16 = 1;
    pub const ENABLE_PUSH: u16 = 2;
    pub const MAX_CONCURRENT_STREAMS: u16 = 3;
    pub const INITIAL_WINDOW_SIZE: u16 = 4;
    pub const MAX_FRAME_SIZE: u16 = 5;
    pub const MAX_HEADER_LIST_SIZE: u16 = 6;
    pub const ENABLE_CONNECT_PROTOCOL: u16 = 8;
}

/// Error codes.
#[allow(missing_docs, reason = "the names are the RFC's")]
pub mod code {
    pub const NO_ERROR: u32 = 0;
    pub const PROTOCOL_ERROR: u32 = 1;
    pub const INTERNAL_ERROR: u32 = 2;
    pub const FLOW_CONTROL_ERROR: u32 = 3;
    pub const FRAME_SIZE_ERROR: u32 = 6;
    pub const REFUSED_STREAM: u32 = 7;
    pub const CANCEL: u32 = 8;
    pub const COMPRESSION_ERROR: u32 = 9;
    pub const ENHANCE_YOUR_CALM: u32 = 11;
}

/// One frame.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Frame {
    /// Its type.
    pub kind: u8,
    /// Its flags.
    pub flags: u8,
    /// Its stream; 0 is the connection.
    pub stream: u32,
    /// What it holds.
    pub payload: Vec<u8>,
}

impl Frame {
    /// Any frame.
    pub fn new(kind: u8, flags: u8, stream: u32, payload: impl Into<Vec<u8>>) -> Self {
        Self { kind, flags, stream, payload: payload.into() }
    }

    /// HEADERS with a whole block.
    pub fn headers(stream: u32, block: impl Into<Vec<u8>>, is_end: bool) -> Self {
        let end = if is_end { flag::END_STREAM } else { 0 };
        Self::new(kind::HEADERS, flag::END_HEADERS | end, stream, block)
    }

    /// DATA.
    pub fn data(stream: u32, bytes: impl Into<Vec<u8>>, is_end: bool) -> Self {
        Self::new(kind::DATA, if is_end { flag::END_STREAM } else { 0 }, stream, bytes)
    }

    /// SETTINGS.
    pub fn settings(pairs: &[(u16, u32)]) -> Self {
        let pair = |(id, value): &(u16, u32)| [&id.to_be_bytes()[..], &value.to_be_bytes()].concat();
        Self::new(kind::SETTINGS, 0, 0, pairs.iter().flat_map(pair).collect::<Vec<u8>>())
    }

    /// RST_STREAM.
    pub fn reset(stream: u32, code: u32) -> Self {
        Self::new(kind::RST_STREAM, 0, stream, code.to_be_bytes())
    }

    /// WINDOW_UPDATE.
    pub fn window_update(stream: u32, increment: u32) -> Self {
        Self::new(kind::WINDOW_UPDATE, 0, stream, increment.to_be_bytes())
    }

    /// PING.
    pub fn ping(bytes: [u8; 8]) -> Self {
        Self::new(kind::PING, 0, 0, bytes)
    }

    /// GOAWAY without debug text.
    pub fn go_away(last_stream: u32, code: u32) -> Self {
        Self::new(kind::GOAWAY, 0, 0, [last_stream.to_be_bytes(), code.to_be_bytes()].concat())
    }

    /// Whether a flag is set.
    pub fn has(&self, flag: u8) -> bool {
        self.flags & flag != 0
    }

    /// The number at `at` of the payload; 0 where it is too short.
    pub fn number(&self, at: usize) -> u32 {
        self.payload.get(at..at + 4).and_then(|four| four.try_into().ok()).map_or(0, u32::from_be_bytes)
    }

    /// The payload without padding and priority; `None` when the padding is longer than it.
    pub fn content(&self) -> Option<&[u8]> {
        let mut rest = self.payload.as_slice();
        let mut padding = 0;
        if self.has(flag::PADDED) && matches!(self.kind, kind::DATA | kind::HEADERS | kind::PUSH_PROMISE) {
            let (first, after) = rest.split_first()?;
            (padding, rest) = (usize::from(*first), after);
        }
        if self.has(flag::PRIORITY) && self.kind == kind::HEADERS {
            rest = rest.get(5..)?;
        }
        rest.get(..rest.len().checked_sub(padding)?)
    }

    /// Its bytes on the wire.
    pub fn bytes(&self) -> Vec<u8> {
        let length = u32::try_from(self.payload.len()).unwrap_or(u32::MAX).to_be_bytes();
        let head = [&length[1..], &[self.kind, self.flags], &self.stream.to_be_bytes()].concat();
        [head, self.payload.clone()].concat()
    }
}

/// The next frame; `None` at an orderly end.
pub fn read_frame(stream: &mut impl Read) -> io::Result<Option<Frame>> {
    let mut head = [0; 9];
    if stream.read(&mut head[..1])? == 0 {
        return Ok(None);
    }
    stream.read_exact(&mut head[1..])?;
    let [a, b, c, kind, flags, rest @ ..] = head;
    let length = u32::from_be_bytes([0, a, b, c]) as usize;
    if length > PAYLOAD_MAX {
        return Err(io::Error::new(io::ErrorKind::InvalidData, format!("a frame of {length} bytes")));
    }
    let mut payload = vec![0; length];
    stream.read_exact(&mut payload)?;
    Ok(Some(Frame { kind, flags, stream: u32::from_be_bytes(rest) & 0x7fff_ffff, payload }))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_frame_comes_back_from_its_bytes() {
        let frame = Frame::data(5, *b"body", true);
        assert_eq!(frame.bytes()[..9], [0, 0, 4, 0, 1, 0, 0, 0, 5]);
        assert_eq!(read_frame(&mut &frame.bytes()[..]).unwrap(), Some(frame));
        assert_eq!(read_frame(&mut &b""[..]).unwrap(), None);
        assert!(read_frame(&mut &b"\0\0\x04\0\0\0\0\0\x01ab"[..]).is_err());
    }

    #[test]
    fn padding_and_priority_are_taken_off() {
        let flags = flag::PADDED | flag::PRIORITY;
        let frame = Frame::new(kind::HEADERS, flags, 1, *b"\x02\0\0\0\0\x10block..");
        assert_eq!(frame.content(), Some(&b"block"[..]));
        assert_eq!(Frame::new(kind::DATA, flag::PADDED, 1, *b"\x05ab").content(), None);
    }
}
