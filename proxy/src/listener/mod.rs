//! **Purpose.** Listening sockets: bound once by the control thread, accepted from by every worker, their connections
//! spread evenly over the workers.
//!
//! **Shape.** [`Sockets`] holds what is bound and follows each snapshot: what is new is bound, what left is closed,
//! what stays is not touched. Every worker gets a duplicate of each socket and runs [`accept`] over it; the [`Crew`]
//! decides which worker serves a connection, and [`take_in`] is the way in for those accepted by another.
//!
//! **Errors.** A [`BindError`] names the listener, the address and what to do.
//!
//! **Limits.** Out of descriptors, an accept loop pauses and tries again; the kernel's queue holds who waits.

mod accept;
mod arrive;
mod bind;
mod captured;
mod crew;

pub use accept::accept;
pub use bind::{BindError, Change, Sockets};
pub use crew::{Crew, Handed, take_in};
