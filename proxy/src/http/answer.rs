//! **Purpose.** The final head of an upstream's answer, past the interim ones before it.
//!
//! **Errors.** A [`Kind`] of the upstream side: reset, closed, malformed, too large.
//!
//! **Limits.** 60 KiB and 100 headers a head; 32 interim heads.
//!
//! **Cancel.** Plain state, polled by its owner.
//!
//! **Source.** RFC 9110 §15.2; 101 is malformed where no upgrade was asked for.

use std::task::{Context, Poll};

use outrigger_reactor::{Buf, TcpStream};

use super::inlet::{HeadFault, Inlet};
use crate::fault::Kind;
use crate::http1::{ResponseLimits, ResponseTable};

/// Interim (1xx) answers read before the final one; more are no HTTP server's.
const MAX_INTERIM: u32 = 32;

/// Reads heads until one that is final.
#[derive(Debug, Default)]
pub(super) struct FinalHead {
    /// What was received behind it.
    pub(super) inlet: Inlet,
    limits: ResponseLimits,
    interim: u32,
    may_switch: bool,
}

impl FinalHead {
    /// The answer to an upgrade: 101 is final.
    pub(super) fn to_upgrade() -> Self {
        Self { may_switch: true, ..Self::default() }
    }

    /// The final head. 100 was answered to the client already, 102 and 103 are advice: none ends the wait.
    pub(super) fn poll(
        &mut self,
        from: &TcpStream,
        table: &mut ResponseTable,
        cx: &mut Context<'_>,
    ) -> Poll<Result<Buf, Kind>> {
        loop {
            let head = match self.inlet.poll_head(from, cx, |bytes| table.parse(bytes, &self.limits)) {
                Poll::Ready(Ok(head)) => head,
                Poll::Ready(Err(fault)) => return Poll::Ready(Err(head_fault(&fault))),
                Poll::Pending => return Poll::Pending,
            };
            let view = table.view(&head);
            if (view.is_switch() && !self.may_switch) || self.interim > MAX_INTERIM {
                return Poll::Ready(Err(Kind::ResponseMalformed));
            }
            if !view.is_interim() {
                return Poll::Ready(Ok(head));
            }
            self.interim += 1;
        }
    }
}

fn head_fault(fault: &HeadFault) -> Kind {
    match fault {
        HeadFault::Broken => Kind::ResponseReset,
        HeadFault::Ended(_) => Kind::ResponseClosed,
        HeadFault::Refused(kind) => *kind,
    }
}
