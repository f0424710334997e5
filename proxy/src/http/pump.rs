//! **Purpose.** Bodies on the move: framed anew as they leave, never gathered.
//!
//! **Shape.** A [`Pump`] moves a body from a [`Source`] to a [`Sink`]. From HTTP/1 to HTTP/1 the slice that was received
//! is the slice that is sent; a chunked body gets a chunk head of its own for each slice; a long body that goes on as it
//! is, and that nobody keeps for another try, is spliced: it never enters this process. Towards HTTP/2 a piece waits in
//! the body until the receiver's window has room for it.
//!
//! **Limits.** Bodies of which [`SPLICE_FROM`] bytes are still to come are spliced. A pump reads ahead only while fewer than
//! [`HIGH_WATER`] bytes wait to be sent, or while the window has room: a slow reader slows its own sender and nobody else.
//!
//! **Cancel.** A pump is polled by its owner and holds nothing but references: dropping it loses no byte of the
//! sockets' queues.

use std::task::{Context, Poll};

use h2::SendStream;
use http::HeaderMap;
use outrigger_reactor::{Buf, Splice, SpliceFault, Spliced, TcpStream};

use super::body::{Body, BodyFault, Piece, Replay, Source};
use super::call::Meter;
use crate::http1::chunk::{CHUNK_END, LAST_CHUNK, write_chunk_header, write_last_chunk};
use crate::http2::Chunk;

/// Bytes waiting to be sent above which nothing more is read.
const HIGH_WATER: usize = 64 * 1024;

/// Bytes still to come from which on a body is spliced (decision 0008).
pub(super) const SPLICE_FROM: u64 = 32 * 1024;

/// How a body is framed on its way out of an HTTP/1 connection.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Outgoing {
    /// In chunks.
    Chunked,
    /// As above, and trailers after them.
    ChunkedWithTrailers,
    /// As it is: by length, or until the connection ends.
    Plain,
    /// As above, and its end is the end of what is sent on the connection.
    Tunnel,
}

/// Where a body goes.
#[derive(Debug)]
pub(super) enum Sink<'a> {
    Http1(&'a TcpStream),
    Http2(&'a mut SendStream<Chunk>),
}

/// Moves one body.
#[derive(Debug)]
pub(super) struct Pump<'a> {
    body: &'a mut Body,
    pub(super) source: Source<'a>,
    sink: Sink<'a>,
    /// How it goes, where it goes by HTTP/1.
    outgoing: Outgoing,
    /// What keeps it for another try.
    replay: Option<&'a mut Replay>,
    /// What sees the body of a call.
    meter: Option<&'a mut Meter>,
    /// Body bytes moved, but for those that a splice in hand has delivered.
    passed: u64,
}

/// What goes on for a piece that came.
struct Metered {
    bytes: Option<Chunk>,
    /// The end of the body, and its trailers.
    end: Option<Option<HeaderMap>>,
}

/// Why a body stopped moving.
#[derive(Debug)]
pub(super) enum PumpFault {
    /// The receiving end of it.
    Source(BodyFault),
    /// The sending end of it.
    Sink,
}

impl<'a> Pump<'a> {
    /// A pump at its start.
    pub(super) fn new(body: &'a mut Body, source: Source<'a>, sink: Sink<'a>, outgoing: Outgoing) -> Self {
        Self { body, source, sink, outgoing, replay: None, meter: None, passed: 0 }
    }

    /// Keeps what passes, for another try.
    pub(super) fn kept_in(mut self, replay: Option<&'a mut Replay>) -> Self {
        self.replay = replay;
        self
    }

    /// Shows what passes to the meter of a call.
    pub(super) fn metered(mut self, meter: Option<&'a mut Meter>) -> Self {
        self.meter = meter;
        self
    }

    /// Body bytes moved so far.
    pub(super) fn moved(&self) -> u64 {
        self.passed + self.body.splicing.as_ref().map_or(0, Splice::delivered)
    }

    /// True while bytes wait for the receiving end to take them.
    pub(super) fn is_blocked(&self) -> bool {
        let waits = match &self.sink {
            Sink::Http1(to) => to.queued_bytes() > 0,
            Sink::Http2(_) => false,
        };
        waits || self.body.held.is_some() || self.body.splicing.as_ref().is_some_and(|splice| splice.held() > 0)
    }

    /// True when the body's end was received, even if some of it still waits to be sent.
    pub(super) fn is_received(&self) -> bool {
        self.body.is_done()
    }

    /// True when whoever sends the body has gone while nothing more of it is awaited. Bytes of a next request are kept.
    pub(super) fn is_source_gone(&mut self, cx: &mut Context<'_>) -> bool {
        let Source::Http1 { input, stream } = &mut self.source else { return false };
        if !input.is_empty() {
            return false;
        }
        match stream.poll_recv(cx) {
            Poll::Ready(Ok(bytes)) if bytes.is_empty() => true,
            Poll::Ready(Ok(bytes)) => {
                **input = bytes;
                false
            }
            Poll::Ready(Err(_)) => true,
            Poll::Pending => false,
        }
    }

    /// True when whoever gets the body has reset its stream.
    pub(super) fn is_sink_reset(&mut self, cx: &mut Context<'_>) -> bool {
        match &mut self.sink {
            Sink::Http1(_) => false,
            Sink::Http2(send) => send.poll_reset(cx).is_ready(),
        }
    }

    /// Moves what can be moved; ready when the last byte was handed over to be sent.
    pub(super) fn poll_moved(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), PumpFault>> {
        match &self.sink {
            Sink::Http1(to) => {
                let to = *to;
                self.poll_unframed(to, cx)
            }
            Sink::Http2(_) => self.poll_framed(cx),
        }
    }

    /// From anywhere into a socket.
    fn poll_unframed(&mut self, to: &TcpStream, cx: &mut Context<'_>) -> Poll<Result<(), PumpFault>> {
        'moving: loop {
            if let Some(from) = self.spliceable() {
                match self.poll_spliced(from, to, cx) {
                    Poll::Ready(Ok(())) => continue,
                    other => return other,
                }
            }
            let mut starved = false;
            // Everything at hand is queued before one flush: head, chunk frames and bodies leave in one gathered send.
            while !self.body.end_queued && !starved && to.queued_bytes() < HIGH_WATER {
                match self.poll_queued(to, cx) {
                    Poll::Pending => starved = true,
                    Poll::Ready(Ok(())) => {}
                    Poll::Ready(Err(fault)) => return Poll::Ready(Err(PumpFault::Source(fault))),
                }
                if self.spliceable().is_some() {
                    // What is queued goes by a call just before the splice. Handed over, the ring would have it for a turn.
                    continue 'moving;
                }
            }
            match self.poll_left(to, cx) {
                Poll::Ready(Ok(())) if self.body.end_queued => return Poll::Ready(Ok(())),
                Poll::Ready(Ok(())) if starved => return Poll::Pending,
                Poll::Ready(Ok(())) => {}
                Poll::Ready(Err(())) => return Poll::Ready(Err(PumpFault::Sink)),
                Poll::Pending => return Poll::Pending,
            }
        }
    }

    /// Queues the next piece for a socket. Bytes from a socket that nobody meters do not become a [`Piece`] on their way.
    fn poll_queued(&mut self, to: &TcpStream, cx: &mut Context<'_>) -> Poll<Result<(), BodyFault>> {
        let (bytes, end) = match (&mut self.source, &self.meter) {
            (Source::Http1 { input, stream }, None) => match self.body.poll_bytes(input, stream, cx) {
                Poll::Pending => return Poll::Pending,
                Poll::Ready(Err(fault)) => return Poll::Ready(Err(fault)),
                Poll::Ready(Ok(Some(bytes))) => (Some(bytes), None),
                Poll::Ready(Ok(None)) => (None, Some(self.body.take_trailers())),
            },
            _ => match self.poll_metered(cx) {
                Poll::Pending => return Poll::Pending,
                Poll::Ready(Err(fault)) => return Poll::Ready(Err(fault)),
                Poll::Ready(Ok(Metered { bytes, end })) => (bytes.map(Chunk::into_buf), end),
            },
        };
        bytes.into_iter().for_each(|bytes| self.pass(bytes, to));
        if let Some(trailers) = end {
            self.body.end_queued = true;
            self.queue_end(trailers.as_ref(), to);
        }
        Poll::Ready(Ok(()))
    }

    /// Ready when what is queued needs no more attention.
    fn poll_left(&self, to: &TcpStream, cx: &mut Context<'_>) -> Poll<Result<(), ()>> {
        if self.body.end_queued && self.outgoing == Outgoing::Tunnel {
            // The end of a tunnel goes behind its last byte.
            return match to.poll_flush(cx) {
                Poll::Ready(Ok(())) => Poll::Ready(to.shutdown_write().map_err(|_| ())),
                other => other.map_err(|_| ()),
            };
        }
        to.poll_hand_over(cx).map_err(|_| ())
    }

    /// From anywhere into frames.
    fn poll_framed(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), PumpFault>> {
        loop {
            match self.poll_held(cx) {
                Poll::Ready(Ok(())) => {}
                other => return other,
            }
            if self.body.end_queued {
                return Poll::Ready(Ok(()));
            }
            let Metered { bytes, end } = match self.poll_metered(cx) {
                Poll::Pending => return Poll::Pending,
                Poll::Ready(Ok(metered)) => metered,
                Poll::Ready(Err(fault)) => return Poll::Ready(Err(PumpFault::Source(fault))),
            };
            if let Some(bytes) = bytes {
                if let Some(replay) = &mut self.replay {
                    replay.keep(bytes.as_ref());
                }
                self.passed += bytes.len() as u64;
                self.body.held = Some(bytes);
            }
            let Some(trailers) = end else { continue };
            match self.poll_held(cx) {
                Poll::Ready(Ok(())) => {}
                other => return other,
            }
            if !self.body.end_queued {
                let Sink::Http2(send) = &mut self.sink else { return Poll::Ready(Err(PumpFault::Sink)) };
                let sent = match trailers {
                    Some(trailers) => send.send_trailers(trailers),
                    None => send.send_data(Chunk::Received(Buf::new()), true),
                };
                self.body.end_queued = true;
                return Poll::Ready(sent.map_err(|_| PumpFault::Sink));
            }
        }
    }

    /// The next piece, as the meter of a call lets it pass.
    fn poll_metered(&mut self, cx: &mut Context<'_>) -> Poll<Result<Metered, BodyFault>> {
        let piece = match self.body.poll_piece(&mut self.source, cx) {
            Poll::Pending => return Poll::Pending,
            Poll::Ready(Ok(piece)) => piece,
            Poll::Ready(Err(fault)) => return Poll::Ready(Err(fault)),
        };
        let passed = match (piece, &mut self.meter) {
            (Piece::Bytes(bytes), None) => Some(Metered { bytes: Some(bytes), end: None }),
            (Piece::Bytes(bytes), Some(meter)) => {
                meter.pass(bytes).map(|bytes| Metered { bytes: Some(bytes), end: None })
            }
            (Piece::End(trailers), meter) => {
                let trailers = trailers.or_else(|| self.body.take_trailers());
                match meter {
                    None => Some(Metered { bytes: None, end: Some(trailers) }),
                    Some(meter) => meter.end(trailers).map(|(bytes, end)| Metered { bytes, end: Some(end) }),
                }
            }
        };
        Poll::Ready(passed.ok_or(BodyFault::Malformed))
    }

    /// Sends the held piece as far as the window has room; ready when none is left.
    fn poll_held(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), PumpFault>> {
        let Sink::Http2(send) = &mut self.sink else { return Poll::Ready(Err(PumpFault::Sink)) };
        while let Some(held) = &mut self.body.held {
            if held.is_empty() {
                self.body.held = None;
                break;
            }
            send.reserve_capacity(held.len());
            let room = match send.capacity() {
                0 => match send.poll_capacity(cx) {
                    Poll::Ready(Some(Ok(room))) => room,
                    Poll::Ready(_) => return Poll::Ready(Err(PumpFault::Sink)),
                    Poll::Pending => return Poll::Pending,
                },
                room => room,
            };
            let part = held.split_to(room.min(held.len()));
            // What decodes the body may have something against its end: the last piece does not end the stream then.
            let may_end = self.meter.as_ref().is_none_or(|meter| !meter.judges_end());
            let is_last = may_end && held.is_empty() && self.body.is_done() && !self.body.has_trailers();
            self.body.end_queued |= is_last;
            if send.send_data(part, is_last).is_err() {
                return Poll::Ready(Err(PumpFault::Sink));
            }
        }
        Poll::Ready(Ok(()))
    }

    /// The socket that what comes next need not leave the kernel from: nothing of it is at hand, it goes on as it is, and
    /// nobody needs to see it.
    fn spliceable(&self) -> Option<&'a TcpStream> {
        let worth = if self.body.splicing.is_some() { 1 } else { SPLICE_FROM };
        let Source::Http1 { input, stream: from } = &self.source else { return None };
        let is_spliceable = self.body.left().is_some_and(|left| left >= worth)
            && self.meter.is_none()
            && matches!(self.outgoing, Outgoing::Plain)
            && self.replay.as_ref().is_none_or(|replay| replay.is_given_up())
            && !self.body.is_pipeless
            && input.is_empty()
            && !from.has_received();
        is_spliceable.then_some(*from)
    }

    /// Moves body bytes inside the kernel; ready when that is over or bytes came in otherwise.
    fn poll_spliced(&mut self, from: &TcpStream, to: &TcpStream, cx: &mut Context<'_>) -> Poll<Result<(), PumpFault>> {
        // What goes before it must have left.
        match to.poll_flush_now(cx) {
            Poll::Ready(Ok(())) => {}
            Poll::Ready(Err(_)) => return Poll::Ready(Err(PumpFault::Sink)),
            Poll::Pending => return Poll::Pending,
        }
        while let Some(left) = self.body.left() {
            let splice = self.body.splicing.get_or_insert_default();
            let moved = splice.poll_move(from, to, left, cx);
            if let Some(replay) = self.replay.as_mut().filter(|_| splice.held() > 0 || splice.delivered() > 0) {
                replay.miss();
            }
            let Poll::Ready(moved) = moved else { return Poll::Pending };
            match moved {
                Ok(Spliced::Moved(bytes)) => self.body.skip(bytes),
                Ok(Spliced::Received) => return Poll::Ready(Ok(())),
                Ok(Spliced::End) => {
                    self.settle();
                    return Poll::Ready(self.body.end().map_err(PumpFault::Source));
                }
                Err(SpliceFault::NoPipe(_)) => {
                    self.body.is_pipeless = true;
                    return Poll::Ready(Ok(()));
                }
                Err(SpliceFault::Source(_)) => return Poll::Ready(Err(PumpFault::Source(BodyFault::Truncated))),
                Err(SpliceFault::Sink(_)) => return Poll::Ready(Err(PumpFault::Sink)),
            }
        }
        self.settle();
        Poll::Ready(Ok(()))
    }

    /// Lets the splice go once it is done.
    fn settle(&mut self) {
        if let Some(splice) = self.body.splicing.take() {
            self.passed += splice.delivered();
        }
    }

    fn pass(&mut self, bytes: Buf, to: &TcpStream) {
        if let Some(replay) = &mut self.replay {
            replay.keep(&bytes);
        }
        self.passed += bytes.len() as u64;
        queue_framed(to, bytes, self.outgoing);
    }

    fn queue_end(&self, trailers: Option<&HeaderMap>, to: &TcpStream) {
        match (self.outgoing, trailers) {
            (Outgoing::Plain | Outgoing::Tunnel, _) => {}
            (Outgoing::ChunkedWithTrailers, Some(trailers)) => {
                to.queue(Buf::build(|out| write_last_chunk(trailers, out)));
            }
            (Outgoing::Chunked | Outgoing::ChunkedWithTrailers, _) => to.queue(Buf::from_static(LAST_CHUNK)),
        }
    }
}

/// Puts body bytes into the send queue in their outgoing frame. Empty bytes are left out: an empty chunk is the end.
pub(super) fn queue_framed(to: &TcpStream, bytes: Buf, outgoing: Outgoing) {
    if bytes.is_empty() {
        return;
    }
    match outgoing {
        Outgoing::Plain | Outgoing::Tunnel => to.queue(bytes),
        Outgoing::Chunked | Outgoing::ChunkedWithTrailers => {
            to.queue(Buf::build(|head| write_chunk_header(bytes.len(), head)));
            to.queue(bytes);
            to.queue(Buf::from_static(CHUNK_END));
        }
    }
}
