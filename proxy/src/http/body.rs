//! **Purpose.** Bodies as they come in, taken apart, and what is kept of them for another try.
//!
//! **Shape.** A [`Body`] takes pieces from a [`Source`]. Bytes of HTTP/1 are cut out of the received slices; pieces of
//! HTTP/2 come as frames brought them, and the sender's window opens as they are taken.
//!
//! **Source.** RFC 9112 §6, §7; RFC 9113 §8.1.

use std::task::{Context, Poll};

use h2::{Reason, RecvStream};
use http::HeaderMap;
use outrigger_reactor::{Buf, Splice, TcpStream, count_copied};

use crate::http1::{BodyLength, ChunkDecoder, parse_trailers};
use crate::http2::Chunk;

/// Where a body comes from.
#[derive(Debug)]
pub(super) enum Source<'a> {
    Http1 {
        /// Received bytes not yet taken apart.
        input: &'a mut Buf,
        stream: &'a TcpStream,
    },
    Http2(&'a mut RecvStream),
}

/// A body being received, and what of it waits to go on.
#[derive(Debug)]
pub(super) struct Body {
    framing: Framing,
    /// Its end was handed to whoever gets it.
    pub(super) end_queued: bool,
    /// What carries it through the kernel, if that is how it moves.
    pub(super) splicing: Option<Splice>,
    /// No pipe could be had for it: it is received and sent.
    pub(super) is_pipeless: bool,
    /// Taken, and not yet within the window of whoever gets it.
    pub(super) held: Option<Chunk>,
    /// A piece that was looked at before it was due.
    peeked: Option<Box<Result<Piece, BodyFault>>>,
    /// What a body of HTTP/1 ended with.
    trailers: Option<Box<HeaderMap>>,
}

#[derive(Debug)]
enum Framing {
    Chunked(ChunkDecoder),
    Done,
    Length(u64),
    /// Its stream of HTTP/2 ends it.
    Stream,
    UntilClose,
}

/// A step of a body.
#[derive(Debug)]
pub(super) enum Piece {
    /// Some of it.
    Bytes(Chunk),
    /// There is no more.
    End(Option<HeaderMap>),
}

/// Why a body cannot be read on.
#[derive(Clone, Copy, Debug)]
pub(super) enum BodyFault {
    /// It is not framed as its head said.
    Malformed,
    /// Its sender reset its stream.
    Reset(Reason),
    /// The connection ended or broke before the body did.
    Truncated,
}

impl Body {
    /// A body framed as its head says.
    pub(super) fn new(length: BodyLength) -> Self {
        Self::of(match length {
            BodyLength::Empty | BodyLength::Length(0) => Framing::Done,
            BodyLength::Length(bytes) => Framing::Length(bytes),
            BodyLength::Chunked => Framing::Chunked(ChunkDecoder::default()),
            BodyLength::UntilClose => Framing::UntilClose,
        })
    }

    /// A body of HTTP/1 as its head says, whose trailers are wanted.
    pub(super) fn with_trailers(length: BodyLength) -> Self {
        match length {
            BodyLength::Chunked => Self::of(Framing::Chunked(ChunkDecoder::keeping_trailers())),
            length => Self::new(length),
        }
    }

    /// A body that comes in frames.
    pub(super) fn framed(is_whole: bool) -> Self {
        Self::of(if is_whole { Framing::Done } else { Framing::Stream })
    }

    fn of(framing: Framing) -> Self {
        Self {
            framing,
            end_queued: false,
            splicing: None,
            is_pipeless: false,
            held: None,
            peeked: None,
            trailers: None,
        }
    }

    /// Bytes that it has yet to bring, where that is known before they come.
    pub(super) fn left(&self) -> Option<u64> {
        match self.framing {
            Framing::Length(left) => Some(left),
            Framing::UntilClose => Some(u64::MAX),
            Framing::Chunked(_) | Framing::Done | Framing::Stream => None,
        }
    }

    /// Its source ended.
    pub(super) fn end(&mut self) -> Result<(), BodyFault> {
        if !matches!(self.framing, Framing::UntilClose) {
            return Err(BodyFault::Truncated);
        }
        self.framing = Framing::Done;
        Ok(())
    }

    /// True when its last byte was taken.
    pub(super) fn is_done(&self) -> bool {
        matches!(self.framing, Framing::Done)
    }

    /// It goes out from its beginning (again).
    pub(super) fn begin_outgoing(&mut self) {
        self.end_queued = false;
        self.held = None;
    }

    /// The next piece. Bytes behind the body's end stay with their source.
    pub(super) fn poll_piece(
        &mut self,
        source: &mut Source<'_>,
        cx: &mut Context<'_>,
    ) -> Poll<Result<Piece, BodyFault>> {
        if let Some(peeked) = self.peeked.take() {
            return Poll::Ready(*peeked);
        }
        match source {
            Source::Http1 { input, stream } => self.poll_bytes(input, stream, cx).map_ok(|bytes| match bytes {
                Some(bytes) => Piece::Bytes(Chunk::Received(bytes)),
                None => Piece::End(None),
            }),
            Source::Http2(recv) => self.poll_frame(recv, cx),
        }
    }

    /// Looks at the next piece if it is there already; it stays the next.
    pub(super) fn peek(&mut self, source: &mut Source<'_>, cx: &mut Context<'_>) -> Option<&Result<Piece, BodyFault>> {
        let Poll::Ready(piece) = self.poll_piece(source, cx) else { return None };
        Some(self.peeked.insert(Box::new(piece)))
    }

    /// Nothing of it is left to pass on.
    pub(super) fn is_over(&self) -> bool {
        self.is_done() && self.peeked.is_none()
    }

    /// The next bytes, from `input` first, then from the socket; `None` at the end.
    pub(super) fn poll_bytes(
        &mut self,
        input: &mut Buf,
        from: &TcpStream,
        cx: &mut Context<'_>,
    ) -> Poll<Result<Option<Buf>, BodyFault>> {
        loop {
            if self.is_done() {
                return Poll::Ready(Ok(None));
            }
            if input.is_empty() {
                match from.poll_recv(cx) {
                    Poll::Pending => return Poll::Pending,
                    Poll::Ready(Ok(bytes)) if !bytes.is_empty() => *input = bytes,
                    Poll::Ready(Ok(_)) => {
                        self.end()?;
                        continue;
                    }
                    Poll::Ready(Err(_)) => return Poll::Ready(Err(BodyFault::Truncated)),
                }
            }
            if let Some(bytes) = self.take(input)? {
                return Poll::Ready(Ok(Some(bytes)));
            }
        }
    }

    fn poll_frame(&mut self, recv: &mut RecvStream, cx: &mut Context<'_>) -> Poll<Result<Piece, BodyFault>> {
        if self.is_done() {
            return Poll::Ready(Ok(Piece::End(None)));
        }
        match recv.poll_data(cx) {
            Poll::Pending => return Poll::Pending,
            Poll::Ready(Some(Ok(bytes))) => {
                // It is taken when there is room for it: from here on whoever gets it slows the sender, not this.
                let _ = recv.flow_control().release_capacity(bytes.len());
                if recv.is_end_stream() {
                    self.framing = Framing::Done;
                }
                return Poll::Ready(Ok(Piece::Bytes(Chunk::Framed(bytes))));
            }
            Poll::Ready(Some(Err(error))) => return Poll::Ready(Err(BodyFault::of(&error))),
            Poll::Ready(None) => {}
        }
        match recv.poll_trailers(cx) {
            Poll::Pending => Poll::Pending,
            Poll::Ready(Ok(trailers)) => {
                self.framing = Framing::Done;
                Poll::Ready(Ok(Piece::End(trailers)))
            }
            Poll::Ready(Err(error)) => Poll::Ready(Err(BodyFault::of(&error))),
        }
    }

    /// Takes body bytes off the front of `input`; `None` when it held framing only.
    fn take(&mut self, input: &mut Buf) -> Result<Option<Buf>, BodyFault> {
        match &mut self.framing {
            Framing::Done | Framing::Stream => Ok(None),
            Framing::UntilClose => Ok(Some(std::mem::take(input))),
            Framing::Length(left) => {
                let take = usize::try_from(*left).map_or(input.len(), |left| left.min(input.len()));
                *left -= take as u64;
                if *left == 0 {
                    self.framing = Framing::Done;
                }
                Ok(Some(input.split_to(take)))
            }
            Framing::Chunked(decoder) => {
                let step = decoder.step(input).map_err(|_| BodyFault::Malformed)?;
                let taken = input.split_to(step.consumed);
                if step.done {
                    self.trailers = parse_trailers(decoder.trailers()).map(Box::new);
                    self.framing = Framing::Done;
                }
                Ok(step.data.map(|data| taken.slice(data)))
            }
        }
    }

    /// True when trailers came that were not taken yet.
    pub(super) fn has_trailers(&self) -> bool {
        self.trailers.is_some() || self.peeked.is_some()
    }

    /// The trailers that an HTTP/1 body ended with, where they were wanted.
    pub(super) fn take_trailers(&mut self) -> Option<HeaderMap> {
        self.trailers.take().map(|trailers| *trailers)
    }

    /// Bytes of it were moved without being looked at.
    pub(super) fn skip(&mut self, bytes: u64) {
        if let Framing::Length(left) = &mut self.framing {
            *left = left.saturating_sub(bytes);
            if *left == 0 {
                self.framing = Framing::Done;
            }
        }
    }
}

impl BodyFault {
    fn of(error: &h2::Error) -> Self {
        match error.reason() {
            Some(reason) if error.is_reset() && error.is_remote() => Self::Reset(reason),
            Some(_) if error.is_library() => Self::Malformed,
            _ => Self::Truncated,
        }
    }
}

/// What is kept of a request body so that it can be sent again.
#[derive(Debug)]
pub(super) struct Replay {
    kept: Vec<u8>,
    overflowed: bool,
    /// It is known to be too long: no byte of it is kept.
    is_too_long: bool,
}

/// Most bytes kept for replay (Envoy: per_request_buffer_limit_bytes, 1 MiB).
pub(super) const REPLAY_LIMIT: usize = 1024 * 1024;

impl Replay {
    /// Nothing of a body yet; what will be kept is put into `memory`, whatever it held before.
    pub(super) fn within(mut memory: Vec<u8>, length: BodyLength) -> Self {
        memory.clear();
        let is_too_long = matches!(length, BodyLength::Length(bytes) if bytes > REPLAY_LIMIT as u64);
        Self { kept: memory, overflowed: false, is_too_long }
    }

    /// The memory, for another request.
    pub(super) fn into_memory(self) -> Vec<u8> {
        self.kept
    }

    /// Some of the body went on that is not kept.
    pub(super) fn miss(&mut self) {
        self.overflowed = true;
        self.kept = Vec::new();
    }

    pub(super) fn keep(&mut self, bytes: &[u8]) {
        if self.overflowed {
            return;
        }
        if self.is_too_long || self.kept.len() + bytes.len() > REPLAY_LIMIT {
            self.miss();
        } else {
            // Copied: holding the received blocks themselves would take them from every other connection.
            count_copied(bytes.len());
            self.kept.extend_from_slice(bytes);
        }
    }

    /// True when nothing of it is kept, now or later.
    pub(super) fn is_given_up(&self) -> bool {
        self.is_too_long || self.overflowed
    }

    /// True when everything received so far can be sent again.
    pub(super) fn is_whole(&self) -> bool {
        !self.overflowed
    }

    /// What was received so far.
    pub(super) fn bytes(&self) -> &[u8] {
        &self.kept
    }
}
