//! How connections come to a listener when rules of the kernel bring them there, and what is made of where they were going.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use super::{Direction, ListenerConfig};

/// How connections come to a listener. The default is that of a listener whose clients connect to it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Capture {
    /// Its addresses are bound; else it gets only what another listener hands over (Envoy: `bind_to_port`).
    pub is_bound: bool,
    /// Its sockets take connections to any address, as TPROXY brings them (Envoy: `transparent`).
    pub is_transparent: bool,
    /// What is made of the address that a connection was made to before it was redirected.
    pub original: OriginalDestination,
}

/// What a listener makes of the address that a connection was made to before it was redirected.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum OriginalDestination {
    /// Nothing: the kernel is not asked.
    #[default]
    Unasked,
    /// It is the destination (Envoy: the listener filter `original_dst`).
    Asked,
    /// And the listener that has it for its address serves the connection, where there is one (Envoy: `use_original_dst`).
    HandsOver,
}

/// A cluster whose endpoints are the destinations of the connections that it gets (Envoy: `ORIGINAL_DST`).
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct OriginalCluster {
    /// A request that has this header goes to the address in it instead.
    pub header: Option<Arc<str>>,
    /// Every connection goes to this port.
    pub port: Option<u16>,
    /// A destination without connections that nobody asked for in this time is forgotten. Default 5 s.
    pub cleanup_interval: Duration,
}

impl Default for Capture {
    fn default() -> Self {
        Self { is_bound: true, is_transparent: false, original: OriginalDestination::Unasked }
    }
}

impl ListenerConfig {
    /// What is to be bound.
    pub fn bound_addresses(&self) -> &[SocketAddr] {
        if self.capture.is_bound { &self.addresses } else { &[] }
    }

    /// True when it learns where its connections were made to.
    pub fn knows_destinations(&self) -> bool {
        !self.capture.is_bound
            || self.capture.original != OriginalDestination::Unasked
            || self.inspection.proxy.is_some()
    }

    /// True when it stands beside a workload whose connections are brought to it: nobody has business connecting to it.
    pub fn is_behind_rules(&self) -> bool {
        self.direction != Direction::Unspecified && self.capture.original != OriginalDestination::Unasked
    }

    /// True when all that connect to it at `address` are on this machine.
    pub fn is_local(&self, address: SocketAddr) -> bool {
        address.ip().is_loopback() || (self.direction == Direction::Outbound && self.is_behind_rules())
    }
}
