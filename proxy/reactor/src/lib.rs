//! A ring-first, single-threaded async runtime with owned buffers.
//!
//! **Purpose.** One executor per worker thread over one of two drivers, `uring` and `epoll`, that behave alike.
//!
//! **Shape.** [`probe`] says which driver this machine allows and why. A [`Runtime`] owns one driver, its tasks
//! (`!Send`), its timers and its buffer pool. [`TcpListener`] and [`TcpStream`] are the sockets, [`Buf`] is a
//! reference-counted slice of received or written bytes, [`mailbox`] brings values from other threads; an [`Accepted`]
//! connection may be such a value.
//! ```text
//!  turn:  run ready tasks (bounded) ─► re-arm, submit and wait (one syscall) ─► completions ─► timers ─► wake
//!  modules:  executor (tasks, wakers, turn) ─► timers · buffers · driver ─► ring | epoll ─► socket ◀─ splice
//! ```
//!
//! **Units.** Bytes and [`std::time::Duration`]; timers are kept in milliseconds and never fire early.
//!
//! **Limits.** [`Options`]; at most [`AHEAD_BLOCKS`] blocks are received ahead of a stream's reader.
//!
//! **Cancel.** Dropping any future of this crate loses no received byte and frees no memory that the kernel may
//! still write to: see each function.
//!
//! **Tests.** `tests/conformance.rs` runs one suite on both drivers; unit and property tests at the foot of each file.

mod allocator;
mod buffers;
mod bufs;
mod calls;
mod driver;
mod epoll;
mod executor;
mod image;
mod local;
mod mailbox;
mod meters;
mod nest;
mod probe;
mod receive;
mod ring;
mod socket;
mod splice;
mod tcp;
mod timers;

pub use allocator::Allocator;
pub use buffers::Buf;
pub use executor::{Runtime, Task, now, spawn, yield_now};
pub use image::release_image;
pub use local::{is_local, unpace};
pub use mailbox::{Mailbox, Sender, mailbox};
pub use meters::{Counters, count_copied, counters};
pub use nest::{Nested, nest};

pub use probe::{Check, IoChoice, Probe, ProbeError, probe};
pub use socket::{AHEAD_BLOCKS, CLOSING_ACCEPTS, HANDED_BYTES};
pub use splice::{PIPE_BYTES, Splice, SpliceFault, Spliced};
pub use tcp::{Accepted, TcpListener, TcpStream};
pub use timers::{Elapsed, Sleep, Timeout, sleep, sleep_until, timeout, timeout_at};

/// The driver in use.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum DriverKind {
    /// Non-blocking sockets and readiness.
    Epoll,
    /// The ring is the only sleeping point.
    Uring,
}

impl DriverKind {
    /// The word used in settings, logs and metrics.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Epoll => "epoll",
            Self::Uring => "uring",
        }
    }
}

/// Sizes of one runtime.
#[derive(Clone, Debug)]
pub struct Options {
    /// Blocks kept in the receive pool at rest (1..=32768). Load may take more, up to `buffers_max`; they are given
    /// back when it is over.
    pub buffers: u16,
    /// Blocks that may exist at once (`buffers`..=32768): with all of them held, streams wait for one to come back.
    pub buffers_max: u16,
    /// Bytes in a block (64..=1048576).
    pub buffer_bytes: usize,
    /// Submission queue entries (1..=32768).
    pub entries: u32,
}

impl Default for Options {
    fn default() -> Self {
        Self { buffers: 128, buffers_max: 8192, buffer_bytes: 4096, entries: 256 }
    }
}
