//! **Purpose.** HTTP/2 over our sockets: the `h2` crate, with this process's reactor under it.
//!
//! **Shape.** [`Io`] gives `h2` the traits it wants over a [`TcpStream`](outrigger_reactor::TcpStream) and watches the
//! frames that come in: a [`Guard`] tells when a peer only makes work. [`Chunk`] is a piece of a body on its way out,
//! received by either version of HTTP, never copied here. [`server`] and [`client`] are `h2`'s builders as [`Http2Config`]
//! has it; [`Keepalive`] tries a connection that is silent. [`edit`] is for header maps what `http1::edit` is for bytes.
//!
//! **Limits.** Of a peer: streams, windows, header bytes and frames that move nothing, each bounded for a connection.
//!
//! **Source.** RFC 9113, RFC 7541, RFC 8441. `h2` keeps the states, the windows and HPACK.
//!
//! [`Http2Config`]: crate::config::Http2Config

mod chunk;
pub mod edit;
mod guard;
mod io;
mod keepalive;
mod preface;
mod settings;

pub use chunk::Chunk;
pub use guard::Guard;
pub use io::{Io, IoState};
pub use keepalive::{Keepalive, Silent};
pub use preface::{PREFACE, is_preface};
pub use settings::{client, server};
