//! **Purpose.** Bodies on the move: decoded as they arrive, framed anew as they leave, never copied, never gathered.
//!
//! **Shape.** A [`Body`] takes received bytes apart; a [`Pump`] moves a body from one socket to another. The slice that
//! was received is the slice that is sent; a chunked body gets a chunk head of its own for each slice. A long body that
//! goes on as it is, and that nobody keeps for another try, is spliced: it never enters this process.
//!
//! **Limits.** Bodies of which [`SPLICE_FROM`] bytes are still to come are spliced. A pump reads ahead only while fewer than [`HIGH_WATER`] bytes wait to be sent: a slow reader slows its
//! own sender and nobody else.
//!
//! **Cancel.** A pump is polled by its owner and holds nothing but references: dropping it loses no byte of the
//! sockets' queues.
//!
//! **Source.** RFC 9112 §6, §7.

use std::task::{Context, Poll};

use outrigger_reactor::{Buf, Splice, SpliceFault, Spliced, TcpStream, count_copied};

use super::chunk::{CHUNK_END, ChunkDecoder, LAST_CHUNK, write_chunk_header};
use super::framing::BodyLength;

/// Bytes waiting to be sent above which nothing more is read.
pub(super) const HIGH_WATER: usize = 64 * 1024;

/// Bytes still to come from which on a body is spliced (decision 0008).
pub(super) const SPLICE_FROM: u64 = 32 * 1024;

/// A body being received, and the bytes behind it that were received with it.
#[derive(Debug)]
pub(super) struct Body {
    framing: Framing,
    /// Its end was put into the send queue of whoever gets it.
    end_queued: bool,
    /// What carries it through the kernel, if that is how it moves.
    splicing: Option<Splice>,
    /// No pipe could be had for it: it is received and sent.
    is_pipeless: bool,
}

#[derive(Debug)]
enum Framing {
    Chunked(ChunkDecoder),
    Done,
    Length(u64),
    UntilClose,
}

/// A step of a body.
#[derive(Debug)]
pub(super) enum Piece {
    /// Some of it.
    Bytes(Buf),
    /// There is no more.
    End,
}

/// Why a body cannot be read on.
#[derive(Debug)]
pub(super) enum BodyFault {
    /// It is not framed as its head said.
    Malformed,
    /// The connection ended or broke before the body did.
    Truncated,
}

impl Body {
    /// A body framed as its head says.
    pub(super) fn new(length: BodyLength) -> Self {
        let framing = match length {
            BodyLength::Empty | BodyLength::Length(0) => Framing::Done,
            BodyLength::Length(bytes) => Framing::Length(bytes),
            BodyLength::Chunked => Framing::Chunked(ChunkDecoder::default()),
            BodyLength::UntilClose => Framing::UntilClose,
        };
        Self { framing, end_queued: false, splicing: None, is_pipeless: false }
    }

    /// Bytes that it has yet to bring, where that is known before they come.
    fn left(&self) -> Option<u64> {
        match self.framing {
            Framing::Length(left) => Some(left),
            Framing::UntilClose => Some(u64::MAX),
            Framing::Chunked(_) | Framing::Done => None,
        }
    }

    /// Its source ended.
    fn end(&mut self) -> Result<(), BodyFault> {
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
    }

    /// The next piece: from `input` first, then from the socket. Bytes behind the body's end stay in `input`.
    pub(super) fn poll_piece(
        &mut self,
        input: &mut Buf,
        from: &TcpStream,
        cx: &mut Context<'_>,
    ) -> Poll<Result<Piece, BodyFault>> {
        loop {
            if self.is_done() {
                return Poll::Ready(Ok(Piece::End));
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
                return Poll::Ready(Ok(Piece::Bytes(bytes)));
            }
        }
    }

    /// Takes body bytes off the front of `input`; `None` when it held framing only.
    fn take(&mut self, input: &mut Buf) -> Result<Option<Buf>, BodyFault> {
        match &mut self.framing {
            Framing::Done => Ok(None),
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
                    self.framing = Framing::Done;
                }
                Ok(step.data.map(|data| taken.slice(data)))
            }
        }
    }
}

impl Body {
    /// Bytes of it were moved without being looked at.
    fn skip(&mut self, bytes: u64) {
        if let Framing::Length(left) = &mut self.framing {
            *left = left.saturating_sub(bytes);
            if *left == 0 {
                self.framing = Framing::Done;
            }
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
    fn miss(&mut self) {
        self.overflowed = true;
        self.kept = Vec::new();
    }

    fn keep(&mut self, bytes: &[u8]) {
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

    /// True when everything received so far can be sent again.
    pub(super) fn is_whole(&self) -> bool {
        !self.overflowed
    }

    /// What was received so far.
    pub(super) fn bytes(&self) -> &[u8] {
        &self.kept
    }
}

/// How a body is framed on its way out.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Outgoing {
    /// As it is: by length, or until the connection ends.
    Plain,
    /// In chunks.
    Chunked,
}

/// Moves one body.
#[derive(Debug)]
pub(super) struct Pump<'a> {
    /// The body.
    pub(super) body: &'a mut Body,
    /// Received bytes not yet taken apart.
    pub(super) input: &'a mut Buf,
    /// Where it comes from.
    pub(super) from: &'a TcpStream,
    /// Where it goes.
    pub(super) to: &'a TcpStream,
    /// How it goes.
    pub(super) outgoing: Outgoing,
    /// What keeps it for another try.
    pub(super) replay: Option<&'a mut Replay>,
    /// Body bytes moved, but for those that a splice in hand has delivered.
    passed: u64,
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
    pub(super) fn new(body: &'a mut Body, input: &'a mut Buf, from: &'a TcpStream, to: &'a TcpStream) -> Self {
        Self { body, input, from, to, outgoing: Outgoing::Plain, replay: None, passed: 0 }
    }

    /// Sets how the body is framed on its way out.
    pub(super) fn framed(mut self, outgoing: Outgoing) -> Self {
        self.outgoing = outgoing;
        self
    }

    /// Keeps what passes, for another try.
    pub(super) fn kept_in(mut self, replay: Option<&'a mut Replay>) -> Self {
        self.replay = replay;
        self
    }

    /// Body bytes moved so far.
    pub(super) fn moved(&self) -> u64 {
        self.passed + self.body.splicing.as_ref().map_or(0, Splice::delivered)
    }

    /// True while bytes wait for the receiving end to take them.
    pub(super) fn is_blocked(&self) -> bool {
        self.to.queued_bytes() > 0 || self.body.splicing.as_ref().is_some_and(|splice| splice.held() > 0)
    }

    /// True when the body's end was received, even if some of it still waits to be sent.
    pub(super) fn is_received(&self) -> bool {
        self.body.is_done()
    }

    /// Moves what can be moved; ready when the last byte was handed over to be sent.
    pub(super) fn poll_moved(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), PumpFault>> {
        loop {
            if self.is_spliceable() {
                match self.poll_spliced(cx) {
                    Poll::Ready(Ok(())) => continue,
                    other => return other,
                }
            }
            let mut starved = false;
            // Everything at hand is queued before one flush: head, chunk frames and bodies leave in one gathered send.
            while !self.body.end_queued && !starved && self.to.queued_bytes() < HIGH_WATER {
                if self.is_spliceable() {
                    break;
                }
                match self.body.poll_piece(self.input, self.from, cx) {
                    Poll::Pending => starved = true,
                    Poll::Ready(Ok(Piece::Bytes(bytes))) => self.pass(bytes),
                    Poll::Ready(Ok(Piece::End)) => {
                        self.body.end_queued = true;
                        if self.outgoing == Outgoing::Chunked {
                            self.to.queue(Buf::from_static(LAST_CHUNK));
                        }
                    }
                    Poll::Ready(Err(fault)) => return Poll::Ready(Err(PumpFault::Source(fault))),
                }
            }
            match self.to.poll_hand_over(cx) {
                Poll::Ready(Ok(())) if self.body.end_queued => return Poll::Ready(Ok(())),
                Poll::Ready(Ok(())) if starved => return Poll::Pending,
                Poll::Ready(Ok(())) => {}
                Poll::Ready(Err(_)) => return Poll::Ready(Err(PumpFault::Sink)),
                Poll::Pending => return Poll::Pending,
            }
        }
    }

    /// True when what comes next can stay in the kernel: nothing of it is at hand, it goes on as it is, and nobody needs
    /// to see it.
    fn is_spliceable(&self) -> bool {
        let worth = if self.body.splicing.is_some() { 1 } else { SPLICE_FROM };
        self.body.left().is_some_and(|left| left >= worth)
            && self.outgoing == Outgoing::Plain
            && self.replay.as_ref().is_none_or(|replay| replay.is_too_long || replay.overflowed)
            && !self.body.is_pipeless
            && self.input.is_empty()
            && !self.from.has_received()
    }

    /// Moves body bytes inside the kernel; ready when that is over or bytes came in otherwise.
    fn poll_spliced(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), PumpFault>> {
        // What goes before it must have left.
        match self.to.poll_flush_now(cx) {
            Poll::Ready(Ok(())) => {}
            Poll::Ready(Err(_)) => return Poll::Ready(Err(PumpFault::Sink)),
            Poll::Pending => return Poll::Pending,
        }
        while let Some(left) = self.body.left() {
            let splice = self.body.splicing.get_or_insert_default();
            let moved = splice.poll_move(self.from, self.to, left, cx);
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

    fn pass(&mut self, bytes: Buf) {
        if let Some(replay) = &mut self.replay {
            replay.keep(&bytes);
        }
        self.passed += bytes.len() as u64;
        queue_framed(self.to, bytes, self.outgoing);
    }
}

/// Puts body bytes into the send queue in their outgoing frame. Empty bytes are left out: an empty chunk is the end.
pub(super) fn queue_framed(to: &TcpStream, bytes: Buf, outgoing: Outgoing) {
    if bytes.is_empty() {
        return;
    }
    match outgoing {
        Outgoing::Plain => to.queue(bytes),
        Outgoing::Chunked => {
            to.queue(Buf::build(|head| write_chunk_header(bytes.len(), head)));
            to.queue(bytes);
            to.queue(Buf::from_static(CHUNK_END));
        }
    }
}
