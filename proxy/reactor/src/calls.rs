//! **Purpose.** The system calls that each request makes, as plain calls.
//!
//! **Shape.** In libc each of these is a place where the thread may be cancelled: two atomic operations around the call, and
//! code of its own that is cold each time where requests are rare. `syscall` has neither, and serves them all.
//!
//! **Errors.** The errno; EINTR is the caller's to try again.
//!
//! **Source.** syscall(2), pthreads(7) "Cancellation points".

use std::io::{self, IoSlice};
use std::os::fd::RawFd;
use std::ptr;

use libc::{c_int, c_long, epoll_event, iovec, msghdr, sigset_t, sockaddr, socklen_t};

/// What a call returned.
fn told(result: c_long) -> Result<usize, i32> {
    usize::try_from(result).map_err(|_| io::Error::last_os_error().raw_os_error().unwrap_or(libc::EIO))
}

/// `recv`, or `readv` where there are several slices: bytes, or 0 at the end.
///
/// # Safety
/// The slices may be written to, by nobody else through the call.
pub(crate) unsafe fn recv(fd: RawFd, slices: &[iovec]) -> Result<usize, i32> {
    let (no_address, no_len) = (ptr::null_mut::<sockaddr>(), ptr::null_mut::<socklen_t>());
    // SAFETY: the caller's promise; no other pointer is given.
    told(unsafe {
        match slices {
            [only] => libc::syscall(libc::SYS_recvfrom, fd, only.iov_base, only.iov_len, 0, no_address, no_len),
            _ => libc::syscall(libc::SYS_readv, fd, slices.as_ptr(), slices.len()),
        }
    })
}

/// `recv` of one byte that stays where it is: how many are there, of one, or 0 at the end.
pub(crate) fn peek(fd: RawFd) -> Result<usize, i32> {
    let (no_address, no_len) = (ptr::null_mut::<sockaddr>(), ptr::null_mut::<socklen_t>());
    let mut byte = 0_u8;
    // SAFETY: `byte` is as long as the call is told, and outlives it.
    told(unsafe { libc::syscall(libc::SYS_recvfrom, fd, &raw mut byte, 1_usize, libc::MSG_PEEK, no_address, no_len) })
}

/// `send`.
pub(crate) fn send(fd: RawFd, bytes: &[u8], flags: c_int) -> Result<usize, i32> {
    let (no_address, no_len): (*const sockaddr, socklen_t) = (ptr::null(), 0);
    // SAFETY: the bytes are read through the call only.
    told(unsafe { libc::syscall(libc::SYS_sendto, fd, bytes.as_ptr(), bytes.len(), flags, no_address, no_len) })
}

/// `sendmsg` of slices.
pub(crate) fn send_gathered(fd: RawFd, slices: &[IoSlice<'_>], flags: c_int) -> Result<usize, i32> {
    // SAFETY: null pointers and zero lengths are a message without address and control data.
    let mut message: msghdr = unsafe { std::mem::zeroed() };
    message.msg_iov = slices.as_ptr().cast_mut().cast();
    message.msg_iovlen = slices.len() as _;
    // SAFETY: an `IoSlice` is an iovec; the call reads them, and what they point to, and keeps no pointer.
    told(unsafe { libc::syscall(libc::SYS_sendmsg, fd, &raw const message, flags) })
}

/// `splice` without offsets.
pub(crate) fn splice(from: RawFd, to: RawFd, bytes: usize, flags: u32) -> Result<usize, i32> {
    let no_offset = ptr::null_mut::<libc::loff_t>();
    // SAFETY: takes no pointer.
    told(unsafe { libc::syscall(libc::SYS_splice, from, no_offset, to, no_offset, bytes, flags) })
}

/// `epoll_wait`: how many events were written.
pub(crate) fn epoll_wait(fd: RawFd, events: &mut [epoll_event], wait_ms: c_int) -> Result<usize, i32> {
    // As epoll_pwait, which every architecture has.
    let (no_mask, no_len) = (ptr::null::<sigset_t>(), 0_usize);
    let most = c_int::try_from(events.len()).unwrap_or(c_int::MAX);
    // SAFETY: `events` has room for as many entries as the call is told, and outlives it.
    told(unsafe { libc::syscall(libc::SYS_epoll_pwait, fd, events.as_mut_ptr(), most, wait_ms, no_mask, no_len) })
}
