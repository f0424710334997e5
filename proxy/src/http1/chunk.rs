//! **Purpose.** Chunked bodies: read strictly in place at any split of the input, and written.
//!
//! **Shape.** The caller hands [`ChunkDecoder::step`] what it has; each [`Step`] says how much was used and which part of
//! it is body. Extensions are read and dropped, trailers too unless they are wanted.
//! ```text
//! Size ─digits─▶ Size ─';'─▶ Extension ─CR─▶ SizeLf ─LF─▶ Data ─n bytes─▶ DataCr ─CR─▶ DataLf ─LF─▶ Size
//!                     └───────────CR──────────▶ └─size 0─▶ TrailerStart ─CR─▶ EndLf ─LF─▶ Done
//! TrailerStart ─name byte─▶ TrailerName ─':'─▶ TrailerValue ─CR─▶ TrailerLf ─LF─▶ TrailerStart
//! ```
//!
//! **Errors.** [`ChunkFault`]; the connection cannot be read on.
//!
//! **Limits.** 16 digits of size; 16 KiB of extensions in the whole body; 16 KiB of trailers.
//!
//! **Source.** RFC 9112 §7.1. Stricter: no blanks before the extension or the line end, no bare LF.

use std::ops::Range;

use http::{HeaderMap, HeaderName, HeaderValue};

use super::edit::put;
use super::line::{Name, is_token, trim};

/// Most bytes of extensions in one body.
pub const MAX_EXTENSION_BYTES: u32 = 16 * 1024;
/// Most bytes of trailers.
pub const MAX_TRAILER_BYTES: u32 = 16 * 1024;
/// What ends a chunked body that has no trailers.
pub const LAST_CHUNK: &[u8] = b"0\r\n\r\n";
/// What follows the bytes of each chunk.
pub const CHUNK_END: &[u8] = b"\r\n";

/// Why a chunked body cannot be read on.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ChunkFault {
    /// The bytes of a chunk are not followed by CR LF.
    #[error("chunk data is not followed by CR LF")]
    DataEnd,
    /// An extension with a control byte, or more than 16 KiB of them.
    #[error("chunk extension has a control byte or is over 16 KiB")]
    Extension,
    /// Not 1 to 16 hexadecimal digits, followed by CR LF or `;`.
    #[error("chunk size is not 1 to 16 hexadecimal digits and CR LF")]
    Size,
    /// A trailer that is no header line, or more than 16 KiB of them.
    #[error("trailer is not a header line or trailers are over 16 KiB")]
    Trailer,
}

/// What one call found.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Step {
    /// Bytes used; the caller calls again with what follows them.
    pub consumed: usize,
    /// The part of them that is body.
    pub data: Option<Range<usize>>,
    /// The body is over: what follows `consumed` is the next message.
    pub done: bool,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum State {
    Data,
    DataCr,
    DataLf,
    Done,
    EndLf,
    Extension,
    Size,
    SizeLf,
    TrailerLf,
    TrailerName,
    TrailerStart,
    TrailerValue,
}

/// Reads one chunked body.
#[derive(Clone, Debug)]
pub struct ChunkDecoder {
    state: State,
    left: u64,
    digits: u32,
    extension_bytes: u32,
    trailer_bytes: u32,
    keeps_trailers: bool,
    /// The lines of the trailers, where they are kept.
    trailers: Vec<u8>,
}

impl Default for ChunkDecoder {
    fn default() -> Self {
        Self::new()
    }
}

impl ChunkDecoder {
    /// At the first byte of a body.
    pub fn new() -> Self {
        Self {
            state: State::Size,
            left: 0,
            digits: 0,
            extension_bytes: 0,
            trailer_bytes: 0,
            keeps_trailers: false,
            trailers: Vec::new(),
        }
    }

    /// As [`ChunkDecoder::new`], and what follows the last chunk is kept.
    pub fn keeping_trailers() -> Self {
        Self { keeps_trailers: true, ..Self::new() }
    }

    /// The lines that followed the last chunk, where they were kept.
    pub fn trailers(&self) -> &[u8] {
        &self.trailers
    }

    /// The whole body has been read.
    pub fn is_done(&self) -> bool {
        self.state == State::Done
    }

    /// Uses bytes up to the end of one run of data, the end of the body, or the end of `bytes`. Call again with the rest
    /// while it consumes; with nothing left to consume it needs more input.
    pub fn step(&mut self, bytes: &[u8]) -> Result<Step, ChunkFault> {
        for (at, &b) in bytes.iter().enumerate() {
            if self.state == State::Done {
                return Ok(Step { consumed: at, data: None, done: true });
            }
            if self.state == State::Data {
                let room = u64::try_from(bytes.len() - at).unwrap_or(u64::MAX);
                let taken = room.min(self.left);
                self.left -= taken;
                if self.left == 0 {
                    self.state = State::DataCr;
                }
                let end = at + usize::try_from(taken).unwrap_or(usize::MAX);
                return Ok(Step { consumed: end, data: Some(at..end), done: false });
            }
            self.take(b)?;
        }
        Ok(Step { consumed: bytes.len(), data: None, done: self.is_done() })
    }

    /// One byte that is not data.
    fn take(&mut self, b: u8) -> Result<(), ChunkFault> {
        let was = self.state;
        self.state = match (self.state, b) {
            (State::Size, b'\r' | b';') if self.digits == 0 => return Err(ChunkFault::Size),
            (State::Size | State::Extension, b'\r') => State::SizeLf,
            (State::Size, b';') => self.extend()?,
            (State::Size, _) => self.size_digit(b)?,
            (State::SizeLf, b'\n') => self.chunk_begins(),
            (State::SizeLf, _) => return Err(ChunkFault::Size),
            (State::Extension, b) if is_control(b) => return Err(ChunkFault::Extension),
            (State::Extension, _) => self.extend()?,
            (State::DataCr, b'\r') => State::DataLf,
            (State::DataLf, b'\n') => State::Size,
            (State::DataCr | State::DataLf, _) => return Err(ChunkFault::DataEnd),
            (State::TrailerStart, b'\r') => State::EndLf,
            (State::EndLf, b'\n') => State::Done,
            (State::TrailerStart | State::TrailerName, b) if is_token(&[b]) => self.trail(State::TrailerName)?,
            (State::TrailerName, b':') => self.trail(State::TrailerValue)?,
            (State::TrailerValue, b'\r') => State::TrailerLf,
            (State::TrailerValue, b) if !is_control(b) => self.trail(State::TrailerValue)?,
            (State::TrailerLf, b'\n') => self.trail(State::TrailerStart)?,
            (State::TrailerStart | State::TrailerName | State::TrailerValue | State::TrailerLf | State::EndLf, _) => {
                return Err(ChunkFault::Trailer);
            }
            (State::Data | State::Done, _) => self.state,
        };
        if self.keeps_trailers && matches!(was, State::TrailerName | State::TrailerValue | State::TrailerLf)
            || self.keeps_trailers && was == State::TrailerStart && self.state == State::TrailerName
        {
            self.trailers.push(b);
        }
        Ok(())
    }

    fn size_digit(&mut self, b: u8) -> Result<State, ChunkFault> {
        let digit = char::from(b).to_digit(16).ok_or(ChunkFault::Size)?;
        self.digits += 1;
        if self.digits > 16 {
            return Err(ChunkFault::Size);
        }
        self.left = (self.left << 4) | u64::from(digit);
        Ok(State::Size)
    }

    fn chunk_begins(&mut self) -> State {
        self.digits = 0;
        if self.left == 0 { State::TrailerStart } else { State::Data }
    }

    fn extend(&mut self) -> Result<State, ChunkFault> {
        self.extension_bytes += 1;
        if self.extension_bytes > MAX_EXTENSION_BYTES { Err(ChunkFault::Extension) } else { Ok(State::Extension) }
    }

    fn trail(&mut self, next: State) -> Result<State, ChunkFault> {
        self.trailer_bytes += 1;
        if self.trailer_bytes > MAX_TRAILER_BYTES { Err(ChunkFault::Trailer) } else { Ok(next) }
    }
}

fn is_control(b: u8) -> bool {
    (b < 0x20 && b != b'\t') || b == 0x7f
}

/// Lines of a trailer section as a map; `None` when there is none. What frames or routes a message is left out
/// (RFC 9110 §6.5.1).
pub fn parse_trailers(lines: &[u8]) -> Option<HeaderMap> {
    let mut trailers = HeaderMap::new();
    for line in lines.split(|b| *b == b'\n') {
        let Some(colon) = memchr::memchr(b':', line) else { continue };
        let (name, value) = (&line[..colon], trim(line[colon + 1..].trim_ascii_end()));
        if Name::of(name) != Name::Other {
            continue;
        }
        if let (Ok(name), Ok(value)) = (HeaderName::from_bytes(name), HeaderValue::from_bytes(value)) {
            trailers.append(name, value);
        }
    }
    (!trailers.is_empty()).then_some(trailers)
}

/// Writes the last chunk and the trailers behind it.
pub fn write_last_chunk(trailers: &HeaderMap, out: &mut Vec<u8>) {
    out.extend_from_slice(b"0\r\n");
    for (name, value) in trailers {
        if Name::of(name.as_str().as_bytes()) == Name::Other {
            put(out, name.as_str().as_bytes(), value.as_bytes());
        }
    }
    out.extend_from_slice(b"\r\n");
}

/// Writes the line before the bytes of a chunk; `length` above 0, since a chunk of 0 bytes ends the body.
pub fn write_chunk_header(length: usize, out: &mut Vec<u8>) {
    debug_assert!(length > 0, "a chunk of no bytes would end the body");
    let digits = (usize::BITS - length.leading_zeros()).div_ceil(4).max(1);
    for at in (0..digits).rev() {
        let digit = (length >> (at * 4)) & 0xf;
        out.push(b"0123456789abcdef"[digit]);
    }
    out.extend_from_slice(b"\r\n");
}
