//! **Purpose.** Message heads out of received bytes, whole or in pieces.
//!
//! **Shape.** An [`Inlet`] holds what was received and not yet used. A head that lies in one received slice is parsed
//! and kept there; one that arrives in pieces is gathered in a vector first. What follows the head stays in the inlet.
//!
//! **Cancel.** Plain state, polled by its owner: no byte is lost.

use std::task::{Context, Poll};

use outrigger_reactor::{Buf, TcpStream, count_copied};

use crate::fault::Kind;
use crate::http1::Progress;

/// Bytes received from one socket and not yet used.
#[derive(Debug, Default)]
pub(super) struct Inlet {
    /// The received slice at hand.
    pub(super) input: Buf,
    partial: Vec<u8>,
}

/// Why there is no head.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum HeadFault {
    /// The connection broke.
    Broken,
    /// The connection ended; `true` when part of a head had been received.
    Ended(bool),
    /// The bytes are no head.
    Refused(Kind),
}

impl Inlet {
    /// True when nothing was received that is not used.
    pub(super) fn is_empty(&self) -> bool {
        self.input.is_empty() && self.partial.is_empty()
    }

    /// The next head as `parse` finds it, in one slice.
    pub(super) fn poll_head(
        &mut self,
        from: &TcpStream,
        cx: &mut Context<'_>,
        mut parse: impl FnMut(&[u8]) -> Result<Progress, Kind>,
    ) -> Poll<Result<Buf, HeadFault>> {
        loop {
            if !self.input.is_empty() {
                let gathered = !self.partial.is_empty();
                if gathered {
                    self.partial.extend_from_slice(&std::mem::take(&mut self.input));
                }
                let bytes: &[u8] = if gathered { &self.partial } else { &self.input };
                match parse(bytes) {
                    Err(kind) => return Poll::Ready(Err(HeadFault::Refused(kind))),
                    Ok(Progress::Complete { head_bytes }) => {
                        if gathered {
                            self.input = Buf::from(std::mem::take(&mut self.partial));
                            count_copied(self.input.len().saturating_sub(head_bytes));
                        }
                        return Poll::Ready(Ok(self.input.split_to(head_bytes)));
                    }
                    Ok(Progress::Partial) if gathered => {}
                    Ok(Progress::Partial) => self.partial.extend_from_slice(&std::mem::take(&mut self.input)),
                }
            }
            match from.poll_recv(cx) {
                Poll::Pending => return Poll::Pending,
                Poll::Ready(Err(_)) => return Poll::Ready(Err(HeadFault::Broken)),
                Poll::Ready(Ok(bytes)) if bytes.is_empty() => {
                    return Poll::Ready(Err(HeadFault::Ended(!self.partial.is_empty())));
                }
                Poll::Ready(Ok(bytes)) => self.input = bytes,
            }
        }
    }

    /// Drops the leftover of a gathered head so that its memory is not held while idle.
    pub(super) fn release(&mut self) {
        if self.partial.is_empty() {
            self.partial = Vec::new();
        }
        if self.input.is_empty() {
            self.input = Buf::new();
        }
    }
}
