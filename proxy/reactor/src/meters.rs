//! **Purpose.** Counters of one runtime: plain cells that its thread alone writes.
//!
//! **Units.** Events and bytes since the runtime began, except where a field says "now".

use std::cell::Cell;

use crate::executor;

/// Counters of the current thread's runtime (plain copies).
#[derive(Clone, Copy, Debug, Default)]
pub struct Counters {
    /// Loop turns.
    pub turns: u64,
    /// System calls that the crate made.
    pub syscalls: u64,
    /// Ring entries submitted (0 on epoll).
    pub submissions: u64,
    /// Ring completions, or epoll events.
    pub completions: u64,
    /// Operations asked to be cancelled.
    pub cancels: u64,
    /// Bytes received.
    pub recv_bytes: u64,
    /// Bytes the kernel took to send.
    pub sent_bytes: u64,
    /// Bytes moved from socket to socket inside the kernel: neither received nor sent by this process.
    pub spliced_bytes: u64,
    /// Bytes that were told to [`count_copied`].
    pub copied_bytes: u64,
    /// Sends whose bytes the kernel was to read in place (0 on epoll).
    pub zc_sends: u64,
    /// Of these, those that it copied after all.
    pub zc_copied: u64,
    /// Pool blocks held by a [`Buf`](crate::Buf) now.
    pub buffers_in_use: u64,
    /// Times a receive found no block to fill.
    pub buffer_exhausted: u64,
    /// Spawned tasks alive now.
    pub tasks_live: u64,
    /// Descriptors that the driver holds now.
    pub sockets_open: u64,
    /// Timers armed now.
    pub timers_armed: u64,
}

/// Counters of the runtime that this thread is inside of; zeros outside one.
pub fn counters() -> Counters {
    executor::current().map(|core| core.counters()).unwrap_or_default()
}

/// Counts bytes of payload that the caller copied from one place in memory to another, on the runtime that this thread
/// is inside of.
pub fn count_copied(bytes: usize) {
    if let Some(core) = executor::current() {
        core.meters.copied_bytes.add(bytes as u64);
    }
}

/// One counter.
#[derive(Debug, Default)]
pub(crate) struct Meter(Cell<u64>);

impl Meter {
    pub(crate) fn add(&self, count: u64) {
        self.0.set(self.0.get().wrapping_add(count));
    }

    pub(crate) fn sub(&self, count: u64) {
        self.0.set(self.0.get().saturating_sub(count));
    }

    pub(crate) fn read(&self) -> u64 {
        self.0.get()
    }
}

/// What the parts of one runtime count into.
#[derive(Debug, Default)]
pub(crate) struct Meters {
    pub(crate) turns: Meter,
    pub(crate) syscalls: Meter,
    pub(crate) submissions: Meter,
    pub(crate) completions: Meter,
    pub(crate) cancels: Meter,
    pub(crate) recv_bytes: Meter,
    pub(crate) sent_bytes: Meter,
    pub(crate) spliced_bytes: Meter,
    pub(crate) copied_bytes: Meter,
    pub(crate) zc_sends: Meter,
    pub(crate) zc_copied: Meter,
    pub(crate) buffer_exhausted: Meter,
    pub(crate) sockets_open: Meter,
}
