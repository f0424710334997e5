//! Purpose: what the relays share: their command line, `RELAY LISTEN_ADDRESS UPSTREAM_ADDRESS`.
//!
//! Shape: one connection upstream for each one downstream, bytes moved through a buffer or a pipe, nothing read of what
//! they say. A proxy does all of this and more, so what a relay costs is what a proxy on the same interface cannot
//! undercut.
//!
//! Limits: for measuring. A relay serves until it is killed.

use std::net::SocketAddr;

/// Bytes a relay reads at once.
pub const READ_BYTES: usize = 64 * 1024;

/// Where a relay listens and where it connects to.
#[derive(Clone, Copy, Debug)]
pub struct Route {
    /// Its own address.
    pub listen: SocketAddr,
    /// The address each downstream connection is joined to.
    pub upstream: SocketAddr,
}

impl Route {
    /// Reads the command line; the error is the usage.
    pub fn from_command_line() -> Result<Self, String> {
        let mut arguments = std::env::args();
        let program = arguments.next().unwrap_or_default();
        let addresses: Vec<SocketAddr> = arguments.filter_map(|argument| argument.parse().ok()).collect();
        match addresses[..] {
            [listen, upstream] => Ok(Self { listen, upstream }),
            _ => Err(format!("usage: {program} LISTEN_ADDRESS UPSTREAM_ADDRESS")),
        }
    }
}
