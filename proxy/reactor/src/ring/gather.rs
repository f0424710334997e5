//! **Purpose.** The memory of one send, and its entry in the submission queue.

use std::mem;

use io_uring::types::Fd;
use io_uring::{opcode, squeue};

use super::lending::REPORT_USAGE;
use crate::buffers::Buf;
use crate::bufs::NEW_SLICES;

/// What a send in the kernel reads: boxed, so that it stays where it is.
pub(super) struct Gather {
    header: libc::msghdr,
    pub(super) slices: Vec<libc::iovec>,
    pub(super) bufs: Vec<Buf>,
}

impl Gather {
    pub(super) fn new() -> Self {
        Self {
            // SAFETY: all zeros is a valid msghdr: null pointers and zero lengths.
            header: unsafe { mem::zeroed() },
            slices: Vec::with_capacity(NEW_SLICES),
            bufs: Vec::with_capacity(NEW_SLICES),
        }
    }

    /// The entry that sends it. It is to stay where it is until the completion, its bytes until they are not read on.
    pub(super) fn entry(&mut self, fd: Fd, flags: i32, is_lent: bool) -> squeue::Entry {
        if let [only] = self.slices[..] {
            let (start, len) = (only.iov_base.cast_const().cast(), only.iov_len as u32);
            return if is_lent {
                opcode::SendZc::new(fd, start, len).flags(flags).zc_flags(REPORT_USAGE).build()
            } else {
                opcode::Send::new(fd, start, len).flags(flags).build()
            };
        }
        self.header.msg_iov = self.slices.as_mut_ptr();
        self.header.msg_iovlen = self.slices.len() as _;
        let header = &raw const self.header;
        if is_lent {
            opcode::SendMsgZc::new(fd, header).flags(flags as u32).ioprio(REPORT_USAGE).build()
        } else {
            opcode::SendMsg::new(fd, header).flags(flags as u32).build()
        }
    }
}
