//! **Purpose.** Which endpoint takes a request, and which endpoints are out of use for a time.
//!
//! **Shape.** Each worker has a [`Balancer`] per cluster, built from its endpoints; nothing of it is shared. [`Ejector`] is
//! shared by all workers: it sees how tries end, and its generation tells balancers to look again. Time and chance are
//! arguments.

mod eject;
mod hashed;
mod pick;
mod rotation;
mod tiers;

pub use eject::{Cause, Ejected, Ejector, Record, Ruling, Seen};
pub use hashed::{hash_of, hash_of_all};
pub use pick::{Balancer, Draw, Live, Pick};

#[cfg(test)]
mod tests;
