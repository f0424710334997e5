//! Purpose: HTTP/2 as a test needs it: every frame can be sent, right or wrong, and every frame that came is kept.
//!
//! Shape: [`frame`] and [`hpack`] are bytes only; a [`Link`] is one connection, of either role, with a thread that reads it;
//! [`H2Downstream`] asks over one; [`H2Upstream`] answers over many, by a script or as a puppet that the test moves.
//!
//! Nothing of it is shared with the proxy, whose HTTP/2 is the `h2` crate: the same misreading on both sides would show as
//! agreement.
//!
//! Source: RFC 9113, RFC 7541.

pub mod downstream;
pub mod frame;
pub mod hpack;
pub mod link;
pub mod upstream;

pub use downstream::{H2Downstream, Outcome};
pub use frame::Frame;
pub use link::{Link, LinkSetup};
pub use upstream::{H2Answer, H2Script, H2Upstream};
