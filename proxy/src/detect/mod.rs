//! **Purpose.** What a connection is, told from its first bytes, and which filter chain takes it.
//!
//! **Shape.** Pure: bytes and addresses in; a verdict out, or `None`: more bytes are needed. Each reader is asked again with
//! all bytes so far and goes on where it stopped, so that a verdict falls at the earliest byte whatever the segments are.
//! ```text
//!  PROXY header? ──▶ needs: does any chain ask for bytes? ──no──▶ choose
//!                                    └─yes─▶ ClientHello? request line? ──▶ choose
//! ```
//! The sockets, the wait and its end are the listener's.
//!
//! **Limits.** Each reader is linear in its bytes and bounded: a request line at [`LINE_MAX`], a PROXY header at
//! [`PROXY_HEADER_MAX`], a ClientHello by the caller.
//!
//! **Errors.** Bytes that cannot be what they began as get a verdict of their own; nothing panics.
//!
//! **Source.** Envoy: listener filters, `FilterChainMatch`. Formats: see each file.
//!
//! **Tests.** Every split of every sample, and random bytes, at the foot of each file.

mod choose;
mod client_hello;
mod preface;
mod proxy_protocol;

pub use choose::{Facts, Needs, choose, needs};
pub use client_hello::{ClientHello, HelloReader, HelloVerdict, protocols};
pub use preface::{LINE_MAX, LineReader, Preface};
pub use proxy_protocol::{PROXY_HEADER_MAX, ProxyVerdict, proxy_header};
