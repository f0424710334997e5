//! **Purpose.** Opaque connections: each one accepted becomes one to an endpoint, and their bytes are passed on unread.
//!
//! **Shape.** A [`Downstream`] chooses a cluster by weight, passes its limits, connects (at once: the endpoint may be the
//! one that speaks first) and becomes a `Relay`, two `Flow`s that end separately:
//! ```text
//!   accepted ──▶ connecting ──▶ relaying ──both ends finished──▶ closed
//!                    │ no cluster, no endpoint, limit,   │ reset by either, over age, drain's end ──▶ both reset
//!                    ▼ connects failed ──▶ closed        ▼ idle ──▶ both closed
//! ```
//!
//! **Errors.** A connection that cannot be served, or is broken off, is counted as a `Fault` of its listener and told in
//! the log at debug level. Bytes that may be lost show as a reset, never as an orderly end.
//!
//! **Limits.** 64 KiB wait towards a slow reader, and only its own sender waits for it. While it relays, a connection holds no
//! snapshot, no cluster and no buffer. A drain does not end opaque connections, for nothing tells their ends to
//! finish: they have until its deadline.
//!
//! **Cancel.** A relay that is dropped resets both connections.
//!
//! **Source.** Envoy, `envoy.filters.network.tcp_proxy`. Stricter: a reset is passed on as a reset.
//!
//! **Tests.** `tests/tests/scenario/tcp.rs` on both drivers; sizes and choice at the foot of each file.

mod clock;
mod connect;
mod flow;
mod relay;

pub use connect::{Downstream, Origin};
