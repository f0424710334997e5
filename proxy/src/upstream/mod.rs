//! **Purpose.** Connections to endpoints: opening, pooling, reuse.
//!
//! **Shape.** An [`Endpoint`] is one worker's side of one address: its idle connections, newest first out, and its
//! shared counts. A [`Connection`] is checked out of it, used by one exchange at a time and given back, or dropped.
//! [`Slots`] bound what one cluster has open over all workers.
//!
//! **Limits.** An idle connection holds a descriptor and a slot but no buffer. Peers that closed or sent bytes while
//! idle are found before reuse and by [`Endpoint::sweep`].
//!
//! **Cancel.** Dropping [`connect`] closes the half-open socket and frees its slot.

mod connect;
mod endpoint;
mod slots;

pub use connect::{ConnectFault, connect};
pub use endpoint::{Connection, Endpoint, Reuse};
pub use slots::{Slot, Slots};
