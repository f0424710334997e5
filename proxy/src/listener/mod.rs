//! **Purpose.** Listening sockets: bound once by the control thread, accepted from by every worker.
//!
//! **Shape.** [`Sockets`] holds what is bound and follows each snapshot: what is new is bound, what left is closed,
//! what stays is not touched. Every worker gets a duplicate of each socket and runs [`accept`] over it.
//!
//! **Errors.** A [`BindError`] names the listener, the address and what to do.
//!
//! **Limits.** Out of descriptors, an accept loop pauses and tries again; the kernel's queue holds who waits.

mod accept;
mod bind;

pub use accept::accept;
pub use bind::{BindError, Change, Sockets};
