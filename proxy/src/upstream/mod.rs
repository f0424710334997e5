//! **Purpose.** Connections to endpoints: opening, pooling, reuse.
//!
//! **Shape.** An [`Endpoint`] is one worker's side of one address: its idle connections, newest first out, and its
//! shared counts. A [`Connection`] is checked out of it, used by one exchange at a time and given back, or dropped. A
//! [`Multiplexed`] connection of HTTP/2 stays there and is shared: a [`Lease`] is one stream's place on it.
//! [`Slots`] bound what one cluster has open over all workers.
//!
//! **Limits.** An idle connection holds a descriptor and a slot but no buffer. Peers that closed or sent bytes while
//! idle are found before reuse and by [`Endpoint::sweep`].
//!
//! **Cancel.** Dropping [`connect`] closes the half-open socket and frees its slot.

mod connect;
mod endpoint;
mod multiplexed;
mod proxy_header;
mod slots;

pub use connect::{ConnectFault, connect, connect_multiplexed};
pub use endpoint::{Connection, Endpoint, Opening, Reuse};
pub use multiplexed::{Lease, Multiplexed};
pub use proxy_header::{Ends, proxy_header};
pub use slots::{Slot, Slots};
