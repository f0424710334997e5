//! Purpose: the network of a node: a namespace of its own with a bridge, and one namespace for each pod on it.
//!
//! Shape: made and deleted with `ip`; a thread that [`Place::enter`] moved, and whatever it starts, is in there. Names are
//! told by one hosts file, which every pod has as its own: it stands for the cluster's DNS.
//!
//! Errors: without root or `ip` it panics and says so.

use std::collections::BTreeMap;
use std::io;
use std::net::Ipv4Addr;
use std::path::PathBuf;
use std::process;
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Mutex, PoisonError};

use super::super::namespace::{self, ip};
use super::super::scratch::Scratch;

/// Addresses for benchmarks (RFC 2544): nothing outside of these namespaces has them.
const NET: [u8; 2] = [198, 18];

static NODES: AtomicU32 = AtomicU32::new(0);

/// A network namespace, by its name.
#[derive(Debug, Clone)]
pub struct Place {
    name: String,
    /// Its own address.
    pub address: Ipv4Addr,
}

impl Place {
    /// The file that stands for it.
    pub fn path(&self) -> PathBuf {
        namespace::path(&self.name)
    }

    /// Moves this thread into it, for good.
    ///
    /// # Panics
    /// When that is not allowed.
    pub fn enter(&self) {
        namespace::enter(&self.name);
    }

    /// Runs `act` on a thread inside of it.
    pub fn inside<T: Send>(&self, act: impl FnOnce() -> T + Send) -> T {
        namespace::inside(&self.name, act)
    }
}

/// A node and the namespaces of its pods.
#[derive(Debug)]
pub struct Node {
    /// The node itself: where the kubelet is, and the API.
    pub place: Place,
    next: AtomicU32,
    scratch: Scratch,
    names: Mutex<BTreeMap<String, Ipv4Addr>>,
}

impl Node {
    /// Makes one.
    ///
    /// # Panics
    /// When namespaces cannot be made here.
    pub fn new() -> Self {
        let number = NODES.fetch_add(1, Ordering::Relaxed);
        let name = format!("outrigger-{}-node{number}", process::id());
        ip(&format!("netns add {name}"));
        let [a, b] = NET;
        let place = Place { name, address: Ipv4Addr::new(a, b, 0, 1) };
        let scratch = Scratch::new("node").unwrap_or_else(|error| panic!("{error}"));
        let node = Self { place, next: AtomicU32::new(2), scratch, names: Mutex::default() };
        ip(&format!("-n {} link add pods type bridge", node.place.name));
        ip(&format!("-n {} addr add {}/16 dev pods", node.place.name, node.place.address));
        ip(&format!("-n {} link set pods up", node.place.name));
        ip(&format!("-n {} link set lo up", node.place.name));
        node.write_hosts();
        node
    }

    /// A namespace for a pod, with an address and a way to the others.
    ///
    /// # Panics
    /// When it cannot be made.
    pub fn add_pod(&self) -> Place {
        let number = self.next.fetch_add(1, Ordering::Relaxed);
        let [high, low] = u16::try_from(number).expect("a test has few pods").to_be_bytes();
        let [a, b] = NET;
        let address = Ipv4Addr::new(a, b, high, low);
        let (own, node) = (format!("{}-pod{number}", self.place.name), &self.place.name);
        ip(&format!("netns add {own}"));
        let end = format!("pod{number}");
        ip(&format!("link add eth0 netns {own} type veth peer name {end} netns {node}"));
        ip(&format!("-n {node} link set {end} master pods up"));
        ip(&format!("-n {own} addr add {address}/16 dev eth0"));
        ip(&format!("-n {own} link set eth0 up"));
        ip(&format!("-n {own} link set lo up"));
        ip(&format!("-n {own} route add default via {}", self.place.address));
        Place { name: own, address }
    }

    /// Takes a pod's namespace away.
    pub fn remove_pod(&self, place: &Place) {
        namespace::delete(&place.name);
    }

    /// Makes a name known to all pods.
    pub fn set_name(&self, name: &str, address: Ipv4Addr) {
        self.names.lock().unwrap_or_else(PoisonError::into_inner).insert(name.to_owned(), address);
        self.write_hosts();
    }

    /// The hosts file of every pod; written in place, for it is mounted.
    pub fn hosts_file(&self) -> PathBuf {
        self.scratch.path().join("hosts")
    }

    fn write_hosts(&self) {
        let names = self.names.lock().unwrap_or_else(PoisonError::into_inner);
        let lines: String = names.iter().map(|(name, address)| format!("{address} {name}\n")).collect();
        let text = format!("127.0.0.1 localhost\n::1 localhost\n{lines}");
        let written: io::Result<()> = std::fs::write(self.hosts_file(), text);
        written.unwrap_or_else(|error| panic!("{}: {error}", self.hosts_file().display()));
    }
}

impl Default for Node {
    fn default() -> Self {
        Self::new()
    }
}

impl Drop for Node {
    fn drop(&mut self) {
        let pods = (2..self.next.load(Ordering::Relaxed)).map(|number| format!("{}-pod{number}", self.place.name));
        for name in pods.chain([self.place.name.clone()]) {
            namespace::delete(&name);
        }
    }
}
