//! Where this process listens itself, so that it never connects to itself.
//!
//! **Shape.** The control thread tells what is bound each time that changes; workers ask only of connections whose
//! destination was found out or chosen by a client, and most of those end at the comparison of ports.
//!
//! **Limits.** With the sysctl `ip_nonlocal_bind` every address is this machine's ([`is_local`]), and ports of our listeners are
//! then refused at any.

use std::net::SocketAddr;
use std::sync::atomic::{AtomicU16, Ordering};

use arc_swap::ArcSwap;
use outrigger_reactor::is_local;

use crate::config::ListenerName;

/// What is bound, and the port of heartbeats.
#[derive(Debug, Default)]
pub struct Own {
    listeners: ArcSwap<Vec<(ListenerName, SocketAddr)>>,
    heartbeat_port: AtomicU16,
}

impl Own {
    /// Replaces what is known to be bound.
    pub fn set_listeners(&self, bound: Vec<(ListenerName, SocketAddr)>) {
        self.listeners.store(bound.into());
    }

    /// Sets the port of heartbeats. To be called before the first connection.
    pub fn set_heartbeat_port(&self, port: u16) {
        self.heartbeat_port.store(port, Ordering::Relaxed);
    }

    /// True for the address on loopback that nobody listens on: the capture's rules alone bring its connections here.
    pub fn is_heartbeat(&self, destination: SocketAddr) -> bool {
        let port = self.heartbeat_port.load(Ordering::Relaxed);
        port != 0 && destination.port() == port && destination.ip().is_loopback()
    }

    /// The listener that a connection to `destination` from here would reach.
    pub fn listener_at(&self, destination: SocketAddr) -> Option<ListenerName> {
        let bound = self.listeners.load();
        let mut at_port = bound.iter().filter(|(_, own)| own.port() == destination.port()).peekable();
        at_port.peek()?;
        let is_local = is_local(destination.ip());
        let found = at_port.find(|(_, own)| own.ip() == destination.ip() || (own.ip().is_unspecified() && is_local));
        found.map(|(name, _)| name.clone())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(text: &str) -> SocketAddr {
        text.parse().unwrap()
    }

    #[test]
    fn our_own_listeners_are_known_at_every_address_of_the_machine() {
        let own = Own::default();
        assert_eq!(own.listener_at(at("127.0.0.1:15001")), None);
        own.set_listeners(vec![("out".into(), at("127.0.0.1:15001")), ("in".into(), at("0.0.0.0:15006"))]);
        let name = |address| own.listener_at(at(address)).map(|name| name.to_string());
        assert_eq!(name("127.0.0.1:15001").as_deref(), Some("out"));
        assert_eq!(name("127.0.0.2:15001"), None, "nobody listens there");
        assert_eq!(name("127.0.0.2:15006").as_deref(), Some("in"));
        assert_eq!(name("0.0.0.0:15006").as_deref(), Some("in"));
        assert_eq!((name("192.0.2.1:15006"), name("127.0.0.1:80")), (None, None), "another machine's, another port");
    }

    #[test]
    fn heartbeats_are_those_to_loopback() {
        let own = Own::default();
        assert!(!own.is_heartbeat(at("127.0.0.1:0")));
        own.set_heartbeat_port(15_009);
        assert!(own.is_heartbeat(at("127.0.0.1:15009")) && own.is_heartbeat(at("[::1]:15009")));
        assert!(!own.is_heartbeat(at("192.0.2.1:15009")) && !own.is_heartbeat(at("127.0.0.1:15008")));
    }
}
