//! **Purpose.** Which destinations have a server that speaks first, so that the wait for a client that will say nothing is
//! paid once.
//!
//! **Shape.** A table of [`SLOTS`] words that all workers share, each a print of one destination and the second until which
//! it is believed. A destination has one place; another with the same place takes it over. A [`FirstWord`] rides along with
//! a connection and tells who spoke first: the server, and the destination is believed for [`BELIEVED`] more; the client, and
//! it is forgotten. So only a server can teach the table: a silent client, as a port scan is, cannot.
//!
//! **Limits.** 8 KiB. What is lost, to another destination or to time, costs one wait. Two destinations are taken for one
//! with a chance of 2⁻⁴² each pair: the second then gets no wait, once.

use std::hash::{DefaultHasher, Hash as _, Hasher as _};
use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use crate::config::ListenerName;
use crate::stats::ListenerCell;

const SLOTS: usize = 1024;
const BELIEVED: Duration = Duration::from_secs(300);

/// Destinations whose server speaks first.
#[derive(Debug)]
pub struct ServerFirst {
    started: Instant,
    slots: Box<[AtomicU64]>,
}

/// A destination, as a number.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Destination(u64);

impl Destination {
    /// Where connections of a listener go that were made to `address`.
    pub fn new(listener: &ListenerName, address: SocketAddr) -> Self {
        let mut hasher = DefaultHasher::new();
        (listener, address).hash(&mut hasher);
        Self(hasher.finish())
    }

    fn place(self) -> usize {
        usize::try_from(self.0 % SLOTS as u64).unwrap_or(0)
    }

    /// The upper half: it shares no bit with the place.
    fn print(self) -> u64 {
        self.0 >> 32 << 32
    }
}

impl ServerFirst {
    /// A table that knows none.
    pub fn new(started: Instant) -> Self {
        Self { started, slots: (0..SLOTS).map(|_| AtomicU64::new(0)).collect() }
    }

    /// Whether the server at `destination` speaks first, as far as is known.
    pub fn has(&self, destination: Destination, now: Instant) -> bool {
        let slot = self.slots[destination.place()].load(Ordering::Relaxed);
        slot != 0 && slot >> 32 << 32 == destination.print() && self.second(now) < slot & u64::from(u32::MAX)
    }

    fn learn(&self, destination: Destination, now: Instant) {
        let until = self.second(now + BELIEVED);
        self.slots[destination.place()].store(destination.print() | until, Ordering::Relaxed);
    }

    fn forget(&self, destination: Destination) {
        let slot = &self.slots[destination.place()];
        if slot.load(Ordering::Relaxed) >> 32 << 32 == destination.print() {
            slot.store(0, Ordering::Relaxed);
        }
    }

    fn second(&self, at: Instant) -> u64 {
        at.saturating_duration_since(self.started).as_secs().min(u32::MAX.into())
    }
}

/// Waits to tell who speaks first on a connection whose client has said nothing yet.
#[derive(Debug)]
pub struct FirstWord {
    known: Arc<ServerFirst>,
    destination: Destination,
}

impl FirstWord {
    /// Of a connection made to `destination`.
    pub fn new(known: Arc<ServerFirst>, destination: Destination) -> Self {
        Self { known, destination }
    }

    /// The server spoke, at `now`; counted in `cell` where it was not known.
    pub fn is_servers(self, now: Instant, cell: &ListenerCell) {
        if !self.known.has(self.destination, now) {
            cell.server_first.add_one();
        }
        self.known.learn(self.destination, now);
    }

    /// The client spoke.
    pub fn is_clients(self) {
        self.known.forget(self.destination);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_server_teaches_and_a_client_makes_forget() {
        let started = Instant::now();
        let known = Arc::new(ServerFirst::new(started));
        let cell = ListenerCell::default();
        let [here, there] = [1, 2].map(|port| {
            let address = SocketAddr::from(([127, 0, 0, 1], port));
            Destination::new(&"in".into(), address)
        });
        assert!(!known.has(here, started));
        let word = || FirstWord::new(known.clone(), here);
        word().is_servers(started, &cell);
        assert!(known.has(here, started) && !known.has(there, started));
        assert!(known.has(here, started + BELIEVED - Duration::from_secs(1)));
        assert!(!known.has(here, started + BELIEVED), "it is believed for a time");
        word().is_servers(started + Duration::from_secs(9), &cell);
        assert!(known.has(here, started + BELIEVED), "each time anew");
        assert_eq!(cell.server_first.value(), 1);
        FirstWord::new(known.clone(), there).is_clients();
        assert!(known.has(here, started));
        word().is_clients();
        assert!(!known.has(here, started));
    }
}
