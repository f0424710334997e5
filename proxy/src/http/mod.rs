//! **Purpose.** Requests: taken from clients, routed, limited, forwarded and answered, whichever version of HTTP either
//! side speaks.
//!
//! **Shape.** A `Downstream` serves requests: one for each HTTP/1 connection, one for each stream of HTTP/2. An exchange
//! is written once; where the versions differ it looks at four pairs: the client, the upstream, and their heads.
//! ```text
//!   http1_server ─┐                                                    ┌─▶ HTTP/1 connection, checked out
//!                 ├─▶ exchange ─▶ forward (tries) ─▶ relay (bodies) ───┤
//!   http2_server ─┘      └─▶ respond: refusals, direct answers         └─▶ stream of a shared HTTP/2 connection
//! ```
//! From HTTP/1 to HTTP/1 a head stays bytes and a body the slices that were received, or it is spliced; any other pair
//! goes over header maps and frames.
//!
//! **Errors.** Every answer made here is a [`Fault`](crate::fault::Fault).
//!
//! **Source.** RFC 9110, RFC 9112, RFC 9113.

mod access;
mod answer;
mod attempt;
mod body;
mod call;
mod deadline;
mod downstream;
mod exchange;
mod forward;
mod head;
mod http1_server;
mod http2_server;
mod inlet;
mod original;
mod pump;
mod relay;
mod respond;
#[cfg(test)]
mod tests;
mod upgrade;
mod upstream;
mod workspace;

pub use http1_server::serve;
