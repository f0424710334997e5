//! **Purpose.** What a matched request is allowed: tokens, a place among those in flight, another try.
//!
//! **Shape.** [`limit`]: token buckets, shared by workers, kept over updates by [`Buckets`]. [`circuit`]: the bounds of one
//! cluster, as counters with guards. [`retry`]: one pure decision. Time and chance are arguments.
//!
//! **Units.** Times are nanoseconds of a monotonic clock whose start does not matter.

pub mod circuit;
pub mod limit;
pub mod retry;

pub use circuit::{CircuitState, Slot};
pub use limit::{Buckets, TokenBucket, Verdict, admit};
pub use retry::{Attempt, Decision, Outcome, Sent, asks_on_answer, asks_on_grpc, decide};

#[cfg(test)]
mod tests;
