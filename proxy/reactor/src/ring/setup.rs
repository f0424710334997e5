//! **Purpose.** How the driver's ring is made and what it may do: flags, restrictions, the receive cap.
//!
//! **Source.** io_uring_setup(2), io_uring_register(2) on IORING_REGISTER_RESTRICTIONS.

use std::io;
use std::mem;

use io_uring::register::Restriction;
use io_uring::{IoUring, Probe, opcode, squeue};

/// A ring of this thread alone whose completions are run when it asks for them; disabled until restricted.
pub(crate) fn build(entries: u32) -> io::Result<IoUring> {
    IoUring::builder()
        .dontfork()
        .setup_clamp()
        .setup_cqsize(entries.saturating_mul(8).max(1024))
        .setup_single_issuer()
        .setup_defer_taskrun()
        .setup_taskrun_flag()
        .setup_submit_all()
        .setup_r_disabled()
        .build(entries)
}

/// Operations this driver submits, by name; the probe asks the kernel for each and needs all.
pub(crate) const OPCODES: [(&str, u8); 6] = [
    ("ASYNC_CANCEL", opcode::AsyncCancel::CODE),
    ("CONNECT", opcode::Connect::CODE),
    ("POLL_ADD", opcode::PollAdd::CODE),
    ("RECV", opcode::Recv::CODE),
    ("SEND", opcode::Send::CODE),
    ("SENDMSG", opcode::SendMsg::CODE),
];

/// Operations that it submits where the kernel has them.
pub(crate) const ZERO_COPY: [(&str, u8); 2] =
    [("SEND_ZC", opcode::SendZc::CODE), ("SENDMSG_ZC", opcode::SendMsgZc::CODE)];

/// True when the kernel has all of [`ZERO_COPY`]. To be asked before [`restrict`], which forbids to ask.
pub(crate) fn knows_zero_copy(ring: &IoUring) -> bool {
    let mut probe = Probe::new();
    let asked = ring.submitter().register_probe(&mut probe);
    asked.is_ok() && ZERO_COPY.iter().all(|(_, code)| probe.is_supported(*code))
}

/// Allows these operations and nothing else, for the life of the ring. Gives their number.
pub(crate) fn restrict(ring: &IoUring) -> io::Result<usize> {
    // A kernel refuses a list with an operation that it does not know.
    let more = if knows_zero_copy(ring) { &ZERO_COPY[..] } else { &[] };
    let mut allowed: Vec<_> = OPCODES.iter().chain(more).map(|(_, code)| Restriction::sqe_op(*code)).collect();
    let count = allowed.len();
    allowed.push(Restriction::sqe_flags_allowed((squeue::Flags::BUFFER_SELECT | squeue::Flags::SKIP_SUCCESS).bits()));
    allowed.push(Restriction::register_op(REGISTER_ENABLE_RINGS));
    ring.submitter().register_restrictions(&mut allowed)?;
    Ok(count)
}

const REGISTER_ENABLE_RINGS: u8 = 12;

/// Bounds the bytes that a multishot receive takes in all before it ends: the entry's `optlen` field, which the crate
/// does not name yet.
pub(super) fn capped(entry: squeue::Entry, bytes: u32) -> squeue::Entry {
    const OPTLEN_WORD: usize = 11;
    const { assert!(mem::size_of::<squeue::Entry>() == 64) };
    // SAFETY: an entry is 64 bytes of integers (repr(C) over the kernel's struct), valid in any bit pattern, and an
    // array of words has no padding.
    let mut words: [u32; 16] = unsafe { mem::transmute(entry) };
    words[OPTLEN_WORD] = bytes;
    // SAFETY: as above.
    unsafe { mem::transmute::<[u32; 16], squeue::Entry>(words) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_restricted_ring_refuses_other_operations() {
        let mut ring = build(8).unwrap();
        restrict(&ring).unwrap();
        ring.submitter().register_enable_rings().unwrap();
        let other = opcode::Nop::new().build().user_data(7);
        // SAFETY: a no-op points to nothing.
        unsafe { ring.submission().push(&other).unwrap() };
        ring.submit_and_wait(1).unwrap();
        let refused = ring.completion().next().unwrap();
        assert_eq!((refused.user_data(), refused.result()), (7, -libc::EACCES));
        let mut probe = io_uring::Probe::new();
        let error = ring.submitter().register_probe(&mut probe).unwrap_err();
        assert_eq!(error.raw_os_error(), Some(libc::EACCES));
    }

    #[test]
    fn the_cap_is_the_length_of_optional_values() {
        let entry = opcode::RecvMulti::new(io_uring::types::Fd(3), 0).build().user_data(9);
        let bounded = capped(entry.clone(), 4096);
        assert_eq!(bounded.get_user_data(), 9);
        assert_eq!(bounded.get_opcode(), entry.get_opcode());
    }
}
